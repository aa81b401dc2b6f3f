// 3 x 3 convolutions by Winograd's F(4 x 4, 3 x 3) for processors with AVX-512, in float32.
//
// Tiles of 6 x 6 pixels become 36 numbers per channel; across channels each of the 36 is a matrix product; 4 x 4 pixels
// come back. Some tiles at a time go through all three, so that what lies between stays in the processor's cache.
// Reference: kernels/winograd.py.

#include "winograd.h"

namespace {

constexpr int64_t HELD = 8 << 20;  // bytes between the stages

struct Convolution : Around {
    const float* matrix;  // [36][outputs/16][inputs][16]
};

struct Tiles : Grid<4> {
    int64_t some;               // how many at a time
    int64_t step_in, step_out;  // floats from one of the 36 to the next; an odd number of cache lines, since tables that
                                // lie whole pages apart drive one another out of the cache
    explicit Tiles(const Convolution& p)
        : Grid(p), some(std::min(count, std::max<int64_t>(HELD / (144 * (p.inputs + p.outputs)) / ROWS * ROWS, 32))),
          step_in(odd(some * p.inputs)), step_out(odd(some * p.outputs)) {}
    static int64_t odd(int64_t floats) { return ((floats + 15) / 16 | 1) * 16; }
};

// One column or row of 6 to 6: B^T of arXiv:1509.09308.
inline void into(__m512* d) {
    const __m512 two = _mm512_set1_ps(2), four = _mm512_set1_ps(4), five = _mm512_set1_ps(5);
    const __m512 even = _mm512_fnmadd_ps(four, d[2], d[4]), odd = _mm512_fnmadd_ps(four, d[1], d[3]);
    const __m512 one = _mm512_sub_ps(d[4], d[2]), other = _mm512_mul_ps(two, _mm512_sub_ps(d[3], d[1]));
    const __m512 first = _mm512_fmadd_ps(four, d[0], _mm512_fnmadd_ps(five, d[2], d[4]));
    const __m512 last = _mm512_fmadd_ps(four, d[1], _mm512_fnmadd_ps(five, d[3], d[5]));
    d[0] = first, d[1] = _mm512_add_ps(even, odd), d[2] = _mm512_sub_ps(even, odd);
    d[3] = _mm512_add_ps(one, other), d[4] = _mm512_sub_ps(one, other), d[5] = last;
}

// 6 to 4: A^T.
inline void back(const __m512* m, __m512* y) {
    const __m512 eight = _mm512_set1_ps(8), two = _mm512_set1_ps(2), four = _mm512_set1_ps(4);
    const __m512 near = _mm512_add_ps(m[1], m[2]), far = _mm512_add_ps(m[3], m[4]);
    const __m512 left = _mm512_sub_ps(m[1], m[2]), right = _mm512_sub_ps(m[3], m[4]);
    y[0] = _mm512_add_ps(m[0], _mm512_add_ps(near, far));
    y[1] = _mm512_fmadd_ps(two, right, left);
    y[2] = _mm512_fmadd_ps(four, far, near);
    y[3] = _mm512_add_ps(_mm512_fmadd_ps(eight, right, left), m[5]);
}

// Tile i to place t of [36][step_in].
void transform(const Convolution& p, const Tiles& tiles, const Known& known, int64_t i, int64_t t, float* out) {
    const Place<4> at(tiles, i);
    const float *factor = known.factors.get() + at.picture * p.inputs, *addend = known.addends.get() + at.picture * p.inputs;
    const int64_t high = p.height / p.times, wide = p.width / p.times;
    for (int64_t c = 0; c < p.inputs; c += 16) {
        const __mmask16 here = lanes(p.inputs - c);
        __m512 d[6][6], turned[6];
        for (int64_t y = 0; y < 6; ++y)
            for (int64_t x = 0; x < 6; ++x) {
                const int64_t row = at.y + y - 1, column = at.x + x - 1;
                const bool inside = row >= 0 && row < p.height && column >= 0 && column < p.width;
                d[y][x] = _mm512_setzero_ps();
                if (!inside) continue;
                const int64_t place = (at.picture * high + row / p.times) * wide + column / p.times;
                const __m512 pixel = _mm512_maskz_loadu_ps(here, p.x + place * p.inputs + c);
                d[y][x] = normed(p.norm, pixel, factor + c, addend + c, here);
            }
        for (auto& row : d) into(row);
        for (int x = 0; x < 6; ++x) {
            for (int y = 0; y < 6; ++y) turned[y] = d[y][x];
            into(turned);
            for (int y = 0; y < 6; ++y)
                _mm512_mask_storeu_ps(out + (y * 6 + x) * tiles.step_in + t * p.inputs + c, here, turned[y]);
        }
    }
}

// out [8][outputs] = V panels of the matrix times rows [8][inputs].
template <int V>
[[gnu::noinline]] void multiply(const float* const* rows, const float* panels, int64_t inputs, int64_t left, float* const* out) {
    __m512 sum[ROWS][V];
    each<ROWS * V>([&](auto i) ALWAYS { sum[i / V][i % V] = _mm512_setzero_ps(); });
    const float* x[ROWS];
    each<ROWS>([&](auto r) ALWAYS { x[r] = rows[r]; });
    for (int64_t k = 0; k < inputs; ++k) {
        __m512 here[V];
        each<V>([&](auto v) ALWAYS { here[v] = _mm512_loadu_ps(panels + (v * inputs + k) * PANEL); });
        each<ROWS>([&](auto r) ALWAYS {
            const __m512 all = _mm512_set1_ps(x[r][k]);
            each<V>([&](auto v) ALWAYS { sum[r][v] = _mm512_fmadd_ps(all, here[v], sum[r][v]); });
        });
    }
    each<ROWS>([&](auto r) ALWAYS {
        each<V>([&](auto v) ALWAYS { _mm512_mask_storeu_ps(out[r] + v * PANEL, lanes(left - v * PANEL), sum[r][v]); });
    });
}

// One of the 36 products, for the outputs from `o` on.
void product(const Convolution& p, const Tiles& tiles, int64_t index, int64_t o, int64_t count, const float* from, float* to) {
    const int64_t left = p.outputs - o, all = (p.outputs + PANEL - 1) / PANEL;
    const int panels = int(std::min<int64_t>(MOST, (left + PANEL - 1) / PANEL));
    const float* matrix = p.matrix + (index * all + o / PANEL) * p.inputs * PANEL;
    for (int64_t t = 0; t < count; t += ROWS) {
        const float* rows[ROWS];
        float* out[ROWS];
        for (int r = 0; r < ROWS; ++r) {
            const int64_t at = std::min(t + r, count - 1);
            rows[r] = from + index * tiles.step_in + at * p.inputs;
            out[r] = to + index * tiles.step_out + at * p.outputs + o;
        }
        switch (panels) {
            case 3: multiply<3>(rows, matrix, p.inputs, left, out); break;
            case 2: multiply<2>(rows, matrix, p.inputs, left, out); break;
            default: multiply<1>(rows, matrix, p.inputs, left, out);
        }
    }
}

// Place t of [36][step_out] to the pixels of tile i.
void restore(const Convolution& p, const Tiles& tiles, int64_t i, int64_t t, const float* from) {
    const Place<4> at(tiles, i);
    for (int64_t o = 0; o < p.outputs; o += 16) {
        const __mmask16 here = lanes(p.outputs - o);
        const __m512 addend = p.addend(at.picture, o, here);
        __m512 half[4][6];
        for (int x = 0; x < 6; ++x) {
            __m512 m[6], y[4];
            for (int row = 0; row < 6; ++row)
                m[row] = _mm512_maskz_loadu_ps(here, from + (row * 6 + x) * tiles.step_out + t * p.outputs + o);
            back(m, y);
            for (int row = 0; row < 4; ++row) half[row][x] = y[row];
        }
        for (int64_t row = 0; row < std::min<int64_t>(4, p.height - at.y); ++row) {
            __m512 y[4];
            back(half[row], y);
            const int64_t place = ((at.picture * p.height + at.y + row) * p.width + at.x) * p.outputs + o;
            for (int64_t x = 0; x < std::min<int64_t>(4, p.width - at.x); ++x)
                p.put(place + x * p.outputs, _mm512_add_ps(y[x], addend), here);
        }
    }
}

}  // namespace

// Returns 0, or 1 without memory.
extern "C" int sfumato_winograd(const Convolution* given) {
    const Convolution& p = *given;
    const Tiles tiles(p);
    auto from = aligned<float>(size_t(36) * tiles.step_in), to = aligned<float>(size_t(36) * tiles.step_out);
    Known known = p.known();
    if (!from || !to || !known.whole()) return 1;
    const int64_t blocks = (p.outputs + MOST * PANEL - 1) / (MOST * PANEL);
#pragma omp parallel num_threads(p.threads)
    {
        if (p.norm.groups) known.learn(p.x, p.norm);
        for (int64_t first = 0; first < tiles.count; first += tiles.some) {
            const int64_t count = std::min(tiles.some, tiles.count - first);
#pragma omp for schedule(static)
            for (int64_t t = 0; t < count; ++t) transform(p, tiles, known, first + t, t, from.get());
#pragma omp for schedule(dynamic) collapse(2)
            for (int64_t index = 0; index < 36; ++index)
                for (int64_t n = 0; n < blocks; ++n)
                    product(p, tiles, index, n * MOST * PANEL, count, from.get(), to.get());
#pragma omp for schedule(static)
            for (int64_t t = 0; t < count; ++t) restore(p, tiles, first + t, t, to.get());
        }
    }
    return 0;
}
