// Products of 8-bit numbers for processors with AVX-512 and VNNI: linear layers, and convolutions as sums of them.
//
// Activations are u8 with a scale and a zero per picture (a linear layer's picture is one row); weights s8 with a scale
// per output, packed [outputs/16][taps][inputs/4][16][4]. Sums are exact in 32 bits. A tile is 8 places by up to 48
// outputs, whose sums stay in registers; bias, gate and residual are applied as they leave them.
// Reference: kernels/quant/fused.py.

#include <cstring>

#include "vectors.h"

namespace {

constexpr int ROWS = 8;
constexpr int PANEL = 16;
constexpr int MOST = 3;                  // panels of a tile
constexpr int64_t WEIGHTS = 384 << 10;   // bytes of weights that stay in a core's cache, beside
constexpr int64_t ACTIVATIONS = 384 << 10;  // as many of activations

struct Product {
    const uint8_t* x;        // pictures of [height][width][inputs], with the padding in it
    const int8_t* weight;    // packed
    const float *weight_scale, *bias;  // [outputs]
    const int32_t* weight_sum;         // [outputs], over taps and inputs
    const float* scale;      // [pictures]
    const int32_t* zero;     // [pictures]
    const float* shift;      // [pictures][outputs], added before the gate; may be missing
    const float* residual;   // [places][outputs], added after it; may be missing
    float* out;              // [places][outputs], or half of the outputs where the second half gates the first
    int64_t pictures, height, width, inputs, outputs;
    int64_t out_height, out_width, taps_y, taps_x, stride_y, stride_x, dilation_y, dilation_x;
    int64_t gate, halves;
    float factor;            // of the whole, at the end
    int32_t threads;
};

// sums [8][48] (+)= rows of x times V panels of weights.
template <int V>
[[gnu::noinline]] void multiply(const uint8_t* const* rows, const int64_t* taps, int count, int64_t quads, const int8_t* panels,
              size_t panel_bytes, bool fresh, int32_t* sums) {
    __m512i sum[ROWS][V];
    each<ROWS * V>([&](auto i) ALWAYS {
        constexpr int r = i / V, v = i % V;
        sum[r][v] = fresh ? _mm512_setzero_si512() : _mm512_load_si512(sums + (r * MOST + v) * PANEL);
    });
    for (int t = 0; t < count; ++t) {
        const int8_t* w = panels + t * quads * 64;
        const uint8_t* x[ROWS];
        each<ROWS>([&](auto r) ALWAYS { x[r] = rows[r] + taps[t]; });
        for (int64_t q = 0; q < quads; ++q) {
            __m512i here[V];
            each<V>([&](auto v) ALWAYS { here[v] = _mm512_loadu_si512(w + q * 64 + v * panel_bytes); });
            each<ROWS>([&](auto r) ALWAYS {
                const __m512i all = four(x[r] + q * 4);
                each<V>([&](auto v) ALWAYS { dot(sum[r][v], all, here[v]); });
            });
        }
    }
    each<ROWS * V>([&](auto i) ALWAYS {
        constexpr int r = i / V, v = i % V;
        _mm512_store_si512(sums + (r * MOST + v) * PANEL, sum[r][v]);
    });
}

void multiply(int panels_here, const uint8_t* const* rows, const int64_t* taps, int count, int64_t quads,
              const int8_t* panels, size_t panel_bytes, bool fresh, int32_t* sums) {
    switch (panels_here) {
        case 3: return multiply<3>(rows, taps, count, quads, panels, panel_bytes, fresh, sums);
        case 2: return multiply<2>(rows, taps, count, quads, panels, panel_bytes, fresh, sums);
        default: return multiply<1>(rows, taps, count, quads, panels, panel_bytes, fresh, sums);
    }
}

// What is the same for all places of sixteen outputs.
struct Channel {
    __mmask16 here;
    __m512i sum;
    __m512 scale, bias;
    Channel(const Product& p, int64_t o, int64_t end)
        : here(lanes(end - o)), sum(_mm512_maskz_loadu_epi32(here, p.weight_sum + o)),
          scale(_mm512_maskz_loadu_ps(here, p.weight_scale + o)),
          bias(p.bias ? _mm512_maskz_loadu_ps(here, p.bias + o) : _mm512_setzero_ps()) {}
    // Sums as real numbers, with the bias.
    __m512 real(const int32_t* sums, int32_t zero, float by) const {
        __m512i less = _mm512_mullo_epi32(_mm512_set1_epi32(zero), sum);
        __m512 x = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_load_si512(sums), less));
        return _mm512_fmadd_ps(x, _mm512_mul_ps(scale, _mm512_set1_ps(by)), bias);
    }
};

// What leaves a tile. `gates` are the sums of the second half of the outputs, where there is one.
void leave(const Product& p, const int32_t* sums, const int32_t* gates, int64_t place, int rows, int64_t o, int panels) {
    const int64_t places = p.out_height * p.out_width, wide = p.halves ? p.outputs / 2 : p.outputs;
    const int64_t first = place / places, border = (first + 1) * places - place;  // where the next picture begins
    for (int v = 0; v < panels; ++v, o += PANEL) {
        const Channel one(p, o, wide), other(p, p.halves ? wide + o : o, p.halves ? p.outputs : wide);
        for (int r = 0; r < rows; ++r) {
            const int64_t at = (place + r) * wide + o, n = r < border ? first : (place + r) / places;
            const int tile = (r * MOST + v) * PANEL;
            __m512 x = one.real(sums + tile, p.zero[n], p.scale[n]);
            if (p.halves)
                x = _mm512_mul_ps(x, gated(other.real(gates + tile, p.zero[n], p.scale[n]), p.gate));
            else {
                if (p.shift) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(one.here, p.shift + n * wide + o));
                x = gated(x, p.gate);
            }
            if (p.residual) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(one.here, p.residual + at));
            _mm512_mask_storeu_ps(p.out + at, one.here, _mm512_mul_ps(x, _mm512_set1_ps(p.factor)));
        }
    }
}

struct Plan {
    int64_t places, wide, quads, taps, chunk, slab;  // chunk: places of one task; slab: taps multiplied at a time
    size_t panel_bytes;
    explicit Plan(const Product& p)
        : places(p.pictures * p.out_height * p.out_width), wide(p.halves ? p.outputs / 2 : p.outputs),
          quads(p.inputs / 4), taps(p.taps_y * p.taps_x), panel_bytes(size_t(taps) * quads * 64) {
        chunk = ACTIVATIONS / std::max<int64_t>(p.inputs * p.stride_y * p.stride_x, 1);
        chunk = std::min<int64_t>(std::max<int64_t>(chunk / ROWS * ROWS, 64), 512);
        slab = std::min(taps, std::max<int64_t>(WEIGHTS / (p.inputs * MOST * PANEL * (p.halves ? 2 : 1)), 1));
    }
};

// Places [first, last) times the outputs from `o` on.
void task(const Product& p, const Plan& plan, const int64_t* places, const int64_t* taps, int64_t first, int64_t last,
          int64_t o, int32_t* sums) {
    const int panels = int(std::min<int64_t>(MOST, (plan.wide - o + PANEL - 1) / PANEL));
    const int8_t* weight = p.weight + o / PANEL * plan.panel_bytes;
    const int8_t* second = p.weight + (plan.wide + o) / PANEL * plan.panel_bytes;
    const bool whole = plan.slab >= plan.taps;
    const int64_t tile = ROWS * MOST * PANEL, stride = tile * (p.halves ? 2 : 1);
    for (int64_t t = 0; t < plan.taps; t += plan.slab) {
        const int count = int(std::min(plan.slab, plan.taps - t));
        for (int64_t m = first; m < last; m += ROWS) {
            int32_t* mine = sums + (whole ? 0 : (m - first) / ROWS * stride);
            const uint8_t* rows[ROWS];
            for (int r = 0; r < ROWS; ++r) {
                const int64_t place = std::min(m + r, last - 1);
                rows[r] = p.x + places[place];
                for (int v = 0; v < panels; ++v) {  // on their way while the sums are made
                    __builtin_prefetch(p.out + place * plan.wide + o + v * PANEL, 1);
                    if (p.residual) __builtin_prefetch(p.residual + place * plan.wide + o + v * PANEL);
                }
            }
            multiply(panels, rows, taps + t, count, plan.quads, weight + t * plan.quads * 64, plan.panel_bytes, t == 0, mine);
            if (p.halves)
                multiply(panels, rows, taps + t, count, plan.quads, second + t * plan.quads * 64, plan.panel_bytes, t == 0,
                         mine + tile);
            if (t + count == plan.taps) leave(p, mine, mine + tile, m, int(std::min<int64_t>(ROWS, last - m)), o, panels);
        }
    }
}

}  // namespace

// Weights [outputs][inputs][taps] to panels; inputs up to a multiple of 4, outputs of 16, with zeros. Sums over both.
extern "C" void sfumato_pack_weight(const int8_t* weight, int64_t outputs, int64_t inputs, int64_t taps, int8_t* packed,
                                    int32_t* sums) {
    const int64_t quads = (inputs + 3) / 4, panels = (outputs + PANEL - 1) / PANEL;
    std::memset(packed, 0, size_t(panels) * taps * quads * 64);
    for (int64_t o = 0; o < outputs; ++o) {
        sums[o] = 0;
        int8_t* panel = packed + o / PANEL * taps * quads * 64 + o % PANEL * 4;
        for (int64_t i = 0; i < inputs; ++i)
            for (int64_t t = 0; t < taps; ++t) {
                const int8_t w = weight[(o * inputs + i) * taps + t];
                panel[(t * quads + i / 4) * 64 + i % 4] = w;
                sums[o] += w;
            }
    }
}

// Returns 0, or 1 without memory.
extern "C" int sfumato_product_int8(const Product* given) {
    const Product& p = *given;
    const Plan plan(p);
    auto places = aligned<int64_t>(plan.places), taps = aligned<int64_t>(plan.taps);
    if (!places || !taps) return 1;
    for (int64_t y = 0; y < p.taps_y; ++y)
        for (int64_t x = 0; x < p.taps_x; ++x)
            taps[y * p.taps_x + x] = (y * p.dilation_y * p.width + x * p.dilation_x) * p.inputs;
    for (int64_t b = 0, m = 0; b < p.pictures; ++b)
        for (int64_t y = 0; y < p.out_height; ++y)
            for (int64_t x = 0; x < p.out_width; ++x)
                places[m++] = ((b * p.height + y * p.stride_y) * p.width + x * p.stride_x) * p.inputs;
    const int64_t chunks = (plan.places + plan.chunk - 1) / plan.chunk;
    const int64_t blocks = (plan.wide + MOST * PANEL - 1) / (MOST * PANEL);
    int failed = 0;
#pragma omp parallel num_threads(p.threads)
    {
        auto sums = aligned<int32_t>(size_t(plan.chunk / ROWS) * ROWS * MOST * PANEL * 2);
        if (!sums) failed = 1;
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t c = 0; c < chunks; ++c)
            for (int64_t n = 0; n < blocks; ++n)
                if (sums)
                    task(p, plan, places.get(), taps.get(), c * plan.chunk, std::min(plan.places, (c + 1) * plan.chunk),
                         n * MOST * PANEL, sums.get());
    }
    return failed;
}
