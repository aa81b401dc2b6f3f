// Products of 8-bit numbers, or of floats, for processors with AVX-512 and VNNI: linear layers, and convolutions as sums
// of them.
//
// In 8 bits activations are u8 with a scale and a zero per picture (a linear layer's picture is one row); weights s8 with
// a scale per output; sums are exact in 32 bits. Either way inputs go by steps of 4 bytes, four numbers or one, and weights
// are packed [outputs/16][taps][steps][16 outputs of 4 bytes]. A tile is 8 places by up to 48 outputs, whose sums stay in
// registers; bias, gate and residual are applied as they leave them.
// References: kernels/quant/fused.py, kernels/dense.py.

#include <cstring>

#include "vectors.h"

namespace {

constexpr int ROWS = 8;
constexpr int PANEL = 16;
constexpr int MOST = 3;                  // panels of a tile
constexpr int STEP = 4;                  // bytes of an input's step

struct Product {
    const char* x;           // pictures of [height][width][steps], with the padding in it
    const char* weight;      // packed
    const float *weight_scale, *bias;  // [outputs]; the bias may be missing, and scales, sums and zeros are of 8 bits alone
    const int32_t* weight_sum;         // [outputs], over taps and inputs
    const float* scale;      // [pictures]
    const int32_t* zero;     // [pictures]
    const float* shift;      // [pictures][outputs], added before the gate; may be missing
    const float* gain;       // [places / share][outputs], which multiplies after it; may be missing
    const float* residual;   // [places][outputs], added after that; may be missing
    float* out;              // [places][outputs], or half of the outputs where the second half gates the first
    int64_t pictures, height, width, steps, outputs;
    int64_t out_height, out_width, taps_y, taps_x, stride_y, stride_x, dilation_y, dilation_x;
    int64_t gate, halves, share;
    float factor;            // of the whole, at the end
    int32_t threads;
};

// What is multiplied: numbers of 8 bits, or floats. WEIGHTS are bytes of weights that stay in a core's cache; ACTIVATIONS
// those that pass by them, PLACES at most.
struct Bytes {
    static constexpr int64_t WEIGHTS = 384 << 10, ACTIVATIONS = 384 << 10, PLACES = 512;
    using Sums = __m512i;
    static ALWAYS Sums none() { return _mm512_setzero_si512(); }
    static ALWAYS void add(Sums& sums, __m512i x, __m512i weights) { dot(sums, x, weights); }
};
struct Floats {
    static constexpr int64_t WEIGHTS = 300 << 10, ACTIVATIONS = 4096 << 10, PLACES = 4096;
    using Sums = __m512;
    static ALWAYS Sums none() { return _mm512_setzero_ps(); }
    static ALWAYS void add(Sums& sums, __m512i x, __m512i weights) {
        sums = _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(weights), sums);
    }
};
template <typename Kind>
constexpr bool BYTES = std::is_same_v<Kind, Bytes>;

// What the places of a tile have each.
template <typename Kind>
struct Places {
    float by[ROWS];       // the scale of the picture
    int32_t zero[ROWS];
    const float *shift[ROWS], *gain[ROWS], *residual[ROWS];
    float* out[ROWS];
    int rows;             // that are there
    Places(const Product& p, int64_t place, int rows, int64_t wide) : rows(rows) {
        const int64_t places = p.out_height * p.out_width;
        each<ROWS>([&](auto r) ALWAYS {  // written out: GCC makes `rep movs` of the loop, which takes as long as the sums
            const int64_t m = place + std::min<int>(r, rows - 1), n = places == 1 ? m : m / places;
            if constexpr (BYTES<Kind>) by[r] = p.scale[n], zero[r] = p.zero[n];
            shift[r] = p.shift + n * wide, residual[r] = p.residual + m * wide, out[r] = p.out + m * wide;
            gain[r] = p.gain ? p.gain + m / p.share * wide : nullptr;
        });
    }
};

// What is the same for all places of sixteen outputs.
template <typename Kind>
struct Channel {
    __mmask16 here;
    __m512i sum;
    __m512 scale, bias;
    Channel(const Product& p, int64_t o, int64_t end)
        : here(lanes(end - o)), bias(p.bias ? _mm512_maskz_loadu_ps(here, p.bias + o) : _mm512_setzero_ps()) {
        if constexpr (BYTES<Kind>) {
            sum = _mm512_maskz_loadu_epi32(here, p.weight_sum + o);
            scale = _mm512_maskz_loadu_ps(here, p.weight_scale + o);
        }
    }
    // Sums as real numbers, with the bias.
    ALWAYS __m512 real(typename Kind::Sums sums, const Places<Kind>& at, int r) const {
        if constexpr (BYTES<Kind>) {
            const __m512i less = _mm512_mullo_epi32(_mm512_set1_epi32(at.zero[r]), sum);
            const __m512 x = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, less));
            return _mm512_fmadd_ps(x, _mm512_mul_ps(scale, _mm512_set1_ps(at.by[r])), bias);
        } else {
            return _mm512_add_ps(sums, bias);
        }
    }
};

// What comes after the gate, for output `o` and the fifteen that follow.
template <typename Kind>
ALWAYS inline void store(const Product& p, const Places<Kind>& at, int r, const Channel<Kind>& one, int64_t o, __m512 x) {
    if (p.gain) x = _mm512_mul_ps(x, _mm512_maskz_loadu_ps(one.here, at.gain[r] + o));
    if (p.residual) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(one.here, at.residual[r] + o));
    x = _mm512_mul_ps(x, _mm512_set1_ps(p.factor));
    if (one.here == 0xffff)  // a masked store takes longer
        _mm512_storeu_ps(at.out[r] + o, x);
    else
        _mm512_mask_storeu_ps(at.out[r] + o, one.here, x);
}

template <typename Kind>
ALWAYS inline void store_sums(const Product& p, const Places<Kind>& at, int r, const Channel<Kind>& one, int64_t o,
                              typename Kind::Sums sums) {
    __m512 x = one.real(sums, at, r);
    if (p.shift) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(one.here, at.shift[r] + o));
    if (p.gate) x = gated(x, p.gate);
    store(p, at, r, one, o, x);
}

// What a tile is multiplied with.
struct Panels {
    const char* weight;
    size_t bytes;         // from one panel to the next
    const int64_t* taps;  // where each begins in the pictures, in bytes
    int count;            // of them
    int64_t steps;
};

// sums [8][48] (+)= rows of x times V panels of weights. With `leaves` they go on as outputs instead, from `o` on.
template <int V, typename Kind>
[[gnu::noinline]] void multiply(const Product& p, const char* const* rows, const Panels& panels, bool fresh,
                                typename Kind::Sums* sums, const Places<Kind>* leaves, int64_t o) {
    typename Kind::Sums sum[ROWS][V];
    each<ROWS * V>([&](auto i) ALWAYS {
        constexpr int r = i / V, v = i % V;
        sum[r][v] = fresh ? Kind::none() : sums[r * MOST + v];
    });
    const int64_t steps = panels.steps;
    const size_t bytes = panels.bytes;
    for (int t = 0; t < panels.count; ++t) {
        const char* w = panels.weight + t * steps * 64;
        const char* x[ROWS];
        each<ROWS>([&](auto r) ALWAYS { x[r] = rows[r] + panels.taps[t]; });
        // what is written, and added, at the end is on its way meanwhile, one line at a time
        const int64_t lines = t == 0 && leaves ? ROWS * V : 0;
        for (int64_t q = 0; q < steps; ++q) {
            if (q < lines) {
                const int64_t at = o + q / ROWS * PANEL;
                __builtin_prefetch(leaves->out[q % ROWS] + at, 1);
                if (p.residual) __builtin_prefetch(leaves->residual[q % ROWS] + at);
            }
            __m512i here[V];
            each<V>([&](auto v) ALWAYS { here[v] = _mm512_loadu_si512(w + q * 64 + v * bytes); });
            each<ROWS>([&](auto r) ALWAYS {
                const __m512i all = four(x[r] + q * STEP);
                each<V>([&](auto v) ALWAYS { Kind::add(sum[r][v], all, here[v]); });
            });
        }
    }
    if (!leaves) {
        each<ROWS * V>([&](auto i) ALWAYS {
            constexpr int r = i / V, v = i % V;
            sums[r * MOST + v] = sum[r][v];
        });
        return;
    }
    each<V>([&](auto v) ALWAYS {
        const Channel<Kind> one(p, o + v * PANEL, p.outputs);
        each<ROWS>([&](auto r) ALWAYS {
            if (r < leaves->rows) store_sums<Kind>(p, *leaves, r, one, o + v * PANEL, sum[r][v]);
        });
    });
}

template <typename Kind>
void multiply(int count, const Product& p, const char* const* rows, const Panels& panels, bool fresh,
              typename Kind::Sums* sums, const Places<Kind>* leaves, int64_t o) {
    switch (count) {
        case 3: return multiply<3, Kind>(p, rows, panels, fresh, sums, leaves, o);
        case 2: return multiply<2, Kind>(p, rows, panels, fresh, sums, leaves, o);
        default: return multiply<1, Kind>(p, rows, panels, fresh, sums, leaves, o);
    }
}

// What leaves a tile of which the second half of the outputs, with `gates` as sums, is the gate of the first.
template <typename Kind>
void leave_halves(const Product& p, const typename Kind::Sums* sums, const typename Kind::Sums* gates,
                  const Places<Kind>& at, int64_t o, int panels) {
    const int64_t wide = p.outputs / 2;
    for (int v = 0; v < panels; ++v, o += PANEL) {
        const Channel<Kind> one(p, o, wide), other(p, wide + o, p.outputs);
        for (int r = 0; r < at.rows; ++r) {
            const __m512 gate = other.real(gates[r * MOST + v], at, r), x = one.real(sums[r * MOST + v], at, r);
            store<Kind>(p, at, r, one, o, _mm512_mul_ps(x, gated(gate, p.gate)));
        }
    }
}

template <typename Kind>
struct Plan {
    int64_t places, wide, taps, chunk, slab;  // chunk: places of one task; slab: taps multiplied at a time
    int64_t chunks, blocks;                          // of places, of outputs
    size_t panel_bytes;
    bool by_rows;  // a thread takes whole rows of the output; else some columns of it
    explicit Plan(const Product& p)
        : places(p.pictures * p.out_height * p.out_width), wide(p.halves ? p.outputs / 2 : p.outputs),
          taps(p.taps_y * p.taps_x), panel_bytes(size_t(taps) * p.steps * 64) {
        chunk = Kind::ACTIVATIONS / std::max<int64_t>(p.steps * STEP * p.stride_y * p.stride_x, 1);
        chunk = std::min<int64_t>(std::max<int64_t>(chunk / ROWS * ROWS, 64), Kind::PLACES);
        slab = std::max<int64_t>(Kind::WEIGHTS / (p.steps * STEP * MOST * PANEL * (p.halves ? 2 : 1)), 1);
        slab = std::min(taps, slab);
        blocks = (wide + MOST * PANEL - 1) / (MOST * PANEL), chunks = (places + chunk - 1) / chunk;
        by_rows = chunks >= p.threads;
        if (by_rows) {  // as many for each thread
            chunks = (chunks + p.threads - 1) / p.threads * p.threads;
            chunk = ((places + chunks - 1) / chunks + ROWS - 1) / ROWS * ROWS;
            chunks = (places + chunk - 1) / chunk;
        }
    }
};

// Places [first, last) times the outputs from `o` on.
template <typename Kind>
void task(const Product& p, const Plan<Kind>& plan, const int64_t* places, const int64_t* taps, int64_t first,
          int64_t last, int64_t o, typename Kind::Sums* sums) {
    const int panels = int(std::min<int64_t>(MOST, (plan.wide - o + PANEL - 1) / PANEL));
    const char* weight = p.weight + o / PANEL * plan.panel_bytes;
    const char* second = p.weight + (plan.wide + o) / PANEL * plan.panel_bytes;
    const bool whole = plan.slab >= plan.taps;
    const int64_t tile = ROWS * MOST, stride = tile * (p.halves ? 2 : 1);
    for (int64_t t = 0; t < plan.taps; t += plan.slab) {
        const int count = int(std::min(plan.slab, plan.taps - t));
        for (int64_t m = first; m < last; m += ROWS) {
            typename Kind::Sums* mine = sums + (whole ? 0 : (m - first) / ROWS * stride);
            const char* rows[ROWS];
            for (int r = 0; r < ROWS; ++r) rows[r] = p.x + places[std::min(m + r, last - 1)];
            const Panels first_half{weight + t * p.steps * 64, plan.panel_bytes, taps + t, count, p.steps};
            const bool fresh = t == 0, last_taps = t + count == plan.taps;
            const Places<Kind> at(p, m, int(std::min<int64_t>(ROWS, last - m)), plan.wide);
            if (!p.halves) {
                multiply<Kind>(panels, p, rows, first_half, fresh, mine, last_taps ? &at : nullptr, o);
                continue;
            }
            multiply<Kind>(panels, p, rows, first_half, fresh, mine, nullptr, o);
            Panels second_half = first_half;
            second_half.weight = second + t * p.steps * 64;
            multiply<Kind>(panels, p, rows, second_half, fresh, mine + tile, nullptr, o);
            if (last_taps) leave_halves<Kind>(p, mine, mine + tile, at, o, panels);
        }
    }
}

template <typename Kind>
int product(const Product& p) {
    using Sums = typename Kind::Sums;
    const Plan<Kind> plan(p);
    auto places = aligned<int64_t>(plan.places), taps = aligned<int64_t>(plan.taps);
    if (!places || !taps) return 1;
    const int64_t pixel = p.steps * STEP;
    for (int64_t y = 0; y < p.taps_y; ++y)
        for (int64_t x = 0; x < p.taps_x; ++x)
            taps[y * p.taps_x + x] = (y * p.dilation_y * p.width + x * p.dilation_x) * pixel;
    for (int64_t b = 0, m = 0; b < p.pictures; ++b)
        for (int64_t y = 0; y < p.out_height; ++y)
            for (int64_t x = 0; x < p.out_width; ++x)
                places[m++] = ((b * p.height + y * p.stride_y) * p.width + x * p.stride_x) * pixel;
    int failed = 0;
#pragma omp parallel num_threads(p.threads)
    {
        auto sums = aligned<Sums>(size_t(plan.chunk / ROWS) * ROWS * MOST * 2);
        if (!sums) failed = 1;
        const auto tile = [&](int64_t c, int64_t n) {
            const int64_t first = c * plan.chunk, last = std::min(plan.places, first + plan.chunk);
            if (sums) task<Kind>(p, plan, places.get(), taps.get(), first, last, n * MOST * PANEL, sums.get());
        };
        // Two threads that write side by side in the same rows hinder each other: lines come in pairs.
        if (plan.by_rows) {
#pragma omp for schedule(dynamic)
            for (int64_t c = 0; c < plan.chunks; ++c)
                for (int64_t n = 0; n < plan.blocks; ++n) tile(c, n);
        } else {
#pragma omp for schedule(static)
            for (int64_t n = 0; n < plan.blocks; ++n)
                for (int64_t c = 0; c < plan.chunks; ++c) tile(c, n);
        }
    }
    return failed;
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

// Return 0, or 1 without memory.
extern "C" int sfumato_product_int8(const Product* given) { return product<Bytes>(*given); }
extern "C" int sfumato_product_float(const Product* given) { return product<Floats>(*given); }
