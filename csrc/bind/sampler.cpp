#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind/bindings.h"
#include "kernels/layer_kernels.h"
#include "kernels/sampler.h"
#include "kernels/threads.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ockham {

namespace {

using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Writable = nb::ndarray<uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Reads ockham.kernels.sampling.Draw.
class DrawReader {
   public:
    DrawReader(int64_t rows, int64_t vocabulary) : rows_(rows), vocabulary_(vocabulary) {}

    DrawView operator()(nb::handle draw) const {
        const nb::object params = draw.attr("params");
        DrawView view;
        view.row = nb::cast<int64_t>(draw.attr("row"));
        if (view.row < 0 || view.row >= rows_)
            throw std::invalid_argument("there is no row " + std::to_string(view.row) + " of " +
                                        std::to_string(rows_) + " rows of logits.");
        view.temperature = nb::cast<double>(params.attr("temperature"));
        view.top_k = nb::cast<int64_t>(params.attr("top_k"));
        view.top_p = nb::cast<double>(params.attr("top_p"));
        view.min_p = nb::cast<double>(params.attr("min_p"));
        view.repetition_penalty = nb::cast<double>(params.attr("repetition_penalty"));
        view.presence_penalty = nb::cast<double>(params.attr("presence_penalty"));
        view.frequency_penalty = nb::cast<double>(params.attr("frequency_penalty"));
        const nb::object allowed = params.attr("allowed_token_ids");
        view.has_allowed = !allowed.is_none();
        if (view.has_allowed)
            for (nb::handle id : allowed) view.allowed.push_back(checked(nb::cast<int64_t>(id)));
        const nb::object mask = draw.attr("mask");
        if (!mask.is_none()) {
            // The draws hold it for as long as they are sampled.
            const auto words = nb::cast<Words>(mask, false);
            if (static_cast<int64_t>(words.size()) * 32 < vocabulary_)
                throw std::invalid_argument("a mask has " + std::to_string(words.size()) +
                                            " words, too few for a vocabulary of " +
                                            std::to_string(vocabulary_) + ".");
            view.mask = words.data();
        }
        for (nb::handle id : draw.attr("forbidden"))
            view.forbidden.push_back(checked(nb::cast<int64_t>(id)));
        const nb::object biases = params.attr("logit_bias");
        if (!biases.is_none()) {
            for (auto [id, bias] : nb::cast<nb::dict>(biases)) {
                view.biased.push_back(checked(nb::cast<int64_t>(id)));
                view.biases.push_back(nb::cast<double>(bias));
            }
        }
        view.seen = ids(draw.attr("seen"));
        view.output = ids(draw.attr("output"));
        const auto counts = nb::cast<Ids>(draw.attr("output_counts"));
        view.output_counts.assign(counts.data(), counts.data() + counts.size());
        if (view.output_counts.size() != view.output.size())
            throw std::invalid_argument("the output's ids and their counts differ in number.");
        view.seed = nb::cast<uint64_t>(draw.attr("seed"));
        view.stream = nb::cast<uint32_t>(draw.attr("stream"));
        view.position = nb::cast<uint32_t>(draw.attr("position"));
        return view;
    }

   private:
    int64_t checked(int64_t id) const {
        if (id < 0 || id >= vocabulary_)
            throw std::invalid_argument("token id " + std::to_string(id) +
                                        " is not in a vocabulary of " +
                                        std::to_string(vocabulary_) + ".");
        return id;
    }
    std::vector<int64_t> ids(nb::handle array) const {
        const auto view = nb::cast<Ids>(array);
        std::vector<int64_t> result(view.data(), view.data() + view.size());
        for (const int64_t id : result) checked(id);
        return result;
    }

    const int64_t rows_, vocabulary_;
};

// Samples with the threads of a pool, which outlives it.
class Sampler {
   public:
    Sampler(ThreadPool& pool, Isa isa) : pool_(pool), isa_(isa), scratch_(pool.size()) {
        require(isa);
    }
    Sampler(const Sampler&) = delete;

    nb::list sample(Logits logits, nb::sequence draws) {
        const int64_t vocabulary = static_cast<int64_t>(logits.shape(1));
        const DrawReader read(static_cast<int64_t>(logits.shape(0)), vocabulary);
        std::vector<DrawView> views;
        for (nb::handle draw : draws) views.push_back(read(draw));
        std::vector<int64_t> tokens(views.size());
        {
            const float* data = logits.data();
            nb::gil_scoped_release release;
            std::lock_guard<std::mutex> lock(mutex_);
            pool_.parallel(static_cast<int64_t>(views.size()), [&](int64_t i, int thread) {
                tokens[i] = ockham::sample(isa_, data + views[i].row * vocabulary, vocabulary,
                                           views[i], scratch_[thread]);
            });
        }
        nb::list result;
        for (const int64_t token : tokens) result.append(token);
        return result;
    }

   private:
    ThreadPool& pool_;
    const Isa isa_;
    std::vector<SamplerScratch> scratch_;
    std::mutex mutex_;
};

}  // namespace

void bind_sampler(nb::module_& module) {
    nb::class_<Sampler>(module, "Sampler")
        .def(nb::init<ThreadPool&, Isa>(), "pool"_a, "isa"_a, nb::keep_alive<1, 2>())
        .def("sample", &Sampler::sample, "logits"_a, "draws"_a,
             "The token of each draw; -1: masks left none, -2: the logits are not finite.");
    module.def(
        "gumbel",
        [](Isa isa, uint64_t seed, uint32_t stream, uint32_t position, uint32_t token) {
            require(isa);
            const uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
            uint32_t words[64];
            row_kernels(isa).philox(key, token >> 2, position, stream, 0, words);
            return nb::make_tuple(words[token & 3], gumbel(words[token & 3]));
        },
        "isa"_a, "seed"_a, "stream"_a, "position"_a, "token"_a, "A token's word of noise, and the noise.");
    module.def(
        "noise_words",
        [](Isa isa, uint64_t seed, uint32_t stream, uint32_t position, Ids tokens, Writable words) {
            require(isa);
            if (words.size() != tokens.size())
                throw std::invalid_argument("each token needs a place for its word of noise.");
            for (size_t i = 0; i < tokens.size(); ++i)
                if (tokens.data()[i] < 0)
                    throw std::invalid_argument("token ids are at least 0, got " +
                                                std::to_string(tokens.data()[i]) + ".");
            noise_words(isa, seed, stream, position, tokens.data(), static_cast<int64_t>(tokens.size()),
                        words.data());
        },
        "isa"_a, "seed"_a, "stream"_a, "position"_a, "tokens"_a, "words"_a.noconvert(),
        "Writes the word of noise of each token.");
    module.def("natural_log", &natural_log, "x"_a);
    module.def("natural_exp", &natural_exp, "x"_a);
}

}  // namespace ockham
