// Products with matrices of blocks: see blocks.h. Included after a simd_*.h.
#pragma once

#include <utility>

#include "kernels/linear_kernels.h"
#include "kinds/block_lanes.h"
#include "kinds/blocks.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

template <bool WAITS>
OCKHAM_INLINE void ask_for_block(const uint8_t* from, int64_t bytes) {
    OCKHAM_UNROLL
    for (int64_t line = 0; line < bytes; line += 64) {
        if (WAITS) {
            prefetch(from + line + 4096);
        } else {
            prefetch_far(from + line + 6144);
            prefetch(from + line + 768);
        }
    }
}

// Codes of the quad 2 * UNIT and the next of a step.
template <int BITS, int UNIT>
OCKHAM_INLINE void step_codes(const uint8_t* step, Codes& low, Codes& high) {
    codes(step + UNIT * 64, low, high);
    if constexpr (BITS > 4) {
        constexpr int width = BITS - 4, quads = 8 / width;
        const uint8_t* plane = step + 256 + 2 * UNIT / quads * 64;
        low = with_high<2 * UNIT % quads * width, width>(low, plane);
        high = with_high<(2 * UNIT + 1) % quads * width, width>(high, plane);
    }
}

// part[r][p] += the products of the codes of a unit with row r's values, which begin at x.
// `stride`: bytes from one panel's blocks to the next's.
template <int BITS, int UNIT, int ROWS, int PANELS>
OCKHAM_INLINE void dot_unit(CodeSum (&part)[ROWS][PANELS], const uint8_t* step, int64_t stride,
                            const uint8_t* x, int64_t row_bytes) {
    Codes low[PANELS], high[PANELS];
    OCKHAM_UNROLL
    for (int p = 0; p < PANELS; ++p) step_codes<BITS, UNIT>(step + p * stride, low[p], high[p]);
    OCKHAM_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        const CodeQuad wide = code_quad(x + r * row_bytes + UNIT * 8);
        OCKHAM_UNROLL
        for (int p = 0; p < PANELS; ++p) part[r][p] = dot_codes(part[r][p], low[p], wide);
    }
    OCKHAM_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        const CodeQuad wide = code_quad(x + r * row_bytes + UNIT * 8 + 4);
        OCKHAM_UNROLL
        for (int p = 0; p < PANELS; ++p) part[r][p] = dot_codes(part[r][p], high[p], wide);
    }
}
template <int BITS, int FIRST, int ROWS, int PANELS, int... UNIT>
OCKHAM_INLINE void dot_units(CodeSum (&part)[ROWS][PANELS], const uint8_t* step, int64_t stride,
                             const uint8_t* x, int64_t row_bytes,
                             std::integer_sequence<int, UNIT...>) {
    (dot_unit<BITS, FIRST + UNIT>(part, step, stride, x, row_bytes), ...);
}

// sum[r][p] += the products of a step's codes of BITS bits.
template <int BITS, int ROWS, int PANELS, int FIRST = 0>
OCKHAM_INLINE void dot_step(I (&sum)[ROWS][PANELS], const uint8_t* step, int64_t stride,
                            const uint8_t* x, int64_t row_bytes) {
    if constexpr (BITS == 8) {
        OCKHAM_UNROLL
        for (int q = 0; q < 8; ++q) {
            QuadWeights weights[PANELS];
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) weights[p] = quad_weights(step + p * stride + q * 64);
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                const Quad wide = quad(x + r * row_bytes + q * 4);
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p) sum[r][p] = dot_quad(sum[r][p], weights[p], wide);
            }
        }
    } else if constexpr (FIRST < 4) {
        constexpr int units = code_sum_quads(BITS) / 2;
        CodeSum part[ROWS][PANELS];
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) part[r][p] = code_sum_start(sum[r][p]);
        dot_units<BITS, FIRST>(part, step, stride, x, row_bytes,
                               std::make_integer_sequence<int, units>{});
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) sum[r][p] = code_sum_finish(sum[r][p], part[r][p]);
        dot_step<BITS, ROWS, PANELS, FIRST + units>(sum, step, stride, x, row_bytes);
    }
}

// Blocks of 32 inputs, one scale each: a step is a block. `Kind` has a `shape`.
template <class Kind>
struct Flat : FlatBlock {
    static constexpr BlockShape shape = Kind::shape;

    template <int ROWS, int PANELS>
    static void block(const Tile& tile, int64_t row, int64_t panel, Range range) {
        const int64_t groups = tile.matrix.inputs / shape.inputs, stride = groups * shape.bytes();
        const uint8_t* block = static_cast<const uint8_t*>(tile.matrix.weight) + panel * stride +
                               range.begin * shape.bytes();
        const uint8_t* x = tile.values(row) + range.begin * shape.inputs;
        const float* scale = tile.input.scales + row * groups + range.begin;
        const int32_t* offset = tile.input.offsets + row * groups + range.begin;
        Partial<ROWS, PANELS> y(tile, row, panel, range.first);
        for (int64_t i = range.begin; i < range.end; ++i) {
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p)
                ask_for_block<ROWS <= waiting_rows>(block + p * stride, shape.bytes());
            I sum[ROWS][PANELS];
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r)
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p)
                    sum[r][p] = int_broadcast(shape.minima ? 0 : offset[r * groups]);
            dot_step<shape.bits>(sum, block, stride, x, tile.row_bytes);
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) {
                const uint16_t* halves =
                    reinterpret_cast<const uint16_t*>(block + p * stride + shape.halves_at());
                const F d = from_half(halves);
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r)
                    y.add(r, p, to_float(sum[r][p]), mul(broadcast(scale[r * groups]), d));
                if constexpr (shape.minima) {
                    const F m = from_half(halves + 16);
                    OCKHAM_UNROLL
                    for (int r = 0; r < ROWS; ++r) {
                        float total;
                        __builtin_memcpy(&total, offset + r * groups, 4);
                        y.add(r, p, broadcast(total), m);
                    }
                }
            }
            block += shape.bytes();
            x += shape.inputs;
            ++scale;
            ++offset;
        }
        y.finish(tile, row, panel, range.last);
    }
};

// Blocks of 256 inputs whose groups have factors: a step is a block, whose sums are exact.
template <class Kind>
struct Nested : NestedBlock {
    static constexpr BlockShape shape = Kind::shape;
    static constexpr int group_units = shape.scale_group / 8, step_groups = 4 / group_units;
    static constexpr int most_units = code_sum_quads(shape.bits) / 2;
    static constexpr int part_units = group_units < most_units ? group_units : most_units;
    static constexpr int64_t words = shape.minima ? 4 : 16;  // of PreparedInput::offsets

    // total[r][p] += the units of a step from FIRST on. `scales`: of the step; `offsets`: of its groups.
    template <int FIRST, int ROWS, int PANELS>
    OCKHAM_INLINE void add_units(I (&total)[ROWS][PANELS], const uint8_t* step,
                                 const uint8_t* scales, int64_t stride, const uint8_t* x,
                                 int64_t row_bytes, const int32_t* offsets, int64_t offset_stride) {
        if constexpr (FIRST < 4) {
            constexpr int group = FIRST / group_units;
            PartScale scale[PANELS];
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) {
                const uint8_t* from = scales + p * stride + group * 16;
                scale[p] = shape.minima ? unsigned_scale(from) : signed_scale(from);
            }
            CodeSum part[ROWS][PANELS];
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r)
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p)
                    part[r][p] = shape.minima || FIRST % group_units
                                     ? code_sum_start(int_broadcast(0))
                                     : scaled_start(total[r][p], offsets[r * offset_stride + group],
                                                    scale[p]);
            dot_units<shape.bits, FIRST>(part, step, stride, x, row_bytes,
                                         std::make_integer_sequence<int, part_units>{});
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r)
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p)
                    total[r][p] = add_scaled(total[r][p], part[r][p], scale[p]);
            add_units<FIRST + part_units>(total, step, scales, stride, x, row_bytes, offsets,
                                          offset_stride);
        }
    }

    template <int ROWS, int PANELS>
    static void block(const Tile& tile, int64_t row, int64_t panel, Range range) {
        const int64_t groups = tile.matrix.inputs / shape.inputs, stride = groups * shape.bytes();
        const uint8_t* block = static_cast<const uint8_t*>(tile.matrix.weight) + panel * stride +
                               range.begin * shape.bytes();
        const uint8_t* x = tile.values(row) + range.begin * shape.inputs;
        const float* scale = tile.input.scales + row * groups + range.begin;
        const int32_t* offset = tile.input.offsets + (row * groups + range.begin) * words;
        Partial<ROWS, PANELS> y(tile, row, panel, range.first);
        for (int64_t i = range.begin; i < range.end; ++i) {
            I total[ROWS][PANELS];
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r)
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p) total[r][p] = int_broadcast(0);
            for (int64_t s = 0; s < 8; ++s) {
                const uint8_t* step = block + s * 64 * shape.bits;
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p)
                    ask_for_block<ROWS <= waiting_rows>(step + p * stride, shape.bytes() / 8);
                add_units<0>(total, step, block + shape.scales_at() + s * step_groups * 16, stride,
                             x + s * 32, tile.row_bytes, offset + s * step_groups, groups * words);
            }
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) {
                const uint8_t* own = block + p * stride;
                const uint16_t* halves = reinterpret_cast<const uint16_t*>(own + shape.halves_at());
                const F d = from_half(halves);
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r)
                    y.add(r, p, to_float(total[r][p]), mul(broadcast(scale[r * groups]), d));
                if constexpr (shape.minima) {
                    const F m = from_half(halves + 16);
                    I minima[4];
                    OCKHAM_UNROLL
                    for (int pair = 0; pair < 4; ++pair)
                        minima[pair] = byte_pairs(own + shape.minima_at() + pair * 32);
                    OCKHAM_UNROLL
                    for (int r = 0; r < ROWS; ++r) {
                        I sum = int_broadcast(0);
                        OCKHAM_UNROLL
                        for (int pair = 0; pair < 4; ++pair)
                            sum = dot_pairs(sum, minima[pair], offset[r * groups * words + pair]);
                        y.add(r, p, to_float(sum), mul(broadcast(-scale[r * groups]), m));
                    }
                }
            }
            block += shape.bytes();
            x += shape.inputs;
            ++scale;
            offset += words;
        }
        y.finish(tile, row, panel, range.last);
    }
};

// As walk() of linear_kernels.h, with K in whole blocks.
template <class Format>
static void walk_blocks(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
                        int64_t y_stride, const float* bias) {
    constexpr int most_rows = Format::rows;
    const int64_t row_begin = area.row_begin, rows = area.row_end - row_begin;
    const int64_t parts = (rows + most_rows - 1) / most_rows;
    if (rows <= 0) return;
    const Tile tile{matrix, input, input.form.row_bytes(), y, y_stride, bias};
    const int panels = Format::panels((rows + parts - 1) / parts);
    const int64_t steps = tile.matrix.inputs / Format::shape.inputs;
    const int64_t at_once = parts > 1 ? range_bytes / (Format::shape.bytes() * panels) : steps;
    for (int64_t panel = area.panel_begin; panel < area.panel_end;) {
        const bool wide = panels == 2 && panel + 2 <= area.panel_end;
        const Block* table = wide ? Blocks<Format, 2>::table : Blocks<Format, 1>::table;
        for (int64_t begin = 0; begin < steps; begin += at_once) {
            const int64_t end = begin + at_once < steps ? begin + at_once : steps;
            const Range range{begin, end, begin == 0, end == steps};
            for (int64_t part = 0; part < parts; ++part) {
                const int64_t first = row_begin + rows * part / parts;
                const int64_t last = row_begin + rows * (part + 1) / parts;
                table[last - first - 1](tile, first, panel, range);
            }
        }
        panel += wide ? 2 : 1;
    }
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE
