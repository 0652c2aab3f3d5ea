"""Assistants of Gemma 4: their arithmetic, and that no token changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from ockham.core.errors import ConfigError, ModelError
from ockham.core.seams import Rows
from ockham.draft.modelled.sharing import SharingDrafter
from ockham.engine.engine import Engine
from ockham.engine.runner.assistant_model import AssistantModel
from tests.helpers.architectures import CASES, GEMMA4_12B, GEMMA4_DENSE
from tests.helpers.draft_blocks import assistant_as_gguf, write_assistant
from tests.helpers.drafting import VOCABULARY, answers, make_engine
from tests.helpers.oracle import COMMON, randomise
from tests.helpers.serving import ask, complete
from tests.helpers.tiny import tiny_gemma4, tiny_llama

SHARED: dict[str, Any] = {
    "kinds": ("sliding_attention", "full_attention") * 3,
    "sharing": 2,
    "inputs": 16,
}
TARGETS: dict[str, dict[str, Any]] = {"dense": {}, "mixture": {"experts": 4}, "shared": SHARED}


def drafting(assistant: Path, **more: Any) -> dict[str, Any]:
    own = {"method": "mtp", "model": str(assistant), "adaptive": False}
    return {**own, "num_speculative_tokens": 4, **more}


def target(directory: Path, name: str = "dense", **how: Any) -> Path:
    return tiny_gemma4(directory, vocab_size=VOCABULARY, **TARGETS[name], **how)


def assistant_of(engine: Engine) -> AssistantModel:
    (drafter,) = engine.speculation.drafters
    assert isinstance(drafter, SharingDrafter)
    assert isinstance(drafter.model, AssistantModel)
    return drafter.model


@pytest.mark.parametrize("known", [None, 12])
@pytest.mark.parametrize("name", TARGETS)
def test_whatever_the_assistant_says_no_token_changes(
    name: str, known: int | None, tmp_path: Path
) -> None:
    checkpoint = target(tmp_path / "model", name, window=30)
    assistant = write_assistant(tmp_path / "assistant", checkpoint, known=known)
    engine = make_engine(checkpoint, speculative_config=drafting(assistant))
    assert answers(engine) == answers(make_engine(checkpoint))
    assert engine.speculation.stats().drafts > 0
    assert not engine.speculation.streams.readers  # it reads no prompts


@pytest.mark.parametrize("reuse", ["none", "prefix"])
def test_an_assistant_that_says_what_the_model_says_is_accepted(reuse: str, tmp_path: Path) -> None:
    checkpoint = target(tmp_path / "model", window=30)
    assistant = write_assistant(tmp_path / "assistant", checkpoint, right=True)
    setting = drafting(assistant, branches=1)
    engine = make_engine(checkpoint, speculative_config=setting, reuse=reuse)
    expected = answers(make_engine(checkpoint))
    assert answers(engine) == expected
    assert answers(engine) == expected
    stats = engine.speculation.stats()
    assert stats.accepted >= 0.9 * stats.tokens  # not where penalties count
    assert engine.total.saved["mtp"].tokens == stats.accepted


def test_the_same_bits_after_preemption_and_in_coded_state(tmp_path: Path) -> None:
    checkpoint = target(tmp_path / "model", window=30)
    assistant = write_assistant(tmp_path / "assistant", checkpoint, right=True)
    for dtype in ("float32", "k=int8,v=int4"):
        roomy = make_engine(checkpoint, kv_cache_dtype=dtype)
        cell_bytes = sum(layout.cell_bytes for layout in roomy.model.layouts)
        tight = {"kv_cache_dtype": dtype, "max_model_len": 150}
        tight["kv_cache_memory_bytes"] = 170 * cell_bytes
        engine = make_engine(checkpoint, speculative_config=drafting(assistant), **tight)
        assert answers(engine, 4) == answers(make_engine(checkpoint, **tight), 4)
        assert engine.scheduler.preemptions > 0
        assert engine.speculation.stats().accepted > 0


@pytest.fixture
def sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5.23 refuses models all of whose layers read others' keys, which its assistants
    are, and has the keys of a model shared only where its own layers share them."""

    def modes(config: Any) -> list[str | None]:
        own = config.num_hidden_layers - config.num_kv_shared_layers
        kinds = config.layer_types[:own]
        found: list[str | None] = ["reuse"] * config.num_hidden_layers
        for layer, kind in enumerate(kinds):
            found[layer] = None if kind in kinds[layer + 1 :] else "store"
        return found

    for config in (transformers.Gemma4TextConfig, transformers.Gemma4UnifiedTextConfig):
        monkeypatch.setattr(config, "kv_sharing_modes", property(modes))


def oracle(name: str, values: dict[str, Any], ordered: bool) -> tuple[Any, Any]:
    """A target and its assistant, by transformers."""
    model = CASES[name].build()
    text = transformers.Gemma4TextConfig(
        **{
            **COMMON,
            **values,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_kv_shared_layers": 2,
            "tie_word_embeddings": True,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
        }
    )
    config = transformers.Gemma4AssistantConfig(
        text_config=text,
        backbone_hidden_size=model.config.hidden_size,
        use_ordered_embeddings=ordered,
        num_centroids=101,
        centroid_intermediate_top_k=40,
    )
    assistant = transformers.Gemma4AssistantForCausalLM._from_config(
        config, attn_implementation="eager"
    )
    assistant = randomise(assistant.float().eval(), 5)
    if ordered:
        order = np.random.default_rng(3).permutation(101)
        assistant.masked_embedding.token_ordering.copy_(torch.from_numpy(order))
    return model, assistant


@pytest.mark.usefixtures("sharing")
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    ("name", "values"), [("gemma4", GEMMA4_DENSE), ("gemma4-unified", GEMMA4_12B)]
)
def test_an_assistant_computes_what_transformers_computes(
    name: str, values: dict[str, Any], ordered: bool, tmp_path: Path
) -> None:
    """Its first rows behind a prompt, each of which carries what the one before it made."""
    model, assistant = oracle(name, values, ordered)
    model.save_pretrained(tmp_path / "model")
    assistant.save_pretrained(tmp_path / "assistant")
    if name == "gemma4-unified":
        unified = {"architectures": ["Gemma4UnifiedAssistantForCausalLM"]}
        changed(tmp_path / "assistant", lambda config, _: config.update(unified))
    prompt = [int(t) for t in np.random.default_rng(1).integers(3, 101, 6)]
    drafted = [7, 50, 99]
    residual: list[torch.Tensor] = []
    model.get_decoder().norm.register_forward_pre_hook(lambda _, given: residual.append(given[0]))
    meant = []
    with torch.no_grad():
        said = model.get_decoder()(
            input_ids=torch.tensor([prompt]), use_cache=False, return_shared_kv_states=True
        )
        hidden = said.last_hidden_state[:, -1:]
        for token in drafted:
            embedded = model.get_input_embeddings()(torch.tensor([[token]]))
            found = assistant(
                inputs_embeds=torch.cat([embedded, hidden], dim=-1),
                position_ids=torch.tensor([[len(prompt)]]),
                shared_kv_states=dict(said.shared_kv_states),
            )
            hidden = found.last_hidden_state
            meant.append(found.logits[0, 0].numpy())
    for backend in ("cpu", "reference"):
        engine = make_engine(
            tmp_path / "model",
            speculative_config=drafting(tmp_path / "assistant"),
            dtype="float32",
            backend=backend,
        )
        block = assistant_of(engine)
        engine.take(ask("one", prompt, max_tokens=5))
        engine.step()
        (sequence,) = engine.scheduler.running
        assert sequence.view.tokens == len(prompt)
        carried = block.carry([residual[0][0, -1:].numpy()])
        for token, logits in zip(drafted, meant, strict=True):
            foreseen = block.run([Rows(sequence.view, [token], beside=carried)], 4)
            assert foreseen.hidden is not None
            carried = foreseen.hidden
            known = foreseen.logits[0] > -1e29
            assert known.sum() == (40 if ordered else 101)
            spread = float(logits.max() - logits.min())
            assert np.abs(foreseen.logits[0] - logits)[known].max() < 1e-4 * spread
            assert foreseen.candidates[0].tolist() == np.argsort(-logits)[:4].tolist()


def test_an_assistant_of_a_gguf_file_says_what_it_says_from_the_directory(tmp_path: Path) -> None:
    checkpoint = target(tmp_path / "model", window=30)
    assistant = write_assistant(tmp_path / "assistant", checkpoint)
    file = assistant_as_gguf(assistant, tmp_path / "assistant.gguf")
    said = []
    for model in (assistant, file):
        engine = make_engine(checkpoint, speculative_config=drafting(model), dtype="float32")
        block = assistant_of(engine)
        engine.take(ask("one", list(range(3, 23)), max_tokens=5))
        engine.step()
        (sequence,) = engine.scheduler.running
        beside = np.random.default_rng(2).standard_normal((1, 32)).astype(np.float32)
        said.append(block.run([Rows(sequence.view, [7], beside=beside)], 4))
    one, other = said
    assert one.hidden is not None
    assert other.hidden is not None
    assert np.ptp(one.logits) > 1
    np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)
    np.testing.assert_allclose(one.hidden, other.hidden, atol=1e-4)
    with pytest.raises(ModelError, match="is an assistant of Gemma 4, which drafts for a model"):
        make_engine(file)


def test_an_assistant_is_known_without_its_method(tmp_path: Path) -> None:
    checkpoint = target(tmp_path / "model")
    assistant = write_assistant(tmp_path / "assistant", checkpoint)
    engine = make_engine(checkpoint, speculative_config={"model": str(assistant)})
    assert "mtp" in {drafter.name for drafter in engine.speculation.drafters}
    setting = {"method": "draft_model", "model": str(assistant)}
    with pytest.raises(ConfigError, match="was made for the method 'mtp', and no model"):
        make_engine(checkpoint, speculative_config=setting)


def test_an_assistant_of_another_model_is_refused(tmp_path: Path) -> None:
    checkpoint = target(tmp_path / "model")
    assistant = write_assistant(tmp_path / "assistant", checkpoint)
    llama = tiny_llama(tmp_path / "llama", vocab_size=VOCABULARY)
    with pytest.raises(ConfigError, match="which this model does not keep"):
        make_engine(llama, speculative_config=drafting(assistant))
    wide = tiny_gemma4(tmp_path / "wide", vocab_size=VOCABULARY, hidden_size=64)
    with pytest.raises(ConfigError, match="of a model of hidden size 32 and 97 tokens, and this"):
        make_engine(wide, speculative_config=drafting(assistant))


def changed(assistant: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    config = json.loads((assistant / "config.json").read_text())
    tensors = load_file(assistant / "model.safetensors")
    change(config, tensors)
    (assistant / "config.json").write_text(json.dumps(config))
    save_file(tensors, assistant / "model.safetensors")


def test_a_damaged_assistant_is_refused(tmp_path: Path) -> None:
    checkpoint = target(tmp_path / "model")
    assistant = write_assistant(tmp_path / "assistant", checkpoint, known=12)
    setting = drafting(assistant)
    changed(assistant, lambda config, _: config.update(num_centroids=0))
    with pytest.raises(ModelError, match="num_centroids of an assistant's"):
        make_engine(checkpoint, speculative_config=setting)
    changed(assistant, lambda config, _: config.update(num_centroids=97))
    changed(
        assistant, lambda _, tensors: tensors["masked_embedding.token_ordering"].__setitem__(0, 5)
    )
    with pytest.raises(ModelError, match="does not divide 97 tokens into 97 clusters"):
        make_engine(checkpoint, speculative_config=setting)
    write_assistant(assistant, checkpoint)
    changed(assistant, lambda _, tensors: tensors.pop("pre_projection.weight"))
    with pytest.raises(ModelError, match=r"pre_projection\.weight"):
        make_engine(checkpoint, speculative_config=setting)


def test_texts_that_outgrow_the_window_are_drafted_for(tmp_path: Path) -> None:
    checkpoint = target(tmp_path / "model", window=12)
    assistant = write_assistant(tmp_path / "assistant", checkpoint, right=True)
    engine = make_engine(checkpoint, speculative_config=drafting(assistant))
    request = ask("long", list(range(2, 90)), max_tokens=100)
    found = complete(engine, [request])
    assert found == complete(make_engine(checkpoint), [request])
    assert engine.speculation.stats().accepted > 50
