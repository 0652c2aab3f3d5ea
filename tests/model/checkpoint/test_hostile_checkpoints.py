"""Whatever stands in a checkpoint, loading it ends in a sentence, within seconds and a gigabyte."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from ockham.core.config import EngineConfig
from ockham.core.errors import OckhamError
from ockham.model.checkpoint.gguf.file import GgufFile
from ockham.model.hub import resolve
from ockham.model.loading import load_model
from ockham.model.program.description import describe
from ockham.text.tokenizer import Tokenizer
from tests.helpers.gguf_files import write_gguf
from tests.helpers.tiny import tiny_llama

LIMIT_S = 20  # of a child's processor time, start-up and imports included
LIMIT_BYTES = 1 << 30


def config_with(**values: Any) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return spoil


def config_text(text: str) -> Callable[[Path], None]:
    return lambda directory: (directory / "config.json").write_text(text) and None


def header(raw: bytes) -> Callable[[Path], None]:
    """Weights whose header is `raw`."""

    def spoil(directory: Path) -> None:
        path = directory / "model.safetensors"
        path.write_bytes(len(raw).to_bytes(8, "little") + raw)

    return spoil


def fifo(name: str) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        (directory / name).unlink(missing_ok=True)
        os.mkfifo(directory / name)

    return spoil


def sharded(spoil_index: Callable[[Path], None]) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        (directory / "model.safetensors").rename(directory / "one.safetensors")
        names = load_file(directory / "one.safetensors")
        weight_map = {"weight_map": dict.fromkeys(names, "one.safetensors")}
        (directory / "model.safetensors.index.json").write_text(json.dumps(weight_map))
        spoil_index(directory)

    return spoil


DEEP = "[" * 100_000
ENTRY = '{"dtype":"F32","data_offsets":[0,0],"shape":[%s]}'
HOSTILE: dict[str, Callable[[Path], None]] = {
    "config nested": config_text('{"a":' + DEEP),
    "config nested and closed": config_text('{"a":' + DEEP + "]" * 100_000 + "}"),
    "config of digits": config_text('{"hidden_size": ' + "9" * 10_000 + "}"),
    "config with many values": config_text('{"a": [' + "[]," * 5_000_000 + "0]}"),
    "config that is a FIFO": fifo("config.json"),
    "config that is a directory": lambda d: (
        (d / "config.json").unlink() or (d / "config.json").mkdir()
    ),
    "layers": config_with(num_hidden_layers=10**9),
    "more layers": config_with(num_hidden_layers=10**30),
    "positions": config_with(max_position_embeddings=10**18),
    "head": config_with(head_dim=2**40),
    "heads": config_with(num_attention_heads=2**31 - 1, num_key_value_heads=1, head_dim=65536),
    "vocabulary": config_with(vocab_size=2**31 - 1),
    "experts": config_with(
        architectures=["MixtralForCausalLM"], num_local_experts=10**9, num_experts_per_tok=2
    ),
    "65,536 experts": config_with(
        architectures=["MixtralForCausalLM"], num_local_experts=65_536, num_experts_per_tok=2
    ),
    "stretched positions": config_with(rope_scaling={"rope_type": "yarn", "factor": 1e29}),
    "factors of text": config_with(
        rope_scaling={
            "rope_type": "longrope",
            "short_factor": ["x"] * 4,
            "long_factor": [1e400] * 4,
        }
    ),
    "architectures of numbers": config_with(architectures=[[1], {}]),
    "quantisation of nonsense": config_with(
        quantization_config={"quant_method": "gptq", "bits": [], "group_size": {}, "desc_act": 3}
    ),
    "end tokens": config_with(eos_token_id=10**400),
    "generation config nested": lambda d: (d / "generation_config.json").write_text(DEEP) and None,
    "generation config FIFO": fifo("generation_config.json"),
    "header nested": header(b'{"a":' + DEEP.encode()),
    "header of many values": header(b'{"a":[' + b"[]," * 5_000_000 + b"0]}"),
    "shape": header(
        b'{"a":' + (ENTRY % ",".join(["2305843009213693952"] * 200_000)).encode() + b"}"
    ),
    "shape of digits": header(b'{"a":' + (ENTRY % ("9" * 4000)).encode() + b"}"),
    "weights that are a FIFO": fifo("model.safetensors"),
    "weights that never end": lambda d: (
        (d / "model.safetensors").unlink() or os.symlink("/dev/zero", d / "model.safetensors")
    ),
    "a shard that is a FIFO": sharded(fifo("one.safetensors")),
    "an index that is a FIFO": sharded(fifo("model.safetensors.index.json")),
    "an index nested": sharded(
        lambda d: (d / "model.safetensors.index.json").write_text(DEEP) and None
    ),
}

LOAD = """
import sys
from ockham.core.config import EngineConfig
from ockham.core.errors import OckhamError
from ockham.model.loading import load_model
try:
    load_model(EngineConfig(model=sys.argv[1], backend="reference", skip_tokenizer_init=True))
except OckhamError as error:
    print(error)
"""


def load_apart(path: Path) -> str:
    """What is said of a checkpoint by a process that has `LIMIT_S` and `LIMIT_BYTES`."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))

    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=limit,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_checkpoint_ends_in_a_sentence(name: str, tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "model")
    HOSTILE[name](directory)
    said = load_apart(directory).strip()
    assert said.endswith(".")
    assert len(said) < 1000
    assert "Error" not in said


@contextlib.contextmanager
def said_shortly() -> Iterator[None]:
    """What is refused within is refused in a sentence, and nothing else is raised."""
    try:
        yield
    except OckhamError as error:
        message = str(error)
    else:
        return
    assert len(message) < 3000


def test_as_many_positions_as_there_can_be_are_read(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "model")
    config_with(max_position_embeddings=2**31 - 1, sliding_window=2**31 - 1)(directory)
    assert load_apart(directory) == ""


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "head_dim")
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 2, 3, 64, 2**31, 2**63, 10**400])
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
KEYS = (
    *SIZES,
    *("num_key_value_heads", "intermediate_size", "max_position_embeddings", "rms_norm_eps"),
    *("rope_theta", "rope_scaling", "rope_parameters", "hidden_act", "architectures", "dtype"),
    *("tie_word_embeddings", "eos_token_id", "bos_token_id", "sliding_window", "layer_types"),
    *("quantization_config", "text_config", "mlp_only_layers", "partial_rotary_factor"),
    *("num_experts", "num_local_experts", "num_experts_per_tok", "decoder_sparse_step"),
    *("layer_norm_eps", "type_vocab_size", "pad_token_id", "position_embedding_type", "id2label"),
    *("num_labels", "classifier_pooling", "classifier_activation", "local_attention"),
    *("global_attn_every_n_layers", "global_rope_theta", "sentence_transformers"),
)
ARCHITECTURES = (
    *("LlamaForCausalLM", "Gemma3ForCausalLM", "Qwen3MoeForCausalLM", "Phi3ForCausalLM"),
    *("RobertaForSequenceClassification", "ModernBertForSequenceClassification"),
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=4), st.sampled_from(ARCHITECTURES))
def test_any_value_of_config_json_is_read_or_refused(
    spoilt: dict[str, Any], architecture: str
) -> None:
    config = {
        "architectures": [architecture],
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 97,
        "max_position_embeddings": 512,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        **spoilt,
    }
    with said_shortly():
        found = describe(config)
        for rope in found.ropes:
            if rope is not None:
                rope.fix(found.max_position_embeddings)


def gguf_of(tmp_path: Path, metadata: Callable[[gguf.GGUFWriter], object]) -> Path:
    """A GGUF file of a tiny model with a tokenizer, and what `metadata` adds."""
    directory = tiny_llama(tmp_path / "plain")
    config = json.loads((directory / "config.json").read_text())
    weights = load_file(directory / "model.safetensors")
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", config, weights, metadata=metadata)
    return path


def load(path: Path) -> Any:
    return load_model(EngineConfig(model=str(path), backend="reference", skip_tokenizer_init=True))


def tokens(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b", "ab"])
    writer.add_token_types([1, 1, 1])
    writer.add_token_merges(["a b"])


SPOILT_TOKENIZERS: dict[str, Callable[[gguf.GGUFWriter], object]] = {
    "merges of other pieces": lambda w: w.add_token_merges(["x y"]),
    "merges of one piece": lambda w: w.add_token_merges(["ab"]),
    "an unknown token beyond": lambda w: w.add_unk_token_id(3),
    "tokens of numbers": lambda w: w.add_array("tokenizer.ggml.tokens", [1, 2, 3]),
    "kinds of texts": lambda w: w.add_array("tokenizer.ggml.token_type", ["a", "b", "c"]),
    "a splitting of numbers": lambda w: w.add_uint32("tokenizer.ggml.pre", 3),
    "another kind": lambda w: w.add_tokenizer_model("unheard of"),
}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("name", SPOILT_TOKENIZERS)
def test_a_gguf_tokenizer_that_does_not_hold_together_is_refused(
    name: str, kind: str, tmp_path: Path
) -> None:
    if kind == "llama" and ("merges" in name or "splitting" in name):
        pytest.skip("this kind has none")

    def metadata(writer: gguf.GGUFWriter) -> None:
        tokens(writer)
        writer.add_array("tokenizer.ggml.scores", [0.0, -1.0, -2.0])
        _without(writer, "tokenizer.ggml.model")
        writer.add_tokenizer_model(kind)
        for key in ("merges", "tokens", "token_type", "pre", "model"):
            if key in SPOILS.get(name, ()):
                _without(writer, f"tokenizer.ggml.{key}")
        SPOILT_TOKENIZERS[name](writer)

    path = gguf_of(tmp_path, metadata)
    with pytest.raises(OckhamError, match="token"):
        Tokenizer(path)


SPOILS = {
    "merges of other pieces": ("merges",),
    "merges of one piece": ("merges",),
    "tokens of numbers": ("tokens",),
    "kinds of texts": ("token_type",),
    "a splitting of numbers": ("pre",),
    "another kind": ("model",),
}


def _without(writer: gguf.GGUFWriter, key: str) -> None:
    for held in writer.kv_data:
        held.pop(key, None)


SPOILT_METADATA: dict[str, Callable[[gguf.GGUFWriter], object]] = {
    "a size as text": lambda w: w.add_string("llama.embedding_length", "32"),
    "no size": lambda w: None,
    "a size of 0": lambda w: w.add_uint32("llama.embedding_length", 0),
    "lists of lists": lambda w: w.add_array("llama.embedding_length", [[1], [2]]),
    "lists that differ": lambda w: w.add_array("llama.embedding_length", [32, 64]),
}


@pytest.mark.parametrize("name", SPOILT_METADATA)
def test_a_gguf_size_that_is_none_is_refused_by_its_own_name(name: str, tmp_path: Path) -> None:
    def metadata(writer: gguf.GGUFWriter) -> None:
        _without(writer, "llama.embedding_length")
        SPOILT_METADATA[name](writer)

    path = gguf_of(tmp_path, metadata)
    with pytest.raises(OckhamError, match=r"llama\.embedding_length") as refused:
        load(path)
    assert "config.json" not in str(refused.value)
    assert "model.gguf" in str(refused.value)


def test_a_gguf_file_without_tensors_says_so(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "none.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(OckhamError, match=r"lacks the tensor 'token_embd\.weight'"):
        load(tmp_path / "none.gguf")


def test_lists_that_are_equal_for_all_layers_are_one_value(tmp_path: Path) -> None:
    def metadata(writer: gguf.GGUFWriter) -> None:
        for key, value in (("attention.head_count_kv", 2), ("feed_forward_length", 48)):
            _without(writer, f"llama.{key}")
            writer.add_array(f"llama.{key}", [value, value])

    found = load(gguf_of(tmp_path, metadata))
    assert (found.description.kv_heads, found.description.intermediate_size) == (2, 48)


def header_of(*fields: bytes) -> bytes:
    return b"GGUF" + struct.pack("<I", 3) + b"".join(fields)


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


COUNTS = struct.pack("<QQ", 0, 1)
HEADERS = {
    "nested lists": header_of(COUNTS, key(b"k", 9, struct.pack("<IQ", 9, 1) * 100_000)),
    "a list of 2^63 bytes": header_of(COUNTS, key(b"k", 9, struct.pack("<IQ", 0, 2**63))),
    "a list of 2^63 texts": header_of(COUNTS, key(b"k", 9, struct.pack("<IQ", 8, 2**63))),
    "a text of 2^63 bytes": header_of(COUNTS, key(b"k", 8, struct.pack("<Q", 2**63))),
    "2^63 tensors": header_of(struct.pack("<QQ", 2**63, 0)),
    "2^63 keys": header_of(struct.pack("<QQ", 0, 2**63)),
    "many empty texts": header_of(
        COUNTS, key(b"k", 9, struct.pack("<IQ", 8, 5_000_000) + bytes(40_000_000))
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_gguf_header_ends_in_a_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(HEADERS[name])
    assert load_apart(path).strip().endswith(".")


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_damaged_gguf_header_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "model.gguf"
    if not path.exists():
        gguf_of(tmp_path, tokens)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(4, 1200))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(raw)
    for read in (
        lambda: GgufFile(damaged).close(),
        lambda: load(damaged),
        lambda: Tokenizer(damaged),
    ):
        with said_shortly():
            read()


def test_a_gguf_that_is_a_fifo_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    with pytest.raises(OckhamError, match="no regular file"):
        load(resolve(str(tmp_path / "model.gguf")))


def test_a_tokenizer_that_cannot_encode_a_word_says_so(tmp_path: Path) -> None:
    """A vocabulary of words without a token for the others."""
    described = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.encode("a a") == [0, 0]
    with pytest.raises(OckhamError, match="tokenizer cannot encode this text"):
        tokenizer.encode("a b")


def untied(directory: Path, change: float) -> Path:
    """A checkpoint that says its head is tied and holds one, `change` away from the embedding."""
    tiny_llama(directory, tie_word_embeddings=True)
    tensors = load_file(directory / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].copy()
    head[-1, -1] += np.float32(change)
    save_file({**tensors, "lm_head.weight": head}, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize(("change", "tied"), [(0.0, True), (0.5, False)])
def test_a_stored_head_that_differs_is_used(change: float, tied: bool, tmp_path: Path) -> None:
    said: list[str] = []
    config = EngineConfig(
        model=str(untied(tmp_path, change)), backend="reference", skip_tokenizer_init=True
    )
    found = load_model(config, said.append)
    assert found.description.tied_embeddings is tied
    assert any("the stored one is used" in line for line in said) is not tied
