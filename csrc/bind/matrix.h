// A packed matrix as Python hands it over: a view that keeps the arrays alive. Programs hold these.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "kernels/linear.h"

namespace ockham {

struct Matrix {
    PackedMatrix packed;
    nanobind::object weight, scale, zero;  // the owners
};

}  // namespace ockham
