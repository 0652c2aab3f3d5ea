// The likeliest tokens after each token, as they were found last, and the tree that is searched
// among them: the native form of ockham/draft/structures/adjacency.py, decision for decision.
#pragma once

#include <cstdint>
#include <vector>

#include "drafts/bounded_map.h"

namespace ockham {

class Adjacency {
   public:
    static constexpr int width = 8;  // of a row
    static constexpr int deeper = 2;  // kinds of depth: the first token, and those after it
    static constexpr size_t kinds = width * deeper;

    struct Draft {
        std::vector<int32_t> tokens, parents, kinds;
    };

    explicit Adjacency(int64_t capacity) : rows_(capacity) {}

    // `next` has followed `token`: it comes first in its row.
    void follow(int32_t tenant, int32_t token, int32_t next);
    // The likeliest tokens after each of some tokens, `width` for each; those that begin with a
    // negative one say nothing.
    void observe(int32_t tenant, const int32_t* tokens, int64_t count, const int32_t* candidates);
    Draft propose(int32_t tenant, int32_t token, int64_t most, const std::vector<double>& accepted,
                  double worth) const;

    int64_t size() const { return rows_.size(); }
    int64_t bytes() const { return static_cast<int64_t>(sizeof(*this)) + rows_.bytes(); }

   private:
    struct Row {
        int32_t tokens[width];
        int32_t count;
    };
    BoundedMap<Row> rows_;
};

}  // namespace ockham
