// Attention in float32 for processors with AVX-512: softmax(scale q k^T) v without a table of scores.
//
// Keys lie sixteen side by side, so that eight queries meet 48 of them at once; the weights of some keys at a time meet
// the values. A row's greatest score and sum are carried from one lot of keys to the next (arXiv:1805.02867), and what
// was mixed before is made smaller where a greater one comes up.
// Reference: kernels/attention/dense.py.

#include "vectors.h"

namespace {

constexpr int ROWS = 8;                // queries computed together
constexpr int PANEL = 16;              // keys side by side
constexpr int MOST = 3;                // panels of a tile of the product, vectors of one of the mixture
constexpr int KEYS = 192;              // at a time
constexpr int CHUNK = 64;              // queries of one task
constexpr int FEW = 256;               // keys of all heads that stay in the cache while the queries pass by
constexpr int64_t HELD = 8 << 20;      // bytes of keys and values in their order

struct Strides {
    int64_t batch, head, token;  // in floats; features follow one another
};

// The shapes, and how one head's keys and values lie: keys [panels][features][16], then values [parts][tokens][some].
struct Shape {
    int queries, tokens, features, panels, width, parts;
    Shape(int queries, int tokens, int features)
        : queries(queries), tokens(tokens), features(features), panels((tokens + PANEL - 1) / PANEL),
          width((features + 15) / 16 * 16), parts((width / 16 + MOST - 1) / MOST) {}
    int64_t keys() const { return int64_t(panels) * PANEL * features; }
    int64_t whole() const { return keys() + int64_t(panels) * PANEL * width; }
    int begin(int part) const { return width / 16 * part / parts * 16; }  // channel
};

// Panel `n` of keys and its values; zeros where there are none.
void pack(const Shape& s, const float* k, const float* v, int64_t k_token, int64_t v_token, int n, float* head) {
    float* keys = head + int64_t(n) * PANEL * s.features;
    for (int t = 0; t < PANEL; ++t) {
        const int at = n * PANEL + t;
        const bool there = at < s.tokens;
        const float *key = k + at * k_token, *value = v + at * v_token;
        for (int d = 0; d < s.features; ++d) keys[d * PANEL + t] = there ? key[d] : 0;
        for (int part = 0; part < s.parts; ++part) {
            const int begin = s.begin(part), wide = s.begin(part + 1) - begin;
            float* to = head + s.keys() + int64_t(begin) * s.panels * PANEL + int64_t(at) * wide;
            for (int d = 0; d < wide; d += 16) {
                const __mmask16 here = there ? lanes(s.features - begin - d) : 0;
                _mm512_store_ps(to + d, _mm512_maskz_loadu_ps(here, value + begin + d));
            }
        }
    }
}

// scores [8][KEYS] of V panels; q [features][8].
template <int V>
[[gnu::noinline]] void score(const float* q, const float* panels, int features, float* scores) {
    __m512 sum[ROWS][V];
    each<ROWS * V>([&](auto i) ALWAYS { sum[i / V][i % V] = _mm512_setzero_ps(); });
    const int64_t apart = int64_t(features) * PANEL;
    for (int d = 0; d < features; ++d) {
        __m512 here[V];
        each<V>([&](auto v) ALWAYS { here[v] = _mm512_load_ps(panels + v * apart + d * PANEL); });
        each<ROWS>([&](auto r) ALWAYS {
            const __m512 all = _mm512_set1_ps(q[d * ROWS + r]);
            each<V>([&](auto v) ALWAYS { sum[r][v] = _mm512_fmadd_ps(all, here[v], sum[r][v]); });
        });
    }
    each<ROWS * V>([&](auto i) ALWAYS { _mm512_store_ps(scores + i / V * KEYS + i % V * PANEL, sum[i / V][i % V]); });
}

// Scores, which are powers of two, to weights relative to the greatest until now, in their place.
void weigh(float* scores, int count, float* top, float* total, float* before) {
    for (int r = 0; r < ROWS; ++r) {
        float* row = scores + r * KEYS;
        __m512 most = _mm512_load_ps(row), sum = _mm512_setzero_ps();
        for (int t = PANEL; t < count; t += PANEL) most = _mm512_max_ps(most, _mm512_load_ps(row + t));
        const float higher = std::max(top[r], _mm512_reduce_max_ps(most));
        const __m512 less = _mm512_set1_ps(higher);
        for (int t = 0; t < count; t += PANEL) {
            const __m512 w = power_of_two(_mm512_sub_ps(_mm512_load_ps(row + t), less));
            sum = _mm512_add_ps(sum, w);
            _mm512_store_ps(row + t, w);
        }
        before[r] = top[r] == higher ? 1 : std::exp2(top[r] - higher);
        total[r] = total[r] * before[r] + _mm512_reduce_add_ps(sum);
        top[r] = higher;
    }
}

// out [8][width] = out * before + weights [8][KEYS] @ values, for N vectors of channels and, with HALF, eight more.
template <int N, bool HALF>
[[gnu::noinline]] void mix(const float* weights, int count, const float* values, int width, const float* before, float* out) {
    constexpr int WIDE = (N + HALF) * 16;
    __m512 sum[ROWS][N];
    __m256 more[ROWS];
    each<ROWS>([&](auto r) ALWAYS {
        const __m512 by = _mm512_set1_ps(before[r]);
        each<N>([&](auto n) ALWAYS { sum[r][n] = _mm512_mul_ps(by, _mm512_load_ps(out + r * width + n * 16)); });
        if constexpr (HALF) more[r] = _mm256_mul_ps(_mm512_castps512_ps256(by), _mm256_load_ps(out + r * width + N * 16));
    });
    for (int t = 0; t < count; ++t, values += WIDE) {
        __m512 here[N];
        __m256 half;
        each<N>([&](auto n) ALWAYS { here[n] = _mm512_load_ps(values + n * 16); });
        if constexpr (HALF) half = _mm256_load_ps(values + N * 16);
        each<ROWS>([&](auto r) ALWAYS {
            const __m512 all = _mm512_set1_ps(weights[r * KEYS + t]);
            each<N>([&](auto n) ALWAYS { sum[r][n] = _mm512_fmadd_ps(all, here[n], sum[r][n]); });
            if constexpr (HALF) more[r] = _mm256_fmadd_ps(_mm512_castps512_ps256(all), half, more[r]);
        });
    }
    each<ROWS>([&](auto r) ALWAYS {
        each<N>([&](auto n) ALWAYS { _mm512_store_ps(out + r * width + n * 16, sum[r][n]); });
        if constexpr (HALF) _mm256_store_ps(out + r * width + N * 16, more[r]);
    });
}

void mixed(const Shape& s, const float* weights, int count, const float* head, int first, const float* before, float* out) {
    const bool half = s.features % 16 > 0 && s.features % 16 <= 8;
    for (int part = 0; part < s.parts; ++part) {
        const int begin = s.begin(part), wide = s.begin(part + 1) - begin;
        const float* from = head + s.keys() + int64_t(begin) * s.panels * PANEL + int64_t(first) * wide;
        float* to = out + begin;
        switch (half && part == s.parts - 1 ? -wide : wide) {
            case 48: mix<3, false>(weights, count, from, s.width, before, to); break;
            case 32: mix<2, false>(weights, count, from, s.width, before, to); break;
            case 16: mix<1, false>(weights, count, from, s.width, before, to); break;
            case -48: mix<2, true>(weights, count, from, s.width, before, to); break;
            case -32: mix<1, true>(weights, count, from, s.width, before, to); break;
            default: mix<0, true>(weights, count, from, s.width, before, to);
        }
    }
}

struct Scratch {
    alignas(64) float scores[ROWS * KEYS];
    std::unique_ptr<float[], Free> q, out;
    explicit Scratch(const Shape& s) : q(aligned<float>(ROWS * s.features)), out(aligned<float>(ROWS * s.width)) {}
    bool whole() const { return q && out; }
};

// To the scores of keys from `first` on their bias; below all of them where there is no key.
void biased(const Shape& s, const float* bias, int first, int count, float* scores) {
    for (int r = 0; r < ROWS; ++r)
        for (int t = 0; t < count; t += PANEL) {
            const __mmask16 there = lanes(s.tokens - first - t);
            __m512 x = _mm512_mask_load_ps(_mm512_set1_ps(-INFINITY), there, scores + r * KEYS + t);
            if (bias) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(there, bias + first + t));
            _mm512_store_ps(scores + r * KEYS + t, x);
        }
}

// The first ROWS of `left` queries against one head. `factor`: log2 of the weight per unit of q k; `bias`: log2 of what
// a key's weight is multiplied by, or nothing.
void attend(const Shape& s, const float* q, int64_t q_token, float* out, int64_t out_token, int left, const float* head,
            const float* bias, float factor, Scratch& here) {
    const int rows = std::min(ROWS, left);
    for (int d = 0; d < s.features; ++d)
        for (int r = 0; r < ROWS; ++r) here.q[d * ROWS + r] = r < rows ? q[r * q_token + d] * factor : 0;
    std::fill_n(here.out.get(), ROWS * s.width, 0.0f);
    float top[ROWS], total[ROWS], before[ROWS];
    std::fill_n(top, ROWS, -INFINITY);
    std::fill_n(total, ROWS, 0.0f);
    for (int first = 0; first < s.tokens; first += KEYS) {
        const int there = std::min(KEYS, s.tokens - first), panels = (there + PANEL - 1) / PANEL;
        for (int n = 0; n < panels; n += MOST) {
            const float* some = head + int64_t(first + n * PANEL) * s.features;
            float* scores = here.scores + n * PANEL;
            switch (std::min(MOST, panels - n)) {
                case 3: score<3>(here.q.get(), some, s.features, scores); break;
                case 2: score<2>(here.q.get(), some, s.features, scores); break;
                default: score<1>(here.q.get(), some, s.features, scores);
            }
        }
        if (bias || there % PANEL) biased(s, bias, first, panels * PANEL, here.scores);
        weigh(here.scores, panels * PANEL, top, total, before);
        mixed(s, here.scores, there, head, first, before, here.out.get());
    }
    for (int r = 0; r < rows; ++r) {
        const __m512 by = _mm512_set1_ps(1 / total[r]);
        for (int d = 0; d < s.features; d += 16)
            _mm512_mask_storeu_ps(out + r * out_token + d, lanes(s.features - d),
                                  _mm512_mul_ps(by, _mm512_load_ps(here.out.get() + r * s.width + d)));
    }
}

}  // namespace

// Strides are of batch, head and token, in floats; features follow one another. `bias` has a number per key for every
// head, `per_batch` and `per_head` floats from one to the next, and may be missing. Returns 0, or 1 without memory.
extern "C" int sfumato_attention_float(const float* q, const float* k, const float* v, float* out,
                                       const int64_t* strides, int batch, int heads, int queries, int tokens,
                                       int features, float scale, int threads, const float* bias,
                                       int64_t per_batch, int64_t per_head) {
    const Strides qs{strides[0], strides[1], strides[2]}, ks{strides[3], strides[4], strides[5]};
    const Strides vs{strides[6], strides[7], strides[8]}, os{strides[9], strides[10], strides[11]};
    const Shape s(queries, tokens, features);
    const int count = batch * heads, chunks = (queries + CHUNK - 1) / CHUNK;
    const int some = int(std::min<int64_t>(count, std::max<int64_t>(threads, HELD / (4 * s.whole()))));
    const int together = tokens <= FEW ? some : 1;  // heads of the same queries, one after the other
    auto packed = aligned<float>(size_t(some) * s.whole());
    if (!packed) return 1;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        Scratch here(s);
        if (!here.whole()) failed = 1;
        for (int first = 0; first < count; first += some) {
            const int these = std::min(some, count - first);
#pragma omp for schedule(static)
            for (int task = 0; task < these * s.panels; ++task) {
                const int i = task / s.panels, b = (first + i) / heads, h = (first + i) % heads;
                pack(s, k + b * ks.batch + h * ks.head, v + b * vs.batch + h * vs.head, ks.token, vs.token,
                     task % s.panels, packed.get() + i * s.whole());
            }
#pragma omp for schedule(dynamic, together)
            for (int task = 0; task < these * chunks; ++task) {
                const int i = together > 1 ? task % these : task / chunks, c = together > 1 ? task / these : task % chunks;
                const int b = (first + i) / heads, h = (first + i) % heads, end = std::min(queries, (c + 1) * CHUNK);
                for (int row = c * CHUNK; row < end && here.whole(); row += ROWS)
                    attend(s, q + b * qs.batch + h * qs.head + row * qs.token, qs.token,
                           out + b * os.batch + h * os.head + row * os.token, os.token, end - row,
                           packed.get() + i * s.whole(), bias ? bias + b * per_batch + h * per_head : nullptr,
                           scale * 1.4426950408889634f, here);
            }
        }
    }
    return failed;
}
