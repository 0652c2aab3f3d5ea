#include "ops/head.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>

#include "kernels/threads.h"
#include "ops/checks.h"
#include "ops/fields.h"
#include "ops/product.h"
#include "program.h"
#include "run.h"

namespace ockham::ops {

namespace {

const Added added{"Head", read<Head>};

void finish_logits(const RowKernels& kernels, const Head& op, float* logits, int64_t count) {
    if (op.scale != 1.0f) kernels.multiply(logits, op.scale, count);
    if (op.softcap != 0.0f) kernels.softcap(logits, op.softcap, count);
}

// The `wanted` largest of a tile's logits, the largest first, the lowest token first on a tie; -1 where
// there are no more. Overwrites them.
void take_largest(const RowKernels& kernels, float* values, int64_t count, int64_t first,
                  Peak* peaks, int64_t wanted) {
    for (int64_t i = 0; i < wanted; ++i) {
        peaks[i] = {-INFINITY, -1};
        if (i >= count) continue;
        const int64_t where = kernels.argmax(values, count);
        peaks[i] = {values[where], first + where};
        values[where] = -INFINITY;
    }
}

// The tokens of the `wanted` largest of all tiles, each of which has its own in order.
void merge_largest(const Peak* peaks, int64_t tiles, int64_t wanted, std::vector<int64_t>& taken,
                   std::vector<int32_t>& tokens) {
    taken.assign(tiles, 0);
    for (int64_t i = 0; i < wanted; ++i) {
        int64_t best = -1;
        Peak peak = {-INFINITY, -1};
        for (int64_t tile = 0; tile < tiles; ++tile) {
            if (taken[tile] == wanted) continue;
            const Peak& next = peaks[tile * wanted + taken[tile]];
            if (next.token >= 0 && (best < 0 || next.value > peak.value)) best = tile, peak = next;
        }
        if (best >= 0) ++taken[best];
        tokens.push_back(static_cast<int32_t>(peak.token));
    }
}

// One tile of the head: rows that want logits get them; of those that want an argmax the logits
// live in the thread's own tile only, until their largest is found.
void head_tile(Run& run, const Head& op, const PreparedInput& input, const Tiling& cut, int64_t tile,
               int thread, float* logits) {
    const PackedMatrix& matrix = op.out;
    const int64_t column = tile / cut.row_tiles;  // of tiles
    const int64_t panel = column * cut.panels_per_tile;
    const int64_t panel_end = std::min(matrix.panels(), panel + cut.panels_per_tile);
    const int64_t first = panel * panel_outputs;
    const int64_t count = std::min(matrix.outputs, panel_end * panel_outputs) - first;
    const int64_t row = tile % cut.row_tiles * cut.rows_per_tile;
    const int64_t row_end = std::min(input.rows, row + cut.rows_per_tile);
    const int64_t split = std::clamp(run.step.logits_rows, row, row_end);
    const int64_t wanted = run.step.candidates;
    const auto largest = [&](int64_t i) {
        return run.activations->candidates.get<Peak>() + (i * cut.panel_tiles + column) * wanted;
    };
    const float* bias = op.bias.empty() ? nullptr : op.bias.data();
    if (row < split) {
        linear_tile(run.isa, matrix, input, row, split, panel, panel_end, logits, matrix.outputs, bias);
        for (int64_t i = row; i < split; ++i)
            finish_logits(run.kernels, op, logits + i * matrix.outputs + first, count);
        if (wanted > 0) {
            float* copy = run.activations->tiles[thread].take<float>(count);
            for (int64_t i = row; i < split; ++i) {
                const float* from = logits + i * matrix.outputs + first;
                std::copy(from, from + count, copy);
                take_largest(run.kernels, copy, count, first, largest(i), wanted);
            }
        }
    }
    if (split == row_end) return;
    const int64_t width = (panel_end - panel) * panel_outputs;
    float* own = run.activations->tiles[thread].take<float>((row_end - split) * width);
    // Where a matrix of this width would begin, of which the tile is all that is touched.
    float* origin = reinterpret_cast<float*>(reinterpret_cast<uintptr_t>(own) -
                                             (split * width + first) * sizeof(float));
    linear_tile(run.isa, matrix, input, split, row_end, panel, panel_end, origin, width, bias);
    Peak* peaks = run.activations->peaks.get<Peak>();
    for (int64_t i = split; i < row_end; ++i) {
        float* values = own + (i - split) * width;
        finish_logits(run.kernels, op, values, count);
        const int64_t where = run.kernels.argmax(values, count);
        peaks[(i - run.step.logits_rows) * cut.panel_tiles + column] = {values[where], first + where};
        if (wanted > 0) take_largest(run.kernels, values, count, first, largest(i), wanted);
    }
}

}  // namespace

Head::Head(const Fields& fields)
    : out(fields.matrix("out")),
      norm(fields.norm("norm")),
      bias(fields.floats("bias")),
      scale(fields.number("scale")),
      softcap(fields.optional_number("softcap")) {}

void Head::check(Program& program) const {
    program.logits = out.outputs;
    require(out.inputs == program.hidden, "the head reads rows of another width.");
    check_norm(norm, program.hidden, "the norm of the head");
    check_vector(bias, out.outputs, "the bias of the head");
}

void Head::run(Run& run) const {
    const int64_t outputs = out.outputs, logits_rows = run.step.logits_rows;
    const int64_t rows = logits_rows + run.step.argmax_rows;
    if (rows == 0) return;
    Activations& own = *run.activations;
    own.head_rows.assign(run.step.wants_logits, run.step.wants_logits + logits_rows);
    own.head_rows.insert(own.head_rows.end(), run.step.wants_argmax,
                         run.step.wants_argmax + run.step.argmax_rows);
    const PreparedInput input = prepare(
        run, out, normed_rows(run, norm, run.x(), run.hidden, rows, own.head_rows.data()));
    run.logits = {std::make_unique<Buffer>(), logits_rows, outputs};
    float* logits = run.logits.memory->take<float>(logits_rows * outputs);
    const Tiling cut = tiling(out, rows, run.pool.size());
    own.peaks.take<Peak>(run.step.argmax_rows * cut.panel_tiles);
    const int64_t wanted = run.step.candidates;
    if (wanted > 0) own.candidates.take<Peak>(rows * cut.panel_tiles * wanted);
    run.pool.parallel(cut.tiles(), [&](int64_t tile, int thread) {
        head_tile(run, *this, input, cut, tile, thread, logits);
    });
    const Peak* peaks = own.peaks.get<Peak>();
    for (int64_t row = 0; row < run.step.argmax_rows; ++row, peaks += cut.panel_tiles) {
        Peak peak = peaks[0];
        for (int64_t tile = 1; tile < cut.panel_tiles; ++tile) peak.merge(peaks[tile]);
        run.argmax.push_back(peak);
    }
    if (wanted == 0) return;
    std::vector<int64_t> taken;
    const Peak* candidates = own.candidates.get<Peak>();
    for (int64_t row = 0; row < rows; ++row, candidates += cut.panel_tiles * wanted)
        merge_largest(candidates, cut.panel_tiles, wanted, taken, run.candidates);
}

}  // namespace ockham::ops
