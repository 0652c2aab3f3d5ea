#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>

#include "bind/bindings.h"
#include "drafts/adjacency.h"
#include "drafts/branch_trie.h"
#include "drafts/suffix_automaton.h"
#include "drafts/text_index.h"
#include "drafts/trigrams.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ockham {

namespace {

using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

using Records = nb::ndarray<const int32_t, nb::shape<-1, 4>, nb::c_contig, nb::device::cpu>;

void check_proposal(int64_t most, size_t kinds, size_t given) {
    if (most < 1) throw std::invalid_argument("lengths of a draft are at least 1.");
    if (given != kinds) throw std::invalid_argument("each kind has one share that is accepted.");
}

nb::object records_of(const BranchTrie& trie) {
    auto* found = new std::vector<BranchTrie::Record>(trie.records());
    nb::capsule owner(found, [](void* p) noexcept {
        delete static_cast<std::vector<BranchTrie::Record>*>(p);
    });
    return nb::cast(nb::ndarray<nb::numpy, int32_t, nb::shape<-1, 4>>(
        reinterpret_cast<int32_t*>(found->data()), {found->size(), 4}, owner));
}

void bind_trie(nb::module_& module) {
    nb::class_<BranchTrie::Cursor>(module, "BranchCursor");
    nb::class_<BranchTrie>(module, "BranchTrie")
        .def(nb::init<int64_t>(), "capacity"_a)
        .def("open", &BranchTrie::open, "tenant"_a)
        .def(
            "extend",
            [](BranchTrie& self, BranchTrie::Cursor& cursor, Ids tokens) {
                self.extend(cursor, tokens.data(), static_cast<int64_t>(tokens.size()));
            },
            "cursor"_a, "tokens"_a)
        .def(
            "propose",
            [](const BranchTrie& self, const BranchTrie::Cursor& cursor, int64_t most,
               const std::vector<double>& accepted, double worth) {
                check_proposal(most, BranchTrie::kinds, accepted.size());
                BranchTrie::Draft draft = self.propose(cursor, most, accepted, worth);
                return nb::make_tuple(draft.tokens, draft.parents, draft.kinds);
            },
            "cursor"_a, "most"_a, "accepted"_a, "worth"_a)
        .def("records", &records_of)
        .def(
            "restore",
            [](BranchTrie& self, Records records) {
                const auto* begin = reinterpret_cast<const BranchTrie::Record*>(records.data());
                self.restore({begin, begin + records.shape(0)});
            },
            "records"_a)
        .def_prop_ro("size", &BranchTrie::size)
        .def_prop_ro("bytes", &BranchTrie::bytes);
}

using Candidates = nb::ndarray<const int32_t, nb::shape<-1, Adjacency::width>, nb::c_contig,
                               nb::device::cpu>;

void bind_adjacency(nb::module_& module) {
    nb::class_<Adjacency>(module, "Adjacency")
        .def(nb::init<int64_t>(), "capacity"_a)
        .def(
            "extend",
            [](Adjacency& self, int32_t tenant, Ids tokens) {
                for (size_t i = 1; i < tokens.size(); ++i)
                    self.follow(tenant, tokens.data()[i - 1], tokens.data()[i]);
            },
            "tenant"_a, "tokens"_a)
        .def(
            "observe",
            [](Adjacency& self, int32_t tenant, Ids tokens, Candidates candidates) {
                if (tokens.size() != candidates.shape(0))
                    throw std::invalid_argument("each token has one row of candidates.");
                self.observe(tenant, tokens.data(), static_cast<int64_t>(tokens.size()),
                             candidates.data());
            },
            "tenant"_a, "tokens"_a, "candidates"_a)
        .def(
            "propose",
            [](const Adjacency& self, int32_t tenant, int32_t token, int64_t most,
               const std::vector<double>& accepted, double worth) {
                check_proposal(most, Adjacency::kinds, accepted.size());
                Adjacency::Draft draft = self.propose(tenant, token, most, accepted, worth);
                return nb::make_tuple(draft.tokens, draft.parents, draft.kinds);
            },
            "tenant"_a, "token"_a, "most"_a, "accepted"_a, "worth"_a)
        .def_prop_ro("size", &Adjacency::size)
        .def_prop_ro("bytes", &Adjacency::bytes);
}

void bind_trigrams(nb::module_& module) {
    nb::class_<Trigrams>(module, "Trigrams")
        .def(nb::init<int64_t>(), "capacity"_a)
        .def(
            "extend",
            [](Trigrams& self, int32_t tenant, Ids tokens, int64_t known) {
                for (int64_t i = std::max<int64_t>(1, known);
                     i < static_cast<int64_t>(tokens.size()); ++i)
                    self.follow(tenant, i > 1 ? tokens.data()[i - 2] : -1, tokens.data()[i - 1],
                                tokens.data()[i]);
            },
            "tenant"_a, "tokens"_a, "known"_a)
        .def(
            "propose",
            [](const Trigrams& self, int32_t tenant, int32_t before, int32_t last, int64_t most,
               const std::vector<double>& accepted, double worth) {
                check_proposal(most, Trigrams::kinds, accepted.size());
                Trigrams::Draft draft =
                    self.propose(tenant, before, last, most, accepted, worth);
                return nb::make_tuple(draft.tokens, draft.parents, draft.kinds);
            },
            "tenant"_a, "before"_a, "last"_a, "most"_a, "accepted"_a, "worth"_a)
        .def_prop_ro("size", &Trigrams::size)
        .def_prop_ro("bytes", &Trigrams::bytes);
}

std::vector<int32_t> copied(const Ids& ids) {
    return {ids.data(), ids.data() + ids.size()};
}

void bind_text_index(nb::module_& module) {
    nb::class_<TextIndex>(module, "TextIndex")
        .def(
            "__init__",
            [](TextIndex* self, Ids tokens, Ids order) {
                new (self) TextIndex(copied(tokens), copied(order));
            },
            "tokens"_a, "order"_a)
        .def_static(
            "order_of",
            [](Ids tokens) {
                const std::vector<int32_t> texts = copied(tokens);
                std::vector<int32_t>* order;
                {
                    nb::gil_scoped_release release;
                    order = new std::vector<int32_t>(TextIndex::order_of(texts));
                }
                nb::capsule owner(order, [](void* p) noexcept {
                    delete static_cast<std::vector<int32_t>*>(p);
                });
                return nb::cast(nb::ndarray<nb::numpy, int32_t, nb::ndim<1>>(
                    order->data(), {order->size()}, owner));
            },
            "tokens"_a)
        .def(
            "propose",
            [](const TextIndex& self, Ids last, int64_t most, const std::vector<double>& accepted,
               double worth) {
                check_proposal(most, TextIndex::kinds, accepted.size());
                TextIndex::Draft draft = self.propose(
                    last.data(), static_cast<int64_t>(last.size()), most, accepted, worth);
                return nb::make_tuple(draft.tokens, draft.parents, draft.kinds);
            },
            "last"_a, "most"_a, "accepted"_a, "worth"_a)
        .def_prop_ro("size", &TextIndex::size)
        .def_prop_ro("bytes", &TextIndex::bytes);
}

}  // namespace

void bind_drafts(nb::module_& module) {
    bind_trie(module);
    bind_adjacency(module);
    bind_trigrams(module);
    bind_text_index(module);
    nb::class_<SuffixAutomaton>(module, "SuffixAutomaton")
        .def(nb::init<>())
        .def("extend",
             [](SuffixAutomaton& self, Ids tokens) {
                 self.extend(tokens.data(), static_cast<int64_t>(tokens.size()));
             })
        .def(
            "propose",
            [](const SuffixAutomaton& self, int64_t most, int64_t branches, int64_t side,
               int64_t least) {
                if (most < 1 || branches < 1 || side < 1 || least < 1)
                    throw std::invalid_argument("lengths of a draft are at least 1.");
                SuffixAutomaton::Draft draft = self.propose(most, branches, side, least);
                return nb::make_tuple(draft.tokens, draft.parents, draft.matched);
            },
            "most"_a, "branches"_a, "side"_a, "least"_a)
        .def_prop_ro("length", &SuffixAutomaton::length)
        .def_prop_ro("states", &SuffixAutomaton::states)
        .def_prop_ro("bytes", &SuffixAutomaton::bytes);
}

}  // namespace ockham
