"""How often a drafter says what the lab model would: what speculative decoding lives on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ockham import LLM, SamplingParams
from ockham.lab.statistics import Interval, ratio_interval
from recipes.lab.data import Tokens
from recipes.lab.model import LabModel
from recipes.lab.outputs import continuations

DRAFT_TOKENS = 4
_CONTEXT, _LONG_CONTEXT = 512, 2048
_TOKENS_AT_ONCE = 4096
_PROMPT_TOKENS, _CONTINUED_TOKENS, _CONTINUED_WINDOWS = 128, 128, 96

Agreed = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Agreement:
    """``text``: the share of positions of held-out text at which the likeliest tokens are the same,
    in windows of 512 tokens. ``late``: the same at the positions from 512 on of windows of 2,048.
    ``greedy``: the share of tokens of the lab model's own greedy continuations that it foretells.
    ``accepted``: of greedy drafts of `DRAFT_TOKENS` tokens, begun at any position of these
    continuations, how many are what it writes, up to the first that is not."""

    text: float
    text_interval: Interval | None
    positions: int
    late: float | None
    late_interval: Interval | None
    """None where the text has no such window."""
    greedy: float
    greedy_interval: Interval | None
    accepted: float
    accepted_interval: Interval | None
    drafts: int


def agreed(model: LabModel, drafter: LabModel, rows: npt.NDArray[np.int64]) -> Agreed:
    """For token ids (N, T), whether the likeliest next tokens are the same: (N, T)."""
    return likeliest(model, rows) == likeliest(drafter, rows)


@torch.no_grad()
def likeliest(model: LabModel, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """After each of token ids (N, T), the likeliest next: (N, T)."""
    parts = torch.split(torch.from_numpy(rows), max(1, _TOKENS_AT_ONCE // rows.shape[1]))
    return torch.cat([model(part).argmax(-1) for part in parts]).numpy()


def accepted(same: Agreed, draft_tokens: int = DRAFT_TOKENS) -> npt.NDArray[np.int64]:
    """From whether each token (N, T) of a continuation was foretold, the length (N, T - draft + 1)
    of the accepted part of a draft that begins at each: a draft that is right so far is the
    continuation itself, so that its next token is foretold or not as in the continuation."""
    runs = np.zeros(same.shape, np.int64)
    for ahead in reversed(range(draft_tokens)):
        shifted = np.roll(same, -ahead, axis=1)
        runs = np.where(shifted, runs + 1, 0)
    return runs[:, : same.shape[1] - draft_tokens + 1]


def measure_agreement(
    model: LabModel, drafter: LabModel, folder: Path, stream: Tokens
) -> Agreement:
    """On a held-out stream; ``folder`` holds the lab model, whose continuations Ockham writes."""
    windows = _windows(stream, _CONTEXT)
    text = agreed(model, drafter, windows)
    long = _windows(stream, _LONG_CONTEXT)
    late = _share(agreed(model, drafter, long)[:, _CONTEXT:]) if len(long) else (None, None)
    continued = min(_CONTINUED_WINDOWS, len(windows))
    chosen = windows[np.linspace(0, len(windows) - 1, continued).astype(int)]
    prompts = chosen[:, :_PROMPT_TOKENS].tolist()
    llm = LLM(str(folder), max_num_batched_tokens=2048, kv_cache_memory_bytes=1 << 29)
    params = SamplingParams(temperature=0.0, max_tokens=_CONTINUED_TOKENS, ignore_eos=True)
    rows = np.array(continuations(llm, prompts, params))
    same = (likeliest(drafter, rows[:, :-1]) == rows[:, 1:])[:, _PROMPT_TOKENS - 1 :]
    lengths = accepted(same)
    return Agreement(*_share(text), text.size, *late, *_share(same), *_share(lengths), lengths.size)


def _windows(stream: Tokens, context: int) -> npt.NDArray[np.int64]:
    """Disjoint windows (N, context)."""
    return stream[: len(stream) // context * context].reshape(-1, context).astype(np.int64)


def _share(counts: npt.NDArray[np.bool_ | np.int64]) -> tuple[float, Interval | None]:
    """The mean, with an interval over rows."""
    hits: Sequence[float] = counts.sum(1).tolist()
    return float(counts.mean()), ratio_interval(hits, [counts.shape[1]] * len(hits))
