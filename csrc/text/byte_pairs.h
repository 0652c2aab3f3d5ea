// Byte-pair encoding: the tokens of a vocabulary, and words merged by its list of pairs.
//
// Merges as the `tokenizers` library does, to the token. The library needs a third of a second to
// take in 150,000 tokens with their merges; this needs a fifth of that.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ockham {

class BytePairs {
   public:
    static constexpr uint32_t kNone = UINT32_MAX;

    // Room for so many tokens and merges, which is all that there may be.
    BytePairs(size_t tokens, size_t merges);

    // Token i is the i-th one added; false if it is there already.
    bool add_token(std::string_view token);
    // The pair of tokens `left` and `right` becomes the token that spells both; of two pairs, the
    // one that was added before goes first. False if one of the three is no token, or the pair is
    // there already.
    bool add_merge(std::string_view left, std::string_view right);

    uint32_t size() const { return static_cast<uint32_t>(ends_.size()); }
    std::string_view token(uint32_t id) const;    // of an id below size()
    uint32_t find(std::string_view token) const;  // kNone if there is none
    // The left and the right token of each merge, in their order.
    const std::vector<uint64_t>& merges() const { return merges_; }

    // What is needed while a word is merged, kept from word to word.
    class Scratch;
    // Merges the `count` tokens of one word, in place; how many are left. Where `whole`, a word
    // that is a token becomes that token without being merged.
    size_t merge(uint32_t* word, size_t count, bool whole, Scratch& scratch) const;

    // Adds the bytes of a token to a text: each of its letters stands for one.
    void spell(uint32_t id, std::string& text) const;

   private:
    struct Slot {
        uint32_t token, tag;  // the upper half of the hash of what it spells
    };
    struct Merge {
        uint64_t pair;
        uint32_t rank, token;
    };

    uint64_t hash_of(std::string_view text) const;
    uint64_t hash_of(uint64_t pair) const;
    const Merge* find_merge(uint64_t pair) const;

    uint64_t seed_;
    std::string spelled_;        // all tokens, one after another
    std::vector<size_t> ends_;   // where each ends
    std::vector<Slot> slots_;    // of tokens, by the hash of what they spell; kNone where one is free
    std::vector<uint64_t> merges_;
    std::vector<Merge> pairs_;  // by the hash of the pair; its token is kNone where a slot is free
    uint32_t latest_ = 0;       // the token that the latest merge makes
};

// One token of a word that is being merged, in a list of those that are left.
struct Symbol {
    uint32_t token, previous, next;
    bool merged;
};

// A merge that was possible when it was found.
struct Candidate {
    uint64_t pair;
    uint32_t rank, place, token;
};

class BytePairs::Scratch {
    friend class BytePairs;
    std::vector<Symbol> symbols_;
    std::vector<Candidate> candidates_;  // a heap
    std::string spelled_;
};

}  // namespace ockham
