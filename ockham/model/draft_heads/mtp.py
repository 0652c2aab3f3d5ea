"""Blocks that checkpoints ship for drafting (multi-token prediction)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ockham.core.arrays import Floats, Ints
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.seams import Linear
from ockham.kernels.ops import Embed, Head, Norm, Program
from ockham.kernels.ops.dense import normed
from ockham.model.checkpoint.opening import OpenedModel, open_model
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
    and the head of the model. `{n}` stands for the number of the model's layers."""

    block: str
    join: str
    embedding_norm: str
    hidden_norm: str
    norm: str

    def of(self, layers: int) -> MtpNames:
        fields = (getattr(self, name) for name in self.__slots__)
        return MtpNames(*(name.format(n=layers) for name in fields))


MTP_NAMES = (
    # Qwen3-Next, Qwen 3.5
    MtpNames(
        "mtp.layers.0.",
        "mtp.fc",
        "mtp.pre_fc_norm_embedding",
        "mtp.pre_fc_norm_hidden",
        "mtp.norm",
    ),
    # DeepSeek-V3, GLM-4.5
    MtpNames(
        "model.layers.{n}.",
        "model.layers.{n}.eh_proj",
        "model.layers.{n}.enorm",
        "model.layers.{n}.hnorm",
        "model.layers.{n}.shared_head.norm",
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


def load_mtp(
    config: EngineConfig, own: LoadedModel, model: str | None, context: int, pages: int
) -> DraftHead:
    """The block of the checkpoint `model`, or of the model's own, with state in so many pages; its
    rows see `context` tokens. Raises ConfigError if there is none, or one of another model,
    ModelError if it is damaged, DoesNotFit if there is no memory for it."""
    directory = own.directory if model is None else DRAFTERS.get(model) or resolve(model)
    opened = open_model(directory)
    try:
        _check_sizes(opened.description, own.description, directory)
        packer = choose_packer(config, opened.config, opened.source, own.backend.layout)
        measured = opened.source.measure(packer)
        names = _names_of(measured, opened, directory)
        described = _block_of(rescale(opened.description, config.rope_scaling), context)
        longest = own.plan.max_model_len

        def compiled(weights: Weights) -> tuple[Program, Mtp]:
            return _compile_mtp(described, weights, names, own, longest)

        compiled(measured)
        layouts = layouts_of(described, own, pages, measured.bytes)
        program, arithmetic = compiled(opened.source.load(packer))
    finally:
        opened.source.close()
    layers = (own.description.layers - 1,)
    size = described.hidden_size
    return DraftHead(program, layouts, layers, arithmetic, longest, directory, size)


def _check_sizes(found: ModelDescription, own: ModelDescription, directory: Path) -> None:
    sizes = [(each.hidden_size, each.vocab_size, each.layers) for each in (found, own)]
    if sizes[0] != sizes[1]:
        (hidden, vocabulary, layers), of_own = sizes
        raise ConfigError(
            f"{directory} is of a model of hidden size {hidden}, {vocabulary} tokens and {layers} "
            f"layers, and this one has {of_own[0]}, {of_own[1]} and {of_own[2]}: name the "
            "checkpoint that this model was made from."
        )


def _names_of(weights: Weights, opened: OpenedModel, directory: Path) -> MtpNames:
    """Those by which the checkpoint has its block."""
    known = [names.of(opened.description.layers) for names in MTP_NAMES]
    for names in known:
        if weights.has(f"{names.join}.weight"):
            return names
    raise ConfigError(
        f"{directory} has no block that foretells tokens, which would be "
        f"{' or '.join(f'{names.join}.weight' for names in known)}; if it was converted from a "
        'checkpoint that has one, name that: {"method": "mtp", "model": "CHECKPOINT"}.'
    )


def _block_of(model: ModelDescription, context: int) -> ModelDescription:
    """A model of one layer, which is like the last that attends, and sees so many tokens."""
    recurrent = () if model.recurrent is None else model.recurrent.layers
    others = {*model.without_attention, *model.convolutions, *recurrent}
    last = max(layer for layer in range(model.layers) if layer not in others)
    experts = model.experts
    if experts is not None:
        experts = replace(experts, layers=(0,), widths=None)
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


def _compile_mtp(
    described: ModelDescription, weights: Weights, names: MtpNames, own: LoadedModel, longest: int
) -> tuple[Program, Mtp]:
    embed, head = own.program.ops[0], own.program.ops[-1]
    assert isinstance(embed, Embed), "a program begins so"
    assert isinstance(head, Head), "a model that generates ends so"
    renamed = {LAYER: names.block, NORM: f"{names.norm}.weight"}
    record = described.architecture
    shared = (f"{record.table}.weight", *record.heads)
    block = BlockWeights(weights, renamed, shared, embed.table, head.out)
    program = compile_program(described, block, longest)
    last, size = program.ops[-1], described.hidden_size
    assert isinstance(last, Head), "it was compiled with one"

    def norm(name: str) -> Norm:
        offset = described.architecture.norm_offset
        return Norm(weights.vector([(f"{name}.weight", (size,))], offset), described.norm_eps)

    join = weights.linear([Part(f"{names.join}.weight", (size, 2 * size), 0, size)], "qkv")
    return program, Mtp(
        embed.table,
        embed.scale,
        head.norm,
        norm(names.embedding_norm),
        norm(names.hidden_norm),
        partial(own.backend.multiply, join),
        last.norm,
    )
