// Products with matrices of blocks: see blocks.h. Included by csrc/isa/*.cpp after a
// simd_*.h, linear_kernels.h and prepare_kernels.h.
#pragma once

#include <utility>

#include "kernels/block_lanes.h"
#include "kernels/blocks.h"

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

// q8_0, q5_0, q4_1, q5_1: a step is a block of 32 inputs.
template <Kind KIND>
struct Flat : FlatBlock {
    static constexpr BlockShape shape = block_shape(KIND);

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

// q4_k, q5_k, q6_k: a step is a block of 256 inputs, whose sums are exact.
template <Kind KIND>
struct Nested : NestedBlock {
    static constexpr BlockShape shape = block_shape(KIND);
    static constexpr int group_units = shape.scale_group / 8, step_groups = 4 / group_units;
    static constexpr int most_units = code_sum_quads(shape.bits) / 2;
    static constexpr int part_units = group_units < most_units ? group_units : most_units;
    static constexpr int64_t words = block_offset_words(block_form(KIND));

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
static void walk_blocks(const Tile& tile, int64_t row_begin, int64_t row_end, int64_t panel_begin,
                        int64_t panel_end) {
    constexpr int most_rows = Format::rows;
    const int64_t rows = row_end - row_begin, parts = (rows + most_rows - 1) / most_rows;
    const int panels = Format::panels((rows + parts - 1) / parts);
    const int64_t steps = tile.matrix.inputs / Format::shape.inputs;
    const int64_t at_once = parts > 1 ? range_bytes / (Format::shape.bytes() * panels) : steps;
    for (int64_t panel = panel_begin; panel < panel_end;) {
        const bool wide = panels == 2 && panel + 2 <= panel_end;
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

static void block_tile(const PackedMatrix& matrix, const PreparedInput& input, int64_t row_begin,
                       int64_t row_end, int64_t panel_begin, int64_t panel_end, float* y,
                       int64_t y_stride, const float* bias) {
    if (row_begin >= row_end) return;
    const Tile tile{matrix, input, input.form.row_bytes(), y, y_stride, bias};
    const auto walk = [&](auto format) {
        walk_blocks<decltype(format)>(tile, row_begin, row_end, panel_begin, panel_end);
    };
    switch (matrix.kind) {
        case Kind::q8_0:
            return walk(Flat<Kind::q8_0>{});
        case Kind::q5_0:
            return walk(Flat<Kind::q5_0>{});
        case Kind::q4_1:
            return walk(Flat<Kind::q4_1>{});
        case Kind::q5_1:
            return walk(Flat<Kind::q5_1>{});
        case Kind::q4_k:
            return walk(Nested<Kind::q4_k>{});
        case Kind::q5_k:
            return walk(Nested<Kind::q5_k>{});
        default:
            return walk(Nested<Kind::q6_k>{});
    }
}

static int32_t sum_of(const int8_t* values, int count) {
    int32_t sum = 0;
    for (int i = 0; i < count; ++i) sum += values[i];
    return sum;
}

// A row in the form of blocks: what stands in `offsets` is written at block_offset_words().
static void prepare_block_row(const PreparedInput& input, int64_t row, const float* x) {
    const Kind kind = input.form.kind;
    const int64_t group = input.form.group, groups = input.form.groups();
    const int64_t words = block_offset_words(kind);
    int8_t* values = reinterpret_cast<int8_t*>(input.values + row * input.form.row_bytes());
    float* scale = input.scales + row * groups;
    int32_t* offset = input.offsets + row * groups * words;
    const int32_t zero = kind == Kind::q8_0 ? 128 : kind == Kind::q5_0 ? 16 : -1;
    for (int64_t g = 0; g < groups; ++g, x += group, values += group, ++scale, offset += words) {
        int32_t sum;
        quantise(x, group, values, scale, &sum, zero);
        if (kind == Kind::q4_k) {
            int16_t sums[8];
            for (int i = 0; i < 8; ++i) sums[i] = static_cast<int16_t>(sum_of(values + 32 * i, 32));
            __builtin_memcpy(offset, sums, sizeof sums);
        } else if (kind == Kind::q6_k) {
            for (int i = 0; i < 16; ++i) offset[i] = -32 * sum_of(values + 16 * i, 16);
        } else if (kind == Kind::q4_1) {
            const float total = static_cast<float>(sum) * *scale;
            __builtin_memcpy(offset, &total, 4);
        } else {
            *offset = sum;
        }
    }
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE
