// How sure a model is of a token: what ockham.kernels.sampling.token_scores says, natively.
#pragma once

#include <cstdint>
#include <vector>

#include "isa/isa.h"

namespace ockham {

struct TokenScore {
    double logprob, confidence, entropy;
};

// Of one row of logits, whose largest is finite. `token` is in [0, vocabulary), `top` at least 1.
// `largest` is memory that is kept from row to row.
TokenScore token_score(Isa isa, const float* logits, int64_t vocabulary, int64_t token, int64_t top,
                       std::vector<float>& largest);

}  // namespace ockham
