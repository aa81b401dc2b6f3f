// Floats to 8 bits: rows with a scale each, pictures with a scale each, and group norm with its gate on the way.
//
// Reference: kernels/quant/fused.py.

#include <cstring>

#include "vectors.h"

namespace {

constexpr int64_t BLOCK = 64;  // pixels summed in float before they join the sum in double; fixed, so that no sum
                               // depends on the number of threads

struct Range {
    __m512 low, high;
    Range() : low(_mm512_set1_ps(INFINITY)), high(_mm512_set1_ps(-INFINITY)) {}
    void see(__m512 x, __mmask16 here) {
        low = _mm512_mask_min_ps(low, here, low, x), high = _mm512_mask_max_ps(high, here, high, x);
    }
    Step step() const { return Step(_mm512_reduce_min_ps(low), _mm512_reduce_max_ps(high)); }
};

void store(const float* x, int64_t count, const Step& step, uint8_t* out) {
    const __m512 factor = _mm512_set1_ps(step.factor);
    const __m512i zero = _mm512_set1_epi32(step.zero);
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 here = lanes(count - i);
        _mm_mask_storeu_epi8(out + i, here, stored(_mm512_maskz_loadu_ps(here, x + i), factor, zero));
    }
}

}  // namespace

// x [rows][features] -> out [rows][padded]; what pads is zero.
extern "C" void sfumato_round_rows(const float* x, int64_t rows, int64_t features, int64_t stride, int64_t padded,
                                   uint8_t* out, float* scale, int32_t* zero, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t m = 0; m < rows; ++m) {
        const float* row = x + m * stride;
        Range range;
        for (int64_t i = 0; i < features; i += 16) {
            const __mmask16 here = lanes(features - i);
            range.see(_mm512_maskz_loadu_ps(here, row + i), here);
        }
        const Step step = range.step();
        scale[m] = step.scale, zero[m] = step.zero;
        store(row, features, step, out + m * padded);
        std::memset(out + m * padded + features, 0, padded - features);
    }
}

struct Pictures {
    const float* x;       // [pictures][height][width][channels]
    uint8_t* out;         // [pictures][height * times + 2 pad_y][width * times + 2 pad_x][padded]
    float* scale;         // [pictures]
    int32_t* zero;
    int64_t pictures, height, width, channels, padded, pad_y, pad_x;
    int64_t times;        // each pixel becomes so many by so many
    int64_t groups;       // of the norm; 0 for none
    const float *weight, *bias;  // of the norm
    float eps;
    int32_t gate;         // NONE or SILU
    int32_t threads;
};

namespace {

// Of each channel of one block: sum, sum of squares, least, greatest: [4][channels].
void measure(const float* x, int64_t pixels, int64_t channels, float* out) {
    for (int64_t c = 0; c < channels; c += 16) {
        const __mmask16 here = lanes(channels - c);
        __m512 sum = _mm512_setzero_ps(), squares = sum;
        Range range;
        for (int64_t i = 0; i < pixels; ++i) {
            const __m512 v = _mm512_maskz_loadu_ps(here, x + i * channels + c);
            sum = _mm512_add_ps(sum, v), squares = _mm512_fmadd_ps(v, v, squares);
            range.see(v, here);
        }
        _mm512_mask_storeu_ps(out + c, here, sum), _mm512_mask_storeu_ps(out + channels + c, here, squares);
        _mm512_mask_storeu_ps(out + 2 * channels + c, here, range.low);
        _mm512_mask_storeu_ps(out + 3 * channels + c, here, range.high);
    }
}

float silu_of(float x) { return x / (1 + std::exp(-x)); }

// Factor and addend of each channel, and the step of what comes out.
Step settle(const Pictures& p, const float* blocks, int64_t count, float* factors, float* addends) {
    const int64_t channels = p.channels, group = p.groups ? channels / p.groups : channels;
    auto at = [&](int64_t block, int what, int64_t c) { return blocks[(block * 4 + what) * channels + c]; };
    float least = INFINITY, greatest = -INFINITY;
    for (int64_t first = 0; first < channels; first += group) {
        double sum = 0, squares = 0;
        if (p.groups)
            for (int64_t b = 0; b < count; ++b)
                for (int64_t c = first; c < first + group; ++c) sum += at(b, 0, c), squares += at(b, 1, c);
        const double many = double(p.height * p.width * group), mean = sum / many;
        const double rest = 1 / std::sqrt(std::max(squares / many - mean * mean, 0.0) + p.eps);
        for (int64_t c = first; c < first + group; ++c) {
            factors[c] = p.groups ? float(p.weight[c] * rest) : 1;
            addends[c] = p.groups ? float(p.bias[c] - mean * rest * p.weight[c]) : 0;
            float low = INFINITY, high = -INFINITY;
            for (int64_t b = 0; b < count; ++b) low = std::min(low, at(b, 2, c)), high = std::max(high, at(b, 3, c));
            float one = low * factors[c] + addends[c], other = high * factors[c] + addends[c];
            if (one > other) std::swap(one, other);
            if (p.gate) {  // falls to its least at -1.2784645 and rises from there
                const bool within = one < -1.2784645f && other > -1.2784645f;
                const float a = silu_of(one), b = silu_of(other);
                one = within ? -0.27846455f : std::min(a, b), other = std::max(a, b);
            }
            least = std::min(least, one), greatest = std::max(greatest, other);
        }
    }
    return Step(least, greatest);
}

}  // namespace

// Returns 0, or 1 without memory.
extern "C" int sfumato_round_pictures(const Pictures* given) {
    const Pictures& p = *given;
    const int64_t pixels = p.height * p.width, blocks = (pixels + BLOCK - 1) / BLOCK, channels = p.channels;
    const int64_t wide = p.width * p.times + 2 * p.pad_x, high = p.height * p.times + 2 * p.pad_y;
    auto seen = aligned<float>(size_t(p.pictures) * blocks * 4 * channels);
    auto factors = aligned<float>(size_t(p.pictures) * channels), addends = aligned<float>(size_t(p.pictures) * channels);
    auto steps = aligned<float>(p.pictures);
    if (!seen || !factors || !addends || !steps) return 1;
#pragma omp parallel num_threads(p.threads)
    {
#pragma omp for schedule(static) collapse(2)
        for (int64_t n = 0; n < p.pictures; ++n)
            for (int64_t b = 0; b < blocks; ++b)
                measure(p.x + (n * pixels + b * BLOCK) * channels, std::min(BLOCK, pixels - b * BLOCK), channels,
                        seen.get() + (n * blocks + b) * 4 * channels);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < p.pictures; ++n) {
            const Step step = settle(p, seen.get() + n * blocks * 4 * channels, blocks, factors.get() + n * channels,
                                     addends.get() + n * channels);
            p.scale[n] = step.scale, p.zero[n] = step.zero, steps[n] = step.factor;
        }
#pragma omp for schedule(static) collapse(2)
        for (int64_t n = 0; n < p.pictures; ++n)
            for (int64_t y = 0; y < high; ++y) {
                uint8_t* row = p.out + (n * high + y) * wide * p.padded;
                const int64_t from = y - p.pad_y;
                if (from < 0 || from >= p.height * p.times) {
                    std::memset(row, p.zero[n], size_t(wide) * p.padded);
                    continue;
                }
                if (from % p.times) continue;  // a copy of the row above, made below
                const float *factor = factors.get() + n * channels, *addend = addends.get() + n * channels;
                const __m512 by = _mm512_set1_ps(steps[n]);
                const __m512i zero = _mm512_set1_epi32(p.zero[n]);
                std::memset(row, p.zero[n], size_t(p.pad_x) * p.padded);
                uint8_t* place = row + p.pad_x * p.padded;
                for (int64_t x = 0; x < p.width; ++x) {
                    const float* pixel = p.x + ((n * p.height + from / p.times) * p.width + x) * channels;
                    for (int64_t c = 0; c < channels; c += 16) {
                        const __mmask16 here = lanes(channels - c);
                        __m512 v = _mm512_maskz_loadu_ps(here, pixel + c);
                        if (p.groups)
                            v = _mm512_fmadd_ps(v, _mm512_maskz_loadu_ps(here, factor + c), _mm512_maskz_loadu_ps(here, addend + c));
                        if (p.gate) v = silu(v);
                        _mm_mask_storeu_epi8(place + c, here, stored(v, by, zero));
                    }
                    std::memset(place + channels, 0, p.padded - channels);
                    for (int64_t copy = 1; copy < p.times; ++copy) std::memcpy(place + copy * p.padded, place, p.padded);
                    place += p.times * p.padded;
                }
                std::memset(place, p.zero[n], size_t(p.pad_x) * p.padded);
                for (int64_t copy = 1; copy < p.times; ++copy)
                    std::memcpy(row + copy * wide * p.padded, row, size_t(wide) * p.padded);
            }
    }
    return 0;
}
