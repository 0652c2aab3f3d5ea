"""EAGLE-3 heads (arXiv:2503.01840), in the layout of their authors and SpecForge, or in that of
speculators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ockham.core.arrays import Floats, Ints
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.core.seams import Linear, Role
from ockham.kernels.ops import AttentionInput, Embed, Head, Norm, Program
from ockham.kernels.ops.dense import normed
from ockham.model.checkpoint.safetensors_source import SafetensorsSource
from ockham.model.draft_heads.head import LAYER, NORM, BlockWeights, DraftHead, Product, layouts_of
from ockham.model.files.safetensors import Checkpoint
from ockham.model.hub import DRAFTERS, resolve
from ockham.model.loading import LoadedModel, choose_packer
from ockham.model.program.compile import compile_program
from ockham.model.program.description import ModelDescription, describe, read_config
from ockham.model.program.weights import Part, Weights

EAGLE3 = ("LlamaForCausalLMEagle3", "Eagle3Speculator", "Eagle3LlamaForCausalLM")
"""What config.json names under `architectures`."""
_IDS = "eagle_aux_hidden_state_layer_ids"
_MIDDLE = "midlayer."


@dataclass(frozen=True, slots=True)
class Eagle3:
    """Three hidden states of the model's row, joined by a matrix, are carried to the next row, and
    from a row of the head its own hidden state. `norm` is there where the residual stream begins
    with what was normed."""

    join: Product
    norm: Norm | None

    def carry(self, states: Sequence[Floats]) -> Floats:
        return self.join(np.concatenate(states, axis=1))

    def inputs(self, tokens: Ints, carried: Floats) -> Floats:
        return normed(carried, self.norm)

    def passed(self, x: Floats) -> Floats:
        return x


@dataclass(frozen=True, slots=True)
class Eagle3Config:
    """What a head's config.json says beside its layer: how many tokens it knows, after which of the
    model's layers it reads hidden states, and whether it norms what it adds to."""

    layer: Mapping[str, Any]
    tokens: int
    layers: tuple[int, ...]
    norm_before_residual: bool


def read_eagle3(directory: Path, own: ModelDescription) -> Eagle3Config:
    """Raises ConfigError for what is no such head, or one of another model."""
    config = read_config(directory)
    if not set(config.get("architectures") or ()) & set(EAGLE3):
        raise ConfigError(
            f"{directory} is no EAGLE-3 head: its config.json names "
            f"{config.get('architectures')!r}, and not {' or '.join(EAGLE3)}."
        )
    nested = config.get("transformer_layer_config")
    layer: dict[str, Any] = nested if isinstance(nested, dict) else config
    vocabulary = layer.get("vocab_size")
    if vocabulary != own.vocab_size:
        raise ConfigError(
            f"{directory} was made for a model of {vocabulary} tokens, and this one has "
            f"{own.vocab_size}: name a head of this model."
        )
    return Eagle3Config(
        layer,
        int(config.get("draft_vocab_size") or own.vocab_size),
        _layers(config, own.layers, directory),
        bool(config.get("norm_before_residual", nested is not None)),
    )


def load_eagle3(
    config: EngineConfig, own: LoadedModel, model: str | None, context: int, pages: int
) -> DraftHead:
    """The head in the directory `model`, with state in so many pages; its rows see `context`
    tokens. Raises ConfigError if it is none, or one of another model, ModelError if it is damaged,
    DoesNotFit if there is no memory for it."""
    if model is None:
        raise ConfigError(
            'the method "eagle3" needs a "model", the directory of a head that was made for this '
            'model: {"method": "eagle3", "model": "DIR"}.'
        )
    directory = DRAFTERS.get(model) or resolve(model)
    if not directory.is_dir():
        raise ConfigError(f"{model} is a file; an EAGLE-3 head is a directory.")
    head = read_eagle3(directory, own.description)
    with_norms = _has_query_norm(directory)
    base = "Qwen3ForCausalLM" if with_norms else "LlamaForCausalLM"
    described = describe(
        {
            **head.layer,
            "architectures": [base],
            "num_hidden_layers": 1,
            "tie_word_embeddings": False,
            "sliding_window": None,
        }
    )
    described = replace(
        described,
        architecture=replace(
            described.architecture,
            prefixes=("",),
            heads=("lm_head.weight",),
            attention_norm="hidden_norm",
        ),
        windows=(context,),
    )
    source = SafetensorsSource(directory, head.layer, described)
    longest = own.plan.max_model_len
    try:
        packer = choose_packer(config, dict(head.layer), source, own.backend.layout)
        measured = source.measure(packer)
        _compile(described, measured, head, own, longest)
        layouts = layouts_of(described, own, pages, measured.bytes)
        program, arithmetic = _compile(described, source.load(packer), head, own, longest)
    finally:
        source.close()
    size = described.hidden_size
    tokens = _tokens(directory, head.tokens, own.description.vocab_size)
    return DraftHead(program, layouts, head.layers, arithmetic, longest, directory, size, tokens)


def _compile(
    described: ModelDescription,
    weights: Weights,
    head: Eagle3Config,
    own: LoadedModel,
    longest: int,
) -> tuple[Program, Eagle3]:
    embed, of_own = own.program.ops[0], own.program.ops[-1]
    assert isinstance(embed, Embed), "a program begins so"
    assert isinstance(of_own, Head), "a model that generates ends so"
    size, wide = described.hidden_size, own.description.hidden_size
    table = embed.table
    if size != wide:
        shape = (own.description.vocab_size, size)
        table = weights.linear([Part("embed_tokens.weight", shape, 0, shape[0])], "embedding")
    out = of_own.out
    if head.tokens != own.description.vocab_size or weights.has("lm_head.weight"):
        shape = (head.tokens, size)
        out = weights.linear([Part("lm_head.weight", shape, 0, head.tokens)], "head")
    middle = weights.has(f"{_MIDDLE}hidden_norm.weight")
    renamed = {LAYER: _MIDDLE if middle else LAYER, NORM: NORM}
    shared = ("embed_tokens.weight", "lm_head.weight")
    block = _WideWeights(weights, renamed, shared, table, out)
    program = compile_program(described, block, longest)

    def norm(name: str) -> Norm:
        values = block.vector([(f"{LAYER}{name}.weight", (size,))])
        return Norm(values, described.norm_eps)

    count = len(head.layers)
    join = weights.linear([Part("fc.weight", (size, count * wide), 0, size)], "qkv")
    before = head.norm_before_residual
    joined = program.ops[1]
    assert isinstance(joined, AttentionInput), "its only layer begins so"
    beside = replace(
        joined,
        beside=table,
        beside_norm=norm("input_layernorm"),
        norm=None if before else joined.norm,
    )
    program = replace(program, ops=(program.ops[0], beside, *program.ops[2:]))
    return program, Eagle3(partial(own.backend.multiply, join), joined.norm if before else None)


@dataclass(frozen=True, slots=True)
class _WideWeights(BlockWeights):
    """Those of a head, whose queries, keys and values read the token beside the hidden state."""

    def linear(self, parts: Sequence[Part], role: Role) -> Linear:
        if role == "qkv":
            parts = [replace(p, shape=(p.shape[0], 2 * p.shape[1])) for p in parts]
        return BlockWeights.linear(self, parts, role)


def default_layers(layers: int) -> tuple[int, ...]:
    """The layers after which hidden states are read where nothing is said: before the third layer,
    the middle one and the third last."""
    return 1, layers // 2 - 1, layers - 4


def _has_query_norm(directory: Path) -> bool:
    checkpoint = Checkpoint(directory)
    try:
        return any(name.endswith("q_norm.weight") for name in checkpoint.tensors)
    finally:
        checkpoint.close()


def _tokens(directory: Path, count: int, vocabulary: int) -> Ints | None:
    """The model's ids of the head's tokens: `d2t` holds what each differs by."""
    if count == vocabulary:
        return None
    checkpoint = Checkpoint(directory)
    try:
        offsets = checkpoint.read(checkpoint.find("d2t", (count,), ("I64", "I32")))
    finally:
        checkpoint.close()
    found = offsets.astype(np.int64) + np.arange(count)
    beyond = found[(found < 0) | (found >= vocabulary)]
    if len(beyond):
        raise ModelError(
            f"tensor 'd2t' of {directory} names the token {beyond[0]}, beyond a vocabulary of "
            f"{vocabulary}."
        )
    return found.astype(np.int32)


def _layers(config: Mapping[str, Any], layers: int, directory: Path) -> tuple[int, ...]:
    """The layers after which hidden states are read.

    Ids in `eagle_config` are of layers whose outputs are meant, others of those whose inputs are;
    see `default_layers` for what is read where nothing is said.
    """
    nested = config.get("eagle_config")
    if isinstance(nested, dict) and nested.get(_IDS):
        found = [int(layer) for layer in nested[_IDS]]
    else:
        ids = config.get(_IDS)
        found = [int(n) - 1 for n in ids] if ids else list(default_layers(layers))
    if not all(-1 <= layer < layers for layer in found):
        raise ConfigError(
            f"{directory} reads hidden states after the layers {found}, counted from 0, and the "
            f"model has {layers} layers: name a head of this model."
        )
    return tuple(found)
