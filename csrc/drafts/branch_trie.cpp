#include "drafts/branch_trie.h"

#include <algorithm>
#include <queue>
#include <stdexcept>

namespace ockham {

namespace {

constexpr int most_uses = 3;
constexpr int32_t most_count = 1 << 30;
constexpr int looked_at = 8;           // children of a node, the latest used
constexpr double least_escape = 0.02;  // of a shorter match
constexpr int again[] = {8, 4, 2};     // lengths of the match where a branch ends

// Where the kinds begin: by tokens matched, and by the share of a continuation.
constexpr int lengths[] = {1, 2, 3, 4, 6, 9};
constexpr double shares[] = {0.0, 0.1, 0.25, 0.45, 0.6, 0.8};
constexpr int share_kinds = 6;

int kind_of(int length, double share) {
    const int l = static_cast<int>(std::upper_bound(std::begin(lengths), std::end(lengths), length) -
                                   std::begin(lengths)) - 1;
    const int s = static_cast<int>(std::upper_bound(std::begin(shares), std::end(shares), share) -
                                   std::begin(shares)) - 1;
    return l * share_kinds + s;
}

struct Offer {
    double chance;
    int64_t serial;
    int32_t token, parent, kind, node;
    bool operator<(const Offer& other) const {  // of a queue whose top is the likeliest, then first
        return chance != other.chance ? chance < other.chance : serial > other.serial;
    }
};

}  // namespace

BranchTrie::BranchTrie(int64_t capacity) : capacity_(capacity) {
    nodes_.push_back({-1, -1, -1, -1, -1, 0, 0, 0, 0});
    table_.assign(1024, -1);
}

uint64_t BranchTrie::slot_of(int32_t parent, int32_t token) const {
    uint64_t key = static_cast<uint64_t>(static_cast<uint32_t>(parent)) << 32 |
                   static_cast<uint32_t>(token);
    key ^= key >> 31;
    key *= 0x9E3779B97F4A7C15ull;
    return (key ^ key >> 29) & (table_.size() - 1);
}

int32_t BranchTrie::find(int32_t parent, int32_t token) const {
    for (uint64_t slot = slot_of(parent, token);; slot = (slot + 1) & (table_.size() - 1)) {
        const int32_t node = table_[slot];
        if (node < 0 || (nodes_[node].parent == parent && nodes_[node].token == token)) return node;
    }
}

void BranchTrie::enter(int32_t node) {
    uint64_t slot = slot_of(nodes_[node].parent, nodes_[node].token);
    while (table_[slot] >= 0) slot = (slot + 1) & (table_.size() - 1);
    table_[slot] = node;
}

void BranchTrie::grow_table() {
    if (nodes_.size() * 2 < table_.size()) return;
    table_.assign(table_.size() * 2, -1);
    for (size_t node = 1; node < nodes_.size(); ++node) enter(static_cast<int32_t>(node));
}

void BranchTrie::link(int32_t node) {
    Node& here = nodes_[node];
    Node& parent = nodes_[here.parent];
    here.next = parent.children;
    here.previous = -1;
    if (parent.children >= 0) nodes_[parent.children].previous = node;
    parent.children = node;
}

void BranchTrie::unlink(int32_t node) {
    const Node& here = nodes_[node];
    if (here.previous >= 0)
        nodes_[here.previous].next = here.next;
    else
        nodes_[here.parent].children = here.next;
    if (here.next >= 0) nodes_[here.next].previous = here.previous;
}

// Takes a leaf out, closing the gap that it leaves in the table.
void BranchTrie::release(int32_t node) {
    unlink(node);
    const uint64_t mask = table_.size() - 1;
    uint64_t hole = slot_of(nodes_[node].parent, nodes_[node].token);
    while (table_[hole] != node) hole = (hole + 1) & mask;
    for (uint64_t slot = (hole + 1) & mask; table_[slot] >= 0; slot = (slot + 1) & mask) {
        const uint64_t home = slot_of(nodes_[table_[slot]].parent, nodes_[table_[slot]].token);
        if (((slot - home) & mask) < ((slot - hole) & mask)) continue;
        table_[hole] = table_[slot];
        hole = slot;
    }
    table_[hole] = -1;
}

// A free place. If there is none, a leaf leaves that was not used lately, and never one that was
// used often before others; `parent` stays.
int32_t BranchTrie::allocate(int32_t parent) {
    if (static_cast<int64_t>(nodes_.size()) <= capacity_) {
        if (nodes_.size() == nodes_.capacity())  // which would grow beyond the bound
            nodes_.reserve(std::min<size_t>(2 * nodes_.size(), static_cast<size_t>(capacity_) + 1));
        nodes_.push_back({});
        return static_cast<int32_t>(nodes_.size()) - 1;
    }
    for (;; ++hand_) {
        if (hand_ == static_cast<int64_t>(nodes_.size())) hand_ = 1;
        Node& node = nodes_[hand_];
        if (node.uses > 0) {
            --node.uses;
        } else if (node.children < 0 && hand_ != parent) {
            release(static_cast<int32_t>(hand_));
            return static_cast<int32_t>(hand_++);
        }
    }
}

int32_t BranchTrie::make(int32_t parent, int32_t token) {
    const int32_t found = find(parent, token);
    if (found >= 0) return found;
    const int32_t node = allocate(parent);
    const uint8_t depth = parent == 0 ? 0 : nodes_[parent].depth + 1;
    nodes_[node] = {parent, token, -1, -1, -1, 0, ++births_, depth, 0};
    link(node);
    grow_table();  // which enters the node too if it grows
    if (find(parent, token) < 0) enter(node);
    return node;
}

void BranchTrie::touch(int32_t node) {
    Node& here = nodes_[node];
    if (here.count < most_count) ++here.count;
    if (here.uses < most_uses) ++here.uses;
    if (here.previous < 0) return;
    unlink(node);
    link(node);
}

BranchTrie::Cursor BranchTrie::open(int32_t tenant) const {
    Cursor cursor;
    cursor.tenant = tenant;
    std::fill(std::begin(cursor.nodes), std::end(cursor.nodes), -1);
    std::fill(std::begin(cursor.births), std::end(cursor.births), 0);
    return cursor;
}

bool BranchTrie::valid(const Cursor& cursor, int length) const {
    const int32_t node = cursor.nodes[length];
    return node >= 0 && nodes_[node].birth == cursor.births[length];
}

void BranchTrie::extend(Cursor& cursor, const int32_t* tokens, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        const int32_t root = make(0, cursor.tenant);
        nodes_[root].uses = most_uses;
        cursor.nodes[0] = root;
        cursor.births[0] = nodes_[root].birth;
        for (int length = deepest; length > 0; --length) {
            if (!valid(cursor, length - 1)) {
                cursor.nodes[length] = -1;
                continue;
            }
            const int32_t node = make(cursor.nodes[length - 1], tokens[i]);
            touch(node);
            cursor.nodes[length] = node;
            cursor.births[length] = nodes_[node].birth;
        }
        if (cursor.recent.size() == deepest) cursor.recent.erase(cursor.recent.begin());
        cursor.recent.push_back(tokens[i]);
    }
}

int32_t BranchTrie::walk(int32_t tenant, const int32_t* tokens, int count) const {
    int32_t node = find(0, tenant);
    for (int i = 0; i < count && node >= 0; ++i) node = find(node, tokens[i]);
    return node;
}

BranchTrie::Draft BranchTrie::propose(const Cursor& cursor, int64_t most,
                                      const std::vector<double>& accepted, double worth) const {
    Draft draft;
    std::priority_queue<Offer> offers;
    std::vector<int32_t> begun;
    int64_t serial = 0;
    // Offers the continuations of a node; what is left for a shorter match.
    const auto offer = [&](int32_t node, double above, double escape, int32_t parent) {
        const Node& here = nodes_[node];
        int64_t seen = 0;
        int looked = 0;
        for (int32_t child = here.children; child >= 0 && looked < looked_at; ++looked) {
            seen += nodes_[child].count;
            child = nodes_[child].next;
        }
        const double total = static_cast<double>(std::max<int64_t>(seen, here.count - 1)) + 1.0;
        looked = 0;
        for (int32_t child = here.children; child >= 0 && looked < looked_at; ++looked) {
            const Node& next = nodes_[child];
            if (std::find(begun.begin(), begun.end(), next.token) == begun.end()) {
                const int kind = kind_of(here.depth, escape * next.count / total);
                const double chance = above * accepted[kind];
                begun.push_back(next.token);
                if (chance >= worth)
                    offers.push({chance, serial++, next.token, parent, kind, child});
            }
            child = next.next;
        }
        return escape / total;
    };
    double escape = 1.0;
    for (int length = deepest - 1; length > 0 && escape >= least_escape; --length)
        if (valid(cursor, length) && nodes_[cursor.nodes[length]].children >= 0)
            escape = offer(cursor.nodes[length], 1.0, escape, -1);
    std::vector<int32_t> path;
    while (!offers.empty() && static_cast<int64_t>(draft.tokens.size()) < most) {
        const Offer best = offers.top();
        offers.pop();
        const int32_t number = static_cast<int32_t>(draft.tokens.size());
        draft.tokens.push_back(best.token);
        draft.parents.push_back(best.parent);
        draft.kinds.push_back(best.kind);
        begun.clear();
        if (nodes_[best.node].children >= 0) {
            offer(best.node, best.chance, 1.0, number);
            continue;
        }
        path.clear();  // where a branch ends, the last tokens may go on elsewhere
        for (int32_t at = number; at >= 0 && path.size() < deepest; at = draft.parents[at])
            path.push_back(draft.tokens[at]);
        for (size_t i = cursor.recent.size(); i > 0 && path.size() < deepest; --i)
            path.push_back(cursor.recent[i - 1]);
        std::reverse(path.begin(), path.end());
        for (const int length : again) {
            if (length > static_cast<int>(path.size())) continue;
            const int32_t node = walk(cursor.tenant, path.data() + path.size() - length, length);
            if (node < 0 || nodes_[node].children < 0) continue;
            offer(node, best.chance, 1.0, number);
            break;
        }
    }
    return draft;
}

std::vector<BranchTrie::Record> BranchTrie::records() const {
    std::vector<Record> found;
    std::vector<std::pair<int32_t, int32_t>> open = {{0, -1}};  // node, its record
    while (!open.empty()) {
        const auto [node, record] = open.back();
        open.pop_back();
        // The latest used sibling comes last, so that it is linked in front again.
        std::vector<int32_t> children;
        for (int32_t child = nodes_[node].children; child >= 0; child = nodes_[child].next)
            children.push_back(child);
        for (size_t i = children.size(); i > 0; --i) {
            const Node& here = nodes_[children[i - 1]];
            open.push_back({children[i - 1], static_cast<int32_t>(found.size())});
            found.push_back({record, here.token, here.count, here.uses});
        }
    }
    return found;
}

void BranchTrie::restore(const std::vector<Record>& records) {
    if (size() != 0) throw std::invalid_argument("the trie is not empty.");
    if (static_cast<int64_t>(records.size()) > capacity_)
        throw std::invalid_argument("it has more nodes than there is room for.");
    for (size_t i = 0; i < records.size(); ++i) {
        const Record& record = records[i];
        if (record.parent < -1 || record.parent >= static_cast<int64_t>(i) || record.token < 0 ||
            record.count < 0 || record.uses < 0 || record.uses > most_uses)
            throw std::invalid_argument("a node is out of range.");
        const int32_t parent = record.parent + 1;
        if (parent > 0 && nodes_[parent].depth >= deepest)
            throw std::invalid_argument("a branch is too long.");
        if (find(parent, record.token) >= 0)
            throw std::invalid_argument("a node stands there twice.");
        const int32_t node = make(parent, record.token);
        nodes_[node].count = record.count;
        nodes_[node].uses = static_cast<uint8_t>(record.uses);
    }
}

int64_t BranchTrie::bytes() const {
    return static_cast<int64_t>(sizeof(*this) + nodes_.capacity() * sizeof(Node) +
                                table_.capacity() * sizeof(int32_t));
}

}  // namespace ockham
