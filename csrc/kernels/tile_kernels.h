// The walk of tiles.h; included by csrc/isa/amx.cpp after linear_kernels.h.
//
// A block is 16 rows of one panel, or some rows less, over a range of steps. Its float sums stay in
// registers. A step has three parts: multiply, store the integer sums, convert and add them. They are done
// for three steps in turn, so that none waits for the one before it; after a block's last step comes the
// first one of the next panel's.
#pragma once

#include <utility>

#include "kernels/tiles.h"

namespace ockham::amx {

// What is unpacked at once, of some panels over a range of steps: about so much that it fits a first-level
// cache of 48 KB, with the inputs of 16 rows over that range, which the panels share. Ranges are of equal
// lengths, up to half as long again, rather than have a short one at the end.
constexpr int64_t usual_bytes = 32 << 10, unpacked_bytes = usual_bytes * 3 / 2;
constexpr int64_t most_steps = unpacked_bytes / (32 * panel_outputs);
constexpr int64_t most_factors = factor_pairs(Minima::nested_by_16) * 32;
constexpr int64_t panels_at_once = 4;
constexpr int most_block_rows = 16, least_block_rows = 8;

// From how many rows on tiles are faster than avx512's products: fewer would not pay for unpacking. (With
// 16 it depends on the kind: int8 is slower, int4 with groups of 128 faster.)
constexpr int64_t least_rows = 32;
static_assert(least_rows >= least_block_rows, "blocks of equal rows are half full at least");

bool enough(const Area& area) { return area.row_end - area.row_begin >= least_rows; }

struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    // The first `of_rows` tiles have `block_rows` rows, the others 16.
    TileShapes(int64_t block_rows, int of_rows) {
        for (int tile = 0; tile < 8; ++tile) {
            row_bytes[tile] = 64;
            rows[tile] = static_cast<uint8_t>(tile < of_rows ? block_rows : 16);
        }
    }
};
static_assert(sizeof(TileShapes) == 64, "the form that the processor reads");

// Tiles of this thread from here on, until the end: a thread that keeps some is slower to put aside.
class Configured {
   public:
    explicit Configured(const TileShapes& shapes) {
        // (GCC 12's own function says of 8 bytes only that they are read.)
        asm volatile("ldtilecfg %0" : : "m"(shapes));
    }
    ~Configured() { asm volatile("tilerelease"); }
    Configured(const Configured&) = delete;
    Configured& operator=(const Configured&) = delete;
};

// The compiler's own functions take no number of a tile from a template. What a tile is loaded from was
// written before line() was called, so that the compiler need not know of it.
template <int TILE>
OCKHAM_INLINE void clear_tile() {
    asm volatile("tilezero %%tmm%c0" : : "i"(TILE));
}
template <int TILE>
OCKHAM_INLINE void load_tile(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(TILE));
}
template <int SUMS, int INPUTS, int WEIGHTS>
OCKHAM_INLINE void multiply_tiles() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUMS), "i"(INPUTS), "i"(WEIGHTS));
}
template <int TILE, class Sum>
OCKHAM_INLINE void store_tile(Sum (*to)[panel_outputs]) {
    static_assert(sizeof(Sum) == 4, "int32_t or float");
    const int64_t stride = 64;
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(TILE) : "memory");
}

// Which tile is what of walk(). Two of each, by turns; narrow ones have 32 inputs.
//   one plane:  0 and 1 sums, 2 and 3 inputs, 6 and 7 weights, 4 and 5 narrow inputs and weights
//   two planes: 0 and 1 sums of the first, 2 and 3 of the second, 4 inputs, 6 and 7 weights
static TileShapes shapes_of(int64_t block_rows, bool narrow) {
    TileShapes shapes(block_rows, 5);
    if (narrow) {
        shapes.row_bytes[4] = 32;
        shapes.rows[5] = 8;
    }
    return shapes;
}

// The integer sums of a step, to TURN's tiles.
template <int TURN, int PLANES>
OCKHAM_INLINE void multiply_step(const uint8_t* x, int64_t x_stride, const int8_t* weights,
                                 int64_t inputs) {
    if constexpr (PLANES == 1) {
        clear_tile<TURN>();
        for (int64_t left = inputs; left >= 64; left -= 64, x += 64, weights += 1024) {
            load_tile<2 + TURN>(x, x_stride);
            load_tile<6 + TURN>(weights, 64);
            multiply_tiles<TURN, 2 + TURN, 6 + TURN>();
        }
        if (inputs % 64) {
            load_tile<4>(x, x_stride);
            load_tile<5>(weights, 64);
            multiply_tiles<TURN, 4, 5>();
        }
    } else {
        const int64_t plane = inputs * panel_outputs;
        clear_tile<TURN>();
        clear_tile<2 + TURN>();
        for (int64_t left = inputs; left > 0; left -= 64, x += 64, weights += 1024) {
            load_tile<4>(x, x_stride);
            load_tile<6>(weights, 64);
            load_tile<7>(weights + plane, 64);
            multiply_tiles<TURN, 4, 6>();
            multiply_tiles<2 + TURN, 4, 7>();
        }
    }
}

struct alignas(64) Sums {
    int32_t of[most_block_rows][panel_outputs];
};

// A value of each row of a block, `stride` apart. Rows are found by adding one or three strides to every
// fourth: as 16 addresses, they would not stay in registers.
template <int ROWS, class Value>
struct OfRows {
    static constexpr int fours = (ROWS + 3) / 4;
    Value* every_fourth[fours];
    int64_t stride, three_strides;

    OfRows(Value* first, int64_t stride) : stride(stride), three_strides(3 * stride) {
        OCKHAM_UNROLL
        for (int i = 0; i < fours; ++i) {
            every_fourth[i] = first + 4 * i * stride;
            asm("" : "+r"(every_fourth[i]));  // or the compiler goes back to the 16
        }
        asm("" : "+r"(three_strides));
    }
    __attribute__((always_inline)) Value& operator[](int row) const {
        Value* near = every_fourth[row / 4];
        return row % 4 == 3 ? near[three_strides] : near[row % 4 * stride];
    }
    __attribute__((always_inline)) void advance(int64_t values) {
        OCKHAM_UNROLL
        for (int i = 0; i < fours; ++i) every_fourth[i] += values;
    }
};

// What is added of the next step.
template <int ROWS>
struct Terms {
    OfRows<ROWS, const float> scale_x;
    OfRows<ROWS, const int32_t> offset;
    const float* scale;
    const float* minimum;
    const int16_t* factors;
};

// y += what the integer sums of a step stand for.
template <int ROWS, int PLANES, Minima MINIMA>
OCKHAM_INLINE void add_step(F (&y)[ROWS], const Sums* sums, Terms<ROWS>& terms) {
    const F of_weight = load(terms.scale);
    OCKHAM_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        I sum = _mm512_load_si512(sums[0].of[r]);
        if constexpr (PLANES == 2)
            sum = int_add(sum, _mm512_slli_epi32(_mm512_load_si512(sums[1].of[r]), 7));
        y[r] = fma(to_float(sum), mul(broadcast(terms.scale_x[r]), of_weight), y[r]);
    }
    if constexpr (MINIMA == Minima::flat) {
        const F least = load(terms.minimum);
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            float total;
            __builtin_memcpy(&total, &terms.offset[r], 4);
            y[r] = fma(broadcast(total), least, y[r]);
        }
        terms.offset.advance(1);
        terms.minimum += panel_outputs;
    }
    if constexpr (factor_pairs(MINIMA) != 0) {
        constexpr int pairs = factor_pairs(MINIMA);
        const F least = load(terms.minimum);
        I factors[pairs];
        OCKHAM_UNROLL
        for (int pair = 0; pair < pairs; ++pair)
            factors[pair] = _mm512_load_si512(terms.factors + pair * 32);
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            I sum = int_broadcast(0);
            OCKHAM_UNROLL
            for (int pair = 0; pair < pairs; ++pair)
                sum = _mm512_dpwssd_epi32(sum, factors[pair], int_broadcast((&terms.offset[r])[pair]));
            y[r] = fma(to_float(sum), mul(broadcast(-terms.scale_x[r]), least), y[r]);
        }
        terms.offset.advance(pairs);
        terms.minimum += panel_outputs;
        terms.factors += pairs * 32;
    }
    terms.scale_x.advance(1);
    terms.scale += panel_outputs;
}

// Blocks of the same ROWS rows of some panels, one after another, over a range of steps.
template <int ROWS, int PLANES, Minima MINIMA>
class Line {
   public:
    Line(const Tile& tile, const Steps& steps, const Unpacked& from, int64_t row, int64_t panel, Range range)
        : tile_(tile),
          range_(range),
          steps_(range.end - range.begin),
          step_inputs_(steps.inputs),
          words_(tile.input.form.kind->offset_words),
          row_(row),
          x_(tile.values(row) + range.begin * steps.inputs),
          weights_(from.weights),
          terms_{{tile.input.scales + row * steps.count + range.begin, steps.count},
                 {tile.input.offsets + (row * steps.count + range.begin) * words_, steps.count * words_},
                 from.scales,
                 from.minima,
                 from.factors},
          panel_(panel) {}

    void compute(int64_t panels) {
        const int64_t total = panels * steps_;
        F y[ROWS];
        begin(y);
        for (int64_t step = 0; step < total + 2; step += 2) {
            advance<0>(y, even_, odd_, step, total);
            advance<1>(y, odd_, even_, step + 1, total);
        }
    }

   private:
    // Multiplies `step`, stores the sums of the one before, adds those of the one before that.
    template <int TURN>
    __attribute__((always_inline)) void advance(F (&y)[ROWS], Sums* own, Sums* other, int64_t step,
                                                int64_t total) {
        if (step < total) {
            multiply_step<TURN, PLANES>(x_, tile_.row_bytes, weights_, step_inputs_);
            x_ += step_inputs_;
            weights_ += step_inputs_ * panel_outputs * PLANES;
            if (++multiplied_ == steps_) {
                multiplied_ = 0;
                x_ -= steps_ * step_inputs_;
            }
        }
        if (step >= 1 && step <= total) {
            store_tile<1 - TURN>(other[0].of);
            if constexpr (PLANES == 2) store_tile<3 - TURN>(other[1].of);
        }
        if (step >= 2 && step <= total + 1) {
            add_step<ROWS, PLANES, MINIMA>(y, own, terms_);
            if (++added_ == steps_) {
                finish(y);
                added_ = 0;
                ++panel_;
                terms_.scale_x.advance(-steps_);
                terms_.offset.advance(-steps_ * words_);
                if (step <= total) begin(y);
            }
        }
    }
    __attribute__((always_inline)) void begin(F (&y)[ROWS]) const {
        const OfRows<ROWS, const float> out(tile_.out(row_, panel_), tile_.y_stride);
        const __mmask16 lanes = first_lanes(tile_.lanes(panel_));
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            y[r] = range_.first ? zero() : _mm512_maskz_loadu_ps(lanes, &out[r]);
    }
    __attribute__((always_inline)) void finish(F (&y)[ROWS]) const {
        const OfRows<ROWS, float> out(tile_.out(row_, panel_), tile_.y_stride);
        const __mmask16 lanes = first_lanes(tile_.lanes(panel_));
        if (range_.last && tile_.bias) {
            const F bias = _mm512_maskz_loadu_ps(lanes, tile_.bias + panel_ * panel_outputs);
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r) y[r] = add(y[r], bias);
        }
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r) _mm512_mask_storeu_ps(&out[r], lanes, y[r]);
    }

    const Tile& tile_;
    const Range range_;
    const int64_t steps_, step_inputs_, words_, row_;
    const uint8_t* x_;
    const int8_t* weights_;
    Terms<ROWS> terms_;
    int64_t panel_, multiplied_ = 0, added_ = 0;
    Sums even_[PLANES], odd_[PLANES];
};

template <int ROWS, int PLANES, Minima MINIMA>
static void line(const Tile& tile, const Steps& steps, const Unpacked& from, int64_t row, int64_t panel,
                 int64_t panels, Range range) {
    Line<ROWS, PLANES, MINIMA>(tile, steps, from, row, panel, range).compute(panels);
}

using LineFunction = void (*)(const Tile&, const Steps&, const Unpacked&, int64_t row, int64_t panel,
                              int64_t panels, Range);

template <int PLANES, Minima MINIMA,
          class = std::make_integer_sequence<int, most_block_rows - least_block_rows + 1>>
struct Lines;
template <int PLANES, Minima MINIMA, int... MORE>
struct Lines<PLANES, MINIMA, std::integer_sequence<int, MORE...>> {
    static constexpr LineFunction table[] = {line<least_block_rows + MORE, PLANES, MINIMA>...};
};

static const LineFunction* lines_of(const Steps& steps) {
    switch (steps.minima) {
        case Minima::flat:
            return Lines<1, Minima::flat>::table;
        case Minima::nested:
            return Lines<2, Minima::nested>::table;
        case Minima::nested_by_16:
            return Lines<2, Minima::nested_by_16>::table;
        case Minima::none:
            break;
    }
    return steps.planes == 2 ? Lines<2, Minima::none>::table : Lines<1, Minima::none>::table;
}

void walk(const Steps& steps, const PackedMatrix& matrix, const PreparedInput& input, const Area& area,
          float* y, int64_t y_stride, const float* bias) {
    alignas(64) int8_t weights[unpacked_bytes];
    alignas(64) float scales[most_steps * panel_outputs], minima[most_steps * panel_outputs];
    alignas(64) int16_t factors[unpacked_bytes / (256 * 2 * panel_outputs) * most_factors];
    const Unpacked memory{weights, scales, minima, factors};
    const Tile tile{matrix, input, input.form.row_bytes(), y, y_stride, bias};
    const int64_t row_begin = area.row_begin, rows = area.row_end - row_begin;
    // Blocks of nearly equal numbers of rows. A smaller one multiplies the row after it too, because
    // tiles have as many rows as the largest, and leaves its sums. (The last block is a largest one.)
    const int64_t blocks = (rows + most_block_rows - 1) / most_block_rows;
    const Configured configured(shapes_of((rows + blocks - 1) / blocks, steps.inputs % 64 != 0));
    const LineFunction* const table = lines_of(steps) - least_block_rows;
    const int64_t step_factors = factor_pairs(steps.minima) * 32;
    const int64_t step_bytes = steps.inputs * panel_outputs * steps.planes;
    const int64_t usual_steps = usual_bytes / panels_at_once / step_bytes;  // 1 at least: 256 inputs, 2 planes
    const int64_t count = used_steps(tile, steps.inputs, 1);
    const int64_t near = (count + usual_steps / 2) / usual_steps, ranges = near ? near : 1;
    const int64_t range_steps = (count + ranges - 1) / ranges;
    for (int64_t panel = area.panel_begin; panel < area.panel_end; panel += panels_at_once) {
        const int64_t left = area.panel_end - panel, panels = left < panels_at_once ? left : panels_at_once;
        for (int64_t begin = 0; begin < count; begin += range_steps) {
            const int64_t end = begin + range_steps < count ? begin + range_steps : count;
            for (int64_t i = 0; i < panels; ++i) {
                const int64_t before = i * (end - begin);
                steps.unpack(matrix, panel + i, begin, end,
                             {weights + before * step_bytes, scales + before * panel_outputs,
                              minima + before * panel_outputs,
                              step_factors ? factors + before * step_factors : nullptr});
            }
            const Range range{begin, end, begin == 0, end == count};
            for (int64_t i = 0; i < blocks; ++i) {
                const int64_t first = row_begin + rows * i / blocks;
                const int64_t last = row_begin + rows * (i + 1) / blocks;
                table[last - first](tile, steps, memory, first, panel, panels, range);
            }
        }
    }
}

// A product of tiles without its memory, with as many sums as hide how long one takes.
static double probe_tiles(int64_t rounds, float* sink) {
    const Configured configured(shapes_of(16, false));
    clear_tile<0>();
    clear_tile<1>();
    clear_tile<2>();
    clear_tile<3>();
    clear_tile<4>();
    clear_tile<6>();
    for (int64_t round = 0; round < rounds; ++round) {
        multiply_tiles<0, 4, 6>();
        multiply_tiles<1, 4, 6>();
        multiply_tiles<2, 4, 6>();
        multiply_tiles<3, 4, 6>();
    }
    alignas(64) int32_t sums[16][16];
    store_tile<0>(sums);
    sink[0] += static_cast<float>(sums[0][0]);
    return 4.0 * 2 * 16 * 16 * 64 * static_cast<double>(rounds);
}

}  // namespace ockham::amx
