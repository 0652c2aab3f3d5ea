#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>


#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "bind/bindings.h"
#include "text/byte_pairs.h"
#include "text/string_list.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ockham {

namespace {

// The memory of a bytes-like object, which keeps its size meanwhile.
class Bytes {
public:
    explicit Bytes(nb::handle object) {
        if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) nb::raise_python_error();
    }
    ~Bytes() { PyBuffer_Release(&view_); }
    Bytes(const Bytes&) = delete;
    Bytes& operator=(const Bytes&) = delete;

    const char* data() const { return static_cast<const char*>(view_.buf); }
    uint64_t size() const { return static_cast<uint64_t>(view_.len); }

private:
    Py_buffer view_;
};

// The UTF-8 of a str, for as long as it lives.
std::string_view utf8(nb::handle text) {
    Py_ssize_t size;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (data == nullptr) nb::raise_python_error();
    return {data, static_cast<size_t>(size)};
}

nb::str decoded(std::string_view text, const char* errors) {
    PyObject* string =
        PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), errors);
    if (string == nullptr) nb::raise_python_error();
    return nb::steal<nb::str>(string);
}

// Adds up to `count` strings of GGUF from an offset on, as many as are whole; the offset after them.
uint64_t read_strings(StringList& strings, nb::object from, uint64_t offset, uint64_t count) {
    const Bytes bytes(from);
    if (offset > bytes.size()) throw std::out_of_range("the offset lies after the bytes.");
    for (uint64_t index = 0; index < count; ++index) {
        uint64_t rest = bytes.size() - offset, length;
        if (rest < sizeof length) break;
        std::memcpy(&length, bytes.data() + offset, sizeof length);
        rest -= sizeof length;
        if (length > rest) break;
        const std::string_view text(bytes.data() + offset + sizeof length, length);
        if (is_utf8(text))
            strings.append(text);
        else
            strings.append(utf8(decoded(text, "replace")));
        offset += sizeof length + length;
    }
    return offset;
}

BytePairs pairs_of(const StringList& tokens, const StringList& merges) {
    nb::gil_scoped_release release;
    BytePairs pairs(tokens.size(), merges.size());
    for (size_t i = 0; i < tokens.size(); ++i)
        if (!pairs.add_token(tokens.at(i)))
            throw std::invalid_argument("a token stands twice in the vocabulary.");
    for (size_t i = 0; i < merges.size(); ++i) {
        const std::string_view text = merges.at(i);
        const size_t space = text.find(' ');
        if (space == std::string_view::npos ||
            !pairs.add_merge(text.substr(0, space), text.substr(space + 1)))
            throw std::invalid_argument(
                "a merge is no pair, stands twice, or is not of tokens of the vocabulary.");
    }
    return pairs;
}

std::vector<uint32_t> ids_of(const nb::list& listed) {
    std::vector<uint32_t> ids;
    ids.reserve(listed.size());
    for (nb::handle each : listed) {
        const nb::object number = nb::steal(PyNumber_Index(each.ptr()));
        if (!number.is_valid()) nb::raise_python_error();
        const unsigned long id = PyLong_AsUnsignedLong(number.ptr());
        if (id == static_cast<unsigned long>(-1) && PyErr_Occurred()) nb::raise_python_error();
        if (id > UINT32_MAX) throw std::overflow_error("a token id has 32 bits.");
        ids.push_back(static_cast<uint32_t>(id));
    }
    return ids;
}

// Of a vocabulary of n tokens, n is added to the id of a letter that goes on with the word before
// it. A letter that is no token is 2 n, or 2 n + 1 where it goes on: it is left out.
nb::list encode(const BytePairs& pairs, const nb::list& letters, bool whole) {
    std::vector<uint32_t> ids = ids_of(letters);
    const uint64_t size = pairs.size();
    size_t kept = 0;
    {
        nb::gil_scoped_release release;
        BytePairs::Scratch scratch;
        for (size_t at = 0; at < ids.size();) {
            size_t count = 0;  // letters of this word, which are moved to where its tokens will be
            for (bool first = true; at < ids.size(); ++at, first = false) {
                const uint64_t letter = ids[at];
                if (letter > 2 * size + 1) throw std::out_of_range("there is no such letter.");
                const bool within = letter == 2 * size + 1 || (letter >= size && letter < 2 * size);
                if (!first && !within) break;
                if (letter < 2 * size) ids[kept + count++] = letter % size;
            }
            kept += pairs.merge(ids.data() + kept, count, whole, scratch);
        }
    }
    nb::list tokens;
    for (size_t i = 0; i < kept; ++i) tokens.append(ids[i]);
    return tokens;
}

nb::str decode(const BytePairs& pairs, const nb::list& listed, nb::handle without) {
    if (!PyAnySet_Check(without.ptr())) throw nb::type_error("`without` is a set.");
    std::vector<uint32_t> ids;
    if (PySet_GET_SIZE(without.ptr()) == 0) {
        ids = ids_of(listed);
    } else {
        nb::list kept;
        for (nb::handle each : listed) {
            const int found = PySet_Contains(without.ptr(), each.ptr());
            if (found < 0) nb::raise_python_error();
            if (!found) kept.append(each);
        }
        ids = ids_of(kept);
    }
    std::string text;
    {
        nb::gil_scoped_release release;
        for (const uint32_t id : ids)
            if (id < pairs.size()) pairs.spell(id, text);
    }
    return decoded(text, "replace");
}

nb::list spelled(const BytePairs& pairs, const nb::list& ids) {
    nb::list tokens;
    for (const uint32_t id : ids_of(ids))
        if (id < pairs.size()) tokens.append(decoded(pairs.token(id), nullptr));
    return tokens;
}

// A token cut in two tokens; by their scores merges go one before the other.
struct Cut {
    double score;
    uint32_t left, right;
    bool operator<(const Cut& other) const {
        if (score != other.score) return score > other.score;
        return left != other.left ? left < other.left : right < other.right;
    }
};

nb::object scored_merges(const nb::list& tokens, const std::vector<double>& scores,
                         const std::vector<bool>& mergeable) {
    if (scores.size() != tokens.size() || mergeable.size() != tokens.size())
        throw std::invalid_argument("each token has a score, and is mergeable or not.");
    BytePairs known(tokens.size(), 0);
    std::vector<uint32_t> ids;  // of the tokens that are known
    for (uint32_t id = 0; id < tokens.size(); ++id) {
        if (!mergeable[id]) continue;
        if (std::isnan(scores[id]) || !known.add_token(utf8(tokens[id]))) return nb::none();
        ids.push_back(id);
    }
    std::vector<Cut> cuts;
    {
        nb::gil_scoped_release release;
        for (uint32_t index = 0; index < known.size(); ++index) {
            const std::string_view token = known.token(index);
            for (size_t place = 1; place < token.size(); ++place) {
                if ((static_cast<uint8_t>(token[place]) & 0xC0) == 0x80) continue;  // in a character
                const uint32_t left = known.find(token.substr(0, place));
                if (left == BytePairs::kNone) continue;
                const uint32_t right = known.find(token.substr(place));
                if (right != BytePairs::kNone)
                    cuts.push_back({scores[ids[index]], ids[left], ids[right]});
            }
        }
        std::sort(cuts.begin(), cuts.end());
    }
    nb::list merges;
    for (const Cut& cut : cuts) merges.append(nb::make_tuple(tokens[cut.left], tokens[cut.right]));
    return merges;
}

}  // namespace

void bind_text(nb::module_& module) {
    nb::class_<StringList>(module, "StringList", "Strings that become str one by one.")
        .def(nb::init<>())
        .def("__len__", &StringList::size)
        .def("__eq__", &StringList::operator==, "other"_a, nb::is_operator(),
             nb::sig("def __eq__(self, other: object, /) -> bool"))
        .def(
            "__getitem__",
            [](const StringList& strings, size_t index) {
                if (index >= strings.size()) throw std::out_of_range("there is no such string.");
                return decoded(strings.at(index), nullptr);
            },
            "index"_a)
        .def("__repr__",
             [](const StringList& strings) {  // as that of a list, which messages cut
                 nb::list first;
                 for (size_t i = 0; i < strings.size() && i < 100; ++i)
                     first.append(decoded(strings.at(i), nullptr));
                 return nb::repr(first);
             })
        .def("__iter__",
             [](nb::handle strings) { return nb::steal(PySeqIter_New(strings.ptr())); },
             nb::sig("def __iter__(self) -> collections.abc.Iterator[str]"))
        .def("read", &read_strings, "bytes"_a, "offset"_a, "count"_a,
             "Add up to `count` strings of GGUF from an offset on, as many as are whole; the "
             "offset after them. Invalid UTF-8 becomes U+FFFD.");
    module.def("scored_merges", &scored_merges, "tokens"_a, "scores"_a, "mergeable"_a,
               nb::sig("def scored_merges(tokens: list[str], scores: collections.abc.Sequence[float], "
                       "mergeable: collections.abc.Sequence[bool]) -> list[tuple[str, str]] | None"),
               "All pairs of mergeable tokens that make up one, those of the best score first and "
               "then by the pairs' ids. None where a token stands twice, or a score is no number.");
    nb::class_<BytePairs>(module, "BytePairs",
                          "The tokens of a vocabulary, and words merged by its list of pairs.")
        .def("__init__",
             [](BytePairs* place, const StringList& tokens, const StringList& merges) {
                 new (place) BytePairs(pairs_of(tokens, merges));
             },
             "tokens"_a, "merges"_a,
             "Tokens by their ids, and merges as `left right`, the first one first. Raises "
             "ValueError for what stands twice, and for merges that are not of three tokens.")
        .def("__len__", &BytePairs::size)
        .def(
            "find",
            [](const BytePairs& pairs, nb::str token) -> std::optional<uint32_t> {
                const uint32_t found = pairs.find(utf8(token));
                if (found == BytePairs::kNone) return std::nullopt;
                return found;
            },
            "token"_a, "The id of a token, or None.")
        .def("spelled", &spelled, "ids"_a, "The tokens of ids, without those that are none.")
        .def("decode", &decode, "ids"_a, "without"_a,
             "The text of ids, without those of a set and those that are none. Bytes that are no "
             "UTF-8 become U+FFFD.")
        .def("encode", &encode, "letters"_a, "whole"_a,
             "The tokens of words that are given letter by letter. The letters of a word after its "
             "first have the number of tokens, n, added to their ids. A letter that is no token is "
             "2 n or 2 n + 1. Where `whole`, a word that is a token is not merged.")
        .def(
            "merges",
            [](const BytePairs& pairs) {
                nb::list merges;
                for (const uint64_t pair : pairs.merges())
                    merges.append(nb::make_tuple(pair >> 32, pair & UINT32_MAX));
                return merges;
            },
            "The ids of each merge's left and right token, the first merge first.");
}

}  // namespace ockham
