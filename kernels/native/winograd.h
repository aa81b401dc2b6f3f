// What the kernels by Winograd's tiles share: pictures in and out, where a tile lies in them, and how its pixels leave.

#pragma once

#include "norms.h"

constexpr int ROWS = 8;
constexpr int PANEL = 16;
constexpr int MOST = 3;  // panels of a tile of the product

// As kernels/native/around.py fills it in.
struct Around {
    const float* x;         // [pictures][height / times][width / times][inputs]
    const float* bias;      // [outputs]; may be missing
    const float* shift;     // [pictures][outputs], added; may be missing
    const float* residual;  // as out, added; may be missing
    float* out;             // [pictures][height][width][outputs]
    int64_t pictures, height, width, inputs, outputs;
    int64_t times;          // each pixel stands for so many by so many
    Norm norm;
    float factor;           // of the whole, at the end
    int32_t threads;

    // Around of pixels before they are repeated, to be learned where there is a norm.
    Known known() const { return Known(pictures, (height / times) * (width / times), inputs); }

    // What is added to outputs `o` and the fifteen after it, wherever they lie.
    __m512 addend(int64_t picture, int64_t o, __mmask16 here) const {
        const __m512 own = bias ? _mm512_maskz_loadu_ps(here, bias + o) : _mm512_setzero_ps();
        return shift ? _mm512_add_ps(own, _mm512_maskz_loadu_ps(here, shift + picture * outputs + o)) : own;
    }

    // Sixteen outputs of a pixel, which begin `at` so many floats.
    ALWAYS void put(int64_t at, __m512 y, __mmask16 here) const {
        if (residual) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(here, residual + at));
        y = _mm512_mul_ps(y, _mm512_set1_ps(factor));
        if (here == 0xffff)  // a masked store takes longer
            _mm512_storeu_ps(out + at, y);
        else
            _mm512_mask_storeu_ps(out + at, here, y);
    }
};

// Tiles of EDGE by EDGE pixels, picture by picture.
template <int EDGE>
struct Grid {
    int64_t rows, columns, count;
    explicit Grid(const Around& p)
        : rows((p.height + EDGE - 1) / EDGE), columns((p.width + EDGE - 1) / EDGE), count(p.pictures * rows * columns) {}
};

// Of a tile's first pixel.
template <int EDGE>
struct Place {
    int64_t picture, y, x;
    Place(const Grid<EDGE>& grid, int64_t i)
        : picture(i / (grid.rows * grid.columns)), y(i / grid.columns % grid.rows * EDGE), x(i % grid.columns * EDGE) {}
};
