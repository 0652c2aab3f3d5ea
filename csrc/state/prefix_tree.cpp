#include "state/prefix_tree.h"

#include <algorithm>
#include <stdexcept>

namespace ockham {

namespace {

int64_t pages_of(int64_t cells, int64_t page_tokens) {
    return (cells + page_tokens - 1) / page_tokens;
}

}  // namespace

struct PrefixTree::Node {
    int64_t number = -1;
    Node* parent = nullptr;  // null: a root
    int64_t start = 0;
    std::vector<int32_t> tokens;
    Pages pages;
    std::vector<std::pair<int32_t, Node*>> children;  // by first token, ascending
    int64_t locks = 0;
    bool pinned = false, listed = false;
    double priority = 0.0;
    int64_t used = 0, hits = 0, stamp = -1;
    Hint hint = kPlain;
    double made_s = 0.0, used_s = 0.0;

    int64_t held() const {
        int64_t pages = 0;
        for (const auto& own : this->pages)
            pages += std::count_if(own.begin(), own.end(), [](int32_t page) { return page >= 0; });
        return pages;
    }
    int64_t end() const { return start + static_cast<int64_t>(tokens.size()); }
    bool kept() const { return locks > 0 || pinned; }

    std::vector<std::pair<int32_t, Node*>>::iterator place(int32_t token) {
        return std::lower_bound(
            children.begin(), children.end(), token,
            [](const std::pair<int32_t, Node*>& child, int32_t wanted) { return child.first < wanted; });
    }
    Node* child(int32_t token) {
        const auto at = place(token);
        return at != children.end() && at->first == token ? at->second : nullptr;
    }
    void adopt(Node* node) {
        const int32_t token = node->tokens.front();
        const auto at = place(token);
        if (at != children.end() && at->first == token)
            at->second = node;
        else
            children.insert(at, {token, node});
    }
};

PrefixTree::PrefixTree(int64_t page_tokens, std::vector<int64_t> windows, double slope,
                       std::vector<int64_t> apart)
    : page_tokens_(page_tokens),
      windows_(std::move(windows)),
      slope_(slope),
      apart_(std::move(apart)),
      evictable_(windows_.size(), 0) {
    if (page_tokens_ < 1) throw std::invalid_argument("a page holds at least one token.");
    for (const int64_t group : apart_) {
        if (group < 0 || group >= static_cast<int64_t>(windows_.size()))
            throw std::invalid_argument("there is no group " + std::to_string(group) + " of layers.");
        const int64_t window = windows_[static_cast<size_t>(group)];
        if (window >= 2)
            checkpoint_pages_ = std::max(checkpoint_pages_, 2 + (window - 2) / page_tokens_);
    }
}

PrefixTree::~PrefixTree() = default;

PrefixTree::Match PrefixTree::match(const std::string& salt, Tokens tokens, bool touch) {
    std::vector<Step> path = walk(salt, tokens);
    int64_t length = path.empty() ? 0 : path.back().end;
    Match found;
    while (true) {
        found.tables = tables_of(path, length);
        int64_t least = length;
        for (size_t g = 0; g < windows_.size(); ++g)
            if (windows_[g]) least = std::min(least, usable(found.tables[g], windows_[g], length));
        if (least == length) break;
        length = least;
        while (!path.empty() && path.back().node->start >= length) path.pop_back();
        if (!path.empty()) path.back().end = std::min(path.back().end, length);
    }
    if (length == 0) {
        for (auto& table : found.tables) table.clear();
        return found;
    }
    for (size_t g = 0; g < windows_.size(); ++g) {
        auto& table = found.tables[g];
        const int64_t first = first_page(windows_[g], length);
        std::fill_n(table.begin(), std::min<int64_t>(first, table.size()), -1);
    }
    if (touch)
        for (const Step& step : path) {
            ++step.node->hits;
            unlist(step.node);
            if (step.node->hint < kPlain) step.node->hint = kPlain;  // a use proves it wrong
            use(step.node);
        }
    found.tokens = length;
    found.node = path.back().node->number;
    return found;
}

int64_t PrefixTree::agreed(const std::string& salt, Tokens tokens, Pages& tables) const {
    const std::vector<Step> path = walk(salt, tokens);
    const int64_t length = path.empty() ? 0 : path.back().end;
    tables = tables_of(path, length);
    return length;
}

std::vector<PrefixTree::Step> PrefixTree::walk(const std::string& salt, Tokens tokens) const {
    std::vector<Step> path;
    const auto root = roots_.find(salt);
    Node* node = root == roots_.end() ? nullptr : root->second.get();
    int64_t at = 0;
    while (node != nullptr && at < tokens.count) {
        node = node->child(tokens.data[at]);
        if (node == nullptr) break;
        const int64_t whole = static_cast<int64_t>(node->tokens.size());
        const int64_t most = std::min(whole, tokens.count - at);
        const int32_t* own = node->tokens.data();
        const int64_t agreed = std::mismatch(own, own + most, tokens.data + at).first - own;
        at += agreed;
        path.push_back({node, at});
        if (agreed < whole) break;
    }
    return path;
}

PrefixTree::Pages PrefixTree::tables_of(const std::vector<Step>& path, int64_t length) const {
    const int64_t pages = pages_of(length, page_tokens_);
    Pages tables(windows_.size(), std::vector<int32_t>(static_cast<size_t>(pages), -1));
    for (const Step& step : path) {
        const int64_t first = step.node->start / page_tokens_;
        for (size_t g = 0; g < tables.size(); ++g) {
            const auto& own = step.node->pages[g];
            const int64_t count = std::min<int64_t>(own.size(), pages - first);
            if (count > 0) std::copy_n(own.begin(), count, tables[g].begin() + first);
        }
    }
    return tables;
}

int64_t PrefixTree::first_page(int64_t window, int64_t length) const {
    return window ? std::max<int64_t>(0, length + 1 - window) / page_tokens_ : 0;
}

int64_t PrefixTree::usable(const std::vector<int32_t>& table, int64_t window,
                           int64_t length) const {
    std::vector<int64_t> runs;  // pages held without a gap, up to and with page k
    int64_t run = 0;
    for (const int32_t page : table) runs.push_back(run = page >= 0 ? run + 1 : 0);
    for (int64_t k = static_cast<int64_t>(table.size()) - 1; k >= 0; --k) {
        const int64_t cells = std::min(length, (k + 1) * page_tokens_);
        if (k + 1 - first_page(window, cells) <= runs[k]) return cells;
    }
    return 0;
}

int64_t PrefixTree::insert(const std::string& salt, Tokens tokens,
                           const std::vector<const int32_t*>& tables, Pages& taken) {
    taken.assign(windows_.size(), {});
    if (tokens.count == 0) return -1;
    auto& root = roots_[salt];
    if (!root) {
        root = std::make_unique<Node>();
        root->pages.resize(windows_.size());
    }
    const std::vector<Step> path = walk(salt, tokens);
    Node* node = path.empty() ? root.get() : path.back().node;
    const int64_t at = path.empty() ? 0 : path.back().end;
    if (!path.empty() && at < node->end()) node = split(node, at, taken);
    // Whether a node shares a page with the one above may change for all of them together.
    for (Node* each = node; each->parent != nullptr; each = each->parent)
        if (!each->kept()) count(each, -1);
    for (Node* each = node; each->parent != nullptr; each = each->parent) {
        fill(each, tables, taken);
        use(each);
    }
    for (Node* each = node; each->parent != nullptr; each = each->parent)
        if (!each->kept()) count(each, 1);
    if (at < tokens.count && !extend(node, tokens, tables, taken))
        node = grow(node, tokens, tables, taken);
    return node->number;
}

int64_t PrefixTree::cut(int64_t number, int64_t cells, Pages& taken) {
    taken.assign(windows_.size(), {});
    Node* node = find(number);
    if (node->start < cells && cells < node->end()) node = split(node, cells, taken);
    return node->number;
}

PrefixTree::Node* PrefixTree::split(Node* node, int64_t at, Pages& taken) {
    unlist(node);
    if (!node->kept()) count(node, -1);
    const int64_t first = node->start / page_tokens_, cut = at / page_tokens_;
    const int64_t upper_pages = pages_of(at, page_tokens_) - first;
    Node* upper = new_node(node->parent, node->start);
    upper->tokens.assign(node->tokens.begin(), node->tokens.begin() + (at - node->start));
    upper->locks = node->locks;
    upper->pinned = node->pinned;
    upper->priority = node->priority;
    upper->used = node->used;
    upper->hits = node->hits;
    upper->hint = node->hint;
    upper->stamp = node->stamp;
    upper->made_s = node->made_s;
    upper->used_s = node->used_s;
    node->parent->adopt(upper);
    node->tokens.erase(node->tokens.begin(), node->tokens.begin() + (at - node->start));
    node->tokens.shrink_to_fit();
    node->start = at;
    node->parent = upper;
    upper->adopt(node);
    for (size_t g = 0; g < windows_.size(); ++g) {
        auto& own = node->pages[g];
        upper->pages.emplace_back(own.begin(), own.begin() + upper_pages);
        own.erase(own.begin(), own.begin() + (cut - first));
        own.shrink_to_fit();
        if (at % page_tokens_ && own.front() >= 0) {
            taken[g].push_back(own.front());
            ++pages_;
        }
    }
    if (!node->kept()) {
        count(node, 1);
        count(upper, 1);
    }
    note(node);
    note(upper);
    list(node);
    return upper;
}

void PrefixTree::fill(Node* node, const std::vector<const int32_t*>& tables, Pages& taken) {
    const int64_t first = node->start / page_tokens_;
    for (size_t g = 0; g < windows_.size(); ++g) {
        auto& own = node->pages[g];
        for (size_t i = 0; i < own.size(); ++i) {
            const int32_t other = tables[g][first + static_cast<int64_t>(i)];
            if (own[i] >= 0 || other < 0) continue;
            own[i] = other;
            taken[g].push_back(other);
            ++pages_;
        }
    }
    note(node);
}

bool PrefixTree::extend(Node* node, Tokens tokens, const std::vector<const int32_t*>& tables,
                        Pages& taken) {
    const int64_t at = node->end();
    if (node->parent == nullptr || !node->children.empty()) return false;
    if (node->pinned || node->hint != kPlain) return false;
    if (at % page_tokens_)
        for (size_t g = 0; g < windows_.size(); ++g)
            if (node->pages[g].back() != tables[g][at / page_tokens_]) return false;
    if (!node->kept()) count(node, -1);
    node->tokens.insert(node->tokens.end(), tokens.data + at, tokens.data + tokens.count);
    const int64_t first = pages_of(at, page_tokens_), last = pages_of(tokens.count, page_tokens_);
    for (size_t g = 0; g < windows_.size(); ++g)
        for (int64_t page = first; page < last; ++page) {
            node->pages[g].push_back(tables[g][page]);
            if (tables[g][page] < 0) continue;
            taken[g].push_back(tables[g][page]);
            ++pages_;
            ++turnover_;
        }
    if (!node->kept()) count(node, 1);
    note(node);
    tokens_ += tokens.count - at;
    use(node);
    return true;
}

PrefixTree::Node* PrefixTree::grow(Node* parent, Tokens tokens,
                                   const std::vector<const int32_t*>& tables, Pages& taken) {
    const int64_t at = parent->end();
    Node* node = new_node(parent, at);
    node->tokens.assign(tokens.data + at, tokens.data + tokens.count);
    const int64_t first = at / page_tokens_, last = pages_of(tokens.count, page_tokens_);
    for (size_t g = 0; g < windows_.size(); ++g) {
        node->pages.emplace_back(tables[g] + first, tables[g] + last);
        for (const int32_t page : node->pages[g])
            if (page >= 0) taken[g].push_back(page);
    }
    pages_ += node->held();
    unlist(parent);
    parent->adopt(node);
    count(node, 1);
    note(node);
    tokens_ += tokens.count - at;
    use(node);
    return node;
}

PrefixTree::Node* PrefixTree::new_node(Node* parent, int64_t start) {
    auto made = std::make_unique<Node>();
    made->number = numbers_++;
    made->parent = parent;
    made->start = start;
    made->made_s = now_s_;
    Node* node = made.get();
    nodes_.emplace(node->number, std::move(made));
    return node;
}

PrefixTree::Node* PrefixTree::find(int64_t number) const {
    const auto found = nodes_.find(number);
    if (found == nodes_.end())
        throw std::invalid_argument("there is no node " + std::to_string(number) + " in the tree.");
    return found->second.get();
}

void PrefixTree::use(Node* node) {
    unlist(node);
    node->used = ++uses_;
    node->used_s = now_s_;
    if (node->stamp < 0 || turnover_ - node->stamp >= pages_ / 4) {
        turnover_ += node->held();
        node->stamp = turnover_;
    }
    node->priority = clock_ + 1.0 + slope_ * static_cast<double>(node->start);
    list(node);
}

// Adds a node's pages to those that may go, or takes them away. A page that the node above holds
// too is that one's.
void PrefixTree::count(const Node* node, int64_t sign) {
    for (size_t g = 0; g < windows_.size(); ++g) {
        const auto& own = node->pages[g];
        const auto& above = node->parent->pages[g];
        const bool shared = node->start % page_tokens_ && own.front() >= 0 && !above.empty() &&
                            above.back() == own.front();
        const int64_t held = std::count_if(own.begin(), own.end(), [](int32_t p) { return p >= 0; });
        evictable_[g] += sign * (held - shared);
    }
}

void PrefixTree::list(Node* node) {
    if (node->listed || !node->children.empty() || node->kept()) return;
    leaves_[node->hint].emplace(node->priority, node->used, node);
    node->listed = true;
}

void PrefixTree::unlist(Node* node) {
    if (!node->listed) return;
    leaves_[node->hint].erase({node->priority, node->used, node});
    node->listed = false;
}

void PrefixTree::lock(int64_t number) {
    for (Node* node = find(number); node->parent != nullptr; node = node->parent) {
        unlist(node);
        if (!node->kept()) count(node, -1);
        ++node->locks;
    }
}

void PrefixTree::unlock(int64_t number) {
    for (Node* node = find(number); node->parent != nullptr; node = node->parent) {
        if (node->locks == 0)
            throw std::invalid_argument("node " + std::to_string(node->number) + " is not locked.");
        --node->locks;
        if (!node->kept()) count(node, 1);
        list(node);
    }
}

void PrefixTree::pin(int64_t number, bool pinned) {
    for (Node* node = find(number); node->parent != nullptr; node = node->parent) {
        const bool before = node->kept();
        unlist(node);
        node->pinned = pinned;
        if (before != node->kept()) count(node, before ? 1 : -1);
        list(node);
    }
}

void PrefixTree::hint(int64_t number, Hint hint, int64_t start, Pages& taken) {
    taken.assign(windows_.size(), {});
    Node* node = find(number);
    while (node->parent != nullptr && node->end() > start) {
        Node* above = node->parent;
        if (node->start < start) split(node, start, taken);
        unlist(node);
        node->hint = hint;
        list(node);
        node = above;
    }
}

// The leaf to go: as the hints say, unless it is one of those used last; else as recency and cost.
PrefixTree::Node* PrefixTree::least() const {
    const Leaf* first = nullptr;
    for (const auto& leaves : leaves_) {
        if (leaves.empty()) continue;
        const Leaf& leaf = *leaves.begin();
        if (std::get<Node*>(leaf)->hint == kGone) return std::get<Node*>(leaf);
        if (turnover_ - std::get<Node*>(leaf)->stamp >= pages_ / 2) return std::get<Node*>(leaf);
        if (first == nullptr || leaf < *first) first = &leaf;
    }
    return first == nullptr ? nullptr : std::get<Node*>(*first);
}

bool PrefixTree::evict(Pages& given) {
    Node* node = least();
    if (node == nullptr) return false;
    clock_ = std::max(clock_, node->priority);
    unlist(node);
    count(node, -1);
    given.assign(windows_.size(), {});
    for (size_t g = 0; g < windows_.size(); ++g) {
        for (const int32_t page : node->pages[g])
            if (page >= 0) given[g].push_back(page);
        pages_ -= static_cast<int64_t>(given[g].size());
    }
    tokens_ -= static_cast<int64_t>(node->tokens.size());
    holders_.erase(node);
    Node* parent = node->parent;
    parent->children.erase(parent->place(node->tokens.front()));
    nodes_.erase(node->number);
    if (parent->parent != nullptr) {
        list(parent);
    } else if (parent->children.empty()) {
        for (auto root = roots_.begin(); root != roots_.end(); ++root)
            if (root->second.get() == parent) {
                roots_.erase(root);
                break;
            }
    }
    return true;
}

// Keeps `holders_` as it is to be after a node's pages changed.
void PrefixTree::note(Node* node) {
    if (apart_.empty()) return;
    if (holds_from(node, 0))
        holders_.insert(node);
    else
        holders_.erase(node);
}

// The first of a node's pages that some of the groups hold, -1 for none.
int64_t PrefixTree::first_held(const Node* node, const std::vector<int64_t>& groups) const {
    int64_t first = -1;
    for (const int64_t group : groups) {
        const auto& own = node->pages[static_cast<size_t>(group)];
        const auto found =
            std::find_if(own.begin(), own.end(), [](int32_t page) { return page >= 0; });
        const int64_t at = found - own.begin();
        if (found != own.end() && (first < 0 || at < first)) first = at;
    }
    return first;
}

// Whether a node holds a page that goes apart, from its page `first` on.
bool PrefixTree::holds_from(const Node* node, int64_t first) const {
    for (const int64_t group : apart_) {
        const auto& own = node->pages[static_cast<size_t>(group)];
        for (size_t i = static_cast<size_t>(first); i < own.size(); ++i)
            if (own[i] >= 0) return true;
    }
    return false;
}

// Whether a later checkpoint than the one at a node's page `first` is held before any other context
// branches off.
bool PrefixTree::passed(const Node* node, int64_t first) const {
    const int64_t after = first + checkpoint_pages_;
    if (holds_from(node, after)) return true;
    if (node->children.size() != 1) return false;
    const Node* child = node->children.front().second;
    return holds_from(child, std::max<int64_t>(0, node->start / page_tokens_ + after -
                                                      child->start / page_tokens_));
}

bool PrefixTree::release(const std::vector<int64_t>& groups, Pages& given) {
    using Key = std::tuple<bool, bool, double, int64_t, int64_t>;
    Node* least = nullptr;
    int64_t at = 0;
    Key best;
    for (Node* node : holders_) {
        const int64_t first = node->kept() ? -1 : first_held(node, groups);
        if (first < 0) continue;
        const Key key{node->hint != kGone, !passed(node, first), node->priority, node->used,
                      node->number};
        if (least != nullptr && !(key < best)) continue;
        least = node;
        at = first;
        best = key;
    }
    if (least == nullptr) return false;
    // A page that a child holds too becomes the child's own.
    count(least, -1);
    for (const auto& [token, child] : least->children)
        if (!child->kept()) count(child, -1);
    given.assign(windows_.size(), {});
    for (const int64_t group : apart_) {
        auto& own = least->pages[static_cast<size_t>(group)];
        auto& gone = given[static_cast<size_t>(group)];
        const int64_t end = std::min<int64_t>(at + checkpoint_pages_, own.size());
        for (int64_t i = at; i < end; ++i) {
            if (own[i] < 0) continue;
            gone.push_back(own[i]);
            own[i] = -1;
        }
        pages_ -= static_cast<int64_t>(gone.size());
    }
    count(least, 1);
    for (const auto& [token, child] : least->children)
        if (!child->kept()) count(child, 1);
    note(least);
    return true;
}

int64_t PrefixTree::bytes() const {
    // What a map's entry takes beside the node: a hash bucket and a list node of the library's.
    constexpr int64_t entry = 32;
    int64_t total = 0;
    for (const auto& [number, node] : nodes_) {
        total += static_cast<int64_t>(sizeof(Node)) + entry;
        total += static_cast<int64_t>(node->tokens.capacity() * sizeof(int32_t));
        total += static_cast<int64_t>(node->children.capacity() * sizeof(node->children[0]));
        for (const auto& own : node->pages)
            total += static_cast<int64_t>(sizeof own + own.capacity() * sizeof(int32_t));
    }
    return total;
}

std::vector<PrefixTree::Facts> PrefixTree::dump() const {
    std::vector<Facts> found;
    for (const auto& [salt, root] : roots_) {
        std::vector<const Node*> below{root.get()};
        while (!below.empty()) {
            const Node* node = below.back();
            below.pop_back();
            for (const auto& [token, child] : node->children) below.push_back(child);
            if (node == root.get()) continue;
            found.push_back({salt, node->number, node->parent->number, node->start,
                             static_cast<int64_t>(node->tokens.size()), node->held(), node->hits,
                             node->locks, node->pinned, node->hint, node->made_s, node->used_s});
        }
    }
    return found;
}

std::vector<int32_t> PrefixTree::tokens_of(int64_t number, int64_t most) const {
    const auto& tokens = find(number)->tokens;
    const int64_t count = std::min(most, static_cast<int64_t>(tokens.size()));
    return {tokens.begin(), tokens.begin() + count};
}

std::vector<int32_t> PrefixTree::held(int64_t group) const {
    std::vector<int32_t> found;
    for (const auto& [number, node] : nodes_)
        for (const int32_t page : node->pages[static_cast<size_t>(group)])
            if (page >= 0) found.push_back(page);
    return found;
}

}  // namespace ockham
