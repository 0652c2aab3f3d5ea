// What the records of several operations are made of. A vector that is empty and a matrix without
// parts stand for None.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/layer_kernels.h"
#include "kernels/linear.h"
#include "kernels/low_rank.h"

namespace ockham::ops {

struct Norm {
    std::vector<float> weight;
    float eps = 0.0f;
    bool centred = false;  // a LayerNorm
    std::vector<float> bias;
    std::vector<Norm> then;  // the norm of what this one gives, if there is one
    explicit operator bool() const { return !weight.empty(); }
};

// Matrices of the same inputs whose outputs follow one another: one matrix, or several in different
// formats. `role` is the name by which an adapter finds it; empty where none may. `own` are the
// corrections of the parts.
struct Stack {
    std::vector<PackedMatrix> parts;
    std::string role;
    std::vector<LowRankPart> own;

    Stack() = default;
    Stack(PackedMatrix matrix) : Stack(std::vector<PackedMatrix>{matrix}) {}
    Stack(std::vector<PackedMatrix> matrices) : parts(std::move(matrices)) {
        int64_t first = 0;
        for (const PackedMatrix& part : parts) {
            if (part.correction != nullptr) own.push_back({first, *part.correction});
            first += part.outputs;
        }
    }
    explicit operator bool() const { return !parts.empty(); }
    int64_t inputs() const { return parts.empty() ? 0 : parts.front().inputs; }
    int64_t outputs() const {
        int64_t sum = 0;
        for (const PackedMatrix& part : parts) sum += part.outputs;
        return sum;
    }
};

}  // namespace ockham::ops
