#include "ops/recurrence.h"

#include <algorithm>
#include <cmath>

#include "ops/checks.h"
#include "ops/fields.h"
#include "program.h"

namespace ockham::ops {

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
                value_heads % key_heads == 0 && length >= 0,
            at("the recurrence", layer) + " has sizes that make no sense.");
    require(program.planes.layer(layer, cells).row_floats == cell_floats() &&
                program.planes.layer(layer, states).row_floats == state_floats(),
            at("the planes", layer) + " have another shape than what its recurrence keeps.");
    require(static_cast<int64_t>(weight.size()) == length * channels(),
            at("the convolution", layer) + " has not as many weights as its length says.");
    check_vector(bias, channels(), at("the convolution's bias", layer));
}

Recurrence::Recurrence(Run& run, const RecurrentSizes& sizes, int64_t wide)
    : run_(run),
      sizes_(sizes),
      chunks_(run, sizes.layer, sizes.cells, sizes.states),
      chunk_(chunks_.tokens()),
      wide_(wide) {
    const int64_t rows = run.active.count;
    Activations& own = *run.activations;
    projected_ = own.qkv.take<float>(rows * wide_);
    made_ = own.made.take<float>(rows * sizes.cell_floats());
    mixed_ = own.gate_up.take<float>(rows * (sizes.channels() + 2 * sizes.value_heads));
    given_ = own.a.take<float>(rows * sizes.values());
    scores_ = own.h.take<float>(rows * sizes.key_heads * 2 * chunk_);
}

// What entered the convolution at a cell up to the step's last; null before the first token.
const float* Recurrence::entered(const SequenceRows& own, int64_t cell) const {
    if (cell < 0) return nullptr;
    if (cell >= own.cell) return made(own.first + cell - own.cell);
    const int64_t start = own.cell / chunk_ * chunk_;
    if (cell >= start) return chunks_.held(own, cell);
    const float* tail =
        chunks_.end(own, own.cell / chunk_ - 1) + sizes_.value_heads * sizes_.head_floats();
    return tail + (sizes_.length - 1 - (start - cell)) * sizes_.channels();
}

void Recurrence::enter() {
    const int64_t channels = sizes_.entered();
    for_rows(run_.pool, run_.active.count, channels,
             [&](int64_t i, int) { std::copy_n(projected(i), channels, made(i)); });
}

// Queries, keys and values of a row, from what entered up to it.
void Recurrence::convolve(int64_t i) {
    const PlacedRow& at = chunks_.row(i);
    const int64_t channels = sizes_.channels(), oldest = at.place - (sizes_.length - 1);
    float* y = queries(i);
    if (sizes_.length == 0) {
        std::copy_n(projected(i), channels, y);
        return;
    }
    bool begun = false;
    for (int64_t n = 0; n < sizes_.length; ++n) {
        const float* x = entered(*at.own, at.cell(oldest + n));
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

// What queries and keys of a row give with the keys of its chunk up to it.
void Recurrence::score(int64_t i, bool corrects) {
    const PlacedRow& at = chunks_.row(i);
    const SequenceRows& own = *at.own;
    const int64_t dk = sizes_.key_dim, start = at.place / chunk_ * chunk_, count = at.place + 1 - start;
    // Cells that follow each other: those before the step's, those of the step, or of a branch each.
    const int64_t before = std::max<int64_t>(own.cell - start, 0);
    const int64_t run = i - own.first < own.ordered ? count - before : 1;
    for (int64_t head = 0; head < sizes_.key_heads; ++head) {
        const int64_t key_at = sizes_.entered() + head * dk;
        for (int kind = 0; kind < (corrects ? 2 : 1); ++kind) {
            const float* x = queries(i) + kind * sizes_.keys() + head * dk;
            float* to = scores(i, head, kind);
            if (before > 0)
                run_.kernels.dots(x, chunks_.held(own, start) + key_at, sizes_.cell_floats(), before, dk, to);
            for (int64_t j = before; j < count; j += run)
                run_.kernels.dots(x, row(own, at.cell(start + j)) + key_at, sizes_.cell_floats(), run,
                                  dk, to + j);
        }
    }
}

// A value head of a sequence, chunk after chunk, and then its branches, row after row. What a row
// gives, and what it leaves, depends on the state at its chunk's start and on the chunk's tokens up to
// it, in one order: that of a row alone.
void Recurrence::run_head(const SequenceRows& own, int64_t head, bool corrects, Buffer& memory) {
    const int64_t dk = sizes_.key_dim, dv = sizes_.value_dim, floats = sizes_.head_floats();
    const int64_t key_head = sizes_.key_head(head), values_of = sizes_.entered() + sizes_.keys();
    const int64_t update_at = values_of + head * dv, sum_at = values_of + sizes_.values() + head;
    const int64_t most = std::max(2 * chunk_, dk);
    const RowKernels& kernels = run_.kernels;
    // Pointers stand in the place of two floats each.
    float* scratch = memory.take<float>(2 * most + floats + chunk_ * (3 * dv + dk + 4) + 1);
    const float** scales = reinterpret_cast<const float**>(scratch);
    float *next = scratch + 2 * most, *reads = next + floats, *us = reads + 2 * chunk_ * dv;
    float *turned = us + chunk_ * dv, *totals = turned + chunk_ * dk, *factors = totals + chunk_;
    float* weights = factors + chunk_ + 1;

    // Of the tokens of a row's chunk that stand before `count` rows from the i-th on, what they add and
    // their sums; and what the state `s` gives for each row's query and key.
    const auto begin = [&](const float* s, int64_t i, int64_t count) {
        const PlacedRow& at = chunks_.row(i);
        const int64_t start = at.place / chunk_ * chunk_;
        for (int64_t j = 0; j < at.place - start; ++j) {
            const float* cell = row(own, at.cell(start + j));
            std::copy_n(cell + update_at, dv, us + j * dv);
            totals[j] = cell[sum_at];
        }
        if (s == nullptr) return;
        for (int64_t r = 0; r < count; ++r) {
            scales[r] = queries(i + r) + key_head * dk;
            scales[count + r] = scales[r] + sizes_.keys();
        }
        kernels.sum_rows({s, dv, dk, scales, corrects ? 2 * count : count, dv, nullptr, 0.0f, reads});
    };
    // The i-th row, the r-th of `rows` that were begun with, whose chunk has `count` tokens with it.
    const auto go_on = [&](const float* s, int64_t i, int64_t count, int64_t r, int64_t rows) {
        const float beta = rates(i)[head], decay = rates(i)[sizes_.value_heads + head];
        const float total = (count == 1 ? 0.0f : totals[count - 2]) + decay;
        totals[count - 1] = sums(i)[head] = total;
        // e^(G_t), then e^(G_t - G_j) of each token of the chunk up to this one.
        factors[0] = total;
        for (int64_t j = 0; j < count; ++j) factors[1 + j] = total - totals[j];
        kernels.exponential(factors, count + 1, factors);
        // What the state gives for the row's query or key, and then the chunk's tokens.
        const auto give = [&](int kind, int64_t tokens, float* to) {
            const float* scored = scores(i, key_head, kind);
            for (int64_t j = 0; j < tokens; ++j) weights[j] = factors[1 + j] * scored[j];
            const float* from = s == nullptr ? nullptr : reads + (kind * rows + r) * dv;
            scales[0] = weights;
            kernels.sum_rows({us, dv, tokens, scales, 1, dv, from, factors[0], to});
        };
        const float* v = values(i) + head * dv;
        float *u = us + (count - 1) * dv, *kept = updates(i) + head * dv;
        if (corrects) {
            give(1, count - 1, u);
            for (int64_t d = 0; d < dv; ++d) u[d] = beta * (v[d] - u[d]);
        } else {
            for (int64_t d = 0; d < dv; ++d) u[d] = beta * v[d];
        }
        std::copy_n(u, dv, kept);
        give(0, count, given(i) + head * dv);
    };

    const int64_t begun = own.cell / chunk_;
    const float* before = begun == 0 ? nullptr : chunks_.end(own, begun - 1) + head * floats;
    const float* s = before;
    for (int64_t n = 0; n < own.ordered;) {
        const int64_t first = own.first + n, place = (own.cell + n) % chunk_;
        const int64_t start = own.cell + n - place, rows = std::min(chunk_ - place, own.ordered - n);
        begin(s, first, rows);
        for (int64_t r = 0; r < rows; ++r) go_on(s, first + r, place + r + 1, r, rows);
        n += rows;
        if (place + rows < chunk_) continue;
        // The chunk ends: its state is left for the next one.
        for (int64_t j = 0; j < chunk_; ++j) {
            const float* key = row(own, start + j) + sizes_.entered() + key_head * dk;
            for (int64_t d = 0; d < dk; ++d) turned[d * chunk_ + j] = factors[1 + j] * key[d];
        }
        for (int64_t d = 0; d < dk; ++d) scales[d] = turned + d * chunk_;
        float* kept = chunks_.end(own, start / chunk_);
        float* to = kept == nullptr ? next : kept + head * floats;
        kernels.sum_rows({us, dv, chunk_, scales, dk, dv, s, factors[0], to});
        s = to;
    }
    for (int64_t i = own.first + own.ordered; i < own.first + own.count; ++i) {
        const int64_t place = chunks_.row(i).place;
        const float* own_state = place / chunk_ == begun ? before : s;
        begin(own_state, i, 1);
        go_on(own_state, i, place % chunk_ + 1, 0, 1);
    }
}

// What entered the convolution before the end of each chunk that the step ends and keeps.
void Recurrence::keep_entered(const SequenceRows& own) {
    const int64_t before = std::max<int64_t>(sizes_.length - 1, 0), channels = sizes_.channels();
    const int64_t stop = own.cell + own.ordered;
    for (int64_t end = (own.cell / chunk_ + 1) * chunk_; end <= stop; end += chunk_) {
        float* kept = chunks_.end(own, end / chunk_ - 1);
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
    const std::vector<SequenceRows>& sequences = chunks_.sequences();
    const int64_t heads = sizes_.value_heads, count = static_cast<int64_t>(sequences.size());
    std::vector<Buffer>& scratch = run_.activations->rows;
    for_rows(run_.pool, run_.active.count, 2 * chunk_ * sizes_.keys(),
             [&](int64_t i, int) { score(i, corrects); });
    run_.pool.parallel(count * heads, [&](int64_t task, int thread) {
        run_head(sequences[static_cast<size_t>(task / heads)], task % heads, corrects,
                 scratch[static_cast<size_t>(thread)]);
    });
    run_.pool.parallel(count, [&](int64_t task, int) {
        keep_entered(sequences[static_cast<size_t>(task)]);
    });
    chunks_.keep(run_, made_);
}

}  // namespace ockham::ops
