// The product of rows with a matrix of an operation: every operation that multiplies whole matrices
// does it here. (Experts and the head cut their tiles themselves, since they do more with them.)
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/linear.h"
#include "kernels/rows.h"
#include "ops/parts.h"
#include "run.h"

namespace ockham::ops {

// Rows of fp32 as they are before a matrix reads them: at(row, thread) gives one, of as many floats as
// the matrix has inputs, which stays until the same thread asks for another. `cost` says how much work
// that is, in floats, and decides from how many rows on it is shared among threads.
template <class At>
struct Rows {
    int64_t count, cost;
    At at;
};
template <class At>
Rows(int64_t, int64_t, At) -> Rows<At>;

// Rows [0, count) of x as they are.
inline auto plain_rows(const float* x, int64_t width, int64_t count) {
    return Rows{count, width, [x, width](int64_t row, int) { return x + row * width; }};
}

// norm(x) of rows [0, count) of x, or of the rows `which`; rows of x as they are where `norm` is none.
inline auto normed_rows(Run& run, const Norm& norm, const float* x, int64_t width, int64_t count,
                        const int32_t* which = nullptr) {
    std::vector<Buffer>& scratch = run.activations->rows;
    for (Buffer& buffer : scratch) buffer.take<float>(width);
    return Rows{count, width, [&, x, width, which](int64_t row, int thread) -> const float* {
                    const float* from = x + (which == nullptr ? row : which[row]) * width;
                    if (!norm) return from;
                    float* normed = scratch[thread].template get<float>();
                    run.kernels.rms_norm(from, norm.weight.data(), norm.eps, width, normed);
                    return normed;
                }};
}

// norm(x) of the active rows [first, first + count) of the residual stream, or those rows as they are.
inline auto stream_rows(Run& run, const Norm& norm, int64_t first, int64_t count) {
    const int32_t* which = run.active.which;
    if (which == nullptr)
        return normed_rows(run, norm, run.x() + first * run.hidden, run.hidden, count);
    return normed_rows(run, norm, run.x(), run.hidden, count, which + first);
}

// The rows in the form that `matrix` reads, in the step's memory for prepared rows.
template <class At>
PreparedInput prepare(Run& run, const PackedMatrix& matrix, const Rows<At>& rows) {
    const InputForm form = input_form(matrix);
    const PreparedInput input(form, rows.count,
                              run.activations->prepared.take<uint8_t>(form.bytes(rows.count)));
    for_rows(run.pool, rows.count, rows.cost, [&](int64_t row, int thread) {
        prepare_row(run.isa, input, row, rows.at(row, thread));
    });
    return input;
}

// y (count, outputs) = rows times matrix, plus bias where there is one. The rows are made once for each
// form in which parts of the matrix read them.
template <class At>
void product(Run& run, const Stack& matrix, const Rows<At>& rows, float* y,
             const std::vector<float>& bias = {}) {
    const int64_t outputs = matrix.outputs();
    PreparedInput input;
    int64_t first = 0;
    for (const PackedMatrix& part : matrix.parts) {
        if (first == 0 || !(input.form == input_form(part))) input = prepare(run, part, rows);
        linear(run.pool, run.isa, part, input, y + first, outputs,
               bias.empty() ? nullptr : bias.data() + first);
        first += part.outputs;
    }
}

}  // namespace ockham::ops
