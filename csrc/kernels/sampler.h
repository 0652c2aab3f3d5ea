// From logits to tokens: the sampler of ockham.kernels.sampling in native code, step for step.
//
// The noise is that of ockham.core.noise: Philox4x32-10, whose words are integers and so the same
// here as there. Everything after the logits is done in double. Logarithms and exponentials are our
// own (fdlibm's algorithms, under one unit in the last place), made of additions, multiplications and
// divisions, so that every machine draws the same token; NumPy's may differ in the last bit, so the
// two samplers agree unless two tokens come that close. Sums run in order of the token id.
#pragma once

#include <cstdint>
#include <vector>

#include "isa/isa.h"

namespace ockham {

// Natural logarithm of a positive normal number, and e^x for |x| below 700.
double natural_log(double x);
double natural_exp(double x);

// -ln(-ln((word + 1/2) / 2^32))
double gumbel(uint32_t word);

// The words of noise of some tokens at a position, as ockham.core.noise.uniform_words gives them.
void noise_words(Isa isa, uint64_t seed, uint32_t stream, uint32_t position, const int64_t* tokens,
                 int64_t count, uint32_t* words);

struct DrawView {
    int64_t row = 0;
    double temperature = 1.0;
    int64_t top_k = 0;
    double top_p = 1.0, min_p = 0.0;
    double repetition_penalty = 1.0, presence_penalty = 0.0, frequency_penalty = 0.0;
    bool has_allowed = false;
    const uint32_t* mask = nullptr;  // token t may come if bit t % 32 of word t / 32 is set
    std::vector<int64_t> allowed, forbidden, biased;
    std::vector<double> biases;
    std::vector<int64_t> seen, output, output_counts;
    uint64_t seed = 0;
    uint32_t stream = 0, position = 0;

    // Whether the token is the argmax of the unprocessed logits.
    bool plain_greedy() const {
        return temperature == 0.0 && !has_allowed && mask == nullptr && forbidden.empty() && biased.empty() &&
               repetition_penalty == 1.0 && presence_penalty == 0.0 && frequency_penalty == 0.0;
    }
};

constexpr int64_t no_token = -1;      // masks left nothing to choose
constexpr int64_t not_finite = -2;    // the largest logit is infinite or not a number

// Memory of one thread, kept: fresh memory of this size would cost more than what is done in it.
struct SamplerScratch {
    std::vector<double> z, chosen;
    std::vector<int64_t> ids;
};

// The token of one draw from its row of logits. Ids in `draw` are in [0, vocabulary).
int64_t sample(Isa isa, const float* logits, int64_t vocabulary, const DrawView& draw,
               SamplerScratch& scratch);

}  // namespace ockham
