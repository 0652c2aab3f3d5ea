// Runs ranges of a program over one step without returning to Python.
//
// The operations are those of ockham.kernels.ops, converted once to records of this file. Everything
// here knows tensors and rows, never models. A row's activations are a function of that row, of the
// state that it sees and of the weights: rows are computed apart, or together by kernels that keep
// them apart.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "kernels/linear.h"
#include "ops/paged_attention.h"
#include "state/memory.h"
#include "state/planes.h"
#include "step.h"

namespace ockham {

class ThreadPool;

// The operations, with the meaning and the names of ockham.kernels.ops. A vector that is empty and a
// matrix of no outputs stand for None.
namespace ops {

struct Norm {
    std::vector<float> weight;
    float eps = 0.0f;
    explicit operator bool() const { return !weight.empty(); }
};

struct Rope {
    std::vector<float> inverse_frequencies;
    float scale = 1.0f;
    explicit operator bool() const { return !inverse_frequencies.empty(); }
    bool operator==(const Rope& other) const {
        return scale == other.scale && inverse_frequencies == other.inverse_frequencies;
    }
};

enum class Activation { silu, gelu_tanh };

// Matrices of the same inputs whose outputs follow one another: one matrix, or several in different
// formats.
struct Stack {
    std::vector<PackedMatrix> parts;

    Stack() = default;
    Stack(PackedMatrix matrix) : parts{matrix} {}
    Stack(std::vector<PackedMatrix> matrices) : parts(std::move(matrices)) {}
    int64_t outputs() const {
        int64_t sum = 0;
        for (const PackedMatrix& part : parts) sum += part.outputs;
        return sum;
    }
};

struct Embed {
    PackedMatrix table;
    float scale = 1.0f;
};

struct AttentionInput {
    int64_t layer = 0, group = 0, heads = 0, kv_heads = 0, head_dim = 0;
    Stack qkv;
    Norm norm;
    std::vector<float> bias;
    Norm q_norm, k_norm;
    bool norm_whole = false;
    Rope rope;
    int64_t rotation = -1;  // which of the program's ropes
};

struct Attend {
    int64_t layer = 0, group = 0;
    AttentionShape shape{};
    int64_t window = 0;
};

struct AttentionOutput {
    int64_t layer = 0;
    PackedMatrix out;
    std::vector<float> bias;
    Norm post_norm;
    float residual_scale = 1.0f;
};

struct FeedForward {
    int64_t layer = 0;
    Stack gate_up;
    PackedMatrix down;
    Activation activation = Activation::silu;
    Norm norm;
    std::vector<float> gate_up_bias, down_bias;
    Norm post_norm;
    float residual_scale = 1.0f;
};

struct Route {
    int64_t layer = 0;
    PackedMatrix router;
    int64_t top_k = 0;
    bool normalise = false;
    Norm norm;
};

struct Experts {
    int64_t layer = 0;
    std::vector<PackedMatrix> gate_up, down;
    Activation activation = Activation::silu;
    PackedMatrix shared_gate_up, shared_down, shared_gate;
    Norm post_norm;
    float residual_scale = 1.0f;
};

struct Head {
    PackedMatrix out;
    Norm norm;
    std::vector<float> bias;
    float scale = 1.0f;
    float softcap = 0.0f;
};

using Op = std::variant<Embed, AttentionInput, Attend, AttentionOutput, FeedForward, Route, Experts,
                        Head>;

}  // namespace ops

// Everything that one step under way holds. Reused from step to step: nothing is given back.
struct Activations {
    explicit Activations(int threads)
        : attention(threads),
          rows(static_cast<size_t>(threads)),
          tiles(static_cast<size_t>(threads)) {}

    Buffer x, qkv, a, h, gate_up, inner, branch, prepared, second_prepared, rotations, totals;
    Buffer experts, expert_weights;        // int32 and float, (R, top_k)
    Buffer expert_x, expert_inner, expert_out;
    Buffer peaks;                          // Peak, (argmax rows, tiles of the vocabulary)
    Buffer candidates;                     // Peak, (head rows, tiles of the vocabulary, candidates)
    std::vector<int32_t> head_rows;        // rows that want logits, then rows that want an argmax
    AttentionBuffers attention;
    std::vector<Buffer> rows;  // one row for each thread
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

struct Run {
    StepView step;
    std::unique_ptr<Activations> activations;
    int64_t hidden = 0;
    bool embedded = false;
    int64_t experts_per_row = 0;
    bool rotated = false;  // the step's cosines and sines have been computed
    std::vector<AttentionPlan> plans;
    Floats logits;
    std::vector<Peak> argmax;  // in the order of Step.wants_argmax
    std::vector<int32_t> candidates;  // (head rows, Step.candidates)
    std::vector<std::pair<int64_t, Floats>> hidden_states;
    std::vector<std::pair<int64_t, std::vector<std::vector<float>>>> scores;

    float* x() const { return activations->x.get<float>(); }
};

class Executor {
   public:
    // `pool` and `planes` outlive the executor. Throws std::invalid_argument with a sentence where
    // the operations contradict themselves or the planes.
    Executor(ThreadPool& pool, Isa isa, Planes& planes, std::vector<ops::Op> program);

    int64_t size() const { return static_cast<int64_t>(program_.size()); }
    int64_t hidden() const { return hidden_; }
    // Columns of the logits: the head's outputs, where there is a head.
    int64_t vocabulary() const { return logits_; }

    // Throws std::invalid_argument with a sentence if the step breaks its contract in a way that
    // would make a kernel read or write outside of its memory.
    std::unique_ptr<Run> begin(StepView step);

    // Runs operations [start, stop). One thread at a time; others wait.
    void run(Run& run, int64_t start, int64_t stop);

    // Copies the state of slots `source` of a group to its slots `target`, in all layers, the keys
    // rotated on by `shifts[i]` positions. The caller checks that the slots exist; sources and targets
    // must not overlap.
    void reposition(int64_t group, const int64_t* source, const int64_t* target,
                    const int32_t* shifts, int64_t count);

    // Takes back the memory of a run that is over.
    void recycle(std::unique_ptr<Activations> activations);

   private:
    void operator()(Run& run, const ops::Embed& op);
    void operator()(Run& run, const ops::AttentionInput& op);
    void operator()(Run& run, const ops::Attend& op);
    void operator()(Run& run, const ops::AttentionOutput& op);
    void operator()(Run& run, const ops::FeedForward& op);
    void operator()(Run& run, const ops::Route& op);
    void operator()(Run& run, const ops::Experts& op);
    void operator()(Run& run, const ops::Head& op);

    template <class F>
    void for_rows(int64_t rows, int64_t floats_per_row, F f);
    PreparedInput prepare_normed(Run& run, Buffer& memory, const PackedMatrix& matrix,
                                 const ops::Norm& norm, const float* x, int64_t rows,
                                 const int32_t* which);
    // product() with norm(x), `memory` for the prepared input.
    void normed_product(Run& run, Buffer& memory, const ops::Stack& stack, const ops::Norm& norm,
                        const float* x, int64_t rows, float* y, const std::vector<float>& bias);
    const float* rotations(Run& run);
    const AttentionPlan& plan(Run& run, const ops::Attend& op);
    void product(const PackedMatrix& matrix, const PreparedInput& input, float* y,
                 const std::vector<float>& bias);
    void gate(ops::Activation activation, const float* gate_up, int64_t inner, float* y) const;
    void add(float* x, int64_t rows, float* branch, const ops::Norm& post_norm,
             float residual_scale);
    void feed_forward(Run& run, const ops::FeedForward& op, int64_t begin, int64_t rows);
    void keep_hidden(Run& run, int64_t layer);
    void chosen_experts(Run& run, const ops::Experts& op, int64_t begin, int64_t end);
    void finish_logits(const ops::Head& op, float* logits, int64_t count) const;
    void head_tile(Run& run, const ops::Head& op, const PreparedInput& input, const Tiling& cut,
                   int64_t tile, int thread, float* logits);

    ThreadPool& pool_;
    const Isa isa_;
    const RowKernels& kernels_;
    Planes& planes_;
    std::vector<ops::Op> program_;
    std::vector<ops::Rope> ropes_;
    std::map<int64_t, int64_t> rope_of_layer_;  // index into ropes_, of layers that rotate
    int64_t hidden_ = 0;
    int64_t vocabulary_ = 0;  // of the embedding
    int64_t logits_ = 0;
    std::mutex mutex_;
    std::mutex spare_mutex_;
    std::vector<std::unique_ptr<Activations>> spare_;
};

}  // namespace ockham
