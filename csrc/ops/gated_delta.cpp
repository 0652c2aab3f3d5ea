#include "ops/gated_delta.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "ops/checks.h"
#include "ops/fields.h"
#include "ops/product.h"
#include "ops/stream.h"
#include "program.h"
#include "run.h"
#include "state/planes.h"

namespace ockham::ops {

namespace {

const Added added{"GatedDelta", read<GatedDelta>};

constexpr float length_eps = 1e-6f;

// The rows of one sequence in a step, which are those of consecutive tokens.
struct Sequence {
    int64_t first, count;  // among the active rows
    int64_t cell;          // of the first
    const int32_t* cell_pages;
    const int32_t* state_pages;
    int64_t cell_page_count, state_page_count;
};

[[noreturn]] void refuse(int64_t layer, const std::string& why) {
    throw std::invalid_argument(at("the recurrence", layer) + " " + why);
}

std::vector<Sequence> sequences_of(const Run& run, const GatedDelta& op) {
    const StepView& step = run.step;
    const GroupRowsView& cells = step.groups[static_cast<size_t>(op.cells)];
    const GroupRowsView& states = step.groups[static_cast<size_t>(op.states)];
    std::vector<Sequence> found;
    int32_t latest = -1;
    for (int64_t i = 0; i < run.active.count; ++i) {
        const int64_t row = run.active.at(i);
        if (cells.extras(row) > 0) refuse(op.layer, "has no drafts that branch.");
        const int64_t cell = cells.context[row] - 1;
        if (cell < 0) refuse(op.layer, "has a row that sees not even its own cell.");
        const int32_t sequence = step.sequence[row];
        if (sequence != latest) {
            const int32_t* c = cells.table.starts + sequence;
            const int32_t* s = states.table.starts + sequence;
            found.push_back({i, 0, cell, cells.table.pages + c[0], states.table.pages + s[0],
                             c[1] - c[0], s[1] - s[0]});
            latest = sequence;
        }
        Sequence& own = found.back();
        if (cell != own.cell + own.count) refuse(op.layer, "has rows that leave tokens out.");
        ++own.count;
    }
    return found;
}

float dot(const float* a, const float* b, int64_t length) {
    float lanes[8] = {};
    int64_t i = 0;
    for (; i + 8 <= length; i += 8)
        for (int64_t lane = 0; lane < 8; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
    for (; i < length; ++i) lanes[i % 8] += a[i] * b[i];
    return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) +
           ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

// What the operation works with in one step.
class Recurrence {
   public:
    Recurrence(Run& run, const GatedDelta& op)
        : run_(run),
          op_(op),
          chunk_(run.step.page_tokens),
          cells_(run.planes().layer(op.layer, op.cells)),
          states_(run.planes().layer(op.layer, op.states)),
          sequences_(sequences_of(run, op)) {
        const int64_t rows = run.active.count;
        Activations& own = *run.activations;
        wide_ = op.channels() + op.values() + 2 * op.value_heads;
        projected_ = own.qkv.take<float>(rows * wide_);
        made_ = own.made.take<float>(rows * op.cell_floats());
        mixed_ = own.gate_up.take<float>(rows * (op.channels() + 2 * op.value_heads));
        given_ = own.a.take<float>(rows * op.values());
        for (const Sequence& each : sequences_) check(each);
    }

    void compute();
    const float* given() const { return given_; }
    float* projected() { return projected_; }

   private:
    float* made(int64_t i) const { return made_ + i * op_.cell_floats(); }
    float* keys(int64_t i) const { return made(i) + op_.channels(); }
    float* updates(int64_t i) const { return keys(i) + op_.keys(); }
    float* sums(int64_t i) const { return updates(i) + op_.values(); }
    float* mixed(int64_t i) const {
        return mixed_ + i * (op_.channels() + 2 * op_.value_heads);
    }
    float* rates(int64_t i) const { return mixed(i) + op_.channels(); }  // beta, then the decay

    void check(const Sequence& own) const {
        const int64_t start = own.cell / chunk_;
        if (own.cell % chunk_ != 0) page(own.cell_pages, own.cell_page_count, start, cells_.pages);
        if (start > 0) page(own.state_pages, own.state_page_count, start - 1, states_.pages);
    }
    int64_t page(const int32_t* pages, int64_t count, int64_t entry, int64_t there) const {
        const int64_t found = entry < count ? pages[entry] : -1;
        if (found < 0 || found >= there)
            refuse(op_.layer, "goes on from chunk " + std::to_string(entry) + ", which has no page.");
        return found;
    }
    // What a cell before the step's rows, in the chunk of the first of them, holds.
    const float* held(const Sequence& own, int64_t cell) const {
        return cells_.row(own.cell_pages[cell / chunk_] * chunk_ + cell % chunk_);
    }
    float* state(const Sequence& own, int64_t chunk) const {
        const int64_t found = chunk < own.state_page_count ? own.state_pages[chunk] : -1;
        return found < 0 ? nullptr : states_.row(found);
    }
    // What entered the convolution at a cell up to the step's last; null before the first token.
    const float* entered(const Sequence& own, int64_t cell) const {
        if (cell < 0) return nullptr;
        if (cell >= own.cell) return made(own.first + cell - own.cell);
        const int64_t start = own.cell / chunk_ * chunk_;
        if (cell >= start) return held(own, cell);
        const float* tail = state(own, own.cell / chunk_ - 1) + op_.value_heads * op_.head_floats();
        return tail + (op_.length - 1 - (start - cell)) * op_.channels();
    }

    void convolve(const Sequence& own, int64_t i);
    void run_head(const Sequence& own, int64_t head, float* scratch);
    void keep_entered(const Sequence& own);

    Run& run_;
    const GatedDelta& op_;
    const int64_t chunk_;
    const LayerPlane cells_, states_;
    const std::vector<Sequence> sequences_;
    int64_t wide_ = 0;
    float *projected_, *made_, *mixed_, *given_;
};

// Queries, keys and values of a row, from what entered up to it, and how fast its heads forget.
void Recurrence::convolve(const Sequence& own, int64_t i) {
    const int64_t channels = op_.channels(), cell = own.cell + i - own.first;
    float* y = mixed(i);
    bool begun = false;
    for (int64_t n = 0; n < op_.length; ++n) {
        const float* x = entered(own, cell - (op_.length - 1) + n);
        const float* w = op_.weight.data() + n * channels;
        if (x == nullptr) continue;
        if (begun)
            for (int64_t d = 0; d < channels; ++d) y[d] += w[d] * x[d];
        else
            for (int64_t d = 0; d < channels; ++d) y[d] = w[d] * x[d];
        begun = true;
    }
    run_.kernels.activated[static_cast<int>(Activation::silu)](y, channels, y);
    const float scale = 1.0f / std::sqrt(static_cast<float>(op_.key_dim));
    for (int64_t head = 0; head < op_.key_heads; ++head) {
        float* q = y + head * op_.key_dim;
        const float* k = q + op_.keys();
        run_.kernels.multiply(q, scale / std::sqrt(dot(q, q, op_.key_dim) + length_eps), op_.key_dim);
        float* to = keys(i) + head * op_.key_dim;
        std::copy_n(k, op_.key_dim, to);
        run_.kernels.multiply(to, 1.0f / std::sqrt(dot(k, k, op_.key_dim) + length_eps), op_.key_dim);
    }
    const float* b = projected_ + i * wide_ + channels + op_.values();
    const float* a = b + op_.value_heads;
    float* beta = rates(i);
    std::copy_n(b, op_.value_heads, beta);
    run_.kernels.logistic(beta, op_.value_heads);
    for (int64_t head = 0; head < op_.value_heads; ++head) {
        const double x = static_cast<double>(a[head] + op_.decay_bias[static_cast<size_t>(head)]);
        const double softplus = x > 20.0 ? x : std::log1p(std::exp(x));
        beta[op_.value_heads + head] =
            op_.decay[static_cast<size_t>(head)] * static_cast<float>(softplus);
    }
}

// A value head of a sequence, row after row. What a row gives, and what it leaves, depends on the
// state at its chunk's start and on the chunk's tokens up to it, in one order.
void Recurrence::run_head(const Sequence& own, int64_t head, float* scratch) {
    const int64_t dk = op_.key_dim, dv = op_.value_dim, floats = op_.head_floats();
    const int64_t key_head = op_.key_head(head);
    const RowKernels& kernels = run_.kernels;
    float *next = scratch, *factors = next + floats, *read = factors + chunk_ + 1;
    const auto key = [&](int64_t cell) {
        const float* row = cell >= own.cell ? made(own.first + cell - own.cell) : held(own, cell);
        return row + op_.channels() + key_head * dk;
    };
    const auto update = [&](int64_t cell) {
        const float* row = cell >= own.cell ? made(own.first + cell - own.cell) : held(own, cell);
        return row + op_.channels() + op_.keys() + head * dv;
    };
    const auto sum = [&](int64_t cell) {
        const float* row = cell >= own.cell ? made(own.first + cell - own.cell) : held(own, cell);
        return row[op_.channels() + op_.keys() + op_.values() + head];
    };
    const int64_t begun = own.cell / chunk_;
    const float* s = begun == 0 ? nullptr : state(own, begun - 1) + head * floats;
    for (int64_t n = 0; n < own.count; ++n) {
        const int64_t i = own.first + n, cell = own.cell + n, start = cell / chunk_ * chunk_;
        const float beta = rates(i)[head], decay = rates(i)[op_.value_heads + head];
        const float total = (cell == start ? 0.0f : sum(cell - 1)) + decay;
        sums(i)[head] = total;
        // e^(G_t), then e^(G_t - G_j) of each token of the chunk up to this one.
        const int64_t count = cell - start + 1;
        factors[0] = total;
        for (int64_t j = 0; j < count; ++j) factors[1 + j] = total - sum(start + j);
        kernels.exponential(factors, count + 1, factors);
        const float* k = keys(i) + key_head * dk;
        const float* q = mixed(i) + key_head * dk;
        const float* v = mixed(i) + 2 * op_.keys() + head * dv;
        float *u = updates(i) + head * dv, *o = given_ + i * op_.values() + head * dv;
        std::fill_n(read, dv, 0.0f);
        std::fill_n(o, dv, 0.0f);
        if (s != nullptr) {
            for (int64_t d = 0; d < dk; ++d) kernels.add_scaled(read, s + d * dv, k[d], dv);
            for (int64_t d = 0; d < dk; ++d) kernels.add_scaled(o, s + d * dv, q[d], dv);
            kernels.multiply(read, factors[0], dv);
            kernels.multiply(o, factors[0], dv);
        }
        for (int64_t j = 0; j + 1 < count; ++j)
            kernels.add_scaled(read, update(start + j), factors[1 + j] * dot(k, key(start + j), dk), dv);
        for (int64_t d = 0; d < dv; ++d) u[d] = beta * (v[d] - read[d]);
        for (int64_t j = 0; j < count; ++j)
            kernels.add_scaled(o, update(start + j), factors[1 + j] * dot(q, key(start + j), dk), dv);
        if (count < chunk_) continue;
        // The chunk ends: its state is left for the next one.
        if (s == nullptr)
            std::fill_n(next, floats, 0.0f);
        else if (s != next)
            std::copy_n(s, floats, next);
        kernels.multiply(next, factors[0], floats);
        for (int64_t j = 0; j < count; ++j) {
            const float *kj = key(start + j), *uj = update(start + j);
            for (int64_t d = 0; d < dk; ++d)
                kernels.add_scaled(next + d * dv, uj, factors[1 + j] * kj[d], dv);
        }
        s = next;
        float* kept = state(own, cell / chunk_);
        if (kept != nullptr) std::copy_n(next, floats, kept + head * floats);
    }
}

// What entered the convolution before the end of each chunk that the step ends and keeps.
void Recurrence::keep_entered(const Sequence& own) {
    const int64_t before = op_.length - 1, channels = op_.channels();
    for (int64_t end = (own.cell / chunk_ + 1) * chunk_; end <= own.cell + own.count; end += chunk_) {
        float* kept = state(own, end / chunk_ - 1);
        if (kept == nullptr) continue;
        float* to = kept + op_.value_heads * op_.head_floats();
        for (int64_t n = 0; n < before; ++n, to += channels) {
            const float* x = entered(own, end - before + n);
            if (x == nullptr)
                std::fill_n(to, channels, 0.0f);
            else
                std::copy_n(x, channels, to);
        }
    }
}

void Recurrence::compute() {
    const int64_t rows = run_.active.count, channels = op_.channels();
    for_rows(run_.pool, rows, channels, [&](int64_t i, int) {
        std::copy_n(projected_ + i * wide_, channels, made(i));
    });
    std::vector<const Sequence*> of(static_cast<size_t>(rows));
    for (const Sequence& each : sequences_)
        for (int64_t n = 0; n < each.count; ++n) of[static_cast<size_t>(each.first + n)] = &each;
    for_rows(run_.pool, rows, op_.length * channels,
             [&](int64_t i, int) { convolve(*of[static_cast<size_t>(i)], i); });
    const int64_t heads = op_.value_heads;
    std::vector<Buffer>& scratch = run_.activations->rows;
    run_.pool.parallel(static_cast<int64_t>(sequences_.size()) * heads, [&](int64_t task, int thread) {
        const int64_t floats = op_.head_floats() + chunk_ + 1 + op_.value_dim;
        float* own = scratch[static_cast<size_t>(thread)].take<float>(floats);
        run_head(sequences_[static_cast<size_t>(task / heads)], task % heads, own);
    });
    run_.pool.parallel(static_cast<int64_t>(sequences_.size()), [&](int64_t task, int) {
        keep_entered(sequences_[static_cast<size_t>(task)]);
    });
    const int64_t* slots = run_.step.groups[static_cast<size_t>(op_.cells)].slots;
    for_rows(run_.pool, rows, op_.cell_floats(), [&](int64_t i, int) {
        const int64_t slot = slots[run_.active.at(i)];
        if (slot >= 0) std::copy_n(made(i), op_.cell_floats(), cells_.row(slot));
        // Each head is normed, and gated by its part of z.
        float* o = given_ + i * op_.values();
        const float* z = projected_ + i * wide_ + channels;
        for (int64_t head = 0; head < heads; ++head, o += op_.value_dim)
            normalise(run_.kernels, op_.head_norm, o, op_.value_dim, o);
        o = given_ + i * op_.values();
        run_.kernels.gated[static_cast<int>(Activation::silu)](z, o, op_.values(), o);
    });
}

}  // namespace

GatedDelta::GatedDelta(const Fields& fields)
    : layer(fields.integer("layer")),
      cells(fields.integer("cells")),
      states(fields.integer("states")),
      key_heads(fields.integer("key_heads")),
      value_heads(fields.integer("value_heads")),
      key_dim(fields.integer("key_dim")),
      value_dim(fields.integer("value_dim")),
      length(fields.integer("length")),
      inputs(fields.dense("inputs", true)),
      weight(fields.floats("weight")),
      decay(fields.floats("decay")),
      decay_bias(fields.floats("decay_bias")),
      head_norm(fields.norm("head_norm")),
      out(fields.dense("out", false)),
      norm(fields.norm("norm")),
      residual_scale(fields.number("residual_scale")),
      tiled(fields.flag("tiled")) {}

void GatedDelta::check(Program& program) const {
    const int64_t hidden = program.hidden;
    require(key_heads > 0 && key_dim > 0 && value_dim > 0 && value_heads > 0 &&
                value_heads % key_heads == 0 && length > 0,
            at("the recurrence", layer) + " has sizes that make no sense.");
    require(program.planes.layer(layer, cells).row_floats == cell_floats() &&
                program.planes.layer(layer, states).row_floats == state_floats(),
            at("the planes", layer) + " have another shape than what its recurrence keeps.");
    require(static_cast<int64_t>(weight.size()) == length * channels(),
            at("the convolution", layer) + " has not as many weights as its length says.");
    require(static_cast<bool>(head_norm), at("the recurrence", layer) + " has no norm of its heads.");
    check_dense(program, inputs, channels() + values() + 2 * value_heads, hidden,
                at("the recurrence's inputs", layer));
    check_dense(program, out, hidden, values(), at("the recurrence's output", layer));
    check_norm(norm, hidden, at("the norm", layer));
    check_norm(head_norm, value_dim, at("the norm of heads", layer));
    check_vector(decay, value_heads, at("the decays", layer));
    check_vector(decay_bias, value_heads, at("the decays' bias", layer));
    require(!decay.empty() && !decay_bias.empty(), at("the recurrence", layer) + " has no decays.");
}

void GatedDelta::run(Run& run) const {
    const int64_t hidden = run.hidden, wide = inputs.outputs();
    if (run.active.count == 0) return;
    Recurrence recurrence(run, *this);
    for (int64_t first = 0; first < run.active.count; first += most_rows) {
        const int64_t rows = std::min(most_rows, run.active.count - first);
        product(run, inputs, stream_rows(run, norm, first, rows),
                recurrence.projected() + first * wide, {}, first);
    }
    recurrence.compute();
    for (int64_t first = 0; first < run.active.count; first += most_rows) {
        const int64_t rows = std::min(most_rows, run.active.count - first);
        float* branch = run.activations->branch.take<float>(rows * hidden);
        const float* given = recurrence.given() + first * values();
        product(run, out, plain_rows(given, values(), rows), branch, {}, first);
        add_branch(run, first, rows, branch, Norm(), residual_scale, Norm());
    }
}

}  // namespace ockham::ops
