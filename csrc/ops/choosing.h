// Which blocks of keys rows visit that choose by their own query, in one layer.
//
// A row's choice follows from its query and from the keys that it sees, block by block of its logical
// keys, so that it is the same in any step. Of each block that comes before its own, a chooser says how
// well each of the row's query heads may score there. The softmax of those scores over the blocks is the
// head's weight of each, and the weights of the heads of one key-value head are summed. The blocks of the
// largest weights are visited, the first on a tie, beside the first blocks and the latest ones; but for
// those that are far below the best block of each of the heads, by more than the choice allows.
//
// Where one row in several chooses (ChoicesView::Choice::every), which one that is follows from the row's
// own key. What it chose is held beside that key (Planes::held), and so it goes where the sequence's pages
// go: to its next steps, to forks, to the branches of a tree of drafts.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "ops/paged_attention.h"
#include "state/memory.h"
#include "state/planes.h"
#include "step.h"

namespace ockham {

class ThreadPool;

// What a thread needs while the rows of a block choose together (choosing_together.h).
struct TogetherScratch {
    Buffer query, turned, keys, scores, gathered;
};

// What one layer's rows have chosen. Reused from layer to layer.
struct ChosenBlocks {
    int64_t kv_heads = 0;
    std::vector<int32_t> place;                // of each row of the step; -1: it did not choose
                                               // (rows that choose together have one)
    std::vector<std::vector<int32_t>> blocks;  // [places][kv_heads]

    // What a row visits with one head, if it chose.
    bool find(int64_t row, int64_t head, BlockList& list) const {
        if (place.empty() || place[row] < 0) return false;
        const std::vector<int32_t>& found = blocks[place[row] * kv_heads + head];
        list = {found.data(), static_cast<int64_t>(found.size())};
        return true;
    }

    Buffer scores;
    struct Row {
        int64_t row, keys, own_block, budget, scores_at;
        const ChoicesView::Choice* choice;
    };
    std::vector<Row> rows;
    std::vector<Buffer> threads;
    std::vector<TogetherScratch> together;
};

// What rows left out by choosing, and what that took: summed over layers and key-value heads, for each
// row of the step. `keys` that were seen and not visited, less what it took to choose as keys that take as
// many operations; `bytes` that were read to choose, none where a row did not; cells that were `read` by
// what was visited, none only where a row leaves nothing out.
struct LeftOut {
    std::vector<int64_t> keys, bytes, read;
};

// Fills `chosen` for the rows of the plan that choose in the `layer`, whose keys are those of the
// `state_layer`, and adds to `left_out`. q as for attend().
void choose(ThreadPool& pool, Isa isa, const StepView& step, const AttentionPlan& plan,
            const AttentionShape& shape, const Planes& planes, int64_t layer, int64_t state_layer,
            const float* q, int64_t q_stride, ChosenBlocks& chosen, LeftOut& left_out);

}  // namespace ockham
