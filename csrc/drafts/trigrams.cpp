#include "drafts/trigrams.h"

#include <algorithm>
#include <cmath>

namespace ockham {

namespace {

constexpr int most_counted = 64;   // of a context, before all its counts are halved
constexpr double exploration = 0.5;
constexpr double begins[] = {0.0, 0.1, 0.25, 0.45, 0.6, 0.8};  // shares at which kinds begin

}  // namespace

void Trigrams::count(Counts& here, int32_t next) {
    int place = 0;
    while (place < here.used && here.tokens[place] != next) ++place;
    if (place == here.used && here.used < width) {
        here.tokens[here.used] = next;
        here.counts[here.used++] = 0;
    } else if (place == here.used) {  // the rarest gives way, the last of them
        place = 0;
        for (int i = 1; i < width; ++i)
            if (here.counts[i] <= here.counts[place]) place = i;
        here.tokens[place] = next;
        here.counts[place] = 0;
    }
    ++here.counts[place];
    int total = 0;
    for (int i = 0; i < here.used; ++i) total += here.counts[i];
    if (total < most_counted) return;
    for (int i = 0; i < here.used; ++i) here.counts[i] /= 2;
}

void Trigrams::follow(int32_t tenant, int32_t before, int32_t last, int32_t next) {
    if (before >= 0) count(counts_.use({tenant, before, last}), next);
    count(counts_.use({tenant, last, -1}), next);
}

// Looks for the children of a node: what followed its last two tokens, then what followed the last.
void Trigrams::expand(std::vector<Node>& nodes, int32_t at, int32_t tenant, int32_t last,
                      const std::vector<double>& accepted, double worth) const {
    const int32_t before = nodes[at].before, first = static_cast<int32_t>(nodes.size());
    double rest = 1.0;
    for (const int order : {1, 0}) {
        if (order == 1 && before < 0) continue;
        const Counts* here =
            counts_.find(order == 1 ? TokenKey{tenant, before, last} : TokenKey{tenant, last, -1});
        if (here == nullptr) continue;
        int total = 1;
        for (int i = 0; i < here->used; ++i) total += here->counts[i];
        const int32_t begun = static_cast<int32_t>(nodes.size());
        for (int i = 0; i < here->used; ++i) {
            bool known = false;
            for (int32_t j = first; j < begun; ++j) known = known || nodes[j].token == here->tokens[i];
            if (known) continue;
            const double share = rest * here->counts[i] / total;
            const int bucket = static_cast<int>(
                std::upper_bound(std::begin(begins), std::end(begins), share) - std::begin(begins));
            const int32_t kind = order * shares + bucket - 1;
            const double chance = nodes[at].chance * accepted[kind];
            if (chance >= worth)
                nodes.push_back({here->tokens[i], at, kind, last, -1, chance, accepted[kind], 0.0, 0,
                                 -1, -1});
        }
        rest = rest / total;
    }
    nodes[at].first = first;
    nodes[at].children = static_cast<int32_t>(nodes.size()) - first;
}

Trigrams::Draft Trigrams::propose(int32_t tenant, int32_t before, int32_t last, int64_t most,
                                  const std::vector<double>& accepted, double worth) const {
    Draft draft;
    std::vector<Node> nodes;
    nodes.push_back({last, -1, -1, before, -1, 1.0, 1.0, 0.0, 1, -1, -1});
    for (int64_t walk = 0; walk < 2 * most; ++walk) {
        if (static_cast<int64_t>(draft.tokens.size()) == most) break;
        int32_t at = 0;
        while (nodes[at].visits > 0) {  // down to a token that is not drafted yet
            if (nodes[at].children < 0)
                expand(nodes, at, tenant, nodes[at].token, accepted, worth);
            if (nodes[at].children == 0) break;
            const double root = std::sqrt(static_cast<double>(nodes[at].visits));
            int32_t best = -1;
            double best_score = 0.0;
            for (int32_t child = nodes[at].first; child < nodes[at].first + nodes[at].children;
                 ++child) {
                const Node& here = nodes[child];
                const double mean = here.visits == 0 ? 0.0 : here.worth / here.visits;
                const double score = mean + exploration * here.share * root / (1.0 + here.visits);
                if (best < 0 || score > best_score) best = child, best_score = score;
            }
            at = best;
        }
        double value = 0.0;  // of a walk that ends where nothing follows
        if (nodes[at].visits == 0) {
            Node& here = nodes[at];
            value = here.chance;
            here.drafted = static_cast<int32_t>(draft.tokens.size());
            draft.tokens.push_back(here.token);
            draft.parents.push_back(nodes[here.parent].drafted);
            draft.kinds.push_back(here.kind);
        } else if (at == 0) {
            break;
        }
        for (; at >= 0; at = nodes[at].parent) {
            ++nodes[at].visits;
            nodes[at].worth += value;
        }
    }
    return draft;
}

}  // namespace ockham
