// Attention in 8 bits for processors with AVX-512 and VNNI: softmax(scale q k^T) v without a table of scores.
//
// K loses its mean over the tokens, which softmax does not see, and becomes u8 with one scale per head; Q becomes s8
// with a scale per row; V s8 with a scale per channel. Scores are exact products of those. Weights of 256 keys at a time
// become u8 relative to the greatest of the 256, and are summed as they were rounded, so that they add up to 1.
// Reference: kernels/attention/int8.py.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace {

constexpr int ROWS = 8;     // queries computed together
constexpr int KEYS = 256;   // keys whose weights share a scale
constexpr int CHUNK = 64;   // queries of one task
constexpr int MOST_FEATURES = 256;

struct Strides {
    int64_t batch, head, token;  // in floats; features follow one another
};

struct Free {
    void operator()(void* p) const { std::free(p); }
};
template <typename T>
std::unique_ptr<T[], Free> aligned(size_t count) {
    size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    return std::unique_ptr<T[], Free>(static_cast<T*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64))));
}

constexpr int32_t ABSENT = 1 << 24;  // below every score, for keys that are not there

// 255 * 2^x for x <= 0, to 6e-4: a tenth of a step of the weights' 8 bits
inline __m512 weight(__m512 x) {
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(255 * 0.05550411f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(255 * 0.24022651f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(255 * 0.69314718f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(255.0f));
    return _mm512_scalef_ps(p, n);
}

// One head's keys and values in the order in which they are read.
struct Head {
    uint8_t* keys;     // [tokens/16][features/4][16][4]
    int8_t* values;    // [tokens/4][channels/16][16][4]
    float key_scale;
    float* value_scale;  // [channels]
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

void pack(const float* k, const float* v, Strides ks, Strides vs, int tokens, int features, int padded, int quads,
          int vectors, Head& head) {
    auto mean = aligned<float>(features);
    std::fill_n(mean.get(), features, 0.0f);
    std::fill_n(head.value_scale, vectors * 16, 0.0f);
    for (int t = 0; t < tokens; ++t)
        for (int d = 0; d < features; ++d) {
            mean[d] += k[t * ks.token + d];
            head.value_scale[d] = std::max(head.value_scale[d], std::fabs(v[t * vs.token + d]));
        }
    for (int d = 0; d < features; ++d) mean[d] /= tokens;
    float most = 0;
    for (int t = 0; t < tokens; ++t)
        for (int d = 0; d < features; ++d) most = std::max(most, std::fabs(k[t * ks.token + d] - mean[d]));
    head.key_scale = most > 0 ? most / 127 : 1.0f;
    for (int d = 0; d < vectors * 16; ++d)
        head.value_scale[d] = head.value_scale[d] > 0 ? head.value_scale[d] / 127 : 1.0f;
    std::memset(head.keys, 128, size_t(padded) * quads * 4);
    std::memset(head.values, 0, size_t(padded) * vectors * 16);
    auto factor = aligned<float>(vectors * 16);
    for (int d = 0; d < vectors * 16; ++d) factor[d] = 1 / head.value_scale[d];
    alignas(64) int8_t row[4][MOST_FEATURES];
    for (int t = 0; t < tokens; ++t) {
        rounded(k + t * ks.token, mean.get(), nullptr, 1 / head.key_scale, features, row[0]);
        uint8_t* key = head.keys + size_t(t / 16) * quads * 64 + (t % 16) * 4;
        for (int j = 0; j < quads; ++j) {
            uint32_t four;
            std::memcpy(&four, row[0] + j * 4, 4);
            four ^= 0x80808080u;  // + 128 in each byte
            std::memcpy(key + j * 64, &four, 4);
        }
    }
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
            __m128i* place = reinterpret_cast<__m128i*>(head.values + (size_t(t / 4) * vectors + n) * 64);
            _mm_store_si128(place, _mm_unpacklo_epi16(two[0], two[2]));
            _mm_store_si128(place + 1, _mm_unpackhi_epi16(two[0], two[2]));
            _mm_store_si128(place + 2, _mm_unpacklo_epi16(two[1], two[3]));
            _mm_store_si128(place + 3, _mm_unpackhi_epi16(two[1], two[3]));
        }
    }
}

// Products of ROWS queries with KEYS keys, and the greatest of each row.
void score(const uint8_t* keys, const int8_t* q, int quads, int32_t* scores, int32_t* greatest) {
    __m512i top[ROWS];
    for (int r = 0; r < ROWS; ++r) top[r] = _mm512_set1_epi32(INT32_MIN);
    for (int g = 0; g < KEYS / 16; g += 2) {
        __m512i sum[ROWS][2];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
        const uint8_t* first = keys + size_t(g) * quads * 64;
        const uint8_t* second = first + size_t(quads) * 64;
        for (int j = 0; j < quads; ++j) {
            __m512i a = _mm512_load_si512(first + j * 64), b = _mm512_load_si512(second + j * 64);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                int32_t four;
                std::memcpy(&four, q + (r * quads + j) * 4, 4);
                __m512i here = _mm512_set1_epi32(four);
                sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], a, here);
                sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], b, here);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            top[r] = _mm512_max_epi32(top[r], _mm512_max_epi32(sum[r][0], sum[r][1]));
            _mm512_store_si512(scores + r * KEYS + g * 16, sum[r][0]);
            _mm512_store_si512(scores + r * KEYS + g * 16 + 16, sum[r][1]);
        }
    }
    for (int r = 0; r < ROWS; ++r) greatest[r] = _mm512_reduce_max_epi32(top[r]);
}

// Weights 0..255 relative to the row's greatest score, and their sums. `unit`: log2 of the weight per step of a score.
void weigh(const int32_t* scores, const int32_t* greatest, const float* unit, uint8_t* weights, float* sums) {
    for (int r = 0; r < ROWS; ++r) {
        const __m512i top = _mm512_set1_epi32(greatest[r]);
        const __m512 u = _mm512_set1_ps(unit[r]);
        __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int g = 0; g < KEYS; g += 16) {
            __m512i below = _mm512_sub_epi32(_mm512_load_si512(scores + r * KEYS + g), top);
            __m512i w = _mm512_cvtps_epi32(weight(_mm512_mul_ps(_mm512_cvtepi32_ps(below), u)));
            sum = _mm512_add_epi32(sum, w);
            _mm_store_si128(reinterpret_cast<__m128i*>(weights + r * KEYS + g), _mm512_cvtusepi32_epi8(w));
        }
        sums[r] = float(_mm512_reduce_add_epi32(sum));
    }
}

// out = out * before + (weights @ values) * now, for N vectors of 16 channels.
template <int N>
void mix(const uint8_t* weights, const int8_t* values, int vectors, const float* before, const float* now, float* out,
         int width) {
    __m512i sum[ROWS][N];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 3
        for (int n = 0; n < N; ++n) sum[r][n] = _mm512_setzero_si512();
    for (int j = 0; j < KEYS / 4; ++j) {
        __m512i v[N];
#pragma GCC unroll 3
        for (int n = 0; n < N; ++n) v[n] = _mm512_load_si512(values + (size_t(j) * vectors + n) * 64);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            int32_t four;
            std::memcpy(&four, weights + r * KEYS + j * 4, 4);
            __m512i here = _mm512_set1_epi32(four);
#pragma GCC unroll 3
            for (int n = 0; n < N; ++n) sum[r][n] = _mm512_dpbusd_epi32(sum[r][n], here, v[n]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 3
        for (int n = 0; n < N; ++n) {
            float* place = out + r * width + n * 16;
            __m512 old = _mm512_mul_ps(_mm512_load_ps(place), _mm512_set1_ps(before[r]));
            _mm512_store_ps(place, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][n]), _mm512_set1_ps(now[r]), old));
        }
}

struct Scratch {
    alignas(64) int32_t scores[ROWS * KEYS];
    alignas(64) uint8_t weights[ROWS * KEYS];
    std::unique_ptr<int8_t[], Free> q;
    std::unique_ptr<float[], Free> out;
    Scratch(int quads, int width) : q(aligned<int8_t>(ROWS * quads * 4)), out(aligned<float>(ROWS * width)) {}
};

// `rows` queries, at most ROWS, against one head.
void attend(const float* q, int64_t q_token, float* out, int64_t out_token, int rows, const Head& head, int tokens,
            int features, int quads, int vectors, float scale, Scratch& here) {
    const int width = vectors * 16;
    float unit[ROWS], top[ROWS], total[ROWS];
    std::memset(here.q.get(), 0, ROWS * quads * 4);
    std::fill_n(here.out.get(), ROWS * width, 0.0f);
    for (int r = 0; r < ROWS; ++r) {
        top[r] = -INFINITY;
        total[r] = unit[r] = 0;
        if (r >= rows) continue;
        float most = 0;
        for (int d = 0; d < features; ++d) most = std::max(most, std::fabs(q[r * q_token + d]));
        float step = most > 0 ? most / 127 : 1.0f;
        unit[r] = step * head.key_scale * scale * 1.4426950408889634f;
        alignas(64) int8_t row[MOST_FEATURES];
        rounded(q + r * q_token, nullptr, nullptr, 1 / step, features, row);
        std::memcpy(here.q.get() + r * quads * 4, row, features);
    }
    for (int first = 0; first < tokens; first += KEYS) {
        int32_t greatest[ROWS];
        float sums[ROWS], before[ROWS], now[ROWS];
        score(head.keys + size_t(first) * quads * 4, here.q.get(), quads, here.scores, greatest);
        if (first + KEYS > tokens)
            for (int r = 0; r < ROWS; ++r) {
                int32_t *begin = here.scores + r * KEYS, *end = begin + tokens - first;
                greatest[r] = *std::max_element(begin, end);
                std::fill(end, begin + KEYS, greatest[r] - ABSENT);
            }
        weigh(here.scores, greatest, unit, here.weights, sums);
        if (first + KEYS > tokens)
            for (int r = 0; r < ROWS; ++r) {
                for (int g = tokens - first; g < KEYS; ++g) sums[r] -= here.weights[r * KEYS + g];
                std::memset(here.weights + r * KEYS + tokens - first, 0, KEYS - (tokens - first));
            }
        for (int r = 0; r < ROWS; ++r) {
            float most = greatest[r] * unit[r], higher = std::max(top[r], most);
            before[r] = std::exp2(top[r] - higher);
            now[r] = std::exp2(most - higher);
            total[r] = total[r] * before[r] + sums[r] * now[r];
            top[r] = higher;
        }
        const int8_t* values = head.values + size_t(first) * width;
        for (int n = 0; n < vectors; n += 3) {
            const int8_t* some = values + n * 64;
            float* place = here.out.get() + n * 16;
            switch (std::min(3, vectors - n)) {
                case 3: mix<3>(here.weights, some, vectors, before, now, place, width); break;
                case 2: mix<2>(here.weights, some, vectors, before, now, place, width); break;
                default: mix<1>(here.weights, some, vectors, before, now, place, width);
            }
        }
    }
    for (int r = 0; r < rows; ++r)
        for (int d = 0; d < features; ++d)
            out[r * out_token + d] = here.out[r * width + d] * head.value_scale[d] / total[r];
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
    auto value_scales = aligned<float>(size_t(count) * vectors * 16);
    auto packed = std::make_unique<Head[]>(count);
    if (!keys || !values || !value_scales || !packed) return 1;
    const int chunks = (queries + CHUNK - 1) / CHUNK;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int i = 0; i < count; ++i) {
            packed[i] = Head{keys.get() + size_t(i) * padded * quads * 4, values.get() + size_t(i) * padded * vectors * 16,
                             1.0f, value_scales.get() + size_t(i) * vectors * 16};
            const int b = i / heads, h = i % heads;
            pack(k + b * ks.batch + h * ks.head, v + b * vs.batch + h * vs.head, ks, vs, tokens, features, padded, quads,
                 vectors, packed[i]);
        }
        Scratch here(quads, vectors * 16);
#pragma omp for schedule(dynamic) collapse(2)
        for (int i = 0; i < count; ++i)
            for (int c = 0; c < chunks; ++c) {
                const int b = i / heads, h = i % heads, end = std::min(queries, (c + 1) * CHUNK);
                for (int first = c * CHUNK; first < end; first += ROWS)
                    attend(q + b * qs.batch + h * qs.head + first * qs.token, qs.token,
                           out + b * os.batch + h * os.head + first * os.token, os.token, std::min(ROWS, end - first),
                           packed[i], tokens, features, quads, vectors, scale, here);
            }
    }
    return 0;
}
