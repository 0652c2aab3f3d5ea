"""Blocks that checkpoints ship for drafting: their arithmetic, and that no token changes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.draft.modelled.carrying import CarryingStream
from ockham.engine.engine import Engine
from ockham.model import converting
from tests.helpers.architectures import CASES
from tests.helpers.draft_blocks import MTP, add_mtp, block_of, deepseek_names, said_by_block
from tests.helpers.drafting import VOCABULARY, answers, make_engine
from tests.helpers.serving import ask, complete, drain, tokens_of
from tests.helpers.tiny import tiny_latent, tiny_llama, tiny_mixtral, tiny_qwen3_5

DRAFTING = {"method": "mtp", "adaptive": False, "num_speculative_tokens": 4}
ATTENDS = 1
"""The layer of a tiny Qwen 3.5 that attends."""


def qwen(directory: Path, **how: Any) -> Path:
    return add_mtp(tiny_qwen3_5(directory, vocab_size=VOCABULARY), like=ATTENDS, **how)


def experts(directory: Path, **how: Any) -> Path:
    return add_mtp(tiny_mixtral(directory, vocab_size=VOCABULARY), **how)


def deepseek(directory: Path, **how: Any) -> Path:
    """A Llama with the names that DeepSeek and GLM give a block."""
    made = tiny_llama(directory, vocab_size=VOCABULARY)
    return add_mtp(made, names=deepseek_names(2), **how)


def latent(directory: Path, **how: Any) -> Path:
    """DeepSeek-V3: latent attention, and experts in the block."""
    made = tiny_latent(directory, vocab_size=VOCABULARY)
    return add_mtp(made, names=deepseek_names(2), like=1, **how)


TARGETS: dict[str, Callable[..., Path]] = {
    "qwen": qwen,
    "experts": experts,
    "deepseek": deepseek,
    "latent": latent,
}


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Callable[..., Path]:
    return TARGETS[request.param]


def check_empty(engine: Engine) -> None:
    """Nothing is held for texts that have ended."""
    assert block_of(engine).state.pages_used == 0
    assert not engine.speculation.streams.readers
    assert not engine.speculation.streams.observers


@pytest.mark.parametrize("right", [False, True])
def test_whatever_the_block_says_no_token_changes(
    target: Callable[..., Path], right: bool, tmp_path: Path
) -> None:
    checkpoint = target(tmp_path, right=right and target is not experts)
    engine = make_engine(checkpoint, speculative_config=DRAFTING)
    assert answers(engine) == answers(make_engine(checkpoint))
    assert engine.speculation.stats().drafts > 0
    check_empty(engine)


def test_left_to_itself_it_reads_on_through_plain_steps(tmp_path: Path) -> None:
    checkpoint = deepseek(tmp_path, right=True)
    engine = make_engine(checkpoint, speculative_config={"method": "mtp", "branches": 1})
    assert answers(engine, max_tokens=120) == answers(make_engine(checkpoint), max_tokens=120)
    stats = engine.speculation.stats()
    assert stats.planned > stats.drafts  # some steps had none
    # What was seen in those steps is what the block then reads.
    assert stats.accepted >= 0.9 * stats.tokens
    check_empty(engine)


@pytest.mark.parametrize("made", [qwen, deepseek, latent])
def test_a_block_that_says_what_the_model_says_is_accepted(
    made: Callable[..., Path], tmp_path: Path
) -> None:
    engine = make_engine(made(tmp_path, right=True), speculative_config={**DRAFTING, "branches": 1})
    answers(engine)
    stats = engine.speculation.stats()
    # It is cut short at the end of each of the six answers only.
    assert stats.accepted_at[3] >= stats.drafts - 6
    assert engine.total.saved["mtp"].tokens == stats.accepted


def test_the_same_bits_after_reuse_and_preemption(tmp_path: Path) -> None:
    checkpoint = deepseek(tmp_path, right=True)
    tight = {"kv_cache_memory_bytes": 160 * 2 * 2 * 2 * 8 * 4, "max_model_len": 150}
    engine = make_engine(checkpoint, speculative_config=DRAFTING, reuse="prefix", **tight)
    expected = answers(make_engine(checkpoint, **tight), 4)
    assert answers(engine, 4) == expected
    assert answers(engine, 4) == expected  # whose prompts are held now
    assert engine.ledger.prompt_tokens_reused > 0
    assert engine.scheduler.preemptions > 0
    assert engine.speculation.stats().accepted > 0
    check_empty(engine)


def test_after_a_reused_prefix_the_block_reads_what_was_computed(tmp_path: Path) -> None:
    checkpoint = deepseek(tmp_path)
    engine = make_engine(checkpoint, speculative_config=DRAFTING, reuse="prefix")
    prompt = [(3 * i) % VOCABULARY for i in range(41)]
    complete(engine, [ask("first", prompt)])
    engine.take(ask("second", prompt, max_tokens=8))
    while engine.has_work and not engine.speculation.counters.planned:
        engine.step()
    for _ in range(3):
        engine.step()
    (sequence,) = engine.scheduler.running
    stream = engine.speculation.streams.of(sequence).streams[0]
    assert isinstance(stream, CarryingStream)
    # One token of the prompt was computed, and the first cell is of the token behind it.
    assert stream.committed + len(stream.unread) <= len(sequence.tokens) - 40
    drain(engine)
    check_empty(engine)


def test_an_exported_request_goes_on_elsewhere(tmp_path: Path) -> None:
    checkpoint = deepseek(tmp_path, right=True)
    one, other = (make_engine(checkpoint, speculative_config=DRAFTING) for _ in range(2))
    request = ask("moved", list(range(2, 40)), max_tokens=30)
    one.take(request)
    said: list[int] = []
    for _ in range(4):
        said += [token for delta in one.step() for token in delta.token_ids]
    other.import_request(one.export_request("moved"))
    said += tokens_of(drain(other))["moved", 0]
    assert said == complete(make_engine(checkpoint), [request])["moved", 0]
    assert other.speculation.stats().accepted > 0
    check_empty(one)
    check_empty(other)


@pytest.mark.parametrize("made", [deepseek, latent])
def test_texts_longer_than_its_context_are_drafted_for(
    made: Callable[..., Path], tmp_path: Path
) -> None:
    """The block lets go of what it no longer sees."""
    checkpoint = made(tmp_path, right=True)
    setting = {**DRAFTING, "draft_context": 64}
    engine = make_engine(checkpoint, speculative_config=setting, max_model_len=500)
    request = ask("long", list(range(2, 90)) * 3, max_tokens=200)
    engine.take(request)
    found: list[int] = []
    pages = 0
    while engine.has_work:
        found += [token for delta in engine.step() for token in delta.token_ids]
        pages = max(pages, block_of(engine).state.pages_used)
    plain = make_engine(checkpoint, max_model_len=500)
    assert found == complete(plain, [request])["long", 0]
    assert pages <= (2 * 64 + 64) // 4
    assert engine.speculation.stats().accepted > 100
    check_empty(engine)


def without_report(checkpoint: Path) -> Any:
    """transformers' model, which knows nothing of the block."""
    transformers.logging.set_verbosity_error()
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def block_in_torch(
    model: Any,
    layer: torch.nn.Module,
    states: torch.Tensor,
    tokens: list[int],
    weight: Callable[[str], torch.Tensor],
) -> np.ndarray:
    """The plain twin of a block: a layer of transformers between what is joined and the norm of the
    head. `states` are what the model's head reads, (1, T, d); `weight` gives the block's other
    tensors."""
    decoder, eps = model.get_decoder(), model.config.rms_norm_eps
    embedded = decoder.embed_tokens(torch.tensor([tokens[1:]]))
    normed = [
        rms(embedded, weight("embedding_norm"), eps),
        rms(states[:, :-1], weight("hidden_norm"), eps),
    ]
    x = torch.cat(normed, -1) @ weight("join").T
    count = len(tokens) - 1
    positions = torch.arange(count)[None]
    y = layer(
        x,
        attention_mask=torch.full((count, count), float("-inf")).triu(1)[None, None],
        position_ids=positions,
        position_embeddings=decoder.rotary_emb(x, positions),
    )
    y = y[0] if isinstance(y, tuple) else y
    said: np.ndarray = model.lm_head(rms(y, weight("norm"), eps))[0].numpy()
    return said


def residual_and_normed(
    decoder: Any, tokens: list[int], norm: str = "norm"
) -> tuple[np.ndarray, torch.Tensor]:
    """What the last layer leaves, and what the head reads of it."""
    residual: list[torch.Tensor] = []
    last_norm = getattr(decoder, norm)
    last_norm.register_forward_pre_hook(lambda _, given: residual.append(given[0]))
    last = decoder(input_ids=torch.tensor([tokens])).last_hidden_state
    return residual[0][0].numpy(), last


def check_said(checkpoint: Path, tokens: list[int], states: np.ndarray, meant: np.ndarray) -> None:
    for backend in ("cpu", "reference"):
        settings = {"dtype": "float32", "backend": backend}
        engine = make_engine(checkpoint, speculative_config=DRAFTING, **settings)
        found = said_by_block(engine, tokens, [states])
        spread = float(meant.max() - meant.min())
        assert spread > 1.0
        assert np.abs(found - meant).max() < 1e-4 * spread


TOKENS = [(5 * i + 3) % VOCABULARY for i in range(30)]


@pytest.mark.parametrize("form", ["qwen", "deepseek"])
def test_a_block_computes_what_its_paper_says(form: str, tmp_path: Path) -> None:
    checkpoint = TARGETS[form](tmp_path)
    model = without_report(checkpoint)
    tensors = load_tensors(checkpoint / "model.safetensors")
    names = MTP if form == "qwen" else deepseek_names(2)
    offset = 1.0 if form == "qwen" else 0.0

    def weight(part: str) -> torch.Tensor:
        return tensors[f"{names[part]}.weight"] + (offset if part != "join" else 0.0)

    layer = model.get_decoder().layers[ATTENDS]  # both models have one that attends there
    prefix = names["mtp.layers.0."]
    inner = ("enorm", "hnorm", "eh_proj", "shared_head")
    with torch.no_grad():
        states, normed = residual_and_normed(without_report(checkpoint).get_decoder(), TOKENS)
        layer.load_state_dict(
            {
                name[len(prefix) :]: tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix) and not name[len(prefix) :].startswith(inner)
            }
        )
        meant = block_in_torch(model, layer, normed, TOKENS, weight)
    check_said(checkpoint, TOKENS, states, meant)


@pytest.mark.parametrize("name", ["deepseek-v3", "glm4-moe-lite"])
def test_a_block_with_latent_attention_computes_what_its_paper_says(
    name: str, tmp_path: Path
) -> None:
    """The last of the layers that transformers makes, with its experts, is the block's."""
    model = CASES[name].build()
    layers, size = model.config.num_hidden_layers - 1, model.config.hidden_size
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": layers}))
    names, rng = deepseek_names(layers), np.random.default_rng(7)
    others = {
        part: rng.uniform(0.5, 1.5, size).astype(np.float32)
        for part in ("embedding_norm", "hidden_norm", "norm")
    }
    others["join"] = rng.standard_normal((size, 2 * size)).astype(np.float32)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors |= {f"{names[part]}.weight": tensor for part, tensor in others.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    tokens = [token + 3 for token in TOKENS]
    decoder = model.get_decoder()
    with torch.no_grad():
        block, decoder.layers = decoder.layers[-1], decoder.layers[:-1]
        states, normed = residual_and_normed(decoder, tokens)
        meant = block_in_torch(
            model, block, normed, tokens, lambda part: torch.from_numpy(others[part])
        )
    check_said(tmp_path, tokens, states, meant)


def test_a_block_of_single_layers_computes_what_its_paper_says(tmp_path: Path) -> None:
    """Nemotron-H: a layer that attends, then a mixture, as the last two that transformers makes."""
    case = CASES["nemotron-h"]
    kinds = [*case.values["layers_block_type"], "attention", "moe"]
    values = {**case.values, "layers_block_type": kinds, "num_hidden_layers": len(kinds)}
    model = replace(case, values=values).build()
    model.save_pretrained(tmp_path)
    layers, size, eps = len(kinds) - 2, model.config.hidden_size, model.config.layer_norm_epsilon
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(
        json.dumps({**config, "layers_block_type": kinds[:-2], "num_hidden_layers": layers})
    )
    rng = np.random.default_rng(7)
    others = {
        name: rng.uniform(0.5, 1.5, size).astype(np.float32)
        for name in ("0.enorm", "0.hnorm", "1.final_layernorm")
    }
    others["0.eh_proj"] = rng.standard_normal((size, 2 * size)).astype(np.float32)
    tensors = {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        found = re.fullmatch(r"\w+\.layers\.(\d+)\.(.+)", name)
        if found is not None and int(found[1]) >= layers:
            name = f"mtp.layers.{int(found[1]) - layers}.{found[2]}"
        tensors[name] = tensor
    tensors |= {f"mtp.layers.{name}.weight": tensor for name, tensor in others.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    tokens = [token + 3 for token in TOKENS]
    decoder = model.get_decoder()
    weights = {name: torch.from_numpy(tensor) for name, tensor in others.items()}
    with torch.no_grad():
        blocks, decoder.layers = decoder.layers[-2:], decoder.layers[:-2]
        decoder.config.num_hidden_layers = layers
        states, normed = residual_and_normed(decoder, tokens, "norm_f")
        embedded = decoder.get_input_embeddings()(torch.tensor([tokens[1:]]))
        x = torch.cat(
            [
                rms(embedded, weights["0.enorm"], eps),
                rms(normed[:, :-1], weights["0.hnorm"], eps),
            ],
            -1,
        )
        x = x @ weights["0.eh_proj"].T
        count = len(tokens) - 1
        mask = torch.full((count, count), float("-inf")).triu(1)[None, None]
        for block in blocks:
            x = block(x, attention_mask=mask if block.block_type != "moe" else None)
        meant = model.lm_head(rms(x, weights["1.final_layernorm"], eps))[0].numpy()
    check_said(tmp_path, tokens, states, meant)
    engine = make_engine(tmp_path, speculative_config=DRAFTING)
    assert answers(engine) == answers(make_engine(tmp_path))
    assert engine.speculation.stats().drafts > 0


def test_what_has_no_block_is_refused(tmp_path: Path) -> None:
    plain = tiny_llama(tmp_path / "plain", vocab_size=VOCABULARY)
    with pytest.raises(ConfigError, match=r"no block that foretells .* mtp\.fc\.weight or model"):
        make_engine(plain, speculative_config="mtp")
    wide = add_mtp(tiny_llama(tmp_path / "wide", vocab_size=VOCABULARY, hidden_size=64))
    with pytest.raises(ConfigError, match="of hidden size 64, 97 tokens and 2 layers"):
        make_engine(plain, speculative_config={"method": "mtp", "model": str(wide)})
    with pytest.raises(ConfigError, match="draft_context must be at least 64, got 8"):
        make_engine(plain, speculative_config={"method": "mtp", "draft_context": 8})


def test_a_block_may_stand_in_another_checkpoint(tmp_path: Path) -> None:
    """So that a converted model has that of the checkpoint that it was made from."""
    plain = tiny_llama(tmp_path / "plain", vocab_size=VOCABULARY)
    other = add_mtp(tiny_llama(tmp_path / "other", vocab_size=VOCABULARY))
    engine = make_engine(plain, speculative_config={**DRAFTING, "model": str(other)})
    assert answers(engine) == answers(make_engine(plain))
    assert engine.speculation.stats().drafts > 0


@pytest.mark.parametrize("made", [qwen, experts, latent])
def test_a_converted_model_keeps_its_block(made: Callable[..., Path], tmp_path: Path) -> None:
    """To the bit as it would be quantised at load, and the model's own weights as without it."""
    checkpoint = made(tmp_path / "model")
    config, told = EngineConfig(model=str(checkpoint), quantization="int8"), list[str]()
    converting.convert(config, tmp_path / "out", told.append)
    assert any("the block that drafts for the model (mtp) takes" in line for line in told)
    one, other = (
        make_engine(model, speculative_config=DRAFTING, quantization=quantization)
        for model, quantization in ((checkpoint, "int8"), (tmp_path / "out", None))
    )
    assert one.model.numerics_id == other.model.numerics_id
    states = np.random.default_rng(3).standard_normal((30, one.model.description.hidden_size))
    said = [said_by_block(each, TOKENS, [states.astype(np.float32)]) for each in (one, other)]
    assert (said[0] == said[1]).all()
    assert answers(other) == answers(make_engine(tmp_path / "out"))
    assert other.speculation.stats().drafts > 0


def test_a_directory_that_was_converted_without_a_block_has_none(tmp_path: Path) -> None:
    plain = tiny_llama(tmp_path / "plain", vocab_size=VOCABULARY)
    config = EngineConfig(model=str(plain), quantization="int8")
    converting.convert(config, tmp_path / "out", lambda line: None)
    with pytest.raises(ConfigError, match="no block that foretells"):
        make_engine(tmp_path / "out", speculative_config="mtp")


def test_a_damaged_block_is_refused(tmp_path: Path) -> None:
    checkpoint = deepseek(tmp_path)
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.2.eh_proj.weight"] = tensors["model.layers.2.eh_proj.weight"][:, 1:]
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(ModelError, match="eh_proj"):
        make_engine(checkpoint, speculative_config="mtp")
