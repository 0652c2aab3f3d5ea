#include "drafts/suffix_automaton.h"

#include <algorithm>

namespace ockham {

namespace {

// States whose latest place is brought up to date when a token comes. The rest of the way to the
// root may be long, and an older place of a short match is as good.
constexpr int updated_states = 8;

// States whose continuations are looked at for a draft.
constexpr int looked_at = 8;

}  // namespace

SuffixAutomaton::SuffixAutomaton() { states_.emplace_back(); }

void SuffixAutomaton::extend(const int32_t* tokens, int64_t count) {
    for (int64_t i = 0; i < count; ++i) push(tokens[i]);
}

int32_t SuffixAutomaton::target(int32_t state, int32_t token) const {
    if (state == 0) {
        const auto found = roots_.find(token);
        return found == roots_.end() ? -1 : found->second;
    }
    for (int32_t edge = states_[state].edges; edge >= 0; edge = edges_[edge].next)
        if (edges_[edge].token == token) return edges_[edge].target;
    return -1;
}

void SuffixAutomaton::connect(int32_t state, int32_t token, int32_t target) {
    if (state == 0) {
        roots_.emplace(token, target);
        return;
    }
    edges_.push_back({token, target, states_[state].edges});
    states_[state].edges = static_cast<int32_t>(edges_.size()) - 1;
}

void SuffixAutomaton::redirect(int32_t state, int32_t token, int32_t target) {
    if (state == 0) {
        roots_[token] = target;
        return;
    }
    int32_t edge = states_[state].edges;
    while (edges_[edge].token != token) edge = edges_[edge].next;
    edges_[edge].target = target;
}

int32_t SuffixAutomaton::clone(int32_t state, int32_t length) {
    const int32_t twin = static_cast<int32_t>(states_.size());
    const State original = states_[state];
    states_.push_back({length, original.link, -1, original.latest, original.before});
    for (int32_t edge = original.edges; edge >= 0; edge = edges_[edge].next)
        connect(twin, edges_[edge].token, edges_[edge].target);
    return twin;
}

void SuffixAutomaton::push(int32_t token) {
    const int32_t place = static_cast<int32_t>(tokens_.size());
    tokens_.push_back(token);
    const int32_t current = static_cast<int32_t>(states_.size());
    states_.push_back({states_[last_].length + 1, 0, -1, place, -1});
    int32_t state = last_, next = -1;
    while (state >= 0 && (next = target(state, token)) < 0) {
        connect(state, token, current);
        state = states_[state].link;
    }
    if (state >= 0) {
        const int32_t length = states_[state].length + 1;
        if (states_[next].length != length) {
            const int32_t twin = clone(next, length);
            states_[next].link = twin;
            for (const int32_t old = next; state >= 0 && target(state, token) == old;
                 state = states_[state].link)
                redirect(state, token, twin);
            next = twin;
        }
        states_[current].link = next;
    }
    last_ = current;
    state = states_[current].link;
    for (int updated = 0; state > 0 && updated < updated_states; ++updated) {
        states_[state].before = states_[state].latest;
        states_[state].latest = place;
        state = states_[state].link;
    }
}

// Appends what stands from place `from` on; where the text ends, the draft goes on copying itself.
void SuffixAutomaton::chain(Draft& draft, int64_t from, int64_t most, int64_t matched) const {
    const int64_t end = length(), first = static_cast<int64_t>(draft.tokens.size());
    for (int64_t i = 0; i < most; ++i) {
        const int64_t place = from + i;
        draft.tokens.push_back(place < end ? tokens_[place] : draft.tokens[first + place - end]);
        draft.parents.push_back(i == 0 ? -1 : static_cast<int32_t>(first + i - 1));
        draft.matched.push_back(static_cast<int32_t>(matched + i));
    }
}

SuffixAutomaton::Draft SuffixAutomaton::propose(int64_t most, int64_t branches, int64_t side,
                                                int64_t least) const {
    Draft draft;
    std::vector<int32_t> begun;  // first tokens of the chains
    int32_t state = last_ > 0 ? states_[last_].link : -1;
    for (int looked = 0; state > 0 && looked < looked_at; ++looked, state = states_[state].link) {
        const State& here = states_[state];
        if (here.length < least || static_cast<int64_t>(begun.size()) >= branches) break;
        // The latest place may be the end of the text, which nothing follows yet.
        const int32_t place = here.latest == length() - 1 ? here.before : here.latest;
        if (place < 0) continue;
        const int32_t token = tokens_[place + 1];
        if (std::find(begun.begin(), begun.end(), token) != begun.end()) continue;
        chain(draft, place + 1, begun.empty() ? most : std::min(most, side), here.length);
        begun.push_back(token);
    }
    return draft;
}

int64_t SuffixAutomaton::bytes() const {
    // An entry of the map: a pair, the pointer to the next and its share of the buckets.
    constexpr int64_t root_edge = 8 + 2 * sizeof(void*);
    return static_cast<int64_t>(sizeof(*this) + tokens_.capacity() * sizeof(int32_t) +
                                states_.capacity() * sizeof(State) +
                                edges_.capacity() * sizeof(Edge)) +
           static_cast<int64_t>(roots_.size()) * root_edge;
}

}  // namespace ockham
