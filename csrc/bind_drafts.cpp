#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bindings.h"
#include "suffix_automaton.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ockham {

namespace {

using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

}  // namespace

void bind_drafts(nb::module_& module) {
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
