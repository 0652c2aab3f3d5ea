// A step under way: what runs it, the memory of its activations, and what is to be given back.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "isa/isa.h"
#include "kernels/layer_kernels.h"
#include "kernels/low_rank.h"
#include "ops/choosing.h"
#include "ops/paged_attention.h"
#include "program.h"
#include "sparing.h"
#include "state/memory.h"
#include "step.h"

namespace ockham {

class Planes;
class ThreadPool;

// Everything that one step under way holds. Reused from step to step: nothing is given back.
struct Activations {
    explicit Activations(int threads)
        : attention(threads),
          rows(static_cast<size_t>(threads)),
          adapted(static_cast<size_t>(threads)),
          tiles(static_cast<size_t>(threads)) {}

    Buffer x, qkv, a, h, gate_up, branch, prepared, second_prepared, rotations, totals;
    Buffer experts, expert_weights;        // int32 and float, (R, top_k)
    Buffer expert_x, expert_out;
    Buffer layer_inputs;                   // what each layer is given of each row of the step
    Buffer turned;                         // the stream behind a shortcut
    Buffer held;                           // the stream as blocks side by side read it
    Buffer made;  // what a layer without keys and values makes of each active row for later ones
    Buffer peaks;                          // Peak, (argmax rows, tiles of the vocabulary)
    Buffer candidates;                     // Peak, (head rows, tiles of the vocabulary, candidates)
    std::vector<int32_t> head_rows;        // rows that want logits, then rows that want an argmax
    AttentionBuffers attention;
    ChosenBlocks chosen;
    std::vector<Buffer> rows;  // one row for each thread
    Buffer shrunk;                // of adapters: A x of each row
    std::vector<Buffer> adapted;  // the rows that a thread multiplies with an adapter at once
    std::vector<Buffer> tiles;  // logits of one tile for each thread
};

// The largest of some logits and its token: the lowest of those that tie, the first NaN if any is.
struct Peak {
    float value = 0.0f;
    int64_t token = 0;
    // Takes over the peak of tokens that come after all of this one's.
    void merge(const Peak& later) {
        if (value == value && (later.value > value || later.value != later.value)) *this = later;
    }
};

// Rows of floats that go to Python.
struct Floats {
    std::unique_ptr<Buffer> memory;
    int64_t rows = 0, columns = 0;
};

// The attention probabilities of some rows in one layer: of each row `sums` lists, one after the
// other, with a value for each key that the row sees.
struct LayerScores {
    int64_t layer = 0, sums = 0;
    std::vector<std::vector<float>> rows;
};

// The attention probabilities of sets of rows in one layer, each rounded to a multiple of 2^-32 and
// summed over the rows of its set, so that no order of summing changes a bit: of each set `sums`
// lists, one after the other, with a value for each key.
struct LayerTotals {
    int64_t layer = 0, sums = 0;
    std::vector<std::vector<double>> sets;
};

// Which rows of a step went on to each pass of the layers that run several times.
struct Passes {
    // What the layers of one pass are given in place of the step's own.
    struct Pass {
        std::vector<int32_t> rows;  // that take it, ascending
        std::vector<int64_t> slots;
        std::vector<int32_t> context;
    };
    std::deque<Pass> taken;  // so far, in order; what it holds stays where it is
    int64_t stop = 0;        // the first operation that is in no pass

    RowSet rows() const {
        return {static_cast<int64_t>(taken.back().rows.size()), taken.back().rows.data()};
    }
};

struct Run {
    ThreadPool& pool;
    const Isa isa;
    const RowKernels& kernels;
    const LowRankKernels& low_rank;
    const Program& program;
    const int64_t hidden;  // width of the residual stream

    StepView step;
    std::unique_ptr<Activations> activations;
    // The rows that the operation under way computes. Queries and what attention gives have a place
    // for every row of the step; what lives within a feed-forward has the active rows only.
    RowSet active;
    int64_t leading = 0;  // the first neurons that it computes, where it is a feed-forward; 0: all
    // Whether other rows run the same operation next, with another number of neurons.
    bool unfinished = false;
    Spared spared;
    Passes passes;
    bool embedded = false;
    int64_t layer_input_values = 0;  // of a row, of all layers
    int64_t query_stride = 0;  // floats from one row's queries to the next one's, in `qkv`
    int64_t experts_per_row = 0, routed_rows = 0;
    bool rotated = false;  // the step's cosines and sines have been computed
    std::vector<AttentionPlan> plans;
    Floats logits;
    std::vector<Peak> argmax;  // in the order of Step.wants_argmax
    std::vector<int32_t> candidates;  // (head rows, Step.candidates)
    std::vector<std::pair<int64_t, Floats>> hidden_states;
    std::vector<std::pair<int64_t, Floats>> queries;  // as attention reads them
    std::vector<LayerScores> scores;      // for each key-value head
    std::vector<LayerScores> score_sums;  // over all heads
    // Of each layer whose rows visit some blocks of keys only: (Step.wants_recall, kv_heads).
    std::vector<std::pair<int64_t, Floats>> recall;
    std::vector<LayerTotals> score_totals;  // for each key-value head
    std::vector<LeftOut> left_out;        // of each group; empty where no row chose

    Run(ThreadPool& pool, Isa isa, const Program& program, StepView step)
        : pool(pool),
          isa(isa),
          kernels(row_kernels(isa)),
          low_rank(low_rank_kernels(isa)),
          program(program),
          hidden(program.hidden),
          step(std::move(step)),
          left_out(this->step.groups.size()) {}

    const Planes& planes() const { return program.planes; }
    float* x() const { return activations->x.get<float>(); }
};

}  // namespace ockham
