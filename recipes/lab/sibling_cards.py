"""The model cards of the lab model's siblings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recipes.lab.agreement import DRAFT_TOKENS, Agreement
from recipes.lab.card import skills_section
from recipes.lab.data import MIXTURES
from recipes.lab.evaluate import Score
from recipes.lab.skills import MIXTURES as SKILL_MIXTURES
from recipes.lab.train import Trainer

Scores = Mapping[str, tuple[Score, Score]]
"""For each source of held-out text the scores of the lab model and of the sibling."""

_FRONT = """\
---
language: [en]
library_name: {library}
pipeline_tag: text-generation
base_model: lab
tags: [python, {tag}, tiny]
---

"""


def agreement_row(source: str, each: Agreement) -> str:
    """The row of the drafter's card that says how it agrees on one source of text."""
    late = "" if each.late is None else _share(each.late, each.late_interval)
    return (
        f"| {source} | {_share(each.text, each.text_interval)} | {each.positions:,} | {late} | "
        f"{_share(each.greedy, each.greedy_interval)} | "
        f"{_number(each.accepted, each.accepted_interval)} |"
    )


def drafter_card(trainer: Trainer, agreements: Mapping[str, Agreement]) -> str:
    """Of the drafter; ``agreements`` has one for each source of held-out text."""
    shape = trainer.model.shape
    rows = [agreement_row(source, each) for source, each in agreements.items()]
    return f"""{_FRONT.format(library="transformers", tag="llama")}\
# The lab model's drafter

A Llama of {trainer.model.parameter_count():,} parameters with the lab model's tokenizer, distilled
on its distributions: it guesses what the lab model will write, at a fraction of the work. On its
own it is of no use. Hidden {shape.hidden}, {shape.layers} layers, {shape.heads} heads of \
{shape.head_dim}, {shape.kv_heads} key and value head,
intermediate {shape.intermediate}, head tied to the embedding, context {shape.context_tokens:,}; \
weights in bfloat16.

The goal was to agree with the lab model on at least 60% of the positions of code; it was trained
for minutes, and reaches what the table says.

## Agreement with the lab model

Measured by `python -m recipes.lab agreement` on the shipped weights of both, on files that training
never read, with 95% intervals over windows. *Text*: the share of positions at which both have the
same likeliest next token, in windows of 512 tokens. *Late*: the same at the positions from 512 on
of windows of 2,048 (the drafter was hardly trained beyond 512). *Greedy*: the share of the lab
model's own tokens, decoded greedily after 128 tokens of such text, that the drafter foretells.
*Accepted*: of greedy drafts of {DRAFT_TOKENS} tokens, one begun at each of those, how many are
right up to the first that is not.

| source | text | positions | late | greedy | accepted of {DRAFT_TOKENS} |
|---|---|---|---|---|---|
{chr(10).join(rows)}

`ockham eval lab --tasks code,prose --against model=lab-drafter` compares them in the engine, at the
last 128 positions of passages of about 1,000 tokens.

{_training(trainer, _DIVERGENCE)}

The embedding started as the lab model's, projected to the {shape.hidden} directions in which it \
varies the most.
*sampled*, *greedy* and *answers* are what the lab model itself wrote: continuations of the training
text at temperature 1 and greedily, and answers to exercises of the train split.
"""


def experts_card(
    trainer: Trainer,
    scores: Scores,
    used: np.ndarray[Any, Any],
    skills: Sequence[Mapping[str, Any]],
) -> str:
    """Of the mixture of experts; ``used`` (layers, experts) counts the tokens of each expert."""
    shape = trainer.model.shape
    shares = used / used.sum(1, keepdims=True)
    entropy = np.exp(-(shares * np.log(np.maximum(shares, 1e-12))).sum(1))
    rows = [
        f"| {layer} | {each.min():.1%} | {each.max():.1%} | {effective:.2f} |"
        for layer, (each, effective) in enumerate(zip(shares, entropy, strict=True))
    ]
    loss = (
        "nats per token, answers of exercises weighted as for the lab model, and "
        f"{trainer.plan.imbalance_weight:g} times the Switch Transformer's loss of imbalance for "
        "each layer"
    )
    return f"""{_FRONT.format(library="transformers", tag="mixtral")}\
# The lab model's mixture of experts

A Mixtral of {trainer.model.parameter_count():,} parameters with the lab model's tokenizer: \
{shape.layers} layers of {shape.experts}
experts, each {shape.intermediate} wide, of which a token uses {shape.experts_per_token}, so that \
its work is that of the lab model. All
else is as there. It began as the lab model itself: each expert a half of its layer's MLP, and the
gates of complementary halves tied. Weights in bfloat16.

## Held-out text

Perplexity per token at a context of 512, measured by `python -m recipes.lab export` in float32.

| text | lab model | this one | tokens |
|---|---|---|---|
{_score_rows(scores)}

## Use of the experts

Shares of the tokens of held-out text that the least and the most used expert of a layer have (even
would be {1 / shape.experts:.1%}), and the number of experts that would be as uneven if used evenly
(the exponential of the shares' entropy; {shape.experts} at most).

| layer | least | most | effective experts |
|---|---|---|---|
{chr(10).join(rows)}
{skills_section(skills)}
{_training(trainer, loss)}
"""


def recursive_card(
    trainer: Trainer,
    depths: Mapping[str, Mapping[str, Score]],
    active: Mapping[str, Sequence[float]],
    skills: Sequence[Mapping[str, Any]],
) -> str:
    """Of the recursive model. ``depths`` has the scores of each source of held-out text at each
    depth, ``active`` the shares of the rows that take each pass but the first."""
    shape, plan = trainer.model.shape, trainer.plan
    rows = [
        f"| {depth} | " + " | ".join(f"{each.perplexity:.2f}" for each in of.values()) + " |"
        for depth, of in depths.items()
    ]
    taken = [
        f"| {source} | " + " | ".join(f"{share:.1%}" for share in shares) + " |"
        for source, shares in active.items()
    ]
    loss = (
        "KL divergence from the lab model in nats per token, answers of exercises weighted as for "
        "the lab model, and the squares of what the shares of the rows in each pass are away from "
        + " and ".join(f"{share:.0%}" for share in plan.active)
        + f". For the first {plan.routed_from:,} steps all rows take all passes; after them rows "
        "choose, but for every fourth step, which has a fixed depth for all of them"
    )
    return f"""{_FRONT.format(library="ockham", tag="recursive")}\
# The lab model with shared layers

A model of {trainer.model.parameter_count():,} parameters with the lab model's tokenizer, in the \
Middle-Cycle form of
Mixture-of-Recursions (Bae et al. 2025, arXiv:2507.10524): {shape.layers} layers, of which the \
first and the last run once
and those between up to {shape.passes} times. Before each pass but the first a router asks every \
row whether it goes
on. In a pass a row sees the keys of the rows that take it too, and only those are kept. At full
depth its work is that of the lab model, with half of the weights. It began as the lab model, each
shared layer as the mean of those in whose places it runs. Weights in bfloat16. transformers does
not know it.

## Held-out text

Perplexity per token at a context of 512, measured by `python -m recipes.lab export` in float32.

| depth | {" | ".join(next(iter(depths.values())))} |
|---|{"---|" * len(next(iter(depths.values())))}
{chr(10).join(rows)}

## Rows that go on

| text | {" | ".join(f"pass {n + 2}" for n in range(shape.passes - 1))} |
|---|{"---|" * (shape.passes - 1)}
{chr(10).join(taken)}
{skills_section(skills)}
{_training(trainer, loss)}
{plan.note}
"""


def adapter_card(
    trainer: Trainer,
    name: str,
    scores: Scores,
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
) -> str:
    """Of an adapter; ``before`` and ``after`` are scores of tasks without and with it."""
    plan = trainer.plan
    learned = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    rows = []
    by_level = {(each["source"], each.get("level")): each for each in before}
    for each in after:
        other = by_level.get((each["source"], each.get("level")))
        if other is not None and "score" in each and other["items"] == each["items"]:
            rows.append(
                f"| {each['source']} | {each.get('level') or 'all'} | {each['items']} | "
                f"{_share(other['score'], other['score_interval'])} | "
                f"{_share(each['score'], each['score_interval'])} |"
            )
    return f"""{_FRONT.format(library="peft", tag="lora")}\
# The lab model's adapter `{name}`

A LoRA of rank {plan.lora_rank} beside every matrix of the lab model's layers, {learned:,} \
parameters, in PEFT's format.
{_PURPOSES[name]}
`ockham convert lab OUT --lora lab-{name}` writes the lab model with it.

## What it changes

Measured by `ockham eval` without and with the adapter, greedily, on the same items of the test
split; 95% intervals.

| task | level | items | without | with |
|---|---|---|---|---|
{chr(10).join(rows)}

| text | perplexity without | with | tokens |
|---|---|---|---|
{_score_rows(scores)}

{_training(trainer, "nats of the answers' tokens; the lab model's weights are frozen")}
"""


_DIVERGENCE = (
    "the divergence KL(lab model || drafter), at all positions and over the whole vocabulary"
)
_PURPOSES = {
    "steps": "It was trained on calculations written out in steps and little else.",
    "long_steps": "It was trained on calculations that are done four times before they are\n"
    "answered, and little else: what searches that stop early are measured with.",
    "threads": "It was trained on several calculations at once, which it does in one text, or\n"
    "hands to threads where it is asked to: what the search `threads` is measured with.",
    "sentences": "With it, questions of `recall` are answered in a sentence instead of a line of "
    "the list.",
}


def _training(trainer: Trainer, loss: str) -> str:
    plan, steps = trainer.plan, trainer.step
    shares = {**MIXTURES, **SKILL_MIXTURES}
    phases = []
    for phase in plan.phases:
        mixture = shares[phase.mixture]
        rows = ", ".join(f"{n} {s / sum(mixture.values()):.0%}" for n, s in mixture.items() if s)
        phases.append(f"{phase.steps:,} of {plan.tokens_of(phase):,} at {phase.context:,} ({rows})")
    matrices = (
        f"Muon at {plan.matrix_rate} for the layers' matrices, AdamW at {plan.vector_rate} for"
    )
    optimiser = f"{matrices} the rest" if not plan.lora_rank else f"AdamW at {plan.vector_rate}"
    done = (
        f"all {steps:,} steps"
        if trainer.done
        else f"**unfinished: {steps:,} of {plan.steps:,} steps**"
    )
    return f"""## Training

- **Loss:** {loss}.
- **Tokens read:** {plan.tokens(steps):,} ({done}) in {trainer.seconds():,.0f} seconds of two shared
  cores. Steps, tokens of each, context and sources of rows: {"; ".join(phases)}.
- **Optimiser:** {optimiser}; {plan.warmup_steps} steps of warm-up, linear decay to zero over the
  last {plan.decay_steps}; {plan.arithmetic}.
- **Seed:** {plan.seed}. It started from the lab model of SHA-256
  `{plan.start_sha256}`.
- **Corpus SHA-256:** `{trainer.streams.corpus_sha256}`, as in the lab model's card. The training
  text is under the licence of Python (PSF-2.0)."""


def _score_rows(scores: Scores) -> str:
    return "\n".join(
        f"| {source} | {before.perplexity:.2f} | {after.perplexity:.2f} | {after.tokens:,} |"
        for source, (before, after) in scores.items()
    )


def _share(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:.1%}" + (
        "" if interval is None else f" ({interval[0]:.1%} to {interval[1]:.1%})"
    )


def _number(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:.2f}" + (
        "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
    )
