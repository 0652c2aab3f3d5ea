// The products: buffers of exactly the size that is promised, odd shapes, every instruction set, and a
// plain product beside each.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "isa/isa.h"
#include "kernels/blocks.h"
#include "kernels/linear.h"
#include "kernels/machine.h"
#include "kernels/pack.h"
#include "kernels/threads.h"
#include "tests/tests.h"

namespace ockham::tests {

namespace {

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

// Aligned memory with nothing after it that belongs to us.
std::unique_ptr<uint8_t, Free> exactly(size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, bytes ? bytes : 1)) std::abort();
    return std::unique_ptr<uint8_t, Free>(static_cast<uint8_t*>(memory));
}

void check_product(ThreadPool& pool, Isa isa, Kind kind, int64_t outputs, int64_t inputs, int64_t group,
           bool zeros) {
    std::mt19937 random(static_cast<unsigned>(outputs * 1000 + inputs));
    PackedMatrix matrix{kind, outputs, inputs, group, nullptr, nullptr, nullptr};
    matrix.zero = zeros ? &matrix : nullptr;  // so that zero_bytes() counts them
    const auto weight = exactly(matrix.weight_bytes()), scale = exactly(matrix.scale_bytes()),
               zero = exactly(matrix.zero_bytes());
    for (size_t i = 0; i < matrix.weight_bytes(); ++i) weight.get()[i] = random();
    for (size_t i = 0; i < matrix.zero_bytes(); ++i) zero.get()[i] = random() % 16;
    if (kind == Kind::fp32)
        for (size_t i = 0; i < matrix.weight_bytes() / 4; ++i)
            reinterpret_cast<float*>(weight.get())[i] = static_cast<float>(random() % 2001) - 1000;
    if (kind == Kind::bf16)
        for (size_t i = 0; i < matrix.weight_bytes() / 2; ++i)
            reinterpret_cast<uint16_t*>(weight.get())[i] = 0x3f80 + random() % 128;
    const bool halves = kind == Kind::int4 || (kind == Kind::int8 && group);
    for (size_t i = 0; kind == Kind::int8 && !halves && i < matrix.scale_bytes() / 4; ++i)
        reinterpret_cast<float*>(scale.get())[i] = 0.01f;
    for (size_t i = 0; halves && i < matrix.scale_bytes() / 2; ++i)
        reinterpret_cast<uint16_t*>(scale.get())[i] = 0x2000 + random() % 512;
    const BlockShape shape = block_shape(kind);
    if (shape.bits)  // scales near 0.01
        for (size_t at = 0; at < matrix.weight_bytes(); at += shape.bytes())
            for (int64_t i = shape.halves_at() / 2; i < shape.bytes() / 2; ++i)
                reinterpret_cast<uint16_t*>(weight.get() + at)[i] = 0x2000 + random() % 512;
    matrix.weight = weight.get();
    matrix.scale = scale.get();
    matrix.zero = zeros ? zero.get() : nullptr;

    const int64_t most = 27;
    std::vector<float> x(most * inputs), bias(outputs), alone(most * outputs);
    for (float& value : x) value = static_cast<float>(static_cast<int>(random() % 255) - 127);
    for (float& value : bias) value = static_cast<float>(random() % 7);
    const InputForm form = input_form(matrix);
    for (const int64_t rows : {int64_t{1}, int64_t{2}, int64_t{5}, most}) {
        const auto memory = exactly(form.bytes(rows));
        const PreparedInput input(form, rows, memory.get());
        const auto y = exactly(sizeof(float) * rows * outputs);
        float* values = reinterpret_cast<float*>(y.get());
        prepare(pool, isa, input, x.data(), inputs);
        linear(pool, isa, matrix, input, values, outputs, bias.data());
        for (int64_t row = 0; row < rows; ++row) {
            float* own = alone.data() + row * outputs;
            if (rows == 1) std::memcpy(own, values, sizeof(float) * outputs);
            if (row == 0)
                check(!std::memcmp(own, values, sizeof(float) * outputs),
                      "a row has the same bits whatever the batch");
        }
        std::vector<float> stored(inputs);
        for (int64_t output = 0; output < outputs; output += 7) {
            unpack_row(matrix, output, stored.data());
            double sum = 0, size = 1;
            for (int64_t k = 0; k < inputs; ++k) {
                sum += static_cast<double>(x[(rows - 1) * inputs + k]) * stored[k];
                size += std::fabs(static_cast<double>(x[(rows - 1) * inputs + k]) * stored[k]);
            }
            const double got = values[(rows - 1) * outputs + output] - bias[output];
            check(std::fabs(got - sum) < 0.02 * size, "a product is near the plain one");
        }
    }
}

void check_packing(ThreadPool& pool, Isa isa) {
    for (const int64_t inputs : {32, 96, 160}) {
        std::vector<float> rows(32 * inputs);
        for (size_t i = 0; i < rows.size(); ++i) rows[i] = std::sin(static_cast<float>(i));
        const int64_t groups = (inputs + int8_group - 1) / int8_group;
        const auto int8 = exactly(32 * groups * int8_group), int8_scale = exactly(32 * groups * 2);
        pack_int8(pool, isa, rows.data(), 2, inputs, int8.get(),
                  reinterpret_cast<uint16_t*>(int8_scale.get()));
        const auto codes = exactly(32 * inputs), code_scale = exactly(32 * (inputs / 32) * 2);
        const float divisors[] = {16.0f, 15.0f, 17.0f};
        search_codes(pool, rows.data(), 32 * (inputs / 32), 32, 16, divisors, 3, codes.get(),
                     reinterpret_cast<uint16_t*>(code_scale.get()));
        const auto int4 = exactly(16 * inputs), int4_scale = exactly(32 * (inputs / 32) * 2);
        pack_int4(pool, isa, rows.data(), 2, inputs, 32, int4.get(),
                  reinterpret_cast<uint16_t*>(int4_scale.get()));
        const auto floats = exactly(32 * inputs * 4);
        std::memcpy(floats.get(), rows.data(), 32 * inputs * 4);
        to_panels(pool, floats.get(), 32, inputs, 4);
    }
}

void check_packed_blocks(ThreadPool& pool, Kind kind) {
    const BlockShape shape = block_shape(kind);
    const int64_t outputs = 32, inputs = 3 * shape.inputs, blocks = outputs * 3;
    const int64_t groups = shape.scale_group ? shape.inputs / shape.scale_group : 0;
    const auto bytes = [](int64_t count) {
        auto memory = exactly(count);
        for (int64_t i = 0; i < count; ++i) memory.get()[i] = static_cast<uint8_t>(i * 37 + i / 7);
        return memory;
    };
    const auto codes = bytes(outputs * inputs), scales = bytes(blocks * 2), minima = bytes(blocks * 2);
    const auto group_scales = bytes(blocks * groups), group_minima = bytes(blocks * groups);
    const uint8_t one[] = {0, 0x3c};  // of fp16
    for (int64_t i = 0; i < blocks; ++i) std::memcpy(scales.get() + 2 * i, one, 2);
    std::memset(minima.get(), 0, blocks * 2);
    for (int64_t i = 0; i < outputs * inputs; ++i) codes.get()[i] &= (1 << shape.bits) - 1;
    PackedMatrix matrix;
    matrix.kind = kind;
    matrix.outputs = outputs;
    matrix.inputs = inputs;
    const auto weight = exactly(matrix.weight_bytes());
    matrix.weight = weight.get();
    pack_blocks(pool, kind,
                {codes.get(), scales.get(), minima.get(), group_scales.get(), group_minima.get()},
                outputs / 16, inputs, weight.get());
    const int zero = kind == Kind::q8_0 ? 128 : kind == Kind::q5_0 ? 16 : kind == Kind::q6_k ? 32 : 0;
    std::vector<float> row(inputs);
    for (int64_t output = 0; output < outputs; ++output) {
        unpack_row(matrix, output, row.data());
        for (int64_t k = 0; k < inputs; ++k) {
            float factor = 1;
            if (groups) {
                const uint8_t byte =
                    group_scales.get()[output * 3 * groups + k / shape.scale_group];
                factor = kind == Kind::q6_k ? static_cast<int8_t>(byte) : byte;
            }
            const float code = static_cast<float>(codes.get()[output * inputs + k] - zero);
            check(row[k] == factor * code, "packed blocks hold the codes and factors");
        }
    }
}

void products_and_packing() {
    ThreadPool pool(2);
    for (const Kind kind : {Kind::q8_0, Kind::q5_0, Kind::q4_1, Kind::q5_1, Kind::q4_k, Kind::q5_k,
                            Kind::q6_k})
        check_packed_blocks(pool, kind);
    for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
        if (!supported(isa)) continue;
        for (const Kind kind : {Kind::fp32, Kind::bf16, Kind::int8})
            for (const int64_t outputs : {1, 16, 33, 70})
                for (const int64_t inputs : {1, 2, 7, 16, 65, 130})
                    check_product(pool, isa, kind, outputs, inputs, 0, false);
        for (const int64_t outputs : {1, 33, 70})
            for (const int64_t inputs : {1, 64, 65, 130})
                check_product(pool, isa, Kind::int8, outputs, inputs, int8_group, false);
        for (const int64_t group : {32, 64, 128})
            for (const bool zeros : {false, true})
                for (const int64_t outputs : {1, 33, 70})
                    check_product(pool, isa, Kind::int4, outputs, group * 3, group, zeros);
        for (const Kind kind : {Kind::q8_0, Kind::q5_0, Kind::q4_1, Kind::q5_1, Kind::q4_k,
                                Kind::q5_k, Kind::q6_k})
            for (const int64_t outputs : {1, 33, 70})
                check_product(pool, isa, kind, outputs, 3 * block_shape(kind).inputs, 0, false);
        check_product(pool, isa, Kind::int8, 48, 9000, 0, false);  // K is cut into ranges
        check_product(pool, isa, Kind::int8, 48, 9000, int8_group, false);
        check_packing(pool, isa);
    }
}

void probes() {
    ThreadPool pool(2);
    const auto memory = exactly(1 << 20);
    std::memset(memory.get(), 1, 1 << 20);
    for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
        if (!supported(isa)) continue;
        for (const Rate rate : {Rate::fp32, Rate::bf16, Rate::int8})
            check(arithmetic_rate(pool, isa, rate, 0.001) > 0, "a rate is positive");
        check(read_rate(pool, isa, memory.get(), 1 << 20) > 0, "a rate is positive");
    }
}

const Added first{"products and packing stay within their memory", products_and_packing};
const Added second{"probes stay within their memory", probes};

}  // namespace

}  // namespace ockham::tests
