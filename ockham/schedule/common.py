"""How the rows of a step are divided among prompts."""

from __future__ import annotations

from collections.abc import Sequence

from ockham.core.seams import Candidate


def share_rows(prefilling: Sequence[Candidate], budget: int) -> list[int]:
    """Rows of a step for each prompt: tenants get equal shares, and what one does not need goes to
    the others. Of a tenant's share its oldest prompt gets half, and the others divide the rest
    equally: the oldest always advances, and a short prompt is done within a few steps, however
    long those before it are. A step of fewer rows than tenants serves those whose prompts are the
    oldest."""
    of: dict[str, list[int]] = {}
    for i in sorted(range(len(prefilling)), key=lambda i: prefilling[i].order):
        of.setdefault(prefilling[i].tenant, []).append(i)
    groups = list(of.values())[:budget]  # those of the oldest prompts
    needs = [candidate.remaining_prefill for candidate in prefilling]
    shares = [0] * len(needs)
    rooms = _level([sum(needs[i] for i in own) for own in groups], budget)
    for own, room in zip(groups, rooms, strict=True):
        eldest, others = own[0], own[1:]
        first = min(needs[eldest], room - room // 2)
        for i, rows in zip(others, _level([needs[i] for i in others], room - first), strict=True):
            shares[i] = rows
        shares[eldest] = room - sum(shares[i] for i in others)
    return shares


def _level(needs: Sequence[int], room: int) -> list[int]:
    """`room` divided equally, but no more to anyone than is needed; the sum is `room`, or that of
    all needs. Odd rows go to those that need least."""
    shares = [0] * len(needs)
    order = sorted(range(len(needs)), key=lambda i: needs[i])
    for place, i in enumerate(order):
        shares[i] = min(needs[i], -(-room // (len(order) - place)))
        room -= shares[i]
    return shares
