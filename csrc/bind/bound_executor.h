// An executor with what it only points to, which Python must keep alive as long.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "bind/arrays.h"
#include "executor.h"
#include "isa/isa.h"
#include "state/planes.h"

namespace ockham {

struct BoundExecutor {
    nanobind::object pool, planes;
    std::vector<nanobind::object> matrices;
    std::unique_ptr<Executor> executor;
};

// `program` holds operations of ockham.kernels.ops; `matrix_of` gives the native matrices of a linear.
std::unique_ptr<BoundExecutor> make_executor(nanobind::object pool, Isa isa, nanobind::object planes,
                                             nanobind::sequence program,
                                             nanobind::callable matrix_of);

// Throws std::invalid_argument with a sentence where there is no such group or slot.
void check_slots(const Planes& planes, int64_t group, const Vector<int64_t>& slots);

}  // namespace ockham
