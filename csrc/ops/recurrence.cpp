#include "ops/recurrence.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "ops/checks.h"
#include "ops/dot.h"
#include "ops/fields.h"
#include "program.h"

namespace ockham::ops {

namespace {

[[noreturn]] void refuse(int64_t layer, const std::string& why) {
    throw std::invalid_argument(at("the recurrence", layer) + " " + why);
}

}  // namespace

float softplus(float x) {
    const double wide = static_cast<double>(x);
    return static_cast<float>(wide > 20.0 ? wide : std::log1p(std::exp(wide)));
}

RecurrentSizes::RecurrentSizes(const Fields& fields)
    : layer(fields.integer("layer")),
      cells(fields.integer("cells")),
      states(fields.integer("states")),
      key_heads(fields.integer("key_heads")),
      value_heads(fields.integer("value_heads")),
      key_dim(fields.integer("key_dim")),
      value_dim(fields.integer("value_dim")),
      length(fields.integer("length")),
      weight(fields.floats("weight")),
      bias(fields.floats("bias")) {}

void RecurrentSizes::check(Program& program) const {
    require(key_heads > 0 && key_dim > 0 && value_dim > 0 && value_heads > 0 &&
                value_heads % key_heads == 0 && length > 0,
            at("the recurrence", layer) + " has sizes that make no sense.");
    require(program.planes.layer(layer, cells).row_floats == cell_floats() &&
                program.planes.layer(layer, states).row_floats == state_floats(),
            at("the planes", layer) + " have another shape than what its recurrence keeps.");
    require(static_cast<int64_t>(weight.size()) == length * channels(),
            at("the convolution", layer) + " has not as many weights as its length says.");
    check_vector(bias, channels(), at("the convolution's bias", layer));
}

std::vector<Recurrence::Sequence> Recurrence::sequences_of(const Run& run, const RecurrentSizes& op) {
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

Recurrence::Recurrence(Run& run, const RecurrentSizes& sizes, int64_t wide)
    : run_(run),
      sizes_(sizes),
      chunk_(run.step.page_tokens),
      wide_(wide),
      cells_(run.planes().layer(sizes.layer, sizes.cells)),
      states_(run.planes().layer(sizes.layer, sizes.states)),
      sequences_(sequences_of(run, sizes)) {
    const int64_t rows = run.active.count;
    Activations& own = *run.activations;
    projected_ = own.qkv.take<float>(rows * wide_);
    made_ = own.made.take<float>(rows * sizes.cell_floats());
    mixed_ = own.gate_up.take<float>(rows * (sizes.channels() + 2 * sizes.value_heads));
    given_ = own.a.take<float>(rows * sizes.values());
    of_.resize(static_cast<size_t>(rows));
    for (const Sequence& each : sequences_) {
        check(each);
        for (int64_t n = 0; n < each.count; ++n) of_[static_cast<size_t>(each.first + n)] = &each;
    }
}

void Recurrence::check(const Sequence& own) const {
    const int64_t start = own.cell / chunk_;
    if (own.cell % chunk_ != 0) page(own.cell_pages, own.cell_page_count, start, cells_.pages);
    if (start > 0) page(own.state_pages, own.state_page_count, start - 1, states_.pages);
}

int64_t Recurrence::page(const int32_t* pages, int64_t count, int64_t entry, int64_t there) const {
    const int64_t found = entry < count ? pages[entry] : -1;
    if (found < 0 || found >= there)
        refuse(sizes_.layer,
               "goes on from chunk " + std::to_string(entry) + ", which has no page.");
    return found;
}

// What a cell before the step's rows, in the chunk of the first of them, holds.
const float* Recurrence::held(const Sequence& own, int64_t cell) const {
    return cells_.row(own.cell_pages[cell / chunk_] * chunk_ + cell % chunk_);
}

float* Recurrence::state(const Sequence& own, int64_t chunk) const {
    const int64_t found = chunk < own.state_page_count ? own.state_pages[chunk] : -1;
    return found < 0 ? nullptr : states_.row(found);
}

// What entered the convolution at a cell up to the step's last; null before the first token.
const float* Recurrence::entered(const Sequence& own, int64_t cell) const {
    if (cell < 0) return nullptr;
    if (cell >= own.cell) return made(own.first + cell - own.cell);
    const int64_t start = own.cell / chunk_ * chunk_;
    if (cell >= start) return held(own, cell);
    const float* tail =
        state(own, own.cell / chunk_ - 1) + sizes_.value_heads * sizes_.head_floats();
    return tail + (sizes_.length - 1 - (start - cell)) * sizes_.channels();
}

void Recurrence::enter() {
    const int64_t channels = sizes_.channels();
    for_rows(run_.pool, run_.active.count, channels,
             [&](int64_t i, int) { std::copy_n(projected(i), channels, made(i)); });
}

// Queries, keys and values of a row, from what entered up to it.
void Recurrence::convolve(int64_t i) {
    const Sequence& own = *of_[static_cast<size_t>(i)];
    const int64_t channels = sizes_.channels(), cell = own.cell + i - own.first;
    float* y = queries(i);
    bool begun = false;
    for (int64_t n = 0; n < sizes_.length; ++n) {
        const float* x = entered(own, cell - (sizes_.length - 1) + n);
        const float* w = sizes_.weight.data() + n * channels;
        if (x == nullptr) continue;
        if (begun)
            for (int64_t d = 0; d < channels; ++d) y[d] += w[d] * x[d];
        else
            for (int64_t d = 0; d < channels; ++d) y[d] = w[d] * x[d];
        begun = true;
    }
    if (!sizes_.bias.empty())
        for (int64_t d = 0; d < channels; ++d) y[d] += sizes_.bias[static_cast<size_t>(d)];
    run_.kernels.activated[static_cast<int>(Activation::silu)](y, channels, y);
}

void Recurrence::keep_keys(int64_t i) {
    std::copy_n(queries(i) + sizes_.keys(), sizes_.keys(), keys(i));
}

// A value head of a sequence, row after row. What a row gives, and what it leaves, depends on the
// state at its chunk's start and on the chunk's tokens up to it, in one order.
void Recurrence::run_head(const Sequence& own, int64_t head, bool corrects, float* scratch) {
    const int64_t dk = sizes_.key_dim, dv = sizes_.value_dim, floats = sizes_.head_floats();
    const int64_t key_head = sizes_.key_head(head);
    const RowKernels& kernels = run_.kernels;
    float *next = scratch, *factors = next + floats, *read = factors + chunk_ + 1;
    const int64_t key_at = sizes_.channels() + key_head * dk;
    const int64_t update_at = sizes_.channels() + sizes_.keys() + head * dv;
    const int64_t sum_at = sizes_.channels() + sizes_.keys() + sizes_.values() + head;
    const auto key = [&](int64_t cell) { return row(own, cell) + key_at; };
    const auto update = [&](int64_t cell) { return row(own, cell) + update_at; };
    const auto sum = [&](int64_t cell) { return row(own, cell)[sum_at]; };
    const int64_t begun = own.cell / chunk_;
    const float* s = begun == 0 ? nullptr : state(own, begun - 1) + head * floats;
    for (int64_t n = 0; n < own.count; ++n) {
        const int64_t i = own.first + n, cell = own.cell + n, start = cell / chunk_ * chunk_;
        const float beta = rates(i)[head], decay = rates(i)[sizes_.value_heads + head];
        const float total = (cell == start ? 0.0f : sum(cell - 1)) + decay;
        sums(i)[head] = total;
        // e^(G_t), then e^(G_t - G_j) of each token of the chunk up to this one.
        const int64_t count = cell - start + 1;
        factors[0] = total;
        for (int64_t j = 0; j < count; ++j) factors[1 + j] = total - sum(start + j);
        kernels.exponential(factors, count + 1, factors);
        const float* k = keys(i) + key_head * dk;
        const float* q = queries(i) + key_head * dk;
        const float* v = values(i) + head * dv;
        float *u = updates(i) + head * dv, *o = given(i) + head * dv;
        std::fill_n(o, dv, 0.0f);
        if (s != nullptr) {
            for (int64_t d = 0; d < dk; ++d) kernels.add_scaled(o, s + d * dv, q[d], dv);
            kernels.multiply(o, factors[0], dv);
        }
        if (corrects) {
            std::fill_n(read, dv, 0.0f);
            if (s != nullptr) {
                for (int64_t d = 0; d < dk; ++d) kernels.add_scaled(read, s + d * dv, k[d], dv);
                kernels.multiply(read, factors[0], dv);
            }
            for (int64_t j = 0; j + 1 < count; ++j)
                kernels.add_scaled(read, update(start + j),
                                   factors[1 + j] * dot(k, key(start + j), dk), dv);
            for (int64_t d = 0; d < dv; ++d) u[d] = beta * (v[d] - read[d]);
        } else {
            for (int64_t d = 0; d < dv; ++d) u[d] = beta * v[d];
        }
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
    const int64_t before = sizes_.length - 1, channels = sizes_.channels();
    for (int64_t end = (own.cell / chunk_ + 1) * chunk_; end <= own.cell + own.count; end += chunk_) {
        float* kept = state(own, end / chunk_ - 1);
        if (kept == nullptr) continue;
        float* to = kept + sizes_.value_heads * sizes_.head_floats();
        for (int64_t n = 0; n < before; ++n, to += channels) {
            const float* x = entered(own, end - before + n);
            if (x == nullptr)
                std::fill_n(to, channels, 0.0f);
            else
                std::copy_n(x, channels, to);
        }
    }
}

void Recurrence::run_heads(bool corrects) {
    const int64_t heads = sizes_.value_heads, count = static_cast<int64_t>(sequences_.size());
    std::vector<Buffer>& scratch = run_.activations->rows;
    run_.pool.parallel(count * heads, [&](int64_t task, int thread) {
        const int64_t floats = sizes_.head_floats() + chunk_ + 1 + sizes_.value_dim;
        float* own = scratch[static_cast<size_t>(thread)].take<float>(floats);
        run_head(sequences_[static_cast<size_t>(task / heads)], task % heads, corrects, own);
    });
    run_.pool.parallel(count, [&](int64_t task, int) {
        keep_entered(sequences_[static_cast<size_t>(task)]);
    });
    const int64_t* slots = run_.step.groups[static_cast<size_t>(sizes_.cells)].slots;
    for_rows(run_.pool, run_.active.count, sizes_.cell_floats(), [&](int64_t i, int) {
        const int64_t slot = slots[run_.active.at(i)];
        if (slot >= 0) std::copy_n(made(i), sizes_.cell_floats(), cells_.row(slot));
    });
}

}  // namespace ockham::ops
