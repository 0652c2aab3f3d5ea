#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bind/bindings.h"
#include "state/prefix_tree.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ockham {

namespace {

using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

PrefixTree::Tokens tokens_of(const Ids& ids) { return {ids.data(), static_cast<int64_t>(ids.size())}; }

nb::object array_of(std::vector<int32_t>&& pages) {
    auto owned = std::make_unique<std::vector<int32_t>>(std::move(pages));
    int32_t* data = owned->data();
    const size_t shape[] = {owned->size()};
    nb::capsule owner(owned.release(), [](void* memory) noexcept {
        delete static_cast<std::vector<int32_t>*>(memory);
    });
    return nb::cast(nb::ndarray<nb::numpy, int32_t>(data, 1, shape, owner));
}

nb::list arrays_of(PrefixTree::Pages&& pages) {
    nb::list arrays;
    for (auto& each : pages) arrays.append(array_of(std::move(each)));
    return arrays;
}

std::vector<int64_t> numbers_of(nb::sequence numbers) {
    std::vector<int64_t> all;
    for (nb::handle number : numbers) all.push_back(nb::cast<int64_t>(number));
    return all;
}

nb::tuple insert(PrefixTree& self, const std::string& salt, Ids ids, nb::sequence tables,
                 int64_t page_tokens) {
    std::vector<Ids> held;
    std::vector<const int32_t*> pointers;
    const int64_t pages = (static_cast<int64_t>(ids.size()) + page_tokens - 1) / page_tokens;
    for (nb::handle table : tables) {
        held.push_back(nb::cast<Ids>(table));
        if (static_cast<int64_t>(held.back().size()) < pages)
            throw std::invalid_argument("a page table has " + std::to_string(held.back().size()) +
                                        " pages; " + std::to_string(ids.size()) +
                                        " tokens take " + std::to_string(pages) + ".");
        pointers.push_back(held.back().data());
    }
    if (pointers.size() != self.evictable().size())
        throw std::invalid_argument("the tree has " + std::to_string(self.evictable().size()) +
                                    " groups of layers, not " + std::to_string(pointers.size()) + ".");
    PrefixTree::Pages taken;
    const int64_t node = self.insert(salt, tokens_of(ids), pointers, taken);
    return nb::make_tuple(node, arrays_of(std::move(taken)));
}

}  // namespace

void bind_prefix_tree(nb::module_& module) {
    nb::class_<PrefixTree>(module, "PrefixTree")
        .def(
            "__init__",
            [](PrefixTree* self, int64_t page_tokens, nb::sequence windows, double slope,
               nb::sequence apart) {
                new (self)
                    PrefixTree(page_tokens, numbers_of(windows), slope, numbers_of(apart));
            },
            "page_tokens"_a, "windows"_a, "slope"_a, "apart"_a)
        .def(
            "match",
            [](PrefixTree& self, const std::string& salt, Ids tokens, bool touch) {
                PrefixTree::Match found = self.match(salt, tokens_of(tokens), touch);
                return nb::make_tuple(found.tokens, arrays_of(std::move(found.tables)), found.node);
            },
            "salt"_a, "tokens"_a, "touch"_a)
        .def(
            "agreed",
            [](const PrefixTree& self, const std::string& salt, Ids tokens) {
                PrefixTree::Pages tables;
                const int64_t length = self.agreed(salt, tokens_of(tokens), tables);
                return nb::make_tuple(length, arrays_of(std::move(tables)));
            },
            "salt"_a, "tokens"_a)
        .def("insert", &insert, "salt"_a, "tokens"_a, "tables"_a, "page_tokens"_a)
        .def(
            "cut",
            [](PrefixTree& self, int64_t node, int64_t cells) {
                PrefixTree::Pages taken;
                const int64_t upper = self.cut(node, cells, taken);
                return nb::make_tuple(upper, arrays_of(std::move(taken)));
            },
            "node"_a, "cells"_a)
        .def("lock", &PrefixTree::lock, "node"_a)
        .def("unlock", &PrefixTree::unlock, "node"_a)
        .def("pin", &PrefixTree::pin, "node"_a, "pinned"_a)
        .def(
            "hint",
            [](PrefixTree& self, int64_t node, int64_t hint, int64_t start) {
                if (hint < 0 || hint >= PrefixTree::kHints)
                    throw std::invalid_argument("there is no hint " + std::to_string(hint) + ".");
                PrefixTree::Pages taken;
                self.hint(node, static_cast<PrefixTree::Hint>(hint), start, taken);
                return arrays_of(std::move(taken));
            },
            "node"_a, "hint"_a, "start"_a)
        .def("tick", &PrefixTree::tick, "now_s"_a)
        .def("evict",
             [](PrefixTree& self) -> nb::object {
                 PrefixTree::Pages given;
                 if (!self.evict(given)) return nb::none();
                 return arrays_of(std::move(given));
             })
        .def(
            "release",
            [](PrefixTree& self, nb::sequence groups) -> nb::object {
                PrefixTree::Pages given;
                if (!self.release(numbers_of(groups), given)) return nb::none();
                return arrays_of(std::move(given));
            },
            "groups"_a)
        .def("evictable",
             [](const PrefixTree& self) {
                 nb::list pages;
                 for (const int64_t count : self.evictable()) pages.append(count);
                 return pages;
             })
        .def("dump",
             [](const PrefixTree& self) {
                 nb::list nodes;
                 for (const auto& node : self.dump())
                     nodes.append(nb::make_tuple(node.salt, node.number, node.parent, node.start,
                                                 node.tokens, node.pages, node.hits, node.locks,
                                                 node.pinned, node.hint, node.made_s,
                                                 node.used_s));
                 return nodes;
             })
        .def(
            "tokens_of",
            [](const PrefixTree& self, int64_t node, int64_t most) {
                return array_of(self.tokens_of(node, most));
            },
            "node"_a, "most"_a)
        .def("held",
             [](const PrefixTree& self, int64_t group) { return array_of(self.held(group)); },
             "group"_a)
        .def_prop_ro("tokens", &PrefixTree::tokens)
        .def_prop_ro("pages", &PrefixTree::pages)
        .def_prop_ro("nodes", &PrefixTree::nodes)
        .def_prop_ro("bytes", &PrefixTree::bytes);
}

}  // namespace ockham
