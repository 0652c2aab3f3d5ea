#include "ops/choosing.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

#include "choosers/chooser.h"
#include "kernels/threads.h"

namespace ockham {

namespace {

constexpr int64_t most_chunk_blocks = 256;  // blocks of one task that scores, at most

// Blocks of one task that scores. Who looks up makes a table in each task.
int64_t chunk_blocks(const Chooser& chooser) { return chooser.looks_up ? most_chunk_blocks : 64; }

// Blocks that a row may visit, its first and its latest ones included, but not those that all visit.
int64_t budget_of(const ChoicesView::Choice& choice, int64_t keys) {
    if (choice.among >= 0) keys = std::min(keys, choice.among);
    const double share = std::ceil(choice.share * static_cast<double>(keys));
    const int64_t wanted = std::max(choice.tokens, static_cast<int64_t>(share));
    return std::max((wanted + block_keys - 1) / block_keys, choice.sinks + choice.local);
}

// Whether a row that sees `keys` keys may visit all blocks anyway.
bool visits_all(const ChoicesView::Choice& choice, int64_t keys) {
    const int64_t own = (keys - 1) / block_keys;
    if (own == 0) return true;
    int64_t last = own + 1;
    if (choice.among >= 0) last = std::min(last, choice.among / block_keys + choice.local);
    return budget_of(choice, keys) >= last && std::isinf(choice.within);
}

// The summaries of one layer.
class Summaries {
   public:
    Summaries(Isa isa, const Planes& planes, int64_t layer, const LayerPlane& plane,
              const Chooser& chooser)
        : kernels_(row_kernels(isa)),
          plane_(plane),
          chooser_(chooser),
          bytes_(chooser.summary_bytes(plane.width)),
          of_head_(planes.slot_groups(planes.group_of(layer)) * bytes_),
          bit_(static_cast<uint8_t>(1 << number_of(chooser))),
          data_(planes.summaries(number_of(chooser), layer, bytes_)) {
        if (chooser.looks_up && plane.books == nullptr)
            throw std::invalid_argument(std::string("the chooser ") + chooser.name +
                                        " needs codebooks, and layer " + std::to_string(layer) +
                                        " has none.");
    }

    int64_t bytes() const { return bytes_; }
    // What scoring reads of a head beside its summaries.
    int64_t book_bytes() const { return chooser_.looks_up ? plane_.books->bytes() : 0; }
    const KeyBook* book(int64_t head) const {
        return chooser_.looks_up ? plane_.books + head : nullptr;
    }
    uint8_t* at(int64_t slot_group, int64_t head) const {
        return data_ + head * of_head_ + slot_group * bytes_;
    }
    // Whether a summary is to be made, which is taken for made from now on.
    bool take_stale(int64_t slot_group) const {
        uint8_t& fresh = plane_.fresh[slot_group];
        if (fresh & bit_) return false;
        fresh |= bit_;
        return true;
    }
    // Of 16 keys, the i-th of which stands in slot_of(i).
    template <class F>
    void make(int64_t head, F slot_of, Buffer& scratch, uint8_t* to) const {
        float* keys = scratch.take<float>(group_keys * plane_.width);
        for (int64_t i = 0; i < group_keys; ++i)
            plane_.widen_key(kernels_, slot_of(i), head, keys + i * plane_.width);
        chooser_.summarise(keys, plane_.width, book(head), to);
    }

   private:
    const RowKernels& kernels_;
    const LayerPlane& plane_;
    const Chooser& chooser_;
    const int64_t bytes_, of_head_;
    const uint8_t bit_;
    uint8_t* data_;
};

// Finds what the key groups of a row are: in place in the planes, or with keys from anywhere.
class Groups {
   public:
    Groups(const StepView& step, const AttentionPlan& plan, const LayerPlane& plane, int64_t row)
        : cells_(cells_of(step, plan, row)), in_place_(plane.groups_in_place()) {}

    // The number of the 16 slots that hold the logical keys of group g; -1 if no such slots do.
    int64_t slots_of(int64_t g) const {
        const int64_t cell = g * group_keys;
        if (!in_place_ || cell + group_keys > cells_.context) return -1;
        return cells_.slot(cell) / group_keys;
    }
    int64_t slot(int64_t key) const { return cells_.slot(key); }

   private:
    const Cells cells_;
    const bool in_place_;
};

// A row that visits what the row of another key of its past chose, in the same block of keys.
struct GoesOn {
    int64_t row, keys, chosen_at;
};

struct Stale {
    const Summaries* summaries;
    int64_t slot_group;
};

// Makes the summaries that rows need and that are not there.
void refresh(ThreadPool& pool, const StepView& step, const AttentionPlan& plan,
             const LayerPlane& plane, const std::vector<Summaries>& of_rows, ChosenBlocks& chosen) {
    std::vector<Stale> stale;
    for (size_t i = 0; i < chosen.rows.size(); ++i) {
        const Groups groups(step, plan, plane, chosen.rows[i].row);
        for (int64_t g = 0; g < chosen.rows[i].own_block * block_groups; ++g) {
            const int64_t slots = groups.slots_of(g);
            if (slots >= 0 && of_rows[i].take_stale(slots)) stale.push_back({&of_rows[i], slots});
        }
    }
    const auto make = [&](int64_t i, int thread) {
        const auto [summaries, slots] = stale[i];
        for (int64_t head = 0; head < plane.kv_heads; ++head)
            summaries->make(
                head, [&](int64_t key) { return slots * group_keys + key; },
                chosen.threads[thread], summaries->at(slots, head));
    };
    const auto count = static_cast<int64_t>(stale.size());
    if (count < 4)
        for (int64_t i = 0; i < count; ++i) make(i, 0);
    else
        pool.parallel(count, make);
}

// Scores the blocks [first, last) of a row for one key-value head: scores[query head][block], the best of
// each block's groups, or their sum.
void score_blocks(Isa isa, const Chooser& chooser, const Summaries& summaries, const Groups& groups,
                  const LayerPlane& plane, int64_t head, int64_t repeat, const uint8_t* queries,
                  int64_t first, int64_t last, float* scores, int64_t stride, Buffer& scratch) {
    constexpr int64_t most = most_chunk_blocks * block_groups;
    const uint8_t* found[most];
    const int64_t count = (last - first) * block_groups, bytes = summaries.bytes();
    std::vector<uint8_t> gathered;  // of groups that stand in no 16 slots: seldom any, or all
    for (int64_t i = 0; i < count; ++i) {
        const int64_t g = first * block_groups + i, slots = groups.slots_of(g);
        if (slots >= 0) {
            found[i] = summaries.at(slots, head);
            continue;
        }
        if (gathered.empty()) gathered.resize(static_cast<size_t>(most * bytes));
        uint8_t* to = gathered.data() + i * bytes;
        summaries.make(
            head, [&](int64_t key) { return groups.slot(g * group_keys + key); }, scratch, to);
        found[i] = to;
    }
    std::vector<float> of_groups(static_cast<size_t>(repeat * count));
    chooser.score[static_cast<int>(isa)](queries, repeat, plane.width, summaries.book(head), found,
                                         count, of_groups.data(), count);
    for (int64_t i = 0; i < repeat; ++i)
        for (int64_t b = first; b < last; ++b) {
            const float* of_block = of_groups.data() + i * count + (b - first) * block_groups;
            scores[i * stride + b] =
                chooser.sums ? std::accumulate(of_block, of_block + block_groups, 0.0f)
                             : *std::max_element(of_block, of_block + block_groups);
        }
}

// The blocks that a row visits with one key-value head, of whose query heads scores[i][block] are, which
// are lost.
void select(const RowKernels& kernels, const ChosenBlocks::Row& row, int64_t repeat, float* scores,
            std::vector<int32_t>& blocks) {
    const ChoicesView::Choice& choice = *row.choice;
    const int64_t own = row.own_block;
    const int64_t first = std::min(choice.sinks, own + 1);
    int64_t last = std::max(first, own + 1 - choice.local);
    if (choice.among >= 0) last = std::clamp(choice.among / block_keys, first, last);
    const auto candidates = static_cast<size_t>(last - first);
    std::vector<float> weights(candidates, 0.0f);
    std::vector<float> deficits(candidates, std::numeric_limits<float>::infinity());
    for (int64_t i = 0; i < repeat; ++i, scores += own) {
        if (choice.chooser->sums) {
            const float total = std::accumulate(scores, scores + own, 0.0f);
            for (int64_t b = first; b < last && total > 0.0f; ++b)
                weights[b - first] += scores[b] / total;
            std::fill(deficits.begin(), deficits.end(), 0.0f);  // no block's best key is known
            continue;
        }
        const float best = *std::max_element(scores, scores + own);
        for (int64_t b = first; b < last; ++b) {
            const float deficit = best - scores[b];
            float& least = deficits[b - first];
            if (deficit < least) least = deficit;  // never of a NaN
        }
        kernels.softmax(scores, own);
        for (int64_t b = first; b < last; ++b)
            if (scores[b] > 0.0f) weights[b - first] += scores[b];
    }
    std::vector<int32_t> order(candidates);
    for (size_t i = 0; i < candidates; ++i) order[i] = static_cast<int32_t>(i);
    const auto count = std::clamp<int64_t>(row.budget - choice.sinks - choice.local, 0,
                                           static_cast<int64_t>(candidates));
    const auto heavier = [&](int32_t one, int32_t other) {
        return weights[one] > weights[other] || (weights[one] == weights[other] && one < other);
    };
    std::nth_element(order.begin(), order.begin() + count, order.end(), heavier);
    blocks.clear();
    for (int64_t b = 0; b < first; ++b) blocks.push_back(static_cast<int32_t>(b));
    for (int64_t i = 0; i < count; ++i)
        if (deficits[order[i]] <= choice.within)
            blocks.push_back(static_cast<int32_t>(first + order[i]));
    for (int64_t b = last; b <= own; ++b) blocks.push_back(static_cast<int32_t>(b));
    std::sort(blocks.begin(), blocks.end());
}

// Keeps what a row chose beside its own key, for the rows that go on with it.
void hold(const std::vector<int32_t>* blocks, int64_t heads, int64_t keys, HeldChoice& held) {
    const int64_t words = (keys / block_keys + 64) / 64;
    held.keys = keys;
    held.blocks.assign(static_cast<size_t>(heads * words), 0);
    for (int64_t head = 0; head < heads; ++head)
        for (const int32_t block : blocks[head])
            held.blocks[head * words + block / 64] |= uint64_t{1} << (block % 64);
}

void take_held(const HeldChoice& held, int64_t heads, std::vector<int32_t>* blocks) {
    const auto words = static_cast<int64_t>(held.blocks.size()) / heads;
    for (int64_t head = 0; head < heads; ++head) {
        blocks[head].clear();
        for (int64_t word = 0; word < words; ++word)
            for (uint64_t bits = held.blocks[head * words + word]; bits != 0; bits &= bits - 1)
                blocks[head].push_back(static_cast<int32_t>(64 * word + __builtin_ctzll(bits)));
    }
}

}  // namespace

void choose(ThreadPool& pool, Isa isa, const StepView& step, const AttentionPlan& plan,
            const AttentionShape& shape, const Planes& planes, int64_t layer, int64_t state_layer,
            const float* q, int64_t q_stride, ChosenBlocks& chosen, LeftOut& left_out) {
    const GroupRowsView& group = step.groups[plan.group];
    const std::vector<int64_t>& layers = planes.groups()[plan.group].layers;
    const int64_t index = std::find(layers.begin(), layers.end(), state_layer) - layers.begin();
    const LayerPlane plane = planes.layer(state_layer);
    const int64_t repeat = shape.heads / shape.kv_heads;
    chosen.kv_heads = shape.kv_heads;
    chosen.place.assign(static_cast<size_t>(step.rows), -1);
    chosen.rows.clear();
    chosen.threads.resize(static_cast<size_t>(pool.size()));
    left_out.keys.resize(static_cast<size_t>(step.rows));
    left_out.bytes.resize(static_cast<size_t>(step.rows));
    left_out.read.resize(static_cast<size_t>(step.rows));
    int64_t floats = 0;
    std::vector<Summaries> of_rows;
    std::vector<GoesOn> goes_on;
    for (const AttentionPlan::Rows& tile : plan.tiles)
        for (int64_t row = tile.begin; row < tile.end; ++row) {
            const int64_t keys = group.seen(row);
            const ChoicesView::Choice* choice = group.choices.find(row, keys);
            if (choice == nullptr || choice->chooser == nullptr || choice->layers[index] == 0)
                continue;
            const int64_t at = choice->chosen_at(keys - 1);
            if (visits_all(*choice, at + 1)) continue;
            if (at != keys - 1) {
                goes_on.push_back({row, keys, at});
                continue;
            }
            const int64_t own = (keys - 1) / block_keys, budget = budget_of(*choice, keys);
            chosen.place[row] = static_cast<int32_t>(chosen.rows.size());
            chosen.rows.push_back({row, keys, own, budget, floats, choice});
            of_rows.emplace_back(isa, planes, state_layer, plane, *choice->chooser);
            floats += shape.heads * own;
        }
    const auto count = static_cast<int64_t>(chosen.rows.size());
    const size_t places = chosen.rows.size() + goes_on.size();
    if (places == 0) return;
    if (chosen.blocks.size() < places * static_cast<size_t>(shape.kv_heads))
        chosen.blocks.resize(places * static_cast<size_t>(shape.kv_heads));
    refresh(pool, step, plan, plane, of_rows, chosen);

    float* scores = chosen.scores.take<float>(floats);
    const auto scores_of = [&](const ChosenBlocks::Row& row, int64_t head) {
        return scores + row.scores_at + head * repeat * row.own_block;
    };
    int64_t most_chunks = 1;
    for (const ChosenBlocks::Row& row : chosen.rows)
        most_chunks = std::max(
            most_chunks, (row.own_block - 1) / chunk_blocks(*row.choice->chooser) + 1);
    pool.parallel(count * shape.kv_heads * most_chunks, [&](int64_t task, int thread) {
        const int64_t at = task / most_chunks / shape.kv_heads;
        const int64_t head = task / most_chunks % shape.kv_heads;
        const ChosenBlocks::Row& row = chosen.rows[at];
        const Chooser& chooser = *row.choice->chooser;
        const int64_t chunk = chunk_blocks(chooser), first = task % most_chunks * chunk;
        if (first >= row.own_block) return;
        const int64_t query_bytes = chooser.query_bytes(plane.width);
        std::vector<float> scaled(static_cast<size_t>(plane.width));
        std::vector<uint8_t> queries(static_cast<size_t>(repeat * query_bytes));
        for (int64_t i = 0; i < repeat; ++i) {
            const float* from = q + row.row * q_stride + (head * repeat + i) * shape.head_dim;
            for (int64_t e = 0; e < shape.head_dim; ++e) scaled[e] = from[e] * shape.scale;
            chooser.prepare(scaled.data(), plane.width, queries.data() + i * query_bytes);
        }
        score_blocks(isa, chooser, of_rows[at], Groups(step, plan, plane, row.row), plane, head,
                     repeat, queries.data(), first, std::min(first + chunk, row.own_block),
                     scores_of(row, head), row.own_block, chosen.threads[thread]);
    });
    pool.parallel(count * shape.kv_heads, [&](int64_t task, int) {
        const ChosenBlocks::Row& row = chosen.rows[task / shape.kv_heads];
        select(row_kernels(isa), row, repeat, scores_of(row, task % shape.kv_heads),
               chosen.blocks[task]);
    });
    const auto count_left_out = [&](int64_t place, int64_t row, int64_t keys) {
        for (int64_t head = 0; head < shape.kv_heads; ++head) {
            // The row's own block, the last, may hold fewer keys, and is always visited.
            const auto visited =
                static_cast<int64_t>(chosen.blocks[place * shape.kv_heads + head].size());
            const int64_t left = ((keys - 1) / block_keys + 1 - visited) * block_keys;
            left_out.keys[row] += left;
            left_out.read[row] += keys - left;
        }
    };
    Planes::HeldChoices& held = planes.held(plan.group, layer);
    for (int64_t at = 0; at < count; ++at) {
        const ChosenBlocks::Row& row = chosen.rows[at];
        if (row.choice->every > 1)
            hold(&chosen.blocks[at * shape.kv_heads], shape.kv_heads, row.keys,
                 held[group.slots[row.row]]);
        left_out.bytes[row.row] +=
            shape.kv_heads *
            (row.own_block * block_groups * of_rows[at].bytes() + of_rows[at].book_bytes());
        count_left_out(at, row.row, row.keys);
    }
    // After what this step's rows have chosen is held: rows may go on with that.
    for (size_t i = 0; i < goes_on.size(); ++i) {
        const GoesOn& each = goes_on[i];
        const auto found = held.find(cells_of(step, plan, each.row).slot(each.chosen_at));
        if (found == held.end() || found->second.keys != each.chosen_at + 1)
            throw std::invalid_argument(
                "row " + std::to_string(each.row) + " goes on with what the row of key " +
                std::to_string(each.chosen_at) + " chose, and that is not held in layer " +
                std::to_string(layer) + "; it must be computed from that key on.");
        const int64_t place = count + static_cast<int64_t>(i);
        chosen.place[each.row] = static_cast<int32_t>(place);
        take_held(found->second, shape.kv_heads, &chosen.blocks[place * shape.kv_heads]);
        count_left_out(place, each.row, each.keys);
    }
}

}  // namespace ockham
