// The product of rows with a matrix of an operation: every operation that multiplies whole matrices
// does it here. (Experts and the head cut their tiles themselves, since they do more with them.)
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/linear.h"
#include "kernels/rows.h"
#include "ops/adapted.h"
#include "ops/norms.h"
#include "ops/parts.h"
#include "run.h"

namespace ockham::ops {

// Rows of fp32 as they are before a matrix reads them: at(row, thread) gives one, of as many floats as
// the matrix has inputs, which stays until the same thread asks for another. `cost` says how much work
// that is, in floats, and decides from how many rows on it is shared among threads. Where `used` is not 0,
// all floats from that one on are zero.
template <class At>
struct Rows {
    int64_t count, cost;
    At at;
    int64_t used = 0;
};
template <class At>
Rows(int64_t, int64_t, At) -> Rows<At>;
template <class At>
Rows(int64_t, int64_t, At, int64_t) -> Rows<At>;

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
                    normalise(run.kernels, norm, from, width, normed);
                    return normed;
                }};
}

// norm(x) of the active rows [first, first + count) of the residual stream, or those rows as they are;
// of the stream as it was `held`.
inline auto stream_rows(Run& run, const Norm& norm, int64_t first, int64_t count, bool held = false) {
    const int32_t* which = run.active.which;
    const float* x = held ? run.activations->held.get<float>() : run.x();
    if (which == nullptr)
        return normed_rows(run, norm, x + first * run.hidden, run.hidden, count);
    return normed_rows(run, norm, x, run.hidden, count, which + first);
}

// The rows in the form that `matrix` reads, in the step's memory for prepared rows.
template <class At>
PreparedInput prepare(Run& run, const PackedMatrix& matrix, const Rows<At>& rows) {
    const InputForm form = input_form(matrix);
    PreparedInput input(form, rows.count,
                        run.activations->prepared.take<uint8_t>(form.bytes(rows.count)));
    if (rows.used) input.used = rows.used;
    for_rows(run.pool, rows.count, rows.cost, [&](int64_t row, int thread) {
        prepare_row(run.isa, input, row, rows.at(row, thread));
    });
    return input;
}

// Prepares the rows, and puts A x of those to which something is added where `added` says. Rows to which
// the same is added are multiplied several at once.
template <class At>
PreparedInput prepare_adapted(Run& run, const PackedMatrix& matrix, const Rows<At>& rows,
                              const Additions& added, float* t) {
    const InputForm form = input_form(matrix);
    const int64_t width = matrix.inputs, threads = run.pool.size();
    PreparedInput input(form, rows.count,
                        run.activations->prepared.take<uint8_t>(form.bytes(rows.count)));
    if (rows.used) input.used = rows.used;
    struct Block {
        const AdaptedRows* group;
        int64_t begin, end;
    };
    const int64_t most = std::clamp<int64_t>(rows.count / (2 * threads), 1, low_rank_rows);
    std::vector<Block> blocks;
    for (const AdaptedRows& group : added.groups) {
        const int64_t count = static_cast<int64_t>(group.rows.size());
        for (int64_t begin = 0; begin < count; begin += most)
            blocks.push_back({&group, begin, std::min(count, begin + most)});
    }
    for (Buffer& buffer : run.activations->adapted) buffer.take<float>(most * width);
    const auto work = [&](int64_t task, int thread) {
        const auto [group, begin, end] = blocks[task];
        float* own = run.activations->adapted[thread].template get<float>();
        const float* x[low_rank_rows];
        for (int64_t i = begin; i < end; ++i) {
            const float* from = rows.at(group->rows[i], thread);
            prepare_row(run.isa, input, group->rows[i], from);
            if (!added.adds(*group)) continue;
            x[i - begin] = own + (i - begin) * width;
            std::copy(from, from + width, own + (i - begin) * width);
        }
        if (added.adds(*group)) shrink_rows(run, added, *group, begin, end, x, t);
    };
    const int64_t tasks = static_cast<int64_t>(blocks.size());
    if (rows.count * (rows.cost + added.width * width) < alone_floats)
        for (int64_t task = 0; task < tasks; ++task) work(task, 0);
    else
        run.pool.parallel(tasks, work);
    return input;
}

// The product where something is added for some of the rows.
template <class At>
void adapted_product(Run& run, const Stack& matrix, const Rows<At>& rows, float* y,
                     const std::vector<float>& bias, const Additions& added, LeadingOutputs leading) {
    const int64_t outputs = matrix.outputs();
    float* t = run.activations->shrunk.take<float>(rows.count * added.width);
    PreparedInput input = prepare_adapted(run, matrix.parts.front(), rows, added, t);
    int64_t first = 0;
    for (const PackedMatrix& part : matrix.parts) {
        if (!(input.form == input_form(part))) input = prepare(run, part, rows);
        for (const Panels& panels : leading_panels(part, first, leading)) {
            const Tiling cut = tiling(part, panels.end - panels.begin, rows.count, run.pool.size());
            run.pool.parallel(cut.tiles(), [&](int64_t tile, int) {
                const int64_t panel = panels.begin + tile / cut.row_tiles * cut.panels_per_tile;
                const int64_t end = std::min(panels.end, panel + cut.panels_per_tile);
                const int64_t row = tile % cut.row_tiles * cut.rows_per_tile;
                const int64_t last = std::min(rows.count, row + cut.rows_per_tile);
                linear_tile(run.isa, part, input, row, last, panel, end, y + first, outputs,
                            bias.empty() ? nullptr : bias.data() + first);
                expand_rows(run, added, t, row, last, first + panel * panel_outputs,
                            first + std::min(part.outputs, end * panel_outputs), y, outputs);
            });
        }
        first += part.outputs;
    }
}

// y (count, outputs) = rows times matrix, plus bias where there is one, then what the matrix's own
// corrections add, and then what the rows' adapters add. The rows are made once for each form in which parts of the matrix read them. They are
// the active rows of the step from `first_row` on. Only the `leading` outputs are wanted; what stands in the
// places of the others has no meaning.
template <class At>
void product(Run& run, const Stack& matrix, const Rows<At>& rows, float* y,
             const std::vector<float>& bias = {}, int64_t first_row = 0, LeadingOutputs leading = {}) {
    if (!matrix.own.empty() || (!run.step.adapters.empty() && !matrix.role.empty())) {
        const Additions added = additions(run, matrix, rows.count, first_row);
        if (added.width > 0) return adapted_product(run, matrix, rows, y, bias, added, leading);
    }
    const int64_t outputs = matrix.outputs();
    PreparedInput input;
    int64_t first = 0;
    for (const PackedMatrix& part : matrix.parts) {
        if (first == 0 || !(input.form == input_form(part))) input = prepare(run, part, rows);
        const float* added = bias.empty() ? nullptr : bias.data() + first;
        if (leading.count == 0)
            linear(run.pool, run.isa, part, input, y + first, outputs, added);
        else
            linear(run.pool, run.isa, part, input, leading_panels(part, first, leading), y + first, outputs,
                   added);
        first += part.outputs;
    }
}

}  // namespace ockham::ops
