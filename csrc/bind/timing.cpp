// What a layer does beside its products and its attention, timed alone and without Python in between.
//
// The loops are those of csrc/ops/, over rows of this file's own; each gives the seconds of each of
// `repeats` calls. For `ockham bench kernels`.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind/bindings.h"
#include "bind/matrix.h"
#include "kernels/layer_kernels.h"
#include "kernels/linear.h"
#include "kernels/rows.h"
#include "kernels/threads.h"
#include "state/memory.h"
#include "state/planes.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ockham {

namespace {

constexpr float eps = 1e-5f;

template <class F>
std::vector<double> timed(int repeats, F call) {
    using Clock = std::chrono::steady_clock;
    std::vector<double> seconds;
    for (int i = 0; i < repeats; ++i) {
        const Clock::time_point start = Clock::now();
        call();
        seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    }
    return seconds;
}

std::vector<float> some_floats(int64_t count) {
    std::vector<float> x(static_cast<size_t>(count));
    for (size_t i = 0; i < x.size(); ++i)
        x[i] = static_cast<float>(i * 2654435761u % 1000) * 0.002f - 1.0f;
    return x;
}

void check(Isa isa, int64_t rows) {
    require(isa);
    if (rows < 1) throw std::invalid_argument("there are no rows to time.");
}

std::vector<double> time_norm(ThreadPool& pool, Isa isa, const Matrix& matrix, int64_t rows,
                              int repeats) {
    check(isa, rows);
    const RowKernels& kernels = row_kernels(isa);
    const InputForm form = input_form(matrix.packed);
    const int64_t width = form.inputs;
    const std::vector<float> x = some_floats(rows * width), weight = some_floats(width);
    Buffer memory;
    std::vector<Buffer> scratch(static_cast<size_t>(pool.size()));
    for (Buffer& buffer : scratch) buffer.take<float>(width);
    const PreparedInput input(form, rows, memory.take<uint8_t>(form.bytes(rows)));
    nb::gil_scoped_release release;
    return timed(repeats, [&] {
        for_rows(pool, rows, width, [&](int64_t row, int thread) {
            float* normed = scratch[thread].get<float>();
            kernels.rms_norm(x.data() + row * width, weight.data(), eps, width, normed);
            prepare_row(isa, input, row, normed);
        });
    });
}

std::vector<double> time_gate(ThreadPool& pool, Isa isa, const Matrix& down, bool silu,
                              int64_t rows, int repeats) {
    check(isa, rows);
    const RowKernels& kernels = row_kernels(isa);
    const auto gated =
        kernels.gated[static_cast<int>(silu ? Activation::silu : Activation::gelu_tanh)];
    const InputForm form = input_form(down.packed);
    const int64_t inner = form.inputs;
    const std::vector<float> gate_up = some_floats(rows * 2 * inner);
    Buffer memory;
    std::vector<Buffer> scratch(static_cast<size_t>(pool.size()));
    for (Buffer& buffer : scratch) buffer.take<float>(inner);
    const PreparedInput input(form, rows, memory.take<uint8_t>(form.bytes(rows)));
    nb::gil_scoped_release release;
    return timed(repeats, [&] {
        for_rows(pool, rows, 2 * inner, [&](int64_t row, int thread) {
            float* y = scratch[thread].get<float>();
            const float* gate = gate_up.data() + row * 2 * inner;
            gated(gate, gate + inner, inner, y);
            prepare_row(isa, input, row, y);
        });
    });
}

std::vector<double> time_rotation(ThreadPool& pool, Isa isa, int64_t heads, int64_t kv_heads,
                                  int64_t head_dim, int64_t rotary_dim, const std::string& keys,
                                  const std::string& values, int64_t rows,
                                  int repeats) {
    check(isa, rows);
    if (heads < 1 || kv_heads < 1 || head_dim < 1 || rotary_dim < 0 || rotary_dim > head_dim)
        throw std::invalid_argument("there are no such heads.");
    const RowKernels& kernels = row_kernels(isa);
    const int64_t width = (heads + 2 * kv_heads) * head_dim, half = rotary_dim / 2;
    Planes planes({{{0}, kv_heads, head_dim, element_named(keys), element_named(values), (rows + 15) / 16, 16}});
    const LayerPlane plane = planes.layer(0);
    std::vector<float> qkv = some_floats(rows * width);
    // A rotation by a third of a right angle, so that values neither grow nor vanish.
    const std::vector<float> cosines(static_cast<size_t>(half), 0.8660254f);
    const std::vector<float> sines(static_cast<size_t>(half), 0.5f);
    nb::gil_scoped_release release;
    return timed(repeats, [&] {
        for_rows(pool, (rows + 15) / 16, 16 * width, [&](int64_t group, int) {
            const int64_t begin = group * 16, end = std::min(rows, begin + 16);
            for (int64_t row = begin; row < end; ++row)
                for (int64_t i = 0; half > 0 && i < heads + kv_heads; ++i)
                    kernels.rotate(qkv.data() + row * width + i * head_dim, cosines.data(),
                                   sines.data(), half);
            const float* k = qkv.data() + begin * width + heads * head_dim;
            plane.store_run(kernels, begin, end - begin, k, k + kv_heads * head_dim, width,
                            width);
        });
    });
}

}  // namespace

void bind_timing(nb::module_& module) {
    module.def("time_norm", &time_norm, "pool"_a, "isa"_a, "matrix"_a, "rows"_a, "repeats"_a,
               "RMSNorm into the form that a matrix reads.");
    module.def("time_gate", &time_gate, "pool"_a, "isa"_a, "down"_a, "silu"_a, "rows"_a,
               "repeats"_a, "The activation product into the form that the matrix after it reads.");
    module.def("time_rotation", &time_rotation, "pool"_a, "isa"_a, "heads"_a, "kv_heads"_a,
               "head_dim"_a, "rotary_dim"_a, "keys"_a, "values"_a, "rows"_a, "repeats"_a,
               "Rotation of queries and keys, and the write of keys and values.");
}

}  // namespace ockham
