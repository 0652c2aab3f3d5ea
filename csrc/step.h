// A step as the executor sees it: pointers into the arrays of ockham.core.step.Step, which whoever
// made it keeps alive. Field by field it means what that class says.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace ockham {

class Adapter;
class Planes;
struct Chooser;

struct TableView {
    const int32_t* pages = nullptr;
    const int32_t* starts = nullptr;
    int64_t length = 0;  // of pages
};

// Blocks of keys that are visited, ascending; null: all blocks.
struct BlockList {
    const int32_t* blocks = nullptr;
    int64_t count = 0;

    bool every() const { return blocks == nullptr; }
    const int32_t* end() const { return blocks + count; }
    // The first block of the list that is `block` or comes after it.
    const int32_t* from(int64_t block) const {
        return std::lower_bound(blocks, blocks + count, static_cast<int32_t>(block));
    }
};

// Which blocks of keys the rows visit in the layers of one group: ockham.core.visits.Visits.
struct VisitsView {
    const int32_t* query_blocks = nullptr;  // null: all rows visit all blocks
    const int32_t* lists = nullptr;         // [queries][layers][kv_heads]
    int64_t queries = 0, layers = 0, kv_heads = 0;
    const int32_t* starts = nullptr;  // [list_count + 1]
    int64_t list_count = 0;
    const int32_t* blocks = nullptr;
    int64_t block_count = 0;

    // What a row visits with one head, in the group's layer `layer`, counted from 0.
    BlockList list(int64_t row, int64_t layer, int64_t head) const {
        if (query_blocks == nullptr || query_blocks[row] < 0) return {};
        const int32_t list = lists[(query_blocks[row] * layers + layer) * kv_heads + head];
        if (list < 0) return {};
        return {blocks + starts[list], starts[list + 1] - starts[list]};
    }
};

// How rows choose by their own query which blocks they visit: ockham.core.choices.Choices.
struct ChoicesView {
    struct Choice {
        const Chooser* chooser = nullptr;  // null: the rows of a block choose together
        int64_t first = 0, until = 0, tokens = 0, sinks = 0, local = 1, stride = 0;
        int64_t among = -1;  // all visit the keys from this one on; -1: they choose among all
        int64_t every = 1;   // a row in so many chooses, and the ones after it visit the same
        double share = 0.0, within = 0.0, threshold = 0.0;
        const int32_t* layers = nullptr;  // [layers of the group]: 1 for those that choose
        // Of rows that choose together, each key-value head by a rule of its own: [layers][kv_heads]. Null:
        // all by sums over antidiagonals.
        const int32_t* rules = nullptr;
        const double* rule_shares = nullptr;

        // The key whose row chooses what the row visits whose own key is `key`, which chooses too.
        int64_t chosen_at(int64_t key) const { return std::max(key - key % every, first); }
    };
    // What a head visits beside the first and the latest blocks, as ockham.core.choices numbers it.
    enum Rule : int32_t { latest = 0, lines = 1, means = 2 };
    const int32_t* rows = nullptr;  // the choice of each row, -1 for none; null: no row has any
    std::vector<Choice> of;
    int64_t layer_count = 0;
    int64_t head_count = 0;  // key-value heads that have rules; 0 where no choice has any

    // The choice of a row that sees `seen` keys; null if it does not choose.
    const Choice* find(int64_t row, int64_t seen) const {
        if (rows == nullptr || rows[row] < 0) return nullptr;
        const Choice& choice = of[rows[row]];
        return seen > choice.first && seen <= choice.until ? &choice : nullptr;
    }
};

// Where the state of the rows is written in one group of layers, and the cells that they see there.
// Groups may share arrays.
struct GroupRowsView {
    TableView table;
    const int64_t* slots = nullptr;
    const int32_t* context = nullptr;
    const int32_t* extra = nullptr;         // null: no row has extra cells
    const int32_t* extra_starts = nullptr;  // null with `extra`
    int64_t extra_count = 0;
    VisitsView visits;
    ChoicesView choices;

    int64_t extras(int64_t row) const {
        return extra == nullptr ? 0 : extra_starts[row + 1] - extra_starts[row];
    }
    // How many keys a row sees where there is no window.
    int64_t seen(int64_t row) const { return context[row] + extras(row); }
};

// Rows that want something of one layer.
struct LayerRows {
    int64_t layer = 0;
    const int32_t* rows = nullptr;
    int64_t count = 0;
};

// Sets of rows, each of one sequence, whose attention probabilities in one layer are wanted in sum.
struct LayerSets {
    int64_t layer = 0;
    const int32_t* rows = nullptr;    // one set after another
    const int32_t* starts = nullptr;  // [count + 1]
    int64_t count = 0, row_count = 0;
};

// Rows of a step, ascending: those that `which` names, or all where it is null.
struct RowSet {
    int64_t count = 0;
    const int32_t* which = nullptr;

    int64_t at(int64_t i) const { return which == nullptr ? i : which[i]; }
};

// Operations [start, stop) of the program compute only these rows.
struct ActiveRows {
    int64_t start = 0, stop = 0;
    RowSet rows;
};

// The feed-forward that is operation `operation` computes its first `count` neurons; the others give 0.
struct LeadingNeurons {
    int64_t operation = 0, count = 0;
};

// Routers of feed-forwards: ockham.core.sparing.Routers.
struct RoutersView {
    const int32_t* widths = nullptr;  // [count][layers][choices]
    const float* weights = nullptr;   // [count][layers][choices][hidden]
    const float* biases = nullptr;    // [count][layers][choices]
    int64_t count = 0, layers = 0, choices = 0, hidden = 0;
};

// How much of each feed-forward rows run: ockham.core.sparing.Sparing.
struct SparingView {
    const int32_t* rows = nullptr;  // the rule of each row, -1 for none; null: nothing is decided
    const double* thresholds = nullptr;
    const int32_t *lengths = nullptr, *firsts = nullptr, *stops = nullptr;
    int64_t rules = 0;
    const int32_t *starts = nullptr, *ends = nullptr;  // of each layer's feed-forward
    int64_t layers = 0;
    const int32_t* routed = nullptr;  // the router of each row, -1 for none; null: no row has any
    RoutersView routers;
    const int32_t* told = nullptr;    // [layers][rows] neurons, 0 for all, -1 for none; null: all
};

struct StepView {
    int64_t rows = 0;
    int64_t sequences = 0;
    const int32_t* ids = nullptr;
    const int32_t* positions = nullptr;
    const int32_t* sequence = nullptr;
    std::vector<GroupRowsView> groups;
    int64_t page_tokens = 0;
    const int32_t* wants_logits = nullptr;
    int64_t logits_rows = 0;
    const int32_t* wants_argmax = nullptr;
    int64_t argmax_rows = 0;
    int64_t candidates = 0;
    const float* embeddings = nullptr;
    const int32_t* embedding_of = nullptr;  // null: all inputs are token ids
    int64_t embeddings_rows = 0, embeddings_width = 0;
    std::vector<LayerRows> wants_hidden;
    std::vector<LayerRows> wants_scores;
    std::vector<LayerRows> wants_score_sums;
    std::vector<LayerRows> wants_queries;
    const int32_t* wants_recall = nullptr;
    int64_t recall_rows = 0;
    std::vector<LayerSets> wants_score_totals;
    std::vector<ActiveRows> active;  // empty: every operation computes all rows
    std::vector<LeadingNeurons> leading;  // empty: feed-forwards compute all their neurons
    SparingView sparing;
    const double* deeper = nullptr;  // [passes][rows] added to scores of passes; null: nothing
    int64_t passes = 0;              // rows of `deeper`
    std::vector<const Adapter*> adapters;  // of each sequence, null for none; empty: of nobody
};

// Throws std::invalid_argument with a sentence if the step breaks its contract in a way that would make
// a kernel read or write outside of its memory. `hidden` is the width of the model's embeddings, `positions` how many
// it has learned (0: they are not bounded).
void check_step(const StepView& step, const Planes& planes, int64_t hidden, int64_t vocabulary,
                int64_t positions);

}  // namespace ockham
