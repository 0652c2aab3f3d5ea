// Planes of keys and values: made, copied, read and written by slots and by pages.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind/arrays.h"
#include "bind/bindings.h"
#include "kernels/halves.h"
#include "bind/bound_executor.h"
#include "state/planes.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ockham {

void check_slots(const Planes& planes, int64_t group, const Vector<int64_t>& slots) {
    if (group < 0 || group >= static_cast<int64_t>(planes.groups().size()))
        throw std::invalid_argument("there is no group " + std::to_string(group) + " of layers.");
    for (size_t i = 0; i < slots.size(); ++i)
        if (slots.data()[i] < 0 || slots.data()[i] >= planes.slots(group))
            throw std::invalid_argument("slot " + std::to_string(slots.data()[i]) +
                                        " is not one of the " +
                                        std::to_string(planes.slots(group)) + " of its group.");
}

Element element_named(const std::string& name) {
    if (name == "bfloat16") return Element::bf16;
    if (name == "float32") return Element::fp32;
    if (name == "int8") return Element::int8;
    if (name == "int4") return Element::int4;
    throw std::invalid_argument("keys and values cannot be stored as " + name + ".");
}

namespace {

std::vector<int64_t> layers_of(nb::handle layers) {
    std::vector<int64_t> result;
    for (nb::handle layer : layers) result.push_back(nb::cast<int64_t>(layer));
    return result;
}

// What a group's keys are reflected at: (layers, heads, width), or None.
std::vector<float> mirrors_of(nb::handle mirrors, const GroupShape& shape) {
    if (mirrors.is_none()) return {};
    const auto values =
        nb::cast<nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>>(mirrors);
    if (values.shape(0) != shape.layers.size() ||
        values.shape(1) != static_cast<size_t>(shape.kv_heads) ||
        values.shape(2) != static_cast<size_t>(shape.head_dim))
        throw std::invalid_argument("the mirrors are not of the group's layers, heads and width.");
    return {values.data(), values.data() + values.size()};
}

// Codebooks of a group's keys: (layers, heads, 256, 2 * width + 1) of centroids, directions and offsets;
// or None.
std::vector<KeyBook> books_of(nb::handle books, const GroupShape& shape) {
    if (books.is_none()) return {};
    const auto values =
        nb::cast<nb::ndarray<const float, nb::ndim<4>, nb::c_contig, nb::device::cpu>>(books);
    const int64_t dim = shape.head_dim, width = padded(dim), entry = 2 * dim + 1;
    if (values.shape(0) != shape.layers.size() ||
        values.shape(1) != static_cast<size_t>(shape.kv_heads) ||
        values.shape(2) != static_cast<size_t>(book_size) ||
        values.shape(3) != static_cast<size_t>(entry))
        throw std::invalid_argument("the codebooks are not of the group's layers, heads and width.");
    std::vector<KeyBook> found(values.shape(0) * values.shape(1));
    const float* from = values.data();
    for (KeyBook& book : found) {
        book.row = (width + 31) / 32 * 32;
        book.centroids.assign(static_cast<size_t>(book_size * book.row), 0);
        book.directions.assign(static_cast<size_t>(book_size * width), 0.0f);
        for (int64_t c = 0; c < book_size; ++c, from += entry) {
            for (int64_t e = 0; e < dim; ++e) {
                book.centroids[c * book.row + e] = to_bf16(from[e]);
                book.directions[c * width + e] = from[dim + e];
            }
            book.offsets.push_back(from[2 * dim]);
        }
    }
    return found;
}

Element element_of(nb::handle dtype) { return element_named(nb::cast<std::string>(dtype)); }

std::unique_ptr<Planes> make_planes(nb::sequence groups) {
    std::vector<GroupShape> shapes;
    for (nb::handle group : groups) {
        const nb::object spec = group.attr("spec");
        const nb::object planes = spec.attr("planes");
        const size_t count = nb::len(nb::handle(planes));
        if (count != 1 && count != 2)
            throw std::invalid_argument("layers keep keys and values, or one row of each token.");
        const nb::object plane = spec.attr("uniform");
        shapes.push_back({layers_of(group.attr("layers")), nb::cast<int64_t>(plane.attr("heads")),
                          nb::cast<int64_t>(plane.attr("width")),
                          element_of(planes[0].attr("dtype")),
                          element_of(planes[count - 1].attr("dtype")),
                          nb::cast<int64_t>(group.attr("pages")),
                          nb::cast<int64_t>(group.attr("page_rows"))});
        shapes.back().latent = nb::cast<bool>(spec.attr("latent"));
        if (count == 1 && !shapes.back().latent) shapes.back().row_floats = shapes.back().head_dim;
        shapes.back().mirrors = mirrors_of(group.attr("mirrors"), shapes.back());
        shapes.back().books = books_of(group.attr("books"), shapes.back());
    }
    return std::make_unique<Planes>(shapes);
}

void copy_state(Planes& planes, int64_t group, Vector<int64_t> source, Vector<int64_t> target,
                int64_t head, int64_t index) {
    check_slots(planes, group, source);
    check_slots(planes, group, target);
    if (source.size() != target.size())
        throw std::invalid_argument("there are not as many source slots as target slots.");
    if (head < -1 || head >= planes.groups()[group].kv_heads)
        throw std::invalid_argument("there is no head " + std::to_string(head) + ".");
    if (index < -1 || index >= static_cast<int64_t>(planes.groups()[group].layers.size()))
        throw std::invalid_argument("the group has no layer " + std::to_string(index) + ".");
    planes.copy(group, head, index, source.data(), target.data(), static_cast<int64_t>(source.size()));
}

// The shape of what Planes::read gives, and the bytes of one of its elements.
struct StateShape {
    size_t sizes[5];
    size_t item_bytes;

    StateShape(const Planes& planes, int64_t group, size_t slots) {
        const GroupShape& shape = planes.groups()[group];
        const Side keys = planes.keys(group), values = planes.values(group);
        const auto key = static_cast<size_t>(keys.row_bytes());
        const auto value = static_cast<size_t>(values.row_bytes());
        if (shape.row_floats > 0) {
            item_bytes = sizeof(float);
            sizes[0] = shape.layers.size();
            sizes[1] = sizes[3] = 1;
            sizes[2] = slots;
            sizes[4] = static_cast<size_t>(shape.row_floats);
            return;
        }
        item_bytes = keys.coded() ? 1 : static_cast<size_t>(keys.unit_bytes);
        sizes[0] = shape.layers.size();
        sizes[1] = key == value && !shape.latent ? 2 : 1;
        sizes[2] = slots;
        sizes[3] = static_cast<size_t>(shape.kv_heads);
        sizes[4] = key == value ? key / item_bytes : key + value;
    }
    size_t bytes() const {
        return sizes[0] * sizes[1] * sizes[2] * sizes[3] * sizes[4] * item_bytes;
    }
};

nb::object read_state(const Planes& planes, int64_t group, Vector<int64_t> slots) {
    check_slots(planes, group, slots);
    const StateShape shape(planes, group, slots.size());
    auto memory = std::make_unique<Buffer>();
    memory->take<uint8_t>(static_cast<int64_t>(shape.bytes()));
    planes.read(group, slots.data(), static_cast<int64_t>(slots.size()), memory->get<void>());
    void* data = memory->get<void>();
    nb::capsule owner(memory.release(),
                      [](void* owned) noexcept { delete static_cast<Buffer*>(owned); });
    const nb::dlpack::dtype dtype = shape.item_bytes == 1   ? nb::dtype<uint8_t>()
                                    : shape.item_bytes == 2 ? nb::dtype<uint16_t>()
                                                            : nb::dtype<float>();
    return nb::cast(nb::ndarray<nb::numpy>(data, 5, shape.sizes, owner, nullptr, dtype));
}

void write_state(Planes& planes, int64_t group, Vector<int64_t> slots,
                 nb::ndarray<nb::ro, nb::ndim<5>, nb::c_contig, nb::device::cpu> state) {
    check_slots(planes, group, slots);
    const StateShape shape(planes, group, slots.size());
    bool fits = state.itemsize() == shape.item_bytes;
    for (size_t i = 0; i < 5; ++i) fits = fits && state.shape(i) == shape.sizes[i];
    if (!fits)
        throw std::invalid_argument("the state has another shape or type than the group's planes.");
    planes.write(group, slots.data(), static_cast<int64_t>(slots.size()), state.data());
}

// Pages of a group, and where in each row of `data` one stands.
template <class Bytes>
void check_pages(const Planes& planes, int64_t group, const Vector<int64_t>& pages,
                 const Bytes& data, int64_t at) {
    if (group < 0 || group >= static_cast<int64_t>(planes.groups().size()))
        throw std::invalid_argument("there is no group " + std::to_string(group) + " of layers.");
    for (size_t i = 0; i < pages.size(); ++i)
        if (pages.data()[i] < 0 || pages.data()[i] >= planes.groups()[group].pages)
            throw std::invalid_argument("there is no page " + std::to_string(pages.data()[i]) +
                                        " in its group.");
    if (data.shape(0) != pages.size() || at < 0 ||
        at + planes.stored_page_bytes(group) > static_cast<int64_t>(data.shape(1)))
        throw std::invalid_argument("the rows have no room for the pages.");
}

void read_pages(const Planes& planes, int64_t group, Vector<int64_t> pages,
                nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> data, int64_t at) {
    check_pages(planes, group, pages, data, at);
    nb::gil_scoped_release release;
    planes.read_pages(group, pages.data(), static_cast<int64_t>(pages.size()), data.data() + at,
                      static_cast<int64_t>(data.shape(1)));
}

void write_pages(Planes& planes, int64_t group, Vector<int64_t> pages,
                 nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> data,
                 int64_t at) {
    check_pages(planes, group, pages, data, at);
    nb::gil_scoped_release release;
    planes.write_pages(group, pages.data(), static_cast<int64_t>(pages.size()), data.data() + at,
                       static_cast<int64_t>(data.shape(1)));
}

template <class Bytes>
void check_part(const Planes& planes, int64_t group, int64_t page, int64_t start, const Bytes& data) {
    if (group < 0 || group >= static_cast<int64_t>(planes.groups().size()))
        throw std::invalid_argument("there is no group " + std::to_string(group) + " of layers.");
    if (page < 0 || page >= planes.groups()[group].pages)
        throw std::invalid_argument("there is no page " + std::to_string(page) + " in its group.");
    if (start < 0 || start + static_cast<int64_t>(data.size()) > planes.stored_page_bytes(group))
        throw std::invalid_argument("a page has no bytes from " + std::to_string(start) + " to " +
                                    std::to_string(start + static_cast<int64_t>(data.size())) + ".");
}

void read_part(const Planes& planes, int64_t group, int64_t page, int64_t start,
               nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> data) {
    check_part(planes, group, page, start, data);
    nb::gil_scoped_release release;
    planes.read_part(group, page, start, static_cast<int64_t>(data.size()), data.data());
}

void write_part(Planes& planes, int64_t group, int64_t page, int64_t start, Vector<uint8_t> data) {
    check_part(planes, group, page, start, data);
    nb::gil_scoped_release release;
    planes.write_part(group, page, start, static_cast<int64_t>(data.size()), data.data());
}

// (layers, kv_heads, slots) places among the slots.
nb::object order_alike(const Planes& planes, int64_t group, Vector<int64_t> slots, int threads) {
    check_slots(planes, group, slots);
    std::unique_ptr<std::vector<int32_t>> orders;
    {
        nb::gil_scoped_release release;
        orders = std::make_unique<std::vector<int32_t>>(
            planes.alike(group, slots.data(), static_cast<int64_t>(slots.size()), threads));
    }
    const GroupShape& shape = planes.groups()[group];
    const size_t sizes[3] = {shape.layers.size(), static_cast<size_t>(shape.kv_heads), slots.size()};
    int32_t* data = orders->data();
    nb::capsule owner(orders.release(), [](void* owned) noexcept {
        delete static_cast<std::vector<int32_t>*>(owned);
    });
    return nb::cast(nb::ndarray<nb::numpy, int32_t>(data, 3, sizes, owner));
}

void back_pages(const Planes& planes, int64_t group, int64_t index, int64_t pages) {
    if (group < 0 || group >= static_cast<int64_t>(planes.groups().size()) || index < 0 ||
        index >= static_cast<int64_t>(planes.groups()[group].layers.size()) || pages < 0 ||
        pages > planes.groups()[group].pages)
        throw std::invalid_argument("there are no such pages to back.");
    nb::gil_scoped_release release;
    planes.back(group, index, pages);
}

}  // namespace

void bind_planes(nb::module_& module) {
    nb::class_<Planes>(module, "Planes")
        .def("__init__",
             [](Planes* self, nb::sequence groups) { new (self) Planes(std::move(*make_planes(groups))); },
             "groups"_a)
        .def("copy", &copy_state, "group"_a, "source"_a, "target"_a, "head"_a = -1,
             "index"_a = -1)
        .def("read", &read_state, "group"_a, "slots"_a)
        .def("write", &write_state, "group"_a, "slots"_a, "state"_a)
        .def("stored_page_bytes", &Planes::stored_page_bytes, "group"_a)
        .def("read_pages", &read_pages, "group"_a, "pages"_a, "data"_a, "at"_a)
        .def("read_part", &read_part, "group"_a, "page"_a, "start"_a, "data"_a)
        .def("write_part", &write_part, "group"_a, "page"_a, "start"_a, "data"_a)
        .def("alike", &order_alike, "group"_a, "slots"_a, "threads"_a)
        .def("back", &back_pages, "group"_a, "index"_a, "pages"_a)
        .def("write_pages", &write_pages, "group"_a, "pages"_a, "data"_a, "at"_a);
}

}  // namespace ockham
