"""How much of its attention each head of a model keeps by which rule: what `ockham calibrate`
writes, and which rules heads get for a budget. No technique lives here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from ockham.core.choices import LATEST, LINES, MEANS, RULES
from ockham.core.errors import InvalidRequest, ModelError
from ockham.core.seams import AttentionGroup
from ockham.core.visits import BLOCK_KEYS
from ockham.model.files.untrusted import read_object

VERSION = 1
SHARES = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)
"""Of the blocks that a row sees: what recalls are measured at."""

Place = tuple[int, int]
"""A layer, and one of its key-value heads."""
Rule = tuple[int, float]
"""One of `core.choices.RULES` by its number, and the share of blocks that it visits."""


class HeadRecall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one key-value head, `recall` is the share of its query heads' attention on the blocks that
    each rule visits, for each of the file's shares of blocks."""

    layer: int
    head: int
    recall: dict[str, tuple[float, ...]]


class HeadRecalls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file holds. Raises ModelError for what `ockham calibrate` did not write."""

    technique: str
    version: int
    stride: int
    """Of the rows that `lines` samples."""
    shares: tuple[float, ...]
    heads: tuple[HeadRecall, ...]
    calibrated: dict[str, Any] = {}
    """What was read, for people."""

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ModelError(
                f"it is of version {self.version}, and this Ockham reads version {VERSION}"
            )
        ascends = all(low < high for low, high in pairwise((0.0, *self.shares)))
        if not ascends or not self.shares or self.shares[-1] != 1.0:
            raise ModelError("its shares do not ascend to 1")
        if len({(each.layer, each.head) for each in self.heads}) < len(self.heads):
            raise ModelError("it names a head twice")
        for each in self.heads:
            if set(each.recall) != set(RULES) or any(
                len(of_rule) != len(self.shares) or not all(0.0 <= r <= 1.001 for r in of_rule)
                for of_rule in each.recall.values()
            ):
                raise ModelError(
                    f"head {each.head} of layer {each.layer} has no recall of each rule"
                )


def read_recalls(path: Path, technique: str) -> tuple[HeadRecalls, str]:
    """What a file holds, and a digest of it. Raises ModelError, with a sentence, for a file that
    cannot be read or is none of this technique's."""
    remedy = f"write one with `ockham calibrate {technique} MODEL FILE`."
    try:
        content = read_object(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    try:
        found = msgspec.convert(content, HeadRecalls, strict=False)
    except (msgspec.ValidationError, ModelError) as error:
        reason = str(error.__cause__ or error).rstrip(".")
        raise ModelError(f"{path} holds no recalls of heads: {reason}; {remedy}") from None
    if found.technique != technique:
        raise ModelError(f"{path} is of {found.technique!r}, not of {technique}; {remedy}")
    digest = hashlib.blake2b(msgspec.json.encode(found, order="sorted"), digest_size=8)
    return found, digest.hexdigest()


def check_heads(
    recalls: HeadRecalls, groups: Sequence[AttentionGroup], name: str, where: str
) -> None:
    """Raise InvalidRequest for heads of another model."""
    own = {
        (layer, head)
        for group in groups
        if group.window is None
        for layer in group.layers
        for head in range(group.kv_heads)
    }
    held = {(each.layer, each.head) for each in recalls.heads}
    if own != held:
        raise InvalidRequest(
            f"the heads in {where} are those of a model with {_counted(held)}, and this one has "
            f"{_counted(own)} without a window: write its own with `ockham calibrate {name} MODEL "
            f"FILE`, and start the engine with --attention-pattern {name}:heads=FILE.",
            name,
        )


def _counted(places: set[Place]) -> str:
    layers = {layer for layer, _ in places}
    return f"{len(layers)} layers and {len(places)} key-value heads in all"


def cost_of(rule: int, share: float, stride: int) -> float:
    """Pairs of a query and a key that are computed, as a share of all: those that are visited, and
    half of those that are only scored, to choose."""
    if share >= 1.0:
        return 1.0
    return share + {LATEST: 0.0, LINES: 1 / (2 * stride), MEANS: 1 / (2 * BLOCK_KEYS)}[rule]


def assigned(
    recalls: HeadRecalls, budget: float, skipped: frozenset[int] = frozenset()
) -> dict[Place, Rule]:
    """Which rule each head gets, and its share, so that heads cost a share `budget` of full
    attention on average and recall the most. Heads of the layers `skipped` are left out.

    Of each head the pairs (cost, recall) of all rules and shares have an upper convex hull. The
    steps along the hulls of all heads are taken in the order of what they gain for their cost; what
    does not pay for the next one makes the share of that head larger.
    """
    hulls = {
        (each.layer, each.head): _hull(each, recalls)
        for each in recalls.heads
        if each.layer not in skipped
    }
    found = {place: hull[0][2] for place, hull in hulls.items()}
    left = budget * len(hulls) - sum(hull[0][0] for hull in hulls.values())
    if left < 0:
        return dict.fromkeys(hulls, (LATEST, budget))
    steps = [
        (-(upper[1] - lower[1]) / (upper[0] - lower[0]), place, number)
        for place, hull in hulls.items()
        for number, (lower, upper) in enumerate(pairwise(hull))
    ]
    for _, place, number in sorted(steps):
        lower, upper = hulls[place][number : number + 2]
        cost = upper[0] - lower[0]
        if cost > left:
            rule, share = lower[2]
            found[place] = rule, share + left
            break
        found[place] = upper[2]
        left -= cost
    return found


_Point = tuple[float, float, Rule]


def _hull(head: HeadRecall, recalls: HeadRecalls) -> list[_Point]:
    """The upper convex hull of (cost, recall), from the cheapest point to the best one."""
    points: list[_Point] = sorted(
        (cost_of(rule, share, recalls.stride), recall, (rule, share))
        for rule, name in enumerate(RULES)
        for share, recall in zip(recalls.shares, head.recall[name], strict=True)
    )
    hull: list[_Point] = []
    for point in points:
        if hull and point[1] <= hull[-1][1]:
            continue
        if hull and point[0] == hull[-1][0]:
            hull.pop()
        while len(hull) > 1 and _slope(hull[-2], point) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull


def _slope(one: _Point, other: _Point) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])


def foretold(recalls: HeadRecalls, rules: Mapping[Place, Rule]) -> float:
    """The mean recall of heads with these rules, between the shares of the file by a line."""
    total = 0.0
    for each in recalls.heads:
        rule, share = rules.get((each.layer, each.head), (LATEST, 1.0))
        known = [(0.0, 0.0), *zip(recalls.shares, each.recall[RULES[rule]], strict=True)]
        for (low, less), (high, more) in pairwise(known):
            if low <= share <= high:
                total += less + (more - less) * (share - low) / (high - low)
                break
    return total / len(recalls.heads)
