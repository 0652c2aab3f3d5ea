// What the kinds of two_level.h share beside their kernels.
//
// Inputs are int8 by row and span (spans.h). PreparedInput::offsets has a word for each step of 32
// inputs, 4 for a span: what step_start() of two_level_kernels.h begins with, so that levels are read with
// their zero added. That is minus `zero` times the sum of the step's values, for avx2 in two: of the first
// two and of the last two values of the quads, each modulo 2^16.
#pragma once

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "kinds/kind.h"
#include "kinds/lay_out.h"
#include "kinds/spans.h"
#include "kinds/two_level.h"

namespace ockham {

constexpr int64_t two_level_words = two_level_span / two_level_step;

template <Isa ISA>
void prepare_two_level(const PreparedInput& input, int64_t row, const float* x) {
    const InputForm& form = input.form;
    const int8_t* values = reinterpret_cast<const int8_t*>(input.values + row * form.row_bytes());
    int32_t* word = input.offsets + row * form.offset_words();
    quantise_spans<ISA>(input, row, x, word);  // whose own offsets are not needed
    for (int64_t k = 0; k < form.inputs; k += two_level_step, ++word) {
        int32_t first = 0, last = 0;
        for (int64_t i = k; i < k + two_level_step; i += 4) {
            first += values[i] + values[i + 1];
            last += values[i + 2] + values[i + 3];
        }
        first *= -form.zero;
        last *= -form.zero;
        if (ISA == Isa::avx2)
            *word = static_cast<int32_t>((static_cast<uint32_t>(first) & 0xffff) |
                                         static_cast<uint32_t>(last) << 16);
        else
            *word = first + last;
    }
}

inline const InputKind two_level_input = {1, two_level_words, OCKHAM_EACH_ISA_OF(prepare_two_level)};

// `Kind` has a `name`, `levels` and level(code).
template <class Kind>
struct TwoLevelKind {
    static int64_t groups(const PackedMatrix& matrix) { return matrix.inputs / matrix.group; }
    static int64_t scale_bytes(const PackedMatrix& matrix) {
        return groups(matrix) * panel_outputs + panel_outputs * 4;
    }

    static void check(const PackedMatrix& matrix, bool zeros) {
        const int64_t group = matrix.group;
        if (zeros) throw std::invalid_argument(std::string(Kind::name) + " has no zero points.");
        if (group < two_level_step || group % two_level_step || two_level_span % group ||
            matrix.inputs % group)
            throw std::invalid_argument(std::string(Kind::name) +
                                        " needs groups of 32, 64 or 128 inputs, which divide the "
                                        "number of inputs.");
    }

    static std::vector<PackedArray> arrays(const PackedMatrix& matrix, bool) {
        const int64_t panels = matrix.panels();
        return {{"weight", "uint8", {panels, matrix.inputs / 8, panel_outputs, 4}},
                {"scale", "uint8", {panels, scale_bytes(matrix)}}};
    }

    static std::vector<RowField> fields(const PackedMatrix& matrix) {
        return {{"codes", matrix.inputs}, {"group_scales", groups(matrix)}, {"scale", 4}};
    }

    static InputForm input(const PackedMatrix& matrix) {
        return {&two_level_input, matrix.inputs, two_level_span, Kind::levels.zero};
    }

    static void pack_panel(const PackedMatrix& matrix, const uint8_t* const* fields, PanelMemory to) {
        lay_words(fields[0], matrix.inputs, matrix.inputs / 8, to.weight,
                  [](const uint8_t* row, int64_t unit) { return nibbles(row + unit * 8); });
        lay_items(fields[1], groups(matrix), groups(matrix), 1, to.scale);
        std::memcpy(to.scale + groups(matrix) * panel_outputs, fields[2], panel_outputs * 4);
    }

    static void unpack_row(const PackedMatrix& matrix, int64_t output, float* row) {
        const int64_t panel = output / panel_outputs, lane = output % panel_outputs;
        const uint8_t* weight = static_cast<const uint8_t*>(matrix.weight) + panel * matrix.inputs * 8;
        const uint8_t* scales = static_cast<const uint8_t*>(matrix.scale) + panel * scale_bytes(matrix);
        float scale;
        std::memcpy(&scale, scales + groups(matrix) * panel_outputs + lane * 4, 4);
        for (int64_t k = 0; k < matrix.inputs; ++k) {
            const uint8_t both = weight[(k / 8 * panel_outputs + lane) * 4 + k % 4];
            const int level = Kind::level(k % 8 < 4 ? both & 15 : both >> 4);
            const int s = static_cast<int8_t>(scales[k / matrix.group * panel_outputs + lane]);
            row[k] = static_cast<float>(level) * static_cast<float>(s) * scale;  // keeps the sign of a zero
        }
    }

    static LinearKind kind(TileFunction* const (&tile)[isa_count]) {
        LinearKind made = {Kind::name, check, arrays, fields, input, pack_panel, unpack_row, {}};
        for (int isa = 0; isa < isa_count; ++isa) made.tile[isa] = tile[isa];
        return made;
    }
};

}  // namespace ockham
