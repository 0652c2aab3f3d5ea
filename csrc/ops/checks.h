// What the operations' checks share: each throws std::invalid_argument with a sentence.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/parts.h"

namespace ockham {

class Program;

void require(bool condition, const std::string& sentence);

// "the norm of layer 3"
std::string at(const char* what, int64_t layer);

void check_matrix(const PackedMatrix& matrix, int64_t outputs, int64_t inputs,
                  const std::string& what);
void check_matrix(const ops::Stack& stack, int64_t outputs, int64_t inputs,
                  const std::string& what);

// The same of a matrix that an adapter may add to, which the program is told of.
void check_dense(Program& program, const ops::Stack& stack, int64_t outputs, int64_t inputs,
                 const std::string& what);

// An empty vector, or a norm without weights, stands for None and is right.
void check_norm(const ops::Norm& norm, int64_t length, const std::string& what);

// The same of a norm of heads, which has no mean and no bias.
void check_head_norm(const ops::Norm& norm, int64_t length, const std::string& what);

void check_vector(const std::vector<float>& vector, int64_t length, const std::string& what);

}  // namespace ockham
