// GatedDelta: the gated delta rule over a state of each value head, in the place of attention.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/operation.h"
#include "ops/parts.h"

namespace ockham::ops {

struct GatedDelta final : Operation {
    int64_t layer = 0;
    int64_t cells = 0, states = 0;  // groups: of what is kept of each token, and of each chunk
    int64_t key_heads = 0, value_heads = 0, key_dim = 0, value_dim = 0;
    int64_t length = 0;  // of the convolution
    Stack inputs;
    std::vector<float> weight;  // [length][channels], the newest token's last
    std::vector<float> decay, decay_bias;  // of each value head
    Norm head_norm;
    Stack out;
    Norm norm;
    float residual_scale = 1.0f;
    bool tiled = false;  // value heads take turns among key heads, and do not stand beside each other

    GatedDelta() = default;
    explicit GatedDelta(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;

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

}  // namespace ockham::ops
