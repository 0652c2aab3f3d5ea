// How often tokens followed the two tokens, or the one, before them, and a search tree among them:
// the native form of ockham/draft/structures/trigrams.py, decision for decision.
#pragma once

#include <cstdint>
#include <vector>

#include "drafts/bounded_map.h"

namespace ockham {

class Trigrams {
   public:
    static constexpr int width = 6;   // continuations of a context that are counted
    static constexpr int shares = 6;  // kinds of each length of context
    static constexpr size_t kinds = 2 * shares;

    struct Draft {
        std::vector<int32_t> tokens, parents, kinds;
    };

    explicit Trigrams(int64_t capacity) : counts_(capacity) {}

    // `next` has followed `before`, `last`; `before` is -1 at the beginning of a text.
    void follow(int32_t tenant, int32_t before, int32_t last, int32_t next);
    Draft propose(int32_t tenant, int32_t before, int32_t last, int64_t most,
                  const std::vector<double>& accepted, double worth) const;

    int64_t size() const { return counts_.size(); }
    int64_t bytes() const { return static_cast<int64_t>(sizeof(*this)) + counts_.bytes(); }

   private:
    struct Counts {
        int32_t tokens[width];
        uint16_t counts[width];
        int32_t used;
    };
    struct Node {
        int32_t token, parent, kind, before, drafted;
        double chance, share, worth;
        int64_t visits;
        int32_t first, children;  // -1 children: not looked for yet
    };

    static void count(Counts& here, int32_t next);
    void expand(std::vector<Node>& nodes, int32_t at, int32_t tenant, int32_t last,
                const std::vector<double>& accepted, double worth) const;

    BoundedMap<Counts> counts_;
};

}  // namespace ockham
