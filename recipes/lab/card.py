"""The model card: what the shipped model is, how it was made, and what was measured."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

from recipes.lab.corpus import HELD_OUT_PER_MILLE
from recipes.lab.data import MIXTURES
from recipes.lab.evaluate import Score
from recipes.lab.plan import PLANS
from recipes.lab.skills import MIXTURES as SKILL_MIXTURES
from recipes.lab.train import Trainer

_HEADER = """\
---
language: [en]
library_name: transformers
pipeline_tag: text-generation
tags: [python, llama, tiny]
---

# The lab model

A small Llama that `ockham` carries, so that the engine can be run, tested and measured without a
download. It was trained from scratch by `recipes/lab` on two CPU cores.

It is **tiny**, and has no measurable skills yet. It writes text that looks like Python, indents and
closes what it opens, and names things the way the standard library does; what it writes is seldom
correct, and what it says about a function is not to be believed. Decoded greedily it soon repeats
itself; sample from it. It has not been tuned to follow instructions: it has only seen that
questions in ChatML are followed by answers. It was shown no tool calls, no fill-in-the-middle and
no thinking; their tokens are reserved, untrained. Few steps were made at its whole context: past
2,048 tokens it predicts worse than before.
"""

_SKILLED = """\
It is **tiny**. It was taught the tasks of `ockham/lab/tasks`, and a table below says how well it
does them. Beside them it writes text that looks like Python; what it says is not to be believed.
It was shown no tool calls, no fill-in-the-middle and no thinking; their tokens are reserved,
untrained.
"""
_HEADER_SKILLS = _HEADER.partition("It is **tiny**")[0] + _SKILLED


def skills_section(scores: Sequence[Mapping[str, Any]]) -> str:
    """A table of task scores: the ``scores`` of a report that ``ockham eval --json`` wrote."""
    rows = []
    for score in scores:
        if "score" not in score:  # texts, whose perplexity the card has already
            continue
        low, high = score["score_interval"]
        rows.append(
            f"| {score['source']} | {score.get('level') or 'all'} | {score['items']} | "
            f"{score['score']:.1%} | {low:.1%} to {high:.1%} |"
        )
    if not rows:
        return ""
    return f"""
## Skills

Measured by `ockham eval` on these weights with greedy decoding, on items of the test split; an
answer is right when a program says so. In the last column, 95% intervals.

| task | level | items | right | interval |
|---|---|---|---|---|
{chr(10).join(rows)}
"""


def card(
    trainer: Trainer,
    scores: Mapping[tuple[str, int], tuple[Score, float]],
    skills: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The card; ``scores`` has for (source, context) the score and its bits per byte, ``skills``
    the scores of tasks."""
    model, plan, streams, steps = trainer.model, trainer.plan, trainer.streams, trainer.step
    shape = model.shape
    rows = [
        f"| {source} | {context} | {score.perplexity:.2f} | {bits:.3f} | {score.tokens:,} |"
        for (source, context), (score, bits) in scores.items()
    ]
    phases = [
        f"| {phase.steps:,} | {phase.layers} | {phase.context:,} | {phase.mixture} | "
        f"{phase.steps * plan.tokens_of(phase) / 1e6:.1f} |"
        for phase in plan.phases
    ]
    sizes = ", ".join(f"{name} {len(stream):,}" for name, stream in streams.train.items())
    mixtures = "; ".join(
        f"*{mixture}*: "
        + ", ".join(f"{name} {share / sum(shares.values()):.0%}" for name, share in shares.items())
        for mixture, shares in {**MIXTURES, **SKILL_MIXTURES}.items()
        if any(phase.mixture == mixture for phase in plan.phases)
    )
    progress = (
        f"all {steps:,} steps"
        if steps == plan.steps
        else f"**unfinished: {steps:,} of {plan.steps:,} steps, the learning rate not yet lowered**"
    )
    reproducible = (
        "the same plan, corpus and tokenizer give the same weights on the same machine"
        if trainer.deterministic
        else "**not reproducible to the bit**: these weights were trained before the recipe made\n"
        "  the gradient of the embedding deterministic; training again gives slightly other weights"
    )
    start = (
        f"; the run started from the weights of the plan `{plan.start or 'lab'}` (SHA-256 "
        f"`{plan.start_sha256}`), whose run had read {PLANS[plan.start or 'lab'].tokens():,}"
        if plan.start_sha256
        else ""
    )
    grows = len({phase.layers for phase in plan.phases}) > 1
    growth = (
        "the model starts shallow and grows by stacking copies of its layers"
        if grows
        else "all of the model's layers, in contexts that grow"
    )
    return f"""{_HEADER if not skills else _HEADER_SKILLS}
## Architecture

Llama, {model.parameter_count():,} parameters: hidden {shape.hidden}, {shape.layers} layers, \
{shape.heads} heads of {shape.head_dim}, {shape.kv_heads} key and value heads, \
intermediate {shape.intermediate}, head tied to the embedding, context {shape.context_tokens:,}, \
rotary base {shape.rope_theta:,.0f}. Weights in bfloat16.

The tokenizer is byte-level BPE with {shape.vocab_size:,} entries: single digits, newlines and
indentation apart from words, 32 special tokens, no automatic first token. The chat template is
ChatML.

## Held-out text

Measured by `python -m recipes.lab export` on these weights, in float32, on disjoint windows of
text from files that training never read. *code* is the standard library without its tests, *prose*
is docstrings and pydoc's topics.

| text | context | perplexity per token | bits per byte | tokens |
|---|---|---|---|---|
{chr(10).join(rows)}

Docstrings, their functions and the library's idioms resemble each other across files, so held-out
text is easier than code from elsewhere.
{skills_section(skills)}
## Training

- **Data:** the standard library of Python {platform.python_version()}, less generated tables and
  repeated files; {HELD_OUT_PER_MILLE / 10:g}% of the files are held out, by a hash of their path.
  Tokens: {sizes}. *chat* is questions and answers made from functions and their docstrings.
  Rows of a batch, {mixtures}.
  Corpus SHA-256: `{streams.corpus_sha256}`.
- **Tokens read:** {plan.tokens(steps):,} ({progress}){start}.
- **Optimiser:** Muon at {plan.matrix_rate} for the layers' matrices, AdamW at {plan.vector_rate} \
for the embedding
  and the norms; {plan.warmup_steps} steps of warm-up, linear decay to zero over the last \
{plan.decay_steps:,};
  {plan.arithmetic}.
- **Seed:** {plan.seed}; {plan.note or reproducible + "."}
- **Phases:** {growth}.

| steps | layers | context | mixture | million tokens |
|---|---|---|---|---|
{chr(10).join(phases)}

The training text is under the licence of Python (PSF-2.0).
"""
