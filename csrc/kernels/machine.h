// The limits that speeds are quoted against, measured here and now.
#pragma once

#include <cstdint>

#include "isa/isa.h"
#include "kernels/threads.h"

namespace ockham {

enum class Rate { fp32, bf16, int8 };

// Multiplications and additions a second that all threads of the pool do on registers, over about
// `seconds`. The rate of the instructions that the products use: widened where an instruction set
// has no dot product.
double arithmetic_rate(ThreadPool& pool, Isa isa, Rate rate, double seconds);

// Bytes a second at which all threads of the pool read `bytes` of memory at `from`, each its share of
// large consecutive pieces, once.
double read_rate(ThreadPool& pool, Isa isa, const void* from, int64_t bytes);

}  // namespace ockham
