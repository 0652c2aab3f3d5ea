// What layers share that keep a state of each head, (key_dim, value_dim), which every token changes:
// the convolution before it, the order of operations within a chunk, and what is kept in pages.
// ockham/kernels/ops/recurrent.py says what is computed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/rows.h"
#include "ops/chunks.h"
#include "ops/operation.h"
#include "run.h"

namespace ockham::ops {

struct RecurrentSizes {
    int64_t layer = 0;
    int64_t cells = 0, states = 0;  // groups: of what is kept of each token, and of each chunk
    int64_t key_heads = 0, value_heads = 0, key_dim = 0, value_dim = 0;
    int64_t length = 0;          // of the convolution; 0: there is none, and no activation
    std::vector<float> weight;   // [length][channels], the newest token's last
    std::vector<float> bias;     // of the convolution, or empty
    bool tiled = false;  // value heads take turns among key heads, and do not stand beside each other

    RecurrentSizes() = default;
    explicit RecurrentSizes(const Fields& fields);
    void check(Program& program) const;

    int64_t key_head(int64_t value_head) const {
        return tiled ? value_head % key_heads : value_head / (value_heads / key_heads);
    }
    int64_t keys() const { return key_heads * key_dim; }
    int64_t values() const { return value_heads * value_dim; }
    // What goes through the convolution: queries, keys, values.
    int64_t channels() const { return 2 * keys() + values(); }
    // Of a token: what entered the convolution, its keys, its updates, its decays' sums.
    int64_t entered() const { return length > 0 ? channels() : 0; }
    int64_t cell_floats() const { return entered() + keys() + values() + value_heads; }
    // Of a chunk's end: the state of each head (key_dim, value_dim), and the inputs before it.
    int64_t head_floats() const { return key_dim * value_dim; }
    int64_t state_floats() const {
        return value_heads * head_floats() + std::max<int64_t>(length - 1, 0) * channels();
    }
};

// log(1 + e^x).
float softplus(float x);

// The recurrence of one step. Each row is `wide` floats that begin with the channels. Rows may branch
// as those of Chunks.
class Recurrence {
   public:
    Recurrence(Run& run, const RecurrentSizes& sizes, int64_t wide);

    float* projected(int64_t i) const { return projected_ + i * wide_; }
    // After the convolution: queries, keys and values.
    float* queries(int64_t i) const {
        return mixed_ + i * (sizes_.channels() + 2 * sizes_.value_heads);
    }
    float* values(int64_t i) const { return queries(i) + 2 * sizes_.keys(); }
    // What a row multiplies its values with, of each head, and then what it adds to the exponents of
    // what came before.
    float* rates(int64_t i) const { return queries(i) + sizes_.channels(); }
    float* given(int64_t i) const { return given_ + i * sizes_.values(); }

    // Fills `given` from `projected`. prepare(i) is called with the i-th row's channels convolved and
    // activated: it may change the queries and keys, and fills the rates. With `corrects`, what a
    // state gives for a key is taken from the values before they are added to it.
    template <class Prepare>
    void compute(bool corrects, Prepare prepare) {
        enter();
        for_rows(run_.pool, run_.active.count, sizes_.length * sizes_.channels(), [&](int64_t i, int) {
            convolve(i);
            prepare(i);
            keep_keys(i);
        });
        run_heads(corrects);
    }

   private:
    float* made(int64_t i) const { return made_ + i * sizes_.cell_floats(); }
    float* keys(int64_t i) const { return made(i) + sizes_.entered(); }
    float* updates(int64_t i) const { return keys(i) + sizes_.keys(); }
    float* sums(int64_t i) const { return updates(i) + sizes_.values(); }
    // Of a row's query (kind 0) or key (1) with each key of its chunk up to it.
    float* scores(int64_t i, int64_t key_head, int kind) const {
        return scores_ + ((i * sizes_.key_heads + key_head) * 2 + kind) * chunk_;
    }
    const float* row(const SequenceRows& own, int64_t cell) const {
        return cell >= own.cell ? made(own.first + cell - own.cell) : chunks_.held(own, cell);
    }
    const float* entered(const SequenceRows& own, int64_t cell) const;

    void enter();
    void convolve(int64_t i);
    void keep_keys(int64_t i);
    void run_heads(bool corrects);
    void score(int64_t i, bool corrects);
    void run_head(const SequenceRows& own, int64_t head, bool corrects, Buffer& memory);
    void keep_entered(const SequenceRows& own);

    Run& run_;
    const RecurrentSizes& sizes_;
    const Chunks chunks_;
    const int64_t chunk_, wide_;
    float *projected_, *made_, *mixed_, *given_, *scores_;
};

}  // namespace ockham::ops
