// A radix tree of token sequences and of the pages that hold their state: the native form of
// ockham/cache/prefix_tree.py, decision for decision (a test drives both side by side).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace ockham {

class PrefixTree {
   public:
    using Pages = std::vector<std::vector<int32_t>>;  // of each layer group

    struct Tokens {
        const int32_t* data = nullptr;
        int64_t count = 0;
    };

    struct Match {
        int64_t tokens = 0;
        Pages tables;
        int64_t node = -1;
    };

    struct Facts {
        std::string salt;
        int64_t number, parent, start, tokens, pages, hits, locks;
        bool pinned;
        int64_t hint;
        double made_s, used_s;
    };

    enum Hint { kGone, kSpent, kPlain, kExpected, kHints };  // as in ockham/core/seams/reuse.py

    // `windows[g]` is the sliding window of layer group g, 0 for none; `slope` what a token costs
    // more for each token before it, in units of the first one. Pages of the groups in `apart` may go
    // by themselves.
    PrefixTree(int64_t page_tokens, std::vector<int64_t> windows, double slope,
               std::vector<int64_t> apart = {});
    ~PrefixTree();
    PrefixTree(const PrefixTree&) = delete;
    PrefixTree& operator=(const PrefixTree&) = delete;

    void tick(double now_s) { now_s_ = now_s; }
    Match match(const std::string& salt, Tokens tokens, bool touch);
    // How many of the first tokens are here, and the pages of each group, -1 where there is none.
    int64_t agreed(const std::string& salt, Tokens tokens, Pages& tables) const;
    // `tables[g]` has ceil(tokens / page_tokens) pages. Adds to `taken` what the tree now holds once
    // more, and gives the handle of the last node.
    int64_t insert(const std::string& salt, Tokens tokens, const std::vector<const int32_t*>& tables,
                   Pages& taken);

    // Ends a node at `cells`; gives what insert() gives.
    int64_t cut(int64_t number, int64_t cells, Pages& taken);

    // These throw std::invalid_argument for a node that is not there.
    void lock(int64_t number);
    void unlock(int64_t number);
    void pin(int64_t number, bool pinned);
    // What is said of the cells from `start` on, on the path to a node; gives what insert() gives.
    void hint(int64_t number, Hint hint, int64_t start, Pages& taken);

    // False if every leaf is locked or pinned; else `given` has the pages that the leaf held.
    bool evict(Pages& given);
    // Lets go of one checkpoint of the groups that go apart, one that holds a page of `groups`; false if
    // there is none in nodes that are neither locked nor pinned.
    bool release(const std::vector<int64_t>& groups, Pages& given);
    const std::vector<int64_t>& evictable() const { return evictable_; }

    int64_t tokens() const { return tokens_; }
    int64_t pages() const { return pages_; }
    int64_t nodes() const { return static_cast<int64_t>(nodes_.size()); }
    int64_t bytes() const;  // beside the state: what the tree itself takes, about
    std::vector<Facts> dump() const;
    std::vector<int32_t> tokens_of(int64_t number, int64_t most) const;
    std::vector<int32_t> held(int64_t group) const;

   private:
    struct Node;
    struct Step {
        Node* node;
        int64_t end;
    };
    using Leaf = std::tuple<double, int64_t, Node*>;

    std::vector<Step> walk(const std::string& salt, Tokens tokens) const;
    Pages tables_of(const std::vector<Step>& path, int64_t length) const;
    int64_t first_page(int64_t window, int64_t length) const;
    int64_t usable(const std::vector<int32_t>& table, int64_t window, int64_t length) const;
    Node* split(Node* node, int64_t at, Pages& taken);
    void fill(Node* node, const std::vector<const int32_t*>& tables, Pages& taken);
    bool extend(Node* node, Tokens tokens, const std::vector<const int32_t*>& tables, Pages& taken);
    Node* grow(Node* parent, Tokens tokens, const std::vector<const int32_t*>& tables, Pages& taken);
    Node* new_node(Node* parent, int64_t start);
    Node* find(int64_t number) const;
    void use(Node* node);
    void count(const Node* node, int64_t sign);
    void list(Node* node);
    void unlist(Node* node);
    Node* least() const;
    void note(Node* node);
    int64_t first_held(const Node* node, const std::vector<int64_t>& groups) const;
    bool holds_from(const Node* node, int64_t first) const;
    bool passed(const Node* node, int64_t first) const;

    const int64_t page_tokens_;
    const std::vector<int64_t> windows_;
    const double slope_;
    const std::vector<int64_t> apart_;
    int64_t checkpoint_pages_ = 1;           // the most pages of a group that one place needs
    std::unordered_set<Node*> holders_;      // the nodes that hold pages which go apart
    std::map<std::string, std::unique_ptr<Node>> roots_;
    std::unordered_map<int64_t, std::unique_ptr<Node>> nodes_;
    std::set<Leaf> leaves_[kHints];  // those that may go, the one that is worth least first
    std::vector<int64_t> evictable_;
    int64_t numbers_ = 0, uses_ = 0, tokens_ = 0, pages_ = 0;
    int64_t turnover_ = 0;  // pages of the nodes that came into the window so far
    double clock_ = 0.0, now_s_ = 0.0;
};

}  // namespace ockham
