// Matrices of which only what is not zero is stored, beside a bitmask: it is expanded to a panel as it
// would be without zeros, and multiplied as that (Flash-LLM, arXiv:2309.10285: "load as sparse, compute as
// dense"; there on the tensor cores of a GPU).
//
// A unit is 64 inputs of a panel, the last one filled up with zeros: G of them. It is a number of registers
// of 64 bytes, as dense kinds have them: [16] outputs of 4 / V consecutive k, where V is the bytes of a value.
// weight: the units of all panels one after another, each of which is a bitmask of 128 bytes (bit i of a
// register's 64 / V bits is its value i) and then the values that are not zero, register by register. The array
// ends with `guard_bytes(V)` that no unit holds, because registers are read whole.
// scale, per panel: what the kind has there, `scale_bytes`; then uint32 [G + 1], where in `weight` each unit of
// the panel begins, and where the last one ends.
//
// Panels take room by their values, so that a matrix must be told how much there is. PackedMatrix::group is
// that, in lines of 64 bytes without the guard; 0 is room for a matrix without zeros.
#pragma once

#include <cstring>

#include "kernels/linear.h"

namespace ockham {

constexpr int64_t sparse_inputs = 64, mask_bytes = 128;

constexpr int64_t dense_bytes(int value_bytes) { return sparse_inputs * panel_outputs * value_bytes; }
constexpr int64_t guard_bytes(int value_bytes) { return mask_bytes + dense_bytes(value_bytes) + 64; }

static inline int64_t units_of(const PackedMatrix& matrix) {
    return (matrix.inputs + sparse_inputs - 1) / sparse_inputs;
}

// Where the units of a panel begin, by what stands in `scale`.
class Starts {
   public:
    // `scale_bytes` is what a panel has before them. A damaged file must not lead out of the array: no unit
    // is looked for behind its end.
    __attribute__((always_inline)) Starts(const PackedMatrix& matrix, int value_bytes, int64_t scale_bytes)
        : weight_(static_cast<const uint8_t*>(matrix.weight)),
          first_(static_cast<const uint8_t*>(matrix.scale) + scale_bytes),
          stride_(scale_bytes + (units_of(matrix) + 1) * 4),
          end_(static_cast<uint32_t>(static_cast<int64_t>(matrix.weight_bytes) - guard_bytes(value_bytes))) {}

    __attribute__((always_inline)) const uint8_t* unit(int64_t panel, int64_t number) const {
        uint32_t start;
        __builtin_memcpy(&start, first_ + panel * stride_ + number * 4, 4);
        return weight_ + (start < end_ ? start : end_);
    }

   private:
    const uint8_t* weight_;
    const uint8_t* first_;
    int64_t stride_;
    uint32_t end_;
};

}  // namespace ockham
