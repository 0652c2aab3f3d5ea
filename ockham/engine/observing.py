"""Deals the outputs of a step out to the drafters and splices that observe them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ockham.core.step import Step, StepOutput
from ockham.engine.batch import Part
from ockham.engine.sequence import Sequence, Status
from ockham.engine.speculation import Speculation
from ockham.engine.speculation.tree import ROOT


def tell_splices(parts: list[Part], output: StepOutput) -> None:
    """Give splices the attention scores that they asked for."""
    for part in parts:
        splicing = part.sequence.splicing
        if len(part.scored) and splicing is not None:
            splice = splicing.splice
            places = slice(part.first_score, part.first_score + len(part.scored))
            splice.observe(part.scored, [output.scores[layer][places] for layer in splice.layers])


def tell_likely(
    speculation: Speculation, step: Step, parts: list[Part], output: StepOutput
) -> None:
    """Give drafters the likeliest tokens of the step's rows, if they observe them."""
    if not output.candidates.size:
        return
    wanting = np.concatenate((step.wants_logits, step.wants_argmax))
    tokens, candidates = step.ids[wanting], output.candidates
    for part in parts:
        if part.samples:
            rows = part.sampling_rows(len(step.wants_logits))
            own, likely = tokens[rows], candidates[rows]
            if step.embedding_of is not None:  # what follows a mark follows no token
                read = step.embedding_of[wanting[rows]] < 0
                own, likely = own[read], np.ascontiguousarray(likely[read])
            speculation.streams.tell_likely(part.sequence, own, likely)


def tell_hidden(
    speculation: Speculation,
    layer: int,
    step: Step,
    parts: list[Part],
    reached: Mapping[Sequence, int],
    output: StepOutput,
) -> None:
    """Give drafters the hidden state, after `layer`, of the row that produced each sequence's
    newest token, and what the marks after that row found likely. The row is the part's last one,
    or the one that was `reached` of its draft."""
    hidden = output.hidden.get(layer)
    candidates = output.candidates if speculation.marks is not None else None
    if hidden is None and (candidates is None or not candidates.size):
        return
    for part in parts:
        if not part.samples or not part.head_rows or part.sequence.status is Status.FINISHED:
            continue
        rows = part.sampling_rows(len(step.wants_logits))
        at = reached.get(part.sequence, ROOT)
        stands = None if hidden is None else hidden[rows.start + 1 + at]
        guessed = None
        if part.draft is not None and candidates is not None:
            guessed = candidates[[rows.start + 1 + n for n in part.draft.marks_after(at)]]
        speculation.streams.tell_hidden(part.sequence, stands, guessed)
