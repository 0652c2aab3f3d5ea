// w = (code - 1) * scale with codes 0, 1 and 2 in 2 bits (BitNet b1.58, arXiv:2402.17764).
//
// weight: four codes a byte, [P][K / 16][16][4]: bits 2 j and 2 j + 1 of byte i hold k = 4 j + i. scale:
// float [P * 16]. K is a multiple of 32. x is quantised by row and span of 128; the last may be shorter.
// With the group -1 it is quantised by row alone, as models are trained that are ternary: all spans then
// have one scale.
// For each span: y = fma(float(sum of a * (code - 1)), scale_x * scale, y) from y = 0 (portable code rounds
// the product first).
//
// Codes are found by shifts and masks, and multiplied as they are. A table of sums of four inputs (T-MAC,
// LUT Tensor Core) would take a shuffle for four weights, where here one instruction takes 32 or 64.
#include "kernels/linear.h"

namespace ockham {
static constexpr int64_t ternary_unit = 16, ternary_span = 128;
}

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kernels/linear_kernels.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

// The codes of the quad J of a unit.
#if defined(__AVX512F__)
template <int J>
OCKHAM_INLINE Codes ternary_codes(const uint8_t* from) {
    return _mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(from), 2 * J), _mm512_set1_epi8(3));
}
#elif defined(__AVX2__)
template <int J>
OCKHAM_INLINE Codes ternary_codes(const uint8_t* from) {
    const __m256i mask = _mm256_set1_epi8(3);
    return {_mm256_and_si256(_mm256_srli_epi16(byte_row(from, 0), 2 * J), mask),
            _mm256_and_si256(_mm256_srli_epi16(byte_row(from, 1), 2 * J), mask)};
}
#else
template <int J>
OCKHAM_INLINE Codes ternary_codes(const uint8_t* from) {
    U bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return {(S)((bytes >> (2 * J)) & 0x00030003), (S)((bytes >> (8 + 2 * J)) & 0x00030003)};
}
#endif

// A step is two units. A CodeSum of 16 bits holds a whole span: 3 * 128 * 2 * 32 = 24576.
struct Ternary : CodeBlock {
    static constexpr int64_t step_inputs = 2 * ternary_unit, step_bytes = step_inputs * panel_outputs / 4;
    static constexpr int64_t span_steps = ternary_span / step_inputs;

    template <int J, int ROWS, int PANELS>
    OCKHAM_INLINE void add_quad(CodeSum (&part)[ROWS][PANELS], const uint8_t* weight, int64_t stride,
                                const uint8_t* x, int64_t row_bytes) {
        Codes weights[PANELS];
        OCKHAM_UNROLL
        for (int p = 0; p < PANELS; ++p) weights[p] = ternary_codes<J>(weight + p * stride);
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r) dot_codes<PANELS>(part[r], weights, x + r * row_bytes + 4 * J);
    }

    template <int ROWS, int PANELS>
    static void block(const Tile& tile, int64_t row, int64_t panel, Range range) {
        const int64_t spans = tile.input.form.groups();
        const int64_t panel_stride = tile.matrix.inputs / step_inputs * step_bytes;
        const uint8_t* weight = static_cast<const uint8_t*>(tile.matrix.weight) + panel * panel_stride;
        const float* scales = static_cast<const float*>(tile.matrix.scale) + panel * panel_outputs;
        const Jump<(ROWS <= waiting_rows), PANELS> jump(weight, panel_stride);
        weight += range.begin * step_bytes;
        const uint8_t* x = tile.values(row) + range.begin * step_inputs;
        const float* of_x = tile.input.scales + row * spans;
        const int32_t* offset = tile.input.offsets + row * spans;
        Partial<ROWS, PANELS> y(tile, row, panel, range.first);
        for (int64_t begin = range.begin; begin < range.end; begin += span_steps) {
            const int64_t end = begin + span_steps < range.end ? begin + span_steps : range.end;
            const int64_t span = begin / span_steps;
            CodeSum part[ROWS][PANELS];
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r)
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p)
                    part[r][p] = code_sum_start(int_broadcast(offset[r * spans + span]));
            for (int64_t unit = 2 * begin; unit < 2 * end; ++unit, weight += 64, x += ternary_unit) {
                const int64_t ahead = jump.at(weight);
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p)
                    ask_ahead<ROWS <= waiting_rows>(weight + p * panel_stride, ahead);
                add_quad<0>(part, weight, panel_stride, x, tile.row_bytes);
                add_quad<1>(part, weight, panel_stride, x, tile.row_bytes);
                add_quad<2>(part, weight, panel_stride, x, tile.row_bytes);
                add_quad<3>(part, weight, panel_stride, x, tile.row_bytes);
            }
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) {
                const F scale = load(scales + p * panel_outputs);
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r) {
                    const I start = int_broadcast(offset[r * spans + span]);
                    y.add(r, p, to_float(code_sum_finish(start, part[r][p])),
                          mul(broadcast(of_x[r * spans + span]), scale));
                }
            }
        }
        y.finish(tile, row, panel, range.last);
    }
};

void ternary_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
                  int64_t y_stride, const float* bias) {
    walk<Ternary>(matrix, input, area, y, y_stride, bias, Ternary::span_steps);
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#else

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "isa/each.h"
#include "kinds/kind.h"
#include "kinds/lay_out.h"
#include "kinds/spans.h"

namespace ockham {

OCKHAM_DECLARE(TileFunction ternary_tile);

namespace {

// Spans, and for each minus the sum of its values: a code of 1 means zero.
template <Isa ISA>
void prepare_ternary(const PreparedInput& input, int64_t row, const float* x) {
    quantise_spans<ISA>(input, row, x, input.offsets + row * input.form.offset_words());
}

// The same with one scale for all spans.
template <Isa ISA>
void prepare_ternary_rows(const PreparedInput& input, int64_t row, const float* x) {
    const InputForm& form = input.form;
    int32_t unused = 0;
    float scale = 0.0f;
    PreparedInput whole;
    whole.form = {&quantised_input, form.inputs, form.inputs, 0};
    whole.values = input.values + row * form.row_bytes();
    whole.scales = &scale;
    whole.offsets = &unused;
    prepare_row(ISA, whole, 0, x);
    const int8_t* values = reinterpret_cast<const int8_t*>(whole.values);
    const int64_t spans = form.groups();
    for (int64_t span = 0; span < spans; ++span) {
        const int64_t first = span * form.group, end = std::min(form.inputs, first + form.group);
        int32_t sum = 0;
        for (int64_t k = first; k < end; ++k) sum += values[k];
        input.scales[row * spans + span] = scale;
        input.offsets[row * spans + span] = -sum;
    }
}

const InputKind ternary_input = {1, 1, OCKHAM_EACH_ISA_OF(prepare_ternary)};
const InputKind ternary_row_input = {1, 1, OCKHAM_EACH_ISA_OF(prepare_ternary_rows)};

void check(const PackedMatrix& matrix, bool zeros) {
    if (zeros || (matrix.group && matrix.group != -1) || matrix.inputs % (2 * ternary_unit))
        throw std::invalid_argument("ternary needs a multiple of 32 inputs, and has no zero points and no "
                                    "group but -1, a row.");
}

std::vector<PackedArray> arrays(const PackedMatrix& matrix, bool) {
    const int64_t panels = matrix.panels();
    return {{"weight", "uint8", {panels, matrix.inputs / ternary_unit, panel_outputs, 4}},
            {"scale", "float32", {panels * panel_outputs}}};
}

std::vector<RowField> fields(const PackedMatrix& matrix) { return {{"codes", matrix.inputs}, {"scale", 4}}; }

InputForm input(const PackedMatrix& matrix) {
    return {matrix.group ? &ternary_row_input : &ternary_input, matrix.inputs, ternary_span, 1};
}

void pack_panel(const PackedMatrix& matrix, const uint8_t* const* fields, PanelMemory to) {
    lay_words(fields[0], matrix.inputs, matrix.inputs / ternary_unit, to.weight,
              [](const uint8_t* row, int64_t unit) {
                  uint32_t word = 0;
                  for (int j = 0; j < 4; ++j)
                      word |= (four(row + unit * ternary_unit + 4 * j) & 0x03030303) << (2 * j);
                  return word;
              });
    std::memcpy(to.scale, fields[1], panel_outputs * sizeof(float));
}

void unpack_row(const PackedMatrix& matrix, int64_t output, float* row) {
    const int64_t panel = output / panel_outputs, lane = output % panel_outputs;
    const uint8_t* weight = static_cast<const uint8_t*>(matrix.weight) + panel * matrix.inputs * 4;
    const float scale = static_cast<const float*>(matrix.scale)[output];
    for (int64_t k = 0; k < matrix.inputs; ++k) {
        const uint8_t codes = weight[(k / ternary_unit * panel_outputs + lane) * 4 + k % 4];
        row[k] = static_cast<float>((codes >> (2 * (k % ternary_unit / 4)) & 3) - 1) * scale;
    }
}

const LinearKind kind = {"ternary", check,      arrays,     fields,
                         input,     pack_panel, unpack_row, OCKHAM_EACH_ISA(ternary_tile)};
const AddedKind added{kind};

}  // namespace

}  // namespace ockham

#endif
