// What the products of all kinds share, once for all instruction sets; included by kinds/*_kernels.h
// after a simd_*.h.
//
// A `block` computes ROWS rows of PANELS panels over a range of K with all its sums in registers.
// Ranges of K resume: a block that does not begin at k = 0 loads its sums from y, and one that does not
// end at K stores them there (int8: their bits), so cutting K changes no bit. A tile walks its
// panels, K in ranges small enough to stay in the cache, and rows innermost.
#pragma once

#include <utility>

#include "kernels/linear.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

// Loops over rows and panels must be unrolled before the compiler decides which arrays can live in
// registers; left to itself, GCC does it after, and some sums stay in memory.
#define OCKHAM_UNROLL _Pragma("GCC unroll 32")

// One call of linear_tile, with what every block of it needs.
struct Tile {
    const PackedMatrix& matrix;
    const PreparedInput& input;
    const int64_t row_bytes;
    float* y;
    const int64_t y_stride;
    const float* bias;

    const uint8_t* values(int64_t row) const { return input.values + row * row_bytes; }
    int64_t lanes(int64_t panel) const {  // of a panel that are outputs, not padding
        const int64_t left = matrix.outputs - panel * panel_outputs;
        return left < panel_outputs ? left : panel_outputs;
    }
    float* out(int64_t row, int64_t panel) const {
        return y + row * y_stride + panel * panel_outputs;
    }
};

// A range of K in the kind's own steps.
struct Range {
    int64_t begin, end;
    bool first, last;
};

OCKHAM_INLINE F load_out(const Tile& tile, int64_t row, int64_t panel) {
    const int64_t lanes = tile.lanes(panel);
    const float* from = tile.out(row, panel);
    return lanes == panel_outputs ? load(from) : load(from, lanes);
}

OCKHAM_INLINE void store_out(const Tile& tile, int64_t row, int64_t panel, F value) {
    const int64_t lanes = tile.lanes(panel);
    float* to = tile.out(row, panel);
    if (lanes == panel_outputs)
        store(to, value);
    else
        store(to, value, lanes);
}

OCKHAM_INLINE void store_result(const Tile& tile, int64_t row, int64_t panel, F value, bool last) {
    if (last && tile.bias) {
        const float* bias = tile.bias + panel * panel_outputs;
        const int64_t lanes = tile.lanes(panel);
        value = add(value, lanes == panel_outputs ? load(bias) : load(bias, lanes));
    }
    store_out(tile, row, panel, value);
}

// Asks for the weights that will be read soon. Few rows wait for memory: what is asked for goes right
// to the first-level cache. With more rows time is enough to bring it to the second level long before,
// where it does not push out the rows' values, and to the first just in time. `jump`: see Jump.
template <bool WAITS>
OCKHAM_INLINE void ask_ahead(const uint8_t* from, int64_t jump) {
    if (WAITS) {
        prefetch(from + 4096 + jump);
    } else {
        prefetch_far(from + 6144 + jump);
        prefetch(from + 512);
    }
}

// The same for the scales of groups (fp16), a stream of their own. A tile has few of them: what is asked
// for far ahead lies behind the tile, and its first scales come unasked.
OCKHAM_INLINE void ask_for_scales(const uint16_t* from) { prefetch(from + 8 * panel_outputs); }

// What comes after a panel's last weights is the next panel; two panels at a time are followed by the
// two after them.
template <bool WAITS, int PANELS>
class Jump {
   public:
    Jump(const uint8_t* panel, int64_t panel_bytes)
        : end_(panel + panel_bytes - (WAITS ? 4096 : 6144)), jump_((PANELS - 1) * panel_bytes) {}
    int64_t at(const uint8_t* first) const { return PANELS == 1 || first < end_ ? 0 : jump_; }

   private:
    const uint8_t* end_;
    const int64_t jump_;
};

// A row's four values times the weights of each panel; the same for 4-bit codes.
template <int PANELS>
OCKHAM_INLINE void dot_quads(I (&sum)[PANELS], const QuadWeights (&weights)[PANELS],
                             const uint8_t* x) {
    const Quad wide = quad(x);
    OCKHAM_UNROLL
    for (int p = 0; p < PANELS; ++p) sum[p] = dot_quad(sum[p], weights[p], wide);
}
template <int PANELS>
OCKHAM_INLINE void dot_codes(CodeSum (&sum)[PANELS], const Codes (&weights)[PANELS],
                             const uint8_t* x) {
    const CodeQuad wide = code_quad(x);
    OCKHAM_UNROLL
    for (int p = 0; p < PANELS; ++p) sum[p] = dot_codes(sum[p], weights[p], wide);
}

// The outputs of a block of rows while it is computed. They stand in memory, because the registers are for
// the integer sums, but not in the output itself, whose rows may all fall on one set of the cache.
template <int ROWS, int PANELS>
struct Partial {
    alignas(64) float y[ROWS][PANELS][panel_outputs];

    Partial(const Tile& tile, int64_t row, int64_t panel, bool first) {
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p)
                store(y[r][p], first ? zero() : load_out(tile, row + r, panel + p));
    }
    __attribute__((always_inline)) void add(int r, int p, F a, F b) { store(y[r][p], fma(a, b, load(y[r][p]))); }
    void finish(const Tile& tile, int64_t row, int64_t panel, bool last) const {
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p)
                store_result(tile, row + r, panel + p, load(y[r][p]), last);
    }
};

using Block = void (*)(const Tile&, int64_t row, int64_t panel, Range);

// The blocks of a format for 1 to `Format::rows` rows of one panel or of two.
template <class Format, int PANELS, class = std::make_integer_sequence<int, Format::rows>>
struct Blocks;
template <class Format, int PANELS, int... ROW>
struct Blocks<Format, PANELS, std::integer_sequence<int, ROW...>> {
    static constexpr Block table[] = {Format::template block<ROW + 1, PANELS>...};
};

// How many steps hold inputs that are not all zero, in whole multiples where there are as many.
static inline int64_t used_steps(const Tile& tile, int64_t step_inputs, int64_t multiple) {
    const int64_t all = (tile.matrix.inputs + step_inputs - 1) / step_inputs;
    if (tile.input.used >= tile.matrix.inputs) return all;
    const int64_t at_once = step_inputs * multiple;
    const int64_t some = (tile.input.used + at_once - 1) / at_once * multiple;
    return some < all ? some : all;
}

// What the weights of one block may take of the second-level cache.
constexpr int64_t range_bytes = 128 << 10;

// `multiple`: ranges of K are cut at multiples of so many steps.
template <class Format>
static void walk(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
                 int64_t y_stride, const float* bias, int64_t multiple) {
    constexpr int most_rows = Format::rows;
    const int64_t row_begin = area.row_begin, rows = area.row_end - row_begin;
    if (rows <= 0) return;
    const Tile tile{matrix, input, input.form.row_bytes(), y, y_stride, bias};
    const int64_t steps = used_steps(tile, Format::step_inputs, multiple);
    // Blocks of equal numbers of rows: 13 rows are faster as 7 + 6 than as 12 + 1.
    const int64_t blocks = (rows + most_rows - 1) / most_rows;
    const int panels = Format::panels((rows + blocks - 1) / blocks);
    // Weights are read again by the second block of rows and should still be in the cache then; with
    // a single block there is nothing to gain.
    int64_t range_steps = steps;
    if (rows > most_rows)
        range_steps = (range_bytes / (Format::step_bytes * panels) + multiple - 1) / multiple * multiple;
    for (int64_t panel = area.panel_begin; panel < area.panel_end;) {
        const bool wide = panels == 2 && panel + 2 <= area.panel_end;
        const Block* table = wide ? Blocks<Format, 2>::table : Blocks<Format, 1>::table;
        for (int64_t begin = 0; begin < steps; begin += range_steps) {
            const int64_t end = begin + range_steps < steps ? begin + range_steps : steps;
            const Range range{begin, end, begin == 0, end == steps};
            for (int64_t block = 0; block < blocks; ++block) {
                const int64_t first = row_begin + rows * block / blocks;
                const int64_t last = row_begin + rows * (block + 1) / blocks;
                table[last - first - 1](tile, first, panel, range);
            }
        }
        panel += wide ? 2 : 1;
    }
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE
