"""Loading a model: resolve, describe, plan the memory, then read and pack every tensor once."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.core.registry import find, make, name_of, techniques
from ockham.core.seams import Format, Layout
from ockham.core.state_dtype import canonical, state_types
from ockham.core.units import readable
from ockham.kernels.backends import find_backend, find_layout_of
from ockham.kernels.base import Backend, GroupLayout
from ockham.kernels.layout import INT4
from ockham.kernels.ops import Program
from ockham.model.checkpoint.converted import ConvertedSource
from ockham.model.checkpoint.generation_config import chosen_generation_config, sampling_defaults
from ockham.model.checkpoint.opening import open_model
from ockham.model.checkpoint.prequantised.find import CODECS, quantization_config
from ockham.model.checkpoint.sources import Measured, Source
from ockham.model.hub import resolve
from ockham.model.key_mirrors import with_mirrors
from ockham.model.machine_memory import available_bytes
from ockham.model.memory import MemoryPlan, plan_memory, with_groups_apart
from ockham.model.packed.packing import STORED, Packer, plain_format, quantizations
from ockham.model.packed.weight_cache import LEAST_BYTES, WeightCache, cache_directory
from ockham.model.placing import place_weights
from ockham.model.program.compile import compile_program
from ockham.model.program.description import ModelDescription
from ockham.model.program.rope_scaling import rescale
from ockham.model.tasks import check_whole, settle

HARMLESS = (
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    "lm_head.weight",
)
"""Ends of the names of tensors that checkpoints carry and no one needs."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to be bound: `backend.bind(program, backend.allocate(layouts))`.

    `directory` is the checkpoint's, or the path of its GGUF file. `weight_format` names the formats
    of its matrices, joined by +; `weight_bytes` is what the packed weights take. `numerics_id`
    names everything that decides the bits of an output: weights by content, weight formats, state
    dtype, rotary variants, backend. The weights enter as they were packed, by a non-cryptographic
    hash of every byte (see `digest`), so that a checkpoint quantised at load, its cached weights
    and the directory that it was converted to are one. `eos_token_ids` are those of config.json and
    generation_config.json together; `sampling_defaults` are what the latter sets of
    `SamplingParams`, by name. `metadata` are those of a GGUF file, where `load_model` was asked to
    keep them.
    """

    directory: Path
    description: ModelDescription
    program: Program
    backend: Backend
    weight_format: str
    state_dtype: str
    weight_bytes: int
    parameters: int
    plan: MemoryPlan
    layouts: tuple[GroupLayout, ...]
    numerics_id: str
    eos_token_ids: tuple[int, ...]
    generation_config: dict[str, Any]
    sampling_defaults: dict[str, Any]
    raw_config: dict[str, Any]
    metadata: Mapping[str, Any] | None = None

    @property
    def generates(self) -> bool:
        """Whether it was loaded to generate text, and not to make vectors or scores."""
        return self.description.pooling is None


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """What is known of a model before its weights are read."""

    directory: Path
    raw_config: dict[str, Any]
    description: ModelDescription
    program: Program
    """Without the values of its weights."""
    source: Source
    packer: Packer
    measured: Measured
    state_dtype: str
    plan: MemoryPlan
    notes: tuple[str, ...]
    generation_config: dict[str, Any]
    sampling_defaults: dict[str, Any]
    eos_token_ids: tuple[int, ...]
    metadata: Mapping[str, Any] | None

    @property
    def format_names(self) -> tuple[str, ...]:
        """The names of the matrices' formats, the commonest first."""
        names = [formats.partition(" ")[0] for formats, _ in self.measured.formats.most_common()]
        return tuple(dict.fromkeys(names))

    @property
    def weight_format(self) -> str:
        """The names of the matrices' formats, joined by +, the commonest first."""
        return "+".join(self.format_names)


def plan_model(
    config: EngineConfig, *, head: bool = True, available: int | None = None
) -> PlannedModel:
    """Everything but the weights: reads config.json and the headers of the files of weights.
    `head` is as in `compile_program`. `available` are the bytes that there are, by default those
    that are free now.

    Raises ModelError for a checkpoint that is incomplete or not supported, DoesNotFit for one that
    is too large, ConfigError for settings that it contradicts. The caller closes `source`.
    """
    named_format(config.quantization)  # refused before anything is downloaded
    directory = resolve(config.model, config.revision)
    opened = open_model(directory)
    raw, source = opened.config, opened.source
    try:
        described = rescale(opened.description, config.rope_scaling)
        description = settle(config, described, raw, directory)
        if not description.causal:
            check_whole(config)
        description = with_groups_apart(config, description)
        head = head and description.pooling is None
        if config.max_model_len is None and description.pooling is not None:
            config = msgspec.structs.replace(config, max_model_len=_made_for(description))
        generation = chosen_generation_config(config.generation_config, opened.generation_config)
        sampling = sampling_defaults(generation, config.generation_config)
        ends = _eos_token_ids(description, generation)
        packer = choose_packer(config, raw, source, find_layout_of(config.backend))
        measured = source.measure(packer)
        longest = description.max_position_embeddings
        program = compile_program(description, measured, longest, head=head)
        state_dtype = choose_state_dtype(config, measured.formats)
        plan = plan_memory(
            config,
            description,
            program,
            measured.bytes,
            state_dtype,
            available_bytes() if available is None else available,
        )
        return PlannedModel(
            directory=directory,
            raw_config=raw,
            description=description,
            program=program,
            source=source,
            packer=packer,
            measured=measured,
            state_dtype=state_dtype,
            plan=plan,
            notes=opened.notes,
            generation_config=generation,
            sampling_defaults=sampling,
            eos_token_ids=ends,
            metadata=opened.metadata,
        )
    except BaseException:
        source.close()
        raise


def load_model(
    config: EngineConfig,
    progress: Callable[[str], None] | None = None,
    *,
    keep_metadata: bool = False,
    head: bool = True,
) -> LoadedModel:
    """Load a model, telling `progress` in sentences what is being done. `keep_metadata` is for who
    reads the tokenizer of a GGUF file next: they are tens of megabytes. Without a `head` the
    program ends in hidden states, see `compile_program`.

    Raises as `plan_model` does, before any memory is taken, and ModelError naming the tensor if
    the files are damaged or hold NaN or infinity.
    """
    tell = progress or (lambda _: None)
    backend = find_backend(config.backend, config.threads)
    planned = plan_model(config, head=head)
    description, plan = planned.description, planned.plan
    head = head and description.pooling is None
    try:
        notes = (*planned.notes, *planned.measured.notes(), *_unused_notes(planned))
        for line in (plan.describe(), *notes):
            tell(line)
        tell(
            f"loading {config.model} ({description.architecture.name}, "
            f"{planned.measured.parameters / 1e6:.1f} million parameters, "
            f"{planned.weight_format}, {readable(plan.weights_bytes)})"
        )
        program, digest = place_weights(
            planned.source,
            planned.packer,
            lambda weights: compile_program(description, weights, plan.max_model_len, head=head),
            cache=_weight_cache(config, planned, tell),
            facts={
                "config": planned.raw_config,
                "formats": sorted(planned.measured.formats.items()),
                **({} if head else {"head": False}),
            },
            tell=tell,
        )
    finally:
        planned.source.close()
    layouts = with_mirrors(
        plan.layouts(description),
        planned.state_dtype,
        backend,
        program,
        description,
        plan.max_model_len,
    )
    return LoadedModel(
        directory=planned.directory,
        description=description,
        program=program,
        backend=backend,
        weight_format=planned.weight_format,
        state_dtype=planned.state_dtype,
        weight_bytes=plan.weights_bytes - _spared(planned.program, program),
        parameters=planned.measured.parameters,
        plan=plan,
        layouts=layouts,
        numerics_id=_numerics_id(planned, backend, digest, layouts),
        eos_token_ids=planned.eos_token_ids,
        generation_config=planned.generation_config,
        sampling_defaults=planned.sampling_defaults,
        raw_config=planned.raw_config,
        metadata=planned.metadata if keep_metadata else None,
    )


def _spared(planned: Program, program: Program) -> int:
    """The bytes that the matrices take less than was planned: of a format whose matrices take room
    by their values, the most was."""
    loaded = program.matrices()
    return sum(each.nbytes - loaded[role].nbytes for role, each in planned.matrices().items())


def _made_for(description: ModelDescription) -> int | None:
    """The longest text that a model of embeddings is made for, where its checkpoint says less than
    its positions allow."""
    pooling = description.pooling
    most = None if pooling is None else pooling.max_tokens
    return None if most is None else min(most, description.max_position_embeddings)


def _weight_cache(
    config: EngineConfig, planned: PlannedModel, tell: Callable[[str], None]
) -> WeightCache | None:
    """The cache of packed weights, where it is of use: not for what was converted already, what is
    packed at once, or a layout that is no work."""
    directory = cache_directory(config.weight_cache)
    if directory is None or isinstance(planned.source, ConvertedSource):
        return None
    if not planned.packer.layout.cached or planned.plan.weights_bytes < LEAST_BYTES:
        return None
    return WeightCache(directory, config.weight_cache_bytes, tell, config.model)


def choose_packer(
    config: EngineConfig, raw: dict[str, Any], source: Source, layout: Layout
) -> Packer:
    """The named quantization, if any; else, or for "stored", what the checkpoint quantised stays as
    it is, and the rest takes the format of the dtype asked for, or the checkpoint's own.

    Of a checkpoint's own dtypes float16 becomes float32, which holds every value of it exactly, one
    by one where such matrices stand in a checkpoint of bfloat16. Raises ConfigError for a
    quantization that does not exist, or that the checkpoint contradicts.
    """
    dtype, exact = config.dtype, config.dtype == "auto"
    if exact:
        dtype = source.plain_dtype()
    asked = config.quantization
    if asked in (STORED, source.quantised_as):
        asked = None
    if asked in CODECS:  # as vLLM's users name what the checkpoint is anyway
        method = (quantization_config(raw) or {}).get("quant_method")
        if method == asked:
            asked = None
        elif named_format(asked) is None:
            raise ConfigError(
                f"the checkpoint is not quantised as {asked!r}, but as {method!r}; leave "
                "quantization out to take it as it is."
            )
    return Packer(plain_format(dtype), named_format(asked), exact, layout)


def named_format(quantization: str | None) -> Format | None:
    """The format that a quantization names; None for what leaves the formats to the checkpoint.
    Raises ConfigError, with all that may be named, if it is not known."""
    if quantization is None or quantization == STORED:
        return None
    if name_of(quantization) not in {each.name for each in techniques("format")}:
        if quantization in CODECS:
            return None
        raise ConfigError(
            f"there is no format called {quantization!r}; there is: {', '.join(quantizations())}; "
            f"and {', '.join(CODECS)} for a checkpoint that is quantised so."
        )
    weight_format: Format = make("format", quantization)
    return weight_format


def choose_state_dtype(config: EngineConfig, formats: Counter[str]) -> str:
    """The dtype of keys and values, as `StateSpec.attention` takes it: as set, or float32 where
    most matrices are, else bfloat16. `formats` counts the matrices by what `Measured.formats` says
    of them."""
    if config.kv_cache_dtype != "auto":
        return canonical(config.kv_cache_dtype)
    ((most, _),) = formats.most_common(1)
    weight_format: type[Format] = find("format", most.partition(" ")[0]).cls
    return "float32" if weight_format.dtype == "float32" else "bfloat16"


def _unused_notes(planned: PlannedModel) -> list[str]:
    """What to say about tensors of the checkpoint that the model does not use."""
    harmless = (*HARMLESS, *planned.source.harmless)
    used = planned.measured.used
    description, architecture = planned.description, planned.description.architecture
    own = [name.format(n=description.layers) for name in architecture.unused]
    nobody = (*own, *description.unread)
    needless = tuple(p + name for p in ("", *architecture.prefixes) for name in nobody)
    unused = [name for name in planned.source.names() if name not in used]
    other = [
        name for name in unused if not name.endswith(harmless) and not name.startswith(needless)
    ]
    unknown = [name for name in other if not name.startswith(architecture.ignored)]
    notes = []
    if len(other) > len(unknown):
        notes.append(
            f"only the text part of {architecture.name} is used; "
            f"{len(other) - len(unknown)} tensors of its vision part are ignored."
        )
    if unknown:
        notes.append(
            f"warning: {len(unknown)} tensors of the checkpoint are not used, {unknown[0]!r} among "
            "them; it may not be what its config.json says."
        )
    return notes


def _eos_token_ids(
    description: ModelDescription, generation_config: dict[str, Any]
) -> tuple[int, ...]:
    more = generation_config.get("eos_token_id")
    ids = more if isinstance(more, list) else [] if more is None else [more]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise ModelError(f"eos_token_id of generation_config.json must be token ids, not {more!r}.")
    return tuple(dict.fromkeys([*description.eos_token_ids, *ids]))


def _numerics_id(
    planned: PlannedModel, backend: Backend, digest: str, layouts: tuple[GroupLayout, ...]
) -> str:
    ropes = [
        "none" if rope is None else f"{rope.describe()} {_rope_digest(planned, layer)}"
        for layer, rope in enumerate(planned.description.ropes)
    ]
    facts: dict[str, Any] = {
        "weights": digest,
        "constants": planned.description.constants(),
        "formats": sorted(planned.measured.formats.items()),
        "state": " ".join([planned.state_dtype, *_int4_facts(planned.state_dtype, layouts)]),
        "ropes": ropes,
        "backend": backend.numerics(planned.format_names),
    }
    if any(layout.spec.ends for layout in layouts):
        facts["chunk"] = layouts[0].page_tokens  # within which sums stand in another order
    encoded = json.dumps(facts, sort_keys=True).encode()
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


def _int4_facts(state_dtype: str, layouts: tuple[GroupLayout, ...]) -> list[str]:
    """What decides the bits of state in int4 beside its name."""
    if "int4" not in state_types(state_dtype):
        return []
    mirrors = hashlib.blake2b(digest_size=8)
    for layout in layouts:
        mirrors.update(b"" if layout.mirrors is None else layout.mirrors.tobytes())
    return [INT4, mirrors.hexdigest()]


def _rope_digest(planned: PlannedModel, layer: int) -> str:
    """The frequencies themselves: those of some variants depend on max_model_len."""
    variant = planned.description.ropes[layer]
    if variant is None:
        return ""
    rope = variant.fix(planned.plan.max_model_len)
    return hashlib.blake2b(rope.inverse_frequencies.tobytes(), digest_size=8).hexdigest()
