// Floats to 8 bits: rows with a scale each, pictures with a scale each, and group norm with its gate on the way.
//
// Reference: kernels/quant/fused.py.

#include <cstring>

#include "norms.h"

namespace {

// A masked store takes longer.
ALWAYS inline void put(uint8_t* out, __mmask16 here, __m128i x) {
    if (here == 0xffff)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), x);
    else
        _mm_mask_storeu_epi8(out, here, x);
}

void store(const float* x, int64_t count, const Step& step, uint8_t* out) {
    const __m512 factor = _mm512_set1_ps(step.factor);
    const __m512i zero = _mm512_set1_epi32(step.zero);
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 here = lanes(count - i);
        put(out + i, here, stored(_mm512_maskz_loadu_ps(here, x + i), factor, zero));
    }
}

}  // namespace

// x [rows][features] -> out [rows][padded]; what pads is zero. A scale of 0 is measured, row by row.
extern "C" void sfumato_round_rows(const float* x, int64_t rows, int64_t features, int64_t stride, int64_t padded,
                                   float known_scale, int32_t known_zero, uint8_t* out, float* scale, int32_t* zero,
                                   int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t m = 0; m < rows; ++m) {
        const float* row = x + m * stride;
        Range range;
        for (int64_t i = 0; i < (known_scale ? 0 : features); i += 16) {
            const __mmask16 here = lanes(features - i);
            range.see(_mm512_maskz_loadu_ps(here, row + i), here);
        }
        const Step step = known_scale ? Step(known_scale, known_zero) : range.step();
        scale[m] = step.scale, zero[m] = step.zero;
        store(row, features, step, out + m * padded);
        std::memset(out + m * padded + features, 0, padded - features);
    }
}

struct Rows {
    const float* x;              // [rows][features], rows `stride` apart
    uint8_t* out;                // [rows][padded]; what pads is zero
    float* scale;                // [rows]
    int32_t* zero;
    const float *factor, *shift;  // [rows / share][features], after the norm; either may be missing
    int64_t rows, features, stride, padded, share;
    float eps;
    int32_t threads;
};

// Layer norm, a factor and a shift that `share` rows have in common, and a scale for each row. Returns 0, or 1 without
// memory.
extern "C" int sfumato_round_normed_rows(const Rows* given) {
    const Rows& p = *given;
    int failed = 0;
#pragma omp parallel num_threads(p.threads)
    {
        auto kept = aligned<float>(p.features + 16);
        if (!kept) failed = 1;
#pragma omp for schedule(static)
        for (int64_t m = 0; m < p.rows; ++m)
            if (kept) {
                const float* row = p.x + m * p.stride;
                __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
                for (int64_t i = 0; i < p.features; i += 16)
                    sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes(p.features - i), row + i));
                const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / p.features);
                for (int64_t i = 0; i < p.features; i += 16) {
                    const __mmask16 here = lanes(p.features - i);
                    const __m512 x = _mm512_maskz_sub_ps(here, _mm512_maskz_loadu_ps(here, row + i), mean);
                    squares = _mm512_fmadd_ps(x, x, squares);
                }
                const float variance = _mm512_reduce_add_ps(squares) / p.features;
                const __m512 by = _mm512_set1_ps(1 / std::sqrt(variance + p.eps));
                const float* factor = p.factor ? p.factor + m / p.share * p.features : nullptr;
                const float* shift = p.shift ? p.shift + m / p.share * p.features : nullptr;
                Range range;
                for (int64_t i = 0; i < p.features; i += 16) {
                    const __mmask16 here = lanes(p.features - i);
                    __m512 x = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(here, row + i), mean), by);
                    if (factor) x = _mm512_mul_ps(x, _mm512_maskz_loadu_ps(here, factor + i));
                    if (shift) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(here, shift + i));
                    range.see(x, here);
                    _mm512_store_ps(kept.get() + i, x);
                }
                const Step step = range.step();
                p.scale[m] = step.scale, p.zero[m] = step.zero;
                store(kept.get(), p.features, step, p.out + m * p.padded);
                std::memset(p.out + m * p.padded + p.features, 0, p.padded - p.features);
            }
    }
    return failed;
}

struct Pictures {
    const float* x;       // [pictures][height][width][channels]
    uint8_t* out;         // [pictures][height * times + 2 pad_y][width * times + 2 pad_x][padded]
    float* scale;         // [pictures]
    int32_t* zero;
    int64_t pictures, height, width, channels, padded, pad_y, pad_x;
    int64_t times;        // each pixel becomes so many by so many
    Norm norm;
    int32_t threads;
    float known_scale;    // of all pictures; 0 where it is to be measured
    int32_t known_zero;
};

// Returns 0, or 1 without memory.
extern "C" int sfumato_round_pictures(const Pictures* given) {
    const Pictures& p = *given;
    const int64_t wide = p.width * p.times + 2 * p.pad_x, high = p.height * p.times + 2 * p.pad_y, channels = p.channels;
    Known known(p.pictures, p.height * p.width, channels);
    if (!known.whole()) return 1;
#pragma omp parallel num_threads(p.threads)
    {
        if (!p.known_scale || p.norm.groups) known.learn(p.x, p.norm);
#pragma omp for schedule(static) collapse(2)
        for (int64_t n = 0; n < p.pictures; ++n)
            for (int64_t y = 0; y < high; ++y) {
                uint8_t* row = p.out + (n * high + y) * wide * p.padded;
                const Step step = p.known_scale ? Step(p.known_scale, p.known_zero) : known.steps[n];
                if (y == 0) p.scale[n] = step.scale, p.zero[n] = step.zero;
                const int64_t from = y - p.pad_y;
                if (from < 0 || from >= p.height * p.times) {
                    std::memset(row, step.zero, size_t(wide) * p.padded);
                    continue;
                }
                if (from % p.times) continue;  // a copy of the row above, made below
                const float *factor = known.factors.get() + n * channels, *addend = known.addends.get() + n * channels;
                const __m512 by = _mm512_set1_ps(step.factor);
                const __m512i zero = _mm512_set1_epi32(step.zero);
                std::memset(row, step.zero, size_t(p.pad_x) * p.padded);
                uint8_t* place = row + p.pad_x * p.padded;
                for (int64_t column = 0; column < p.width; ++column) {
                    const float* pixel = p.x + ((n * p.height + from / p.times) * p.width + column) * channels;
                    for (int64_t c = 0; c < channels; c += 16) {
                        const __mmask16 here = lanes(channels - c);
                        const __m512 x = _mm512_maskz_loadu_ps(here, pixel + c);
                        const __m512 v = normed(p.norm, x, factor + c, addend + c, here);
                        put(place + c, here, stored(v, by, zero));
                    }
                    std::memset(place + channels, 0, p.padded - channels);
                    for (int64_t copy = 1; copy < p.times; ++copy) std::memcpy(place + copy * p.padded, place, p.padded);
                    place += p.times * p.padded;
                }
                std::memset(place, step.zero, size_t(p.pad_x) * p.padded);
                for (int64_t copy = 1; copy < p.times; ++copy)
                    std::memcpy(row + copy * wide * p.padded, row, size_t(wide) * p.padded);
            }
    }
    return 0;
}
