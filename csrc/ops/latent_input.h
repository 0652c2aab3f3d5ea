// LatentInput: norm, projection to queries and to one latent and one rotated key for all heads, queries
// times each head's key projection, and the key written to its slot, which is its value too.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/attention_input.h"

namespace ockham::ops {

struct LatentInput final : AttentionInput {
    Stack inputs;
    std::vector<PackedMatrix> keys;  // of each head
    Norm latent_norm, query_norm;
    Stack query_up;

    LatentInput() = default;
    explicit LatentInput(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;

   private:
    int64_t latent() const { return keys.front().outputs; }
    int64_t plain() const { return keys.front().inputs; }  // elements of a query that are not rotated
    int64_t rotated() const { return head_dim - latent(); }
    int64_t query_width() const { return heads * (rotated() + plain()); }
};

}  // namespace ockham::ops
