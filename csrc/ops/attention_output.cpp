#include "ops/attention_output.h"

#include <algorithm>

#include "ops/attention_input.h"
#include "ops/checks.h"
#include "ops/fields.h"
#include "ops/head_products.h"
#include "ops/norms.h"
#include "ops/product.h"
#include "ops/stream.h"
#include "program.h"
#include "run.h"
#include "state/planes.h"

namespace ockham::ops {

namespace {

const Added added{"AttentionOutput", read<AttentionOutput>};

}  // namespace

AttentionOutput::AttentionOutput(const Fields& fields)
    : layer(fields.integer("layer")),
      out(fields.dense("out", false)),
      bias(fields.floats("bias")),
      post_norm(fields.norm("post_norm")),
      residual_scale(fields.number("residual_scale")),
      stream_norm(fields.norm("stream_norm")),
      shortcut(fields.optional_matrix("shortcut")),
      gate(fields.none("gate") ? Stack() : fields.stack("gate")),
      gate_norm(fields.norm("gate_norm")),
      inner_norm(fields.norm("inner_norm")),
      values(fields.matrices("values")) {}

void AttentionOutput::check(Program& program) const {
    const auto* input = program.latest<AttentionInput>();
    int64_t width = input == nullptr ? 0 : input->heads * input->head_dim;
    if (!values.empty()) {
        const PackedMatrix& one = values.front();
        require(input != nullptr && static_cast<int64_t>(values.size()) == input->heads &&
                    one.inputs <= input->head_dim,
                at("the value projections", layer) + " are not those of its heads.");
        for (const PackedMatrix& matrix : values)
            check_matrix(matrix, one.outputs, one.inputs, at("a value projection", layer));
        require(!gate, at("the output", layer) + " cannot have both values and a gate.");
        width = input->heads * one.outputs;
    }
    check_dense(program, out, program.hidden, width, at("the output", layer));
    check_vector(bias, program.hidden, at("the output bias", layer));
    check_norm(post_norm, program.hidden, at("the post norm", layer));
    check_norm(stream_norm, program.hidden, at("the norm after the attention", layer));
    check_norm(gate_norm, program.hidden, at("the norm before the gate", layer));
    check_norm(inner_norm, width, at("the norm before the output", layer));
    if (gate) check_dense(program, gate, width, program.hidden, at("the gate", layer));
    if (shortcut) check_matrix(shortcut, program.hidden, program.hidden, at("the shortcut", layer));
}

void AttentionOutput::run(Run& run) const {
    const int64_t width = out.inputs();
    Activations& own = *run.activations;
    const float* a = own.a.get<float>();
    for (int64_t first = 0; first < run.active.count; first += most_rows) {
        const int64_t rows = std::min(most_rows, run.active.count - first);
        float* gates = nullptr;
        if (gate) {
            gates = own.gate_up.take<float>(rows * width);
            product(run, gate, stream_rows(run, gate_norm, first, rows), gates, {}, first);
            for_rows(run.pool, rows, width, [&](int64_t row, int) {
                float* factors = gates + row * width;
                run.kernels.logistic(factors, width);
                const float* from = a + run.active.at(first + row) * width;
                for (int64_t e = 0; e < width; ++e) factors[e] *= from[e];
            });
        }
        if (!values.empty()) {
            const int64_t heads = static_cast<int64_t>(values.size());
            const int64_t head_dim = run.planes().layer(layer).head_dim;
            const int64_t latent = values.front().inputs;
            gates = own.gate_up.take<float>(rows * width);
            head_products(
                run, values, rows,
                [&](int64_t row, int64_t head) {
                    return a + (run.active.at(first + row) * heads + head + 1) * head_dim - latent;
                },
                gates, width, values.front().outputs);
        }
        if (inner_norm)
            for (Buffer& buffer : own.rows) buffer.take<float>(width);
        const Rows attended{rows, width, [&, a, gates, width, first](int64_t row, int thread) -> const float* {
                                const float* from = gates != nullptr
                                                        ? gates + row * width
                                                        : a + run.active.at(first + row) * width;
                                if (!inner_norm) return from;
                                float* normed = own.rows[static_cast<size_t>(thread)].get<float>();
                                normalise(run.kernels, inner_norm, from, width, normed);
                                return normed;
                            }};
        float* branch = own.branch.take<float>(rows * run.hidden);
        product(run, out, attended, branch, bias, first);
        turn_rows(run, first, rows, shortcut);
        add_branch(run, first, rows, branch, post_norm, residual_scale, stream_norm);
    }
}

}  // namespace ockham::ops
