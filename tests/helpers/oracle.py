"""Tiny random checkpoints made with transformers, the oracle of every architecture."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from ockham.core.config import EngineConfig
from ockham.model.loading import LoadedModel, load_model

torch.set_num_threads(1)

VOCABULARY = 101
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What every tiny configuration shares."""


@dataclass(frozen=True)
class Case:
    """A configuration to check: `<family>Config(**COMMON, **values)` and its causal model. Of a
    model of text and images the values are those of `<text>Config`, beside `<vision>Config`."""

    family: str
    values: dict[str, Any] = field(default_factory=dict)
    longest: int = 77
    max_model_len: int = 128
    model: str = ""
    text: str = ""
    vision: str = ""
    of_vision: dict[str, Any] = field(default_factory=dict)

    def build(self, seed: int = 0) -> Any:
        """The transformers model, in fp32, with random weights that make its logits vary."""
        model_class = getattr(transformers, self.model or f"{self.family}ForCausalLM")
        torch.manual_seed(seed)
        model = model_class._from_config(self._config(), attn_implementation="eager")
        return randomise(model.float().eval(), seed)

    def _config(self) -> Any:
        def config(family: str) -> Any:
            return getattr(transformers, f"{family}Config")

        own = config(self.text or self.family)(**{**COMMON, **self.values})
        if not self.text:
            return own
        vision = config(self.vision)(**self.of_vision)
        return config(self.family)(text_config=own, vision_config=vision)

    def prompts(self, seed: int = 0) -> list[list[int]]:
        """A ragged batch."""
        rng = np.random.default_rng(seed)
        lengths = (self.longest, 1, 17, 8, self.longest // 2)
        return [rng.integers(3, VOCABULARY, n).tolist() for n in lengths]


def randomise(model: Any, seed: int) -> Any:
    """Fill every parameter: matrices that keep the activations' size, norms and biases that
    differ from their neutral values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower() and parameter.ndim == 1:
                parameter.add_(0.3 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.5 * noise)
            else:
                sharp = ("q_proj", "k_proj", "qkv", "query", "key", "q_lin", "k_lin")
                gain = 3.0 if any(part in name for part in sharp) else 1.5
                parameter.copy_(noise * gain / parameter.shape[-1] ** 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.uniform_(0.5, 1.5, generator=generator)
            if name.endswith(("expert_bias", "e_score_correction_bias")):
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
    return model


def load(directory: Path, *, head: bool = True, **settings: Any) -> LoadedModel:
    """Load a checkpoint in fp32 with small pages and pools."""
    values = {"dtype": "float32", "max_num_seqs": 8, "max_num_batched_tokens": 64, "block_size": 4}
    return load_model(EngineConfig(model=str(directory), **{**values, **settings}), head=head)


def oracle_logits(model: Any, prompts: list[list[int]]) -> list[np.ndarray]:
    """Each prompt's: (T, V). What stands behind a prompt changes nothing in it: all are computed at
    once."""
    longest = max(map(len, prompts))
    padded = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts])
    with torch.no_grad():
        logits = model(input_ids=padded).logits.numpy()
    return [rows[: len(prompt)] for rows, prompt in zip(logits, prompts, strict=True)]


def assert_same_logits(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Differences below 1e-4 of the range of the logits."""
    spread = max(float(e.max() - e.min()) for e in expected)
    worst = max(float(np.abs(f - e).max()) for f, e in zip(found, expected, strict=True))
    assert spread > 1.0
    assert worst < 1e-4 * spread, f"{worst} of a range of {spread}"


def assert_greedy(model: Any, prompts: list[list[int]], answers: list[list[int]]) -> None:
    """Each token of the answers is the likeliest one, to 1e-4 of the logits' range."""
    texts = [[*prompt, *own] for prompt, own in zip(prompts, answers, strict=True)]
    every = oracle_logits(model, texts)
    allowed = 1e-4 * max(float(logits.max() - logits.min()) for logits in every)
    for prompt, answer, logits in zip(prompts, answers, every, strict=True):
        rows = logits[len(prompt) - 1 : -1]
        assert (rows.max(axis=1) - rows[np.arange(len(answer)), answer] < allowed).all()


@functools.cache
def longrope(factor_seed: int, pairs: int) -> tuple[list[float], list[float]]:
    """Random short and long factors."""
    rng = np.random.default_rng(factor_seed)
    return rng.uniform(1, 1.5, pairs).tolist(), rng.uniform(2, 8, pairs).tolist()
