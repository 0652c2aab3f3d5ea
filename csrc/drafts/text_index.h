// Texts whose continuations are looked up by what was said last: the native form of
// ockham/draft/structures/text_index.py, decision for decision.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ockham {

class TextIndex {
   public:
    static constexpr int32_t longest = 12;  // tokens of a match
    static constexpr int32_t least = 2;
    static constexpr int32_t compared = 24;  // tokens by which places are ordered
    static constexpr int32_t looked_at = 32;  // places of a range whose next tokens are looked at
    static constexpr int32_t branches = 4;
    static constexpr int64_t few = 8;  // places below which a shorter match is asked too
    static constexpr int32_t lengths = 3, totals = 4, shares = 4;
    static constexpr size_t kinds = lengths * totals * shares;

    struct Draft {
        std::vector<int32_t> tokens, parents, kinds;
    };

    // Texts one after another, a negative token after each. `order` are all places, sorted by the
    // `compared` tokens from there on, then by place.
    TextIndex(std::vector<int32_t> tokens, std::vector<int32_t> order);

    static std::vector<int32_t> order_of(const std::vector<int32_t>& tokens);

    Draft propose(const int32_t* last, int64_t count, int64_t most,
                  const std::vector<double>& accepted, double worth) const;

    int64_t size() const { return static_cast<int64_t>(tokens_.size()); }
    int64_t bytes() const { return 8 * size() + static_cast<int64_t>(sizeof(*this)); }

   private:
    struct Range {
        int64_t first, last;  // places in `order_`, the last not among them
        int64_t size() const { return last - first; }
    };
    struct Next {
        int32_t token;
        Range range;
    };

    int32_t at(int64_t place, int32_t offset) const {
        const int64_t index = static_cast<int64_t>(order_[place]) + offset;
        return index < size() ? tokens_[index] : -1;
    }
    Range starting_with(const int32_t* pattern, int32_t length) const;
    Range within(Range range, int32_t offset, int32_t token) const;
    std::vector<Next> following(Range range, int32_t offset) const;
    static int32_t kind_of(int32_t length, int64_t total, int64_t count);

    std::vector<int32_t> tokens_, order_;
};

}  // namespace ockham
