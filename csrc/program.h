// A program: operations in the order in which they run, and what they agree on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "ops/operation.h"
#include "state/rope.h"

namespace ockham {

class Planes;

class Program {
   public:
    using Operations = std::vector<std::shared_ptr<const ops::Operation>>;

    // Throws std::invalid_argument with a sentence where the operations contradict themselves, each
    // other or the planes.
    Program(const Planes& planes, Operations operations);

    int64_t size() const { return static_cast<int64_t>(operations_.size()); }
    const ops::Operation& operator[](int64_t i) const {
        return *operations_[static_cast<size_t>(i)];
    }

    // The latest operation of a kind before the one that is being checked, or null.
    template <class Op>
    const Op* latest() const {
        for (size_t i = checked_; i-- > 0;)
            if (const auto* op = dynamic_cast<const Op*>(operations_[i].get())) return op;
        return nullptr;
    }

    // Said by the operations while they are checked.
    int64_t hidden = 0;      // width of the residual stream
    int64_t vocabulary = 0;  // of the embedding
    int64_t positions = 0;   // learned ones of all types together; 0: positions are not bounded
    int64_t logits = 0;      // outputs of the head, where there is one
    Ropes ropes;
    // Outputs and inputs of the matrices to whose products something may be added, by role.
    std::unordered_map<std::string, std::pair<int64_t, int64_t>> matrices;

    const Planes& planes;

   private:
    Operations operations_;
    size_t checked_ = 0;
};

}  // namespace ockham
