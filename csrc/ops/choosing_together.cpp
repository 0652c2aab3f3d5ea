#include "ops/choosing_together.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "choosers/antidiagonals.h"
#include "kernels/threads.h"
#include "ops/key_groups.h"

namespace ockham {

namespace {

constexpr int64_t some_blocks = 4;  // whose keys are widened at once

// A query block, all of whose rows are in the step, one after the other from `row` on.
struct Whole {
    int64_t row, number;
    const ChoicesView::Choice* choice;
};

std::vector<Whole> whole_blocks(const StepView& step, const AttentionPlan& plan, int64_t index) {
    const GroupRowsView& group = step.groups[plan.group];
    std::vector<Whole> found;
    for (int64_t row = 0; row + block_keys <= step.rows; ++row) {
        const int64_t keys = plan.high[row];  // 0 where the row is not active
        if (keys % block_keys != 1) continue;
        const ChoicesView::Choice* choice = group.choices.find(row, keys);
        if (choice == nullptr || choice->chooser != nullptr || choice->layers[index] == 0) continue;
        const int64_t number = keys / block_keys;
        if (number < choice->sinks + choice->local) continue;  // it visits all
        const auto follows = [&](int64_t i) {
            return step.sequence[row + i] == step.sequence[row] && plan.high[row + i] == keys + i &&
                   group.extras(row + i) == 0 &&
                   group.choices.find(row + i, keys + i) == choice;
        };
        int64_t rows = 0;
        while (rows < block_keys && follows(rows)) ++rows;
        if (rows < block_keys) continue;
        found.push_back({row, number, choice});
        row += block_keys - 1;
    }
    return found;
}

// How one key-value head chooses, in the group's layer `index`.
struct HeadRule {
    bool turned = true;  // by sums over antidiagonals
    int32_t rule = 0;    // else
    double share = 1.0;

    HeadRule(const ChoicesView& choices, const ChoicesView::Choice& choice, int64_t index,
             int64_t head)
        : turned(choice.rules == nullptr), share(choice.share) {
        if (turned) return;
        const int64_t place = index * choices.head_count + head;
        rule = choice.rules[place];
        share = choice.rule_shares[place];
    }
    // The most blocks of so many that are visited, but for those that all visit.
    size_t most(int64_t blocks) const {
        return static_cast<size_t>(std::ceil(share * static_cast<double>(blocks)));
    }
    // Whether keys are read to choose among so many blocks.
    bool reads(const ChoicesView::Choice& choice, int64_t blocks) const {
        if (turned) return true;
        const auto room = static_cast<int64_t>(most(blocks));
        return rule != ChoicesView::latest && room > choice.sinks + choice.local && room < blocks;
    }
    // Of how many queries one is multiplied with each key.
    int64_t rows_per_product(const ChoicesView::Choice& choice) const {
        return !turned && rule == ChoicesView::means ? block_keys : choice.stride;
    }
};

// One block with one key-value head.
class Task {
   public:
    Task(Isa isa, const StepView& step, const AttentionPlan& plan, const AttentionShape& shape,
         const LayerPlane& plane, const Whole& block, const HeadRule& rule, int64_t head,
         TogetherScratch& scratch)
        : isa_(static_cast<int>(isa)),
          rows_(row_kernels(isa)),
          cells_(cells_of(step, plan, block.row + block_keys - 1)),
          shape_(shape),
          plane_(plane),
          block_(block),
          rule_(rule),
          head_(head),
          repeat_(shape.heads / shape.kv_heads),
          scratch_(scratch) {}

    std::vector<int32_t> run(const float* q, int64_t q_stride) {
        const int64_t count = block_.number + 1;
        std::vector<double> weights(static_cast<size_t>(count), 0.0);
        if (!rule_.reads(*block_.choice, count)) {
            std::iota(weights.begin(), weights.end(), 0.0);  // the latest weigh most
        } else if (rule_.turned) {
            strides_ = block_keys / block_.choice->stride;
            turn(q, q_stride);
            score(strides_, block_.choice->stride);
            weigh_strides(weights);
        } else if (rule_.rule == ChoicesView::lines) {
            strides_ = block_keys / block_.choice->stride;
            lay_rows(q, q_stride);
            score(block_keys, 1);
            weigh_keys(weights);
        } else {
            strides_ = 1;
            lay_means(q, q_stride);
            score(block_groups, group_keys);
            weigh_means(weights);
        }
        return select(weights);
    }

   private:
    // A query as the keys of the plane lie, from the row and the query head that it is of.
    void add_query(const float* q, int64_t q_stride, int64_t row, int64_t i, float scale,
                   float* to) const {
        const float* from =
            q + (block_.row + row) * q_stride + (head_ * repeat_ + i) * shape_.head_dim;
        for (int64_t e = 0; e < shape_.head_dim; ++e) to[e] += from[e] * scale;
    }
    void as_keys(float* query) const {
        const float* mirror = plane_.mirror(head_);
        if (mirror != nullptr) reflect(mirror, shape_.head_dim, query);
        if (plane_.k.rotated()) rows_.hadamard(query, shape_.head_dim);
    }
    void fill_lanes(const float* query, float* to) const {
        for (int64_t e = 0; e < shape_.head_dim; ++e)
            std::fill_n(to + e * group_keys, group_keys, query[e]);
    }

    // Lays each `stride`-th query in all lanes, to be multiplied with each key.
    void lay_rows(const float* q, int64_t q_stride) {
        const int64_t dim = shape_.head_dim, stride = block_.choice->stride;
        float* laid = scratch_.turned.take<float>(repeat_ * strides_ * dim * group_keys);
        float* own = scratch_.query.take<float>(dim);
        for (int64_t i = 0; i < repeat_; ++i)
            for (int64_t s = 0; s < strides_; ++s) {
                std::fill_n(own, dim, 0.0f);
                add_query(q, q_stride, s * stride + stride - 1, i, shape_.scale, own);
                as_keys(own);
                fill_lanes(own, laid + (i * strides_ + s) * dim * group_keys);
            }
    }

    // Lays the mean query of each query head in all lanes, such that the sum of its products with the keys
    // of a block is that with their mean.
    void lay_means(const float* q, int64_t q_stride) {
        const int64_t dim = shape_.head_dim;
        float* laid = scratch_.turned.take<float>(repeat_ * dim * group_keys);
        float* own = scratch_.query.take<float>(dim);
        const float scale = shape_.scale / static_cast<float>(block_keys * block_keys);
        for (int64_t i = 0; i < repeat_; ++i) {
            std::fill_n(own, dim, 0.0f);
            for (int64_t row = 0; row < block_keys; ++row)
                add_query(q, q_stride, row, i, scale, own);
            as_keys(own);
            fill_lanes(own, laid + i * dim * group_keys);
        }
    }

    // Lays `stride` queries, the last one first, as the keys of their antidiagonals lie.
    void turn(const float* q, int64_t q_stride) {
        const int64_t dim = shape_.head_dim, stride = block_.choice->stride;
        float* turned = scratch_.turned.take<float>(repeat_ * strides_ * dim * group_keys);
        float* own = scratch_.query.take<float>(dim);
        const float scale = shape_.scale / static_cast<float>(stride);
        const float* mirror = plane_.mirror(head_);
        for (int64_t i = 0; i < repeat_; ++i)
            for (int64_t row = 0; row < block_keys; ++row) {
                const float* from = q + (block_.row + row) * q_stride + (head_ * repeat_ + i) * dim;
                for (int64_t e = 0; e < dim; ++e) own[e] = from[e] * scale;
                if (mirror != nullptr) reflect(mirror, dim, own);
                if (plane_.k.rotated()) rows_.hadamard(own, dim);
                float* to = turned + (i * strides_ + row / stride) * dim * group_keys;
                for (int64_t lane = stride - 1 - row % stride; lane < group_keys; lane += stride)
                    for (int64_t e = 0; e < dim; ++e) to[e * group_keys + lane] = own[e];
            }
    }

    // scores[query head][stride of queries][stride of keys], of which a block has `of_block`.
    void score(int64_t of_block, int64_t stride) {
        columns_ = (block_.number + 1) * of_block;
        const int64_t floats = shape_.head_dim * group_keys;
        float* keys = scratch_.keys.take<float>(some_blocks * block_groups * floats);
        float* scores = scratch_.scores.take<float>(repeat_ * strides_ * columns_);
        KeyGroup groups[some_blocks * block_groups];
        for (int64_t b = 0; b <= block_.number; b += some_blocks) {
            const int64_t blocks = std::min(some_blocks, block_.number + 1 - b);
            find_groups(plane_, head_, cells_, b * block_groups, b * block_keys,
                        (b + blocks) * block_keys, scratch_.gathered, groups);
            for (int64_t g = 0; g < blocks * block_groups; ++g)
                antidiagonals.widen[isa_](groups[g].keys, plane_.k.element, shape_.head_dim,
                                          plane_.k.scale_at(0), keys + g * floats);
            antidiagonals.sum[isa_](scratch_.turned.get<float>(), repeat_ * strides_,
                                    shape_.head_dim, keys, blocks * block_groups,
                                    stride, scores + b * of_block, columns_);
        }
    }

    void weigh_strides(std::vector<double>& weights) {
        float* scores = scratch_.scores.get<float>();
        for (int64_t i = 0; i < repeat_ * strides_; ++i, scores += columns_) {
            const int64_t seen = block_.number * strides_ + i % strides_ + 1;
            rows_.softmax(scores, seen);
            for (int64_t j = 0; j < seen; ++j)
                if (scores[j] > 0.0f) weights[j / strides_] += scores[j];  // never of a NaN
        }
    }

    void weigh_keys(std::vector<double>& weights) {
        const int64_t stride = block_.choice->stride;
        float* scores = scratch_.scores.get<float>();
        for (int64_t i = 0; i < repeat_ * strides_; ++i, scores += columns_) {
            const int64_t seen = block_.number * block_keys + (i % strides_ + 1) * stride;
            rows_.softmax(scores, seen);
            for (int64_t j = 0; j < seen; ++j)
                if (scores[j] > 0.0f) weights[j / block_keys] += scores[j];  // never of a NaN
        }
    }

    void weigh_means(std::vector<double>& weights) {
        float* scores = scratch_.scores.get<float>();
        for (int64_t i = 0; i < repeat_; ++i, scores += columns_) {
            for (int64_t b = 0; b <= block_.number; ++b) {
                const float* of_block = scores + b * block_groups;
                float sum = of_block[0];
                for (int64_t g = 1; g < block_groups; ++g) sum += of_block[g];
                scores[b] = sum;  // of a block behind those that are still to be read
            }
            rows_.softmax(scores, block_.number + 1);
            for (int64_t b = 0; b <= block_.number; ++b)
                if (scores[b] > 0.0f) weights[b] += scores[b];  // never of a NaN
        }
    }

    std::vector<int32_t> select(const std::vector<double>& weights) const {
        const ChoicesView::Choice& choice = *block_.choice;
        double total = 0.0, reached = 0.0;
        for (const double weight : weights) total += weight;
        const int64_t last = block_.number + 1 - choice.local;
        std::vector<int32_t> blocks, order;
        for (int32_t b = 0; b <= block_.number; ++b) {
            const bool forced = b < choice.sinks || b >= last;
            (forced ? blocks : order).push_back(b);
            if (forced) reached += weights[b];
        }
        std::sort(order.begin(), order.end(), [&](int32_t one, int32_t other) {
            return weights[one] > weights[other] || (weights[one] == weights[other] && one < other);
        });
        const size_t most = rule_.most(block_.number + 1);
        for (const int32_t b : order) {
            if (blocks.size() >= most) break;
            if (rule_.turned && reached >= choice.threshold * total) break;
            reached += weights[b];
            blocks.push_back(b);
        }
        std::sort(blocks.begin(), blocks.end());
        return blocks;
    }

    const int isa_;
    const RowKernels& rows_;
    const Cells cells_;
    const AttentionShape& shape_;
    const LayerPlane& plane_;
    const Whole& block_;
    const HeadRule rule_;
    const int64_t head_, repeat_;
    int64_t strides_ = 0, columns_ = 0;  // of the queries of a head, and scores of each
    TogetherScratch& scratch_;
};

// What blocks of one sequence, `first` and those after it, left out with all heads, in the group's layer
// `index`.
void count(const StepView& step, const AttentionPlan& plan, const LayerPlane& plane, int64_t index,
           const ChosenBlocks& chosen, const std::vector<Whole>& blocks, size_t first, size_t last,
           LeftOut& left_out) {
    const int64_t heads = plane.kv_heads, keys = (blocks[last - 1].number + 1) * block_keys;
    int64_t read = 0;
    for (int64_t head = 0; head < heads; ++head) {
        std::vector<char> visited(static_cast<size_t>(keys / block_keys), 0);
        for (int64_t row = 0; row < step.rows; ++row) {
            if (step.sequence[row] != step.sequence[blocks[first].row] || plan.high[row] == 0)
                continue;
            BlockList list;
            if (chosen.find(row, head, list)) {
                for (int64_t i = 0; i < list.count; ++i) visited[list.blocks[i]] = 1;
                row += block_keys - 1;
            } else {
                const int64_t seen = (std::min<int64_t>(keys, plan.high[row]) - 1) / block_keys + 1;
                std::fill(visited.begin(), visited.begin() + seen, 1);
            }
        }
        read += block_keys * std::count(visited.begin(), visited.end(), 1);
    }
    left_out.read[blocks[first].row] += read;
    const int64_t rows = static_cast<int64_t>(last - first) * block_keys;
    const ChoicesView& choices = step.groups[plan.group].choices;
    const Whole& latest = blocks[last - 1];
    int64_t readers = 0;
    for (int64_t head = 0; head < heads; ++head)
        readers += HeadRule(choices, *latest.choice, index, head)
                       .reads(*latest.choice, latest.number + 1);
    const int64_t bytes = keys * readers * plane.k.row_bytes();
    left_out.bytes[blocks[first].row] += bytes % rows;
    for (size_t i = first; i < last; ++i) {
        const int64_t seen = blocks[i].number + 1;
        int64_t unvisited = 0, products = 0;
        for (int64_t head = 0; head < heads; ++head) {
            BlockList list;
            chosen.find(blocks[i].row, head, list);
            unvisited += (seen - list.count) * block_keys;
            // An antidiagonal is a 1 / stride of the products of queries and keys, which are half of all.
            const HeadRule rule(choices, *blocks[i].choice, index, head);
            if (rule.reads(*blocks[i].choice, seen))
                products += seen * block_keys / (2 * rule.rows_per_product(*blocks[i].choice));
        }
        for (int64_t row = blocks[i].row; row < blocks[i].row + block_keys; ++row) {
            left_out.keys[row] += unvisited - products;
            left_out.bytes[row] += bytes / rows;
        }
    }
}

}  // namespace

void choose_together(ThreadPool& pool, Isa isa, const StepView& step, const AttentionPlan& plan,
                     const AttentionShape& shape, const Planes& planes, int64_t layer,
                     const float* q, int64_t q_stride, ChosenBlocks& chosen, LeftOut& left_out) {
    const std::vector<int64_t>& layers = planes.groups()[plan.group].layers;
    const int64_t layer_index = std::find(layers.begin(), layers.end(), layer) - layers.begin();
    const std::vector<Whole> blocks = whole_blocks(step, plan, layer_index);
    if (blocks.empty()) return;
    const LayerPlane plane = planes.layer(layer);
    const auto begin = static_cast<int64_t>(chosen.rows.size());
    const auto every = static_cast<size_t>(begin) + blocks.size();
    if (chosen.blocks.size() < every * static_cast<size_t>(shape.kv_heads))
        chosen.blocks.resize(every * static_cast<size_t>(shape.kv_heads));
    chosen.together.resize(static_cast<size_t>(pool.size()));
    const auto tasks = static_cast<int64_t>(blocks.size()) * shape.kv_heads;
    // The last blocks see most: they begin first.
    pool.parallel(tasks, [&](int64_t index, int thread) {
        const int64_t task = tasks - 1 - index, head = task % shape.kv_heads;
        const Whole& block = blocks[task / shape.kv_heads];
        const HeadRule rule(step.groups[plan.group].choices, *block.choice, layer_index, head);
        chosen.blocks[begin * shape.kv_heads + task] =
            Task(isa, step, plan, shape, plane, block, rule, head, chosen.together[thread])
                .run(q, q_stride);
    });
    for (size_t i = 0; i < blocks.size(); ++i)
        std::fill_n(chosen.place.begin() + blocks[i].row, block_keys,
                    static_cast<int32_t>(begin + static_cast<int64_t>(i)));
    for (size_t first = 0, last = 0; first < blocks.size(); first = last) {
        while (last < blocks.size() &&
               step.sequence[blocks[last].row] == step.sequence[blocks[first].row])
            ++last;
        count(step, plan, plane, layer_index, chosen, blocks, first, last, left_out);
    }
}

}  // namespace ockham
