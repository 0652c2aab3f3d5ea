"""How well drafters foretell that guess several tokens at once, each without knowing the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ockham.lab.statistics import ratio_interval
from ockham.training.outputs import Written
from ockham.training.student import Scores

BEST = 3


def offset_scores(
    texts: Sequence[Written], count: int, foretold: Callable[[Written], Tensor]
) -> Scores:
    """For tokens (T, count, 3) that are foretold at each position of a text, number i for the one
    that stands 2 + i further on, the likeliest first: the share of the target's own tokens that is
    the first of them, or one of the three, by offset; and how many of `count` first ones are right
    up to the first that is not, on average.
    """
    first, among, places = [0] * count, [0] * count, [0] * count
    accepted: list[float] = []
    drafts: list[float] = []
    for text in texts:
        guesses = foretold(text).tolist()
        runs = begun = 0
        # A draft begins after each token of the answer but those that too little comes after.
        for t in range(text.prompt - 1, len(text.tokens) - 1):
            right = []
            for i, best in enumerate(guesses[t]):
                if t + 2 + i < len(text.tokens):
                    token = text.tokens[t + 2 + i]
                    places[i] += 1
                    first[i] += best[0] == token
                    among[i] += token in best
                    right.append(best[0] == token)
            if len(right) == count:
                begun += 1
                runs += right.index(False) if False in right else count
        accepted.append(runs)
        drafts.append(begun)
    return {
        "first_by_offset": [_share(n, of) for n, of in zip(first, places, strict=True)],
        f"among_{BEST}_by_offset": [_share(n, of) for n, of in zip(among, places, strict=True)],
        "accepted": _share(sum(accepted), sum(drafts)),
        "accepted_interval": ratio_interval(accepted, drafts),
        "of": count,
        "tokens": places[0],
    }


def _share(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0
