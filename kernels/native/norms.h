// Group norm and the gate after it: what has to be known of a picture before its pixels can be gone through once.

#pragma once

#include <utility>

#include "vectors.h"

constexpr int64_t BLOCK = 64;  // pixels summed in float before they join the sum in double; fixed, so that no sum
                               // depends on the number of threads

struct Norm {
    int64_t groups;  // 0 for none
    const float *weight, *bias;
    float eps;
    int32_t gate;  // NONE or SILU
};

struct Range {
    __m512 low, high;
    Range() : low(_mm512_set1_ps(INFINITY)), high(_mm512_set1_ps(-INFINITY)) {}
    void see(__m512 x, __mmask16 here) {
        low = _mm512_mask_min_ps(low, here, low, x), high = _mm512_mask_max_ps(high, here, high, x);
    }
    Step step() const { return Step(_mm512_reduce_min_ps(low), _mm512_reduce_max_ps(high)); }
};

inline float silu_of(float x) { return x / (1 + std::exp(-x)); }

// What is known of each picture: factor and addend of each channel, and the step that holds what comes out.
struct Known {
    int64_t pictures, pixels, channels, blocks;
    std::unique_ptr<float[], Free> seen, factors, addends;
    std::unique_ptr<Step[]> steps;
    Known(int64_t pictures, int64_t pixels, int64_t channels)
        : pictures(pictures), pixels(pixels), channels(channels), blocks((pixels + BLOCK - 1) / BLOCK),
          seen(aligned<float>(size_t(pictures) * blocks * 4 * channels)), factors(aligned<float>(size_t(pictures) * channels)),
          addends(aligned<float>(size_t(pictures) * channels)), steps(new Step[pictures]) {}
    bool whole() const { return seen && factors && addends; }

    // To be called by all threads together: two shared loops.
    void learn(const float* x, const Norm& norm) {
#pragma omp for schedule(static) collapse(2)
        for (int64_t n = 0; n < pictures; ++n)
            for (int64_t b = 0; b < blocks; ++b)
                measure(x + n * pixels * channels, b * BLOCK, std::min(BLOCK, pixels - b * BLOCK),
                        seen.get() + (n * blocks + b) * 4 * channels);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < pictures; ++n) settle(norm, n, x + n * pixels * channels);
    }

   private:
    // Of each channel of some pixels, less the picture's first pixel: sum, sum of squares; and least, greatest.
    void measure(const float* x, int64_t first, int64_t count, float* out) const {
        for (int64_t c = 0; c < channels; c += 16) {
            const __mmask16 here = lanes(channels - c);
            const __m512 less = _mm512_maskz_loadu_ps(here, x + c);
            __m512 sum = _mm512_setzero_ps(), squares = sum;
            Range range;
            for (int64_t i = first; i < first + count; ++i) {
                const __m512 v = _mm512_maskz_loadu_ps(here, x + i * channels + c), rest = _mm512_sub_ps(v, less);
                sum = _mm512_add_ps(sum, rest), squares = _mm512_fmadd_ps(rest, rest, squares);
                range.see(v, here);
            }
            _mm512_mask_storeu_ps(out + c, here, sum), _mm512_mask_storeu_ps(out + channels + c, here, squares);
            _mm512_mask_storeu_ps(out + 2 * channels + c, here, range.low);
            _mm512_mask_storeu_ps(out + 3 * channels + c, here, range.high);
        }
    }

    float at(int64_t n, int64_t block, int what, int64_t c) const {
        return seen[((n * blocks + block) * 4 + what) * channels + c];
    }

    // Mean and 1 / deviation of a group of channels.
    std::pair<double, double> moments(int64_t n, int64_t first, int64_t group, const float* pixel, float eps) const {
        double sum = 0, squares = 0;
        for (int64_t c = first; c < first + group; ++c) {
            double own = 0, square = 0;
            for (int64_t b = 0; b < blocks; ++b) own += at(n, b, 0, c), square += at(n, b, 1, c);
            const double less = pixel[c];
            sum += own + pixels * less, squares += square + 2 * less * own + pixels * less * less;
        }
        const double many = double(pixels * group), mean = sum / many;
        return {mean, 1 / std::sqrt(std::max(squares / many - mean * mean, 0.0) + eps)};
    }

    void settle(const Norm& norm, int64_t n, const float* pixel) {
        const int64_t group = norm.groups ? channels / norm.groups : channels;
        float *factor = factors.get() + n * channels, *addend = addends.get() + n * channels;
        float least = INFINITY, greatest = -INFINITY;
        std::pair<double, double> of;
        for (int64_t c = 0; c < channels; ++c) {
            if (norm.groups && c % group == 0) of = moments(n, c, group, pixel, norm.eps);
            factor[c] = norm.groups ? float(norm.weight[c] * of.second) : 1;
            addend[c] = norm.groups ? float(norm.bias[c] - of.first * of.second * norm.weight[c]) : 0;
            float low = INFINITY, high = -INFINITY;
            for (int64_t b = 0; b < blocks; ++b) low = std::min(low, at(n, b, 2, c)), high = std::max(high, at(n, b, 3, c));
            float one = low * factor[c] + addend[c], other = high * factor[c] + addend[c];
            if (one > other) std::swap(one, other);
            if (norm.gate) {  // falls to its least at -1.2784645 and rises from there
                const bool within = one < -1.2784645f && other > -1.2784645f;
                const float a = silu_of(one), b = silu_of(other);
                one = within ? -0.27846455f : std::min(a, b), other = std::max(a, b);
            }
            least = std::min(least, one), greatest = std::max(greatest, other);
        }
        steps[n] = Step(least, greatest);
    }
};

// Sixteen channels of a pixel after the norm and its gate.
inline __m512 normed(const Norm& norm, __m512 x, const float* factor, const float* addend, __mmask16 here) {
    if (norm.groups) x = _mm512_fmadd_ps(x, _mm512_maskz_loadu_ps(here, factor), _mm512_maskz_loadu_ps(here, addend));
    return norm.gate ? silu(x) : x;
}
