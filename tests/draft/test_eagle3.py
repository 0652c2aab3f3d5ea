"""EAGLE-3 heads: their layouts, their arithmetic, and that no token changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from torch.nn import functional as F

from ockham.core.errors import ConfigError, ModelError
from ockham.core.seams import Rows
from ockham.draft.modelled.carrying import CarryingDrafter
from ockham.engine.engine import Engine
from ockham.engine.runner.head_model import HeadModel
from tests.helpers.draft_blocks import write_eagle3
from tests.helpers.drafting import VOCABULARY, answers, make_engine
from tests.helpers.tiny import tiny_llama

KNOWN = 48


def drafting(head: Path, **more: Any) -> dict[str, Any]:
    setting = {"method": "eagle3", "model": str(head), "adaptive": False}
    return {**setting, "num_speculative_tokens": 4, **more}


def block_of(engine: Engine) -> HeadModel:
    (drafter,) = engine.speculation.drafters
    assert isinstance(drafter, CarryingDrafter)
    assert isinstance(drafter.model, HeadModel)
    return drafter.model


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("target"), vocab_size=VOCABULARY)


@pytest.mark.parametrize("known", [None, KNOWN])
def test_whatever_the_head_says_no_token_changes(
    target: Path, known: int | None, tmp_path: Path
) -> None:
    head = write_eagle3(tmp_path, target, known=known)
    engine = make_engine(target, speculative_config=drafting(head))
    assert answers(engine) == answers(make_engine(target))
    stats = engine.speculation.stats()
    assert stats.drafts > 20
    assert block_of(engine).state.pages_used == 0


def follows(directory: Path) -> tuple[Path, Path]:
    """A model in which each token follows from the one before it alone, and a head that says the
    same: it looks at the newest token, and gives what the model's head reads of it."""
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    target = tiny_llama(directory / "target", vocab_size=VOCABULARY, **sizes)
    tensors = load_file(target / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[...] = 0
    # Of each head's part of an embedding all tokens have as much, so that a token finds itself.
    table = tensors["model.embed_tokens.weight"].reshape(VOCABULARY, 4, 8)
    table = table / np.linalg.norm(table, axis=2, keepdims=True)
    tensors["model.embed_tokens.weight"] = table.reshape(VOCABULARY, 32)
    save_file(tensors, target / "model.safetensors")
    head = write_eagle3(directory / "head", target, config={"norm_before_residual": True})
    own, embedded = load_file(head / "model.safetensors"), np.eye(32, 64, dtype=np.float32)
    own |= {
        "fc.weight": np.zeros_like(own["fc.weight"]),
        "norm.weight": tensors["model.norm.weight"],
        "lm_head.weight": tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"]),
        "midlayer.input_layernorm.weight": np.ones(32, np.float32),
        "midlayer.hidden_norm.weight": np.zeros(32, np.float32),
        "midlayer.self_attn.q_proj.weight": 30 * embedded,
        "midlayer.self_attn.k_proj.weight": 30 * embedded,
        "midlayer.self_attn.v_proj.weight": embedded,
        "midlayer.self_attn.o_proj.weight": np.eye(32, dtype=np.float32),
        "midlayer.mlp.down_proj.weight": np.zeros_like(own["midlayer.mlp.down_proj.weight"]),
    }
    save_file(own, head / "model.safetensors")
    return target, head


def test_a_head_that_says_what_the_model_says_is_accepted(tmp_path: Path) -> None:
    target, head = follows(tmp_path)
    engine = make_engine(target, speculative_config=drafting(head, branches=1))
    assert answers(engine) == answers(make_engine(target))
    stats = engine.speculation.stats()
    assert stats.accepted_at[3] >= stats.drafts - 6
    assert engine.total.saved["eagle3"].tokens == stats.accepted


def said_by_head(engine: Engine, tokens: list[int], states: list[np.ndarray]) -> np.ndarray:
    """The logits that the head gives behind each token of a text but the first."""
    block = block_of(engine)
    view = block.open()
    carried = block.carry([each[:-1] for each in states])
    found = []
    for place in range(1, len(tokens)):
        assert block.reserve(view, place)
        row = Rows(view, [tokens[place]], beside=carried[place - 1 : place])
        found.append(block.run([row], 4).logits[0])
    block.release(view)
    return np.stack(found)


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def plain_twin(
    target: Path, head: Path, tokens: list[int], states: list[torch.Tensor], before: bool
) -> np.ndarray:
    """What the paper and its authors' code say, in PyTorch: (T - 1, V of the head)."""
    own = load_tensors(head / "model.safetensors")
    own = {name.removeprefix("midlayer.").removeprefix("layers.0."): t for name, t in own.items()}
    config = transformers.AutoConfig.from_pretrained(target)
    eps, heads, kv = config.rms_norm_eps, config.num_attention_heads, config.num_key_value_heads
    model = transformers.AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    embedded = model.get_input_embeddings()(torch.tensor(tokens[1:]))
    hidden = torch.cat([each[:-1] for each in states], -1) @ own["fc.weight"].T
    normed = rms(hidden, own["hidden_norm.weight"], eps)
    x = normed if before else hidden
    both = torch.cat([rms(embedded, own["input_layernorm.weight"], eps), normed], -1)
    count = len(both)
    cos, sin = model.get_decoder().rotary_emb(x[None], torch.arange(count)[None])

    def split(name: str, number: int) -> torch.Tensor:
        return (both @ own[f"self_attn.{name}.weight"].T).view(count, number, -1).transpose(0, 1)

    def rotated(y: torch.Tensor) -> torch.Tensor:
        half = y.shape[-1] // 2
        return y * cos + torch.cat([-y[..., half:], y[..., :half]], -1) * sin

    q, k, v = rotated(split("q_proj", heads)), rotated(split("k_proj", kv)), split("v_proj", kv)
    k, v = (each.repeat_interleave(heads // kv, 0) for each in (k, v))
    attended = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
    x = x + attended.transpose(0, 1).reshape(count, -1) @ own["self_attn.o_proj.weight"].T
    inner = rms(x, own["post_attention_layernorm.weight"], eps)
    gate = F.silu(inner @ own["mlp.gate_proj.weight"].T)
    x = x + (gate * (inner @ own["mlp.up_proj.weight"].T)) @ own["mlp.down_proj.weight"].T
    logits: np.ndarray = (rms(x, own["norm.weight"], eps) @ own["lm_head.weight"].T).numpy()
    return logits


FORMS: dict[str, dict[str, Any]] = {
    "authors": {"known": KNOWN},
    "whole vocabulary": {},
    "normed before": {"known": KNOWN, "config": {"norm_before_residual": True}},
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("form", FORMS)
def test_a_head_computes_what_its_paper_says(
    target: Path, form: str, backend: str, tmp_path: Path
) -> None:
    head = write_eagle3(tmp_path, target, **FORMS[form])
    rng = np.random.default_rng(3)
    tokens = [(5 * i + 3) % VOCABULARY for i in range(30)]
    states = [rng.standard_normal((30, 32)).astype(np.float32) for _ in range(3)]
    before = form == "normed before"
    with torch.no_grad():
        expected = plain_twin(target, head, tokens, list(map(torch.tensor, states)), before)
    settings = {"dtype": "float32", "backend": backend}
    engine = make_engine(target, speculative_config=drafting(head), **settings)
    found = said_by_head(engine, tokens, states)
    if "known" in FORMS[form]:
        assert (found[:, 1::2] < -1e29).all()
        found = found[:, : 2 * KNOWN : 2]
    spread = float(expected.max() - expected.min())
    assert spread > 1.0
    assert np.abs(found - expected).max() < 1e-4 * spread


def speculators(directory: Path, target: Path) -> Path:
    """A head as speculators writes it."""
    head = write_eagle3(directory, target, middle="layers.0.")
    path = head / "config.json"
    layer = json.loads(path.read_text())
    layer.pop("eagle_config")
    layer["architectures"] = ["LlamaForCausalLM"]
    config = {
        "architectures": ["Eagle3Speculator"],
        "draft_vocab_size": VOCABULARY,
        "eagle_aux_hidden_state_layer_ids": [1, 1, 2],
        "transformer_layer_config": layer,
    }
    path.write_text(json.dumps(config))
    return head


def test_the_layout_of_speculators_is_read(target: Path, tmp_path: Path) -> None:
    head = speculators(tmp_path, target)
    engine = make_engine(target, speculative_config=drafting(head), dtype="float32")
    assert block_of(engine).layers == (0, 0, 1)  # of layers 1, 1 and 2 the inputs are meant
    rng = np.random.default_rng(3)
    tokens = [(5 * i + 3) % VOCABULARY for i in range(20)]
    states = [rng.standard_normal((20, 32)).astype(np.float32) for _ in range(3)]
    with torch.no_grad():
        expected = plain_twin(target, head, tokens, list(map(torch.tensor, states)), True)
    found = said_by_head(engine, tokens, states)
    assert np.abs(found - expected).max() < 1e-4 * float(expected.max() - expected.min())


def test_what_is_no_head_of_this_model_is_refused(target: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='"eagle3" needs a "model"'):
        make_engine(target, speculative_config="eagle3")
    with pytest.raises(ConfigError, match=r"is no EAGLE-3 head: .*LlamaForCausalLM"):
        make_engine(target, speculative_config=drafting(target))
    other = tiny_llama(tmp_path / "other", vocab_size=VOCABULARY + 3)
    head = write_eagle3(tmp_path / "head", other)
    with pytest.raises(ConfigError, match="made for a model of 100 tokens, and this one has 97"):
        make_engine(target, speculative_config=drafting(head))
    deep = write_eagle3(tmp_path / "deep", target, layers=(0, 1, 7))
    with pytest.raises(ConfigError, match=r"after the layers \[0, 1, 7\], .* has 2 layers"):
        make_engine(target, speculative_config=drafting(deep))


def test_a_damaged_table_of_tokens_is_refused(target: Path, tmp_path: Path) -> None:
    head = write_eagle3(tmp_path, target, known=KNOWN)
    tensors = load_file(head / "model.safetensors")
    tensors["d2t"][5] = 1000
    save_file(tensors, head / "model.safetensors")
    with pytest.raises(ModelError, match="names the token 1005, beyond a vocabulary of 97"):
        make_engine(target, speculative_config=drafting(head))
