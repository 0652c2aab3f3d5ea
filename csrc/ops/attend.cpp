#include "ops/attend.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels/rows.h"
#include "kernels/threads.h"
#include "ops/attention_input.h"
#include "ops/checks.h"
#include "ops/choosing.h"
#include "ops/choosing_together.h"
#include "ops/fields.h"
#include "program.h"
#include "run.h"
#include "state/planes.h"

namespace ockham::ops {

namespace {

const Added added{"Attend", read<Attend>};

// How the rows of a plan turn their queries. The angle is rounded to fp32, and its cosine is computed
// in double and rounded once, as where queries are rotated first.
Turns turns_of(Run& run, const AttentionPlan& plan, const Rope& rope) {
    Turns turns;
    const int64_t half = turns.half = rope.half(), rows = run.step.rows;
    turns.angles.resize(static_cast<size_t>(rows * 4 * half));
    turns.scales.assign(static_cast<size_t>(rows), 1.0f);
    for_rows(run.pool, rows, 100 * half, [&](int64_t row, int) {
        const int64_t position = run.step.positions[row], own = position % rope.chunk;
        if (rope.original > 0 && position >= rope.original) {
            const double length = static_cast<double>(position + 1);
            const double root = 0.1 * std::log(length / static_cast<double>(rope.original)) + 1.0;
            turns.scales[row] = static_cast<float>(root * root);
        }
        const int64_t ways = std::min<int64_t>(2, position / rope.chunk);
        for (int64_t way = 0; way < ways; ++way) {
            const int64_t far = way == 0 ? own + rope.chunk : 2 * rope.chunk - 1;
            const float by = static_cast<float>(std::min(far, rope.reach) - own);
            float* to = turns.angles.data() + (row * 2 + way) * 2 * half;
            for (int64_t i = 0; i < half; ++i) {
                const double angle = by * rope.inverse_frequencies[i];
                to[i] = static_cast<float>(std::cos(angle));
                to[half + i] = static_cast<float>(std::sin(angle));
            }
        }
    });
    for (int64_t i = 0; i < run.active.count; ++i) {
        const int64_t row = run.active.at(i);
        if (run.step.positions[row] != plan.high[row] - 1)
            throw std::invalid_argument(
                "row " + std::to_string(row) + " sees " + std::to_string(plan.high[row]) +
                " keys at position " + std::to_string(run.step.positions[row]) +
                "; with dual chunk attention it must see all that come before it.");
    }
    return turns;
}

// The step's plan for a group, a window and a rope with chunks, which layers share.
const AttentionPlan& plan_of(Run& run, const Attend& op) {
    const Ropes& ropes = run.program.ropes;
    int64_t rope = ropes.of_layer(op.layer);
    if (rope >= 0 && ropes.all()[static_cast<size_t>(rope)].chunk == 0) rope = -1;
    for (const AttentionPlan& plan : run.plans)
        if (plan.group == op.group && plan.window == op.window && plan.causal == op.causal &&
            plan.active == run.active.which && plan.rope == rope)
            return plan;
    const int64_t repeat = op.shape.heads / op.shape.kv_heads;
    const int64_t chunk = rope < 0 ? 0 : ropes.all()[static_cast<size_t>(rope)].chunk;
    run.plans.push_back(plan_attention(run.step, run.active, op.group, op.window, op.causal, chunk,
                                       run.planes().groups()[op.group].pages, repeat));
    AttentionPlan& plan = run.plans.back();
    plan.rope = rope;
    if (rope >= 0) plan.turns = turns_of(run, plan, ropes.all()[static_cast<size_t>(rope)]);
    return plan;
}

// What the rows visit in the operation's layer.
LayerVisits visits_of(const Run& run, const Attend& op) {
    const VisitsView& visits = run.step.groups[op.group].visits;
    if (visits.query_blocks == nullptr) return {};
    const std::vector<int64_t>& layers = run.planes().groups()[op.group].layers;
    return {&visits, std::find(layers.begin(), layers.end(), op.state_layer()) - layers.begin()};
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
      reads(fields.none("reads") ? -1 : fields.integer("reads")),
      shape{fields.integer("heads"), fields.integer("kv_heads"), fields.integer("head_dim"),
            fields.number("scale"), fields.optional_number("softcap"), fields.floats("sinks")},
      causal(fields.flag("causal")) {
    if (fields.none("window")) return;
    window = fields.integer("window");
    if (window < 1) throw std::invalid_argument("a window sees at least one key.");
}

void Attend::check(Program& program) const {
    const auto* input = program.latest<AttentionInput>();
    require(input != nullptr && shape.heads == input->heads && shape.head_dim == input->head_dim,
            at("the attention", layer) + " has another shape than its queries.");
    require(reads == input->reads, at("the attention", layer) + " reads other keys than its input says.");
    require(program.planes.group_of(state_layer()) == group,
            at("the planes", state_layer()) + " belong to another group.");
    const LayerPlane plane = program.planes.layer(state_layer());
    require(plane.row_floats == 0 && plane.kv_heads == shape.kv_heads && plane.head_dim == shape.head_dim,
            at("the planes", layer) + " have another shape than its attention.");
    check_vector(shape.sinks, shape.heads, at("the sinks", layer));
    const Rope& rope = input->rope;
    if (rope.chunk == 0) return;
    require(causal, at("the attention", layer) + " has chunks, but is not causal.");
    require(rope.chunk > 0 && rope.chunk % block_keys == 0 && rope.reach > rope.chunk,
            at("the chunks", layer) + " must be whole blocks of 64 tokens, and reach beyond one.");
}

// Copies what the wanted rows look for; a row that is not active looks for nothing.
void Attend::keep_queries(Run& run, const LayerRows& wanted) const {
    const int64_t width = shape.heads * shape.head_dim, stride = run.query_stride;
    const RowSet& active = run.active;
    Floats kept{std::make_unique<Buffer>(), wanted.count, width};
    float* to = kept.memory->take<float>(wanted.count * width);
    std::fill_n(to, wanted.count * width, 0.0f);
    for (int64_t i = 0; i < wanted.count; ++i)
        if (active.which == nullptr ||
            std::binary_search(active.which, active.which + active.count, wanted.rows[i]))
            std::copy_n(run.activations->qkv.get<float>() + wanted.rows[i] * stride, width,
                        to + i * width);
    run.queries.emplace_back(layer, std::move(kept));
}

void Attend::run(Run& run) const {
    const LayerRows* by_head = of_layer(run.step.wants_scores, layer);
    const LayerRows* summed = of_layer(run.step.wants_score_sums, layer);
    const LayerSets* totalled = of_layer(run.step.wants_score_totals, layer);
    if (const LayerRows* asked = of_layer(run.step.wants_queries, layer)) keep_queries(run, *asked);
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
    const int64_t q_stride = run.query_stride;
    const LayerPlane plane = run.planes().layer(state_layer());
    const AttentionPlan& plan = plan_of(run, *this);
    Activations& own = *run.activations;
    const float* q = own.qkv.get<float>();
    float* a = own.a.take<float>(rows * shape.heads * shape.head_dim);
    LayerVisits visits = visits_of(run, *this);
    // A window bounds what its rows read.
    if (run.step.groups[group].choices.rows != nullptr && window == 0 && causal) {
        if (plan.chunk > 0)
            throw std::invalid_argument(
                "rows do not choose their keys with dual chunk attention.");
        visits.chosen = &own.chosen;
        choose(run.pool, run.isa, run.step, plan, shape, run.planes(), layer, state_layer(), q,
               q_stride, own.chosen, run.left_out[group]);
        choose_together(run.pool, run.isa, run.step, plan, shape, run.planes(), state_layer(), q,
                        q_stride, own.chosen, run.left_out[group]);
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
