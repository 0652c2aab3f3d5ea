#include "ops/attend.h"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "kernels/threads.h"
#include "ops/attention_input.h"
#include "ops/checks.h"
#include "ops/choosing.h"
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
        if (plan.group == op.group && plan.window == op.window && plan.causal == op.causal &&
            plan.active == run.active.which)
            return plan;
    const int64_t repeat = op.shape.heads / op.shape.kv_heads;
    run.plans.push_back(plan_attention(run.step, run.active, op.group, op.window, op.causal,
                                       run.planes().groups()[op.group].pages, repeat));
    return run.plans.back();
}

// What the rows visit in the operation's layer.
LayerVisits visits_of(const Run& run, const Attend& op) {
    const VisitsView& visits = run.step.groups[op.group].visits;
    if (visits.query_blocks == nullptr) return {};
    const std::vector<int64_t>& layers = run.planes().groups()[op.group].layers;
    return {&visits, std::find(layers.begin(), layers.end(), op.layer) - layers.begin()};
}

template <class Wanted>
const Wanted* of_layer(const std::vector<Wanted>& wanted, int64_t layer) {
    for (const Wanted& rows : wanted)
        if (rows.layer == layer) return &rows;
    return nullptr;
}

}  // namespace

Attend::Attend(const Fields& fields)
    : layer(fields.integer("layer")),
      group(fields.integer("group")),
      shape{fields.integer("heads"), fields.integer("kv_heads"), fields.integer("head_dim"),
            fields.number("scale"), fields.optional_number("softcap")},
      causal(fields.flag("causal")) {
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
    const LayerRows* by_head = of_layer(run.step.wants_scores, layer);
    const LayerRows* summed = of_layer(run.step.wants_score_sums, layer);
    const LayerSets* totalled = of_layer(run.step.wants_score_totals, layer);
    if (run.active.count == 0) {
        const auto nothing = [&](const LayerRows* wanted, int64_t sums,
                                 std::vector<LayerScores>& found) {
            if (wanted == nullptr) return;
            found.push_back({layer, sums, std::vector<std::vector<float>>(wanted->count)});
        };
        nothing(by_head, shape.kv_heads, run.scores);
        nothing(summed, 1, run.score_sums);
        if (totalled != nullptr)
            run.score_totals.push_back(
                {layer, shape.kv_heads, std::vector<std::vector<double>>(totalled->count)});
        return;
    }
    const int64_t rows = run.step.rows;
    const int64_t q_stride = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
    const LayerPlane plane = run.planes().layer(layer);
    const AttentionPlan& plan = plan_of(run, *this);
    Activations& own = *run.activations;
    const float* q = own.qkv.get<float>();
    float* a = own.a.take<float>(rows * shape.heads * shape.head_dim);
    LayerVisits visits = visits_of(run, *this);
    // A window bounds what its rows read.
    if (run.step.groups[group].choices.rows != nullptr && window == 0 && causal) {
        visits.chosen = &own.chosen;
        choose(run.pool, run.isa, run.step, plan, shape, run.planes(), layer, q, q_stride,
               own.chosen, run.left_out[group]);
    }
    const bool visits_all = visits.of_group == nullptr && visits.chosen == nullptr;
    const int64_t measured = visits_all ? 0 : run.step.recall_rows;
    const bool scored =
        by_head != nullptr || summed != nullptr || totalled != nullptr || measured > 0;
    float* totals = scored ? own.totals.take<float>(rows * shape.heads * 2) : nullptr;
    attend(run.pool, run.isa, run.step, plan, shape, plane, visits, q, q_stride, a, totals,
           own.attention);
    const auto score = [&](const LayerRows* wanted, bool sum, std::vector<LayerScores>& found) {
        if (wanted == nullptr) return;
        const int64_t sums = sum ? 1 : shape.kv_heads;
        LayerScores scores{layer, sums, std::vector<std::vector<float>>(wanted->count)};
        for (int64_t i = 0; i < wanted->count; ++i) {
            const int64_t row = wanted->rows[i];
            scores.rows[i].resize(sums * (plan.high[row] - plan.low[row]));
        }
        run.pool.parallel(wanted->count, [&](int64_t i, int thread) {
            if (scores.rows[i].empty()) return;  // not active
            score_row(run.isa, run.step, plan, shape, plane, visits, q, q_stride, totals,
                      wanted->rows[i], sum, scores.rows[i].data(), own.attention.threads[thread]);
        });
        found.push_back(std::move(scores));
    };
    score(by_head, false, run.scores);
    score(summed, true, run.score_sums);
    if (totalled != nullptr) {
        LayerTotals found{layer, shape.kv_heads, std::vector<std::vector<double>>(totalled->count)};
        for (int64_t set = 0; set < totalled->count; ++set) {
            const int32_t* of_set = totalled->rows + totalled->starts[set];
            const int64_t count = totalled->starts[set + 1] - totalled->starts[set];
            int64_t keys = 0;
            for (int64_t i = 0; i < count; ++i)
                if (plan.high[of_set[i]] > plan.low[of_set[i]])
                    keys = std::max<int64_t>(keys, plan.high[of_set[i]]);
            found.sets[set].resize(shape.kv_heads * keys);
            total_rows(run.pool, run.isa, run.step, plan, shape, plane, visits, q, q_stride,
                       totals, of_set, count, keys, found.sets[set].data(), own.attention);
        }
        run.score_totals.push_back(std::move(found));
    }
    if (measured == 0) return;
    Floats recall{std::make_unique<Buffer>(), measured, shape.kv_heads};
    float* shares = recall.memory->take<float>(measured * shape.kv_heads);
    run.pool.parallel(measured, [&](int64_t i, int thread) {
        recall_row(run.isa, run.step, plan, shape, plane, q, q_stride, totals,
                   run.step.wants_recall[i], shares + i * shape.kv_heads,
                   own.attention.threads[thread]);
    });
    run.recall.emplace_back(layer, std::move(recall));
}

}  // namespace ockham::ops
