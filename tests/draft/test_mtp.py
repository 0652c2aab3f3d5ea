"""Blocks that checkpoints ship for drafting: their arithmetic, and that no token changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors

from ockham.core.errors import ConfigError, ModelError
from ockham.core.seams import Rows
from ockham.draft.modelled.carrying import CarryingDrafter, CarryingStream
from ockham.engine.engine import Engine
from ockham.engine.runner.head_model import HeadModel
from tests.helpers.draft_blocks import MTP, add_mtp, deepseek_names
from tests.helpers.drafting import VOCABULARY, answers, make_engine
from tests.helpers.serving import ask, complete, drain, tokens_of
from tests.helpers.tiny import tiny_llama, tiny_mixtral, tiny_qwen3_5

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


TARGETS: dict[str, Callable[..., Path]] = {"qwen": qwen, "experts": experts, "deepseek": deepseek}


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Callable[..., Path]:
    return TARGETS[request.param]


def block_of(engine: Engine) -> HeadModel:
    (drafter,) = engine.speculation.drafters
    assert isinstance(drafter, CarryingDrafter)
    assert isinstance(drafter.model, HeadModel)
    return drafter.model


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


@pytest.mark.parametrize("made", [qwen, deepseek])
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


def test_texts_longer_than_its_context_are_drafted_for(tmp_path: Path) -> None:
    """The block lets go of what it no longer sees."""
    checkpoint = deepseek(tmp_path, right=True)
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


def said_by_block(engine: Engine, tokens: list[int], states: list[np.ndarray]) -> np.ndarray:
    """The logits that the block gives behind each token of a text but the first, read in two runs;
    `states` are the model's hidden states after the layers that the block reads, (T, d)."""
    block = block_of(engine)
    view = block.open()
    carried = block.carry([each[:-1] for each in states])
    found = []
    for place in range(1, len(tokens)):
        assert block.reserve(view, place)
        row = Rows(view, [tokens[place]], beside=carried[place - 1 : place])
        found.append(block.run([row], 4).logits[0])
    again = block.open()
    half = len(tokens) // 2
    assert block.reserve(again, len(tokens) - 1)
    for part in (slice(0, half), slice(half, len(tokens) - 1)):
        chunk = Rows(again, tokens[1:][part], beside=carried[part])
        logits = block.run([chunk], 4).logits[0]
        np.testing.assert_allclose(logits, found[part.stop - 1], rtol=0, atol=1e-5)
    block.release(view)
    block.release(again)
    return np.stack(found)


def without_report(checkpoint: Path) -> Any:
    """transformers' model, which knows nothing of the block."""
    transformers.logging.set_verbosity_error()
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("form", ["qwen", "deepseek"])
def test_a_block_computes_what_its_paper_says(form: str, backend: str, tmp_path: Path) -> None:
    """The plain twin: a layer of transformers between what is joined and the norm of the head."""
    checkpoint = TARGETS[form](tmp_path)
    model = without_report(checkpoint)
    decoder, tensors = model.get_decoder(), load_tensors(checkpoint / "model.safetensors")
    names = MTP if form == "qwen" else deepseek_names(2)
    offset = 1.0 if form == "qwen" else 0.0
    eps = model.config.rms_norm_eps

    def weight(part: str) -> torch.Tensor:
        return tensors[f"{names[part]}.weight"] + (offset if part != "join" else 0.0)

    layer = decoder.layers[ATTENDS]  # both models have one that attends there
    prefix = names["mtp.layers.0."]
    inner = ("enorm", "hnorm", "eh_proj", "shared_head")
    layer.load_state_dict(
        {
            name[len(prefix) :]: tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix) and not name[len(prefix) :].startswith(inner)
        }
    )
    tokens = [(5 * i + 3) % VOCABULARY for i in range(30)]
    residual: list[torch.Tensor] = []
    of_model = without_report(checkpoint).get_decoder()
    of_model.norm.register_forward_pre_hook(lambda _, given: residual.append(given[0]))
    with torch.no_grad():
        last = of_model(input_ids=torch.tensor([tokens])).last_hidden_state
        embedded = decoder.embed_tokens(torch.tensor([tokens[1:]]))
        normed = [
            rms(embedded, weight("embedding_norm"), eps),
            rms(last[:, :-1], weight("hidden_norm"), eps),
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
        expected = model.lm_head(rms(y, weight("norm"), eps))[0].numpy()
    settings = {"dtype": "float32", "backend": backend}
    engine = make_engine(checkpoint, speculative_config=DRAFTING, **settings)
    found = said_by_block(engine, tokens, [residual[0][0].numpy()])
    spread = float(expected.max() - expected.min())
    assert spread > 1.0
    assert np.abs(found - expected).max() < 1e-4 * spread


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


def test_a_damaged_block_is_refused(tmp_path: Path) -> None:
    checkpoint = deepseek(tmp_path)
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.2.eh_proj.weight"] = tensors["model.layers.2.eh_proj.weight"][:, 1:]
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(ModelError, match="eh_proj"):
        make_engine(checkpoint, speculative_config="mtp")
