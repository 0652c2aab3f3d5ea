// The products, once for all instruction sets; included by csrc/isa/*.cpp after a simd_*.h.
//
// A `block` computes ROWS rows of PANELS panels over a range of K with all its sums in registers.
// Ranges of K resume: a block that does not begin at k = 0 loads its sums from y, and one that does not
// end at K stores them there (int8: their bits), so cutting K changes no bit. A tile walks its
// panels, K in ranges small enough to stay in the cache, and rows innermost.
#pragma once

#include <utility>

#include "kernels/kernels.h"

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

// fp32: a step is one k.
struct Fp32 : Fp32Block {
    static constexpr int64_t step_inputs = 1, step_bytes = 64;

    template <int ROWS, int PANELS>
    static void block(const Tile& tile, int64_t row, int64_t panel, Range range) {
        const int64_t panel_stride = tile.matrix.inputs * 64;
        const uint8_t* weight = static_cast<const uint8_t*>(tile.matrix.weight) + panel * panel_stride;
        const Jump<(ROWS <= waiting_rows), PANELS> jump(weight, panel_stride);
        weight += range.begin * 64;
        const uint8_t* x = tile.values(row) + range.begin * 4;
        F sum[ROWS][PANELS];
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p)
                sum[r][p] = range.first ? zero() : load_out(tile, row + r, panel + p);
        for (int64_t k = range.begin; k < range.end; ++k, weight += 64, x += 4) {
            F w[PANELS];
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) {
                const uint8_t* from = weight + p * panel_stride;
                ask_ahead<ROWS <= waiting_rows>(from, jump.at(weight));
                w[p] = load(reinterpret_cast<const float*>(from));
            }
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                float value;
                __builtin_memcpy(&value, x + r * tile.row_bytes, 4);
                const F wide = broadcast(value);
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p) sum[r][p] = fma(wide, w[p], sum[r][p]);
            }
        }
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p)
                store_result(tile, row + r, panel + p, sum[r][p], range.last);
    }
};

// bf16: a step is two k.
struct Bf16 : Bf16Block {
    static constexpr int64_t step_inputs = 2, step_bytes = 64;

    template <int ROWS, int PANELS>
    static void block(const Tile& tile, int64_t row, int64_t panel, Range range) {
        const int64_t panel_stride = (tile.matrix.inputs + 1) / 2 * 64;
        const uint8_t* weight = static_cast<const uint8_t*>(tile.matrix.weight) + panel * panel_stride;
        const Jump<(ROWS <= waiting_rows), PANELS> jump(weight, panel_stride);
        weight += range.begin * 64;
        const uint8_t* x = tile.values(row) + range.begin * 4;
        F sum[ROWS][PANELS];
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p)
                sum[r][p] = range.first ? zero() : load_out(tile, row + r, panel + p);
        for (int64_t step = range.begin; step < range.end; ++step, weight += 64, x += 4) {
            PairWeights w[PANELS];
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) {
                const uint8_t* from = weight + p * panel_stride;
                ask_ahead<ROWS <= waiting_rows>(from, jump.at(weight));
                w[p] = pair_weights(from);
            }
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                const Pair wide = pair(x + r * tile.row_bytes);
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p) sum[r][p] = dot(sum[r][p], w[p], wide);
            }
        }
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p)
                store_result(tile, row + r, panel + p, sum[r][p], range.last);
    }
};

// int8: a step is a group. Weights are stored as w + 128, so sums start at -128 times the sum of the
// group's values. `GROUPED`: whether weights have a scale for each group, or one for each output.
template <bool GROUPED>
struct Int8 : Int8Block {
    static constexpr int64_t step_inputs = int8_group, step_bytes = int8_group * panel_outputs;

    template <int ROWS, int PANELS>
    static void block(const Tile& tile, int64_t row, int64_t panel, Range range) {
        const int64_t groups = tile.input.form.groups();
        const int64_t panel_stride = groups * step_bytes;
        const uint8_t* weight = static_cast<const uint8_t*>(tile.matrix.weight) + panel * panel_stride;
        const Jump<(ROWS <= waiting_rows), PANELS> jump(weight, panel_stride);
        weight += range.begin * step_bytes;
        const uint8_t* x = tile.values(row) + range.begin * step_inputs;
        const uint16_t* half = static_cast<const uint16_t*>(tile.matrix.scale) +
                               (panel * groups + range.begin) * panel_outputs;
        const float* single = static_cast<const float*>(tile.matrix.scale) + panel * panel_outputs;
        const int64_t scale_stride = groups * panel_outputs;  // from one panel's to the next's
        const float* of_x = tile.input.scales + row * groups + range.begin;
        const int32_t* offset = tile.input.offsets + row * groups + range.begin;
        Partial<ROWS, PANELS> y(tile, row, panel, range.first);
        for (int64_t group = range.begin; group < range.end; ++group, ++of_x, ++offset) {
            const int64_t ahead = jump.at(weight);
            I sum[ROWS][PANELS];
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                const I start = int_broadcast(offset[r * groups]);
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p) sum[r][p] = start;
            }
            for (int quad = 0; quad < int8_group / 4; ++quad, weight += 64, x += 4) {
                QuadWeights w[PANELS];
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p) {
                    const uint8_t* from = weight + p * panel_stride;
                    ask_ahead<ROWS <= waiting_rows>(from, ahead);
                    w[p] = quad_weights(from);
                }
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r) dot_quads<PANELS>(sum[r], w, x + r * tile.row_bytes);
            }
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) {
                if (GROUPED) ask_for_scales(half + p * scale_stride);
                const F of_weight = GROUPED ? from_half(half + p * scale_stride)
                                            : load(single + p * panel_outputs);
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r)
                    y.add(r, p, to_float(sum[r][p]), mul(broadcast(of_x[r * groups]), of_weight));
            }
            half += panel_outputs;
        }
        y.finish(tile, row, panel, range.last);
    }
};

// int4: a step is 32 k, because groups are multiples of that.
template <bool ZEROS>
struct Int4 : Int4Block {
    static constexpr int64_t step_inputs = 32, step_bytes = 256;

    template <int ROWS, int PANELS>
    static void block(const Tile& tile, int64_t row, int64_t panel, Range range) {
        const int64_t group_steps = tile.matrix.group / 32;
        const int64_t groups = tile.matrix.inputs / tile.matrix.group;
        const int64_t panel_stride = tile.matrix.inputs * 8;
        const uint8_t* weight = static_cast<const uint8_t*>(tile.matrix.weight) + panel * panel_stride;
        const Jump<(ROWS <= waiting_rows), PANELS> jump(weight, panel_stride);
        weight += range.begin * step_bytes;
        const uint8_t* x = tile.values(row) + range.begin * step_inputs;
        const int64_t first_group = range.begin / group_steps;
        const int64_t of_panel = (panel * groups + first_group) * panel_outputs;
        const uint16_t* scale = static_cast<const uint16_t*>(tile.matrix.scale) + of_panel;
        const uint8_t* zeros = static_cast<const uint8_t*>(tile.matrix.zero) + of_panel;
        const float* of_x = tile.input.scales + row * groups + first_group;
        const int32_t* offset = tile.input.offsets + row * groups + first_group;
        Partial<ROWS, PANELS> y(tile, row, panel, range.first);
        const int64_t group_end = range.end / group_steps;
        const int64_t scale_stride = groups * panel_outputs;  // from one panel's to the next's
        for (int64_t group = first_group; group < group_end; ++group) {
            const int64_t ahead = jump.at(weight);
            I sum[ROWS][PANELS];
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                const int32_t value = offset[r * groups];
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p)
                    sum[r][p] = ZEROS ? zero_points_times(zeros + p * scale_stride, value / 8)
                                      : int_broadcast(value);
            }
            for (int64_t step = 0; step < group_steps; ++step) {
                CodeSum part[ROWS][PANELS];
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r)
                    OCKHAM_UNROLL
                    for (int p = 0; p < PANELS; ++p) part[r][p] = code_sum_start(sum[r][p]);
                OCKHAM_UNROLL
                for (int i = 0; i < 4; ++i, weight += 64, x += 8) {
                    Codes low[PANELS], high[PANELS];
                    OCKHAM_UNROLL
                    for (int p = 0; p < PANELS; ++p) {
                        const uint8_t* from = weight + p * panel_stride;
                        ask_ahead<ROWS <= waiting_rows>(from, ahead);
                        codes(from, low[p], high[p]);
                    }
                    OCKHAM_UNROLL
                    for (int r = 0; r < ROWS; ++r)
                        dot_codes<PANELS>(part[r], low, x + r * tile.row_bytes);
                    OCKHAM_UNROLL
                    for (int r = 0; r < ROWS; ++r)
                        dot_codes<PANELS>(part[r], high, x + r * tile.row_bytes + 4);
                }
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r)
                    OCKHAM_UNROLL
                    for (int p = 0; p < PANELS; ++p)
                        sum[r][p] = code_sum_finish(sum[r][p], part[r][p]);
            }
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) {
                ask_for_scales(scale + p * scale_stride);
                const F of_weight = from_half(scale + p * scale_stride);
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r)
                    y.add(r, p, to_float(sum[r][p]), mul(broadcast(of_x[r * groups]), of_weight));
            }
            ++of_x;
            ++offset;
            scale += panel_outputs;
            if (ZEROS) zeros += panel_outputs;
        }
        y.finish(tile, row, panel, range.last);
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

// What the weights of one block may take of the second-level cache.
constexpr int64_t range_bytes = 128 << 10;

// `multiple`: ranges of K are cut at multiples of so many steps.
template <class Format>
static void walk(const Tile& tile, int64_t row_begin, int64_t row_end, int64_t panel_begin,
                 int64_t panel_end, int64_t multiple) {
    constexpr int most_rows = Format::rows;
    const int64_t rows = row_end - row_begin;
    const int64_t steps = (tile.matrix.inputs + Format::step_inputs - 1) / Format::step_inputs;
    // Blocks of equal numbers of rows: 13 rows are faster as 7 + 6 than as 12 + 1.
    const int64_t blocks = (rows + most_rows - 1) / most_rows;
    const int panels = Format::panels((rows + blocks - 1) / blocks);
    // Weights are read again by the second block of rows and should still be in the cache then; with
    // a single block there is nothing to gain.
    int64_t range_steps = steps;
    if (rows > most_rows)
        range_steps = (range_bytes / (Format::step_bytes * panels) + multiple - 1) / multiple * multiple;
    for (int64_t panel = panel_begin; panel < panel_end;) {
        const bool wide = panels == 2 && panel + 2 <= panel_end;
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

// For the kinds of blocks.h: in block_kernels.h.
static void block_tile(const PackedMatrix& matrix, const PreparedInput& input, int64_t row_begin,
                       int64_t row_end, int64_t panel_begin, int64_t panel_end, float* y,
                       int64_t y_stride, const float* bias);
static void prepare_block_row(const PreparedInput& input, int64_t row, const float* x);

static void linear_tile(const PackedMatrix& matrix, const PreparedInput& input, int64_t row_begin,
                        int64_t row_end, int64_t panel_begin, int64_t panel_end, float* y,
                        int64_t y_stride, const float* bias) {
    if (row_begin >= row_end) return;
    const Tile tile{matrix, input, input.form.row_bytes(), y, y_stride, bias};
    switch (matrix.kind) {
        case Kind::fp32:
            return walk<Fp32>(tile, row_begin, row_end, panel_begin, panel_end, 1);
        case Kind::bf16:
            return walk<Bf16>(tile, row_begin, row_end, panel_begin, panel_end, 1);
        case Kind::int8:
            return (matrix.group ? walk<Int8<true>> : walk<Int8<false>>)(
                tile, row_begin, row_end, panel_begin, panel_end, 1);
        case Kind::int4:
            return (matrix.zero ? walk<Int4<true>> : walk<Int4<false>>)(
                tile, row_begin, row_end, panel_begin, panel_end, matrix.group / 32);
        default:
            return block_tile(matrix, input, row_begin, row_end, panel_begin, panel_end, y, y_stride,
                              bias);
    }
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE
