#include "adapter.h"

#include <stdexcept>

#include "ops/checks.h"
#include "program.h"

namespace ockham {

void Adapter::add(const std::string& role, int64_t first, LowRank shape, const float* a,
                  const float* b) {
    const auto found = program_.matrices.find(role);
    require(found != program_.matrices.end(), "nothing can be added to the matrix " + role + ".");
    const auto [outputs, inputs] = found->second;
    require(shape.rank > 0 && shape.inputs == inputs && shape.outputs > 0 && first >= 0 &&
                first + shape.outputs <= outputs,
            "what is added to the matrix " + role + " has another shape than it.");
    require(used_ + shape.bytes() <= memory_.bytes(), "the adapter is larger than was said.");
    parts_[role].push_back({first, pack_low_rank(shape, a, b, memory_.data() + used_)});
    used_ += shape.bytes();
}

bool Adapter::fits(const Program& program) const {
    return &program == &program_ || program.matrices == program_.matrices;
}

}  // namespace ockham
