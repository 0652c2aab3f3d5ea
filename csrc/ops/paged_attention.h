// Attention of all rows of a step over the paged planes.
//
// A plan cuts the rows into tiles of neighbouring rows of one sequence; it depends on the step, the
// page tables and the window alone, so the layers of a group share it. A task is one tile with one
// key-value head, and one part of 1,024 keys where there would be too few tasks otherwise. A tile of
// few queries takes all heads in turns, block by block: a page holds one head's keys and values behind
// the other's, and pages lie anywhere, so what is read is then in order for longer. Which tasks there
// are changes no bit of a result, see attention_kernels.h.
//
// Where rows visit some blocks of keys only, a tile holds rows of one query block, and what it does
// not visit costs nothing; a row that chooses its blocks itself (choosing.h) is a tile of its own. A row's result is that of its visited keys, in order; parts in which it
// visits none are left out.
//
// With dual chunk attention (rope.h) a query is rotated in three ways: for keys of its own chunk, of
// the one before and of those before that. A tile holds rows of one chunk.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/layer_kernels.h"
#include "state/memory.h"
#include "state/planes.h"
#include "step.h"

namespace ockham {

class ThreadPool;
struct ChosenBlocks;

// How a row's queries, which stand rotated for the keys of their own chunk, are turned on for those of
// the chunk before (0) and of the chunks before that (1), and what their scores are multiplied with.
struct Turns {
    int64_t half = 0;
    std::vector<float> angles;  // of each row (2, 2, half): cosines, then sines
    std::vector<float> scales;  // of each row

    const float* cosines(int64_t row, int64_t way) const {
        return angles.data() + (row * 2 + way) * 2 * half;
    }
};

struct AttentionPlan {
    struct Rows {
        int64_t begin, end;
        bool tree;  // rows with extra cells
    };
    int64_t group = 0;
    int64_t window = 0;  // 0: none
    bool causal = true;
    const int32_t* active = nullptr;  // RowSet::which of the rows that attend
    int64_t chunk = 0;                // tokens of a chunk of dual chunk attention; 0: none
    int64_t rope = -1;                // of its layers, an index into Ropes::all()
    Turns turns;                      // where there are chunks
    // Per row of the step: the logical keys [low, high) that it sees, none where it is not active.
    std::vector<int32_t> low, high;
    std::vector<Rows> tiles;
};

// The cells behind a row's logical keys: the context, then the row's extra cells.
struct Cells {
    const int32_t* table;  // of the row's sequence
    int64_t page_tokens;
    int64_t context;
    const int32_t* extra;

    int64_t slot(int64_t key) const {
        const int64_t cell = key < context ? key : extra[key - context];
        return table[cell / page_tokens] * page_tokens + cell % page_tokens;
    }
};

// Of a row of the plan. Where it has no extra cells, all that it sees is context.
Cells cells_of(const StepView& step, const AttentionPlan& plan, int64_t row);

// Rows in one tile, for `repeat` query heads to a key-value head.
int64_t tile_rows(int64_t repeat);

// Of the rows that are active. A row sees the cells of its context and its extra cells, and of those
// only the last `window` where it is not 0. If not `causal`, it sees the cells of its whole sequence
// that the step knows of, and of those only the ones less than `window` away from its own. Throws
// std::invalid_argument with a sentence if one of them sees a cell that has no page, or is not causal
// and has extra cells.
AttentionPlan plan_attention(const StepView& step, const RowSet& active, int64_t group,
                             int64_t window, bool causal, int64_t chunk, int64_t pages,
                             int64_t repeat);

// Which blocks of keys the rows visit in one layer.
struct LayerVisits {
    const VisitsView* of_group = nullptr;  // null: all rows visit all blocks
    int64_t layer = 0;                     // which of the group's layers
    const ChosenBlocks* chosen = nullptr;  // of rows that choose; null: none does

    BlockList list(int64_t row, int64_t head) const;
};

struct AttentionShape {
    int64_t heads, kv_heads, head_dim;
    float scale;
    float softcap;  // 0: none
    // By query head the score of a key without a value, which every row sees and visits; empty: none. It
    // is merged after the keys, as a part of its own.
    std::vector<float> sinks = {};
};

// What one thread needs while it attends.
struct AttentionScratch {
    Buffer q, rounded_q, q_scales, q_sums, low, high, sums, part_sums, out, gathered;
    Buffer values;  // of one block, made of the keys of latent planes
};

struct AttentionBuffers {
    explicit AttentionBuffers(int threads)
        : threads(static_cast<size_t>(threads)), heads(static_cast<size_t>(threads)) {}
    std::vector<AttentionScratch> threads;
    std::vector<std::vector<AttentionScratch>> heads;  // of each thread that takes them in turns
    Buffer partials;
};

// a[row * heads * head_dim ...] for all rows of the plan. q stands at q[row * q_stride + head * head_dim].
// `totals`, if not null, takes each row's and head's final peak and total: [rows][heads][2].
void attend(ThreadPool& pool, Isa isa, const StepView& step, const AttentionPlan& plan,
            const AttentionShape& shape, const LayerPlane& plane, const LayerVisits& visits,
            const float* q, int64_t q_stride, float* a, float* totals, AttentionBuffers& buffers);

// The attention probabilities of one row, for the keys that it sees in order, summed over query heads
// in order: over those of each key-value head ([kv_heads][high - low]), or with `summed` over all
// ([high - low]); 0 for keys that are not visited. What a sink takes is missing. `totals` as attend() left it.
void score_row(Isa isa, const StepView& step, const AttentionPlan& plan,
               const AttentionShape& shape, const LayerPlane& plane, const LayerVisits& visits,
               const float* q, int64_t q_stride, const float* totals, int64_t row, bool summed,
               float* scores, AttentionScratch& scratch);

// Of one row the share of its attention that is on keys which it visits, if it looked at all that it
// sees: for each key-value head the mean over its query heads, recall[kv_heads]. A sink counts as a key that
// is visited. `totals` as attend() left it. 1 for a row that does not attend.
void recall_row(Isa isa, const StepView& step, const AttentionPlan& plan,
                const AttentionShape& shape, const LayerPlane& plane, const float* q,
                int64_t q_stride, const float* totals, int64_t row, float* recall,
                AttentionScratch& scratch);

// What score_row gives for each key-value head, of several rows of one sequence, each value rounded to
// a multiple of 2^-32 and summed over the rows: `totals` [kv_heads][keys] for the keys [0, keys).
void total_rows(ThreadPool& pool, Isa isa, const StepView& step, const AttentionPlan& plan,
                const AttentionShape& shape, const LayerPlane& plane, const LayerVisits& visits,
                const float* q, int64_t q_stride, const float* peaks, const int32_t* rows,
                int64_t count, int64_t keys, double* totals, AttentionBuffers& buffers);

}  // namespace ockham
