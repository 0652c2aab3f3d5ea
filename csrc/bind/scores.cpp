#include "kernels/scores.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind/arrays.h"
#include "bind/bindings.h"
#include "kernels/layer_kernels.h"
#include "kernels/threads.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ockham {

namespace {

// Whether every row has a finite largest logit; `scores` has three numbers for each row.
bool score_tokens(ThreadPool& pool, Isa isa, Table<float> logits, Vector<int32_t> rows,
                  Vector<int32_t> tokens, int64_t top,
                  nb::ndarray<double, nb::shape<-1, 3>, nb::c_contig, nb::device::cpu> scores) {
    require(isa);
    const auto count = static_cast<int64_t>(rows.size());
    const auto height = static_cast<int64_t>(logits.shape(0));
    const auto vocabulary = static_cast<int64_t>(logits.shape(1));
    if (static_cast<int64_t>(tokens.size()) != count || static_cast<int64_t>(scores.shape(0)) != count)
        throw std::invalid_argument("rows, tokens and scores differ in number.");
    if (top < 1) throw std::invalid_argument("top is " + std::to_string(top) + ", below 1.");
    for (int64_t i = 0; i < count; ++i) {
        if (rows.data()[i] < 0 || rows.data()[i] >= height)
            throw std::invalid_argument("there is no row " + std::to_string(rows.data()[i]) +
                                        " of " + std::to_string(height) + " rows of logits.");
        if (tokens.data()[i] < 0 || tokens.data()[i] >= vocabulary)
            throw std::invalid_argument("token id " + std::to_string(tokens.data()[i]) +
                                        " is not in a vocabulary of " +
                                        std::to_string(vocabulary) + ".");
    }
    const float* data = logits.data();
    const int32_t* row_of = rows.data();
    const int32_t* token_of = tokens.data();
    double* found = scores.data();
    std::vector<std::vector<float>> largest(pool.size());
    nb::gil_scoped_release release;
    pool.parallel(count, [&](int64_t i, int thread) {
        const TokenScore score = token_score(isa, data + row_of[i] * vocabulary, vocabulary,
                                             token_of[i], top, largest[thread]);
        found[i * 3] = score.logprob;
        found[i * 3 + 1] = score.confidence;
        found[i * 3 + 2] = score.entropy;
    });
    for (int64_t i = 0; i < count; ++i)
        if (!std::isfinite(found[i * 3 + 2])) return false;
    return true;
}

}  // namespace

void bind_scores(nb::module_& module) {
    module.def("score_tokens", &score_tokens, "pool"_a, "isa"_a, "logits"_a, "rows"_a, "tokens"_a,
               "top"_a, "scores"_a,
               "Fills in log probability, confidence and entropy of each token; false if some row "
               "is not finite.");
}

}  // namespace ockham
