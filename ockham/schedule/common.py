"""What several policies do alike."""

from __future__ import annotations

from collections.abc import Sequence

from ockham.core.seams import Candidate

MOST_WAITS = 64
"""Candidates in a step that are found to wait for another's prefix, before a policy gives up: many
may begin alike, and each look costs as much as reading its prompt."""


def share_rows(prefilling: Sequence[Candidate], budget: int) -> list[int]:
    """The oldest prompt gets half of the room and whatever the others leave; the rest goes to the
    others in order. So a short prompt behind a long one waits for a few steps and not for the whole
    of it, and the oldest always advances."""
    if not prefilling:
        return []
    needs = [candidate.remaining_prefill for candidate in prefilling]
    eldest = min(range(len(needs)), key=lambda i: prefilling[i].order)
    shares = [0] * len(needs)
    shares[eldest] = min(needs[eldest], budget - budget // 2)
    left = budget - shares[eldest]
    for i in sorted(range(len(needs)), key=lambda i: prefilling[i].order):
        more = min(needs[i] - shares[i], left) if i != eldest else 0
        shares[i] += more
        left -= more
    shares[eldest] += min(needs[eldest] - shares[eldest], left)
    return shares


def latest(running: Sequence[Candidate]) -> Candidate:
    """The one that arrived last."""
    return max(running, key=lambda candidate: candidate.order)
