// Arrays that cross the border: views of Python's, and memory of the core's that Python takes over.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>

#include "run.h"
#include "state/memory.h"

namespace ockham {

template <class T>
using Vector =
    nanobind::ndarray<const T, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
template <class T>
using Table =
    nanobind::ndarray<const T, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;

// Memory that Python owns from now on.
inline nanobind::object array_of(Floats floats) {
    const size_t shape[] = {static_cast<size_t>(floats.rows), static_cast<size_t>(floats.columns)};
    float* data = floats.memory ? floats.memory->get<float>() : nullptr;
    nanobind::capsule owner(floats.memory.release(), [](void* memory) noexcept {
        delete static_cast<Buffer*>(memory);
    });
    return nanobind::cast(nanobind::ndarray<nanobind::numpy, float>(data, 2, shape, owner));
}

}  // namespace ockham
