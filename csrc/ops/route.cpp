#include "ops/route.h"

#include <algorithm>

#include "kernels/rows.h"
#include "ops/checks.h"
#include "ops/fields.h"
#include "ops/product.h"
#include "program.h"
#include "run.h"

namespace ockham::ops {

namespace {

const Added added{"Route", read<Route>};

// The `top_k` largest of `count` probabilities plus their `correction` (null for none), the largest
// first, the lowest index on a tie; taken ones become -1. (NaN is never larger, so that a damaged row
// still names experts that exist.)
void choose(float* p, const float* correction, int64_t count, int64_t top_k, bool normalise,
            float scale, int32_t* chosen, float* weights) {
    float total = 0.0f;
    const auto rank = [&](int64_t e) { return correction == nullptr ? p[e] : p[e] + correction[e]; };
    for (int64_t place = 0; place < top_k; ++place) {
        int64_t best = -1;
        for (int64_t e = 0; e < count; ++e)
            if (p[e] != -1.0f && (best < 0 || rank(e) > rank(best))) best = e;
        chosen[place] = static_cast<int32_t>(best);
        weights[place] = p[best];
        total = total + p[best];
        p[best] = -1.0f;
    }
    if (normalise)
        for (int64_t place = 0; place < top_k; ++place) weights[place] = weights[place] / total;
    if (scale != 1.0f)
        for (int64_t place = 0; place < top_k; ++place) weights[place] = weights[place] * scale;
}

// Sets the probabilities of experts that stand in none of the `kept` best of `groups` groups of
// neighbours to -1, which choose() leaves out. A group is as good as the sum of its `best` largest
// ranks; the lowest index wins a tie.
void keep_groups(float* p, const float* correction, int64_t count, int64_t groups, int64_t kept,
                 int64_t best) {
    const int64_t each = count / groups;
    std::vector<float> ranks(static_cast<size_t>(each)), goods(static_cast<size_t>(groups));
    for (int64_t g = 0; g < groups; ++g) {
        for (int64_t i = 0; i < each; ++i) {
            const int64_t e = g * each + i;
            ranks[i] = correction == nullptr ? p[e] : p[e] + correction[e];
        }
        std::partial_sort(ranks.begin(), ranks.begin() + best, ranks.end(),
                          [](float a, float b) { return a > b; });
        goods[g] = ranks[0];
        for (int64_t i = 1; i < best; ++i) goods[g] = goods[g] + ranks[i];
    }
    std::vector<bool> keeps(static_cast<size_t>(groups), false);
    for (int64_t n = 0; n < kept; ++n) {
        int64_t largest = -1;
        for (int64_t g = 0; g < groups; ++g)
            if (!keeps[g] && (largest < 0 || goods[g] > goods[largest])) largest = g;
        keeps[largest] = true;
    }
    for (int64_t e = 0; e < count; ++e)
        if (!keeps[e / each]) p[e] = -1.0f;
}

}  // namespace

Route::Route(const Fields& fields)
    : layer(fields.integer("layer")),
      router(fields.matrix("router")),
      bias(fields.floats("bias")),
      top_k(fields.integer("top_k")),
      normalise(fields.flag("normalise")),
      norm(fields.norm("norm")),
      correction(fields.floats("correction")),
      sigmoid(fields.flag("sigmoid")),
      scale(fields.number("scale")),
      expert_scales(fields.floats("expert_scales")),
      groups(fields.integer("groups")),
      kept_groups(fields.integer("kept_groups")),
      group_best(fields.integer("group_best")) {}

void Route::check(Program& program) const {
    const int64_t experts = router.outputs();
    check_matrix(router, experts, program.hidden, at("the router", layer));
    check_norm(norm, program.hidden, at("the norm", layer));
    check_vector(correction, experts, at("the router's correction", layer));
    check_vector(bias, experts, at("the router's bias", layer));
    check_vector(expert_scales, experts, at("the scales of the router's experts", layer));
    require(top_k > 0 && top_k <= experts,
            at("the router", layer) + " cannot choose so many experts.");
    require(groups > 0 && experts % groups == 0 && kept_groups > 0 && kept_groups <= groups &&
                group_best > 0 && group_best <= experts / groups &&
                top_k <= kept_groups * (experts / groups),
            at("the router", layer) + " has groups that its experts do not fill.");
}

void Route::run(Run& run) const {
    const int64_t rows = run.active.count, hidden = run.hidden, experts = router.outputs();
    Activations& own = *run.activations;
    // The normed rows are kept: the experts read them too.
    float* h = own.h.take<float>(rows * hidden);
    const float* x = run.x();
    const auto normed = [&](int64_t row, int) -> const float* {
        float* to = h + row * hidden;
        const float* from = x + run.active.at(row) * hidden;
        if (norm)
            ops::normalise(run.kernels, norm, from, hidden, to);
        else
            std::copy_n(from, hidden, to);
        return to;
    };
    run.experts_per_row = top_k;
    run.routed_rows = rows;
    if (rows == 0) return;
    float* scores = own.gate_up.take<float>(rows * experts);
    product(run, router, Rows{rows, hidden, normed}, scores, bias);

    int32_t* chosen = own.experts.take<int32_t>(rows * top_k);
    float* weights = own.expert_weights.take<float>(rows * top_k);
    for_rows(run.pool, rows, experts * top_k, [&](int64_t row, int) {
        float* p = scores + row * experts;
        if (sigmoid)
            run.kernels.logistic(p, experts);
        else
            run.kernels.softmax(p, experts);
        const float* corrected = correction.empty() ? nullptr : correction.data();
        if (kept_groups < groups)
            keep_groups(p, corrected, experts, groups, kept_groups, group_best);
        choose(p, corrected, experts, top_k, normalise, scale, chosen + row * top_k,
               weights + row * top_k);
        if (expert_scales.empty()) return;
        for (int64_t i = row * top_k; i < (row + 1) * top_k; ++i)
            weights[i] = weights[i] * expert_scales[chosen[i]];
    });
}

}  // namespace ockham::ops
