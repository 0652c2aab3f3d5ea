"""Whether an approximate technique pays on a model, by rules that are the same for all."""

from __future__ import annotations

from ockham.lab.evidence.row import Row

LEAST_SAVED = 0.02
"""A technique that saves a smaller share saves nothing."""
LEAST_AGREEMENT = 0.9
"""Of the likeliest tokens, where no answers were compared."""
MOST_LOST = 0.15
"""Answers that may be lost before an interval that holds zero says nothing."""


def worth(row: Row) -> str:
    """Whether it pays: it saves something, and no loss of answers is seen. In words, and why."""
    if row.exact:
        return "pays" if row.saved >= LEAST_SAVED else "does not pay: it saves nothing here"
    if row.saved < LEAST_SAVED:
        return "does not pay: it saves nothing here"
    for interval, what in (
        (row.score_interval, "answers"),
        (row.later_interval, "answers to later questions"),
    ):
        if interval is not None and interval[1] < 0:
            return f"does not pay: it loses {what}, {-interval[1]:.0%} of them or more"
    # Of questions over one context, most are later ones.
    scores, interval = row.scores, row.score_interval
    if row.later_interval is not None:
        scores, interval = row.later_scores, row.later_interval
    if scores is not None and interval is not None:
        if scores[0] < 0.1:
            return "undecided: the model answers too few of these questions"
        if interval[0] < -MOST_LOST:
            return f"undecided: up to {-interval[0]:.0%} of the answers may be lost"
        return "pays: no loss of answers is seen"
    if row.fidelity is not None and row.fidelity.agreement < LEAST_AGREEMENT:
        changed = 1 - row.fidelity.agreement
        return f"does not pay: {changed:.0%} of the likeliest tokens change"
    if row.perplexity is not None and row.perplexity[1] > 1.05 * row.perplexity[0]:
        return "does not pay: perplexity rises by more than 5%"
    if row.fidelity is None and row.perplexity is None:
        return "undecided: what it changes was not compared"
    return "pays: little changes"
