// What layers share that keep a state of each head, (key_dim, value_dim), which every token changes:
// the convolution before it, the order of operations within a chunk, and what is kept in pages.
// ockham/kernels/ops/recurrent.py says what is computed.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/rows.h"
#include "ops/operation.h"
#include "run.h"
#include "state/planes.h"

namespace ockham::ops {

struct RecurrentSizes {
    int64_t layer = 0;
    int64_t cells = 0, states = 0;  // groups: of what is kept of each token, and of each chunk
    int64_t key_heads = 0, value_heads = 0, key_dim = 0, value_dim = 0;
    int64_t length = 0;          // of the convolution
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
    int64_t cell_floats() const { return channels() + keys() + values() + value_heads; }
    // Of a chunk's end: the state of each head (key_dim, value_dim), and the inputs before it.
    int64_t head_floats() const { return key_dim * value_dim; }
    int64_t state_floats() const {
        return value_heads * head_floats() + (length - 1) * channels();
    }
};

// log(1 + e^x).
float softplus(float x);

// The recurrence of one step. Each row is `wide` floats that begin with the channels. Rows may branch,
// but for what leaves a state behind: the token that ends a chunk, and those after it, stand in order.
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
    // The rows of one sequence in a step, whose cells follow each other.
    struct Sequence {
        int64_t first, count;  // among the active rows
        int64_t ordered;       // the first ones, whose tokens follow each other too; the rest branches
        int64_t cell;          // of the first
        const int32_t* cell_pages;
        const int32_t* state_pages;
        int64_t cell_page_count, state_page_count;
    };
    // A row whose token stands in `place` of its text. The tokens before it have their cells.
    struct Row {
        const Sequence* own;
        int64_t place;
        int64_t context;       // tokens before this place stand in cells of the same number
        const int32_t* extra;  // and the cells of those from there on
        int64_t cell(int64_t token) const { return token < context ? token : extra[token - context]; }
    };

    static std::vector<Sequence> sequences_of(const Run& run, const RecurrentSizes& sizes);
    static Row row_of(const Run& run, const RecurrentSizes& sizes, int64_t i);
    void check(const Sequence& own) const;
    void check_branch(const Row& at) const;
    int64_t page(const int32_t* pages, int64_t count, int64_t entry, int64_t there) const;
    float* made(int64_t i) const { return made_ + i * sizes_.cell_floats(); }
    float* keys(int64_t i) const { return made(i) + sizes_.channels(); }
    float* updates(int64_t i) const { return keys(i) + sizes_.keys(); }
    float* sums(int64_t i) const { return updates(i) + sizes_.values(); }
    // Of a row's query (kind 0) or key (1) with each key of its chunk up to it.
    float* scores(int64_t i, int64_t key_head, int kind) const {
        return scores_ + ((i * sizes_.key_heads + key_head) * 2 + kind) * chunk_;
    }
    const float* held(const Sequence& own, int64_t cell) const;
    const float* row(const Sequence& own, int64_t cell) const {
        return cell >= own.cell ? made(own.first + cell - own.cell) : held(own, cell);
    }
    float* state(const Sequence& own, int64_t chunk) const;
    const float* entered(const Sequence& own, int64_t cell) const;

    void enter();
    void convolve(int64_t i);
    void keep_keys(int64_t i);
    void run_heads(bool corrects);
    void score(int64_t i, bool corrects);
    void run_head(const Sequence& own, int64_t head, bool corrects, Buffer& memory);
    void keep_entered(const Sequence& own);

    Run& run_;
    const RecurrentSizes& sizes_;
    const int64_t chunk_, wide_;
    const LayerPlane cells_, states_;
    const std::vector<Sequence> sequences_;
    std::vector<Row> rows_;
    float *projected_, *made_, *mixed_, *given_, *scores_;
};

}  // namespace ockham::ops
