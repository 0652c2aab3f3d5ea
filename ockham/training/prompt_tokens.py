"""Parallel prompt decoding (arXiv:2405.18628, paper 65): trained inputs that stand after a token
and have the frozen target foretell what is further away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ockham.training.offsets import offset_scores
from ockham.training.outputs import Written
from ockham.training.student import Scores, Student, divergence
from ockham.training.target import Target, fast
from ockham.training.writing import write_draft

_SAMPLE_TOKENS = 256
_MOST_GROUPS = 96
"""Places of a row at which prompt tokens stand in training."""


class PromptTokenStudent(Student):
    """K embeddings, which start near the mean of the tokens' and learn in units of their size."""

    rate = 4e-2

    def __init__(self, target: Target, count: int, seed: int) -> None:
        super().__init__()
        self.target = target
        ids = torch.arange(_SAMPLE_TOKENS)[None] * (target.vocab_size // _SAMPLE_TOKENS or 1)
        with torch.no_grad():
            inputs = target.states(ids % target.vocab_size, [0])[0][0]
        self.register_buffer("mean", inputs.mean(0))
        self.register_buffer("scale", inputs.square().mean().sqrt())
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(count, target.hidden_size, generator=generator)
        self.offsets = nn.Parameter(0.5 * start)

    @property
    def embeddings(self) -> Tensor:
        """(K, d), as they stand in the residual stream."""
        mean, scale = self.get_buffer("mean"), self.get_buffer("scale")
        return mean + scale * self.offsets

    def states_after(self, ids: Tensor, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of rows (B, T), the last states (B, T, d), and those of the prompt tokens that stand
        after each of the places: (B, places, K, d).

        The rows are read once, without gradients; their keys and values then serve all groups, each
        of which sees its row up to its place, and itself.
        """
        from transformers import DynamicCache

        rows, length = ids.shape
        count, groups = len(self.offsets), len(places)
        cache = DynamicCache()
        with torch.no_grad():
            states = self.target.last_states(ids, past_key_values=cache, use_cache=True)
        at = torch.tensor(places)
        positions = (at[:, None] + 1 + torch.arange(count)).flatten()
        given = self.embeddings.repeat(rows, groups, 1)
        hook = self.target.layers[0].register_forward_pre_hook(_instead(given), with_kwargs=True)
        try:
            found = self.target.last_states(
                torch.zeros(rows, groups * count, dtype=torch.long),
                past_key_values=cache,
                use_cache=True,
                attention_mask=_visible(at, length, count).expand(rows, 1, -1, -1),
                position_ids=positions.expand(rows, -1),
            )
        finally:
            hook.remove()
        return states, found.view(rows, groups, count, -1)

    def loss(self, ids: Tensor, rng: np.random.Generator, source: str) -> Tensor:
        count = len(self.offsets)
        last = ids.shape[1] - count - 1
        chosen = rng.choice(last, min(_MOST_GROUPS, last), replace=False)
        places = sorted(int(place) for place in chosen)
        with fast():
            states, found = self.states_after(ids, places)
            # Number i after t foretells t + 2 + i; the target's logits for it stand at t + 1 + i.
            wanted = torch.tensor(places)[:, None] + 1 + torch.arange(count)
            with torch.no_grad():
                teacher = self.target.logits(states[:, wanted])
            return divergence(teacher, self.target.logits(found))

    @torch.no_grad()
    def scores(self, texts: Sequence[Written]) -> Scores:
        count = len(self.offsets)

        def foretold(text: Written) -> Tensor:
            best = torch.zeros(len(text.tokens), count, 3, dtype=torch.long)
            places = range(text.prompt - 1, len(text.tokens))
            _, found = self.states_after(torch.tensor([text.tokens]), places)
            best[text.prompt - 1 :] = self.target.logits(found[0]).topk(3).indices
            return best

        return offset_scores(texts, count, foretold)

    def write(self, directory: Path, trained: Scores) -> None:
        tensors = {"embeddings": self.embeddings}
        write_draft(directory, self.target, "prompt_tokens", tensors, trained)


def _instead(given: Tensor) -> Any:
    """A hook of the first layer that puts other states in the place of its inputs."""

    def hook(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if inputs:
            return (given.to(inputs[0].dtype), *inputs[1:]), named
        return inputs, {**named, "hidden_states": given.to(named["hidden_states"].dtype)}

    return hook


def _visible(places: Tensor, length: int, count: int) -> Tensor:
    """What is added to the scores of all groups' rows with the text's keys and their own: (groups *
    K, T + groups * K)."""
    groups = len(places)
    row_group = torch.arange(groups).repeat_interleave(count)
    number = torch.arange(count).repeat(groups)
    text = torch.arange(length) <= places[row_group][:, None]
    own = (row_group == row_group[:, None]) & (number <= number[:, None])
    seen = torch.cat([text, own], 1)
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
