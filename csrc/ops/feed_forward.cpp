#include "ops/feed_forward.h"

#include <algorithm>

#include "ops/checks.h"
#include "ops/fields.h"
#include "ops/gated.h"
#include "ops/product.h"
#include "ops/stream.h"
#include "program.h"
#include "run.h"

namespace ockham::ops {

namespace {

const Added added{"FeedForward", read<FeedForward>};

}  // namespace

FeedForward::FeedForward(const Fields& fields)
    : layer(fields.integer("layer")),
      gate_up(fields.dense("gate_up", true)),
      down(fields.dense("down", false)),
      activation(fields.activation("activation")),
      norm(fields.norm("norm")),
      gate_up_bias(fields.floats("gate_up_bias")),
      down_bias(fields.floats("down_bias")),
      gated(fields.flag("gated")),
      post_norm(fields.norm("post_norm")),
      stream_norm(fields.norm("stream_norm")),
      inner_norm(fields.norm("inner_norm")),
      shortcut(fields.optional_matrix("shortcut")),
      residual_scale(fields.number("residual_scale")),
      gate_scale(fields.number("gate_scale")) {}

void FeedForward::check(Program& program) const {
    const int64_t hidden = program.hidden, inner = down.inputs(), width = gated ? 2 * inner : inner;
    check_dense(program, gate_up, width, hidden, at("gate and up", layer));
    check_dense(program, down, hidden, inner, at("down", layer));
    check_norm(norm, hidden, at("the norm", layer));
    check_vector(gate_up_bias, width, at("the bias of gate and up", layer));
    check_vector(down_bias, hidden, at("the bias of down", layer));
    check_norm(post_norm, hidden, at("the post norm", layer));
    check_norm(stream_norm, hidden, at("the norm after the feed-forward", layer));
    check_norm(inner_norm, inner, at("the norm before down", layer));
    require(!inner_norm.centred, at("the norm before down", layer) + " must leave zeros as they are.");
    if (shortcut) check_matrix(shortcut, hidden, hidden, at("the shortcut", layer));
}

void FeedForward::run(Run& run) const {
    const int64_t hidden = run.hidden, inner = down.inputs();
    const int64_t used = run.leading ? run.leading : inner;
    const LeadingOutputs leading{inner, run.leading};
    Activations& own = *run.activations;
    for (int64_t first = 0; first < run.active.count; first += most_rows) {
        const int64_t rows = std::min(most_rows, run.active.count - first);
        // In the memory of the queries, which attention has read.
        float* gates = own.qkv.take<float>(rows * gate_up.outputs());
        product(run, gate_up, stream_rows(run, norm, first, rows), gates, gate_up_bias, first,
                leading);
        float* branch = own.branch.take<float>(rows * hidden);
        product(run, down,
                activated_rows(run, activation, gated, inner_norm, gates, inner, rows, used, gate_scale),
                branch, down_bias, first);
        turn_rows(run, first, rows, shortcut);
        add_branch(run, first, rows, branch, post_norm, residual_scale, stream_norm);
    }
    if (!run.unfinished) keep_hidden(run, layer);
}

}  // namespace ockham::ops
