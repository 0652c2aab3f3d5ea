"""Layers that are left out: the same bits as of a checkpoint without them, and what is booked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.ledger import Ledger
from ockham.core.registry import make_asks
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from tests.helpers.tiny import tiny_llama

LAYERS, PROMPTS = 4, [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5], [8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    tiny_llama(directory, num_hidden_layers=LAYERS)
    return directory


def without(checkpoint: Path, to: Path, removed: set[int]) -> Path:
    """The checkpoint from which layers were removed."""
    config = json.loads((checkpoint / "config.json").read_text())
    kept = [layer for layer in range(LAYERS) if layer not in removed]
    config["num_hidden_layers"] = len(kept)
    (to / "config.json").write_text(json.dumps(config))
    tensors = {}
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        head, mark, rest = name.partition(".layers.")
        if mark:
            number, _, field = rest.partition(".")
            if int(number) in removed:
                continue
            name = f"{head}{mark}{kept.index(int(number))}.{field}"
        tensors[name] = tensor
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def engine(path: Path, **settings: Any) -> Engine:
    fields = {"skip_tokenizer_init": True, "speculative_config": "none", "dtype": "bfloat16"}
    return Engine(EngineConfig(model=str(path), **{**fields, **settings}))


def request(name: str, prompt: list[int], skip: Any = None, **params: Any) -> Request:
    fields = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, "logprobs": 2, **params}
    return Request(
        request_id=name,
        prompt_token_ids=prompt,
        params=SamplingParams(**fields),
        detokenize=False,
        asks={} if skip is None else make_asks({"gate/skip_layers": skip}),
    )


def answers(engine: Engine, *requests: Request) -> dict[str, tuple[list[int], list[Any], Ledger]]:
    for each in requests:
        engine.take(each)
    found: dict[str, tuple[list[int], list[Any], Ledger]] = {}
    while engine.has_work:
        for delta in engine.step():
            tokens, logprobs, _ = found.get(delta.request_id, ([], [], Ledger()))
            found[delta.request_id] = (
                tokens + delta.token_ids,
                logprobs + (delta.logprobs or []),
                delta.ledger or Ledger(),
            )
    engine.check_integrity()
    return found


@pytest.mark.parametrize("removed", [{1}, {0, 2}, {3}], ids=str)
def test_it_equals_a_checkpoint_without_those_layers(
    checkpoint: Path, tmp_path: Path, removed: set[int]
) -> None:
    smaller = engine(without(checkpoint, tmp_path, removed))
    whole = engine(checkpoint)
    skip = {"layers": sorted(removed)}
    beside = [request("0", PROMPTS[0], skip), request("1", PROMPTS[1]), request("2", PROMPTS[2])]
    found = answers(whole, *beside)
    alone = answers(smaller, request("0", PROMPTS[0]))
    assert found["0"][:2] == alone["0"][:2]
    for name in ("1", "2"):
        plain = answers(engine(checkpoint), request(name, PROMPTS[int(name)]))
        assert found[name][:2] == plain[name][:2]


@pytest.mark.parametrize("part", ["attention", "feed_forward"])
def test_a_part_of_a_layer_may_be_left_out(checkpoint: Path, part: str) -> None:
    """Beside others and alone; what is left out is something else for each part."""
    whole = engine(checkpoint)
    skip = {"layers": [1, 2], "part": part}
    sampled = {"temperature": 1.0, "seed": 5}
    found = answers(
        whole,
        request("0", PROMPTS[0], skip, **sampled),
        request("1", PROMPTS[1]),
        request("2", PROMPTS[0], {"layers": [1, 2]}, **sampled),
    )
    alone = answers(engine(checkpoint), request("0", PROMPTS[0], skip, **sampled))
    assert found["0"][:2] == alone["0"][:2]
    assert found["0"][1] != found["2"][1]


def test_an_engine_may_skip_for_all_and_a_request_opts_out(checkpoint: Path) -> None:
    skipping = engine(checkpoint, gate="skip_layers:layers=0+2")
    found = answers(
        skipping,
        request("0", PROMPTS[0]),
        Request(
            request_id="1",
            prompt_token_ids=PROMPTS[1],
            params=request("1", PROMPTS[1]).params,
            detokenize=False,
            asks=make_asks({"gate/whole": True}),
        ),
        request("2", PROMPTS[2], {"part": "attention"}),
    )
    plain = engine(checkpoint)
    asked = answers(plain, request("0", PROMPTS[0], {"layers": [2, 0]}))
    assert found["0"][:2] == asked["0"][:2]
    assert found["1"][:2] == answers(plain, request("1", PROMPTS[1]))["1"][:2]
    some = request("2", PROMPTS[2], {"layers": [0, 2], "part": "attention"})
    assert found["2"][:2] == answers(plain, some)["2"][:2]


@pytest.mark.parametrize("decodes", [True, False], ids=["kept step", "plain path"])
def test_the_ledger_books_what_ran(checkpoint: Path, tmp_path: Path, decodes: bool) -> None:
    """A sequence that skips costs what it costs the smaller model; the rest is the gate's saving.
    The shares of all sequences are the steps' own totals."""
    params: dict[str, Any] = {"logprobs": None if decodes else 1}
    whole, smaller = engine(checkpoint), engine(without(checkpoint, tmp_path, {2}))
    for step, name in enumerate("ab"):
        prompt = PROMPTS[step]
        alone = answers(whole, request(name, prompt, {"layers": [2]}, **params))[name][2]
        two = answers(smaller, request(name, prompt, **params))[name][2]
        assert alone.saved.pop("skip_layers").bytes > 0
        assert (alone.flops, alone.weight_bytes) == (two.flops, two.weight_bytes)
        assert alone.state_read_bytes == two.state_read_bytes
        assert alone.state_written_bytes == two.state_written_bytes
        assert alone.saved == two.saved
    both, plain = engine(checkpoint), engine(checkpoint)
    beside = [
        request("0", PROMPTS[0], {"layers": [2]}, **params),
        request("1", PROMPTS[1], **params),
    ]
    found = answers(both, *beside)
    full = answers(plain, request("0", PROMPTS[0], **params))["0"][2]
    saved = found["0"][2].saved["skip_layers"]
    assert found["0"][2].flops + saved.flops == full.flops
    assert "skip_layers" not in found["1"][2].saved
    total = both.total
    for field in ("rows", "flops", "weight_bytes", "state_read_bytes", "state_written_bytes"):
        assert sum(getattr(bill, field) for *_, bill in found.values()) == getattr(total, field)
    assert total.saved["skip_layers"] == saved


def test_state_is_shared_only_with_those_who_ask_the_same(checkpoint: Path) -> None:
    whole, skip = engine(checkpoint), {"layers": [1]}
    prompt = PROMPTS[2] * 4
    first = answers(whole, request("0", prompt))["0"]
    second = answers(whole, request("1", prompt, skip))["1"]
    third = answers(whole, request("2", prompt, skip))["2"]
    fourth = answers(whole, request("3", prompt))["3"]
    assert second[2].prompt_tokens_reused == 0
    assert third[2].prompt_tokens_reused == fourth[2].prompt_tokens_reused == len(prompt) - 1
    assert second[:2] == third[:2] != first[:2] == fourth[:2]


def test_drafts_change_nothing(checkpoint: Path) -> None:
    """The prompt repeats itself, so that there is something to draft."""
    prompt, skip = [7, 8, 9, 10] * 6, {"layers": [1, 3]}
    drafting = engine(checkpoint, speculative_config={"method": "copying", "adaptive": False})
    found = answers(
        drafting,
        request("0", prompt, skip, max_tokens=30, logprobs=None),
        request("1", prompt, max_tokens=30, logprobs=None),
    )
    for name, asked in (("0", skip), ("1", None)):
        plain = request(name, prompt, asked, max_tokens=30, logprobs=None)
        assert found[name][0] == answers(engine(checkpoint), plain)[name][0]


@pytest.mark.parametrize(
    ("skip", "words"),
    [
        ({"layers": [4]}, "layer 4, but the model has the layers 0 to 3"),
        ({"layers": [-1]}, "layer -1"),
        ({"layers": []}, "layers is empty"),
        ({"part": "head"}, "part must be one of layer, attention, feed_forward"),
    ],
    ids=["too high", "below 0", "none", "part"],
)
def test_what_does_not_fit_is_refused(checkpoint: Path, skip: dict[str, Any], words: str) -> None:
    whole = engine(checkpoint)
    with pytest.raises(InvalidRequest, match=words):
        whole.take(request("0", PROMPTS[0], skip))
    assert answers(whole, request("1", PROMPTS[1]))["1"][0]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("skip_layers:layers=9", "layer 9, but the model has the layers 0 to 3"),
        ("skip_layers:layers=1-3", "numbers joined by"),
        ("skip_layers:part=head", "part must be one of"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(checkpoint: Path, setting: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        engine(checkpoint, gate=setting)


def test_approximate_reuse_looks_for_attention(checkpoint: Path) -> None:
    whole = engine(checkpoint, reuse="prefix,edit")
    asking = request("0", PROMPTS[0], {"layers": [1]})
    asking.asks = {**asking.asks, **make_asks({"reuse/edit": True})}
    with pytest.raises(InvalidRequest, match="leave one of the two out"):
        whole.take(asking)
    asking.asks = make_asks(
        {"gate/skip_layers": {"layers": [1], "part": "feed_forward"}, "reuse/edit": True}
    )
    assert len(answers(whole, asking)["0"][0]) == 12
