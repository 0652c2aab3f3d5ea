#include "ops/attention_input.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/rows.h"
#include "ops/checks.h"
#include "ops/fields.h"
#include "ops/product.h"
#include "ops/stream.h"
#include "program.h"
#include "run.h"
#include "state/planes.h"

namespace ockham::ops {

namespace {

const Added added{"AttentionInput", read<AttentionInput>};

// The cosines and then the sines of every rope and row, times the rope's scale: for each rope
// (R, 2, half), one after another. Computed once in a step. The angle is rounded to fp32, as the
// contract says; its cosine is computed in double and rounded once.
const float* rotations(Run& run) {
    if (run.rotated) return run.activations->rotations.get<float>();
    const std::vector<Rope>& ropes = run.program.ropes.all();
    int64_t floats = 0;
    for (const Rope& rope : ropes) floats += 2 * run.step.rows * rope.half();
    float* memory = run.activations->rotations.take<float>(floats);
    float* next = memory;
    for (const Rope& rope : ropes) {
        const int64_t half = rope.half();
        // A cosine and a sine in double cost about as much as fifty floats of the usual work.
        for_rows(run.pool, run.step.rows, 50 * half, [&](int64_t row, int) {
            const float position = static_cast<float>(rope.rotated_to(run.step.positions[row]));
            float* to = next + row * 2 * half;
            for (int64_t i = 0; i < half; ++i) {
                const double angle = position * rope.inverse_frequencies[i];
                to[i] = static_cast<float>(std::cos(angle)) * rope.scale;
                to[half + i] = static_cast<float>(std::sin(angle)) * rope.scale;
            }
        });
        next += run.step.rows * 2 * half;
    }
    run.rotated = true;
    return memory;
}

}  // namespace

const float* rotations_of(Run& run, int64_t layer) {
    const int64_t own = run.program.ropes.of_layer(layer);
    if (own < 0) return nullptr;
    const float* rotation = rotations(run);
    for (int64_t i = 0; i < own; ++i)
        rotation += 2 * run.step.rows * run.program.ropes.all()[i].half();
    return rotation;
}

namespace {

// norm(x) of the active rows [first, first + count), each behind the normed row of its token in `beside`.
auto joined_rows(Run& run, const AttentionInput& op, int64_t first, int64_t count) {
    const int64_t embedded = op.beside.inputs, width = embedded + run.hidden;
    std::vector<Buffer>& scratch = run.activations->rows;
    for (Buffer& buffer : scratch) buffer.take<float>(width);
    return Rows{count, width, [&, embedded, first](int64_t i, int thread) -> const float* {
                    const int64_t row = run.active.at(first + i);
                    float* to = scratch[thread].template get<float>();
                    unpack_row(op.beside, run.step.ids[row], to);
                    if (op.beside_norm) normalise(run.kernels, op.beside_norm, to, embedded, to);
                    const float* x = run.x() + row * run.hidden;
                    if (op.norm)
                        normalise(run.kernels, op.norm, x, run.hidden, to + embedded);
                    else
                        std::copy_n(x, run.hidden, to + embedded);
                    return to;
                }};
}

}  // namespace

void find_runs(const RowSet& active, const int64_t* slots, int64_t page_tokens, int64_t first,
               int64_t count, std::vector<int64_t>& runs) {
    runs.assign(1, first);
    int64_t lane = slots[active.at(first)] % page_tokens % group_keys;
    for (int64_t i = first + 1; i < first + count; ++i) {
        const int64_t slot = slots[active.at(i)];
        const bool follows = slot == slots[active.at(i - 1)] + 1;
        const bool in_group = lane + 1 < group_keys && slot % page_tokens != 0;
        if (follows && in_group) {
            ++lane;
            continue;
        }
        runs.push_back(i);
        lane = slot % page_tokens % group_keys;
    }
    runs.push_back(first + count);
}

AttentionInput::AttentionInput(const Fields& fields)
    : layer(fields.integer("layer")),
      group(fields.integer("group")),
      heads(fields.integer("heads")),
      kv_heads(fields.integer("kv_heads")),
      head_dim(fields.integer("head_dim")),
      qkv(fields.dense("qkv", true)),
      norm(fields.norm("norm")),
      bias(fields.floats("bias")),
      q_norm(fields.norm("q_norm")),
      k_norm(fields.norm("k_norm")),
      norm_whole(fields.flag("norm_whole")),
      rope(fields.rope("rope")),
      query_weight(fields.floats("query_weight")),
      v_norm(fields.norm("v_norm")),
      values_are_keys(fields.flag("values_are_keys")),
      reads(fields.none("reads") ? -1 : fields.integer("reads")),
      beside(fields.matrix("beside")),
      beside_norm(fields.norm("beside_norm")) {}

void AttentionInput::check(Program& program) const {
    const int64_t q = heads * head_dim, kv = kv_heads * head_dim;
    require(kv_heads > 0 && heads % kv_heads == 0,
            at("the query heads", layer) + " cannot be shared by its key-value heads.");
    const int64_t kept = reads < 0 ? layer : reads;
    require(program.planes.group_of(kept) == group,
            at("the planes", kept) + " belong to another group.");
    const LayerPlane plane = program.planes.layer(kept);
    require(plane.row_floats == 0 && !plane.latent && plane.kv_heads == kv_heads && plane.head_dim == head_dim,
            at("the planes", layer) + " have another shape than its keys.");
    const int64_t sides = reads >= 0 ? 0 : values_are_keys ? 1 : 2, outputs = q + sides * kv;
    check_dense(program, qkv, outputs, beside.inputs + program.hidden,
                at("the projection", layer));
    require(beside.outputs == 0 || beside.outputs == program.vocabulary,
            at("the table", layer) + " is of another vocabulary.");
    check_norm(beside_norm, beside.inputs, at("the norm of the tokens", layer));
    check_norm(norm, program.hidden, at("the norm", layer));
    check_vector(bias, outputs, at("the bias", layer));
    check_head_norm(q_norm, norm_whole ? q : head_dim, at("the query norm", layer));
    check_head_norm(k_norm, norm_whole ? kv : head_dim, at("the key norm", layer));
    check_head_norm(v_norm, head_dim, at("the value norm", layer));
    require(2 * rope.half() <= head_dim,
            at("the rotary embedding", layer) + " is wider than a head.");
    require(rope.period > 0, at("the rotary embedding", layer) + " grows in no steps.");
    check_vector(query_weight, head_dim, at("the query weight", layer));
    if (rope) program.ropes.set(layer, rope);
}

void AttentionInput::run(Run& run) const {
    const int64_t rows = run.active.count, outputs = qkv.outputs(), half = rope.half();
    const RowKernels& kernels = run.kernels;
    Activations& own = *run.activations;
    run.query_stride = outputs;
    if (rows == 0) return;
    for (int64_t row = 0; beside.outputs > 0 && row < run.step.rows; ++row)
        require(run.step.ids[row] >= 0 && run.step.ids[row] < beside.outputs,
                at("a token", layer) + " is beyond its table.");
    float* placed = own.qkv.take<float>(run.step.rows * outputs);
    // Where only some rows are active, their queries are put in place below.
    const bool apart = run.active.which != nullptr;
    float* projected = apart ? own.gate_up.take<float>(rows * outputs) : placed;
    const float* rotation = rotations_of(run, layer);
    const LayerPlane plane = run.planes().layer(reads < 0 ? layer : reads);
    const int64_t* slots = run.step.groups[group].slots;
    const int64_t own_heads = reads < 0 ? kv_heads : 0, width = own_heads * head_dim;
    const auto normalise = [&](const Norm& head_norm, bool whole, float* first, int64_t count) {
        if (!head_norm || count == 0) return;
        const int64_t length = whole ? count * head_dim : head_dim;
        for (int64_t i = 0; i < (whole ? 1 : count); ++i)
            kernels.rms_norm(first + i * length, head_norm.weight.data(), head_norm.eps, length,
                             first + i * length);
    };
    const auto finish = [&](int64_t i) {
        const int64_t row = run.active.at(i);
        float* q = projected + i * outputs;
        float* k = q + heads * head_dim;
        normalise(q_norm, norm_whole, q, heads);
        normalise(k_norm, norm_whole, k, own_heads);
        if (rotation != nullptr) {
            const float* cosines = rotation + row * 2 * half;
            for (int64_t i = 0; i < heads + own_heads; ++i)
                kernels.rotate(q + i * head_dim, cosines, cosines + half, half);
            const float grown = rope.grown(run.step.positions[row]);
            if (grown != 1.0f) kernels.multiply(q, grown, heads * head_dim);
        }
        if (!query_weight.empty())
            for (int64_t i = 0; i < heads * head_dim; ++i) q[i] *= query_weight[i % head_dim];
        if (apart) std::copy_n(q, heads * head_dim, placed + row * outputs);
    };
    // What was projected is finished while it is in the cache.
    std::vector<int64_t> runs;
    for (int64_t first = 0; first < rows; first += most_rows) {
        const int64_t count = std::min(most_rows, rows - first);
        float* to = projected + first * outputs;
        if (beside.outputs > 0)
            product(run, qkv, joined_rows(run, *this, first, count), to, bias, first);
        else
            product(run, qkv, stream_rows(run, norm, first, count), to, bias, first);
        if (reads >= 0) {
            for_rows(run.pool, count, outputs, [&](int64_t i, int) { finish(first + i); });
            continue;
        }
        find_runs(run.active, slots, plane.page_tokens, first, count, runs);
        // Values that are keys are taken before those are normed and rotated.
        float* values = values_are_keys ? own.branch.take<float>(count * width) : nullptr;
        const auto of_run = [&](int64_t number, int) {
            const int64_t begin = runs[number], end = runs[number + 1];
            float* k = projected + begin * outputs + heads * head_dim;
            float* v = values == nullptr ? k + width : values + (begin - first) * width;
            const int64_t v_stride = values == nullptr ? outputs : width;
            for (int64_t i = 0; i < end - begin; ++i) {
                if (values != nullptr) std::copy_n(k + i * outputs, width, v + i * width);
                normalise(v_norm, false, v + i * v_stride, kv_heads);
                finish(begin + i);
            }
            plane.store_run(kernels, slots[run.active.at(begin)], end - begin, k, v, outputs,
                            v_stride);
        };
        const int64_t found = static_cast<int64_t>(runs.size()) - 1;
        for_rows(run.pool, found, count * outputs / found, of_run);
    }
}

}  // namespace ockham::ops
