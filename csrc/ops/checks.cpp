#include "ops/checks.h"

#include <stdexcept>

#include "program.h"

namespace ockham {

void require(bool condition, const std::string& sentence) {
    if (!condition) throw std::invalid_argument(sentence);
}

std::string at(const char* what, int64_t layer) {
    return std::string(what) + " of layer " + std::to_string(layer);
}

void check_matrix(const PackedMatrix& matrix, int64_t outputs, int64_t inputs,
                  const std::string& what) {
    require(matrix.outputs == outputs && matrix.inputs == inputs,
            what + " has the shape (" + std::to_string(matrix.outputs) + ", " +
                std::to_string(matrix.inputs) + ") and should have (" + std::to_string(outputs) +
                ", " + std::to_string(inputs) + ").");
}

void check_matrix(const ops::Stack& stack, int64_t outputs, int64_t inputs,
                  const std::string& what) {
    require(!stack.parts.empty(), what + " has no weights.");
    PackedMatrix whole = stack.parts.front();
    whole.outputs = stack.outputs();
    check_matrix(whole, outputs, inputs, what);
    for (const PackedMatrix& part : stack.parts) check_matrix(part, part.outputs, inputs, what);
}

void check_dense(Program& program, const ops::Stack& stack, int64_t outputs, int64_t inputs,
                 const std::string& what) {
    check_matrix(stack, outputs, inputs, what);
    program.matrices[stack.role] = {outputs, inputs};
}

void check_norm(const ops::Norm& norm, int64_t length, const std::string& what) {
    check_vector(norm.weight, length, what);
    check_vector(norm.bias, length, "the bias of " + what);
    require(norm.centred || norm.bias.empty(), what + " has a bias, but no mean.");
    for (const ops::Norm& next : norm.then) {
        require(static_cast<bool>(next), what + " is followed by one without weights.");
        check_norm(next, length, what);
    }
}

void check_head_norm(const ops::Norm& norm, int64_t length, const std::string& what) {
    check_norm(norm, length, what);
    require(!norm.centred && norm.then.empty(), what + " must be an RMSNorm, and no other after it.");
}

void check_vector(const std::vector<float>& vector, int64_t length, const std::string& what) {
    require(vector.empty() || static_cast<int64_t>(vector.size()) == length,
            what + " has " + std::to_string(vector.size()) + " values and should have " +
                std::to_string(length) + ".");
}

}  // namespace ockham
