"""How much of the attention to a whole text each key-value head needs (DuoAttention, Xiao et al.
2024, arXiv:2410.10819).

A head's output is mixed: alpha times its attention to all earlier tokens, and 1 - alpha times its
attention to the first few and the latest ones alone. The alphas are learned, by gradient descent,
so that the model's last hidden states stay what they are while the alphas are small. What is read
is what the other rules read: texts that are said again behind themselves, so that the rows which
count look far back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ockham.core.arrays import Floats
from ockham.core.errors import ModelError
from ockham.model.checkpoint.keep_files import ModelSizes
from ockham.training.keep_heads import Fitted
from ockham.training.keep_labels import HELD_OUT_TEXTS, Text
from ockham.training.target import fast, load_causal_model

Tell = Callable[[str], None]

SINKS = 4
"""First tokens that a streaming head sees in training."""
WINDOW_SHARE = 8
"""The latest tokens that it sees are the context's divided by that."""
RATE, PENALTY = 0.05, 0.05
"""Of the optimiser; of the mean alpha, beside the relative error of the last hidden states."""
START = 2.0
"""The logit of each alpha at the beginning: 0.88."""
MEASURED, RANDOM = 4, 3
"""Held-out texts that are measured on; random halves of the heads that they are measured with."""
NAME = "ockham_mixed"
TOLD = 10


class Mixed:
    """A model of transformers whose attention is mixed."""

    def __init__(self, path: Path, sizes: ModelSizes, window: int) -> None:
        """Raises ModelError if its attention cannot be replaced."""
        self._model = load_causal_model(path)
        self._decoder = self._model.get_decoder()
        self._sizes, self._window = sizes, window
        self._alphas: Tensor | None = None
        self._seen = 0
        """How many layers' attention was mixed in the latest pass."""

    def states(self, tokens: Sequence[int], first: int, alphas: Tensor | None) -> Tensor:
        """The last hidden states (n, d) of the rows from `first` on, after the final norm, of heads
        with the alphas (layers, kv_heads); None for those of the model itself."""
        self._alphas, self._seen = alphas, 0
        with _attending(self._model, self._attend), fast():
            found: Tensor = self._decoder(input_ids=torch.tensor([tokens]), use_cache=False)[0]
        if self._seen != self._sizes.layers:
            raise ModelError(
                f"of {self._sizes.layers} layers, transformers let {self._seen} be mixed; this "
                "architecture cannot be trained for."
            )
        return found[0, first:].float()

    def _attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """As transformers calls it: queries (1, heads, T, width), keys and values
        (1, kv_heads, T, width)."""
        unusual = [name for name in ("softcap", "s_aux") if others.get(name) is not None]
        if unusual:
            raise ModelError(f"its attention has {unusual[0]}, which training cannot mix.")
        self._seen += 1
        group, length = query.shape[1] // key.shape[1], query.shape[2]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)

        def attention(mask: Tensor | None) -> Tensor:
            found: Tensor = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling
            )
            return found

        whole = attention(attention_mask)
        if self._alphas is not None:
            alpha = self._alphas[int(getattr(module, "layer_idx", 0))].to(query.dtype)
            alpha = alpha.repeat_interleave(group)[:, None, None]
            near = _near(length, self._window)
            if attention_mask is not None:
                near = near & attention_mask
            whole = alpha * whole + (1.0 - alpha) * attention(near)
        return whole.transpose(1, 2), None


def _near(length: int, window: int) -> Tensor:
    """(T, T): whether the row of a streaming head sees the key."""
    places = torch.arange(length)
    back = places[:, None] - places[None, :]
    return (back >= 0) & ((back < window) | (places[None, :] < SINKS))


@contextmanager
def _attending(model: Any, attend: Callable[..., Any]) -> Iterator[None]:
    """Let a model's layers attend so."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def alphas(
    path: Path,
    sizes: ModelSizes,
    texts: Sequence[Text],
    context: int,
    steps: int,
    seed: int,
    tell: Tell,
) -> Fitted:
    """The alphas (layers, kv_heads) of a checkpoint's heads, each above 0 and below 1, and how far
    its last hidden states are off where half of the heads stream. Raises ModelError for a model
    that transformers cannot load, or whose attention it does not let be replaced."""
    torch.manual_seed(seed)
    window = max(1, context // WINDOW_SHARE)
    model = Mixed(path, sizes, window)
    known = [text for n, text in enumerate(texts) if n % HELD_OUT_TEXTS != HELD_OUT_TEXTS - 1]
    held_out = texts[HELD_OUT_TEXTS - 1 :: HELD_OUT_TEXTS][:MEASURED] or texts[-1:]
    logits = nn.Parameter(torch.full((sizes.layers, sizes.kv_heads), START))
    optimiser = torch.optim.Adam([logits], RATE)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, RATE / 10)
    rng = Random(f"alphas {seed}")
    for step in range(steps):
        text = rng.choice(known)
        found = torch.sigmoid(logits)
        error = _error(model, text, found)
        loss = error + PENALTY * found.mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        rates.step()
        if (step + 1) % TOLD == 0:
            tell(
                f"step {step + 1} of {steps}: error {error.item():.4f}, mean alpha "
                f"{found.mean().item():.3f}"
            )
    with torch.no_grad():
        learned: Floats = torch.sigmoid(logits).numpy().astype(np.float32)
        return Fitted({"alphas": learned}, _scores(model, held_out, learned, window, seed))


def _error(model: Mixed, text: Text, found: Tensor) -> Tensor:
    """The squared error of the last hidden states behind the context, over their own square."""
    with torch.no_grad():
        wanted = model.states(text.tokens, text.context, None)
    given = model.states(text.tokens, text.context, found)
    return (given - wanted).square().mean() / wanted.square().mean()


def _scores(
    model: Mixed, texts: Sequence[Text], learned: Floats, window: int, seed: int
) -> dict[str, Any]:
    """The errors with the half of the heads streaming whose alphas are lowest, and with halves
    drawn at random."""
    half = learned.size // 2
    order = np.argsort(learned, axis=None, kind="stable")
    rng = np.random.default_rng(seed)

    def error(streaming: Any) -> float:
        whole = torch.ones(learned.size)
        whole[torch.from_numpy(np.ascontiguousarray(streaming))] = 0.0
        each = [_error(model, text, whole.view(learned.shape)).item() for text in texts]
        return sum(each) / len(each)

    drawn = [error(rng.permutation(learned.size)[:half]) for _ in range(RANDOM)]
    return {
        "held_out_tokens": sum(len(text.tokens) - text.context for text in texts),
        "alphas": np.round(learned, 3).tolist(),
        "order": " ".join(f"{n // learned.shape[1]}/{n % learned.shape[1]}" for n in order),
        "window": window,
        "error_lowest_half": round(error(order[:half]), 4),
        "error_random_half": round(sum(drawn) / RANDOM, 4),
        "error_all": round(error(order), 4),
    }
