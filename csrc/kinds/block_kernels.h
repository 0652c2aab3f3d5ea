// Products with matrices of blocks: see blocks.h. Included after a simd_*.h.
#pragma once

#include <utility>

#include "kernels/linear_kernels.h"
#include "kinds/block_lanes.h"
#include "kinds/blocks.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

// Asks for what comes after step `step` of a block of so many bytes, which has `steps`: for its share of
// the whole, since scales stand behind all codes.
template <bool WAITS>
OCKHAM_INLINE void ask_for_step(const uint8_t* block, int64_t step, int64_t steps, int64_t block_bytes) {
    const int64_t bytes = block_bytes / steps;
    const uint8_t* from = block + step * bytes;
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
OCKHAM_INLINE void stored_codes(const uint8_t* step, Codes& low, Codes& high) {
    if constexpr (BITS == 8) {
        low = byte_codes(step + UNIT * 128);
        high = byte_codes(step + UNIT * 128 + 64);
    } else if constexpr (BITS < 4) {
        constexpr int at = UNIT % 2 * 4;
        low = plane_codes<at, 2>(step + UNIT / 2 * 64);
        high = plane_codes<at + 2, 2>(step + UNIT / 2 * 64);
        if constexpr (BITS == 3) {
            low = with_high<2 * UNIT, 1, 2>(low, step + 128);
            high = with_high<2 * UNIT + 1, 1, 2>(high, step + 128);
        }
    } else {
        codes(step + UNIT * 64, low, high);
        if constexpr (BITS > 4) {
            constexpr int width = BITS - 4, quads = 8 / width;
            const uint8_t* plane = step + 256 + 2 * UNIT / quads * 64;
            low = with_high<2 * UNIT % quads * width, width, 4>(low, plane);
            high = with_high<(2 * UNIT + 1) % quads * width, width, 4>(high, plane);
        }
    }
}

// What is multiplied of them: the codes, or what they stand for.
template <class Kind, int UNIT>
OCKHAM_INLINE void step_codes(const uint8_t* step, Codes& low, Codes& high) {
    constexpr BlockShape shape = Kind::shape;
    stored_codes<shape.bits, UNIT>(step, low, high);
    if constexpr (shape.levels != nullptr) {
        low = looked_up(shape.levels->bytes, low);
        high = looked_up(shape.levels->bytes, high);
    }
}

// part[r][p] += the products of the codes of a unit with row r's values, which begin at x.
// `stride`: bytes from one panel's blocks to the next's.
template <class Kind, int UNIT, int ROWS, int PANELS>
OCKHAM_INLINE void dot_unit(CodeSum (&part)[ROWS][PANELS], const uint8_t* step, int64_t stride,
                            const uint8_t* x, int64_t row_bytes) {
    Codes low[PANELS], high[PANELS];
    OCKHAM_UNROLL
    for (int p = 0; p < PANELS; ++p) step_codes<Kind, UNIT>(step + p * stride, low[p], high[p]);
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
template <class Kind, int FIRST, int ROWS, int PANELS, int... UNIT>
OCKHAM_INLINE void dot_units(CodeSum (&part)[ROWS][PANELS], const uint8_t* step, int64_t stride,
                             const uint8_t* x, int64_t row_bytes,
                             std::integer_sequence<int, UNIT...>) {
    (dot_unit<Kind, FIRST + UNIT>(part, step, stride, x, row_bytes), ...);
}

// The same for codes that only sums in 32 bits can take.
template <class Kind, int UNIT, int ROWS, int PANELS>
OCKHAM_INLINE void dot_wide_unit(I (&sum)[ROWS][PANELS], const uint8_t* step, int64_t stride,
                                 const uint8_t* x, int64_t row_bytes) {
    using Of = Wide<Kind::shape.top()>;
    typename Of::Weights low[PANELS], high[PANELS];
    OCKHAM_UNROLL
    for (int p = 0; p < PANELS; ++p) {
        Codes low_codes, high_codes;
        step_codes<Kind, UNIT>(step + p * stride, low_codes, high_codes);
        low[p] = Of::of(low_codes);
        high[p] = Of::of(high_codes);
    }
    OCKHAM_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        const auto wide = Of::values(x + r * row_bytes + UNIT * 8);
        OCKHAM_UNROLL
        for (int p = 0; p < PANELS; ++p) sum[r][p] = Of::dot(sum[r][p], low[p], wide);
    }
    OCKHAM_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        const auto wide = Of::values(x + r * row_bytes + UNIT * 8 + 4);
        OCKHAM_UNROLL
        for (int p = 0; p < PANELS; ++p) sum[r][p] = Of::dot(sum[r][p], high[p], wide);
    }
}
template <class Kind, int FIRST, int ROWS, int PANELS, int... UNIT>
OCKHAM_INLINE void dot_wide_units(I (&sum)[ROWS][PANELS], const uint8_t* step, int64_t stride,
                                  const uint8_t* x, int64_t row_bytes,
                                  std::integer_sequence<int, UNIT...>) {
    (dot_wide_unit<Kind, FIRST + UNIT>(sum, step, stride, x, row_bytes), ...);
}

// sum[r][p] += the products of a step's codes.
template <class Kind, int ROWS, int PANELS, int FIRST = 0>
OCKHAM_INLINE void dot_step(I (&sum)[ROWS][PANELS], const uint8_t* step, int64_t stride,
                            const uint8_t* x, int64_t row_bytes) {
    constexpr int step_units = Kind::shape.step_inputs() / 8;
    constexpr int most_units = code_sum_quads(Kind::shape.top()) / 2;
    constexpr int units = most_units < step_units ? most_units : step_units;
    if constexpr (units == 0) {
        dot_wide_units<Kind, 0>(sum, step, stride, x, row_bytes,
                                std::make_integer_sequence<int, step_units>{});
    } else if constexpr (FIRST < step_units) {
        CodeSum part[ROWS][PANELS];
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) part[r][p] = code_sum_start(sum[r][p]);
        dot_units<Kind, FIRST>(part, step, stride, x, row_bytes,
                               std::make_integer_sequence<int, units>{});
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) sum[r][p] = code_sum_finish(sum[r][p], part[r][p]);
        dot_step<Kind, ROWS, PANELS, FIRST + units>(sum, step, stride, x, row_bytes);
    }
}

// A block's d of 16 outputs.
template <class Kind>
OCKHAM_INLINE F scale_of(const uint8_t* block) {
    constexpr BlockShape shape = Kind::shape;
    if constexpr (shape.scale == BlockScale::exponent) {
        return from_exponents(block + shape.halves_at());
    } else if constexpr (shape.scale == BlockScale::small) {
        return from_small(block + shape.halves_at());
    } else {
        const F d = from_half(reinterpret_cast<const uint16_t*>(block + shape.halves_at()));
        return shape.halvings ? mul(d, broadcast(1.0f / (1 << shape.halvings))) : d;
    }
}
// Its m.
template <class Kind>
OCKHAM_INLINE F minimum_of(const uint8_t* block) {
    return from_half(reinterpret_cast<const uint16_t*>(block + Kind::shape.halves_at()) + 16);
}

// Blocks of one scale each. `Kind` has a `shape`.
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
        [[maybe_unused]] const float* divisors = nullptr;
        if constexpr (shape.divisors)
            divisors = static_cast<const float*>(tile.matrix.scale) + panel * panel_outputs;
        Partial<ROWS, PANELS> y(tile, row, panel, range.first);
        for (int64_t i = range.begin; i < range.end; ++i) {
            I sum[ROWS][PANELS];
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r)
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p)
                    sum[r][p] = int_broadcast(shape.minima ? 0 : offset[r * groups]);
            constexpr int64_t steps = shape.steps();
            for (int64_t s = 0; s < steps; ++s) {
                const uint8_t* step = block + s * 64 * shape.bits;
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p)
                    ask_for_step<ROWS <= waiting_rows>(block + p * stride, s, steps, shape.bytes());
                dot_step<Kind>(sum, step, stride, x + s * 32, tile.row_bytes);
            }
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) {
                F d = scale_of<Kind>(block + p * stride);
                if constexpr (shape.divisors) d = divided(d, load(divisors + p * panel_outputs));
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r)
                    y.add(r, p, to_float(sum[r][p]), mul(broadcast(scale[r * groups]), d));
                if constexpr (shape.minima) {
                    const F m = minimum_of<Kind>(block + p * stride);
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
    static constexpr int most_units = code_sum_quads(shape.top()) / 2;
    static constexpr bool wide = most_units == 0;
    static constexpr int part_units = !wide && most_units < group_units ? most_units : group_units;
    static constexpr int pairs = shape.minima ? shape.groups() / 2 : 0;
    static constexpr int64_t words = shape.minima ? pairs : 16;  // of PreparedInput::offsets

    // What is added for a group's zero; `offsets` are those of a step, each of 16 inputs.
    OCKHAM_INLINE int32_t offset_of(const int32_t* offsets, int group) {
        return group_units == 2 ? offsets[group] : offsets[0] + offsets[1];
    }

    // total[r][p] += the units of a step from FIRST on. `scales`: of the step; `offsets`: of its inputs.
    template <int FIRST, int ROWS, int PANELS>
    OCKHAM_INLINE void add_units(I (&total)[ROWS][PANELS], const uint8_t* step,
                                 const uint8_t* scales, int64_t stride, const uint8_t* x,
                                 int64_t row_bytes, const int32_t* offsets, int64_t offset_stride) {
        if constexpr (FIRST < 4) {
            constexpr int group = FIRST / group_units;
            constexpr auto units = std::make_integer_sequence<int, part_units>{};
            PartScale scale[PANELS];
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) {
                const uint8_t* from = scales + p * stride + group * 16;
                scale[p] = shape.signed_scales ? signed_scale(from) : unsigned_scale(from);
            }
            if constexpr (wide) {
                I sum[ROWS][PANELS];
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r)
                    OCKHAM_UNROLL
                    for (int p = 0; p < PANELS; ++p)
                        sum[r][p] = int_broadcast(offset_of(offsets + r * offset_stride, group));
                dot_wide_units<Kind, FIRST>(sum, step, stride, x, row_bytes, units);
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r)
                    OCKHAM_UNROLL
                    for (int p = 0; p < PANELS; ++p)
                        total[r][p] = add_wide(total[r][p], sum[r][p], scale[p]);
            } else {
                CodeSum part[ROWS][PANELS];
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r)
                    OCKHAM_UNROLL
                    for (int p = 0; p < PANELS; ++p)
                        part[r][p] =
                            shape.minima || FIRST % group_units
                                ? code_sum_start(int_broadcast(0))
                                : scaled_start(total[r][p],
                                               offset_of(offsets + r * offset_stride, group), scale[p]);
                dot_units<Kind, FIRST>(part, step, stride, x, row_bytes, units);
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r)
                    OCKHAM_UNROLL
                    for (int p = 0; p < PANELS; ++p)
                        total[r][p] = add_scaled(total[r][p], part[r][p], scale[p]);
            }
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
                    ask_for_step<ROWS <= waiting_rows>(block + p * stride, s, 8, shape.bytes());
                add_units<0>(total, step, block + shape.scales_at() + s * step_groups * 16, stride,
                             x + s * 32, tile.row_bytes, offset + s * 2, groups * words);
            }
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) {
                const uint8_t* own = block + p * stride;
                const F d = scale_of<Kind>(own);
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r)
                    y.add(r, p, to_float(total[r][p]), mul(broadcast(scale[r * groups]), d));
                if constexpr (shape.minima) {
                    const F m = minimum_of<Kind>(own);
                    I minima[pairs];
                    OCKHAM_UNROLL
                    for (int pair = 0; pair < pairs; ++pair)
                        minima[pair] = byte_pairs(own + shape.minima_at() + pair * 32);
                    OCKHAM_UNROLL
                    for (int r = 0; r < ROWS; ++r) {
                        I sum = int_broadcast(0);
                        OCKHAM_UNROLL
                        for (int pair = 0; pair < pairs; ++pair)
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
    const int64_t steps = used_steps(tile, Format::shape.inputs, 1);
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
