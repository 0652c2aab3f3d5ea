#include "byte_pairs.h"

#include <algorithm>
#include <queue>
#include <random>

namespace ockham {

namespace {

uint64_t mixed(uint64_t x) {
    x ^= x >> 32;
    x *= 0x9E3779B97F4A7C15ull;
    x ^= x >> 29;
    x *= 0xBF58476D1CE4E5B9ull;
    return x ^ (x >> 32);
}

uint64_t pair_of(uint32_t left, uint32_t right) { return uint64_t{left} << 32 | right; }

constexpr uint32_t kEnd = UINT32_MAX;

// One token of a word that is being merged, in a list of those that are left.
struct Symbol {
    uint32_t token, previous, next;
    bool merged;
};

struct Candidate {
    uint32_t rank, place, token;
    // std::priority_queue has the largest on top: here the first merge, then the first place.
    bool operator<(const Candidate& other) const {
        return rank != other.rank ? rank > other.rank : place > other.place;
    }
};

}  // namespace

// Anybody may have written the file that tokens and merges come from. The seed is unknown to him, so
// that he cannot choose many that share a slot, which would take hours.
BytePairs::BytePairs() {
    std::random_device device;
    seed_ = uint64_t{device()} << 32 | device();
}

uint64_t BytePairs::hash_of(std::string_view text) const {
    uint64_t hash = seed_;
    for (const char byte : text) hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001B3ull;
    return mixed(hash);
}

uint64_t BytePairs::hash_of(uint64_t pair) const { return mixed(pair ^ seed_); }

bool BytePairs::add_token(std::string_view token) {
    if (2 * (ends_.size() + 1) > slots_.size()) grow_tokens();
    const size_t mask = slots_.size() - 1;
    size_t slot = hash_of(token) & mask;
    while (slots_[slot] != kNone) {
        if (this->token(slots_[slot]) == token) return false;
        slot = (slot + 1) & mask;
    }
    slots_[slot] = size();
    spelled_.append(token);
    ends_.push_back(spelled_.size());
    return true;
}

bool BytePairs::add_merge(std::string_view left, std::string_view right) {
    const uint32_t first = find(left), second = find(right);
    if (first == kNone || second == kNone) return false;
    const uint32_t both = find(std::string(left).append(right));
    if (both == kNone) return false;
    if (2 * (merges_.size() + 1) > pairs_.size()) grow_merges();
    const uint64_t pair = pair_of(first, second);
    const size_t mask = pairs_.size() - 1;
    size_t slot = hash_of(pair) & mask;
    while (pairs_[slot].token != kNone) {
        if (pairs_[slot].pair == pair) return false;
        slot = (slot + 1) & mask;
    }
    pairs_[slot] = {pair, static_cast<uint32_t>(merges_.size()), both};
    merges_.push_back(pair);
    return true;
}

std::string_view BytePairs::token(uint32_t id) const {
    const size_t start = id == 0 ? 0 : ends_[id - 1];
    return std::string_view(spelled_).substr(start, ends_[id] - start);
}

uint32_t BytePairs::find(std::string_view token) const {
    if (slots_.empty()) return kNone;
    const size_t mask = slots_.size() - 1;
    for (size_t slot = hash_of(token) & mask; slots_[slot] != kNone; slot = (slot + 1) & mask)
        if (this->token(slots_[slot]) == token) return slots_[slot];
    return kNone;
}

const BytePairs::Merge* BytePairs::find_merge(uint32_t left, uint32_t right) const {
    if (pairs_.empty()) return nullptr;
    const uint64_t pair = pair_of(left, right);
    const size_t mask = pairs_.size() - 1;
    for (size_t slot = hash_of(pair) & mask; pairs_[slot].token != kNone; slot = (slot + 1) & mask)
        if (pairs_[slot].pair == pair) return &pairs_[slot];
    return nullptr;
}

void BytePairs::grow_tokens() {
    slots_.assign(std::max<size_t>(1024, 2 * slots_.size()), kNone);
    const size_t mask = slots_.size() - 1;
    for (uint32_t id = 0; id < size(); ++id) {
        size_t slot = hash_of(token(id)) & mask;
        while (slots_[slot] != kNone) slot = (slot + 1) & mask;
        slots_[slot] = id;
    }
}

void BytePairs::grow_merges() {
    std::vector<Merge> before(std::max<size_t>(1024, 2 * pairs_.size()), Merge{0, 0, kNone});
    before.swap(pairs_);
    const size_t mask = pairs_.size() - 1;
    for (const Merge& merge : before) {
        if (merge.token == kNone) continue;
        size_t slot = hash_of(merge.pair) & mask;
        while (pairs_[slot].token != kNone) slot = (slot + 1) & mask;
        pairs_[slot] = merge;
    }
}

size_t BytePairs::merge(uint32_t* word, size_t count, bool whole) const {
    if (whole && count > 1) {
        std::string spelled;
        for (size_t i = 0; i < count; ++i) spelled.append(token(word[i]));
        const uint32_t found = find(spelled);
        if (found != kNone) {
            word[0] = found;
            return 1;
        }
    }
    if (count < 2) return count;
    std::vector<Symbol> symbols(count);
    std::priority_queue<Candidate> candidates;
    const auto propose = [&](uint32_t place) {
        const Symbol& left = symbols[place];
        const Merge* merge = find_merge(left.token, symbols[left.next].token);
        if (merge != nullptr) candidates.push({merge->rank, place, merge->token});
    };
    for (uint32_t i = 0; i < count; ++i)
        symbols[i] = {word[i], i == 0 ? kEnd : i - 1, i + 1 == count ? kEnd : i + 1, false};
    for (uint32_t i = 0; i + 1 < count; ++i) propose(i);
    while (!candidates.empty()) {
        const Candidate best = candidates.top();
        candidates.pop();
        Symbol& left = symbols[best.place];
        if (left.merged || left.next == kEnd) continue;
        Symbol& right = symbols[left.next];
        // The tokens that were proposed may have been merged with others since.
        const Merge* merge = find_merge(left.token, right.token);
        if (merge == nullptr || merge->token != best.token) continue;
        left.token = best.token;
        left.next = right.next;
        right.merged = true;
        if (left.next != kEnd) symbols[left.next].previous = best.place;
        if (left.previous != kEnd) propose(left.previous);
        if (left.next != kEnd) propose(best.place);
    }
    size_t kept = 0;
    for (const Symbol& symbol : symbols)
        if (!symbol.merged) word[kept++] = symbol.token;
    return kept;
}

}  // namespace ockham
