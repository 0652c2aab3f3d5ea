// A packed matrix as Python hands it over: a view that keeps the arrays alive. Programs hold these.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>

#include "kernels/linear.h"
#include "kernels/low_rank.h"
#include "state/memory.h"

namespace ockham {

// A correction and the memory of its matrices.
struct HeldLowRank {
    LowRank sum;
    Buffer memory;
};

struct Matrix {
    PackedMatrix packed;
    nanobind::object weight, scale, zero;  // the owners
    std::shared_ptr<const HeldLowRank> correction;
};

}  // namespace ockham
