#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "bindings.h"

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

std::pair<nb::list, uint64_t> read_strings(nb::object from, uint64_t offset, uint64_t count) {
    const Bytes bytes(from);
    nb::list strings;
    if (offset > bytes.size()) throw std::out_of_range("the offset lies after the bytes.");
    for (uint64_t index = 0; index < count; ++index) {
        uint64_t rest = bytes.size() - offset, length;
        if (rest < sizeof length) break;
        std::memcpy(&length, bytes.data() + offset, sizeof length);
        rest -= sizeof length;
        if (length > rest) break;
        const char* text = bytes.data() + offset + sizeof length;
        PyObject* string = PyUnicode_DecodeUTF8(text, static_cast<Py_ssize_t>(length), "replace");
        if (string == nullptr) nb::raise_python_error();
        strings.append(nb::steal(string));
        offset += sizeof length + length;
    }
    return {strings, offset};
}

}  // namespace

void bind_text(nb::module_& module) {
    module.def("read_strings", &read_strings, "bytes"_a, "offset"_a, "count"_a,
               "Up to `count` strings of GGUF from an offset on, as many as are whole, and the "
               "offset after them.");
}

}  // namespace ockham
