"""A block that foretells the token after the next one (multi-token prediction, DeepSeek-V3,
arXiv:2412.19437), for a model that was trained without one."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ockham.core.errors import ModelError
from ockham.model.checkpoint.draft_files import WEIGHTS_FILE
from ockham.model.draft_heads.mtp import MTP_NAMES
from ockham.model.program.description import describe, read_config
from ockham.training.chains import chain_scores
from ockham.training.outputs import Written
from ockham.training.student import Scores, Student, divergence, drawn_part
from ockham.training.target import Target, fast
from ockham.training.writing import write_draft

_SECOND = 0.5
"""The weight of the loss of a second token, drafted by what the block itself passes on."""


class MtpStudent(Student):
    """A copy of the target's last layer behind a matrix that joins embedding and hidden state; it
    learns the target's distributions of the token after the next one.

    In training a second token's rows see each other, and not the rows of the tokens before.
    """

    def __init__(self, target: Target) -> None:
        """Raises ModelError for a target whose layers are of several kinds."""
        super().__init__()
        kinds = set(getattr(target.config, "layer_types", None) or ())
        if kinds - {"full_attention"}:
            raise ModelError(
                f"{target.path} has layers of the kinds {', '.join(sorted(kinds))}; a block is "
                "trained for models whose layers all attend to the whole text."
            )
        d = target.hidden_size
        self.rate = min(3e-3, 0.5 / d)  # entries of a matrix are the smaller, the wider it is
        self.target = target
        self.layer = copy.deepcopy(target.layers[-1]).requires_grad_(True)
        self.norm = copy.deepcopy(target.norm).requires_grad_(True)
        self.embedding_norm = copy.deepcopy(target.norm).requires_grad_(True)
        self.hidden_norm = copy.deepcopy(target.norm).requires_grad_(True)
        neutral = 1.0 - describe(read_config(target.path)).architecture.norm_offset
        for each in (self.embedding_norm, self.hidden_norm):
            nn.init.constant_(each.weight, neutral)  # type: ignore[arg-type]
        ids = torch.arange(min(256, target.vocab_size))[None]
        with torch.no_grad():
            found = target.states(ids, [0, len(target.layers)])
            sizes = [found[n].square().mean().sqrt() for n in (0, len(target.layers))]
        self.join = nn.Parameter(torch.cat([size * torch.eye(d) for size in sizes], 1))

    def foretelling(self, ids: Tensor, carried: Tensor) -> Tensor:
        """What is passed on by rows of tokens (B, T), of what was carried from the row before each,
        (B, T, d): the target's head reads it."""
        embedded = self.target.model.get_input_embeddings()(ids)
        both = torch.cat([self.embedding_norm(embedded), self.hidden_norm(carried)], -1)
        passed: Tensor = self.norm(self._through(ids, both @ self.join.T))
        return passed

    def loss(self, ids: Tensor, rng: np.random.Generator, source: str) -> Tensor:
        target = self.target
        with fast():
            with torch.no_grad():
                states = target.last_states(ids)
                carried = target.norm(states)
            first = self.foretelling(ids[:, 1:], carried[:, :-1])
            second = self.foretelling(ids[:, 2:], first[:, :-1])
            # Row j of `first` foretells token j + 2, row j of `second` token j + 3.
            part = drawn_part(ids[:, 2:], 3 * target.vocab_size, rng)
            with torch.no_grad():
                teacher = target.logits(states[:, part.start + 1 : part.stop + 2])
            losses = [
                divergence(teacher[:, place : place + part.stop - part.start], target.head(each))
                for place, each in enumerate((first[:, part], second[:, part]))
            ]
        return (losses[0] + _SECOND * losses[1]) / (1.0 + _SECOND)

    @torch.no_grad()
    def scores(self, texts: Sequence[Written]) -> Scores:
        def logits(ids: Tensor) -> Tensor:
            carried = self.target.norm(self.target.last_states(ids))
            found: Tensor = self.target.head(self.foretelling(ids[:, 1:], carried[:, :-1]))
            return nn.functional.pad(found, (0, 0, 1, 0))

        return chain_scores(texts, logits)

    def write(self, directory: Path, trained: Scores) -> None:
        names = MTP_NAMES[0]
        tensors = {names.block + name: weight for name, weight in self.layer.named_parameters()} | {
            f"{names.join}.weight": self.join,
            f"{names.embedding_norm}.weight": self.embedding_norm.weight,
            f"{names.hidden_norm}.weight": self.hidden_norm.weight,
            f"{names.norm}.weight": self.norm.weight,
        }
        write_draft(directory, self.target, "mtp", tensors, trained)  # type: ignore[arg-type]
        (directory / WEIGHTS_FILE).rename(directory / "model.safetensors")
        shutil.copyfile(self.target.path / "config.json", directory / "config.json")

    def _through(self, ids: Tensor, x: Tensor) -> Tensor:
        """The stream behind the layer, of the stream x before it, with the positions and the mask
        that the target's decoder gives its layers."""
        found: list[Tensor] = []

        def instead(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if given:
                return (x, *given[1:]), named
            return given, {**named, "hidden_states": x}

        def keep(_: nn.Module, given: tuple[Any, ...]) -> None:
            found.append(given[0])

        decoder, own = self.target.decoder, self.target.decoder.layers
        hooks: list[Callable[[], None]] = [
            self.layer.register_forward_pre_hook(instead, with_kwargs=True).remove,
            self.target.norm.register_forward_pre_hook(keep).remove,
        ]
        decoder.layers = nn.ModuleList([self.layer])
        try:
            decoder(input_ids=ids, use_cache=False)
        finally:
            decoder.layers = own
            for remove in hooks:
                remove()
        return found[0]
