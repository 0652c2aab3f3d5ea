"""Narrower feed-forwards and experts: which channels stay, and what the others' loss is made up
for with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from ockham.core.arrays import Doubles, Floats, Longs
from ockham.core.errors import ConfigError
from ockham.core.seams import FeedForwardNames, Inputs, Rewritable

Scores = Mapping[str, Doubles]
"""What the removal of each channel would cost, (I,), by the name of a `down` matrix."""

DAMPING = 0.01
"""Of the mean of the moments' diagonal, added to it."""


class WidthOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`share` of all channels is removed, in steps of `multiple` in each feed-forward. With `even`
    each gives the same share; else those go whose channels matter least, and widths become unequal.
    With `compensate`, what is left of `down` is fitted to what all of it gave on the text."""

    share: float = 0.2
    multiple: int = 32
    even: bool = False
    compensate: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"share must be above 0 and below 1, got {self.share}.")
        if self.multiple < 1:
            raise ConfigError(f"multiple must be at least 1, got {self.multiple}.")


def feed_forwards(model: Rewritable) -> dict[str, FeedForwardNames]:
    """Every feed-forward, by the name of its `down`; of a mixture, every routed expert: there a
    shared expert, and layers without experts, keep their width."""
    found = [each for block in model.blocks for each in block.feed_forwards]
    routed = [each for each in found if each.number is not None]
    return {each.down: each for each in routed or found}


def width_of(whole: int, keep: float, multiple: int) -> int:
    """The width of a feed-forward of which the share `keep` stays, in steps of `multiple`: one step
    at least, and at most the `whole`."""
    return min(whole, max(1, round(keep * whole / multiple)) * multiple)


def choose(scores: Scores, options: WidthOptions) -> dict[str, Longs]:
    """The channels that stay, in their order, by `down`. Raises ConfigError if nothing can go."""
    step, total = options.multiple, sum(map(len, scores.values()))
    kept = {name: len(own) for name, own in scores.items()}
    if options.even:
        for name, own in scores.items():
            kept[name] = width_of(len(own), 1 - options.share, step)
    else:
        left = total
        for _, name in _steps(scores, step):
            if left - step < (1 - options.share) * total - step / 2:
                break
            left -= kept[name] - _below(kept[name], step)
            kept[name] = _below(kept[name], step)
    if sum(kept.values()) == total:
        raise ConfigError(
            f"{options.share:.0%} of the channels cannot be removed in steps of {step}: give a "
            "larger share or a smaller multiple."
        )
    return {
        name: np.sort(np.argsort(-own, kind="stable")[: kept[name]]) for name, own in scores.items()
    }


def _below(width: int, step: int) -> int:
    """The next smaller multiple."""
    return (width - 1) // step * step


def _steps(scores: Scores, step: int) -> list[tuple[float, str]]:
    """Every step that may be taken, from the one that costs least: of one feed-forward a later step
    never costs less than an earlier one, as its channels go from the least."""
    found = []
    for name, own in scores.items():
        ascending, width, first = np.sort(own), len(own), 0
        while _below(width, step) > 0:
            last = first + width - _below(width, step)
            found.append((float(ascending[first:last].sum()), name))
            width, first = _below(width, step), last
    return sorted(found, key=lambda each: each[0])


def narrow(
    model: Rewritable, kept: Mapping[str, Longs], moments: Mapping[str, Inputs], compensate: bool
) -> dict[str, Any]:
    """Keep these channels only, and say so in config.json. `moments` are those of the inputs of
    `down` matrices, where they are fitted. Gives the card's facts."""
    before = after = 0
    for name, channels in kept.items():
        down = model.get(name)
        before, after = before + down.shape[1], after + len(channels)
        if len(channels) == down.shape[1]:
            continue
        fitted = down[:, channels]
        if compensate and name in moments:
            fitted = compensated(down, moments[name].moments, channels)
        reorder(model, name, channels)
        model.put(name, fitted)
    _say_widths(model)
    return {"channels": [before, after]}


def reorder(model: Rewritable, name: str, channels: Longs) -> None:
    """Put these channels of the feed-forward of a `down`, in this order, in the place of all."""
    part = feed_forwards(model)[name]
    model.put(name, model.get(name)[:, channels])
    for row in (part.gate, part.up, part.gate_bias, part.up_bias):
        if row is not None:
            model.put(row, model.get(row)[channels])


def compensated(down: Floats, moments: Floats, channels: Longs) -> Floats:
    """The matrix (D, kept) whose products with the kept inputs are closest, over the text, to those
    of `down` (D, I) with all: W M[:, kept] M[kept, kept]^-1, M the inputs' second moments, damped
    (the optimum of Optimal Brain Surgeon for a set, Hassibi and Stork 1993)."""
    wide = moments.astype(np.float64)
    wide[np.diag_indices_from(wide)] += DAMPING * wide.diagonal().mean() + 1e-12
    own, across = wide[np.ix_(channels, channels)], wide[:, channels]
    fitted: Floats = np.linalg.solve(own, across.T @ down.T.astype(np.float64)).T.astype(np.float32)
    return fitted


def _say_widths(model: Rewritable) -> None:
    """Put what widths there are now into config.json."""
    own = feed_forwards(model)
    widths = [
        [model.get(each.down).shape[1] for each in block.feed_forwards if each.down in own]
        for block in model.blocks
    ]
    routed = any(each.number is not None for each in own.values())
    model.set_widths([layer for layer in widths if layer], routed)


def sort_channels(model: Rewritable, what: str) -> None:
    """Put the channels of every feed-forward that add most to the output on a text first, by values
    times weights (`value_scores`). `what` names who reads the text."""
    inputs = read_inner(model, what, list(feed_forwards(model)))
    for name, scores in value_scores(model, inputs).items():
        reorder(model, name, np.argsort(-scores, kind="stable"))


def magnitudes(model: Rewritable) -> dict[str, Doubles]:
    """The product of the norms of each channel's rows and column, by `down`."""
    found = {}
    for name, part in feed_forwards(model).items():
        score = np.square(model.get(name).astype(np.float64)).sum(axis=0)
        for row in (part.gate, part.up):
            if row is not None:
                score = score * np.square(model.get(row).astype(np.float64)).sum(axis=1)
        found[name] = np.sqrt(score)
    return found


def read_inner(model: Rewritable, what: str, names: Sequence[str]) -> dict[str, Inputs]:
    """What `down` matrices multiply on the text, by name."""
    wanted = set(names)
    return {
        name: inputs
        for reading in model.read(what)
        for name, inputs in reading.inputs.items()
        if name in wanted
    }


def value_scores(model: Rewritable, inputs: Mapping[str, Inputs]) -> dict[str, Doubles]:
    """By `down`, the sum of a_k^2 |w_k|^2 over a text: of what a channel k adds to the output,
    squared. 0 where no row came."""
    scores = {}
    for name in feed_forwards(model):
        down, found = model.get(name).astype(np.float64), inputs.get(name)
        own = np.zeros(down.shape[1]) if found is None else found.moments.diagonal()
        scores[name] = own.astype(np.float64) * np.square(down).sum(axis=0)
    return scores
