// What is added to the products of a program for the rows of one adapter: sums of low rank, by the role
// of the matrix whose outputs they are added to ("layer.3.qkv").
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/low_rank.h"
#include "state/memory.h"

namespace ockham {

class Program;

class Adapter {
   public:
    using Part = LowRankPart;

    // For a program, which outlives it, with room for `bytes` of packed matrices.
    Adapter(const Program& program, size_t bytes) : program_(program), memory_(bytes) {}

    // Adds scale * B A over the outputs [first, first + outputs) of the matrix `role`. `shape` has all
    // but the pointers. Throws std::invalid_argument with a sentence where the program has no such
    // matrix, or the sum does not fit it or the memory.
    void add(const std::string& role, int64_t first, LowRank shape, const float* a, const float* b);

    // What is added to a matrix, in the order in which it came; null for nothing.
    const std::vector<Part>* of(const std::string& role) const {
        const auto found = parts_.find(role);
        return found == parts_.end() ? nullptr : &found->second;
    }
    // Whether a program has the matrices that this was made for.
    bool fits(const Program& program) const;
    size_t bytes() const { return used_; }

   private:
    const Program& program_;
    Pages memory_;
    size_t used_ = 0;
    std::unordered_map<std::string, std::vector<Part>> parts_;
};

}  // namespace ockham
