// Groups of `group` (a multiple of 32, at most 256) consecutive k. weight: two 4-bit codes a byte,
// [P][K / 8][16][4]: byte i holds k = i in its low and k = 4 + i in its high half.
// scale: fp16 [P][K / group][16]. w = level[code] * scale, of the 16 levels below. x is quantised by row
// and group (inputs.h). For each group: y = fma(float(sum of a * level[code]), scale_x * scale_w, y) from
// y = 0 (portable code rounds the product first).
//
// A shuffle of bytes looks up 16 levels in a register at once, so a code costs one instruction more than
// in a kind whose codes are multiplied themselves.
#include "kernels/linear.h"

namespace ockham {

// The quantiles of ockham/weights/nf4.py.
static constexpr int8_t nf4_levels[16] = {-127, -88, -67, -50, -36, -23, -12, 0,
                                          10,   20,  31,  43,  56,  71,  92,  127};

}  // namespace ockham

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kernels/linear_kernels.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

// The levels plus 128, which products read as unsigned bytes.
struct Nf4Table {
    alignas(16) uint8_t bytes[16];
    constexpr Nf4Table() : bytes() {
        for (int i = 0; i < 16; ++i) bytes[i] = static_cast<uint8_t>(nf4_levels[i] + 128);
    }
};
static constexpr Nf4Table nf4_table;

// The levels of 64 bytes of codes: of their low halves, and of their high ones.
#if defined(__AVX512F__)
OCKHAM_INLINE void levels(const uint8_t* from, QuadWeights& low, QuadWeights& high) {
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_load_si128(reinterpret_cast<const __m128i*>(nf4_table.bytes)));
    Codes low_codes, high_codes;
    codes(from, low_codes, high_codes);
    low = _mm512_shuffle_epi8(table, low_codes);
    high = _mm512_shuffle_epi8(table, high_codes);
}
#elif defined(__AVX2__)
OCKHAM_INLINE QuadWeights widened_levels(Codes codes) {
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_load_si128(reinterpret_cast<const __m128i*>(nf4_table.bytes)));
    const __m256i a = _mm256_shuffle_epi8(table, codes.a), b = _mm256_shuffle_epi8(table, codes.b);
    const __m256i mask = _mm256_set1_epi16(0x00ff);
    return {{_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)},
            {_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8)}};
}
OCKHAM_INLINE void levels(const uint8_t* from, QuadWeights& low, QuadWeights& high) {
    Codes low_codes, high_codes;
    codes(from, low_codes, high_codes);
    low = widened_levels(low_codes);
    high = widened_levels(high_codes);
}
#else
OCKHAM_INLINE void levels(const uint8_t* from, QuadWeights& low, QuadWeights& high) {
    uint8_t low_levels[64], high_levels[64];
    for (int i = 0; i < 64; ++i) {
        low_levels[i] = nf4_table.bytes[from[i] & 15];
        high_levels[i] = nf4_table.bytes[from[i] >> 4];
    }
    low = quad_weights(low_levels);
    high = quad_weights(high_levels);
}
#endif

// A step is 32 k, because groups are multiples of that. Levels are read plus 128, so sums start at -128
// times the sum of the group's values.
struct Nf4 : QuadBlock {
    static constexpr int64_t step_inputs = 32, step_bytes = 256;

    template <int ROWS, int PANELS>
    static void block(const Tile& tile, int64_t row, int64_t panel, Range range) {
        const int64_t group_units = tile.matrix.group / 8, group_steps = tile.matrix.group / 32;
        const int64_t groups = tile.matrix.inputs / tile.matrix.group;
        const int64_t panel_stride = tile.matrix.inputs * 8;
        const uint8_t* weight = static_cast<const uint8_t*>(tile.matrix.weight) + panel * panel_stride;
        const Jump<(ROWS <= waiting_rows), PANELS> jump(weight, panel_stride);
        weight += range.begin * step_bytes;
        const uint8_t* x = tile.values(row) + range.begin * step_inputs;
        const int64_t first_group = range.begin / group_steps, group_end = range.end / group_steps;
        const uint16_t* scale = static_cast<const uint16_t*>(tile.matrix.scale) +
                                (panel * groups + first_group) * panel_outputs;
        const int64_t scale_stride = groups * panel_outputs;  // from one panel's to the next's
        const float* of_x = tile.input.scales + row * groups + first_group;
        const int32_t* offset = tile.input.offsets + row * groups + first_group;
        Partial<ROWS, PANELS> y(tile, row, panel, range.first);
        for (int64_t group = first_group; group < group_end; ++group, ++of_x, ++offset) {
            const int64_t ahead = jump.at(weight);
            I sum[ROWS][PANELS];
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                const I start = int_broadcast(offset[r * groups]);
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p) sum[r][p] = start;
            }
            for (int64_t unit = 0; unit < group_units; ++unit, weight += 64, x += 8) {
                QuadWeights low[PANELS], high[PANELS];
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p) {
                    const uint8_t* from = weight + p * panel_stride;
                    ask_ahead<ROWS <= waiting_rows>(from, ahead);
                    levels(from, low[p], high[p]);
                }
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r) dot_quads<PANELS>(sum[r], low, x + r * tile.row_bytes);
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r)
                    dot_quads<PANELS>(sum[r], high, x + r * tile.row_bytes + 4);
            }
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) {
                ask_for_scales(scale + p * scale_stride);
                const F of_weight = from_half(scale + p * scale_stride);
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r)
                    y.add(r, p, to_float(sum[r][p]), mul(broadcast(of_x[r * groups]), of_weight));
            }
            scale += panel_outputs;
        }
        y.finish(tile, row, panel, range.last);
    }
};

void nf4_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
              int64_t y_stride, const float* bias) {
    walk<Nf4>(matrix, input, area, y, y_stride, bias, matrix.group / 32);
}

// A group's scale is its largest magnitude over one of these: 127 holds that weight exactly, more clips it.
static constexpr float nf4_divisors[] = {127.0f, 119.0f, 132.0f, 138.0f, 145.0f, 154.0f};

// The codes of 16 values in units of the scale, and their levels: as many levels as there are halfway
// points below a value lie below its own.
static inline void nf4_nearest(const float* values, float inverse, float* code, float* level) {
    float unit[16];
    for (int i = 0; i < 16; ++i) {
        unit[i] = values[i] * inverse;
        code[i] = 0;
        level[i] = nf4_levels[0];
    }
    for (int n = 1; n < 16; ++n) {
        const float halfway = static_cast<float>(nf4_levels[n - 1] + nf4_levels[n]) * 0.5f;
        const float step = static_cast<float>(nf4_levels[n] - nf4_levels[n - 1]);
        for (int i = 0; i < 16; ++i) {
            code[i] += unit[i] > halfway ? 1.0f : 0.0f;
            level[i] += unit[i] > halfway ? step : 0.0f;
        }
    }
}

void nf4_quantise(const PackedMatrix& matrix, const float* row, uint8_t* codes, uint16_t* scales) {
    const int64_t group = matrix.group;
    alignas(64) float code[16], level[16];
    for (int64_t begin = 0; begin < matrix.inputs; begin += group, codes += group) {
        const float* values = row + begin;
        float most = 0;
        for (int64_t k = 0; k < group; ++k) {
            const float magnitude = __builtin_fabsf(values[k]);
            most = magnitude > most ? magnitude : most;
        }
        uint16_t best = 0;
        float best_error = __builtin_inff();
        for (const float divisor : nf4_divisors) {
            const uint16_t half = to_half(most / divisor);
            const float wide = half_value(half), inverse = wide == 0 ? 0.0f : 1.0f / wide;
            float lanes[16] = {};
            for (int64_t k = 0; k < group; k += 16) {
                nf4_nearest(values + k, inverse, code, level);
                for (int i = 0; i < 16; ++i) {
                    const float error = values[k + i] - level[i] * wide;
                    lanes[i] += error * error;
                }
            }
            for (int half_lanes = 8; half_lanes; half_lanes /= 2)
                for (int i = 0; i < half_lanes; ++i) lanes[i] += lanes[i + half_lanes];
            if (lanes[0] < best_error) {
                best_error = lanes[0];
                best = half;
            }
        }
        *scales++ = best;
        const float wide = half_value(best), inverse = wide == 0 ? 0.0f : 1.0f / wide;
        for (int64_t k = 0; k < group; k += 16) {
            nf4_nearest(values + k, inverse, code, level);
            for (int i = 0; i < 16; ++i) codes[k + i] = static_cast<uint8_t>(code[i]);
        }
    }
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#else

#include <stdexcept>

#include "isa/each.h"
#include "kernels/halves.h"
#include "kernels/inputs.h"
#include "kinds/kind.h"
#include "kinds/lay_out.h"

namespace ockham {

OCKHAM_DECLARE(TileFunction nf4_tile);
OCKHAM_DECLARE(QuantiseFunction nf4_quantise);

namespace {

int64_t groups(const PackedMatrix& matrix) { return matrix.inputs / matrix.group; }

void check(const PackedMatrix& matrix, bool) {
    const int64_t group = matrix.group;
    if (group < 32 || group > 256 || group % 32 || matrix.inputs % group)
        throw std::invalid_argument("nf4 needs groups of a multiple of 32 up to 256 inputs, which "
                                    "divides the number of inputs.");
}

std::vector<PackedArray> arrays(const PackedMatrix& matrix, bool) {
    const int64_t panels = matrix.panels();
    return {{"weight", "uint8", {panels, matrix.inputs / 8, panel_outputs, 4}},
            {"scale", "float16", {panels, groups(matrix), panel_outputs}}};
}

std::vector<RowField> fields(const PackedMatrix& matrix) {
    return {{"codes", matrix.inputs}, {"scales", groups(matrix) * 2}};
}

InputForm input(const PackedMatrix& matrix) {
    return {&quantised_input, matrix.inputs, matrix.group, 128};
}

void pack_panel(const PackedMatrix& matrix, const uint8_t* const* fields, PanelMemory to) {
    lay_words(fields[0], matrix.inputs, matrix.inputs / 8, to.weight,
              [](const uint8_t* row, int64_t unit) { return nibbles(row + unit * 8); });
    lay_items(fields[1], groups(matrix) * 2, groups(matrix), 2, to.scale);
}

void unpack_row(const PackedMatrix& matrix, int64_t output, float* row) {
    const int64_t panel = output / panel_outputs, lane = output % panel_outputs;
    const uint8_t* weight = static_cast<const uint8_t*>(matrix.weight) + panel * matrix.inputs * 8;
    for (int64_t k = 0; k < matrix.inputs; ++k) {
        const int64_t at = (panel * groups(matrix) + k / matrix.group) * panel_outputs + lane;
        const uint8_t both = weight[(k / 8 * panel_outputs + lane) * 4 + k % 4];
        row[k] = nf4_levels[k % 8 < 4 ? both & 15 : both >> 4] *
                 from_half(static_cast<const uint16_t*>(matrix.scale) + at);
    }
}

const LinearKind kind = {"nf4",      check,
                         arrays,     fields,
                         input,      pack_panel,
                         unpack_row, OCKHAM_EACH_ISA(nf4_tile),
                         OCKHAM_EACH_ISA(nf4_quantise)};
const AddedKind added{kind};

}  // namespace

}  // namespace ockham

#endif
