"""Drafters that draft with parts of the model that they draft for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from ockham.cli.main import cli
from ockham.core.arrays import Floats, Ints
from ockham.core.cost import ATTENTION, FEED_FORWARD
from ockham.core.errors import ConfigError
from ockham.core.rows import build_step
from ockham.core.seams import OwnRows, Seen
from ockham.draft.early_exit import EarlyExit
from ockham.draft.medusa import StandingStream
from ockham.draft.nested import Nested, NestedOptions
from ockham.draft.prompt_tokens import GuessingStream
from ockham.draft.skip import Choosing
from ockham.engine.engine import Engine
from tests.helpers.drafting import VOCABULARY, answers
from tests.helpers.serving import Said, ask, complete, make_engine, serve
from tests.helpers.tiny import tiny_llama, tiny_mistral, tiny_mixtral, tiny_without_attention
from tests.helpers.trained_drafts import METHODS, write_draft

SIZES = {"hidden_size": 32, "vocab_size": VOCABULARY, "num_hidden_layers": 2}
MARKS = 3
DEEP = 5
SKIPS: list[dict[str, Any]] = [
    {"layers": [1, 2]},
    {"layers": [0, 3], "part": "attention"},
    {"layers": "1+2+4", "part": "feed_forward"},
    {"share": 0.4},
    {"part": "feed_forward"},
]
"""What drafts leave out of a model of so many layers."""
NARROW: list[dict[str, Any]] = [
    {"share": 0.5, "multiple": 16},
    {"share": 0.1, "multiple": 1},
]
"""How many neurons of 48 draft."""


@pytest.fixture(scope="module", params=["full", "window"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "window":
        return tiny_mistral(directory, vocab_size=VOCABULARY, window=16)
    return tiny_llama(directory, vocab_size=VOCABULARY)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose second layer adds nothing to the first."""
    directory = tiny_llama(tmp_path_factory.mktemp("shallow"), vocab_size=VOCABULARY)
    weights = load_file(directory / "model.safetensors")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        weights[f"model.layers.1.{name}.weight"] *= 0.0
    save_file(weights, directory / "model.safetensors")
    return directory


@pytest.fixture(scope="module", params=["full", "window"])
def deep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(f"deep-{request.param}")
    if request.param == "window":
        return tiny_mistral(directory, vocab_size=VOCABULARY, window=16, num_hidden_layers=DEEP)
    return tiny_llama(directory, vocab_size=VOCABULARY, num_hidden_layers=DEEP)


def drafts(directory: Path, method: str, **changed: Any) -> dict[str, Any]:
    """A setting for a drafter of random weights."""
    path = write_draft(directory / method, method, **{**SIZES, **changed})
    return {"method": method, "model": str(path)}


def said(engine: Engine) -> dict[str, Said]:
    """Tokens and log probabilities of greedy and sampled requests, which are served together."""
    requests = [
        ask(
            str(i),
            [(7 * i + 3 * j) % VOCABULARY for j in range(1 + 15 * i)],
            temperature=0.0 if i % 2 else 0.9,
            frequency_penalty=0.5 if i == 2 else 0.0,
            max_tokens=12 + 8 * i,
            logprobs=3,
            seed=i,
        )
        for i in range(5)
    ]
    return {name: told for name, (told, _) in serve(engine, requests).items()}


def drafting_engine(target: Path, drafting: dict[str, Any] | str, **settings: Any) -> Engine:
    if isinstance(drafting, dict):
        drafting = {"adaptive": False, "num_speculative_tokens": 5, **drafting}
    values = {"max_model_len": 200, "block_size": 4, **settings}
    return make_engine(target, speculative_config=drafting, **values)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_texts_are_the_same(target: Path, method: str, adaptive: bool, tmp_path: Path) -> None:
    drafting = drafts(tmp_path, method) | {"adaptive": adaptive}
    engine = drafting_engine(target, drafting)
    assert answers(engine) == answers(drafting_engine(target, "none"))
    counted = engine.stats().drafts
    assert counted.planned
    if not adaptive:
        assert counted.tokens
        wasted = engine.total.wasted[method].tokens
        assert wasted >= counted.tokens - counted.accepted


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("left_out", SKIPS, ids=str)
def test_texts_are_the_same_whatever_drafts_leave_out(
    deep: Path, left_out: dict[str, Any], adaptive: bool
) -> None:
    engine = drafting_engine(deep, {"method": "skip", "adaptive": adaptive, **left_out})
    assert said(engine) == said(drafting_engine(deep, "none"))
    counted = engine.stats().drafts
    assert counted.planned
    if not adaptive:
        assert counted.tokens
        assert engine.total.wasted["skip"].tokens >= counted.tokens - counted.accepted
        assert engine.total.saved["skip"].tokens == counted.accepted


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("narrow", NARROW, ids=str)
def test_texts_are_the_same_whichever_neurons_draft(
    deep: Path, narrow: dict[str, Any], adaptive: bool
) -> None:
    engine = drafting_engine(deep, {"method": "nested", "adaptive": adaptive, **narrow})
    assert said(engine) == said(drafting_engine(deep, "none"))
    counted = engine.stats().drafts
    assert counted.planned
    if not adaptive:
        assert counted.tokens
        assert engine.total.wasted["nested"].tokens >= counted.tokens - counted.accepted
        assert engine.total.saved["nested"].tokens == counted.accepted


@pytest.mark.parametrize("method", ["skip", "nested"])
def test_texts_are_the_same_beside_prefixes_that_are_reused(deep: Path, method: str) -> None:
    """Pages that others begin with hold nothing that was drafted."""
    drafting = {"method": method, **(NARROW[0] if method == "nested" else {})}
    reusing = drafting_engine(deep, drafting, reuse="prefix")
    plain = answers(drafting_engine(deep, "none"))
    assert answers(reusing) == plain
    assert answers(reusing) == plain
    assert reusing.total.saved["prefix"].tokens


def test_texts_are_the_same_where_pages_are_short(shallow: Path, tmp_path: Path) -> None:
    cell = 2 * 2 * 2 * 8 * 4
    for method in METHODS:
        engine = drafting_engine(
            shallow, drafts(tmp_path, method), kv_cache_memory_bytes=130 * cell, max_model_len=120
        )
        found = answers(engine, max_tokens=39)
        assert found == answers(drafting_engine(shallow, "none"), max_tokens=39)
        assert engine.scheduler.preemptions


def test_texts_are_the_same_where_pages_are_short_for_drafts_without_layers(
    tmp_path: Path,
) -> None:
    deep = tiny_llama(tmp_path, vocab_size=VOCABULARY, num_hidden_layers=DEEP)
    cell = 2 * DEEP * 2 * 8 * 4
    settings = {"kv_cache_memory_bytes": 130 * cell, "max_model_len": 120}
    engine = drafting_engine(deep, {"method": "skip"}, **settings)
    found = answers(engine, max_tokens=39)
    assert found == answers(drafting_engine(deep, "none"), max_tokens=39)
    assert engine.scheduler.preemptions


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafts_without_what_adds_nothing_are_always_accepted(
    shallow: Path, temperature: float
) -> None:
    engine = drafting_engine(shallow, {"method": "skip", "layers": [1]})
    found = answers(engine, temperature=temperature, frequency_penalty=0.0)
    plain = drafting_engine(shallow, "none")
    assert found == answers(plain, temperature=temperature, frequency_penalty=0.0)
    counted = engine.stats().drafts
    assert counted.accepted_at[0] == counted.drafts
    assert engine.scheduler.steps < 0.6 * plain.scheduler.steps


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of whose 48 neurons only the first 16 add anything."""
    directory = tiny_llama(tmp_path_factory.mktemp("narrow"), vocab_size=VOCABULARY)
    weights = load_file(directory / "model.safetensors")
    for layer in range(2):
        weights[f"model.layers.{layer}.mlp.down_proj.weight"][:, 16:] = 0.0
    save_file(weights, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafts_of_all_neurons_that_add_something_are_always_accepted(
    narrow: Path, temperature: float
) -> None:
    engine = drafting_engine(narrow, {"method": "nested", "share": 0.34, "multiple": 16})
    found = answers(engine, temperature=temperature, frequency_penalty=0.0)
    plain = drafting_engine(narrow, "none")
    assert found == answers(plain, temperature=temperature, frequency_penalty=0.0)
    counted = engine.stats().drafts
    assert counted.accepted_at[0] == counted.drafts
    assert engine.scheduler.steps < 0.6 * plain.scheduler.steps


def test_first_neurons_draft_what_the_checkpoint_says_that_is_cut_to_them(
    tmp_path: Path,
) -> None:
    """Logits bit for bit, of a checkpoint that `--transform width` wrote."""
    whole = tiny_llama(tmp_path / "whole", vocab_size=VOCABULARY)
    cut = tmp_path / "cut"
    flags = ["--transform", "width:keep=0.34,multiple=16", "--dtype", "float32"]
    result = CliRunner().invoke(cli, ["convert", str(whole), str(cut), *flags])
    assert result.exit_code == 0, result.output
    text = [(5 * i * i + 3) % VOCABULARY for i in range(15)]
    found = []
    for directory, leading in ((whole, [16, 16]), (cut, None)):
        engine = drafting_engine(directory, "none")
        view = engine.state.new_view()
        assert engine.state.reserve(view, len(text))
        for cell, token in enumerate(text):
            likely = engine.own_model.partly(
                [(view, cell, token)], [frozenset()], 3, leading=leading
            )
            engine.state.advance(view, cell + 1)
            found.append((likely.logits, likely.tokens))
    for (logits, tokens), (others, again) in zip(found[:15], found[15:], strict=True):
        np.testing.assert_array_equal(logits, others)
        np.testing.assert_array_equal(tokens, again)


def test_one_token_that_took_a_minute_does_not_end_drafting() -> None:
    """Of a step of 10 ms; what a token takes comes from those after it again."""
    for before in ([], [0.004] * 5):
        drafter = Nested(NestedOptions())
        for took_s in [*before, 60.0, *[0.004] * 30]:
            drafter.learn(took_s, 0.010)
        assert drafter._token_s < 0.006


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"share": 0.0}, "share is above 0 and below 1"),
        ({"share": 1.0}, "got share = 1.0"),
        ({"multiple": 0}, "got multiple = 0"),
        ({"share": 0.9}, "all of them in steps of 64"),
    ],
    ids=str,
)
def test_widths_that_make_no_sense_are_refused(
    narrow: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        drafting_engine(narrow, {"method": "nested", **options})


def test_a_model_without_feed_forwards_to_narrow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="experts"):
        drafting_engine(tiny_mixtral(tmp_path, vocab_size=VOCABULARY), {"method": "nested"})


def test_the_first_layers_alone_are_an_early_exit(deep: Path) -> None:
    exit = drafting_engine(deep, {"method": "early_exit", "layers": 3})
    skip = drafting_engine(deep, {"method": "skip", "layers": [3, 4]})
    assert answers(exit) == answers(skip)
    assert exit.stats().drafts.accepted_at == skip.stats().drafts.accepted_at


def test_what_is_left_out_becomes_what_adds_nothing(tmp_path: Path) -> None:
    """Of six free sublayers one is left out, and one of them adds nothing."""
    directory = tiny_llama(
        tmp_path, vocab_size=VOCABULARY, num_hidden_layers=DEEP, max_position_embeddings=4000
    )
    weights = load_file(directory / "model.safetensors")
    weights["model.layers.3.mlp.down_proj.weight"] *= 0.0
    save_file(weights, directory / "model.safetensors")
    engine = drafting_engine(
        directory, {"method": "skip", "share": 0.01}, max_model_len=4000, max_num_seqs=1
    )
    (drafter,) = engine.speculation.drafters
    opened: list[Choosing] = []
    opening = drafter.open
    drafter.open = lambda salt: opened.append(opening(salt)) or opened[-1]  # type: ignore
    prompt = [(7 * i) % VOCABULARY for i in range(30)]
    complete(engine, [ask("0", prompt, temperature=1.0, max_tokens=3900, seed=1)])
    assert opened[0].skips == {(3, FEED_FORWARD)}


def test_what_a_choice_foretells_is_what_is_drafted(deep: Path) -> None:
    """Beside the state that is there, of which no bit changes."""
    engine = drafting_engine(deep, "none")
    text = [(5 * i * i + 3) % VOCABULARY for i in range(15)]
    view = engine.state.new_view()
    own = engine.own_model
    assert engine.state.reserve(view, len(text))
    ways = (frozenset({(1, ATTENTION), (2, FEED_FORWARD)}), frozenset({(3, FEED_FORWARD)}))
    for cell, token in enumerate(text):
        own.partly([(view, cell, token)], [frozenset()], 1)
        engine.state.advance(view, cell + 1)
    slots = np.arange(len(text), dtype=np.int64)
    before = [engine.state.planes.read(g, slots).copy() for g in range(len(engine.state.groups))]
    foretold = own.foretold(view, text[-6:], ways)
    assert foretold is not None
    after = [engine.state.planes.read(g, slots) for g in range(len(engine.state.groups))]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    for way, found in zip(ways, foretold, strict=True):
        again = engine.state.new_view()
        assert engine.state.reserve(again, len(text))
        expected = []
        for cell, token in enumerate(text):
            skips = way if cell >= len(text) - 6 else frozenset()
            likely = own.partly([(again, cell, token)], [skips], 1)
            engine.state.advance(again, cell + 1)
            expected.append(int(likely.tokens[0, 0]))
        assert found == expected[-6:]
        engine.state.release(again)
    engine.state.release(view)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"layers": [5]}, "names layer 5, but the model has the layers 0 to 4"),
        ({"layers": [-1]}, "names layer -1"),
        ({"layers": "1+x"}, r"numbers joined by \+, as in 5\+7; got '1\+x'"),
        ({"layers": []}, "layers is empty"),
        ({"layers": 3}, "Expected"),
        ({"layers": [0, 1, 2, 3, 4]}, "names all 5 layers"),
        ({"layers": [1], "part": "head"}, "one of 'layer', 'attention', 'feed_forward'"),
        ({"share": 0.0}, "above 0 and below 1"),
        ({"share": 1.5}, "above 0 and below 1"),
    ],
    ids=str,
)
def test_what_cannot_be_left_out_is_refused(deep: Path, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        drafting_engine(deep, {"method": "skip", **wrong})


def test_a_model_with_too_few_layers_for_a_choice_says_so(tmp_path: Path) -> None:
    single = tiny_llama(tmp_path, vocab_size=VOCABULARY, num_hidden_layers=1)
    with pytest.raises(ConfigError, match="a model with 1 layers nothing can be left out by"):
        drafting_engine(single, {"method": "skip"})


def test_attention_that_is_not_there_is_not_left_out(tmp_path: Path) -> None:
    """Of a model some of whose layers do not attend."""
    directory = tiny_without_attention(tmp_path, vocab_size=VOCABULARY)
    with pytest.raises(ConfigError, match="leaves out the attention of layer 1, which has none"):
        drafting_engine(directory, {"method": "skip", "layers": [1], "part": "attention"})
    engine = drafting_engine(directory, {"method": "skip", "layers": [1]})
    assert answers(engine) == answers(drafting_engine(directory, "none"))
    assert engine.stats().drafts.tokens


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_an_early_exit_that_is_always_right_is_always_accepted(
    shallow: Path, temperature: float
) -> None:
    engine = drafting_engine(shallow, {"method": "early_exit", "layers": 1})
    found = answers(engine, temperature=temperature, frequency_penalty=0.0)
    plain = drafting_engine(shallow, "none")
    assert found == answers(plain, temperature=temperature, frequency_penalty=0.0)
    counted = engine.stats().drafts
    leaves = counted.tokens - sum(counted.accepted_at)
    assert counted.accepted_at
    assert counted.accepted_at[0] == counted.drafts
    assert leaves <= counted.drafts * 5
    assert engine.scheduler.steps < 0.6 * plain.scheduler.steps


def test_an_exit_of_zeros_is_the_plain_one(shallow: Path, tmp_path: Path) -> None:
    trained = drafting_engine(shallow, drafts(tmp_path, "early_exit", scale=0.0))
    plain = drafting_engine(shallow, {"method": "early_exit", "layers": 1})
    assert answers(trained) == answers(plain)
    assert trained.stats().drafts.accepted_at == plain.stats().drafts.accepted_at


def rows_after(
    engine: Engine, tokens: list[int], marks: Floats | None = None
) -> tuple[Floats, Ints]:
    """The last token's hidden state after the last layer, and the four likeliest tokens after
    each row, of a text computed in one step, with marks behind it."""
    view = engine.state.new_view()
    count = 0 if marks is None else len(marks)
    rows = len(tokens) + count
    assert engine.state.reserve(view, rows)
    cells, owner = np.arange(rows, dtype=np.int32), np.zeros(rows, np.int32)
    step = build_step(
        np.array(tokens + [0] * count, np.int32),
        cells,
        owner,
        engine.state.tables([view]),
        engine.state.page_tokens,
        wants_logits=cells,
        candidates=4,
    )
    step.wants_hidden = {1: np.array([len(tokens) - 1], np.int32)}
    if marks is not None:
        step.embeddings = marks
        step.embedding_of = np.array([-1] * len(tokens) + list(range(count)), np.int32)
    run = engine.executor.begin(step)
    engine.executor.run(run, 0, len(engine.model.program.ops))
    output = engine.executor.finish(run)
    engine.state.release(view)
    return output.hidden[1][0], output.candidates


def test_streams_are_told_how_the_right_row_stands(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was drafted and accepted: the row before the latest token."""
    told: list[tuple[list[int], Floats]] = []
    texts: dict[StandingStream, list[int]] = {}
    extend, saw = StandingStream.extend, StandingStream.saw

    def extended(stream: StandingStream, tokens: Ints) -> None:
        texts.setdefault(stream, []).extend(tokens.tolist())
        extend(stream, tokens)

    def seeing(stream: StandingStream, own: OwnRows, seen: Seen) -> None:
        told.append((list(texts[stream]), seen.hidden[1][0].copy()))
        saw(stream, own, seen)

    monkeypatch.setattr(StandingStream, "extend", extended)
    monkeypatch.setattr(StandingStream, "saw", seeing)
    answers(drafting_engine(target, drafts(tmp_path, "medusa", scale=0.05)))
    assert len(told) > 50
    reader = drafting_engine(target, "none")
    for text, hidden in told[::7]:
        np.testing.assert_array_equal(rows_after(reader, text)[0], hidden)


def test_marks_are_read_as_if_they_stood_behind_the_text(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[list[int], list[list[int]]]] = []
    texts: dict[GuessingStream, list[int]] = {}
    extend, saw = GuessingStream.extend, GuessingStream.saw

    def extended(stream: GuessingStream, tokens: Ints) -> None:
        texts.setdefault(stream, []).extend(tokens.tolist())
        extend(stream, tokens)

    def seeing(stream: GuessingStream, own: OwnRows, seen: Seen) -> None:
        told.append((list(texts[stream]), seen.candidates.tolist()))
        saw(stream, own, seen)

    monkeypatch.setattr(GuessingStream, "extend", extended)
    monkeypatch.setattr(GuessingStream, "saw", seeing)
    engine = drafting_engine(target, drafts(tmp_path, "prompt_tokens", count=MARKS))
    answers(engine)
    assert engine.stats().drafts.accepted  # so that marks behind guesses were used too
    assert len(told) > 50
    reader = drafting_engine(target, "none")
    for text, candidates in told[::7]:
        _, likely = rows_after(reader, text, engine.speculation.marks)
        assert likely[len(text) :][: len(candidates)].tolist() == candidates


def test_what_belongs_to_another_model_is_refused(target: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hidden size 64"):
        drafting_engine(target, drafts(tmp_path / "wide", "medusa", hidden_size=64))
    other = drafts(tmp_path / "other", "prompt_tokens") | {"method": "medusa"}
    with pytest.raises(ConfigError, match="trained for the method 'prompt_tokens'"):
        drafting_engine(target, other)
    with pytest.raises(ConfigError, match=r"draft\.json"):
        drafting_engine(target, {"method": "medusa", "model": str(target)})
    with pytest.raises(ConfigError, match="ockham draft train"):
        drafting_engine(target, {"method": "medusa"})
    with pytest.raises(ConfigError, match="1 to 1 of them, got layers = 2"):
        drafting_engine(target, {"method": "early_exit", "layers": 2})
    with pytest.raises(ConfigError, match="either"):
        drafting_engine(target, {"method": "early_exit"})
    with pytest.raises(ConfigError, match="layers is a setting of the method early_exit"):
        drafting_engine(target, {"method": "copying", "layers": 1})


def test_one_that_costs_more_than_it_brings_is_left_alone(
    shallow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a drafter that pays: the account of both would stay open."""
    asked = 0
    propose = EarlyExit.propose_all

    def counted(self: EarlyExit, *arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        return propose(self, *arguments)

    monkeypatch.setattr(EarlyExit, "propose_all", counted)
    wrong = drafts(tmp_path, "early_exit", scale=5.0)["model"]
    setting = {"method": "early_exit,copying", "model": wrong, "adaptive": True}
    engine = drafting_engine(shallow, setting, max_model_len=500)
    found = answers(engine, count=3, max_tokens=400, temperature=0.0)
    plain = drafting_engine(shallow, "none", max_model_len=500)
    assert found == answers(plain, count=3, max_tokens=400, temperature=0.0)
    assert 0 < asked < 0.5 * engine.scheduler.steps
