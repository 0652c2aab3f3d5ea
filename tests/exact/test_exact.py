"""Every sequence has the bits that it would have alone (`make exact` for many more of them)."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from safetensors.numpy import load_file

from ockham.cache.keep import learned
from ockham.engine.engine import Engine
from ockham.kernels.base import Executor
from ockham.kernels.cpu import CpuBackend
from ockham.kernels.layout import StateSpec
from ockham.kernels.native import core
from ockham.lab.evidence.adapters import write_random_adapter
from ockham.model.checkpoint.gguf.blocks import READERS
from ockham.model.checkpoint.keep_files import ModelSizes
from tests.exact.machine import EXAMPLES, FEWEST, ExactnessMachine
from tests.helpers import isas
from tests.helpers.corrected import corrected, corrected_in_a_mix
from tests.helpers.draft_blocks import (
    MTP,
    add_mtp,
    deepseek_names,
    write_assistant,
    write_eagle3,
)
from tests.helpers.gguf_files import write_gguf
from tests.helpers.gpt_oss import tiny_gpt_oss
from tests.helpers.grammars import with_grammars
from tests.helpers.keep_heads import write_random_alphas, write_random_heads
from tests.helpers.random_maps import write_random_maps
from tests.helpers.serving import make_engine
from tests.helpers.tiny import (
    tiny_based,
    tiny_bitnet,
    tiny_ernie_moe,
    tiny_falcon_h1,
    tiny_gemma4,
    tiny_granite_hybrid,
    tiny_hunyuan,
    tiny_latent,
    tiny_lfm2,
    tiny_llama,
    tiny_matmul_free,
    tiny_ministral3,
    tiny_mistral,
    tiny_mixtral,
    tiny_qwen3_5,
    tiny_recursive,
    tiny_sliced,
    tiny_unequal,
    tiny_without_attention,
)
from tests.helpers.trained_drafts import METHODS, indexed, write_draft

pytestmark = pytest.mark.skipif(core is None, reason="the native core was not built")

VOCABULARY = 97
SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
CHECKPOINTS = {
    "full": lambda directory: tiny_llama(directory, **SIZES),
    "window": lambda directory: tiny_mistral(directory, window=20, **SIZES),
    "experts": lambda directory: tiny_mixtral(directory, **{**SIZES, "intermediate_size": 128}),
}
FORMATS = (
    *("fp32", "bf16", "int8", "int4", "int4:32", "int4:64", "int4:128", "nf4:32"),
    *("int4dq:32", "fp4:64", "codebook3", "codebook4", "ternary", "fp8:128"),
    *("sparse8", "sparse16"),
)
MIXTURES = {
    "mixture": {"": "Q4_K", "v_proj": "Q6_K", "o_proj": "Q5_K", "gate_proj": "Q8_0"}
    | {"up_proj": "Q5_0", "down_proj": "Q4_1", "lm_head": "Q5_1"},
    "few_bits": {"": "IQ4_XS", "v_proj": "Q3_K", "o_proj": "Q2_K", "gate_proj": "IQ2_XS"}
    | {"k_proj": "NVFP4", "up_proj": "IQ3_S", "down_proj": "MXFP4", "lm_head": "TQ1_0"},
    "experts": {"": "Q5_K", "w1": "Q4_K", "w3": "Q4_K", "w2": "Q6_K", "v_proj": "Q8_0"},
}
"""GGUF files of several types: by projection, or "" for all others."""

BLOCKS = (*READERS, *MIXTURES)
TILES = core is not None and core.supported(core.Isa.AMX)
SHARES = {"amx": 0.6, "avx512": 0.4 if TILES else 1.0, "avx2": 0.5, "portable": 0.3}
"""Of the examples: what is slow gets fewer. Not all machines have all instruction sets. amx shares
all code with avx512 but that of products."""


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return CHECKPOINTS[request.param](tmp_path_factory.mktemp(request.param))


def grammar_engine(checkpoint: Path, **settings: object) -> Engine:
    values = {"backend": "cpu", "max_model_len": 200, "block_size": 8, "max_num_seqs": 8}
    return with_grammars(make_engine(checkpoint, **{**values, **settings}))


@pytest.fixture(params=SHARES)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Backends that are made in this test run this instruction set."""
    return isas.use(request.param, monkeypatch)


def executor_of(engine: Engine, threads: int) -> Executor:
    """The engine's program over its state with so many threads."""
    return CpuBackend(threads).bind(engine.model.program, engine.state.planes)


def tiers_of(directory: Path, page_bytes: int, recurs: bool, *facts: object) -> dict[str, object]:
    """Memory, disk, both or neither below the pool, so that all turn up among the tests. Where
    layers leave checkpoints there is a disk, and room for some of them."""
    chosen = Random(repr(facts)).randrange(4) | 2 * recurs
    memory = max(40 * 8 * 512, 8 * page_bytes)  # less than the longest sequence
    disk = max(200 << 10, 24 * page_bytes)
    below = {"swap_space": memory / (1 << 30)} if chosen & 1 else {}
    stored = {"kv_store": str(directory), "kv_store_bytes": disk} if chosen & 2 else {}
    return {**below, **stored}


def check_schedules(
    checkpoint: Path,
    isa: str,
    directory: Path,
    share: float = 1.0,
    blocks: bool = False,
    assistant: bool = False,
    **values: object,
) -> None:
    """Drive the exactness machine: every sequence has the bits that it has alone.

    `share` is that of the examples which such checkpoints get; `directory` is for the disk tier.
    With `blocks`, blocks that read the checkpoint's hidden states draft too, with `assistant` one
    that reads its keys and values.
    """
    values["adapter"] = "lora:max_loras=3"
    small = tiny_llama(directory / "small", seed=4, **{**SIZES, "num_hidden_layers": 1})
    values["companions"] = {"small": str(small)}
    alone = grammar_engine(checkpoint, **values, reuse="none", speculative_config="none")
    alone.executor = executor_of(alone, 1)
    reuse = "prefix,chunk,edit"
    described = alone.model.description
    cell_bytes = StateSpec.attention(2, 32, str(values["kv_cache_dtype"])).nbytes
    kept = sum(each.cell_bytes for each in alone.model.layouts if each.spec.attends)
    rows_bytes = sum(each.cell_bytes for each in alone.model.layouts if not each.spec.attends)
    page_bytes = sum(each.page_bytes for each in alone.model.layouts)
    facts = (checkpoint.name, isa, values)
    every = len(alone.techniques.layers) == described.layers
    alike = every and described.passes == 1  # maps are of all layers
    alike = alike and not any(each.spec.latent for each in alone.model.layouts)
    if alike and not any(group.window for group in alone.state.groups):
        maps = write_random_maps(directory / "maps", checkpoint, alone.model)
        reuse += f",kv_prediction:maps={maps},last_tokens=5"
    if alone.recurs:
        reuse = "prefix"
    if alone.gates.model.passes > 1:
        reuse = "none"
    crowded = grammar_engine(
        checkpoint,
        **values,
        reuse=reuse,
        max_num_batched_tokens=256,
        # Room for less than two of the longest sequences, so that pages run out by themselves too.
        kv_cache_memory_bytes=300 * (max(2 * cell_bytes, kept) + rows_bytes),
        **({} if reuse == "none" else tiers_of(directory, page_bytes, rows_bytes > 0, *facts)),
    )
    described = crowded.model.description
    sizes = {"hidden_size": described.hidden_size, "vocab_size": VOCABULARY}
    layers = {"num_hidden_layers": crowded.own_model.layers}

    adaptable = 3 if crowded.model.program.parts else 0  # behind norms of their own none is
    paths = tuple(directory / f"adapter-{number}" for number in range(adaptable))
    for number, path in enumerate(paths):
        parts = list(crowded.model.program.parts.items())[number :: 1 + number]
        write_random_adapter(path, parts, 1 + 5 * number, number)

    sizes_of_heads = ModelSizes(described.hidden_size, crowded.own_model.layers, described.kv_heads)
    heads = directory / "keep-heads"
    for rule, inner in (("kvzap", False), ("locret", True)):
        write_random_heads(heads / f"{rule}-random", rule, sizes_of_heads, inner=inner)
    write_random_alphas(heads / "duo-random", "duo", sizes_of_heads)

    second_models: dict[str, dict[str, object]] = {"draft_model": {"model": str(small)}}
    if not alone.recurs:
        second_models = {
            "draft_model": {"model": str(checkpoint), "layer_parallel": 2},
            "rapid": {"draft_context": 64},
        }

    own_blocks: dict[str, dict[str, object]] = {}
    if blocks:
        copied = shutil.copytree(checkpoint, directory / "mtp")
        names = deepseek_names(described.layers) if described.latent else MTP
        made = add_mtp(copied, names=names, like=max(alone.techniques.layers))
        own_blocks["mtp"] = {"model": str(made), "draft_context": 64}
        head = write_eagle3(directory / "eagle3", checkpoint, known=40)
        own_blocks["eagle3"] = {"model": str(head), "draft_context": 64}

    if assistant:
        own = write_assistant(directory / "assistant", checkpoint, known=12)
        own_blocks["mtp"] = {"model": str(own)}

    class Machine(ExactnessMachine):
        vocabulary = VOCABULARY
        adapters = paths
        trained = {
            method: {"model": str(write_draft(directory / method, method, **sizes, **layers))}
            for method in METHODS
        } | {
            **second_models,
            **own_blocks,
            "corpus": {"model": str(indexed(directory / "corpus", VOCABULARY))},
        }
        executors = [executor_of(crowded, threads) for threads in (1, 2)]

        @classmethod
        def crowded(cls) -> Engine:
            return crowded

        @classmethod
        def alone(cls) -> Engine:
            return alone

    examples = max(2, math.ceil(EXAMPLES * SHARES[isa] * share))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned, "PACKAGED", heads)
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=20,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    assert Machine.compared + Machine.cut + Machine.approximate >= FEWEST * examples
    assert Machine.compared >= examples
    fetched = crowded.stats().tiers.fetched
    crowded.close()
    print(
        f"{Machine.compared} sequences compared, {Machine.preempted} preemptions, "
        f"{Machine.cut} requests cancelled, {Machine.approximate} approximate, "
        f"{Machine.paired} answered by two models, "
        f"{fetched} pages fetched from memory or disk, "
        f"{Machine.accepted} of {Machine.drafted} drafted tokens accepted"
    )


@pytest.mark.parametrize("quantization", FORMATS)
def test_no_schedule_changes_a_bit(
    checkpoint: Path, quantization: str, isa: str, tmp_path: Path
) -> None:
    state = "float32" if quantization == "fp32" else "bfloat16"
    values = {"quantization": quantization, "kv_cache_dtype": state}
    check_schedules(checkpoint, isa, tmp_path, blocks=True, **values)


CODED = {"full": "int8", "window": "int4", "experts": "k=int8,v=int4"}


@pytest.mark.parametrize("name", CODED)
def test_no_schedule_changes_a_bit_of_state_in_codes(name: str, isa: str, tmp_path: Path) -> None:
    """Every token is coded when it is written, alone."""
    checkpoint, state = CHECKPOINTS[name](tmp_path / "model"), CODED[name]
    check_schedules(checkpoint, isa, tmp_path, share=0.3, quantization="bf16", kv_cache_dtype=state)


@pytest.mark.parametrize("state", ["bfloat16", "k=int8,v=int4"])
def test_no_schedule_changes_a_bit_of_attention_with_sinks(
    state: str, isa: str, tmp_path: Path
) -> None:
    """gpt-oss: windows in every other layer, and experts with biases in MXFP4."""
    checkpoint = tiny_gpt_oss(tmp_path / "model", window=20, **{**SIZES, "intermediate_size": 128})
    check_schedules(checkpoint, isa, tmp_path, share=0.3, kv_cache_dtype=state)


LATER = {
    "growing queries": lambda directory: tiny_ministral3(directory, **SIZES),
    "norms behind the rotation": lambda directory: tiny_hunyuan(directory, **SIZES),
    "a corrected choice": lambda d: tiny_ernie_moe(d, **{**SIZES, "intermediate_size": 128}),
}


@pytest.mark.parametrize("name", LATER)
def test_no_schedule_changes_a_bit_of_later_decoders(name: str, isa: str, tmp_path: Path) -> None:
    checkpoint = LATER[name](tmp_path / "model")
    check_schedules(
        checkpoint, isa, tmp_path, quantization="int8", kv_cache_dtype="bfloat16", share=0.3
    )


def test_no_schedule_changes_a_bit_of_ternary_models(isa: str, tmp_path: Path) -> None:
    checkpoint = tiny_bitnet(tmp_path / "model", **SIZES)
    check_schedules(checkpoint, isa, tmp_path, kv_cache_dtype="bfloat16", share=0.3)


GEMMA4 = {
    "dense": lambda directory: tiny_gemma4(directory, window=20, **SIZES),
    "mixture": lambda d: tiny_gemma4(d, experts=4, **{**SIZES, "intermediate_size": 64}),
    "shared keys": lambda directory: tiny_gemma4(
        directory,
        kinds=("sliding_attention", "full_attention") * 3,
        window=20,
        sharing=2,
        inputs=32,
        **{**SIZES, "intermediate_size": 128},
    ),
}


@pytest.mark.parametrize("name", GEMMA4)
def test_no_schedule_changes_a_bit_of_gemma_4(name: str, isa: str, tmp_path: Path) -> None:
    """Heads of two sizes, values that are keys, experts beside a dense part, and layers that read
    the keys of others."""
    checkpoint = GEMMA4[name](tmp_path / "model")
    state = {"dense": "k=int8,v=int4", "mixture": "bfloat16", "shared keys": "float32"}[name]
    values = {"quantization": "int8", "kv_cache_dtype": state}
    check_schedules(checkpoint, isa, tmp_path, share=0.3, assistant=True, **values)


@pytest.mark.parametrize("passes", [2, 3])
def test_no_schedule_changes_a_bit_of_rows_that_choose_their_passes(
    passes: int, isa: str, tmp_path: Path
) -> None:
    checkpoint = tiny_recursive(tmp_path / "model", passes=passes, **SIZES)
    check_schedules(
        checkpoint, isa, tmp_path, quantization="int8", kv_cache_dtype="bfloat16", share=0.5
    )


LATENT_FORMS = {
    "low-rank queries": lambda directory: tiny_latent(directory, **SIZES),
    "queries at once": lambda directory: tiny_latent(directory, query_rank=None, **SIZES),
}


@pytest.mark.parametrize("name", LATENT_FORMS)
def test_no_schedule_changes_a_bit_of_latent_attention(name: str, isa: str, tmp_path: Path) -> None:
    """Keys and values are one row of each token, and experts are chosen in groups."""
    settings = {"quantization": "int8", "kv_cache_dtype": "bfloat16"}
    if name == "queries at once":
        settings = {"quantization": "bf16", "kv_cache_dtype": "float32"}
    checkpoint = LATENT_FORMS[name](tmp_path / "model")
    check_schedules(checkpoint, isa, tmp_path, share=0.3, blocks=True, **settings)


ATTENDING = ("full_attention",) * 2
"""Layers that the parts of `drawn` are of."""
HYBRID = {
    "convolution": lambda directory: tiny_lfm2(
        directory, kinds=(*ATTENDING, "conv", "conv"), **SIZES
    ),
    "long convolution": lambda directory: tiny_lfm2(
        directory, kinds=(*ATTENDING, "conv"), length=11, **SIZES
    ),
    "state space": lambda directory: tiny_granite_hybrid(
        directory, kinds=("attention", "attention", "mamba", "mamba"), **SIZES
    ),
    "state space beside attention": lambda directory: tiny_falcon_h1(directory, **SIZES),
    "delta rule": lambda directory: tiny_qwen3_5(
        directory, kinds=(*ATTENDING, *("linear_attention",) * 2), **SIZES
    ),
    "linear attention": lambda directory: tiny_based(
        directory,
        n_embd=128,
        n_inner=256,
        n_layer=4,
        alt_mixer_2_layers=[0, 1],
        alt_mixer_layers=[2],
    ),
}


@pytest.mark.parametrize("name", HYBRID)
def test_no_schedule_changes_a_bit_of_layers_that_do_not_attend(
    name: str, isa: str, tmp_path: Path
) -> None:
    checkpoint = HYBRID[name](tmp_path / "model")
    values = {"quantization": "int8", "kv_cache_dtype": "bfloat16"}
    blocks = name != "linear attention"  # for which there are none that draft
    check_schedules(checkpoint, isa, tmp_path, share=0.5, blocks=blocks, **values)


def test_no_schedule_changes_a_bit_of_a_model_without_attention(isa: str, tmp_path: Path) -> None:
    """Gated linear recurrences alone, as trained: ternary weights, and inputs in 8 bits."""
    checkpoint = tiny_matmul_free(tmp_path / "model", **SIZES)
    check_schedules(checkpoint, isa, tmp_path, share=0.5, kv_cache_dtype="bfloat16")


REWRITTEN = {
    "sliced": lambda directory: tiny_sliced(directory, **SIZES, widths=(96, 256)),
    "unequal": lambda directory: tiny_unequal(directory, **{**SIZES, "intermediate_size": 128}),
    "without attention": lambda directory: tiny_without_attention(directory, **SIZES),
    "corrected": lambda directory: corrected(tiny_llama(directory, **SIZES), "int4:32"),
    "corrected in a mix": lambda directory: corrected_in_a_mix(tiny_llama(directory, **SIZES)),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_no_schedule_changes_a_bit_of_what_transforms_made(
    name: str, isa: str, tmp_path: Path
) -> None:
    """Products on the residual stream, feed-forwards and experts of unequal widths, layers without
    attention, and sums of low rank beside rounded matrices."""
    checkpoint = REWRITTEN[name](tmp_path / "model")
    values = {"kv_cache_dtype": "bfloat16"}
    if name != "corrected in a mix":
        values["quantization"] = "int4:32"
    check_schedules(checkpoint, isa, tmp_path, share=0.3, **values)


@pytest.mark.parametrize("kind", BLOCKS if EXAMPLES > 2 else [*MIXTURES])
def test_no_schedule_changes_a_bit_of_ggufs_block_types(
    tmp_path: Path, kind: str, isa: str
) -> None:
    """In `make test` several types in a file, in `make exact` one by one too."""
    sizes = {**SIZES, "hidden_size": 256, "num_attention_heads": 8}
    tiny = tiny_mixtral if kind == "experts" else tiny_llama
    config = json.loads((tiny(tmp_path, **sizes) / "config.json").read_text())
    weights = load_file(tmp_path / "model.safetensors")
    path = tmp_path / "gguf" / "model.gguf"
    path.parent.mkdir()
    types = MIXTURES.get(kind, {})

    def type_of(name: str) -> str:
        return types.get(name.split(".")[-2], types.get("", kind))

    write_gguf(path, "llama", config, weights, type_of)
    check_schedules(path, isa, tmp_path / "store", share=0.3, kv_cache_dtype="bfloat16")


def test_instruction_sets_promise_no_equal_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bits are promised within one numerics id, and the instruction set is part of it."""
    checkpoint = tiny_llama(tmp_path)
    names = set()
    for isa in isas.HERE:
        monkeypatch.setenv("OCKHAM_ISA", isa)
        names.add(grammar_engine(checkpoint, quantization="bf16").model.numerics_id)
    assert len(names) == len(isas.HERE)
