#include "executor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "kernels/rows.h"
#include "kernels/threads.h"

namespace ockham {

namespace {

// Rows of (row, expert) pairs computed together: bounds the memory of a mixture of experts.
constexpr int64_t most_pairs = 2048;
// Rows of a feed-forward, and of what is added to the stream, computed together: bounds the memory of
// steps of many rows, of which the widest activations are most.
constexpr int64_t most_rows = 512;

void require(bool condition, const std::string& sentence) {
    if (!condition) throw std::invalid_argument(sentence);
}

std::string at(const char* what, int64_t layer) {
    return std::string(what) + " of layer " + std::to_string(layer);
}

void check_matrix(const PackedMatrix& matrix, int64_t outputs, int64_t inputs,
                  const std::string& what) {
    require(matrix.outputs == outputs && matrix.inputs == inputs,
            what + " has the shape (" + std::to_string(matrix.outputs) + ", " +
                std::to_string(matrix.inputs) + ") and should have (" + std::to_string(outputs) +
                ", " + std::to_string(inputs) + ").");
}

void check_matrix(const ops::Stack& stack, int64_t outputs, int64_t inputs,
                  const std::string& what) {
    require(!stack.parts.empty(), what + " has no weights.");
    PackedMatrix whole = stack.parts.front();
    whole.outputs = stack.outputs();
    check_matrix(whole, outputs, inputs, what);
    for (const PackedMatrix& part : stack.parts) check_matrix(part, part.outputs, inputs, what);
}

void check_vector(const std::vector<float>& vector, int64_t length, const std::string& what) {
    require(vector.empty() || static_cast<int64_t>(vector.size()) == length,
            what + " has " + std::to_string(vector.size()) + " values and should have " +
                std::to_string(length) + ".");
}

}  // namespace

Executor::Executor(ThreadPool& pool, Isa isa, Planes& planes, std::vector<ops::Op> program)
    : pool_(pool),
      isa_(isa),
      kernels_(row_kernels(isa)),
      planes_(planes),
      program_(std::move(program)) {
    require(!program_.empty() && std::holds_alternative<ops::Embed>(program_.front()),
            "a program begins with the embedding.");
    const PackedMatrix& table = std::get<ops::Embed>(program_.front()).table;
    hidden_ = table.inputs;
    vocabulary_ = table.outputs;
    int64_t heads = 0, head_dim = 0, experts = 0;  // of the latest AttentionInput and Route
    for (ops::Op& any : program_) {
        if (auto* op = std::get_if<ops::AttentionInput>(&any)) {
            heads = op->heads;
            head_dim = op->head_dim;
            const int64_t q = heads * head_dim, kv = op->kv_heads * head_dim;
            require(op->kv_heads > 0 && heads % op->kv_heads == 0,
                    at("the query heads", op->layer) + " cannot be shared by its key-value heads.");
            require(planes_.group_of(op->layer) == op->group,
                    at("the planes", op->layer) + " belong to another group.");
            const LayerPlane plane = planes_.layer(op->layer);
            require(plane.kv_heads == op->kv_heads && plane.head_dim == head_dim,
                    at("the planes", op->layer) + " have another shape than its keys.");
            check_matrix(op->qkv, q + 2 * kv, hidden_, at("the projection", op->layer));
            check_vector(op->norm.weight, hidden_, at("the norm", op->layer));
            check_vector(op->bias, q + 2 * kv, at("the bias", op->layer));
            check_vector(op->q_norm.weight, op->norm_whole ? q : head_dim,
                         at("the query norm", op->layer));
            check_vector(op->k_norm.weight, op->norm_whole ? kv : head_dim,
                         at("the key norm", op->layer));
            require(2 * static_cast<int64_t>(op->rope.inverse_frequencies.size()) <= head_dim,
                    at("the rotary embedding", op->layer) + " is wider than a head.");
            if (op->rope) {
                const auto found = std::find(ropes_.begin(), ropes_.end(), op->rope);
                op->rotation = found - ropes_.begin();
                rope_of_layer_[op->layer] = op->rotation;
                if (found == ropes_.end()) ropes_.push_back(op->rope);
            }
        } else if (auto* op = std::get_if<ops::Attend>(&any)) {
            require(op->shape.heads == heads && op->shape.head_dim == head_dim,
                    at("the attention", op->layer) + " has another shape than its queries.");
            require(planes_.group_of(op->layer) == op->group,
                    at("the planes", op->layer) + " belong to another group.");
            const LayerPlane plane = planes_.layer(op->layer);
            require(plane.kv_heads == op->shape.kv_heads && plane.head_dim == head_dim,
                    at("the planes", op->layer) + " have another shape than its attention.");
        } else if (auto* op = std::get_if<ops::AttentionOutput>(&any)) {
            check_matrix(op->out, hidden_, heads * head_dim, at("the output", op->layer));
            check_vector(op->bias, hidden_, at("the output bias", op->layer));
            check_vector(op->post_norm.weight, hidden_, at("the post norm", op->layer));
        } else if (auto* op = std::get_if<ops::FeedForward>(&any)) {
            const int64_t inner = op->down.inputs;
            check_matrix(op->gate_up, 2 * inner, hidden_, at("gate and up", op->layer));
            check_matrix(op->down, hidden_, inner, at("down", op->layer));
            check_vector(op->norm.weight, hidden_, at("the norm", op->layer));
            check_vector(op->gate_up_bias, 2 * inner, at("the bias of gate and up", op->layer));
            check_vector(op->down_bias, hidden_, at("the bias of down", op->layer));
            check_vector(op->post_norm.weight, hidden_, at("the post norm", op->layer));
        } else if (auto* op = std::get_if<ops::Route>(&any)) {
            experts = op->router.outputs;
            check_matrix(op->router, experts, hidden_, at("the router", op->layer));
            check_vector(op->norm.weight, hidden_, at("the norm", op->layer));
            require(op->top_k > 0 && op->top_k <= experts,
                    at("the router", op->layer) + " cannot choose so many experts.");
        } else if (auto* op = std::get_if<ops::Experts>(&any)) {
            require(static_cast<int64_t>(op->gate_up.size()) == experts &&
                        op->down.size() == op->gate_up.size(),
                    at("the experts", op->layer) + " are not as many as its router knows.");
            for (int64_t e = 0; e < experts; ++e) {
                const int64_t inner = op->down[0].inputs;
                check_matrix(op->gate_up[e], 2 * inner, hidden_, at("an expert", op->layer));
                check_matrix(op->down[e], hidden_, inner, at("an expert", op->layer));
            }
            if (op->shared_gate_up.outputs) {
                const int64_t inner = op->shared_down.inputs;
                check_matrix(op->shared_gate_up, 2 * inner, hidden_,
                             at("the shared expert", op->layer));
                check_matrix(op->shared_down, hidden_, inner, at("the shared expert", op->layer));
                if (op->shared_gate.outputs)
                    check_matrix(op->shared_gate, 1, hidden_,
                                 at("the shared expert's gate", op->layer));
            }
            check_vector(op->post_norm.weight, hidden_, at("the post norm", op->layer));
        } else if (auto* op = std::get_if<ops::Head>(&any)) {
            logits_ = op->out.outputs;
            require(op->out.inputs == hidden_, "the head reads rows of another width.");
            check_vector(op->norm.weight, hidden_, "the norm of the head");
            check_vector(op->bias, op->out.outputs, "the bias of the head");
        }
    }
}

std::unique_ptr<Run> Executor::begin(StepView step) {
    const int64_t groups = static_cast<int64_t>(planes_.groups().size());
    require(static_cast<int64_t>(step.tables.size()) == groups &&
                static_cast<int64_t>(step.slots.size()) == groups,
            "the step has " + std::to_string(step.tables.size()) + " page tables and " +
                std::to_string(step.slots.size()) + " slot lists for " + std::to_string(groups) +
                " groups of layers.");
    for (int64_t g = 0; g < groups; ++g) {
        require(planes_.groups()[g].page_tokens == step.page_tokens,
                "the step has pages of " + std::to_string(step.page_tokens) +
                    " tokens, the planes of " + std::to_string(planes_.groups()[g].page_tokens) +
                    ".");
        const TableView& table = step.tables[g];
        require(step.sequences > 0 || step.rows == 0, "the step has rows and no sequence.");
        for (int64_t s = 0; s < step.sequences; ++s)
            require(table.starts[s] >= 0 && table.starts[s] <= table.starts[s + 1] &&
                        table.starts[s + 1] <= table.length,
                    "the page tables of the step do not add up.");
        const int64_t slots = planes_.slots(g);
        for (int64_t row = 0; row < step.rows; ++row)
            require(step.slots[g][row] >= 0 && step.slots[g][row] < slots,
                    "row " + std::to_string(row) + " is written to slot " +
                        std::to_string(step.slots[g][row]) + " of " + std::to_string(slots) + ".");
    }
    for (int64_t row = 0; row < step.rows; ++row) {
        const int64_t own = step.embedding_of == nullptr ? -1 : step.embedding_of[row];
        require(own < step.embeddings_rows,
                "row " + std::to_string(row) + " has no embedding " + std::to_string(own) + ".");
        if (own < 0)
            require(step.ids[row] >= 0 && step.ids[row] < vocabulary_,
                    "row " + std::to_string(row) + " has the token id " +
                        std::to_string(step.ids[row]) + ", beyond a vocabulary of " +
                        std::to_string(vocabulary_) + ".");
        require(step.sequence[row] >= 0 && step.sequence[row] < step.sequences,
                "row " + std::to_string(row) + " belongs to no sequence of the step.");
        require(step.context[row] >= 0, "the context of a row is negative.");
        if (step.extra != nullptr)
            require(step.extra_starts[row] >= 0 &&
                        step.extra_starts[row] <= step.extra_starts[row + 1] &&
                        step.extra_starts[row + 1] <= step.extra_count,
                    "the extra cells of the step do not add up.");
    }
    require(step.embeddings == nullptr || step.embeddings_width == hidden_,
            "the step's embeddings have another width than the model.");
    const auto check_rows = [&](const int32_t* rows, int64_t count, const char* what) {
        for (int64_t i = 0; i < count; ++i)
            require(rows[i] >= 0 && rows[i] < step.rows,
                    std::string(what) + " of row " + std::to_string(rows[i]) + " of " +
                        std::to_string(step.rows) + ".");
    };
    check_rows(step.wants_logits, step.logits_rows, "logits are wanted");
    check_rows(step.wants_argmax, step.argmax_rows, "an argmax is wanted");
    for (const LayerRows& wanted : step.wants_hidden)
        check_rows(wanted.rows, wanted.count, "hidden states are wanted");
    for (const LayerRows& wanted : step.wants_scores)
        check_rows(wanted.rows, wanted.count, "scores are wanted");

    auto run = std::make_unique<Run>();
    run->step = std::move(step);
    run->hidden = hidden_;
    {
        std::lock_guard<std::mutex> lock(spare_mutex_);
        if (!spare_.empty()) {
            run->activations = std::move(spare_.back());
            spare_.pop_back();
        }
    }
    if (!run->activations) run->activations = std::make_unique<Activations>(pool_.size());
    return run;
}

void Executor::recycle(std::unique_ptr<Activations> activations) {
    std::lock_guard<std::mutex> lock(spare_mutex_);
    if (spare_.size() < 2) spare_.push_back(std::move(activations));
}

void Executor::run(Run& run, int64_t start, int64_t stop) {
    require(start >= 0 && start <= stop && stop <= size(),
            "operations [" + std::to_string(start) + ", " + std::to_string(stop) +
                ") are not in a program of " + std::to_string(size()) + ".");
    if (run.step.rows == 0) return;
    std::lock_guard<std::mutex> lock(mutex_);
    for (int64_t i = start; i < stop; ++i) {
        require(run.embedded || i == 0, "a step must be embedded before anything else is run.");
        std::visit([&](const auto& op) { (*this)(run, op); }, program_[i]);
    }
}

template <class F>
void Executor::for_rows(int64_t rows, int64_t floats_per_row, F f) {
    ockham::for_rows(pool_, rows, floats_per_row, f);
}

// norm(x) of rows [0, rows), or of the rows `which`, in the form that `matrix` reads.
PreparedInput Executor::prepare_normed(Run& run, Buffer& memory, const PackedMatrix& matrix,
                                       const ops::Norm& norm, const float* x, int64_t rows,
                                       const int32_t* which) {
    const InputForm form = input_form(matrix);
    const PreparedInput input(form, rows, memory.take<uint8_t>(form.bytes(rows)));
    const int64_t width = matrix.inputs;
    std::vector<Buffer>& scratch = run.activations->rows;
    for (Buffer& buffer : scratch) buffer.take<float>(width);
    for_rows(rows, width, [&](int64_t row, int thread) {
        const float* from = x + (which == nullptr ? row : which[row]) * width;
        if (norm) {
            float* normed = scratch[thread].get<float>();
            kernels_.rms_norm(from, norm.weight.data(), norm.eps, width, normed);
            from = normed;
        }
        prepare_row(isa_, input, row, from);
    });
    return input;
}

void Executor::product(const PackedMatrix& matrix, const PreparedInput& input, float* y,
                       const std::vector<float>& bias) {
    linear(pool_, isa_, matrix, input, y, matrix.outputs, bias.empty() ? nullptr : bias.data());
}

void Executor::normed_product(Run& run, Buffer& memory, const ops::Stack& stack,
                              const ops::Norm& norm, const float* x, int64_t rows, float* y,
                              const std::vector<float>& bias) {
    PreparedInput input;
    int64_t first = 0;
    for (const PackedMatrix& part : stack.parts) {
        if (first == 0 || !(input.form == input_form(part)))
            input = prepare_normed(run, memory, part, norm, x, rows, nullptr);
        linear(pool_, isa_, part, input, y + first, stack.outputs(),
               bias.empty() ? nullptr : bias.data() + first);
        first += part.outputs;
    }
}

void Executor::gate(ops::Activation activation, const float* gate_up, int64_t inner,
                    float* y) const {
    if (activation == ops::Activation::silu)
        kernels_.gated_silu(gate_up, gate_up + inner, inner, y);
    else
        kernels_.gated_gelu_tanh(gate_up, gate_up + inner, inner, y);
}

// x += residual_scale * post_norm(branch) for `rows` rows of each.
void Executor::add(float* x, int64_t rows, float* branch, const ops::Norm& post_norm,
                   float residual_scale) {
    for_rows(rows, hidden_, [&](int64_t row, int) {
        float* from = branch + row * hidden_;
        if (post_norm)
            kernels_.rms_norm(from, post_norm.weight.data(), post_norm.eps, hidden_, from);
        kernels_.add_scaled(x + row * hidden_, from, residual_scale, hidden_);
    });
}

void Executor::keep_hidden(Run& run, int64_t layer) {
    for (const LayerRows& wanted : run.step.wants_hidden) {
        if (wanted.layer != layer) continue;
        Floats kept{std::make_unique<Buffer>(), wanted.count, hidden_};
        float* to = kept.memory->take<float>(wanted.count * hidden_);
        for (int64_t i = 0; i < wanted.count; ++i)
            std::copy_n(run.x() + wanted.rows[i] * hidden_, hidden_, to + i * hidden_);
        run.hidden_states.emplace_back(layer, std::move(kept));
    }
}

void Executor::operator()(Run& run, const ops::Embed& op) {
    const StepView& step = run.step;
    float* x = run.activations->x.take<float>(step.rows * hidden_);
    for_rows(step.rows, hidden_, [&](int64_t row, int) {
        const int64_t own = step.embedding_of == nullptr ? -1 : step.embedding_of[row];
        if (own >= 0) {
            std::copy_n(step.embeddings + own * hidden_, hidden_, x + row * hidden_);
            return;
        }
        unpack_row(op.table, step.ids[row], x + row * hidden_);
        if (op.scale != 1.0f) kernels_.multiply(x + row * hidden_, op.scale, hidden_);
    });
    run.embedded = true;
    keep_hidden(run, -1);
}

// The cosines and then the sines of every rope and row, times the rope's scale: for each rope
// (R, 2, half), one after another. The angle is rounded to fp32, as the contract says; its cosine is
// computed in double and rounded once.
const float* Executor::rotations(Run& run) {
    int64_t floats = 0;
    for (const ops::Rope& rope : ropes_)
        floats += 2 * run.step.rows * static_cast<int64_t>(rope.inverse_frequencies.size());
    if (run.rotated) return run.activations->rotations.get<float>();
    float* memory = run.activations->rotations.take<float>(floats);
    float* next = memory;
    for (const ops::Rope& rope : ropes_) {
        const int64_t half = static_cast<int64_t>(rope.inverse_frequencies.size());
        // A cosine and a sine in double cost about as much as fifty floats of the usual work.
        for_rows(run.step.rows, 50 * half, [&](int64_t row, int) {
            const float position = static_cast<float>(run.step.positions[row]);
            float* to = next + row * 2 * half;
            for (int64_t i = 0; i < half; ++i) {
                const double angle = position * rope.inverse_frequencies[i];
                to[i] = static_cast<float>(std::cos(angle)) * rope.scale;
                to[half + i] = static_cast<float>(std::sin(angle)) * rope.scale;
            }
        });
        next += run.step.rows * 2 * half;
    }
    run.rotated = true;
    return memory;
}

void Executor::operator()(Run& run, const ops::AttentionInput& op) {
    const int64_t rows = run.step.rows, outputs = op.qkv.outputs(), head_dim = op.head_dim;
    float* qkv = run.activations->qkv.take<float>(rows * outputs);
    normed_product(run, run.activations->prepared, op.qkv, op.norm, run.x(), rows, qkv, op.bias);

    const float* rotation = nullptr;
    const int64_t half = static_cast<int64_t>(op.rope.inverse_frequencies.size());
    if (op.rope) {
        rotation = rotations(run);
        for (int64_t i = 0; i < op.rotation; ++i)
            rotation += 2 * rows * static_cast<int64_t>(ropes_[i].inverse_frequencies.size());
    }
    const LayerPlane plane = planes_.layer(op.layer);
    const int64_t* slots = run.step.slots[op.group];
    const auto normalise = [&](const ops::Norm& norm, float* first, int64_t heads) {
        if (!norm) return;
        const int64_t length = op.norm_whole ? heads * head_dim : head_dim;
        for (int64_t i = 0; i < (op.norm_whole ? 1 : heads); ++i)
            kernels_.rms_norm(first + i * length, norm.weight.data(), norm.eps, length,
                              first + i * length);
    };
    for_rows(rows, outputs, [&](int64_t row, int) {
        float* q = qkv + row * outputs;
        float* k = q + op.heads * head_dim;
        normalise(op.q_norm, q, op.heads);
        normalise(op.k_norm, k, op.kv_heads);
        if (rotation != nullptr) {
            const float* cosines = rotation + row * 2 * half;
            for (int64_t i = 0; i < op.heads + op.kv_heads; ++i)
                kernels_.rotate(q + i * head_dim, cosines, cosines + half, half);
        }
        plane.store(kernels_, slots[row], k, k + op.kv_heads * head_dim);
    });
}

const AttentionPlan& Executor::plan(Run& run, const ops::Attend& op) {
    for (const AttentionPlan& plan : run.plans)
        if (plan.group == op.group && plan.window == op.window) return plan;
    const int64_t repeat = op.shape.heads / op.shape.kv_heads;
    run.plans.push_back(plan_attention(run.step, op.group, op.window,
                                       planes_.groups()[op.group].pages, repeat));
    return run.plans.back();
}

void Executor::operator()(Run& run, const ops::Attend& op) {
    const AttentionShape& shape = op.shape;
    const int64_t rows = run.step.rows;
    const int64_t q_stride = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
    const LayerPlane plane = planes_.layer(op.layer);
    const AttentionPlan& plan = this->plan(run, op);
    Activations& own = *run.activations;
    const float* q = own.qkv.get<float>();
    float* a = own.a.take<float>(rows * shape.heads * shape.head_dim);
    const LayerRows* wanted = nullptr;
    for (const LayerRows& rows_of_layer : run.step.wants_scores)
        if (rows_of_layer.layer == op.layer) wanted = &rows_of_layer;
    float* totals =
        wanted == nullptr ? nullptr : own.totals.take<float>(rows * shape.heads * 2);
    attend(pool_, isa_, run.step, plan, shape, plane, q, q_stride, a, totals, own.attention);
    if (wanted == nullptr) return;
    std::vector<std::vector<float>> scores(static_cast<size_t>(wanted->count));
    for (int64_t i = 0; i < wanted->count; ++i)
        scores[i].resize(plan.high[wanted->rows[i]] - plan.low[wanted->rows[i]]);
    pool_.parallel(wanted->count, [&](int64_t i, int thread) {
        score_row(isa_, run.step, plan, shape, plane, q, q_stride, totals, wanted->rows[i],
                  scores[i].data(), own.attention.threads[thread]);
    });
    run.scores.emplace_back(op.layer, std::move(scores));
}

void Executor::operator()(Run& run, const ops::AttentionOutput& op) {
    const int64_t width = op.out.inputs;
    Activations& own = *run.activations;
    for (int64_t begin = 0; begin < run.step.rows; begin += most_rows) {
        const int64_t rows = std::min(most_rows, run.step.rows - begin);
        const PreparedInput input = prepare_normed(run, own.prepared, op.out, {},
                                                   own.a.get<float>() + begin * width, rows, nullptr);
        float* branch = own.branch.take<float>(rows * hidden_);
        product(op.out, input, branch, op.bias);
        add(run.x() + begin * hidden_, rows, branch, op.post_norm, op.residual_scale);
    }
}

void Executor::operator()(Run& run, const ops::FeedForward& op) {
    for (int64_t begin = 0; begin < run.step.rows; begin += most_rows)
        feed_forward(run, op, begin, std::min(most_rows, run.step.rows - begin));
    keep_hidden(run, op.layer);
}

void Executor::feed_forward(Run& run, const ops::FeedForward& op, int64_t begin, int64_t rows) {
    const int64_t inner = op.down.inputs;
    Activations& own = *run.activations;
    float* x = run.x() + begin * hidden_;
    // In the memory of the queries, which attention has read.
    float* gate_up = own.qkv.take<float>(rows * 2 * inner);
    normed_product(run, own.prepared, op.gate_up, op.norm, x, rows, gate_up, op.gate_up_bias);

    const InputForm form = input_form(op.down);
    const PreparedInput gated(form, rows, own.second_prepared.take<uint8_t>(form.bytes(rows)));
    for (Buffer& buffer : own.rows) buffer.take<float>(inner);
    for_rows(rows, 2 * inner, [&](int64_t row, int thread) {
        float* y = own.rows[thread].get<float>();
        gate(op.activation, gate_up + row * 2 * inner, inner, y);
        prepare_row(isa_, gated, row, y);
    });
    float* branch = own.branch.take<float>(rows * hidden_);
    product(op.down, gated, branch, op.down_bias);
    add(x, rows, branch, op.post_norm, op.residual_scale);
}

void Executor::operator()(Run& run, const ops::Route& op) {
    const int64_t rows = run.step.rows, experts = op.router.outputs;
    Activations& own = *run.activations;
    float* h = own.h.take<float>(rows * hidden_);
    const InputForm form = input_form(op.router);
    const PreparedInput input(form, rows, own.prepared.take<uint8_t>(form.bytes(rows)));
    for_rows(rows, hidden_, [&](int64_t row, int) {
        const float* from = run.x() + row * hidden_;
        float* to = h + row * hidden_;
        if (op.norm)
            kernels_.rms_norm(from, op.norm.weight.data(), op.norm.eps, hidden_, to);
        else
            std::copy_n(from, hidden_, to);
        prepare_row(isa_, input, row, to);
    });
    float* scores = own.gate_up.take<float>(rows * experts);
    product(op.router, input, scores, {});

    run.experts_per_row = op.top_k;
    int32_t* chosen = own.experts.take<int32_t>(rows * op.top_k);
    float* weights = own.expert_weights.take<float>(rows * op.top_k);
    for_rows(rows, experts * op.top_k, [&](int64_t row, int) {
        float* p = scores + row * experts;
        kernels_.softmax(p, experts);
        float total = 0.0f;
        for (int64_t place = 0; place < op.top_k; ++place) {
            // The largest left, the lowest index on a tie; taken ones are -1. (NaN is never larger,
            // so that a damaged row still names experts that exist.)
            int64_t best = -1;
            for (int64_t e = 0; e < experts; ++e)
                if (p[e] != -1.0f && (best < 0 || p[e] > p[best])) best = e;
            chosen[row * op.top_k + place] = static_cast<int32_t>(best);
            weights[row * op.top_k + place] = p[best];
            total = total + p[best];
            p[best] = -1.0f;
        }
        if (op.normalise)
            for (int64_t place = 0; place < op.top_k; ++place)
                weights[row * op.top_k + place] = weights[row * op.top_k + place] / total;
    });
}

// The chosen experts of rows [begin, end): branch = the sum over experts, in order of their indices.
void Executor::chosen_experts(Run& run, const ops::Experts& op, int64_t begin, int64_t end) {
    Activations& own = *run.activations;
    const int64_t per_row = run.experts_per_row, pairs = (end - begin) * per_row;
    const int64_t inner = op.down[0].inputs, count = static_cast<int64_t>(op.down.size());
    const float* h = own.h.get<float>();
    const int32_t* chosen = own.experts.get<int32_t>();
    const float* weights = own.expert_weights.get<float>();
    float* branch = own.branch.get<float>();

    // Pairs (row, place) sorted by expert and then by row: pair i stands at order[i].
    struct Segment {
        int64_t expert, begin, end;
        PreparedInput input, gated;
    };
    std::vector<int64_t> starts(count + 1, 0), order(pairs), position(pairs);
    for (int64_t i = 0; i < pairs; ++i) ++starts[chosen[begin * per_row + i] + 1];
    for (int64_t e = 0; e < count; ++e) starts[e + 1] += starts[e];
    {
        std::vector<int64_t> next(starts.begin(), starts.end() - 1);
        for (int64_t i = 0; i < pairs; ++i) {
            position[i] = next[chosen[begin * per_row + i]]++;
            order[position[i]] = i;
        }
    }
    std::vector<Segment> segments;
    size_t input_bytes = 0, gated_bytes = 0;
    const auto bytes = [](const InputForm& form, int64_t rows) {
        return (form.bytes(rows) + 63) / 64 * 64;
    };
    for (int64_t e = 0; e < count; ++e) {
        if (starts[e] == starts[e + 1]) continue;
        segments.push_back({e, starts[e], starts[e + 1], {}, {}});
        input_bytes += bytes(input_form(op.gate_up[e]), starts[e + 1] - starts[e]);
        gated_bytes += bytes(input_form(op.down[e]), starts[e + 1] - starts[e]);
    }
    uint8_t* inputs = own.prepared.take<uint8_t>(static_cast<int64_t>(input_bytes));
    uint8_t* gateds = own.second_prepared.take<uint8_t>(static_cast<int64_t>(gated_bytes));
    std::vector<const Segment*> segment_of(pairs);
    for (Segment& segment : segments) {
        const int64_t rows = segment.end - segment.begin;
        const InputForm form = input_form(op.gate_up[segment.expert]);
        const InputForm gated = input_form(op.down[segment.expert]);
        segment.input = PreparedInput(form, rows, inputs);
        segment.gated = PreparedInput(gated, rows, gateds);
        inputs += bytes(form, rows);
        gateds += bytes(gated, rows);
        for (int64_t i = segment.begin; i < segment.end; ++i) segment_of[i] = &segment;
    }

    for_rows(pairs, hidden_, [&](int64_t i, int) {
        const Segment& segment = *segment_of[i];
        const int64_t row = begin + order[i] / per_row;
        prepare_row(isa_, segment.input, i - segment.begin, h + row * hidden_);
    });
    // All experts' tiles in one loop, so that small experts keep all threads busy.
    const auto products = [&](const std::vector<PackedMatrix>& matrices, bool gated, float* y) {
        struct Part {
            const Segment* segment;
            Tiling cut;
            int64_t first;
        };
        std::vector<Part> parts;
        int64_t tiles = 0;
        for (const Segment& segment : segments) {
            const Tiling cut = tiling(matrices[segment.expert], segment.end - segment.begin,
                                      pool_.size());
            parts.push_back({&segment, cut, tiles});
            tiles += cut.tiles();
        }
        pool_.parallel(tiles, [&](int64_t tile, int) {
            const Part& part = *(std::upper_bound(parts.begin(), parts.end(), tile,
                                                  [](int64_t t, const Part& p) {
                                                      return t < p.first;
                                                  }) -
                                 1);
            const PackedMatrix& matrix = matrices[part.segment->expert];
            linear_tile(isa_, matrix, gated ? part.segment->gated : part.segment->input, part.cut,
                        tile - part.first, y + part.segment->begin * matrix.outputs,
                        matrix.outputs, nullptr);
        });
    };
    float* gate_up = own.expert_x.take<float>(pairs * 2 * inner);
    products(op.gate_up, false, gate_up);
    for (Buffer& buffer : own.rows) buffer.take<float>(inner);
    for_rows(pairs, 2 * inner, [&](int64_t i, int thread) {
        const Segment& segment = *segment_of[i];
        float* y = own.rows[thread].get<float>();
        gate(op.activation, gate_up + i * 2 * inner, inner, y);
        prepare_row(isa_, segment.gated, i - segment.begin, y);
    });
    float* out = own.expert_out.take<float>(pairs * hidden_);
    products(op.down, true, out);
    for_rows(end - begin, per_row * hidden_, [&](int64_t i, int) {
        float* to = branch + (begin + i) * hidden_;
        std::fill(to, to + hidden_, 0.0f);
        // A row's pairs in the order of their positions are in the order of their experts.
        std::vector<int64_t> places(per_row);
        for (int64_t place = 0; place < per_row; ++place) places[place] = i * per_row + place;
        std::sort(places.begin(), places.end(),
                  [&](int64_t a, int64_t b) { return position[a] < position[b]; });
        for (const int64_t place : places)
            kernels_.add_scaled(to, out + position[place] * hidden_,
                                weights[begin * per_row + place], hidden_);
    });
}

void Executor::operator()(Run& run, const ops::Experts& op) {
    const int64_t rows = run.step.rows;
    Activations& own = *run.activations;
    require(run.experts_per_row > 0, at("the experts", op.layer) + " run before its router.");
    float* branch = own.branch.take<float>(rows * hidden_);
    const int64_t at_once = std::max<int64_t>(1, most_pairs / run.experts_per_row);
    for (int64_t begin = 0; begin < rows; begin += at_once)
        chosen_experts(run, op, begin, std::min(rows, begin + at_once));

    if (op.shared_gate_up.outputs) {
        const int64_t inner = op.shared_down.inputs;
        const float* h = own.h.get<float>();
        const auto prepared = [&](Buffer& memory, const PackedMatrix& matrix, const float* x) {
            return prepare_normed(run, memory, matrix, {}, x, rows, nullptr);
        };
        float* gate_up = own.gate_up.take<float>(rows * 2 * inner);
        product(op.shared_gate_up, prepared(own.prepared, op.shared_gate_up, h), gate_up, {});
        float* gated = own.inner.take<float>(rows * inner);
        for_rows(rows, 2 * inner, [&](int64_t row, int) {
            gate(op.activation, gate_up + row * 2 * inner, inner, gated + row * inner);
        });
        float* shared = own.expert_out.take<float>(rows * hidden_);
        product(op.shared_down, prepared(own.second_prepared, op.shared_down, gated), shared, {});
        if (op.shared_gate.outputs) {
            float* weight = own.expert_x.take<float>(rows);
            product(op.shared_gate, prepared(own.prepared, op.shared_gate, h), weight, {});
            kernels_.logistic(weight, rows);
            for (int64_t row = 0; row < rows; ++row)
                kernels_.multiply(shared + row * hidden_, weight[row], hidden_);
        }
        for_rows(rows, hidden_, [&](int64_t row, int) {
            kernels_.add_scaled(branch + row * hidden_, shared + row * hidden_, 1.0f, hidden_);
        });
    }
    add(run.x(), rows, branch, op.post_norm, op.residual_scale);
    keep_hidden(run, op.layer);
}

}  // namespace ockham
