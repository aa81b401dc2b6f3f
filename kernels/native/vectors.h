// What the kernels share: memory, masks, exponentials and gates of sixteen floats.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>

struct Free {
    void operator()(void* p) const { std::free(p); }
};

template <typename T>
std::unique_ptr<T[], Free> aligned(size_t count) {
    size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    return std::unique_ptr<T[], Free>(static_cast<T*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64))));
}

// The first `left` lanes, at most 16.
inline __mmask16 lanes(int64_t left) { return left >= 16 ? 0xffff : __mmask16((1 << left) - 1); }

// f(0) .. f(N - 1), written out. An array that is indexed so alone can lie in registers; one indexed in a loop that the
// compiler unrolls itself comes to lie in memory.
#define ALWAYS __attribute__((always_inline))
template <int N, typename F>
[[gnu::always_inline]] inline void each(const F& f) {
    if constexpr (N > 0) {
        each<N - 1>(f);
        f(std::integral_constant<int, N - 1>{});
    }
}

// sum += a * b, of four unsigned and four signed bytes each. Written out, because GCC gives the intrinsic another
// register for its result and then runs out of them.
inline void dot(__m512i& sum, __m512i a, __m512i b) { asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); }

// The same four bytes sixteen times.
inline __m512i four(const void* x) {
    int32_t bytes;
    std::memcpy(&bytes, x, 4);
    return _mm512_set1_epi32(bytes);
}

// 2^x to 2e-7, for x up to 127; 0 below -200.
inline __m512 power_of_two(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-200.0f));
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.5403530e-4f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.3333558e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6181291e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504109e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022651e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

// e^x to 2e-7.
inline __m512 exponential(__m512 x) {
    return power_of_two(_mm512_min_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.4426950408889634f)), _mm512_set1_ps(127.0f)));
}

// 1 / x, to the last bit or two, for x of ordinary size.
inline __m512 inverse(__m512 x) {
    __m512 y = _mm512_rcp14_ps(x);
    return _mm512_mul_ps(y, _mm512_fnmadd_ps(x, y, _mm512_set1_ps(2.0f)));
}

inline __m512 sigmoid(__m512 x) {
    __m512 e = exponential(_mm512_sub_ps(_mm512_setzero_ps(), x));
    return inverse(_mm512_add_ps(e, _mm512_set1_ps(1.0f)));
}

inline __m512 silu(__m512 x) { return _mm512_mul_ps(x, sigmoid(x)); }

// x * Phi(x); Abramowitz and Stegun 7.1.26, to 2e-7.
inline __m512 gelu(__m512 x) {
    const __m512 sign = _mm512_set1_ps(-0.0f);
    __m512 z = _mm512_mul_ps(_mm512_andnot_ps(sign, x), _mm512_set1_ps(0.70710678f));
    __m512 t = inverse(_mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), _mm512_set1_ps(1.0f)));
    __m512 p = _mm512_set1_ps(1.061405429f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
    __m512 tail = _mm512_mul_ps(_mm512_mul_ps(p, t), exponential(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(z, z))));
    // erfc(|x| / sqrt 2) / 2 is the part that is left out for x > 0, and the part that is left for x < 0
    __m512 half = _mm512_mul_ps(tail, _mm512_set1_ps(0.5f));
    __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    __m512 phi = _mm512_mask_blend_ps(negative, _mm512_sub_ps(_mm512_set1_ps(1.0f), half), half);
    return _mm512_mul_ps(x, phi);
}

// The form with tanh: x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)).
inline __m512 gelu_tanh(__m512 x) {
    __m512 cubic = _mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(0.044715f));
    __m512 inner = _mm512_mul_ps(x, _mm512_add_ps(cubic, _mm512_set1_ps(1.0f)));
    return _mm512_mul_ps(x, sigmoid(_mm512_mul_ps(inner, _mm512_set1_ps(1.5957691f))));
}

enum Gate : int { NONE = 0, SILU = 1, GELU = 2, GELU_TANH = 3 };

inline __m512 gated(__m512 x, int gate) {
    switch (gate) {
        case SILU: return silu(x);
        case GELU: return gelu(x);
        case GELU_TANH: return gelu_tanh(x);
        default: return x;
    }
}

// x * factor in whole steps, plus zero, within 0..255.
inline __m128i stored(__m512 x, __m512 factor, __m512i zero) {
    __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(x, factor)), zero);
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(whole, _mm512_setzero_si512()));
}

// The finest scale whose range holds low..high and 0.
struct Step {
    float scale = 1, factor = 1;
    int32_t zero = 0;
    Step() = default;
    Step(float low, float high) {
        low = std::min(low, 0.0f), high = std::max(high, 0.0f);
        if (high - low < 1e-30f) return;
        scale = (high - low) / 255, factor = 1 / scale;
        zero = std::min(std::max(int32_t(std::nearbyint(-low * factor)), 0), 255);
    }
    Step(float scale, int32_t zero) : scale(scale), factor(1 / scale), zero(zero) {}
};
