// Byte pairs and lists of strings under random input: for the sanitizers. tests/model compares them
// with the `tokenizers` library and with Python.
#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "text/byte_pairs.h"
#include "text/string_list.h"
#include "tests/tests.h"

namespace {

using namespace ockham;
using namespace ockham::tests;

// The tokens of a word by the rule's own words: the first merge that is possible, the first place.
std::vector<uint32_t> merged_plainly(const BytePairs& pairs, std::vector<uint32_t> word) {
    for (;;) {
        size_t best = pairs.merges().size(), place = 0;
        for (size_t i = 0; i + 1 < word.size(); ++i) {
            const uint64_t pair = uint64_t{word[i]} << 32 | word[i + 1];
            const auto& merges = pairs.merges();
            const size_t rank = std::find(merges.begin(), merges.end(), pair) - merges.begin();
            if (rank < best) best = rank, place = i;
        }
        if (best == pairs.merges().size()) return word;
        const std::string both = std::string(pairs.token(word[place]))
                                     .append(pairs.token(word[place + 1]));
        word[place] = pairs.find(both);
        word.erase(word.begin() + static_cast<std::ptrdiff_t>(place) + 1);
    }
}

void random_vocabularies() {
    std::mt19937 random(3);
    const auto below = [&](size_t count) { return random() % count; };
    for (int round = 0; round < 200; ++round) {
        constexpr size_t letters = 4;
        const size_t count = letters + below(40);
        BytePairs pairs(count, count);
        for (size_t i = 0; i < letters; ++i) check(pairs.add_token({"abcd" + i, 1}), "it is new");
        for (size_t tries = 0; pairs.size() < count && tries < 1000; ++tries) {
            const std::string left(pairs.token(below(pairs.size())));
            const std::string right(pairs.token(below(pairs.size())));
            if (left.size() + right.size() > 8 || !pairs.add_token(left + right)) continue;
            check(pairs.add_merge(left, right), "a merge of tokens is taken");
            check(!pairs.add_merge(left, right), "but once");
        }
        check(!pairs.add_merge("a", "no token"), "a merge is of tokens");
        BytePairs::Scratch scratch;
        for (int words = 0; words < 50; ++words) {
            std::vector<uint32_t> word(below(40));
            for (uint32_t& letter : word) letter = static_cast<uint32_t>(below(letters));
            std::string spelled, again;
            for (const uint32_t letter : word) pairs.spell(letter, spelled);
            const std::vector<uint32_t> expected = merged_plainly(pairs, word);
            word.resize(pairs.merge(word.data(), word.size(), false, scratch));
            check(word == expected, "a word is merged by the rule");
            for (const uint32_t token : word) pairs.spell(token, again);
            check(spelled == again, "merging changes no text");
        }
    }
}

void random_bytes() {
    std::mt19937 random(7);
    for (int round = 0; round < 100'000; ++round) {
        std::string bytes(random() % 6, '\0');
        for (char& byte : bytes) byte = static_cast<char>(random());
        StringList strings;
        strings.append(bytes);
        check(strings.at(0) == bytes, "a string stays as it is");
        if (!is_utf8(bytes)) continue;
        BytePairs pairs(1, 0);
        check(pairs.add_token(bytes), "any token is taken");
        std::string spelled;
        pairs.spell(0, spelled);
        check(spelled.size() <= bytes.size(), "a letter is at least a byte");
    }
}

const Added pairs{"byte pairs are merged by the rule", random_vocabularies};
const Added bytes{"any bytes may be a token", random_bytes};

}  // namespace
