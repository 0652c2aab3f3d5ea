#include "drafts/text_index.h"

#include <algorithm>
#include <numeric>
#include <queue>
#include <stdexcept>

namespace ockham {

namespace {

struct Offer {
    double chance;
    int64_t serial;
    int32_t token, parent, kind, offset;
    int64_t first, last;
    bool operator<(const Offer& other) const {  // of a queue whose top is the likeliest, then first
        return chance != other.chance ? chance < other.chance : serial > other.serial;
    }
};

}  // namespace

TextIndex::TextIndex(std::vector<int32_t> tokens, std::vector<int32_t> order)
    : tokens_(std::move(tokens)), order_(std::move(order)) {
    if (order_.size() != tokens_.size())
        throw std::invalid_argument("an index orders each of its tokens.");
    for (int32_t place : order_)
        if (place < 0 || place >= size())
            throw std::invalid_argument("an index has a place beyond its tokens.");
}

std::vector<int32_t> TextIndex::order_of(const std::vector<int32_t>& tokens) {
    std::vector<int32_t> order(tokens.size());
    std::iota(order.begin(), order.end(), 0);
    const int64_t size = static_cast<int64_t>(tokens.size());
    std::sort(order.begin(), order.end(), [&](int32_t one, int32_t other) {
        const int64_t length =
            std::min<int64_t>(compared, size - std::max<int64_t>(one, other));
        for (int64_t i = 0; i < length; ++i)
            if (tokens[one + i] != tokens[other + i]) return tokens[one + i] < tokens[other + i];
        if (length < compared && one != other) return one > other;  // the one that ends first
        return one < other;
    });
    return order;
}

TextIndex::Range TextIndex::starting_with(const int32_t* pattern, int32_t length) const {
    const auto compare = [&](int64_t place) {  // of a place's tokens with the pattern
        for (int32_t i = 0; i < length; ++i) {
            const int32_t token = at(place, i);
            if (token != pattern[i]) return token < pattern[i] ? -1 : 1;
        }
        return 0;
    };
    int64_t low = 0, high = size();
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (compare(middle) < 0) low = middle + 1;
        else high = middle;
    }
    const int64_t first = low;
    high = size();
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (compare(middle) <= 0) low = middle + 1;
        else high = middle;
    }
    return {first, low};
}

TextIndex::Range TextIndex::within(Range range, int32_t offset, int32_t token) const {
    int64_t low = range.first, high = range.last;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (at(middle, offset) < token) low = middle + 1;
        else high = middle;
    }
    const int64_t first = low;
    high = range.last;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (at(middle, offset) <= token) low = middle + 1;
        else high = middle;
    }
    return {first, low};
}

// The tokens that come most often at an offset of a range: looked at in so many places, evenly
// apart, and then counted in all of them.
std::vector<TextIndex::Next> TextIndex::following(Range range, int32_t offset) const {
    const int64_t looks = std::min<int64_t>(looked_at, range.size());
    std::vector<std::pair<int64_t, int32_t>> seen;  // (-count, token)
    for (int64_t look = 0; look < looks; ++look) {
        const int32_t token = at(range.first + look * range.size() / looks, offset);
        if (token < 0) continue;
        if (!seen.empty() && seen.back().second == token) --seen.back().first;  // they are sorted
        else seen.emplace_back(-1, token);
    }
    std::sort(seen.begin(), seen.end());
    if (seen.size() > branches) seen.resize(branches);
    std::vector<Next> found;
    for (const auto& [count, token] : seen) found.push_back({token, within(range, offset, token)});
    return found;
}

int32_t TextIndex::kind_of(int32_t length, int64_t total, int64_t count) {
    const int32_t by_length = length < 4 ? 0 : length < 7 ? 1 : 2;
    const int32_t by_total = total < 2 ? 0 : total < 4 ? 1 : total < 16 ? 2 : 3;
    const int32_t by_share = 4 * count < total ? 0 : 2 * count < total ? 1
                             : 5 * count < 4 * total ? 2 : 3;
    return (by_length * totals + by_total) * shares + by_share;
}

TextIndex::Draft TextIndex::propose(const int32_t* last, int64_t count, int64_t most,
                                    const std::vector<double>& accepted, double worth) const {
    Draft draft;
    const auto found = [&](int32_t length) { return starting_with(last + count - length, length); };
    int32_t low = least, high = static_cast<int32_t>(std::min<int64_t>(longest, count));
    Range range{0, 0};
    int32_t length = 0;
    while (low <= high) {  // whatever ends with a longer match ends with the shorter ones
        const int32_t middle = (low + high + 1) / 2;
        const Range matched = found(middle);
        if (matched.size() > 0) {
            range = matched, length = middle;
            low = middle + 1;
        } else {
            high = middle - 1;
        }
    }
    if (length == 0) return draft;

    std::priority_queue<Offer> offers;
    std::vector<int32_t> offered;  // at the root
    int64_t serial = 0;
    const auto offer = [&](Range from, int32_t offset, double above, int32_t parent) {
        if (offset >= compared) return;  // beyond that the places are in no order
        for (const Next& next : following(from, offset)) {
            if (parent < 0) {
                if (std::find(offered.begin(), offered.end(), next.token) != offered.end())
                    continue;
                offered.push_back(next.token);
            }
            const int32_t kind = kind_of(offset, from.size(), next.range.size());
            const double chance = above * accepted[kind];
            if (chance >= worth)
                offers.push({chance, serial++, next.token, parent, kind, offset,
                             next.range.first, next.range.last});
        }
    };
    offer(range, length, 1.0, -1);
    if (range.size() < few) {
        for (int32_t shorter = length - 1; shorter >= least; --shorter) {
            const Range more = found(shorter);
            if (more.size() >= few || shorter == least) {
                offer(more, shorter, 1.0, -1);
                break;
            }
        }
    }
    while (!offers.empty() && static_cast<int64_t>(draft.tokens.size()) < most) {
        const Offer best = offers.top();
        offers.pop();
        draft.tokens.push_back(best.token);
        draft.parents.push_back(best.parent);
        draft.kinds.push_back(best.kind);
        offer({best.first, best.last}, best.offset + 1, best.chance,
              static_cast<int32_t>(draft.tokens.size()) - 1);
    }
    return draft;
}

}  // namespace ockham
