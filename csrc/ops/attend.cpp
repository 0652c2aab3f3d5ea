#include "ops/attend.h"

#include <cstddef>
#include <stdexcept>
#include <utility>
#include <vector>

#include "kernels/threads.h"
#include "ops/attention_input.h"
#include "ops/checks.h"
#include "ops/fields.h"
#include "program.h"
#include "run.h"
#include "state/planes.h"

namespace ockham::ops {

namespace {

const Added added{"Attend", read<Attend>};

// The step's plan for a group and a window, which layers share.
const AttentionPlan& plan_of(Run& run, const Attend& op) {
    for (const AttentionPlan& plan : run.plans)
        if (plan.group == op.group && plan.window == op.window) return plan;
    const int64_t repeat = op.shape.heads / op.shape.kv_heads;
    run.plans.push_back(plan_attention(run.step, op.group, op.window,
                                       run.planes().groups()[op.group].pages, repeat));
    return run.plans.back();
}

}  // namespace

Attend::Attend(const Fields& fields)
    : layer(fields.integer("layer")),
      group(fields.integer("group")),
      shape{fields.integer("heads"), fields.integer("kv_heads"), fields.integer("head_dim"),
            fields.number("scale"), fields.optional_number("softcap")} {
    if (fields.none("window")) return;
    window = fields.integer("window");
    if (window < 1) throw std::invalid_argument("a window sees at least one key.");
}

void Attend::check(Program& program) const {
    const auto* input = program.latest<AttentionInput>();
    require(input != nullptr && shape.heads == input->heads && shape.head_dim == input->head_dim,
            at("the attention", layer) + " has another shape than its queries.");
    require(program.planes.group_of(layer) == group,
            at("the planes", layer) + " belong to another group.");
    const LayerPlane plane = program.planes.layer(layer);
    require(plane.kv_heads == shape.kv_heads && plane.head_dim == shape.head_dim,
            at("the planes", layer) + " have another shape than its attention.");
}

void Attend::run(Run& run) const {
    const int64_t rows = run.step.rows;
    const int64_t q_stride = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
    const LayerPlane plane = run.planes().layer(layer);
    const AttentionPlan& plan = plan_of(run, *this);
    Activations& own = *run.activations;
    const float* q = own.qkv.get<float>();
    float* a = own.a.take<float>(rows * shape.heads * shape.head_dim);
    const LayerRows* wanted = nullptr;
    for (const LayerRows& rows_of_layer : run.step.wants_scores)
        if (rows_of_layer.layer == layer) wanted = &rows_of_layer;
    float* totals =
        wanted == nullptr ? nullptr : own.totals.take<float>(rows * shape.heads * 2);
    attend(run.pool, run.isa, run.step, plan, shape, plane, q, q_stride, a, totals, own.attention);
    if (wanted == nullptr) return;
    std::vector<std::vector<float>> scores(static_cast<size_t>(wanted->count));
    for (int64_t i = 0; i < wanted->count; ++i)
        scores[i].resize(plan.high[wanted->rows[i]] - plan.low[wanted->rows[i]]);
    run.pool.parallel(wanted->count, [&](int64_t i, int thread) {
        score_row(run.isa, run.step, plan, shape, plane, q, q_stride, totals, wanted->rows[i],
                  scores[i].data(), own.attention.threads[thread]);
    });
    run.scores.emplace_back(layer, std::move(scores));
}

}  // namespace ockham::ops
