// Attention in 8 bits for processors with AVX-512 and VNNI: softmax(scale q k^T) v without a table of scores.
//
// Each 256 keys lose their mean, whose product with a query is added in float, and become u8 with a scale of their own,
// or one per key where there are no more than 256; Q becomes s8 with a scale per row; V s8 with a scale per channel.
// Scores are exact products of those. Weights of 256 keys at a time are read from a table in steps of 1/26 of a doubling
// below the greatest of the 256, as u8, and are summed as they stand there, so that they add up to 1.
// Reference: kernels/attention/int8.py.

#include <cstring>

#include "vectors.h"

namespace {

constexpr int ROWS = 8;     // queries computed together
constexpr int KEYS = 256;   // keys whose weights share a scale
constexpr int CHUNK = 64;   // queries of one task
constexpr int MOST_FEATURES = 256;

struct Strides {
    int64_t batch, head, token;  // in floats; features follow one another
};

constexpr float LOG2E = 1.4426950408889634f;
constexpr int DOUBLING = 26;     // steps
constexpr double LEAST = 0.35;   // from here on a weight is 1: what lies below adds up to what is rounded up
constexpr float TAME = 0.25f;    // steps per unit of a score with which steps are right to a quarter

// 255 * 2^(-t/26), and 0 from t = 247 on.
struct Table {
    alignas(64) uint8_t weights[256];
    Table() {
        for (int t = 0; t < 256; ++t) {
            const double weight = 255 * std::exp2(-double(t) / DOUBLING);
            weights[t] = weight < 1.5 ? weight >= LEAST : uint8_t(std::lround(weight));
        }
    }
    // Of 64 steps.
    __m512i operator()(__m512i t) const {
#ifdef __AVX512VBMI__
        const __m512i* part = reinterpret_cast<const __m512i*>(weights);
        __m512i near = _mm512_permutex2var_epi8(part[0], t, part[1]), far = _mm512_permutex2var_epi8(part[2], t, part[3]);
        return _mm512_mask_blend_epi8(_mm512_movepi8_mask(t), near, far);
#else
        alignas(64) uint8_t at[64];
        _mm512_store_si512(at, t);
        for (int i = 0; i < 64; ++i) at[i] = weights[at[i]];
        return _mm512_load_si512(at);
#endif
    }
};
const Table table;

// One head's keys and values in the order in which they are read.
struct Head {
    uint8_t* keys;     // [tokens/16][features/4][16][4]
    int8_t* values;    // [tokens/4][channels/16][16][4]
    float* key_scale;    // [tokens], where there are more than KEYS alike in each KEYS; infinite for those not there
    float* value_scale;  // [channels]
    float* centres;      // the mean of each KEYS keys: [tokens/KEYS/16][features][16]
};

// (x - less) * factors * factor in whole steps; zeros up to a multiple of 16. Either array may be missing.
void rounded(const float* x, const float* less, const float* factors, float factor, int features, int8_t* out) {
    for (int d = 0; d < features; d += 16) {
        __mmask16 here = features - d >= 16 ? 0xffff : __mmask16((1 << (features - d)) - 1);
        __m512 y = _mm512_maskz_loadu_ps(here, x + d);
        if (less) y = _mm512_sub_ps(y, _mm512_maskz_loadu_ps(here, less + d));
        y = _mm512_mul_ps(y, factors ? _mm512_maskz_loadu_ps(here, factors + d) : _mm512_set1_ps(factor));
        _mm_store_si128(reinterpret_cast<__m128i*>(out + d), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(y)));
    }
}

// The greatest of |x - less|; `less` may be missing.
float greatest_of(const float* x, const float* less, int count) {
    __m512 most = _mm512_setzero_ps();
    for (int d = 0; d < count; d += 16) {
        __m512 here = _mm512_maskz_loadu_ps(lanes(count - d), x + d);
        if (less) here = _mm512_sub_ps(here, _mm512_maskz_loadu_ps(lanes(count - d), less + d));
        most = _mm512_max_ps(most, _mm512_abs_ps(here));
    }
    return _mm512_reduce_max_ps(most);
}

// Keys in u8 around their mean, KEYS of them or the few at the end.
void pack_keys(const float* k, Strides ks, int first, int last, int features, int quads, bool each_its_own, Head& head) {
    const int block = first / KEYS;
    float* centre = head.centres + size_t(block / 16) * features * 16 + block % 16;
    float mean[MOST_FEATURES] = {};
    for (int t = first; t < last; ++t)
        for (int d = 0; d < features; ++d) mean[d] += k[t * ks.token + d];
    for (int d = 0; d < features; ++d) centre[d * 16] = mean[d] /= last - first;
    float all = 0;
    for (int t = first; t < last; ++t) {
        const float most = greatest_of(k + t * ks.token, mean, features);
        head.key_scale[t] = most > 0 ? most / 127 : 1.0f;
        all = std::max(all, most);
    }
    if (!each_its_own) std::fill(head.key_scale + first, head.key_scale + last, all > 0 ? all / 127 : 1.0f);
    alignas(64) int8_t row[MOST_FEATURES];
    for (int t = first; t < last; ++t) {
        rounded(k + t * ks.token, mean, nullptr, 1 / head.key_scale[t], features, row);
        uint8_t* key = head.keys + size_t(t / 16) * quads * 64 + (t % 16) * 4;
        for (int j = 0; j < quads; ++j) {
            uint32_t four;
            std::memcpy(&four, row + j * 4, 4);
            four ^= 0x80808080u;  // + 128 in each byte
            std::memcpy(key + j * 64, &four, 4);
        }
    }
}

void pack(const float* k, const float* v, Strides ks, Strides vs, int tokens, int features, int padded, int quads,
          int vectors, Head& head) {
    std::memset(head.keys, 128, size_t(padded) * quads * 4);
    for (int first = 0; first < tokens; first += KEYS)
        pack_keys(k, ks, first, std::min(first + KEYS, tokens), features, quads, tokens <= KEYS, head);
    std::fill_n(head.value_scale, vectors * 16, 0.0f);
    for (int t = 0; t < tokens; ++t)
        for (int d = 0; d < features; ++d)
            head.value_scale[d] = std::max(head.value_scale[d], std::fabs(v[t * vs.token + d]));
    for (int d = 0; d < vectors * 16; ++d)
        head.value_scale[d] = head.value_scale[d] > 0 ? head.value_scale[d] / 127 : 1.0f;
    std::memset(head.values, 0, size_t(padded) * vectors * 16);
    auto factor = aligned<float>(vectors * 16);
    for (int d = 0; d < vectors * 16; ++d) factor[d] = 1 / head.value_scale[d];
    alignas(64) int8_t row[4][MOST_FEATURES];
    for (int t = 0; t < tokens; t += 4) {
        for (int r = 0; r < 4; ++r)
            if (t + r < tokens)
                rounded(v + (t + r) * vs.token, nullptr, factor.get(), 1.0f, features, row[r]);
            else
                std::memset(row[r], 0, sizeof row[r]);
        for (int n = 0; n < vectors; ++n) {
            __m128i r[4], two[4];
            for (int i = 0; i < 4; ++i) r[i] = _mm_load_si128(reinterpret_cast<__m128i*>(row[i] + n * 16));
            two[0] = _mm_unpacklo_epi8(r[0], r[1]), two[1] = _mm_unpackhi_epi8(r[0], r[1]);
            two[2] = _mm_unpacklo_epi8(r[2], r[3]), two[3] = _mm_unpackhi_epi8(r[2], r[3]);
            const int within = t / 4 % 16, at = t / 64 * 16 + within % 4 * 4 + within / 4;  // as `weigh` packs them
            __m128i* place = reinterpret_cast<__m128i*>(head.values + (size_t(at) * vectors + n) * 64);
            _mm_store_si128(place, _mm_unpacklo_epi16(two[0], two[2]));
            _mm_store_si128(place + 1, _mm_unpackhi_epi16(two[0], two[2]));
            _mm_store_si128(place + 2, _mm_unpacklo_epi16(two[1], two[3]));
            _mm_store_si128(place + 3, _mm_unpackhi_epi16(two[1], two[3]));
        }
    }
}

// Products of ROWS queries with `count` keys, a multiple of 64 up to KEYS, and the greatest of each row.
[[gnu::noinline]] void score(const uint8_t* keys, int count, const int8_t* q, int quads, int32_t* scores, int32_t* greatest) {
    __m512i top[ROWS];
    for (int r = 0; r < ROWS; ++r) top[r] = _mm512_set1_epi32(INT32_MIN);
    for (int g = 0; g < count / 16; g += 2) {
        __m512i sum[ROWS][2];
        each<ROWS>([&](auto r) ALWAYS { sum[r][0] = sum[r][1] = _mm512_setzero_si512(); });
        const uint8_t* first = keys + size_t(g) * quads * 64;
        const uint8_t* second = first + size_t(quads) * 64;
        for (int j = 0; j < quads; ++j) {
            const __m512i a = _mm512_load_si512(first + j * 64), b = _mm512_load_si512(second + j * 64);
            each<ROWS>([&](auto r) ALWAYS {
                const __m512i here = four(q + (r * quads + j) * 4);
                dot(sum[r][0], a, here);
                dot(sum[r][1], b, here);
            });
        }
        each<ROWS>([&](auto r) ALWAYS {
            top[r] = _mm512_max_epi32(top[r], _mm512_max_epi32(sum[r][0], sum[r][1]));
            _mm512_store_si512(scores + r * KEYS + g * 16, sum[r][0]);
            _mm512_store_si512(scores + r * KEYS + g * 16 + 16, sum[r][1]);
        });
    }
    for (int r = 0; r < ROWS; ++r) greatest[r] = _mm512_reduce_max_epi32(top[r]);
}

// Sixteen scores, with KEYED each times the scale of its key. Keys are stored with 128 added, which softmax does not see
// unless they are scaled; `more` is what that made of the scores.
template <bool KEYED>
ALWAYS inline __m512 real(const int32_t* scores, const float* key_scale, int32_t more) {
    const __m512i whole = _mm512_load_si512(scores);
    if (!KEYED) return _mm512_cvtepi32_ps(whole);
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(whole, _mm512_set1_epi32(more))), _mm512_load_ps(key_scale));
}

// Weights 0..255 relative to the row's greatest score, and their sums. `unit`: log2 of the weight per unit of a score.
template <bool KEYED>
void weigh(const int32_t* scores, int count, const float* key_scale, const int32_t* more, const float* greatest,
           const float* unit, uint8_t* weights, float* sums) {
    const __m512 most = _mm512_set1_ps(255.0f);
    for (int r = 0; r < ROWS; ++r) {
        const float by = DOUBLING * unit[r];
        const bool tame = !KEYED && by <= TAME;
        const __m512 u = _mm512_set1_ps(by), top = _mm512_set1_ps(tame ? greatest[r] * by : greatest[r]);
        __m512i sum = _mm512_setzero_si512();
        for (int g = 0; g < count; g += 64) {
            __m512i steps[4];
            each<4>([&](auto j) ALWAYS {
                const int at = g + j * 16;
                const __m512 x = real<KEYED>(scores + r * KEYS + at, key_scale + at, more[r]);
                const __m512 below = tame ? _mm512_fnmadd_ps(x, u, top)
                                          : _mm512_min_ps(_mm512_mul_ps(_mm512_sub_ps(top, x), u), most);
                steps[j] = _mm512_cvtps_epi32(below);
            });
            // keys 16j + 4i + (0..3) come to lie at 16i + 4j; the values lie so too; what is beyond 255 becomes 255
            __m512i first = _mm512_packs_epi32(steps[0], steps[1]), second = _mm512_packs_epi32(steps[2], steps[3]);
            __m512i w = table(_mm512_packus_epi16(first, second));
            sum = _mm512_add_epi64(sum, _mm512_sad_epu8(w, _mm512_setzero_si512()));
            _mm512_store_si512(weights + r * KEYS + g, w);
        }
        sums[r] = float(_mm512_reduce_add_epi64(sum));
    }
}

// The greatest score of each row where every key has a scale of its own; those not there come to be minus infinity.
void keyed(int32_t* scores, int count, int tokens, const float* key_scale, const int32_t* more, float* greatest) {
    for (int r = 0; r < ROWS; ++r) {
        __m512 top = _mm512_set1_ps(-INFINITY);
        for (int g = 0; g < tokens; g += 16) {
            const __m512 x = real<true>(scores + r * KEYS + g, key_scale + g, more[r]);
            top = _mm512_mask_max_ps(top, lanes(tokens - g), top, x);
        }
        greatest[r] = _mm512_reduce_max_ps(top);
        std::fill(scores + r * KEYS + tokens, scores + r * KEYS + count, INT32_MIN / 2);
    }
}

// out = out * before + (weights @ values) * now, for N vectors of 16 channels.
template <int N>
[[gnu::noinline]] void mix(const uint8_t* weights, int count, const int8_t* values, int vectors, const float* before, const float* now,
         float* out, int width) {
    __m512i sum[ROWS][N];
    each<ROWS * N>([&](auto i) ALWAYS { sum[i / N][i % N] = _mm512_setzero_si512(); });
    for (int j = 0; j < count / 4; ++j) {
        __m512i v[N];
        each<N>([&](auto n) ALWAYS { v[n] = _mm512_load_si512(values + (size_t(j) * vectors + n) * 64); });
        each<ROWS>([&](auto r) ALWAYS {
            const __m512i here = four(weights + r * KEYS + j * 4);
            each<N>([&](auto n) ALWAYS { dot(sum[r][n], here, v[n]); });
        });
    }
    each<ROWS * N>([&](auto i) ALWAYS {
        constexpr int r = i / N, n = i % N;
        float* place = out + r * width + n * 16;
        __m512 old = _mm512_mul_ps(_mm512_load_ps(place), _mm512_set1_ps(before[r]));
        _mm512_store_ps(place, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][n]), _mm512_set1_ps(now[r]), old));
    });
}

struct Scratch {
    alignas(64) int32_t scores[ROWS * KEYS];
    alignas(64) uint8_t weights[ROWS * KEYS];
    std::unique_ptr<int8_t[], Free> q;
    std::unique_ptr<float[], Free> out;
    Scratch(int quads, int width) : q(aligned<int8_t>(ROWS * quads * 4)), out(aligned<float>(ROWS * width)) {}
};

// Products of ROWS queries, of which `rows` are there, with the means of sixteen times KEYS keys.
[[gnu::noinline]] void central(const float* q, int64_t q_token, int rows, const float* centres, int features, float* out) {
    __m512 sum[ROWS];
    each<ROWS>([&](auto r) ALWAYS { sum[r] = _mm512_setzero_ps(); });
    const float* row[ROWS];
    for (int r = 0; r < ROWS; ++r) row[r] = q + std::min(r, rows - 1) * q_token;
    for (int d = 0; d < features; ++d) {
        const __m512 means = _mm512_load_ps(centres + d * 16);
        each<ROWS>([&](auto r) ALWAYS { sum[r] = _mm512_fmadd_ps(_mm512_set1_ps(row[r][d]), means, sum[r]); });
    }
    each<ROWS>([&](auto r) ALWAYS { _mm512_store_ps(out + r * 16, sum[r]); });
}

// The first ROWS of `left` queries against one head.
void attend(const float* q, int64_t q_token, float* out, int64_t out_token, int left, const Head& head, int tokens,
            int features, int quads, int vectors, float scale, Scratch& here) {
    const int width = vectors * 16;
    const bool few = tokens <= KEYS;
    const float power = scale * LOG2E;  // of two, per unit of q k
    const int rows = std::min(ROWS, left);
    for (int r = ROWS; r < std::min(2 * ROWS, left); ++r)  // the next ones, on their way meanwhile
        for (int d = 0; d < features; d += 16) {
            __builtin_prefetch(q + r * q_token + d);
            __builtin_prefetch(out + r * out_token + d, 1);
        }
    float unit[ROWS], top[ROWS], total[ROWS];
    alignas(64) float centre[ROWS * 16] = {};
    int32_t more[ROWS] = {};
    std::memset(here.q.get(), 0, ROWS * quads * 4);
    std::fill_n(here.out.get(), ROWS * width, 0.0f);
    for (int r = 0; r < ROWS; ++r) {
        top[r] = -INFINITY;
        total[r] = unit[r] = 0;
        if (r >= rows) continue;
        const float most = greatest_of(q + r * q_token, nullptr, features);
        unit[r] = std::max(most / 127 * std::fabs(power), 1e-30f);
        alignas(64) int8_t row[MOST_FEATURES];
        rounded(q + r * q_token, nullptr, nullptr, power / unit[r], features, row);
        std::memcpy(here.q.get() + r * quads * 4, row, features);
        for (int d = 0; d < features; ++d) more[r] += 128 * row[d];
    }
    for (int first = 0; first < tokens; first += KEYS) {
        int32_t whole[ROWS];
        float greatest[ROWS], sums[ROWS], before[ROWS], now[ROWS], own[ROWS];
        const int count = std::min(KEYS, (tokens - first + 63) / 64 * 64), missing = std::max(0, first + count - tokens);
        const int block = first / KEYS;
        if (!few && block % 16 == 0)
            central(q, q_token, rows, head.centres + size_t(block) * features, features, centre);
        score(head.keys + size_t(first) * quads * 4, count, here.q.get(), quads, here.scores, whole);
        if (few) {
            keyed(here.scores, count, tokens, head.key_scale, more, greatest);
            weigh<true>(here.scores, count, head.key_scale, more, greatest, unit, here.weights, sums);
            for (int r = 0; r < ROWS; ++r) own[r] = greatest[r] * unit[r];
        } else {
            float here_unit[ROWS];
            for (int r = 0; r < ROWS; ++r) {
                here_unit[r] = unit[r] * head.key_scale[first];
                if (missing) {  // they weigh as much as the greatest, of values that are 0
                    int32_t *begin = here.scores + r * KEYS, *end = begin + count - missing;
                    whole[r] = *std::max_element(begin, end);
                    std::fill(end, begin + count, whole[r]);
                }
                greatest[r] = float(whole[r]);
                own[r] = float(whole[r] - more[r]) * here_unit[r] + centre[r * 16 + block % 16] * power;
            }
            weigh<false>(here.scores, count, nullptr, more, greatest, here_unit, here.weights, sums);
            for (int r = 0; r < ROWS; ++r) sums[r] -= float(255 * missing);
        }
        for (int r = 0; r < ROWS; ++r) {
            const float most = own[r], higher = std::max(top[r], most);
            before[r] = top[r] == higher ? 1 : std::exp2(top[r] - higher);
            now[r] = most == higher ? 1 : std::exp2(most - higher);
            total[r] = total[r] * before[r] + sums[r] * now[r];
            top[r] = higher;
        }
        const int8_t* values = head.values + size_t(first) * width;
        for (int n = 0; n < vectors; n += 3) {
            const int8_t* some = values + n * 64;
            float* place = here.out.get() + n * 16;
            switch (std::min(3, vectors - n)) {
                case 3: mix<3>(here.weights, count, some, vectors, before, now, place, width); break;
                case 2: mix<2>(here.weights, count, some, vectors, before, now, place, width); break;
                default: mix<1>(here.weights, count, some, vectors, before, now, place, width);
            }
        }
    }
    for (int r = 0; r < rows; ++r)
        for (int d = 0; d < features; d += 16) {
            const __m512 by = _mm512_mul_ps(_mm512_load_ps(head.value_scale + d), _mm512_set1_ps(1 / total[r]));
            const __m512 x = _mm512_mul_ps(_mm512_load_ps(here.out.get() + r * width + d), by);
            _mm512_mask_storeu_ps(out + r * out_token + d, lanes(features - d), x);
        }
}

}  // namespace

// Strides are of batch, head and token, in floats; features follow one another. Returns 0, or 1 without memory.
extern "C" int sfumato_attention_int8(const float* q, const float* k, const float* v, float* out,
                                      const int64_t* strides, int batch, int heads, int queries, int tokens,
                                      int features, float scale, int threads) {
    const Strides qs{strides[0], strides[1], strides[2]}, ks{strides[3], strides[4], strides[5]};
    const Strides vs{strides[6], strides[7], strides[8]}, os{strides[9], strides[10], strides[11]};
    const int quads = (features + 3) / 4, vectors = (features + 15) / 16;
    const int padded = (tokens + KEYS - 1) / KEYS * KEYS, count = batch * heads;
    auto keys = aligned<uint8_t>(size_t(count) * padded * quads * 4);
    auto values = aligned<int8_t>(size_t(count) * padded * vectors * 16);
    auto value_scales = aligned<float>(size_t(count) * vectors * 16), key_scales = aligned<float>(size_t(count) * padded);
    const size_t middles = size_t((padded / KEYS + 15) / 16) * features * 16;
    auto centres = aligned<float>(count * middles);
    auto packed = std::make_unique<Head[]>(count);
    if (!keys || !values || !value_scales || !key_scales || !centres || !packed) return 1;
    const int chunks = (queries + CHUNK - 1) / CHUNK;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int i = 0; i < count; ++i) {
            packed[i] = Head{keys.get() + size_t(i) * padded * quads * 4, values.get() + size_t(i) * padded * vectors * 16,
                             key_scales.get() + size_t(i) * padded, value_scales.get() + size_t(i) * vectors * 16,
                             centres.get() + i * middles};
            std::fill_n(packed[i].key_scale, padded, INFINITY);
            std::fill_n(packed[i].centres, middles, 0.0f);
            const int b = i / heads, h = i % heads;
            pack(k + b * ks.batch + h * ks.head, v + b * vs.batch + h * vs.head, ks, vs, tokens, features, padded, quads,
                 vectors, packed[i]);
        }
        Scratch here(quads, vectors * 16);
        const auto some = [&](int b, int h, int c) {
            const int end = std::min(queries, (c + 1) * CHUNK);
            for (int first = c * CHUNK; first < end; first += ROWS)
                attend(q + b * qs.batch + h * qs.head + first * qs.token, qs.token,
                       out + b * os.batch + h * os.head + first * os.token, os.token, end - first,
                       packed[b * heads + h], tokens, features, quads, vectors, scale, here);
        };
        // Few keys of all heads stay in the cache while the queries pass by; many of one head do. Either way two threads
        // don't write side by side in the same rows, by which they would hinder each other.
        if (tokens <= KEYS) {
#pragma omp for schedule(dynamic)
            for (int task = 0; task < batch * chunks; ++task)
                for (int h = 0; h < heads; ++h) some(task / chunks, h, task % chunks);
        } else {
#pragma omp for schedule(dynamic)
            for (int task = 0; task < count * chunks; ++task)
                some(task / (heads * chunks), task / chunks % heads, task % chunks);
        }
    }
    return 0;
}
