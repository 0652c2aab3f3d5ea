// The products: buffers of exactly the size that is promised, odd shapes, every instruction set, and a
// plain product beside each.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa/isa.h"
#include "kernels/linear.h"
#include "kernels/machine.h"
#include "kernels/pack.h"
#include "kernels/threads.h"
#include "kinds/kind.h"
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

// Whether a kind has matrices of such a shape.
bool exists(const std::string& kind, int64_t outputs, int64_t inputs, int64_t group, bool zeros) {
    try {
        return matrix_of(kind, outputs, inputs, group, zeros).zeros() == zeros;
    } catch (const std::invalid_argument&) {
        return false;
    }
}

// NumPy's name of what an array of a matrix holds; empty if there is no such array.
std::string dtype_of(const PackedMatrix& matrix, const std::string& name) {
    for (const PackedArray& array : matrix.kind->arrays(matrix, matrix.zeros()))
        if (name == array.name) return array.dtype;
    return "";
}

using Values = std::vector<std::unique_ptr<uint8_t, Free>>;

// Values of one field of `rows` rows: any codes and factors, scales near 0.01.
std::unique_ptr<uint8_t, Free> random_field(const PackedMatrix& matrix, const RowField& field, int64_t rows,
                                            std::mt19937& random) {
    const int64_t bytes = rows * field.row_bytes;
    auto values = exactly(bytes);
    const std::string name = field.name, dtype = dtype_of(matrix, "weight");
    for (int64_t i = 0; i < bytes; ++i) values.get()[i] = static_cast<uint8_t>(random());
    if (name == "zeros")
        for (int64_t i = 0; i < bytes; ++i) values.get()[i] %= 16;
    if (name == "weight" && dtype == "float32")
        for (int64_t i = 0; i < bytes / 4; ++i)
            reinterpret_cast<float*>(values.get())[i] = static_cast<float>(random() % 2001) - 1000;
    if (name == "weight" && (dtype == "bfloat16" || field.row_bytes == 2 * matrix.inputs))
        for (int64_t i = 0; i < bytes / 2; ++i)
            reinterpret_cast<uint16_t*>(values.get())[i] = 0x3f80 + random() % 128;
    if (name == "levels")  // of codebooks: up to 63 in magnitude
        for (int64_t i = 0; i < bytes; ++i)
            values.get()[i] = static_cast<uint8_t>(values.get()[i] % 127 - 63);
    if (name == "scale" || (name == "scales" && dtype_of(matrix, "scale") == "float32"))
        for (int64_t i = 0; i < bytes / 4; ++i) reinterpret_cast<float*>(values.get())[i] = 0.01f;
    else if (name == "scales" && field.row_bytes * 32 == matrix.inputs)  // exponents of two
        for (int64_t i = 0; i < bytes; ++i) values.get()[i] = 118 + random() % 4;
    else if (name == "divisors")
        for (int64_t i = 0; i < bytes / 4; ++i) reinterpret_cast<float*>(values.get())[i] = 1.5f;
    else if (name == "scales" || name == "minima")
        for (int64_t i = 0; i < bytes / 2; ++i)
            reinterpret_cast<uint16_t*>(values.get())[i] = 0x2000 + random() % 512;
    return values;
}

void check_product(ThreadPool& pool, Isa isa, const std::string& kind, int64_t outputs, int64_t inputs,
                   int64_t group, bool zeros) {
    std::mt19937 random(static_cast<unsigned>(outputs * 1000 + inputs));
    PackedMatrix matrix = matrix_of(kind, outputs, inputs, group, zeros);
    const auto weight = exactly(matrix.weight_bytes), scale = exactly(matrix.scale_bytes),
               zero = exactly(matrix.zero_bytes);
    matrix.weight = weight.get();
    matrix.scale = scale.get();
    matrix.zero = zeros ? zero.get() : nullptr;
    Values values;
    std::vector<const uint8_t*> fields;
    for (const RowField& field : matrix.kind->fields(matrix)) {
        values.push_back(random_field(matrix, field, matrix.panels() * panel_outputs, random));
        fields.push_back(values.back().get());
    }
    pack_rows(pool, matrix, 0, matrix.panels(), fields);

    const int64_t most = 40;
    std::vector<float> x(most * inputs), bias(outputs), alone(most * outputs);
    for (float& value : x) value = static_cast<float>(static_cast<int>(random() % 255) - 127);
    for (float& value : bias) value = static_cast<float>(random() % 7);
    const InputForm form = input_form(matrix);
    for (const int64_t rows : {int64_t{1}, int64_t{2}, int64_t{5}, int64_t{27}, most}) {
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
            check(std::fabs(got - sum) < 0.03 * size, "a product is near the plain one");
        }
    }
}

// A kind that quantises weights keeps to its arrays, and what it chose is near the weights.
void check_quantising(ThreadPool& pool, Isa isa, const std::string& kind, int64_t inputs, int64_t group) {
    PackedMatrix matrix = matrix_of(kind, 32, inputs, group);
    if (matrix.kind->quantise[static_cast<int>(isa)] == nullptr) return;
    if (dtype_of(matrix, "scale") != "float16") return;  // a checkpoint's own codes
    std::vector<float> rows(32 * inputs), found(inputs);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = std::sin(static_cast<float>(i));
    const std::vector<RowField> fields = matrix.kind->fields(matrix);
    const auto codes = exactly(32 * fields[0].row_bytes), scales = exactly(32 * fields[1].row_bytes);
    quantise_rows(pool, isa, matrix, rows.data(), 32, codes.get(), reinterpret_cast<uint16_t*>(scales.get()));
    const auto weight = exactly(matrix.weight_bytes), scale = exactly(matrix.scale_bytes);
    matrix.weight = weight.get();
    matrix.scale = scale.get();
    pack_rows(pool, matrix, 0, 2, {codes.get(), scales.get()});
    for (int64_t output = 0; output < 32; ++output) {
        unpack_row(matrix, output, found.data());
        for (int64_t k = 0; k < inputs; ++k)
            check(std::fabs(found[k] - rows[output * inputs + k]) < 0.2f, "codes are near the weights");
    }
}

void products_and_packing() {
    ThreadPool pool(2);
    check(!kind_names().empty(), "there are kinds");
    for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512, Isa::amx}) {
        if (!supported(isa)) continue;
        for (const std::string& kind : kind_names())
            for (const int64_t group : {0, 32, 64, 128}) {
                if (group && exists(kind, 1, 256, 37, false)) continue;  // groups say nothing to it
                for (const int64_t inputs : {1, 2, 7, 16, 65, 96, 130, 192, 384, 768})
                    for (const bool zeros : {false, true})
                        for (const int64_t outputs : {1, 16, 33, 70})
                            if (exists(kind, outputs, inputs, group, zeros))
                                check_product(pool, isa, kind, outputs, inputs, group, zeros);
                if (exists(kind, 48, 8960, group, false))  // K is cut into ranges
                    check_product(pool, isa, kind, 48, 8960, group, false);
                for (const int64_t inputs : {32, 96, 128, 130})
                    if (exists(kind, 32, inputs, group, false))
                        check_quantising(pool, isa, kind, inputs, group);
            }
        std::vector<float> rows(32 * 96);
        for (size_t i = 0; i < rows.size(); ++i) rows[i] = std::sin(static_cast<float>(i));
        const auto codes = exactly(32 * 96), scales = exactly(32 * 3 * 2);
        const float divisors[] = {16.0f, 15.0f, 17.0f};
        search_codes(pool, rows.data(), 32 * 3, 32, 16, divisors, 3, codes.get(),
                     reinterpret_cast<uint16_t*>(scales.get()));
    }
}

void probes() {
    ThreadPool pool(2);
    const auto memory = exactly(1 << 20);
    std::memset(memory.get(), 1, 1 << 20);
    for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512, Isa::amx}) {
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
