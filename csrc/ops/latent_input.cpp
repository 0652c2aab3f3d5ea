#include "ops/latent_input.h"

#include <algorithm>
#include <vector>

#include "kernels/rows.h"
#include "ops/checks.h"
#include "ops/fields.h"
#include "ops/head_products.h"
#include "ops/product.h"
#include "ops/stream.h"
#include "program.h"
#include "run.h"
#include "state/planes.h"

namespace ockham::ops {

namespace {

const Added added{"LatentInput", read<LatentInput>};

}  // namespace

LatentInput::LatentInput(const Fields& fields)
    : inputs(fields.dense("inputs", true)),
      keys(fields.matrices("keys")),
      latent_norm(fields.norm("latent_norm")),
      query_norm(fields.norm("query_norm")),
      query_up(fields.none("query_up") ? Stack() : fields.dense("query_up", true)) {
    layer = fields.integer("layer");
    group = fields.integer("group");
    heads = fields.integer("heads");
    kv_heads = 1;
    head_dim = fields.integer("head_dim");
    norm = fields.norm("norm");
    rope = fields.rope("rope");
}

void LatentInput::check(Program& program) const {
    require(heads > 0 && static_cast<int64_t>(keys.size()) == heads,
            at("the key projections", layer) + " are not as many as its heads.");
    require(rotated() >= 0, at("a head", layer) + " is narrower than the latent.");
    for (const PackedMatrix& matrix : keys)
        check_matrix(matrix, latent(), plain(), at("a key projection", layer));
    require(program.planes.group_of(layer) == group,
            at("the planes", layer) + " belong to another group.");
    const LayerPlane plane = program.planes.layer(layer);
    require(plane.latent && plane.kv_heads == 1 && plane.head_dim == head_dim,
            at("the planes", layer) + " have another shape than its latent.");
    const int64_t first = query_up ? query_up.inputs() : query_width();
    check_dense(program, inputs, first + head_dim, program.hidden, at("the projection", layer));
    if (query_up)
        check_dense(program, query_up, query_width(), first, at("the query projection", layer));
    check_norm(norm, program.hidden, at("the norm", layer));
    check_vector(latent_norm.weight, latent(), at("the latent's norm", layer));
    check_vector(query_norm.weight, first, at("the query norm", layer));
    require(2 * rope.half() <= rotated() && rope.chunk == 0,
            at("the rotary embedding", layer) + " is not one for a latent.");
    require(rope.period > 0, at("the rotary embedding", layer) + " grows in no steps.");
    if (rope) program.ropes.set(layer, rope);
}

void LatentInput::run(Run& run) const {
    const int64_t rows = run.active.count, half = rope.half(), wide = inputs.outputs();
    const RowKernels& kernels = run.kernels;
    Activations& own = *run.activations;
    if (rows == 0) return;
    const int64_t stride = heads * head_dim, all = query_width();
    run.query_stride = stride;
    const int64_t first_query = wide - head_dim, each = rotated() + plain();
    float* placed = own.qkv.take<float>(run.step.rows * stride);
    const bool apart = run.active.which != nullptr;
    const float* rotation = rotations_of(run, layer);
    const LayerPlane plane = run.planes().layer(layer);
    const int64_t* slots = run.step.groups[group].slots;
    std::vector<int64_t> runs;
    for (int64_t first = 0; first < rows; first += most_rows) {
        const int64_t count = std::min(most_rows, rows - first);
        float* projected = own.gate_up.take<float>(count * wide);
        product(run, inputs, stream_rows(run, norm, first, count), projected, {}, first);
        find_runs(run.active, slots, plane.page_tokens, first, count, runs);
        const auto rotate = [&](float* x, int64_t i) {
            if (rotation == nullptr) return;
            const float* cosines = rotation + run.active.at(i) * 2 * half;
            kernels.rotate(x, cosines, cosines + half, half);
        };
        const int64_t found = static_cast<int64_t>(runs.size()) - 1;
        for_rows(run.pool, found, count * wide / found, [&](int64_t number, int) {
            const int64_t begin = runs[number], end = runs[number + 1];
            for (int64_t i = begin; i < end; ++i) {
                float* query = projected + (i - first) * wide;
                float* key = query + first_query;
                rotate(key, i);
                kernels.rms_norm(key + rotated(), latent_norm.weight.data(), latent_norm.eps,
                                 latent(), key + rotated());
                if (query_norm)
                    kernels.rms_norm(query, query_norm.weight.data(), query_norm.eps, first_query,
                                     query);
            }
            const float* key = projected + (begin - first) * wide + first_query;
            plane.store_run(kernels, slots[run.active.at(begin)], end - begin, key, nullptr, wide, 0);
        });
        float* queries = projected;
        int64_t query_stride = wide;
        if (query_up) {
            queries = own.expert_x.take<float>(count * all);
            query_stride = all;
            const Rows narrow{count, first_query, [projected, wide](int64_t row, int) -> const float* {
                                  return projected + row * wide;
                              }};
            product(run, query_up, narrow, queries, {}, first);
        }
        float* made = apart ? own.expert_out.take<float>(count * heads * head_dim)
                            : placed + first * stride;
        const auto query_of = [&](int64_t row, int64_t head) -> const float* {
            return queries + row * query_stride + head * each;
        };
        head_products(
            run, keys, count,
            [&](int64_t row, int64_t head) { return query_of(row, head) + rotated(); },
            made + rotated(), stride, head_dim);
        for_rows(run.pool, count, heads * head_dim, [&](int64_t row, int) {
            float* to = made + row * stride;
            for (int64_t head = 0; head < heads; ++head) {
                std::copy_n(query_of(row, head), rotated(), to + head * head_dim);
                rotate(to + head * head_dim, first + row);
            }
            const float grown = rope.grown(run.step.positions[run.active.at(first + row)]);
            if (grown != 1.0f) kernels.multiply(to, grown, heads * head_dim);
            if (apart)
                std::copy_n(to, heads * head_dim, placed + run.active.at(first + row) * stride);
        });
    }
}

}  // namespace ockham::ops
