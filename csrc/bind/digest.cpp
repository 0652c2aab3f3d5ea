#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>

#include "bind/bindings.h"
#include "kernels/digest.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ockham {

void bind_digest(nb::module_& module) {
    using Words = nb::ndarray<const uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
    using Sums = nb::ndarray<uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
    module.def(
        "digest_words",
        [](ThreadPool& pool, Words words, Words keys, Sums sums) {
            const int64_t count = static_cast<int64_t>(words.size());
            if (static_cast<int64_t>(keys.size()) != kDigestWords)
                throw std::invalid_argument("a digest takes 65536 keys.");
            if (static_cast<int64_t>(sums.size()) != (count + kDigestWords - 1) / kDigestWords)
                throw std::invalid_argument("a digest has one sum for each 65536 words.");
            const uint64_t *from = words.data(), *by = keys.data();
            uint64_t* to = sums.data();
            nb::gil_scoped_release release;
            digest_words(pool, from, count, by, to);
        },
        "pool"_a, "words"_a, "keys"_a, "sums"_a,
        "The sums of ockham.model.packed.digest, one for each 65536 words.");
}

}  // namespace ockham
