// A kind of packed matrices that no other file knows.
#include <cstring>
#include <stdexcept>
#include <vector>

#include "isa/each.h"
#include "kernels/pack.h"
#include "kernels/threads.h"
#include "kinds/kind.h"
#include "tests/tests.h"

namespace ockham::tests {

namespace {

// weight: int8 [P][K][16]; the inputs are floats. Its kernels know no instruction set.
void prepare_row(const PreparedInput& input, int64_t row, const float* x) {
    std::memcpy(input.values + row * input.form.row_bytes(), x, input.form.inputs * sizeof(float));
}

const InputKind plain_input = {4, 0, OCKHAM_ANY_ISA(prepare_row)};

const int8_t* panel_of(const PackedMatrix& matrix, int64_t panel) {
    return static_cast<const int8_t*>(matrix.weight) + panel * matrix.inputs * panel_outputs;
}

void tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
          int64_t y_stride, const float* bias) {
    for (int64_t row = area.row_begin; row < area.row_end; ++row) {
        const float* x = reinterpret_cast<const float*>(input.values + row * input.form.row_bytes());
        for (int64_t output = area.panel_begin * panel_outputs;
             output < area.panel_end * panel_outputs && output < matrix.outputs; ++output) {
            const int8_t* weight = panel_of(matrix, output / panel_outputs) + output % panel_outputs;
            float sum = 0;
            for (int64_t k = 0; k < matrix.inputs; ++k) sum += x[k] * weight[k * panel_outputs];
            y[row * y_stride + output] = sum + (bias ? bias[output] : 0.0f);
        }
    }
}

void check_shape(const PackedMatrix& matrix, bool zeros) {
    if (zeros || matrix.group) throw std::invalid_argument("bytes have no groups.");
}

std::vector<PackedArray> arrays(const PackedMatrix& matrix, bool) {
    return {{"weight", "uint8", {matrix.panels(), matrix.inputs, panel_outputs}}};
}

std::vector<RowField> fields(const PackedMatrix& matrix) { return {{"codes", matrix.inputs}}; }

InputForm input(const PackedMatrix& matrix) { return {&plain_input, matrix.inputs}; }

void pack_panel(const PackedMatrix& matrix, const uint8_t* const* rows, PanelMemory to) {
    for (int64_t lane = 0; lane < panel_outputs; ++lane)
        for (int64_t k = 0; k < matrix.inputs; ++k)
            to.weight[k * panel_outputs + lane] = rows[0][lane * matrix.inputs + k];
}

void unpack_row(const PackedMatrix& matrix, int64_t output, float* row) {
    const int8_t* weight = panel_of(matrix, output / panel_outputs) + output % panel_outputs;
    for (int64_t k = 0; k < matrix.inputs; ++k) row[k] = weight[k * panel_outputs];
}

const LinearKind bytes = {"test_bytes", check_shape, arrays,     fields,
                          input,        pack_panel,  unpack_row, OCKHAM_ANY_ISA(tile)};
// linear_tests.cpp multiplies with every kind of the table: with this one too.
const AddedKind added{bytes};

void kinds_have_one_name() {
    check(find_kind("test_bytes") == &bytes, "a kind is found by its name");
    check(find_kind("no_such_kind") == nullptr, "no other is");
    bool refused = false;
    try {
        const AddedKind again{bytes};
    } catch (const std::logic_error&) {
        refused = true;
    }
    check(refused, "a name is given once");
    refused = false;
    try {
        LinearKind partial = bytes;
        partial.name = "test_partial";
        partial.tile[isa_count - 1] = nullptr;
        const AddedKind added_in_part{partial};
    } catch (const std::logic_error&) {
        refused = true;
    }
    check(refused && find_kind("test_partial") == nullptr, "a kind has a kernel for each instruction set");
    refused = false;
    try {
        matrix_of("test_bytes", 16, 8, 32);
    } catch (const std::invalid_argument&) {
        refused = true;
    }
    check(refused, "a kind's own check is asked");
}

const Added first{"a kind of its own is added by its own file", kinds_have_one_name};

}  // namespace

}  // namespace ockham::tests
