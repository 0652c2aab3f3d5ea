"""A small model with the target's vocabulary, trained to say what the target would (FastDraft,
arXiv:2411.11055, paper 238): first on text as it is, then on the target's distributions over what
the target itself wrote."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ockham.core.errors import ConfigError
from ockham.training.chains import chain_scores
from ockham.training.outputs import Written
from ockham.training.student import TEXT, Scores, Student, divergence, drawn_part
from ockham.training.target import Target, fast, load_causal_model
from ockham.training.writing import give_usual_mode

SHARE = 10
"""The target has so many times the parameters, unless told otherwise."""
_DEPTH = 4
_LEAST_LAYERS = 2
_HEAD_DIMS = (64, 32)
_CAUTIOUS = 0.2
"""The last norm at the start, where the head is the embedding: 1 would be sure of every token."""
_COPIED = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "generation_config.json"),
)


@dataclass(frozen=True, slots=True)
class DraftShape:
    """Sizes of a draft model: a Llama whose head is its embedding."""

    vocab_size: int
    hidden_size: int
    layers: int

    @property
    def head_dim(self) -> int:
        return next((dim for dim in _HEAD_DIMS if self.hidden_size % (2 * dim) == 0), 16)

    @property
    def heads(self) -> int:
        return max(1, self.hidden_size // self.head_dim)

    @property
    def kv_heads(self) -> int:
        return next(n for n in (4, 3, 2, 1) if (self.heads % n == 0 and n < self.heads) or n == 1)

    @property
    def intermediate_size(self) -> int:
        return 2 * self.hidden_size

    @property
    def parameters(self) -> int:
        d, inner = self.hidden_size, self.intermediate_size
        attention = 2 * d * self.head_dim * (self.heads + self.kv_heads)
        return self.vocab_size * d + self.layers * (attention + 3 * d * inner + 2 * d) + d


def choose_shape(
    vocab_size: int,
    parameters: int,
    target_layers: int,
    layers: int | None = None,
    hidden_size: int | None = None,
) -> DraftShape:
    """A tenth of a target of so many parameters: few layers, because each takes its time one after
    the other, and as wide as fits, in steps of 32. What is given is kept.

    Raises ConfigError for a hidden size that is not a multiple of 16.
    """
    layers = layers or max(_LEAST_LAYERS, target_layers // _DEPTH)
    if hidden_size is not None:
        if hidden_size % 16:
            raise ConfigError(f"hidden_size must be a multiple of 16, got {hidden_size}.")
        return DraftShape(vocab_size, hidden_size, layers)
    width = 32
    while DraftShape(vocab_size, width + 32, layers).parameters <= parameters / SHARE:
        width += 32
    return DraftShape(vocab_size, width, layers)


class DraftModelStudent(Student):
    """The draft model. `model` is one of transformers, and is what is written."""

    text_share = 0.5

    def __init__(self, target: Target, model: Any) -> None:
        super().__init__()
        self.target = target
        self.model: Any = model.requires_grad_(True).train()
        # Entries of a matrix are the smaller, the wider it is.
        self.rate = min(4e-3, 0.5 / model.config.hidden_size)

    @classmethod
    def new(cls, target: Target, shape: DraftShape, seed: int) -> DraftModelStudent:
        """One of random layers, and an embedding made from the target's."""
        from transformers import LlamaConfig, LlamaForCausalLM

        ids: dict[str, Any] = {
            name: getattr(target.config, name, None)
            for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        }
        config = LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            max_position_embeddings=target.config.max_position_embeddings,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            **ids,
        )
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
        own = target.model.get_input_embeddings().weight
        with torch.no_grad():
            if shape.hidden_size < target.hidden_size:
                model.model.embed_tokens.weight.copy_(narrowed(own, shape.hidden_size))
            model.model.norm.weight.fill_(_CAUTIOUS)
        return cls(target, model)

    @classmethod
    def going_on(cls, target: Target, start: Path) -> DraftModelStudent:
        """A draft model that was trained before: it knows the language, and reads only what the
        target wrote. Raises ConfigError for another vocabulary."""
        student = cls(target, load_draft_model(target, start))
        student.text_share = 0.0
        return student

    def loss(self, ids: Tensor, rng: np.random.Generator, source: str) -> Tensor:
        inputs = ids[:, :-1]
        part = drawn_part(inputs, self.target.vocab_size, rng)
        with fast():
            states = self.model.model(input_ids=inputs, use_cache=False).last_hidden_state
            learned = self.model.lm_head(states[:, part])
            if source == TEXT:
                said = ids[:, 1:][:, part]
                return F.cross_entropy(learned.flatten(0, 1).float(), said.flatten())
            with torch.no_grad():
                teacher = self.target.logits(self.target.last_states(inputs)[:, part])
        return divergence(teacher, learned)

    def optimisers(self, rate: float) -> dict[str, torch.optim.Optimizer]:
        """Muon for the layers' matrices, at four times the rate of AdamW for the rest."""
        named = list(self.model.model.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "layers" in name]
        others = [p for name, p in named if p.ndim != 2 or "layers" not in name]
        return {
            "matrices": torch.optim.Muon(matrices, lr=4 * rate, weight_decay=0.02, momentum=0.95),
            "others": torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
        }

    @torch.no_grad()
    def scores(self, texts: Sequence[Written]) -> Scores:
        return chain_scores(texts, lambda ids: self.model(input_ids=ids, use_cache=False).logits)

    def write(self, directory: Path, trained: Scores) -> None:
        from transformers import AutoModelForCausalLM

        whole = AutoModelForCausalLM.from_config(self.model.config)  # type: ignore[no-untyped-call]
        whole.load_state_dict(self.model.state_dict())
        whole.to(torch.bfloat16).save_pretrained(directory)
        for path in directory.glob("*.safetensors"):
            give_usual_mode(path)
        copy_tokenizer(self.target.path, directory)


def load_draft_model(target: Target, path: Path) -> Any:
    """A draft model of the target, in PyTorch. Raises ConfigError for another vocabulary."""
    model = load_causal_model(path)
    if model.config.vocab_size != target.vocab_size:
        raise ConfigError(
            f"{path} has {model.config.vocab_size} tokens, and the target {target.vocab_size}: a "
            "draft model has the target's tokenizer."
        )
    return model


def copy_tokenizer(source: Path, directory: Path) -> None:
    """The tokenizer's files of a checkpoint."""
    for name in _COPIED:
        if (source / name).exists():
            shutil.copy(source / name, directory / name)


@torch.no_grad()
def narrowed(embedding: Tensor, width: int) -> Tensor:
    """Rows of an embedding (V, D) in the `width` directions in which they vary the most: what is
    left of the products of rows is the most that so few can keep. (V, width)"""
    rows = embedding.double()
    _, directions = torch.linalg.eigh(rows.T @ rows)
    kept: Tensor = (rows @ directions[:, -width:]).float()
    return kept
