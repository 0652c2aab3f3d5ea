"""The sampler of the reference backend: from logits to tokens, in the order that
`ockham.core.sampling_params` writes down.

Plain NumPy, one row at a time except for plain greedy rows. Two savings that cannot change a
result: Gumbel noise made of 32-bit words lies in [-3.14, 22.88], so a token whose scaled logit is
more than their difference below the largest can never win and draws no noise; and a sort for
`top_p` stops at the tokens that can be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ockham.core.arrays import Bits, Doubles, Floats, Ints, Longs
from ockham.core.errors import OckhamError
from ockham.core.noise import gumbel
from ockham.core.sampling_params import SamplingParams

Ids = Longs

NOISE_SPAN = 26.02
"""Largest minus smallest Gumbel noise of a 32-bit word: -ln(-ln(1 - 2^-33)) + ln(-ln(2^-33))."""
_TAIL = (
    20.0  # e^-20 of the likeliest token: below it a token matters to top_p only when p is near 1
)
NO_TOKENS: Ids = np.empty(0, np.int64)


@dataclass(slots=True)
class Draw:
    """One token to choose: from which row, for which parameters, with which noise.

    `position` is the index that the new token will have in its sequence. `forbidden` are ids that
    must not come now. Of `mask`, where there is one, token t is bit t % 32 of word t // 32: only
    those whose bit is set may come. `seen` are the distinct ids of prompt and output (repetition
    penalty); `output`, `output_counts` the distinct ids of the output and how often each came
    (frequency and presence penalties). The last three are needed only where a penalty is set.
    """

    row: int
    params: SamplingParams
    seed: int
    stream: int
    position: int
    forbidden: Sequence[int] = ()
    mask: Bits | None = None
    seen: Ids = field(default_factory=lambda: NO_TOKENS)
    output: Ids = field(default_factory=lambda: NO_TOKENS)
    output_counts: Ids = field(default_factory=lambda: NO_TOKENS)

    @property
    def plain_greedy(self) -> bool:
        """Whether the token is the argmax of the unprocessed logits."""
        p = self.params
        return (
            p.temperature == 0.0
            and not self.forbidden
            and self.mask is None
            and p.logit_bias is None
            and p.allowed_token_ids is None
            and p.repetition_penalty == 1.0
            and p.frequency_penalty == 0.0
            and p.presence_penalty == 0.0
        )


@dataclass(slots=True)
class Drawn:
    """The chosen token, or None where masks left no token to choose."""

    token: int | None


def sample(logits: Floats, draws: Sequence[Draw]) -> list[Drawn]:
    """Choose a token for each draw. logits: (L, vocabulary), not modified."""
    drawn = [Drawn(None)] * len(draws)
    plain = [i for i, draw in enumerate(draws) if draw.plain_greedy]
    if plain:
        rows = [draws[i].row for i in plain]
        chosen = (
            logits[rows].argmax(axis=1)
            if rows != list(range(len(logits)))
            else (logits.argmax(axis=1))
        )
        for i, row, token in zip(plain, rows, chosen.tolist(), strict=True):
            check_finite(logits[row, token : token + 1])
            drawn[i] = Drawn(token)
    for i, draw in enumerate(draws):
        if drawn[i].token is None and not draw.plain_greedy:
            drawn[i] = Drawn(_choose(process(logits[draw.row], draw), draw))
    return drawn


def process(row: Floats, draw: Draw) -> Doubles:
    """Steps 2 to 4: masks, bias and penalties. Returns a new row; masked tokens are -inf."""
    p = draw.params
    check_finite(row.max(keepdims=True))
    z = row.astype(np.float64)
    if p.allowed_token_ids is not None:
        kept = np.full_like(z, -np.inf)
        kept[p.allowed_token_ids] = z[p.allowed_token_ids]
        z = kept
    if draw.mask is not None:
        bits = np.unpackbits(draw.mask.astype("<u4", copy=False).view(np.uint8), bitorder="little")
        z[bits[: len(z)] == 0] = -np.inf
    if len(draw.forbidden):
        z[list(draw.forbidden)] = -np.inf
    if p.logit_bias is not None:
        z[list(p.logit_bias)] += np.array(list(p.logit_bias.values()))
    if p.repetition_penalty != 1.0 and len(draw.seen):
        seen = z[draw.seen]
        z[draw.seen] = np.where(seen > 0, seen / p.repetition_penalty, seen * p.repetition_penalty)
    if len(draw.output):
        z[draw.output] -= p.frequency_penalty * draw.output_counts + p.presence_penalty
    return z


def _choose(z: Doubles, draw: Draw) -> int | None:
    """Steps 5 to 7, for one processed row."""
    p = draw.params
    best = int(z.argmax())
    if z[best] == -np.inf:
        return None
    if p.greedy:
        return best
    z /= p.temperature
    ids = np.flatnonzero(z >= z[best] - NOISE_SPAN) if _unfiltered(p) else filtered(z, p)
    noise = gumbel(draw.seed, draw.stream, draw.position, ids)
    return int(ids[(z[ids] + noise).argmax()])


def _unfiltered(p: SamplingParams) -> bool:
    return p.min_p == 0.0 and p.top_k <= 0 and p.top_p >= 1.0


def filtered(z: Doubles, p: SamplingParams) -> Ids:
    """Ids that min_p, top_k and top_p keep, ascending. z: scaled logits."""
    largest = z.max()
    ids = np.flatnonzero(z >= largest + np.log(p.min_p) if p.min_p > 0.0 else z > -np.inf)
    if 0 < p.top_k < len(ids):
        values = z[ids]
        threshold = np.partition(values, len(ids) - p.top_k)[len(ids) - p.top_k]
        above, ties = ids[values > threshold], ids[values == threshold]
        ids = np.sort(np.concatenate([above, ties[: p.top_k - len(above)]]))
    if p.top_p < 1.0:
        ids = _top_p(z, ids, largest, p.top_p)
    return ids


def _top_p(z: Doubles, ids: Ids, largest: float, top_p: float) -> Ids:
    """The likeliest ids, up to and including the one at which their share reaches top_p."""
    target = top_p * np.exp(z[ids] - largest).sum()
    for candidates in (ids[z[ids] >= largest - _TAIL], ids):
        order = candidates[np.argsort(-z[candidates], kind="stable")]  # lowest id first on a tie
        cumulative = np.cumsum(np.exp(z[order] - largest))
        if cumulative[-1] >= target or candidates is ids:
            break
    return np.sort(order[: int(np.searchsorted(cumulative, target)) + 1])


def logprobs(
    logits: Floats, targets: Ints, top: int, also: list[int] | None = None
) -> list[dict[int, tuple[float, int]]]:
    """For each row: token -> (log probability, rank from 1), likeliest first.

    Holds the `top` likeliest tokens (lowest id first on a tie), the row's target, and the tokens of
    `also`. logits: (L, vocabulary); targets: (L,).
    """
    result = []
    for row, target in zip(logits, targets.tolist(), strict=True):
        largest = row.max()
        check_finite(np.array([largest]))
        log_sum = float(largest) + float(np.log(np.exp(row.astype(np.float64) - largest).sum()))
        ranked = _largest(row, top) if top else []
        entry = {t: (float(row[t]) - log_sum, rank + 1) for rank, t in enumerate(ranked)}
        if target not in entry:
            rank = int((row > row[target]).sum() + (row[:target] == row[target]).sum()) + 1
            entry[target] = (float(row[target]) - log_sum, rank)
        if also:
            ascending = np.sort(row)  # once for all of them, which a count for each is not
            for token in also:
                value = row[token]
                above = len(row) - int(np.searchsorted(ascending, value, "right"))
                rank = above + int((row[:token] == value).sum()) + 1
                entry.setdefault(token, (float(value) - log_sum, rank))
        result.append(entry)
    return result


def token_scores(logits: Floats, rows: Ints, tokens: Ints, top: int) -> Doubles:
    """How sure the model is of each token, after row `rows[i]` of the logits (L, vocabulary): its
    log probability; the confidence of the row, which is minus the mean log probability of its `top`
    likeliest tokens (Fu et al. 2025, arXiv:2508.15260); and the row's entropy in nats. (n, 3).
    """
    found = np.empty((len(rows), 3))
    for i, (row, token) in enumerate(zip(rows.tolist(), tokens.tolist(), strict=True)):
        values = logits[row].astype(np.float64)
        largest = values.max()
        check_finite(np.array([largest]))
        off = np.maximum(values - largest, -88.0)  # e to the power of less adds nothing
        e = np.exp(off)
        log_of_sum = float(np.log(e.sum()))
        log_sum = float(largest) + log_of_sum
        count = min(top, len(values))
        highest = np.partition(values, len(values) - count)[len(values) - count :]
        found[i] = (
            values[token] - log_sum,
            log_sum - float(highest.mean()),
            log_of_sum - float((off * e).sum() / e.sum()),
        )
    return found


def _largest(row: Floats, count: int) -> list[int]:
    """Ids of the `count` largest values, largest first, the lowest id first on a tie."""
    count = min(count, len(row))
    threshold = np.partition(row, len(row) - count)[len(row) - count]
    ids = np.flatnonzero(row >= threshold)
    order: list[int] = ids[np.argsort(-row[ids], kind="stable")][:count].tolist()
    return order


def check_finite(largest: Floats) -> None:
    """Raises OckhamError if the largest logit of any row is infinite or not a number."""
    for value in largest[~np.isfinite(largest)].tolist():
        raise OckhamError(
            f"the model produced a logit of {value}; its weights or its input are damaged."
        )
