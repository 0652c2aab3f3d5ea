"""Assistants of Gemma 4: small models that read the keys and values of the model that they draft
for, and keep none themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ockham.core.arrays import Floats, Ints
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, DoesNotFit, ModelError
from ockham.core.seams import Linear
from ockham.core.units import readable
from ockham.kernels.ops import Attend, AttentionInput, Embed, Head, HiddenOutput, Norm, Program
from ockham.kernels.ops.dense import normed
from ockham.model.checkpoint.gguf.gemma4 import BACKBONE
from ockham.model.checkpoint.safetensors_source import SafetensorsSource
from ockham.model.checkpoint.sources import Source
from ockham.model.draft_heads.head import Product
from ockham.model.files.safetensors import Checkpoint
from ockham.model.loading import LoadedModel, choose_packer
from ockham.model.machine_memory import available_bytes
from ockham.model.program.compile import compile_program
from ockham.model.program.description import ModelDescription, describe, read_config
from ockham.model.program.weights import Part, Weights

ASSISTANTS = {
    "Gemma4AssistantForCausalLM": "Gemma4ForCausalLM",
    "Gemma4UnifiedAssistantForCausalLM": "Gemma4UnifiedForCausalLM",
}
"""What config.json names under `architectures` -> whose layers they are made of."""
METHOD = "mtp"
"""The method that takes one, as in vLLM."""
_ORDERING = "masked_embedding.token_ordering"


@dataclass(frozen=True, slots=True)
class Clusters:
    """The tokens in clusters, of which those of the `most` nearest are known alone: their logits
    are products with rows of the `table`."""

    centroids: Product
    tokens: Ints  # (clusters, tokens of each)
    table: Linear
    most: int

    def nearest(self, x: Floats) -> tuple[Ints, Floats]:
        """Of rows x of the normed residual stream the known tokens, (n, k), and their logits."""
        near = np.argpartition(-self.centroids(x), self.most - 1, axis=1)[:, : self.most]
        tokens = self.tokens[near].reshape(len(x), -1)
        logits = [
            self.table.rows(np.ascontiguousarray(own)) @ row
            for own, row in zip(tokens, x, strict=True)
        ]
        return tokens, np.stack(logits)


@dataclass(frozen=True, slots=True)
class Assistant:
    """A loaded assistant. A row reads the embedding of a token by the model's own table, and beside
    it what the model's head reads, or what the assistant makes of its own row. `clusters` are there
    where its program ends in hidden states."""

    program: Program
    layers: tuple[int, ...]
    directory: Path
    hidden_size: int
    table: Linear
    scale: float
    final_norm: Norm | None
    before: Product
    behind: Product
    norm: Norm | None
    clusters: Clusters | None

    @property
    def last_layer(self) -> int:
        """The last of its own layers."""
        return sum(name.endswith(".after") for name in self.program.breakpoints) - 1

    def carry(self, states: Sequence[Floats]) -> Floats:
        return normed(states[0], self.final_norm)

    def inputs(self, tokens: Ints, carried: Floats) -> Floats:
        embedded = self.table.rows(tokens) * np.float32(self.scale)
        return self.before(np.concatenate([embedded, carried], axis=1))

    def normed(self, x: Floats) -> Floats:
        """What its head reads of the residual stream behind its last layer."""
        return normed(x, self.norm)


class _Reading(ModelDescription):
    """A model whose layers read what another's keep. Which that are, is put right when it has been
    compiled."""

    __slots__ = ()

    def read_by(self, layer: int) -> int:
        return self.layers  # none of its own

    def group_of(self, layer: int, rows: bool = False) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class OpenedAssistant:
    """One of which headers have been read. `config` is its config.json, or what a GGUF file says in
    its place. Who opened it closes `source`."""

    path: Path
    config: dict[str, Any]
    description: ModelDescription
    source: Source


def is_assistant(directory: Path) -> bool:
    """Whether a directory holds an assistant."""
    if not (directory / "config.json").is_file():
        return False
    return _base_of(read_config(directory)) is not None


def open_assistant(path: Path) -> OpenedAssistant | None:
    """The assistant in a directory or a GGUF file; None if there is something else. Raises
    ModelError if it is damaged."""
    if path.is_file():
        from ockham.model.checkpoint.gguf.source import GgufSource

        gguf = GgufSource(path)
        if BACKBONE in gguf.config:
            return OpenedAssistant(path, gguf.config, gguf.description, gguf)
        gguf.close()
        return None
    if not is_assistant(path):
        return None
    values = read_config(path)
    text = values.get("text_config")
    if not isinstance(text, dict):
        raise ModelError(f"{path} is no assistant of Gemma 4: it lacks a text_config.")
    described = describe(
        {
            **text,
            "architectures": [_base_of(values)],
            "num_kv_shared_layers": 0,
            "tie_word_embeddings": values.get("tie_word_embeddings", True),
        }
    )
    return OpenedAssistant(path, values, described, SafetensorsSource(path, values, described))


def _base_of(config: Mapping[str, Any]) -> str | None:
    named = config.get("architectures")
    if not isinstance(named, list):
        return None
    return next((base for name, base in ASSISTANTS.items() if name in named), None)


def load_assistant(config: EngineConfig, own: LoadedModel, opened: OpenedAssistant) -> Assistant:
    """An assistant that has been opened. Raises ConfigError if it was made for another model,
    ModelError if it is damaged, DoesNotFit if there is no memory for it."""
    described, source = opened.description, opened.source
    lends = _lenders(described, own.description, opened.config, opened.path)
    # A row stands in the newest token's place, which has no keys yet.
    windows = [None if w is None else max(1, w - 1) for w in described.windows]
    reading = _Reading(**{each.name: getattr(described, each.name) for each in fields(described)})
    reading = replace(reading, windows=tuple(windows), final_softcap=None)
    packer = choose_packer(config, opened.config, source, own.backend.layout)
    measured = source.measure(packer)
    _compile(reading, measured, lends, own, opened)
    if measured.bytes > available_bytes():
        raise DoesNotFit(
            f"what drafts needs {readable(measured.bytes)} of weights, and there are "
            f"{readable(available_bytes())}."
        )
    return _compile(reading, source.load(packer), lends, own, opened)


def _lenders(
    described: ModelDescription,
    own: ModelDescription,
    values: Mapping[str, Any],
    directory: Path,
) -> list[int]:
    """The layer of the model that each of the assistant's reads: the last with keys and values of
    its own that sees a window, or everything, as that does."""
    sizes = [
        (values.get(BACKBONE), described.vocab_size),
        (own.hidden_size, own.vocab_size),
    ]
    if sizes[0] != sizes[1]:
        (hidden, vocabulary), (own_hidden, own_vocabulary) = sizes
        raise ConfigError(
            f"{directory} is the assistant of a model of hidden size {hidden} and {vocabulary} "
            f"tokens, and this one has {own_hidden} and {own_vocabulary}: name the assistant of "
            "this model."
        )
    found = []
    for layer, window in enumerate(described.windows):
        alike = [
            n
            for n in range(own.layers)
            if own.read_by(n) == n and (own.windows[n] is None) == (window is None)
        ]
        if not alike or own.heads_of(alike[-1]) != described.heads_of(layer):
            raise ConfigError(
                f"{directory} reads keys of {described.heads_of(layer)[0]} heads of "
                f"{described.heads_of(layer)[1]} elements in its layer {layer}, which this model "
                "does not keep: name the assistant of this model."
            )
        found.append(alike[-1])
    return found


def _compile(
    described: ModelDescription,
    weights: Weights,
    lends: Sequence[int],
    own: LoadedModel,
    opened: OpenedAssistant,
) -> Assistant:
    values, directory = opened.config, opened.path
    ordered = bool(values.get("use_ordered_embeddings"))
    program = compile_program(described, weights, own.plan.max_model_len, head=not ordered)
    ops = tuple(
        replace(op, group=own.description.group_of(lends[op.layer]), reads=lends[op.layer])
        if isinstance(op, (AttentionInput, Attend))
        else op
        for op in program.ops
    )
    last, embed = ops[-1], ops[0]
    of_own, head = own.program.ops[0], own.program.ops[-1]
    assert isinstance(last, (Head, HiddenOutput)), "a program ends so"
    assert isinstance(embed, Embed), "a program begins so"
    assert isinstance(of_own, Embed), "a program begins so"
    assert isinstance(head, Head), "a model that generates ends so"
    size, wide = described.hidden_size, own.description.hidden_size

    def product(name: str, rows: int, columns: int) -> Product:
        matrix = weights.linear([Part(f"{name}.weight", (rows, columns), 0, rows)], "qkv")
        return partial(own.backend.multiply, matrix)

    clusters = None
    if ordered:
        count = _count(values, "num_centroids")
        most = _count(values, "centroid_intermediate_top_k")
        clusters = Clusters(
            product("masked_embedding.centroids", count, size),
            _ordering(directory, described.vocab_size, count),
            embed.table,
            min(most, count),
        )
    return Assistant(
        replace(program, ops=ops),
        (own.description.layers - 1,),
        directory,
        size,
        of_own.table,
        of_own.scale,
        head.norm,
        product("pre_projection", size, 2 * wide),
        product("post_projection", wide, size),
        last.norm,
        clusters,
    )


def _count(values: Mapping[str, Any], key: str) -> int:
    given = values.get(key)
    if type(given) is not int or given < 1:
        raise ModelError(f"{key} of an assistant's config.json must be a number, not {given!r}.")
    return given


def _ordering(directory: Path, vocabulary: int, clusters: int) -> Ints:
    """The tokens of each cluster, (clusters, tokens of each)."""
    checkpoint = Checkpoint(directory)
    try:
        found = checkpoint.read(checkpoint.find(_ORDERING, (vocabulary,), ("I64", "I32")))
    finally:
        checkpoint.close()
    if vocabulary % clusters or sorted(found.tolist()) != list(range(vocabulary)):
        raise ModelError(
            f"tensor {_ORDERING!r} of {directory} does not divide {vocabulary} tokens into "
            f"{clusters} clusters."
        )
    return found.astype(np.int32).reshape(clusters, -1)
