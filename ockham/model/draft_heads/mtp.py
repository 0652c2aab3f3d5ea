"""Blocks that checkpoints ship for drafting (multi-token prediction)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from ockham.core.arrays import Floats, Ints
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.seams import Linear
from ockham.kernels.ops import Embed, Head, Norm, Program
from ockham.kernels.ops.dense import normed
from ockham.model.checkpoint.converted import ConvertedSource
from ockham.model.checkpoint.opening import OpenedModel, open_model
from ockham.model.checkpoint.sources import Source
from ockham.model.draft_heads.head import LAYER, NORM, BlockWeights, DraftHead, Product, layouts_of
from ockham.model.hub import DRAFTERS, resolve
from ockham.model.loading import LoadedModel, choose_packer
from ockham.model.program.compile import compile_program
from ockham.model.program.description import ModelDescription
from ockham.model.program.rope_scaling import rescale
from ockham.model.program.weights import Part, Weights


@dataclass(frozen=True, slots=True)
class MtpNames:
    """Where a checkpoint has a block for the token after the next one (DeepSeek-V3,
    arXiv:2412.19437): x = join [embedding_norm(e); hidden_norm(h)], then a decoder layer, a norm,
    and the head of the model. `{n}` stands for the number of the model's layers.

    Where `layers` begins the names of several layers, before their numbers from 0, each of them is
    attention, or a feed-forward, alone, and `{last}` stands for the number of the last."""

    block: str
    join: str
    embedding_norm: str
    hidden_norm: str
    norm: str
    layers: str | None = None

    def of(self, model: ModelDescription) -> MtpNames | None:
        """Those of a model's block; None if this is no form of the model's."""
        if model.architecture.single != (self.layers is not None):
            return None
        stated = [getattr(self, each.name) for each in fields(self)]
        count = str(model.layers)
        return MtpNames(*(name and name.replace("{n}", count) for name in stated))


MTP_NAMES = (
    # Qwen3-Next, Qwen 3.5
    MtpNames(
        "mtp.layers.0.",
        "mtp.fc",
        "mtp.pre_fc_norm_embedding",
        "mtp.pre_fc_norm_hidden",
        "mtp.norm",
    ),
    # DeepSeek-V3, GLM-4.5 and 4.7, and all of them in GGUF files
    MtpNames(
        "model.layers.{n}.",
        "model.layers.{n}.eh_proj",
        "model.layers.{n}.enorm",
        "model.layers.{n}.hnorm",
        "model.layers.{n}.shared_head.norm",
    ),
    # Nemotron-H
    MtpNames(
        "mtp.layers.0.",
        "mtp.layers.0.eh_proj",
        "mtp.layers.0.enorm",
        "mtp.layers.0.hnorm",
        "mtp.layers.{last}.final_layernorm",
        layers="mtp.layers.",
    ),
)


@dataclass(frozen=True, slots=True)
class Mtp:
    """See `MtpNames`. h is what the model's head reads, and behind the block what its own does."""

    table: Linear
    scale: float
    final_norm: Norm | None
    embedding_norm: Norm
    hidden_norm: Norm
    join: Product
    norm: Norm | None

    def carry(self, states: Sequence[Floats]) -> Floats:
        return normed(states[0], self.final_norm)

    def inputs(self, tokens: Ints, carried: Floats) -> Floats:
        embedded = self.table.rows(tokens) * np.float32(self.scale)
        beside = normed(carried, self.hidden_norm)
        return self.join(np.concatenate([normed(embedded, self.embedding_norm), beside], axis=1))

    def passed(self, x: Floats) -> Floats:
        return normed(x, self.norm)


@dataclass(frozen=True, slots=True)
class Block:
    """A block that a checkpoint has: its names, and what it is as a model of one layer."""

    names: MtpNames
    described: ModelDescription


@dataclass(frozen=True, slots=True)
class CompiledBlock:
    """A block's program, and what stands before it."""

    program: Program
    embedding_norm: Norm
    hidden_norm: Norm
    join: Linear


def load_mtp(
    config: EngineConfig, own: LoadedModel, model: str | None, context: int, pages: int
) -> DraftHead:
    """The block of the checkpoint `model`, or of the model's own, with state in so many pages; its
    rows see `context` tokens. Raises ConfigError if there is none, or one of another model,
    ModelError if it is damaged, DoesNotFit if there is no memory for it."""
    directory = own.directory if model is None else DRAFTERS.get(model) or resolve(model)
    opened = open_model(directory)
    source = _source_of_block(opened)
    try:
        _check_sizes(opened.description, own.description, directory)
        packer = choose_packer(config, opened.config, opened.source, own.backend.layout)
        if source is None:
            raise _missing(opened, directory)
        measured = source.measure(packer)
        scaled = rescale(opened.description, config.rope_scaling)
        block = find_block(measured, scaled, context)
        if block is None:
            raise _missing(opened, directory)
        longest = own.plan.max_model_len
        embed, head = own.program.ops[0], own.program.ops[-1]
        assert isinstance(embed, Embed), "a program begins so"
        assert isinstance(head, Head), "a model that generates ends so"
        compile_block(block, measured, embed.table, head.out, longest)
        layouts = layouts_of(block.described, own, pages, measured.bytes)
        found = compile_block(block, source.load(packer), embed.table, head.out, longest)
    finally:
        opened.source.close()
        if source is not None:
            source.close()
    last = found.program.ops[-1]
    assert isinstance(last, Head), "it was compiled with one"
    arithmetic = Mtp(
        embed.table,
        embed.scale,
        head.norm,
        found.embedding_norm,
        found.hidden_norm,
        partial(own.backend.multiply, found.join),
        last.norm,
    )
    return DraftHead(
        found.program,
        layouts,
        (own.description.layers - 1,),
        arithmetic,
        longest,
        directory,
        block.described.hidden_size,
        last_layer=block.described.layers - 1,
    )


def _source_of_block(opened: OpenedModel) -> Source | None:
    """Where a block would stand: among the model's own weights, or beside those of a directory that
    `ockham convert` wrote."""
    if isinstance(opened.source, ConvertedSource):
        return opened.source.block()
    return opened.source


def _check_sizes(found: ModelDescription, own: ModelDescription, directory: Path) -> None:
    sizes = [(each.hidden_size, each.vocab_size, each.layers) for each in (found, own)]
    if sizes[0] != sizes[1]:
        (hidden, vocabulary, layers), of_own = sizes
        raise ConfigError(
            f"{directory} is of a model of hidden size {hidden}, {vocabulary} tokens and {layers} "
            f"layers, and this one has {of_own[0]}, {of_own[1]} and {of_own[2]}: name the "
            "checkpoint that this model was made from."
        )


def _missing(opened: OpenedModel, directory: Path) -> ConfigError:
    known = [names for each in MTP_NAMES if (names := each.of(opened.description)) is not None]
    return ConfigError(
        f"{directory} has no block that foretells tokens, which would be "
        f"{' or '.join(f'{names.join}.weight' for names in known)}; if it was converted from a "
        'checkpoint that has one, name that: {"method": "mtp", "model": "CHECKPOINT"}.'
    )


class Names(Protocol):
    """What tells which tensors there are."""

    def has(self, name: str) -> bool: ...


def find_block(weights: Names, model: ModelDescription, context: int | None) -> Block | None:
    """The block that these weights of a model have, if there is one; its rows see `context` tokens,
    or all."""
    for each in MTP_NAMES:
        names = each.of(model)
        if names is not None and weights.has(f"{names.join}.weight"):
            if names.layers is None:
                return Block(names, _as_model(model, names, weights, context))
            return _of_single_layers(model, names, weights, context)
    return None


def _of_single_layers(
    model: ModelDescription, names: MtpNames, weights: Names, context: int | None
) -> Block:
    """A block of several layers, each of which is attention, a mixture or a feed-forward."""
    record = model.architecture

    def has(layer: int, name: str) -> bool:
        return weights.has(f"{names.layers}{layer}.{name}.weight")

    count = next(n for n in range(1, model.layers + 2) if not has(n, str(record.attention_norm)))
    attending = tuple(n for n in range(count) if has(n, record.qkv[0]))
    experts = model.experts
    if experts is not None:
        assert record.experts is not None, "by which it was described"
        routers = [f"{each}{record.experts.router}" for each in record.experts.blocks]
        routed = tuple(n for n in range(count) if any(has(n, router) for router in routers))
        experts = replace(experts, layers=routed, widths=None)
    one = _as_model(model, names, weights, context)
    described = replace(
        one,
        layers=count,
        windows=one.windows * count,
        ropes=one.ropes * count,
        experts=experts,
        without_attention=tuple(n for n in range(count) if n not in attending),
        without_feed_forward=attending,
    )
    return Block(replace(names, norm=names.norm.replace("{last}", str(count - 1))), described)


def _as_model(
    model: ModelDescription, names: MtpNames, weights: Names, context: int | None
) -> ModelDescription:
    """A model of one layer, which is like the last that attends; of experts if it has a router."""
    last = max(layer for layer in range(model.layers) if model.attends(layer))
    experts, record = model.experts, model.architecture.experts
    if experts is not None:
        assert record is not None, "by which it was described"
        routers = [f"{names.block}{each}{record.router}.weight" for each in record.blocks]
        routed = any(map(weights.has, routers))
        experts = replace(experts, layers=(0,) if routed else (), widths=None)
    kv_heads, head_dim = model.heads_of(last)
    return replace(
        model,
        architecture=replace(
            model.architecture, prefixes=("",), layers="layers.", final_norm="norm"
        ),
        layers=1,
        kv_heads=kv_heads,
        head_dim=head_dim,
        windows=(context,),
        ropes=(model.ropes[last],),
        experts=experts,
        widths=None,
        without_attention=(),
        without_feed_forward=(),
        convolutions=(),
        recurrent=None,
        layer_heads=None,
        values_are_keys=(),
        reads=None,
        layer_inputs=0,
        apart=frozenset(),
        pooling=None,
    )


def compile_block(
    block: Block, weights: Weights, table: Linear, out: Linear, longest: int
) -> CompiledBlock:
    """Compile a block, whose table of embeddings and whose output head are those of its model."""
    names, described = block.names, block.described
    renamed = {LAYER: names.block} if names.layers is None else {"layers.": names.layers}
    renamed[NORM] = f"{names.norm}.weight"
    record = described.architecture
    shared = (f"{record.table}.weight", *record.heads)
    program = compile_program(
        described, BlockWeights(weights, renamed, shared, table, out), longest
    )
    size = described.hidden_size

    def norm(name: str) -> Norm:
        offset = described.architecture.norm_offset
        return Norm(weights.vector([(f"{name}.weight", (size,))], offset), described.norm_eps)

    return CompiledBlock(
        program,
        norm(names.embedding_norm),
        norm(names.hidden_norm),
        weights.linear([Part(f"{names.join}.weight", (size, 2 * size), 0, size)], "qkv"),
    )
