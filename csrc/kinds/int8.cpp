// Groups of 64 consecutive k, the last one filled up with weights and inputs of zero: G of them.
// weight: uint8 w + 128, [P][16 * G][16][4]. scale: fp16 [P][G][16]. Groups are rotated: the stored
// weights are a group's times the orthonormal Hadamard matrix of 64, and a group of x is multiplied by
// that matrix before it is quantised (hadamard() in hadamard_kernels.h). The product stays what it was, but
// a large value is shared out over its group, so that both sides are rounded on a finer scale (QuaRot,
// arXiv:2404.00456).
// Where PackedMatrix::group is 0, a checkpoint's own codes are held: nothing is rotated, and scale:
// float [P * 16], one for each output.
// x is quantised by row and group (inputs.h). For each group: y = fma(float(sum of a * w),
// scale_x * scale_w, y) from y = 0 (portable code rounds the product first).
#include "kernels/linear.h"

namespace ockham {
static constexpr int64_t int8_group = 64;
}

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kernels/linear_kernels.h"
#include "kernels/hadamard_kernels.h"
#include "kernels/tiles.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

// A step is a group. Weights are stored as w + 128, so sums start at -128 times the sum of the
// group's values. `GROUPED`: whether weights have a scale for each group, or one for each output.
template <bool GROUPED>
struct Int8 : QuadBlock {
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

void int8_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    (matrix.group ? walk<Int8<true>> : walk<Int8<false>>)(matrix, input, area, y, y_stride, bias, 1);
}

void int8_quantise(const PackedMatrix& matrix, const float* row, uint8_t* codes, uint16_t* scales) {
    for (int64_t begin = 0; begin < matrix.inputs; begin += int8_group, codes += int8_group) {
        const int64_t rest = matrix.inputs - begin;
        alignas(64) float values[int8_group] = {};
        __builtin_memcpy(values, row + begin, (rest < int8_group ? rest : int8_group) * sizeof(float));
        hadamard(values);
        float most = 0;
        for (const float value : values) {
            const float magnitude = __builtin_fabsf(value);
            most = magnitude > most ? magnitude : most;
        }
        const uint16_t half = to_half(most / 127.0f);
        const float wide = half_value(half);
        const F inverse = broadcast(wide == 0 ? 0.0f : 1.0f / wide);
        const I least = int_broadcast(-127), largest = int_broadcast(127);
        *scales++ = half;
        for (int64_t k = 0; k < int8_group; k += 16) {
            const I value = to_int(mul(load(values + k), inverse));
            store_int8(reinterpret_cast<int8_t*>(codes) + k, int_min(int_max(value, least), largest));
        }
    }
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#ifdef OCKHAM_TILES

namespace ockham::amx {

template <bool GROUPED>
static void unpack_int8(const PackedMatrix& matrix, int64_t panel, int64_t begin, int64_t end,
                        const Unpacked& to) {
    using namespace avx512;
    const int64_t groups = (matrix.inputs + int8_group - 1) / int8_group, first = panel * groups + begin;
    constexpr int64_t group_bytes = int8_group * panel_outputs;
    const uint8_t* weight = static_cast<const uint8_t*>(matrix.weight) + first * group_bytes;
    const __m512i middle = _mm512_set1_epi8(-128);
    for (int64_t i = 0; i < (end - begin) * group_bytes; i += 64) {
        ask_ahead<false>(weight + i, 0);
        _mm512_store_si512(to.weights + i, _mm512_xor_si512(_mm512_loadu_si512(weight + i), middle));
    }
    for (int64_t g = 0; g < end - begin; ++g)
        store(to.scales + g * panel_outputs,
              GROUPED ? from_half(static_cast<const uint16_t*>(matrix.scale) + (first + g) * panel_outputs)
                      : load(static_cast<const float*>(matrix.scale) + panel * panel_outputs));
}

void int8_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    if (!enough(area))
        return avx512::int8_tile(matrix, input, area, y, y_stride, bias);
    const Steps steps{int8_group, input.form.groups(), 1, Minima::none,
                      matrix.group ? unpack_int8<true> : unpack_int8<false>};
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

OCKHAM_DECLARE_TILES(TileFunction int8_tile);
OCKHAM_DECLARE(QuantiseFunction int8_quantise);

namespace {

int64_t groups(const PackedMatrix& matrix) { return (matrix.inputs + int8_group - 1) / int8_group; }

void check(const PackedMatrix& matrix, bool) {
    if (matrix.group != 0 && matrix.group != int8_group)
        throw std::invalid_argument("int8 has groups of " + std::to_string(int8_group) +
                                    " inputs, or 0 for one scale for each output.");
}

std::vector<PackedArray> arrays(const PackedMatrix& matrix, bool) {
    const PackedArray weight = {
        "weight", "uint8", {matrix.panels(), groups(matrix) * int8_group / 4, panel_outputs, 4}};
    if (matrix.group)
        return {weight, {"scale", "float16", {matrix.panels(), groups(matrix), panel_outputs}}};
    return {weight, {"scale", "float32", {matrix.panels() * panel_outputs}}};
}

std::vector<RowField> fields(const PackedMatrix& matrix) {
    return {{"codes", groups(matrix) * int8_group}, {"scales", matrix.group ? groups(matrix) * 2 : 4}};
}

InputForm input(const PackedMatrix& matrix) {
    return {&quantised_input, matrix.inputs, int8_group, 128, matrix.group != 0};
}

void pack_panel(const PackedMatrix& matrix, const uint8_t* const* fields, PanelMemory to) {
    const int64_t codes = groups(matrix) * int8_group;
    lay_words(fields[0], codes, codes / 4, to.weight, [](const uint8_t* row, int64_t unit) {
        return four(row + unit * 4) ^ 0x80808080;  // plus 128
    });
    if (matrix.group)
        lay_items(fields[1], groups(matrix) * 2, groups(matrix), 2, to.scale);
    else
        std::memcpy(to.scale, fields[1], panel_outputs * sizeof(float));
}

// A group of weights as they were before they were rotated: hadamard() of hadamard_kernels.h again.
void rotate_back(float* values) {
    for (int64_t half = 1; half < int8_group; half *= 2)
        for (int64_t i = 0; i < int8_group; ++i)
            if (!(i & half)) {
                const float a = values[i], b = values[i + half];
                values[i] = a + b;
                values[i + half] = a - b;
            }
    for (int64_t i = 0; i < int8_group; ++i) values[i] *= 0.125f;
}

void unpack_row(const PackedMatrix& matrix, int64_t output, float* row) {
    const int64_t panel = output / panel_outputs, lane = output % panel_outputs;
    const uint8_t* weight =
        static_cast<const uint8_t*>(matrix.weight) + panel * groups(matrix) * int8_group * panel_outputs;
    for (int64_t g = 0; g < groups(matrix); ++g) {
        const int64_t at = (panel * groups(matrix) + g) * panel_outputs + lane;
        const float scale = matrix.group ? from_half(static_cast<const uint16_t*>(matrix.scale) + at)
                                         : static_cast<const float*>(matrix.scale)[output];
        float values[int8_group];
        for (int64_t i = 0; i < int8_group; ++i) {
            const int64_t k = g * int8_group + i;
            values[i] = (weight[(k / 4 * panel_outputs + lane) * 4 + k % 4] - 128) * scale;
        }
        if (matrix.group) rotate_back(values);
        const int64_t rest = matrix.inputs - g * int8_group;
        std::memcpy(row + g * int8_group, values, sizeof(float) * (rest < int8_group ? rest : int8_group));
    }
}

const LinearKind kind = {"int8",     check,
                         arrays,     fields,
                         input,      pack_panel,
                         unpack_row, OCKHAM_EACH_TILES(int8_tile),
                         OCKHAM_EACH_ISA(int8_quantise)};
const AddedKind added{kind};

}  // namespace

}  // namespace ockham

#endif
