// 3 x 3 convolutions by Winograd's F(2 x 2, 3 x 3) in 8 bits for processors with AVX-512 and VNNI: four ninths of the
// multiplications.
//
// Tiles of 4 x 4 pixels become 16 numbers per channel, and each of the 16 is rounded with a scale and a zero of its own
// over the channels; across channels each is a product of 8-bit numbers; 2 x 2 pixels come back. Some tiles at a time go
// through all three, a thread's own, so that what lies between stays in a core's cache.
// Reference: kernels/quant/winograd_int8.py.

#include "winograd.h"

namespace {

constexpr int WIDE = MOST * PANEL;
constexpr int64_t HELD = 640 << 10;            // bytes of rounded tiles that stay in a core's cache
constexpr int64_t LEAST = 16, GREATEST = 128;  // tiles at a time

struct Convolution : Around {
    const int8_t* weight;       // packed [outputs/16][16][inputs/4][16][4]
    const float* weight_scale;  // [16][outputs]
    const int32_t* weight_sum;  // [16][outputs], over inputs
};

struct Tiles : Grid<2> {
    int64_t some, chunks;    // how many at a time, and how often
    int64_t padded, quads;   // of inputs
    int64_t blocks, groups;  // of outputs; groups of blocks, where tiles alone are too few for the threads
    explicit Tiles(const Convolution& p)
        : Grid(p), padded((p.inputs + 3) / 4 * 4), quads(padded / 4), blocks((p.outputs + WIDE - 1) / WIDE) {
        some = std::min(std::max(HELD / (16 * padded), LEAST), GREATEST);
        chunks = (count + some - 1) / some;
        chunks = (chunks + p.threads - 1) / p.threads * p.threads;  // as many for each thread
        some = ((count + chunks - 1) / chunks + ROWS - 1) / ROWS * ROWS;
        chunks = (count + some - 1) / some;
        groups = std::min(std::max<int64_t>(p.threads / chunks, 1), blocks);
    }
};

// What a thread holds.
struct Held {
    int64_t line;  // floats of a row of pixels
    std::unique_ptr<float[], Free> pixels, numbers, sums, scale;
    std::unique_ptr<uint8_t[], Free> rounded;  // [16][some][padded]
    std::unique_ptr<int32_t[], Free> zero;     // [16][some], as scale
    int64_t rows[4] = {-1, -1, -1, -1};        // which the four lie at hand, of all pictures one below the other
    Held(const Convolution& p, const Tiles& tiles)
        : line((tiles.columns * 2 + 2) * p.inputs), pixels(aligned<float>(4 * line + 16)),
          numbers(aligned<float>(16 * (p.inputs + 16))), sums(aligned<float>(16 * tiles.some * WIDE)),
          scale(aligned<float>(16 * tiles.some)), rounded(aligned<uint8_t>(16 * tiles.some * tiles.padded)),
          zero(aligned<int32_t>(16 * tiles.some)) {}
    bool whole() const { return pixels && numbers && sums && scale && rounded && zero; }
};

// Row `y` of a picture after its norm, with a column of zeros on the left and one or more on the right.
const float* row_of(const Convolution& p, const Known& known, int64_t picture, int64_t y, Held& held) {
    const int slot = int((y + 1) & 3);
    const int64_t id = picture * (p.height + 4) + y + 1;
    float* line = held.pixels.get() + slot * held.line;
    if (held.rows[slot] == id) return line;
    held.rows[slot] = id;
    if (y < 0 || y >= p.height) {
        std::memset(line, 0, sizeof(float) * held.line);
        return line;
    }
    const float *factor = known.factors.get() + picture * p.inputs, *addend = known.addends.get() + picture * p.inputs;
    const int64_t wide = p.width / p.times;
    const float* from = p.x + (picture * (p.height / p.times) + y / p.times) * wide * p.inputs;
    std::memset(line, 0, sizeof(float) * p.inputs);
    float* place = line + p.inputs;
    for (int64_t x = 0; x < wide; ++x, from += p.inputs) {
        for (int64_t c = 0; c < p.inputs; c += 16) {
            const __mmask16 here = lanes(p.inputs - c);
            const __m512 v = normed(p.norm, _mm512_maskz_loadu_ps(here, from + c), factor + c, addend + c, here);
            for (int64_t copy = 0; copy < p.times; ++copy) _mm512_mask_storeu_ps(place + copy * p.inputs + c, here, v);
        }
        place += p.times * p.inputs;
    }
    std::memset(place, 0, sizeof(float) * (line + held.line - place));
    return line;
}

// 4 to 4: B^T of arXiv:1509.09308.
ALWAYS inline void into(__m512* d) {
    const __m512 first = _mm512_sub_ps(d[0], d[2]), last = _mm512_sub_ps(d[1], d[3]);
    const __m512 sum = _mm512_add_ps(d[1], d[2]), rest = _mm512_sub_ps(d[2], d[1]);
    d[0] = first, d[1] = sum, d[2] = rest, d[3] = last;
}

// Tile `t` of those at hand: its 16 numbers per channel, each rounded over the channels.
void transform(const Convolution& p, const Tiles& tiles, const Known& known, int64_t i, int64_t t, Held& held) {
    const Place<2> at(tiles, i);
    const float* rows[4];
    for (int y = 0; y < 4; ++y) rows[y] = row_of(p, known, at.picture, at.y + y - 1, held) + at.x * p.inputs;
    const int64_t wide = p.inputs + 16;
    float* numbers = held.numbers.get();
    for (int64_t c = 0; c < p.inputs; c += 16) {
        const __mmask16 here = lanes(p.inputs - c);
        __m512 d[4][4];
        each<16>([&](auto k) ALWAYS {
            constexpr int y = k / 4, x = k % 4;
            d[y][x] = _mm512_maskz_loadu_ps(here, rows[y] + x * p.inputs + c);
        });
        each<4>([&](auto y) ALWAYS { into(d[y]); });
        each<4>([&](auto x) ALWAYS {
            __m512 column[4] = {d[0][x], d[1][x], d[2][x], d[3][x]};
            into(column);
            each<4>([&](auto y) ALWAYS { _mm512_storeu_ps(numbers + (y * 4 + x) * wide + c, column[y]); });
        });
    }
    for (int64_t k = 0; k < 16; ++k) {
        const float* from = numbers + k * wide;
        Range range;
        for (int64_t c = 0; c < p.inputs; c += 16) range.see(_mm512_loadu_ps(from + c), lanes(p.inputs - c));
        const Step step = range.step();
        held.scale[k * tiles.some + t] = step.scale, held.zero[k * tiles.some + t] = step.zero;
        const __m512 by = _mm512_set1_ps(step.factor);
        const __m512i zero = _mm512_set1_epi32(step.zero);
        uint8_t* to = held.rounded.get() + (k * tiles.some + t) * tiles.padded;
        int64_t c = 0;
        for (; c + 16 <= p.inputs; c += 16)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + c), stored(_mm512_loadu_ps(from + c), by, zero));
        if (c < p.inputs)
            _mm_mask_storeu_epi8(to + c, lanes(p.inputs - c), stored(_mm512_loadu_ps(from + c), by, zero));
        std::memset(to + p.inputs, 0, tiles.padded - p.inputs);
    }
}

// Weights of up to three panels, and eight tiles, of one of the 16 numbers.
struct Panels {
    const int8_t* weight;
    int64_t bytes, quads;  // from one panel to the next; of inputs
    const float* scale;
    const int32_t* sum;
    int64_t left;          // outputs
};
struct Eight {
    const uint8_t* rows;
    int64_t apart;
    const float* scale;
    const int32_t* zero;
};

// out [8][48] = eight tiles times V panels, as real numbers.
template <int V>
[[gnu::noinline]] void multiply(const Eight& tiles, const Panels& panels, float* out) {
    __m512i sum[ROWS][V];
    const uint8_t* x[ROWS];
    each<ROWS * V>([&](auto i) ALWAYS { sum[i / V][i % V] = _mm512_setzero_si512(); });
    each<ROWS>([&](auto r) ALWAYS { x[r] = tiles.rows + r * tiles.apart; });
    const int8_t* weight = panels.weight;
    const int64_t bytes = panels.bytes, quads = panels.quads;
    for (int64_t q = 0; q < quads; ++q) {
        __m512i here[V];
        each<V>([&](auto v) ALWAYS { here[v] = _mm512_loadu_si512(weight + q * 64 + v * bytes); });
        each<ROWS>([&](auto r) ALWAYS {
            const __m512i all = four(x[r] + q * 4);
            each<V>([&](auto v) ALWAYS { dot(sum[r][v], all, here[v]); });
        });
    }
    each<V>([&](auto v) ALWAYS {
        const __mmask16 there = lanes(panels.left - v * PANEL);
        const __m512i whole = _mm512_maskz_loadu_epi32(there, panels.sum + v * PANEL);
        const __m512 by = _mm512_maskz_loadu_ps(there, panels.scale + v * PANEL);
        each<ROWS>([&](auto r) ALWAYS {
            const __m512i less = _mm512_mullo_epi32(_mm512_set1_epi32(tiles.zero[r]), whole);
            const __m512 real = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum[r][v], less));
            const __m512 scale = _mm512_mul_ps(by, _mm512_set1_ps(tiles.scale[r]));
            _mm512_store_ps(out + r * WIDE + v * PANEL, _mm512_mul_ps(real, scale));
        });
    });
}

// The 16 products of `count` tiles, for the outputs from `o` on.
void products(const Convolution& p, const Tiles& tiles, int64_t o, int64_t count, const Held& held) {
    const int64_t left = p.outputs - o, bytes = 16 * tiles.quads * 64;
    for (int64_t k = 0; k < 16; ++k) {
        const int8_t* weight = p.weight + o / PANEL * bytes + k * tiles.quads * 64;
        const int64_t at = k * p.outputs + o;
        const Panels panels{weight, bytes, tiles.quads, p.weight_scale + at, p.weight_sum + at, left};
        for (int64_t t = k * tiles.some; t < k * tiles.some + count; t += ROWS) {  // there is room for whole eights
            const uint8_t* rows = held.rounded.get() + t * tiles.padded;
            const Eight eight{rows, tiles.padded, held.scale.get() + t, held.zero.get() + t};
            float* out = held.sums.get() + t * WIDE;
            switch (std::min<int64_t>(MOST, (left + PANEL - 1) / PANEL)) {
                case 3: multiply<3>(eight, panels, out); break;
                case 2: multiply<2>(eight, panels, out); break;
                default: multiply<1>(eight, panels, out);
            }
        }
    }
}

// 4 to 2: A^T.
ALWAYS inline void back(const __m512* m, __m512* y) {
    y[0] = _mm512_add_ps(_mm512_add_ps(m[0], m[1]), m[2]);
    y[1] = _mm512_sub_ps(_mm512_sub_ps(m[1], m[2]), m[3]);
}

// Tile `t` of those at hand to its pixels, for up to 48 outputs from `o` on.
void restore(const Convolution& p, const Tiles& tiles, int64_t i, int64_t t, int64_t o, const Held& held) {
    const Place<2> at(tiles, i);
    const int64_t step = tiles.some * WIDE;
    for (int64_t v = 0; v < WIDE && o + v < p.outputs; v += PANEL) {
        const __mmask16 here = lanes(p.outputs - o - v);
        const float* from = held.sums.get() + t * WIDE + v;
        const __m512 addend = p.addend(at.picture, o + v, here);
        __m512 half[2][4];
        each<4>([&](auto x) ALWAYS {
            __m512 m[4], y[2];
            each<4>([&](auto row) ALWAYS { m[row] = _mm512_load_ps(from + (row * 4 + x) * step); });
            back(m, y);
            half[0][x] = y[0], half[1][x] = y[1];
        });
        for (int64_t row = 0; row < std::min<int64_t>(2, p.height - at.y); ++row) {
            __m512 y[2];
            back(half[row], y);
            const int64_t place = ((at.picture * p.height + at.y + row) * p.width + at.x) * p.outputs + o + v;
            for (int64_t x = 0; x < std::min<int64_t>(2, p.width - at.x); ++x)
                p.put(place + x * p.outputs, _mm512_add_ps(y[x], addend), here);
        }
    }
}

}  // namespace

// Returns 0, or 1 without memory.
extern "C" int sfumato_winograd_int8(const Convolution* given) {
    const Convolution& p = *given;
    const Tiles tiles(p);
    Known known = p.known();
    if (!known.whole()) return 1;
    int failed = 0;
#pragma omp parallel num_threads(p.threads)
    {
        Held held(p, tiles);
        if (!held.whole()) failed = 1;
        if (p.norm.groups) known.learn(p.x, p.norm);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tiles.chunks * tiles.groups; ++task) {
            const int64_t first = task / tiles.groups * tiles.some, count = std::min(tiles.some, tiles.count - first);
            const int64_t group = task % tiles.groups;
            if (!held.whole()) continue;
            for (int64_t t = 0; t < count; ++t) transform(p, tiles, known, first + t, t, held);
            for (int64_t n = tiles.blocks * group / tiles.groups; n < tiles.blocks * (group + 1) / tiles.groups; ++n) {
                products(p, tiles, n * WIDE, count, held);
                for (int64_t t = 0; t < count; ++t) restore(p, tiles, first + t, t, n * WIDE, held);
            }
        }
    }
    return failed;
}
