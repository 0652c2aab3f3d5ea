#include "ops/experts.h"

#include <algorithm>

#include "kernels/rows.h"
#include "kernels/threads.h"
#include "ops/checks.h"
#include "ops/fields.h"
#include "ops/gated.h"
#include "ops/norms.h"
#include "ops/product.h"
#include "ops/route.h"
#include "ops/stream.h"
#include "program.h"
#include "run.h"

namespace ockham::ops {

namespace {

const Added added{"Experts", read<Experts>};

// Pairs of a row and an expert computed together: bounds the memory of a mixture of experts.
constexpr int64_t most_pairs = 2048;

// The pairs (row, place) of some rows, sorted by expert and then by row. Unsorted, a row's pairs stand
// together, in the order in which Route chose them.
struct Pairs {
    int64_t first_row, rows, per_row;
    std::vector<int64_t> order;     // sorted pair i is the unsorted pair order[i]
    std::vector<int64_t> position;  // the inverse of it
    std::vector<int64_t> starts;    // the pairs of expert e are [starts[e], starts[e + 1])

    int64_t count() const { return rows * per_row; }
    int64_t row(int64_t i) const { return first_row + order[i] / per_row; }
};

// `chosen` are the experts of the unsorted pairs.
Pairs sort_pairs(const int32_t* chosen, int64_t first_row, int64_t rows, int64_t per_row,
                 int64_t experts) {
    Pairs pairs{first_row, rows, per_row, {}, {}, {}};
    const int64_t count = pairs.count();
    pairs.order.resize(count);
    pairs.position.resize(count);
    pairs.starts.assign(experts + 1, 0);
    for (int64_t i = 0; i < count; ++i) ++pairs.starts[chosen[i] + 1];
    for (int64_t e = 0; e < experts; ++e) pairs.starts[e + 1] += pairs.starts[e];
    std::vector<int64_t> next(pairs.starts.begin(), pairs.starts.end() - 1);
    for (int64_t i = 0; i < count; ++i) {
        pairs.position[i] = next[chosen[i]]++;
        pairs.order[pairs.position[i]] = i;
    }
    return pairs;
}

// The sorted pairs [begin, end) of one expert, and what its two matrices read of them. Its gates and
// ups, two times `inner` for each pair, stand from `first_gate` on behind those of the experts before.
struct Segment {
    int64_t expert, begin, end, inner, first_gate;
    PreparedInput input, gated;

    int64_t rows() const { return end - begin; }
};

struct Segments {
    std::vector<Segment> all;               // of the experts that have pairs
    int64_t gates = 0, widest = 0;          // values of all gates and ups; the largest `inner`
    std::vector<const Segment*> of_pair;
};

// With the memory of the prepared rows of all.
Segments cut_segments(const Experts& op, const Pairs& pairs, Activations& own) {
    const auto bytes = [](const InputForm& form, int64_t rows) {
        return (form.bytes(rows) + 63) / 64 * 64;
    };
    Segments cut;
    size_t input_bytes = 0, gated_bytes = 0;
    for (size_t e = 0; e < op.down.size(); ++e) {
        const int64_t begin = pairs.starts[e], end = pairs.starts[e + 1];
        if (begin == end) continue;
        const int64_t inner = op.down[e].inputs;
        cut.all.push_back({static_cast<int64_t>(e), begin, end, inner, cut.gates, {}, {}});
        cut.gates += (end - begin) * op.gates(inner);
        cut.widest = std::max(cut.widest, inner);
        input_bytes += bytes(input_form(op.gate_up[e]), end - begin);
        gated_bytes += bytes(input_form(op.down[e]), end - begin);
    }
    uint8_t* inputs = own.prepared.take<uint8_t>(static_cast<int64_t>(input_bytes));
    uint8_t* gateds = own.second_prepared.take<uint8_t>(static_cast<int64_t>(gated_bytes));
    cut.of_pair.resize(pairs.count());
    for (Segment& segment : cut.all) {
        const InputForm form = input_form(op.gate_up[segment.expert]);
        const InputForm gated = input_form(op.down[segment.expert]);
        segment.input = PreparedInput(form, segment.rows(), inputs);
        segment.gated = PreparedInput(gated, segment.rows(), gateds);
        inputs += bytes(form, segment.rows());
        gateds += bytes(gated, segment.rows());
        for (int64_t i = segment.begin; i < segment.end; ++i) cut.of_pair[i] = &segment;
    }
    return cut;
}

// Where the bias of each expert stands in the biases of all; null where there are none.
std::vector<const float*> bias_of_each(const std::vector<PackedMatrix>& matrices,
                                       const std::vector<float>& biases) {
    std::vector<const float*> found(matrices.size(), nullptr);
    const float* next = biases.data();
    for (size_t e = 0; e < matrices.size() && !biases.empty(); ++e) {
        found[e] = next;
        next += matrices[e].outputs;
    }
    return found;
}

// y = each segment's prepared rows, `input` or `gated`, times its expert's matrix, plus its bias; a
// segment's stand from first(segment) on. All experts' tiles are in one loop, so that small experts keep
// all threads busy.
template <class First>
void expert_products(Run& run, const std::vector<PackedMatrix>& matrices,
                     const std::vector<float>& biases, const std::vector<Segment>& segments,
                     PreparedInput Segment::*prepared, const First& first_of, float* y) {
    const std::vector<const float*> bias = bias_of_each(matrices, biases);
    struct Part {
        const Segment* segment;
        Tiling cut;
        int64_t first;  // tile
    };
    std::vector<Part> parts;
    int64_t tiles = 0;
    for (const Segment& segment : segments) {
        const Tiling cut = tiling(matrices[segment.expert], segment.rows(), run.pool.size());
        parts.push_back({&segment, cut, tiles});
        tiles += cut.tiles();
    }
    run.pool.parallel(tiles, [&](int64_t tile, int) {
        const Part& part = *(std::upper_bound(parts.begin(), parts.end(), tile,
                                              [](int64_t t, const Part& p) { return t < p.first; }) -
                             1);
        const PackedMatrix& matrix = matrices[part.segment->expert];
        linear_tile(run.isa, matrix, part.segment->*prepared, part.cut, tile - part.first,
                    y + first_of(*part.segment), matrix.outputs, bias[part.segment->expert]);
    });
}

// branch = for each row the sum of what its experts gave (`out`, by sorted pair), each times its
// weight, in the order of the experts' indices.
void sum_pairs(Run& run, const Pairs& pairs, const float* weights, const float* out,
               float* branch) {
    const int64_t hidden = run.hidden, per_row = pairs.per_row;
    for_rows(run.pool, pairs.rows, per_row * hidden, [&](int64_t row, int) {
        float* to = branch + row * hidden;
        std::fill(to, to + hidden, 0.0f);
        // A row's pairs in the order of their positions are in the order of their experts.
        std::vector<int64_t> places(per_row);
        for (int64_t place = 0; place < per_row; ++place) places[place] = row * per_row + place;
        std::sort(places.begin(), places.end(), [&](int64_t a, int64_t b) {
            return pairs.position[a] < pairs.position[b];
        });
        for (const int64_t place : places)
            run.kernels.add_scaled(to, out + pairs.position[place] * hidden, weights[place], hidden);
    });
}

// The chosen experts of rows [first, first + rows) into the same rows of the branch.
void chosen_experts(Run& run, const Experts& op, int64_t first, int64_t rows, float* branch) {
    Activations& own = *run.activations;
    const int64_t hidden = run.hidden, per_row = run.experts_per_row;
    const float* h = own.h.get<float>();
    const Pairs pairs = sort_pairs(own.experts.get<int32_t>() + first * per_row, first, rows,
                                   per_row, static_cast<int64_t>(op.down.size()));
    const Segments segments = cut_segments(op, pairs, own);

    for_rows(run.pool, pairs.count(), hidden, [&](int64_t i, int) {
        const Segment& segment = *segments.of_pair[i];
        prepare_row(run.isa, segment.input, i - segment.begin, h + pairs.row(i) * hidden);
    });
    float* gate_up = own.expert_x.take<float>(segments.gates);
    expert_products(run, op.gate_up, op.gate_up_bias, segments.all, &Segment::input,
                    [](const Segment& segment) { return segment.first_gate; }, gate_up);
    for (Buffer& buffer : own.rows) buffer.take<float>(segments.widest);
    for_rows(run.pool, pairs.count(), 2 * segments.widest, [&](int64_t i, int thread) {
        const Segment& segment = *segments.of_pair[i];
        float* gated = own.rows[thread].get<float>();
        const int64_t inner = segment.inner;
        const float* from =
            gate_up + segment.first_gate + (i - segment.begin) * op.gates(inner);
        if (op.gated)
            gate(run.kernels, op.activation, from, inner, gated);
        else
            run.kernels.activated[static_cast<int>(op.activation)](from, inner, gated);
        prepare_row(run.isa, segment.gated, i - segment.begin, gated);
    });
    float* out = own.expert_out.take<float>(pairs.count() * hidden);
    expert_products(run, op.down, op.down_bias, segments.all, &Segment::gated,
                    [hidden](const Segment& segment) { return segment.begin * hidden; }, out);
    sum_pairs(run, pairs, own.expert_weights.get<float>() + first * per_row, out,
              branch + first * hidden);
}

// h = norm(x) of the active rows, for the experts; what it was before where there is no norm.
void read_stream(Run& run, const Norm& norm) {
    if (!norm) return;
    const int64_t hidden = run.hidden;
    float* h = run.activations->h.get<float>();
    for_rows(run.pool, run.active.count, hidden, [&](int64_t row, int) {
        normalise(run.kernels, norm, run.x() + run.active.at(row) * hidden, hidden, h + row * hidden);
    });
}

// rows = norm(rows), where there is one.
void norm_rows(Run& run, const Norm& norm, float* rows, int64_t count) {
    if (!norm) return;
    const int64_t hidden = run.hidden;
    for_rows(run.pool, count, hidden, [&](int64_t row, int) {
        normalise(run.kernels, norm, rows + row * hidden, hidden, rows + row * hidden);
    });
}

// branch += the expert that all rows go to, times its gate where it has one.
void add_shared_expert(Run& run, const Experts& op, float* branch) {
    Activations& own = *run.activations;
    const int64_t rows = run.active.count, hidden = run.hidden, inner = op.shared_down.inputs();
    const auto h = plain_rows(own.h.get<float>(), hidden, rows);
    float* gate_up = own.gate_up.take<float>(rows * op.gates(inner));
    product(run, op.shared_gate_up, h, gate_up);
    float* shared = own.expert_out.take<float>(rows * hidden);
    product(run, op.shared_down,
            activated_rows(run, op.activation, op.gated, Norm(), gate_up, inner, rows, inner), shared);
    norm_rows(run, op.shared_post_norm, shared, rows);
    if (op.shared_gate) {
        float* weight = own.expert_x.take<float>(rows);
        product(run, op.shared_gate, h, weight);
        run.kernels.logistic(weight, rows);
        for (int64_t row = 0; row < rows; ++row)
            run.kernels.multiply(shared + row * hidden, weight[row], hidden);
    }
    for_rows(run.pool, rows, hidden, [&](int64_t row, int) {
        run.kernels.add_scaled(branch + row * hidden, shared + row * hidden, 1.0f, hidden);
    });
}

}  // namespace

Experts::Experts(const Fields& fields)
    : layer(fields.integer("layer")),
      gate_up(fields.matrices("gate_up")),
      down(fields.matrices("down")),
      gate_up_bias(fields.floats("gate_up_bias")),
      down_bias(fields.floats("down_bias")),
      activation(fields.activation("activation")),
      shared_gate_up(fields.optional_matrix("shared_gate_up")),
      shared_down(fields.optional_matrix("shared_down")),
      shared_gate(fields.optional_matrix("shared_gate")),
      norm(fields.norm("norm")),
      routed_norm(fields.norm("routed_norm")),
      shared_norm(fields.norm("shared_norm")),
      shared_post_norm(fields.norm("shared_post_norm")),
      post_norm(fields.norm("post_norm")),
      residual_scale(fields.number("residual_scale")),
      shortcut(fields.optional_matrix("shortcut")),
      gated(fields.flag("gated")) {}

void Experts::check(Program& program) const {
    const auto* route = program.latest<Route>();
    const size_t experts = route == nullptr ? 0 : static_cast<size_t>(route->router.outputs());
    require(gate_up.size() == experts && down.size() == experts,
            at("the experts", layer) + " are not as many as its router knows.");
    const int64_t hidden = program.hidden;
    int64_t every = 0;
    for (size_t e = 0; e < experts; ++e) {
        const int64_t inner = down[e].inputs;
        check_matrix(gate_up[e], gates(inner), hidden, at("an expert", layer));
        check_matrix(down[e], hidden, inner, at("an expert", layer));
        every += gates(inner);
    }
    check_vector(gate_up_bias, every, at("the biases of the experts' gates and ups", layer));
    check_vector(down_bias, static_cast<int64_t>(experts) * hidden, at("the biases of the experts", layer));
    if (shared_gate_up) {
        const int64_t inner = shared_down.inputs();
        check_matrix(shared_gate_up, gates(inner), hidden, at("the shared expert", layer));
        check_matrix(shared_down, hidden, inner, at("the shared expert", layer));
        if (shared_gate) check_matrix(shared_gate, 1, hidden, at("the shared expert's gate", layer));
    }
    for (const Norm* each : {&norm, &routed_norm, &shared_norm, &shared_post_norm, &post_norm})
        check_norm(*each, hidden, at("a norm of the experts", layer));
    if (shortcut) check_matrix(shortcut, hidden, hidden, at("the shortcut", layer));
}

void Experts::run(Run& run) const {
    const int64_t rows = run.active.count;
    require(run.experts_per_row > 0 && run.routed_rows == rows, at("the experts", layer) + " run before its router.");
    float* branch = run.activations->branch.take<float>(rows * run.hidden);
    read_stream(run, norm);
    const int64_t at_once = std::max<int64_t>(1, most_pairs / run.experts_per_row);
    for (int64_t first = 0; first < rows; first += at_once)
        chosen_experts(run, *this, first, std::min(at_once, rows - first), branch);
    norm_rows(run, routed_norm, branch, rows);
    read_stream(run, shared_norm);
    if (shared_gate_up && rows > 0) add_shared_expert(run, *this, branch);
    turn_rows(run, 0, rows, shortcut);
    add_branch(run, 0, rows, branch, post_norm, residual_scale, {});
    keep_hidden(run, layer);
}

}  // namespace ockham::ops
