// The suffix automaton of a growing sequence of tokens (Blumer et al. 1985), with the latest places
// at which each state's strings ended: the native form of ockham/draft/suffix_automaton.py, decision
// for decision (a test drives both side by side).
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

namespace ockham {

class SuffixAutomaton {
   public:
    // A tree of tokens to follow: `parents[i]` is the index of token i's parent, -1 for the root;
    // `matched[i]` how many tokens before it, those drafted included, stood so before.
    struct Draft {
        std::vector<int32_t> tokens, parents, matched;
    };

    SuffixAutomaton();

    void extend(const int32_t* tokens, int64_t count);

    // What followed the longest suffix that came before, in a chain of up to `most` tokens, and up to
    // `branches` - 1 shorter chains of `side` tokens that began otherwise. Suffixes of fewer than
    // `least` tokens are not looked at.
    Draft propose(int64_t most, int64_t branches, int64_t side, int64_t least) const;

    int64_t length() const { return static_cast<int64_t>(tokens_.size()); }
    int64_t states() const { return static_cast<int64_t>(states_.size()); }
    int64_t bytes() const;

   private:
    struct State {
        int32_t length = 0, link = -1;
        int32_t edges = -1;               // first of its edges
        int32_t latest = -1, before = -1;  // where its strings ended last, and the time before
    };
    struct Edge {
        int32_t token, target, next;
    };

    int32_t target(int32_t state, int32_t token) const;
    void connect(int32_t state, int32_t token, int32_t target);
    void redirect(int32_t state, int32_t token, int32_t target);
    int32_t clone(int32_t state, int32_t length);
    void push(int32_t token);
    void chain(Draft& draft, int64_t from, int64_t most, int64_t matched) const;

    std::vector<int32_t> tokens_;
    std::vector<State> states_;
    std::vector<Edge> edges_;
    std::unordered_map<int32_t, int32_t> roots_;  // the root's edges: it has one for each token
    int32_t last_ = 0;
};

}  // namespace ockham
