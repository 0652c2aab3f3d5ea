// A bounded trie of every run of up to `deepest` tokens that passed by, with how often: the native
// form of ockham/draft/structures/branch_trie.py, decision for decision (a test drives both side by
// side). Tenants have subtrees of their own and share the room.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ockham {

class BranchTrie {
   public:
    static constexpr int deepest = 12;
    static constexpr size_t kinds = 36;

    // A tree of tokens: `parents[i]` is the index of token i's parent, -1 for the root.
    struct Draft {
        std::vector<int32_t> tokens, parents, kinds;
    };

    // A place in one text: the nodes of its last 0, 1, ... tokens.
    struct Cursor {
        int32_t tenant = 0;
        int32_t nodes[deepest + 1];
        uint32_t births[deepest + 1];
        std::vector<int32_t> recent;  // its last tokens, at most `deepest`
    };

    struct Record {
        int32_t parent, token, count, uses;  // parent: index of an earlier record, -1 for none
    };

    explicit BranchTrie(int64_t capacity);

    Cursor open(int32_t tenant) const;
    void extend(Cursor& cursor, const int32_t* tokens, int64_t count);
    Draft propose(const Cursor& cursor, int64_t most, const std::vector<double>& accepted,
                  double worth) const;

    // Every node, parents before children, so that `restore` makes the same trie.
    std::vector<Record> records() const;
    // Into an empty trie. Throws std::invalid_argument for what is no trie.
    void restore(const std::vector<Record>& records);

    int64_t size() const { return static_cast<int64_t>(nodes_.size()) - 1; }
    int64_t bytes() const;

   private:
    struct Node {
        int32_t parent, token;
        int32_t children, next, previous;  // siblings: the latest used first
        int32_t count;
        uint32_t birth;
        uint8_t depth, uses;
    };

    int32_t find(int32_t parent, int32_t token) const;
    int32_t make(int32_t parent, int32_t token);
    int32_t allocate(int32_t parent);
    void release(int32_t node);
    void link(int32_t node);
    void unlink(int32_t node);
    void touch(int32_t node);
    bool valid(const Cursor& cursor, int length) const;
    int32_t walk(int32_t tenant, const int32_t* tokens, int count) const;
    uint64_t slot_of(int32_t parent, int32_t token) const;
    void enter(int32_t node);
    void grow_table();

    int64_t capacity_;
    std::vector<Node> nodes_;     // the first is above all tenants'
    std::vector<int32_t> table_;  // open addressing: (parent, token) -> node, -1 where free
    int64_t hand_ = 1;            // of the clock
    uint32_t births_ = 0;
};

}  // namespace ockham
