#include "ops/short_convolution.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "ops/checks.h"
#include "ops/fields.h"
#include "ops/product.h"
#include "ops/stream.h"
#include "program.h"
#include "run.h"
#include "state/planes.h"

namespace ockham::ops {

namespace {

const Added added{"ShortConvolution", read<ShortConvolution>};

// Where what the rows of a step look back at stands: among what the step itself makes, or in pages.
class Sources {
   public:
    Sources(const StepView& step, const GroupRowsView& rows, const RowSet& active,
            const LayerPlane& plane, const float* made, int64_t length)
        : step_(step), rows_(rows), plane_(plane), made_(made), length_(length) {
        firsts_.resize(static_cast<size_t>(active.count));
        cells_.resize(firsts_.size());
        found_.resize(firsts_.size() * static_cast<size_t>(length), nullptr);
        for (int64_t i = 0; i < active.count; ++i) {
            const int64_t row = active.at(i);
            if (rows.seen(row) < 1) refuse(row, "sees no cell, not even its own");
            const bool first = i == 0 || step.sequence[active.at(i - 1)] != step.sequence[row];
            firsts_[i] = first ? i : firsts_[i - 1];
            cells_[i] = cell(row, rows.seen(row) - 1);
            if (!first && cells_[i] <= cells_[i - 1]) refuse(row, "stands before the one above it");
            for (int64_t n = 0; n < std::min(length, rows.seen(row)); ++n)
                found_[(i + 1) * length - 1 - n] = find(i, row, cell(row, rows.seen(row) - 1 - n));
        }
    }

    // Of the i-th active row, the rows of floats that its `length` latest tokens left, the newest
    // last; null before the first token.
    const float* const* of(int64_t i) const { return found_.data() + i * length_; }

   private:
    [[noreturn]] static void refuse(int64_t row, const std::string& why) {
        throw std::invalid_argument("row " + std::to_string(row) + " of a convolution " + why + ".");
    }
    int32_t cell(int64_t row, int64_t key) const {
        if (key < rows_.context[row]) return static_cast<int32_t>(key);
        return rows_.extra[rows_.extra_starts[row] + key - rows_.context[row]];
    }
    const float* find(int64_t i, int64_t row, int32_t cell) const {
        const auto first = cells_.begin() + firsts_[i], last = cells_.begin() + i + 1;
        const auto own = std::lower_bound(first, last, cell);
        if (own != last && *own == cell) return made_ + (own - cells_.begin()) * plane_.row_floats;
        const TableView& table = rows_.table;
        const int64_t start = table.starts[step_.sequence[row]];
        const int64_t count = table.starts[step_.sequence[row] + 1] - start;
        const int64_t entry = cell / step_.page_tokens;
        const int64_t page = cell < 0 || entry >= count ? -1 : table.pages[start + entry];
        if (page < 0 || page >= plane_.pages)
            refuse(row, "looks back at cell " + std::to_string(cell) + ", which has no page");
        return plane_.row(page * step_.page_tokens + cell % step_.page_tokens);
    }

    const StepView& step_;
    const GroupRowsView& rows_;
    const LayerPlane plane_;
    const float* made_;
    const int64_t length_;
    std::vector<int64_t> firsts_;  // of each active row, the first one of its sequence
    std::vector<int32_t> cells_;   // and its own cell: they ascend within a sequence
    std::vector<const float*> found_;
};

}  // namespace

ShortConvolution::ShortConvolution(const Fields& fields)
    : layer(fields.integer("layer")),
      group(fields.integer("group")),
      length(fields.integer("length")),
      inputs(fields.dense("inputs", true)),
      weight(fields.floats("weight")),
      out(fields.dense("out", false)),
      norm(fields.norm("norm")),
      inputs_bias(fields.floats("inputs_bias")),
      bias(fields.floats("bias")),
      out_bias(fields.floats("out_bias")),
      residual_scale(fields.number("residual_scale")),
      activated(fields.flag("activated")) {}

void ShortConvolution::check(Program& program) const {
    const int64_t hidden = program.hidden;
    require(program.planes.group_of(layer) == group,
            at("the planes", layer) + " belong to another group.");
    const int64_t wide = out.inputs(), parts = activated ? 2 : 3;
    require(program.planes.layer(layer).row_floats == wide,
            at("the planes", layer) + " have another shape than what its convolution keeps.");
    require(length > 0 && static_cast<int64_t>(weight.size()) == length * wide,
            at("the convolution", layer) + " has not as many weights as its length says.");
    check_dense(program, inputs, parts * wide, hidden, at("the convolution's inputs", layer));
    check_dense(program, out, hidden, wide, at("the convolution's output", layer));
    check_norm(norm, hidden, at("the norm", layer));
    check_vector(inputs_bias, parts * wide, at("the bias of the convolution's inputs", layer));
    check_vector(bias, wide, at("the convolution's bias", layer));
    check_vector(out_bias, hidden, at("the bias of the convolution's output", layer));
}

// What the latest tokens left, summed: what stands before the first one is zero.
void ShortConvolution::convolve(const float* const* sources, float* y) const {
    const int64_t wide = static_cast<int64_t>(weight.size()) / length;
    bool begun = false;
    for (int64_t i = 0; i < length; ++i) {
        const float* u = sources[i];
        const float* w = weight.data() + i * wide;
        if (u == nullptr) continue;
        if (begun)
            for (int64_t d = 0; d < wide; ++d) y[d] += w[d] * u[d];
        else
            for (int64_t d = 0; d < wide; ++d) y[d] = w[d] * u[d];
        begun = true;
    }
    if (!bias.empty())
        for (int64_t d = 0; d < wide; ++d) y[d] += bias[static_cast<size_t>(d)];
}

void ShortConvolution::run(Run& run) const {
    const int64_t hidden = run.hidden, wide = static_cast<int64_t>(weight.size()) / length;
    const int64_t all = (activated ? 2 : 3) * wide;
    const LayerPlane plane = run.planes().layer(layer);
    const GroupRowsView& of_group = run.step.groups[static_cast<size_t>(group)];
    Activations& own = *run.activations;
    float* made = own.made.take<float>(run.active.count * wide);
    const Sources sources(run.step, of_group, run.active, plane, made, length);
    for (int64_t first = 0; first < run.active.count; first += most_rows) {
        const int64_t rows = std::min(most_rows, run.active.count - first);
        float* projected = own.qkv.take<float>(rows * all);
        product(run, inputs, stream_rows(run, norm, first, rows), projected, inputs_bias, first);
        // What a row keeps is there before any row looks back at it.
        for_rows(run.pool, rows, wide, [&](int64_t i, int) {
            const float* b = projected + i * all;
            float* u = made + (first + i) * wide;
            if (activated)
                std::copy_n(b, wide, u);
            else
                for (int64_t d = 0; d < wide; ++d) u[d] = b[d] * b[2 * wide + d];
            const int64_t slot = of_group.slots[run.active.at(first + i)];
            if (slot >= 0) std::copy_n(u, wide, plane.row(slot));
        });
        float* a = own.a.take<float>(rows * wide);
        for_rows(run.pool, rows, length * wide, [&](int64_t i, int) {
            const float* gate = projected + i * all + wide;
            float* y = a + i * wide;
            convolve(sources.of(first + i), y);
            if (activated)
                run.kernels.gated[static_cast<int>(Activation::silu)](y, gate, wide, y);
            else
                for (int64_t d = 0; d < wide; ++d) y[d] *= gate[d];
        });
        float* branch = own.branch.take<float>(rows * hidden);
        product(run, out, plain_rows(a, wide, rows), branch, out_bias, first);
        add_branch(run, first, rows, branch, Norm(), residual_scale, Norm());
    }
}

}  // namespace ockham::ops
