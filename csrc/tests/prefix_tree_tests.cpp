// The tree under random operations: for the sanitizers. tests/cache compares it with its plain form.
#include "state/prefix_tree.h"

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "tests/tests.h"

namespace {

using namespace ockham;
using namespace ockham::tests;

void random_operations() {
    constexpr int64_t page_tokens = 4;
    std::mt19937 random(5);
    const auto below = [&](int64_t count) { return static_cast<int64_t>(random() % count); };
    for (const int64_t window : {0, 1, 9}) {
        PrefixTree tree(page_tokens, {0, window}, 0.01);
        std::vector<int64_t> held(2, 0), locked;
        const auto count = [&](const PrefixTree::Pages& pages, int64_t sign) {
            for (size_t g = 0; g < 2; ++g) held[g] += sign * static_cast<int64_t>(pages[g].size());
        };
        int32_t next = 0;
        for (int operation = 0; operation < 4000; ++operation) {
            std::vector<int32_t> ids(static_cast<size_t>(1 + below(40)));
            for (int32_t& id : ids) id = static_cast<int32_t>(below(2));
            const PrefixTree::Tokens tokens{ids.data(), static_cast<int64_t>(ids.size())};
            const std::string salt = below(3) ? "" : "tenant";
            PrefixTree::Pages pages;
            switch (below(6)) {
                case 0:
                case 1: {
                    const size_t length = (ids.size() + page_tokens - 1) / page_tokens;
                    std::vector<int32_t> full(length), seen(length);
                    for (size_t p = 0; p < length; ++p) full[p] = seen[p] = next++;
                    if (window) std::fill_n(seen.begin(), below(length), -1);
                    const int64_t node = tree.insert(salt, tokens, {full.data(), seen.data()}, pages);
                    count(pages, 1);
                    if (below(4) == 0) {
                        tree.lock(node);
                        locked.push_back(node);
                    }
                    break;
                }
                case 2: {
                    const PrefixTree::Match found = tree.match(salt, tokens, true);
                    check(found.tokens <= tokens.count, "no more is found than was asked for");
                    if (found.node >= 0) {
                        tree.cut(found.node, found.tokens, pages);
                        count(pages, 1);
                    }
                    break;
                }
                case 3:
                    if (!locked.empty()) {
                        tree.unlock(locked.back());
                        locked.pop_back();
                    }
                    break;
                default:
                    if (tree.evict(pages)) count(pages, -1);
            }
            for (int64_t g = 0; g < 2; ++g)
                check(static_cast<int64_t>(tree.held(g).size()) == held[g],
                      "the tree holds what it took and did not give back");
        }
        for (const int64_t node : locked) tree.unlock(node);
        PrefixTree::Pages pages;
        while (tree.evict(pages)) count(pages, -1);
        check(tree.nodes() == 0 && tree.tokens() == 0, "nothing is left when all was let go of");
        check(held[0] == 0 && held[1] == 0, "every page was given back");
        check(tree.evictable() == std::vector<int64_t>(2, 0), "and nothing is counted any more");
    }
}

const Added added{"a prefix tree gives back what it took", random_operations};

}  // namespace
