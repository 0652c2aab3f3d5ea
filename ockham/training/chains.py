"""How well drafters foretell that guess one token after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ockham.lab.statistics import ratio_interval
from ockham.training.outputs import Written
from ockham.training.student import Scores, accepted_lengths

DRAFT_TOKENS = 4


def chain_scores(texts: Sequence[Written], logits: Callable[[Tensor], Tensor]) -> Scores:
    """For logits (1, T, V) of token ids (1, T): the share of the target's own tokens that is the
    likeliest, or one of the three likeliest; and how many of greedy drafts of four, one begun at
    each, are right up to the first that is not, on average."""
    right: list[int] = []
    among, tokens = 0, []
    accepted: list[int] = []
    drafts: list[int] = []
    for text in texts:
        said = torch.tensor(text.tokens[text.prompt :])
        if not len(said):
            continue
        best = logits(torch.tensor([text.tokens[:-1]]))[0, text.prompt - 1 :].topk(3).indices
        same = (best[:, 0] == said).tolist()
        right.append(sum(same))
        among += int((best == said[:, None]).any(1).sum())
        tokens.append(len(said))
        lengths = accepted_lengths(same, DRAFT_TOKENS)
        accepted.append(sum(lengths))
        drafts.append(len(lengths))
    return {
        "agreement": _share(sum(right), sum(tokens)),
        "agreement_interval": ratio_interval(right, tokens),
        "among_3": _share(among, sum(tokens)),
        "accepted": _share(sum(accepted), sum(drafts)),
        "accepted_interval": ratio_interval(accepted, drafts),
        "of": DRAFT_TOKENS,
        "tokens": sum(tokens),
    }


def _share(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0
