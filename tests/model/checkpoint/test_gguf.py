"""GGUF files: the same model as the checkpoint that they were made from, to the bit."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ockham.core.config import EngineConfig
from ockham.core.errors import ModelError
from ockham.engine.engine import Engine
from ockham.lab.vocabulary import made_up_vocabulary
from ockham.model.checkpoint.gguf.blocks import READERS
from ockham.model.checkpoint.gguf.config import config_of
from ockham.model.checkpoint.gguf.file import GgufFile
from ockham.model.checkpoint.gguf.types import TENSOR_TYPES
from ockham.model.loading import LoadedModel, load_model, plan_model
from ockham.text.tokenizer import Tokenizer
from tests.helpers.gguf_files import write_gguf
from tests.helpers.oracle import (
    COMMON,
    Case,
    assert_same_logits,
    longrope,
    oracle_logits,
)
from tests.helpers.steps import prompt_logits
from tests.helpers.tiny import tiny_llama
from tests.helpers.tiny_tokenizers import byte_level_bpe
from tests.helpers.vocabularies import add_vocabulary

SHORT, LONG = longrope(0, 4)


def load(path: Path, **settings: Any) -> LoadedModel:
    defaults = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 128}
    return load_model(EngineConfig(model=str(path), **{**defaults, **settings}))


GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 7}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


def _linear_rope(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)


CASES = {
    "llama": (Case("Llama"), {}),
    "llama-biased": (
        Case("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        {},
    ),
    "qwen2": (Case("Qwen2", {"tie_word_embeddings": True}), {}),
    "qwen3": (Case("Qwen3", {"head_dim": 16}), {}),
    "gemma2": (
        Case("Gemma2", {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
        {},
    ),
    "gemma3": (
        Case(
            "Gemma3Text",
            {**GEMMA, "num_hidden_layers": 7, "rope_parameters": GEMMA3_ROPE},
            model="Gemma3ForCausalLM",
        ),
        {"rope_theta": 1e6},
    ),
    "phi3": (Case("Phi3", {"sliding_window": 13}), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    case, more = CASES[name]
    oracle = case.build()
    weights = {n: p.detach().numpy() for n, p in oracle.state_dict().items()}
    if case.values.get("tie_word_embeddings", "gemma" in name):
        del weights["lm_head.weight"]
    config = {**COMMON, "rms_norm_eps": oracle.config.rms_norm_eps, **case.values, **more}
    path = tmp_path / "model.gguf"
    metadata = _linear_rope if name == "gemma3" else lambda writer: None
    write_gguf(path, name.partition("-")[0], config, weights, metadata=metadata)
    model = load(path)
    assert model.weight_format == "fp32"
    expected = oracle_logits(oracle, case.prompts())
    assert_same_logits(prompt_logits(model, case.prompts(), 16), expected)


def test_the_rotary_factors_of_llama_3_and_phi_3_are_those_of_transformers(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 64, "rope_theta": 5e5}
    case = Case("Llama", {"rope_parameters": rope})
    oracle = case.build()
    weights = {n: p.detach().numpy() for n, p in oracle.state_dict().items()}
    plain = 1.0 / 5e5 ** (np.arange(0, 8, 2) / 8)
    scaled = oracle.model.rotary_emb.inv_freq.numpy()
    assert not np.allclose(plain, scaled)
    factors = {"rope_freqs.weight": (plain / scaled).astype(np.float32)}
    config = {**COMMON, "rms_norm_eps": oracle.config.rms_norm_eps, "rope_theta": 5e5}
    write_gguf(tmp_path / "l.gguf", "llama", config, weights, extra=factors)
    expected = oracle_logits(oracle, case.prompts())
    assert_same_logits(prompt_logits(load(tmp_path / "l.gguf"), case.prompts(), 16), expected)

    rope = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG}
    rope |= {"rope_theta": 1e4, "original_max_position_embeddings": 64}
    values = {"rope_parameters": rope, "original_max_position_embeddings": 64}
    case = Case("Phi3", values, longest=100)
    oracle = case.build()
    weights = {n: p.detach().numpy() for n, p in oracle.state_dict().items()}
    extra = {
        "rope_factors_short.weight": np.array(SHORT, np.float32),
        "rope_factors_long.weight": np.array(LONG, np.float32),
    }

    def metadata(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_orig_ctx_len(64)
        scale = np.sqrt(1 + np.log(256 / 64) / np.log(64))
        writer.add_rope_scaling_attn_factors(float(scale))

    config = {**COMMON, "rms_norm_eps": oracle.config.rms_norm_eps}
    write_gguf(tmp_path / "p.gguf", "phi3", config, weights, metadata=metadata, extra=extra)
    prompts = [case.prompts()[0]]
    found = prompt_logits(load(tmp_path / "p.gguf"), prompts, 16)
    assert_same_logits(found, oracle_logits(oracle, prompts))


KINDS = ["F32", "F16", "BF16", "Q4_0", *READERS]
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "head_dim": 64,
    "num_hidden_layers": 1,
}


def tiny(
    directory: Path,
    kind: str = "F32",
    extra: dict[str, np.ndarray] | None = None,
    **matrix: str,
) -> tuple[Path, dict[str, np.ndarray]]:
    """A GGUF file of a tiny Llama whose matrices are of one type, or as `matrix` says by the name
    of a projection, and tensors beside them; and its weights."""
    tiny_llama(directory, **SIZES)
    config = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 512}
    config["rms_norm_eps"] = 1e-5

    def type_of(name: str) -> str:
        return matrix.get(name.split(".")[-2], kind)

    path = directory / "model.gguf"
    weights = load_file(directory / "model.safetensors")
    return path, write_gguf(path, "llama", config, weights, type_of, extra=extra)


@pytest.mark.parametrize(
    "kind",
    KINDS,
)
def test_the_weights_are_those_that_the_gguf_package_dequantises(tmp_path: Path, kind: str) -> None:
    path, meant = tiny(tmp_path, kind)
    save_file(meant, tmp_path / "model.safetensors")
    prompts = [[5, 9, 3, 60, 2], [11]]
    expected = prompt_logits(load(tmp_path, dtype="float32"), prompts, 4)
    wide = load(path, quantization="fp32")
    for found, wanted in zip(prompt_logits(wide, prompts, 4), expected, strict=True):
        assert (found == wanted).all()
    native = load(path)
    held = {"Q4_0": "int4", "BF16": "bf16", **{name: each.name for name, each in READERS.items()}}
    assert native.weight_format == held.get(kind, "fp32")
    whole = native.weight_format == "fp32"
    assert native.state_dtype == ("float32" if whole else "bfloat16")
    table = native.program.ops[0].table
    rows = table.rows(np.arange(97, dtype=np.int32))
    assert (rows == meant["model.embed_tokens.weight"]).all()
    qkv = native.program.ops[1].qkv
    stored = np.concatenate([meant[f"model.layers.0.self_attn.{n}_proj.weight"] for n in "qkv"])
    assert (qkv.rows(np.arange(qkv.out_features, dtype=np.int32)) == stored).all()


def test_a_mixture_of_types_keeps_each_and_says_so(tmp_path: Path) -> None:
    path, meant = tiny(tmp_path, "Q4_0", lm_head="Q6_K", v_proj="Q8_0", down_proj="F16")
    lines: list[str] = []
    config = EngineConfig(model=str(path), max_model_len=64, max_num_seqs=2)
    model = load_model(config, lines.append)
    assert sorted(model.weight_format.split("+")) == ["fp32", "int4", "q6_k", "q8_0"]
    assert "Q4_0: 6 tensors are held in int4, to the bit." in lines
    assert "Q6_K: 1 tensor is held in q6_k, to the bit." in lines
    assert "Q8_0: 1 tensor is held in q8_0, to the bit." in lines  # v, below q and k in int4
    head = model.program.ops[-1].out
    assert (head.rows(np.arange(97, dtype=np.int32)) == meant["lm_head.weight"]).all()


def test_stored_is_a_name_for_what_the_file_has(tmp_path: Path) -> None:
    path, _ = tiny(tmp_path, "Q4_1", lm_head="Q8_0")
    stored = load(path, quantization="stored")
    assert set(stored.weight_format.split("+")) == {"q4_1", "q8_0"}
    assert stored.numerics_id == load(path).numerics_id
    with pytest.raises(ModelError, match="say 'stored', to take every matrix as the file has it"):
        load(path, quantization="q4_1")


@pytest.mark.parametrize("quantization", ["int8", "int4", None, "fp32"])
def test_rounding_quantised_weights_once_more_is_warned_of(
    tmp_path: Path, quantization: str | None
) -> None:
    path, _ = tiny(tmp_path, "Q4_1")
    lines: list[str] = []
    config = EngineConfig(
        model=str(path), quantization=quantization, max_model_len=64, max_num_seqs=2
    )
    load_model(config, lines.append)
    warned = [line for line in lines if line.startswith("warning:") and "once more" in line]
    if quantization in (None, "fp32"):
        assert not warned
    else:
        assert all("quantised to Q4_1" in line and "'stored'" in line for line in warned)
        assert any("to int8" in line for line in warned)


def test_a_block_that_is_too_small_for_its_scale_is_zero(tmp_path: Path) -> None:
    path, _ = tiny(tmp_path, "Q4_0")
    file = GgufFile(path)
    start = file.tensors["output.weight"].start
    with open(path, "r+b") as raw:
        raw.seek(start)
        raw.write(b"\0\0")
    rows = load(path).program.ops[-1].out.rows(np.array([0], np.int32))
    assert not rows[0, :32].any()
    assert rows[0, 32:].any()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_projections_in_several_types_give_what_they_give_in_fp32(
    tmp_path: Path, backend: str
) -> None:
    path, meant = tiny(
        tmp_path, "Q4_K", v_proj="Q6_K", up_proj="Q5_K", down_proj="Q6_K", lm_head="Q6_K"
    )
    mixed = load(path, backend=backend)
    assert set(mixed.weight_format.split("+")) == {"q4_k", "q5_k", "q6_k"}
    qkv = mixed.program.ops[1].qkv
    assert qkv.format == "q4_k+q6_k"
    stored = np.concatenate([meant[f"model.layers.0.self_attn.{n}_proj.weight"] for n in "qkv"])
    ids = np.arange(qkv.out_features, dtype=np.int32)[::-1]
    assert (qkv.rows(ids) == stored[ids]).all()
    prompts = [[5, 9, 3, 60, 2], [11]]
    for found, wanted in zip(
        prompt_logits(mixed, prompts, 4),
        prompt_logits(load(path, quantization="fp32"), prompts, 4),
        strict=True,
    ):
        assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_K", "F32"])
def test_nan_is_refused_with_the_name_of_its_tensor(tmp_path: Path, kind: str) -> None:
    path, _ = tiny(tmp_path, kind)
    start = GgufFile(path).tensors["blk.0.ffn_down.weight"].start
    with open(path, "r+b") as raw:
        raw.seek(start)
        nan = struct.pack("<f", np.nan) if kind == "F32" else np.float16(np.nan).tobytes()
        raw.write(nan)
    with pytest.raises(ModelError, match=r"mlp\.down_proj\.weight': .*NaN or infinit"):
        load(path)


def test_types_of_tensors_are_those_of_the_gguf_package() -> None:
    for number, (name, block, block_bytes) in TENSOR_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (block, block_bytes))


def test_truncated_files_are_refused_at_every_length(tmp_path: Path) -> None:
    path, _ = tiny(tmp_path)
    whole = path.read_bytes()
    header = min(t.start for t in GgufFile(path).tensors.values())
    cut = tmp_path / "cut.gguf"
    for length in [0, 3, 7, *range(8, header, 97), header, header + 1, len(whole) // 2]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"truncated; download or copy it again|no GGUF file"):
            GgufFile(cut)
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"inside or before tensor 'blk\.0"):
        load(cut)


def patch(path: Path, old: bytes, new: bytes) -> None:
    raw = path.read_bytes()
    assert raw.count(old) == 1
    path.write_bytes(raw.replace(old, new))


def test_types_that_are_not_known_or_not_read_are_refused_with_the_tensor(tmp_path: Path) -> None:
    path, _ = tiny(tmp_path)
    name = b"output.weight" + struct.pack("<I", 2) + struct.pack("<QQ", 256, 97)
    for number, said in ((999, "number 999"), (15, "Q8_K")):
        patch(path, name + struct.pack("<I", 0), name + struct.pack("<I", number))
        with pytest.raises(ModelError, match=f"tensor 'output.weight' .* has the type {said}; sup"):
            plan_model(EngineConfig(model=str(path)))
        patch(path, name + struct.pack("<I", number), name + struct.pack("<I", 0))


def test_a_scale_of_a_whole_matrix_is_refused(tmp_path: Path) -> None:
    path, _ = tiny(tmp_path, "NVFP4", extra={"blk.0.attn_q.scale": np.ones(1, np.float32)})
    with pytest.raises(ModelError, match=r"'blk\.0\.attn_q\.scale', a scale of a whole matrix"):
        plan_model(EngineConfig(model=str(path)))


def test_rows_that_do_not_divide_into_blocks_are_refused(tmp_path: Path) -> None:
    path, _ = tiny(tmp_path)
    name = b"blk.0.attn_norm.weight" + struct.pack("<I", 1)
    patch(path, name + struct.pack("<QI", 256, 0), name + struct.pack("<QI", 250, 2))
    with pytest.raises(ModelError, match="rows of 250 values, which do not divide into the Q4_0"):
        GgufFile(path)


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba' is not supported; .* llama"),
        (
            {"general.architecture": "llama", "llama.attention.head_count_kv": [1, 2]},
            "head_count_kv differs from layer to layer",
        ),
    ],
)
def test_what_is_not_supported_is_refused(metadata: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        config_of(metadata, {}, {})


def test_shapes_that_contradict_the_metadata_are_refused(tmp_path: Path) -> None:
    path, _ = tiny(tmp_path)
    patch(
        path,
        b"llama.feed_forward_length" + struct.pack("<II", 4, 512),
        b"llama.feed_forward_length" + struct.pack("<II", 4, 480),
    )
    with pytest.raises(ModelError, match=r"'blk.0.ffn_gate.weight' .* its metadata implies"):
        plan_model(EngineConfig(model=str(path)))


GENERATE = """
import sys
from ockham import LLM, SamplingParams
llm = LLM(model=sys.argv[1], max_num_seqs=2)
params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
output = llm.generate(["The quick brown fox"], params)[0].outputs[0]
assert output.text and len(output.token_ids) == 4
print([m for m in ("torch", "transformers", "gguf") if m in sys.modules])
"""


def test_a_file_is_served_with_its_own_tokenizer_and_without_pytorch(tmp_path: Path) -> None:
    tokenizer = byte_level_bpe()
    size = tokenizer.get_vocab_size()
    tiny_llama(tmp_path, vocab_size=size)

    def metadata(writer: gguf.GGUFWriter) -> None:
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([tokenizer.id_to_token(i) for i in range(size)])
        writer.add_token_merges([" ".join(pair) for pair in merges])

    config = json.loads((tmp_path / "config.json").read_text())
    weights = load_file(tmp_path / "model.safetensors")
    write_gguf(tmp_path / "model.gguf", "llama", config, weights, metadata=metadata)
    printed = subprocess.run(
        [sys.executable, "-c", GENERATE, str(tmp_path / "model.gguf")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert printed.stdout.strip() == "[]", printed.stderr


def test_an_engine_reads_the_header_once_and_keeps_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, merges = made_up_vocabulary(400)
    tiny_llama(tmp_path, vocab_size=len(tokens))
    config = json.loads((tmp_path / "config.json").read_text())
    path = tmp_path / "model.gguf"
    write_gguf(
        path,
        "llama",
        config,
        load_file(tmp_path / "model.safetensors"),
        metadata=lambda writer: add_vocabulary(writer, tokens, merges, tokenizer_pre="qwen2"),
    )
    opened: list[Path] = []
    read = GgufFile._read_header

    def counted(file: GgufFile) -> None:
        opened.append(file.path)
        read(file)

    monkeypatch.setattr(GgufFile, "_read_header", counted)
    engine = Engine(EngineConfig(model=str(path), max_num_seqs=2))
    assert opened == [path]
    assert engine.tokenizer is not None
    assert engine.tokenizer.described == Tokenizer(path).described
    assert engine.model.metadata is None
    assert load(path).metadata is None


def test_a_directory_that_holds_only_a_gguf_file_is_that_model(tmp_path: Path) -> None:
    path, _ = tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert load(tmp_path).numerics_id == load(path).numerics_id
