// The rows of a query block choose together what the sums over antidiagonals of their scores say.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "choosers/antidiagonals.h"
#include "kernels/threads.h"
#include "ops/choosing.h"
#include "ops/choosing_together.h"
#include "state/planes.h"
#include "tests/tests.h"

namespace ockham::tests {

namespace {

constexpr int64_t rows = 4 * block_keys + 7, dim = 8, heads = 2, page_tokens = 16;
constexpr double threshold = 0.6;

float value(int64_t i) { return static_cast<float>((i * 7919 + i / 5 * 104729) % 2001 - 1000) / 700; }

// The blocks that rows of query block `own` should visit, in the order of a plain reading.
std::vector<int32_t> expected(const float* q, const float* keys, int64_t own, int64_t stride) {
    std::vector<double> weights(static_cast<size_t>(own + 1), 0.0);
    for (int64_t head = 0; head < heads; ++head)
        for (int64_t i = 0; i < block_keys; i += stride) {
            std::vector<double> scores;
            for (int64_t j = 0; j <= own * block_keys + i; j += stride) {
                double sum = 0.0;
                for (int64_t t = 0; t < stride; ++t)
                    for (int64_t e = 0; e < dim; ++e)
                        sum += q[((own * block_keys + i + stride - 1 - t) * (heads + 2) + head) * dim + e] *
                               static_cast<double>(keys[(j + t) * dim + e]);
                scores.push_back(sum / static_cast<double>(stride));
            }
            const double most = *std::max_element(scores.begin(), scores.end());
            double total = 0.0;
            for (double& score : scores) total += score = std::exp(score - most);
            for (size_t j = 0; j < scores.size(); ++j)
                weights[j * static_cast<size_t>(stride) / block_keys] += scores[j] / total;
        }
    std::vector<int32_t> order(static_cast<size_t>(own - 1)), found{0, static_cast<int32_t>(own)};
    std::iota(order.begin(), order.end(), 1);
    std::sort(order.begin(), order.end(),
              [&](int32_t one, int32_t other) { return weights[one] > weights[other]; });
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    double reached = weights.front() + weights.back();
    for (const int32_t b : order) {
        if (reached >= threshold * sum) break;
        reached += weights[b];
        found.push_back(b);
    }
    std::sort(found.begin(), found.end());
    return found;
}

void choose_blocks(Isa isa, Element element, int64_t stride) {
    ThreadPool pool(2);
    const int64_t pages = (rows + page_tokens - 1) / page_tokens;
    const Planes planes({GroupShape{{0}, 1, dim, element, element, pages, page_tokens}});
    const LayerPlane plane = planes.layer(0);
    std::vector<float> keys(static_cast<size_t>(rows * dim));
    std::vector<float> q(static_cast<size_t>(rows * (heads + 2) * dim));
    for (size_t i = 0; i < keys.size(); ++i) keys[i] = value(static_cast<int64_t>(i) + 17);
    for (size_t i = 0; i < q.size(); ++i) q[i] = value(3 * static_cast<int64_t>(i));
    std::vector<int32_t> table(static_cast<size_t>(pages)), sequence(rows, 0), context(rows);
    std::iota(table.rbegin(), table.rend(), 0);
    std::iota(context.begin(), context.end(), 1);
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t slot = table[row / page_tokens] * page_tokens + row % page_tokens;
        plane.store_run(row_kernels(isa), slot, 1, &keys[row * dim], &keys[row * dim], dim, dim);
    }
    for (int64_t row = 0; row < rows; ++row) {  // as they are stored
        const int64_t slot = table[row / page_tokens] * page_tokens + row % page_tokens;
        std::vector<float> widened(static_cast<size_t>(plane.width));
        plane.widen_key(row_kernels(isa), slot, 0, widened.data());
        std::copy_n(widened.data(), dim, &keys[row * dim]);
    }
    StepView step;
    step.rows = rows;
    step.sequences = 1;
    step.sequence = sequence.data();
    step.page_tokens = page_tokens;
    const int32_t starts[] = {0, static_cast<int32_t>(pages)}, layers[] = {1};
    GroupRowsView& group = step.groups.emplace_back();
    group.table = {table.data(), starts, pages};
    group.context = context.data();
    ChoicesView::Choice choice;
    choice.until = 4 * block_keys;
    choice.sinks = 1;
    choice.stride = stride;
    choice.share = 1.0;
    choice.threshold = threshold;
    choice.layers = layers;
    const std::vector<int32_t> of_rows(rows, 0);
    group.choices.rows = of_rows.data();
    group.choices.of = {choice};
    group.choices.layer_count = 1;

    const AttentionShape shape{heads, 1, dim, 1.0f, 0.0f};
    const AttentionPlan plan = plan_attention(step, {rows, nullptr}, 0, 0, true, 0, pages, heads);
    ChosenBlocks chosen;
    LeftOut left_out;
    choose(pool, isa, step, plan, shape, planes, 0, 0, q.data(), (heads + 2) * dim, chosen, left_out);
    choose_together(pool, isa, step, plan, shape, planes, 0, q.data(), (heads + 2) * dim, chosen,
                    left_out);
    for (int64_t row = 0; row < rows; ++row) {
        BlockList list;
        const int64_t own = row / block_keys;
        check(chosen.find(row, 0, list) == (own >= 2 && own < 4),
              "whole blocks choose that have something to leave out");
        if (list.blocks == nullptr) continue;
        check(std::vector<int32_t>(list.blocks, list.end()) ==
                  expected(q.data(), keys.data(), own, stride),
              "the heaviest blocks are chosen");
        const int64_t products = (own + 1) * block_keys / (2 * stride);
        check(left_out.keys[row] == (own + 1 - list.count) * block_keys - products,
              "what is left out is counted, less what the choice took");
        check(left_out.bytes[row] > 0, "what was read to choose is counted");
    }
}

void rows_choose_together() {
    for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512})
        for (const Element element : {Element::fp32, Element::bf16, Element::int8, Element::int4})
            for (const int64_t stride : {8, 16})
                if (supported(isa)) choose_blocks(isa, element, stride);
}

const Added added{"rows of a block choose together", rows_choose_together};

}  // namespace

}  // namespace ockham::tests
