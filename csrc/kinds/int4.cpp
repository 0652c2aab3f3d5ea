// Groups of `group` (a multiple of 32, at most 256) consecutive k. weight: two 4-bit codes a byte,
// [P][K / 8][16][4]: byte i holds k = i in its low and k = 4 + i in its high half.
// scale: fp16 [P][K / group][16]. w = (code - zero) * scale, zero = 8, or uint8 [P][K / group][16] where
// there are zero points. x is quantised by row and group (inputs.h).
// For each group: y = fma(float(sum of a * (code - zero)), scale_x * scale_w, y) from y = 0 (portable
// code rounds the product first).
#include "kernels/linear.h"

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kernels/linear_kernels.h"
#include "kernels/tiles.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

// A step is 32 k, because groups are multiples of that.
template <bool ZEROS>
struct Int4 : CodeBlock {
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

void int4_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    (matrix.zero ? walk<Int4<true>> : walk<Int4<false>>)(matrix, input, area, y, y_stride, bias,
                                                         matrix.group / 32);
}

// The scale of a group is -extreme / d for one of these d, where `extreme` is the weight of largest
// magnitude: d = 8 puts it exactly at code 0, less leaves room, more clips it.
static const float int4_divisors[] = {8.0f, 7.0f, 7.4f, 7.7f, 8.3f, 8.7f, 9.2f, 10.0f};

void int4_quantise(const PackedMatrix& matrix, const float* row, uint8_t* codes, uint16_t* scales) {
    const int64_t group = matrix.group;
    const I least = int_broadcast(-8), most = int_broadcast(7);
    for (int64_t begin = 0; begin < matrix.inputs; begin += group) {
        const float* values = row + begin;
        float extreme = 0;
        for (int64_t k = 0; k < group; ++k)
            if (__builtin_fabsf(values[k]) > __builtin_fabsf(extreme)) extreme = values[k];
        uint16_t best = 0;
        float best_error = __builtin_inff();
        for (const float divisor : int4_divisors) {
            const uint16_t half = to_half(extreme / -divisor);
            const float wide = half_value(half);
            const F inverse = broadcast(wide == 0 ? 0.0f : 1.0f / wide);
            const F minus = broadcast(-wide);
            F errors = zero();
            for (int64_t k = 0; k < group; k += 16) {
                const F value = load(values + k);
                const I code = int_min(int_max(to_int(mul(value, inverse)), least), most);
                const F error = add(value, mul(to_float(code), minus));
                errors = add(errors, mul(error, error));
            }
            alignas(64) float lanes[16];
            store(lanes, errors);
            for (int half_lanes = 8; half_lanes; half_lanes /= 2)
                for (int i = 0; i < half_lanes; ++i) lanes[i] += lanes[i + half_lanes];
            if (lanes[0] < best_error) {
                best_error = lanes[0];
                best = half;
            }
        }
        *scales++ = best;
        const float wide = half_value(best);
        const F inverse = broadcast(wide == 0 ? 0.0f : 1.0f / wide);
        const I middle = int_broadcast(8);
        for (int64_t k = 0; k < group; k += 16, codes += 16) {
            const I code = int_min(int_max(to_int(mul(load(values + k), inverse)), least), most);
            store_int8(reinterpret_cast<int8_t*>(codes), int_add(code, middle));
        }
    }
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#ifdef OCKHAM_TILES

namespace ockham::amx {

static void unpack_int4(const PackedMatrix& matrix, int64_t panel, int64_t begin, int64_t end,
                        const Unpacked& to) {
    using namespace avx512;
    const int64_t first = panel * (matrix.inputs / matrix.group) + begin;
    const int64_t group_bytes = matrix.group * panel_outputs / 2;
    const uint8_t* weight = static_cast<const uint8_t*>(matrix.weight) + first * group_bytes;
    const uint16_t* scale = static_cast<const uint16_t*>(matrix.scale) + first * panel_outputs;
    const uint8_t* zeros = static_cast<const uint8_t*>(matrix.zero) + first * panel_outputs;
    int8_t* weights = to.weights;
    __m512i zero = _mm512_set1_epi8(8);
    for (int64_t g = 0; g < end - begin; ++g) {
        store(to.scales + g * panel_outputs, from_half(scale + g * panel_outputs));
        if (matrix.zero) {  // of an output, for its four inputs
            const void* own = zeros + g * panel_outputs;
            zero = _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(own)));
            zero = _mm512_mullo_epi32(zero, _mm512_set1_epi32(0x01010101));
        }
        for (int64_t i = 0; i < group_bytes; i += 64, weight += 64, weights += 128) {
            Codes low, high;
            ask_ahead<false>(weight, 0);
            codes(weight, low, high);
            _mm512_store_si512(weights, _mm512_sub_epi8(low, zero));
            _mm512_store_si512(weights + 64, _mm512_sub_epi8(high, zero));
        }
    }
}

// Whether a code less its zero point is an int8 everywhere in some panels. (No format that we know has
// zero points above 16.)
static bool zeros_fit(const PackedMatrix& matrix, int64_t panel_begin, int64_t panel_end) {
    if (!matrix.zero) return true;
    const int64_t panel_zeros = matrix.inputs / matrix.group * panel_outputs;
    const uint8_t* zeros = static_cast<const uint8_t*>(matrix.zero);
    uint8_t most = 0;
    for (int64_t i = panel_begin * panel_zeros; i < panel_end * panel_zeros; ++i)
        most = zeros[i] > most ? zeros[i] : most;
    return most <= 128;
}

void int4_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    if (!enough(area) || !zeros_fit(matrix, area.panel_begin, area.panel_end))
        return avx512::int4_tile(matrix, input, area, y, y_stride, bias);
    const Steps steps{matrix.group, input.form.groups(), 1, Minima::none, unpack_int4};
    walk(steps, matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::amx

#endif

#else

#include <stdexcept>

#include "isa/each.h"
#include "kernels/halves.h"
#include "kernels/inputs.h"
#include "kinds/kind.h"
#include "kinds/lay_out.h"

namespace ockham {

OCKHAM_DECLARE_TILES(TileFunction int4_tile);
OCKHAM_DECLARE(QuantiseFunction int4_quantise);

namespace {

int64_t groups(const PackedMatrix& matrix) { return matrix.inputs / matrix.group; }

void check(const PackedMatrix& matrix, bool) {
    const int64_t group = matrix.group;
    if (group < 32 || group > 256 || group % 32 || matrix.inputs % group)
        throw std::invalid_argument("int4 needs groups of a multiple of 32 up to 256 inputs, which "
                                    "divides the number of inputs.");
}

std::vector<PackedArray> arrays(const PackedMatrix& matrix, bool zeros) {
    const int64_t panels = matrix.panels();
    std::vector<PackedArray> all = {
        {"weight", "uint8", {panels, matrix.inputs / 8, panel_outputs, 4}},
        {"scale", "float16", {panels, groups(matrix), panel_outputs}}};
    if (zeros) all.push_back({"zero", "uint8", {panels, groups(matrix), panel_outputs}});
    return all;
}

std::vector<RowField> fields(const PackedMatrix& matrix) {
    std::vector<RowField> all = {{"codes", matrix.inputs}, {"scales", groups(matrix) * 2}};
    if (matrix.zeros()) all.push_back({"zeros", groups(matrix)});
    return all;
}

InputForm input(const PackedMatrix& matrix) {
    return {&quantised_input, matrix.inputs, matrix.group, 8};
}

void pack_panel(const PackedMatrix& matrix, const uint8_t* const* fields, PanelMemory to) {
    lay_words(fields[0], matrix.inputs, matrix.inputs / 8, to.weight,
              [](const uint8_t* row, int64_t unit) { return nibbles(row + unit * 8); });
    lay_items(fields[1], groups(matrix) * 2, groups(matrix), 2, to.scale);
    if (matrix.zeros()) lay_items(fields[2], groups(matrix), groups(matrix), 1, to.zero);
}

void unpack_row(const PackedMatrix& matrix, int64_t output, float* row) {
    const int64_t panel = output / panel_outputs, lane = output % panel_outputs;
    const uint8_t* weight = static_cast<const uint8_t*>(matrix.weight) + panel * matrix.inputs * 8;
    for (int64_t k = 0; k < matrix.inputs; ++k) {
        const int64_t at = (panel * groups(matrix) + k / matrix.group) * panel_outputs + lane;
        const uint8_t both = weight[(k / 8 * panel_outputs + lane) * 4 + k % 4];
        const int code = k % 8 < 4 ? both & 15 : both >> 4;
        const int zero = matrix.zero ? static_cast<const uint8_t*>(matrix.zero)[at] : 8;
        row[k] = (code - zero) * from_half(static_cast<const uint16_t*>(matrix.scale) + at);
    }
}

const LinearKind kind = {"int4",     check,
                         arrays,     fields,
                         input,      pack_panel,
                         unpack_row, OCKHAM_EACH_TILES(int4_tile),
                         OCKHAM_EACH_ISA(int4_quantise)};
const AddedKind added{kind};

}  // namespace

}  // namespace ockham

#endif
