#include "text/byte_pairs.h"

#include <algorithm>
#include <array>
#include <random>

namespace ockham {

namespace {

constexpr uint32_t kEnd = UINT32_MAX;

uint64_t mixed(uint64_t x) {
    x ^= x >> 32;
    x *= 0x9E3779B97F4A7C15ull;
    x ^= x >> 29;
    x *= 0xBF58476D1CE4E5B9ull;
    return x ^ (x >> 32);
}

uint64_t pair_of(uint32_t left, uint32_t right) { return uint64_t{left} << 32 | right; }

// Slots for so many entries, of which half stay free: a power of two.
size_t slots_for(size_t entries) {
    size_t slots = 16;
    while (slots < 2 * entries) slots *= 2;
    return slots;
}

// The heap has the candidate on top that comes first: the first merge, then the first place.
bool comes_later(const Candidate& one, const Candidate& other) {
    return one.rank != other.rank ? one.rank > other.rank : one.place > other.place;
}

// The letters of byte-level BPE, by GPT-2's rule: printable bytes stand for themselves, the others
// follow from U+0100 on. Letter -> byte, or -1.
constexpr int kLetters = 0x144;

std::array<int16_t, kLetters> bytes_of_letters() {
    std::array<int16_t, kLetters> bytes;
    bytes.fill(-1);
    int next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
        const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
        bytes[printable ? byte : next++] = static_cast<int16_t>(byte);
    }
    return bytes;
}

}  // namespace

// Anybody may have written the file that tokens and merges come from. The seed is unknown to him, so
// that he cannot choose many that share a slot, which would take hours.
BytePairs::BytePairs(size_t tokens, size_t merges) {
    std::random_device device;
    seed_ = uint64_t{device()} << 32 | device();
    spelled_.reserve(8 * tokens);
    ends_.reserve(tokens);
    slots_.assign(slots_for(tokens), {kNone, 0});
    merges_.reserve(merges);
    pairs_.assign(slots_for(merges), {0, 0, kNone});
}

uint64_t BytePairs::hash_of(std::string_view text) const {
    uint64_t hash = seed_;
    for (const char byte : text) hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001B3ull;
    return mixed(hash);
}

uint64_t BytePairs::hash_of(uint64_t pair) const { return mixed(pair ^ seed_); }

bool BytePairs::add_token(std::string_view token) {
    const uint64_t hash = hash_of(token);
    const uint32_t tag = static_cast<uint32_t>(hash >> 32);
    const size_t mask = slots_.size() - 1;
    size_t slot = hash & mask;
    while (slots_[slot].token != kNone) {
        if (slots_[slot].tag == tag && this->token(slots_[slot].token) == token) return false;
        slot = (slot + 1) & mask;
    }
    slots_[slot] = {size(), tag};
    spelled_.append(token);
    ends_.push_back(spelled_.size());
    return true;
}

bool BytePairs::add_merge(std::string_view left, std::string_view right) {
    const uint32_t first = find(left), second = find(right);
    if (first == kNone || second == kNone) return false;
    // Trained vocabularies number what merges make in the merges' order.
    const uint32_t next = latest_ + 1;
    const std::string_view guess = next < size() ? token(next) : std::string_view();
    if (guess.size() == left.size() + right.size() && guess.substr(0, left.size()) == left &&
        guess.substr(left.size()) == right)
        latest_ = next;
    else
        latest_ = find(std::string(left).append(right));
    if (latest_ == kNone) return false;
    const uint64_t pair = pair_of(first, second);
    const size_t mask = pairs_.size() - 1;
    size_t slot = hash_of(pair) & mask;
    while (pairs_[slot].token != kNone) {
        if (pairs_[slot].pair == pair) return false;
        slot = (slot + 1) & mask;
    }
    pairs_[slot] = {pair, static_cast<uint32_t>(merges_.size()), latest_};
    merges_.push_back(pair);
    return true;
}

std::string_view BytePairs::token(uint32_t id) const {
    const size_t start = id == 0 ? 0 : ends_[id - 1];
    return {spelled_.data() + start, ends_[id] - start};
}

uint32_t BytePairs::find(std::string_view token) const {
    const uint64_t hash = hash_of(token);
    const uint32_t tag = static_cast<uint32_t>(hash >> 32);
    const size_t mask = slots_.size() - 1;
    for (size_t slot = hash & mask; slots_[slot].token != kNone; slot = (slot + 1) & mask)
        if (slots_[slot].tag == tag && this->token(slots_[slot].token) == token)
            return slots_[slot].token;
    return kNone;
}

const BytePairs::Merge* BytePairs::find_merge(uint64_t pair) const {
    const size_t mask = pairs_.size() - 1;
    for (size_t slot = hash_of(pair) & mask; pairs_[slot].token != kNone; slot = (slot + 1) & mask)
        if (pairs_[slot].pair == pair) return &pairs_[slot];
    return nullptr;
}

size_t BytePairs::merge(uint32_t* word, size_t count, bool whole, Scratch& scratch) const {
    if (count < 2) return count;
    if (whole) {
        scratch.spelled_.clear();
        for (size_t i = 0; i < count; ++i) scratch.spelled_.append(token(word[i]));
        const uint32_t found = find(scratch.spelled_);
        if (found != kNone) {
            word[0] = found;
            return 1;
        }
    }
    std::vector<Symbol>& symbols = scratch.symbols_;
    std::vector<Candidate>& candidates = scratch.candidates_;
    symbols.clear();
    for (uint32_t i = 0; i < count; ++i)
        symbols.push_back({word[i], i == 0 ? kEnd : i - 1, i + 1 == count ? kEnd : i + 1, false});
    const auto propose = [&](uint32_t place) {
        const Symbol& left = symbols[place];
        const uint64_t pair = pair_of(left.token, symbols[left.next].token);
        const Merge* merge = find_merge(pair);
        if (merge == nullptr) return;
        candidates.push_back({pair, merge->rank, place, merge->token});
        std::push_heap(candidates.begin(), candidates.end(), comes_later);
    };
    for (uint32_t i = 0; i + 1 < count; ++i) propose(i);
    while (!candidates.empty()) {
        const Candidate best = candidates.front();
        std::pop_heap(candidates.begin(), candidates.end(), comes_later);
        candidates.pop_back();
        Symbol& left = symbols[best.place];
        if (left.merged || left.next == kEnd) continue;
        Symbol& right = symbols[left.next];
        // Either may have been merged since. Then another merge may stand here; the library takes
        // it at once if it makes the same token.
        const uint64_t pair = pair_of(left.token, right.token);
        if (pair != best.pair) {
            const Merge* merge = find_merge(pair);
            if (merge == nullptr || merge->token != best.token) continue;
        }
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

void BytePairs::spell(uint32_t id, std::string& text) const {
    static const std::array<int16_t, kLetters> bytes = bytes_of_letters();
    const std::string_view letters = token(id);
    const size_t before = text.size();
    for (size_t i = 0; i < letters.size();) {
        const unsigned first = static_cast<uint8_t>(letters[i]);
        unsigned letter = first < 0x80 ? first : kLetters;
        if (first >= 0xC2 && first <= 0xDF && i + 1 < letters.size())
            letter = (first & 0x1F) << 6 | (static_cast<uint8_t>(letters[i + 1]) & 0x3F);
        const int byte = letter < kLetters ? bytes[letter] : -1;
        if (byte < 0) {  // such as an added token's space: the token stands for itself
            text.resize(before);
            text.append(letters);
            return;
        }
        text.push_back(static_cast<char>(byte));
        i += first < 0x80 ? 1 : 2;
    }
}

}  // namespace ockham
