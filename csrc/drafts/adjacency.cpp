#include "drafts/adjacency.h"

#include <queue>

namespace ockham {

namespace {

struct Offer {
    double chance;
    int64_t serial;
    int32_t token, parent, kind, depth;
    bool operator<(const Offer& other) const {  // of a queue whose top is the likeliest, then first
        return chance != other.chance ? chance < other.chance : serial > other.serial;
    }
};

}  // namespace

void Adjacency::follow(int32_t tenant, int32_t token, int32_t next) {
    Row& row = rows_.use({tenant, token, -1});
    int32_t place = 0;
    while (place < row.count && row.tokens[place] != next) ++place;
    if (place == row.count) {
        if (row.count < width) ++row.count;
        place = row.count - 1;
    }
    for (; place > 0; --place) row.tokens[place] = row.tokens[place - 1];
    row.tokens[0] = next;
}

void Adjacency::observe(int32_t tenant, const int32_t* tokens, int64_t count,
                        const int32_t* candidates) {
    for (int64_t i = 0; i < count; ++i, candidates += width) {
        if (candidates[0] < 0) continue;
        Row& row = rows_.use({tenant, tokens[i], -1});
        row.count = 0;
        while (row.count < width && candidates[row.count] >= 0) {
            row.tokens[row.count] = candidates[row.count];
            ++row.count;
        }
    }
}

Adjacency::Draft Adjacency::propose(int32_t tenant, int32_t token, int64_t most,
                                    const std::vector<double>& accepted, double worth) const {
    Draft draft;
    std::priority_queue<Offer> offers;
    int64_t serial = 0;
    const auto offer = [&](int32_t after, double above, int32_t parent, int32_t depth) {
        const Row* row = rows_.find({tenant, after, -1});
        if (row == nullptr) return;
        for (int32_t rank = 0; rank < row->count; ++rank) {
            const int32_t kind = width * std::min(depth, deeper - 1) + rank;
            const double chance = above * accepted[kind];
            if (chance >= worth)
                offers.push({chance, serial++, row->tokens[rank], parent, kind, depth});
        }
    };
    offer(token, 1.0, -1, 0);
    while (!offers.empty() && static_cast<int64_t>(draft.tokens.size()) < most) {
        const Offer best = offers.top();
        offers.pop();
        draft.tokens.push_back(best.token);
        draft.parents.push_back(best.parent);
        draft.kinds.push_back(best.kind);
        offer(best.token, best.chance, static_cast<int32_t>(draft.tokens.size()) - 1,
              best.depth + 1);
    }
    return draft;
}

}  // namespace ockham
