"""Every search that a request may ask for: the same answer whatever runs beside it, its limits, and
what it says of what it did."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from ockham import LLM, SamplingParams
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.outputs import RequestOutput
from ockham.core.registry import asks_at, asks_by_method, make
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.running import drive
from tests.helpers import serving
from tests.helpers.tiny import tiny_llama

COMPANION: dict[str, Any] = {"seed": 4, "num_hidden_layers": 1}
plain_engine = partial(
    serving.make_engine, skip_tokenizer_init=False, max_model_len=400, run_programs=True
)
PROMPT = [(7 * i) % 4096 for i in range(40)]
LETTER = {"extract": "([a-m])"}
SETTINGS: dict[str, dict[str, Any]] = {
    "vote": {**LETTER, "samples": 6, "parallel": 3, "stop": "certain"},
    "shortest": {**LETTER, "samples": 4, "parallel": 4, "first": 2},
    "deepconf": {**LETTER, "samples": 6, "parallel": 3, "warmup": 2, "window": 3, "keep": 0.5},
    "rpc": {**LETTER, "samples": 5, "parallel": 3},
    "best": {**LETTER, "samples": 5, "parallel": 3},
    "promising": {**LETTER, "samples": 6, "after": 4, "keep": 0.6},
    "consensus": {"samples": 5, "parallel": 3, "calls": ["1", "2"]},
    "interim": {"border": "e", "write": " a", "tokens": 3, "every": 2, "extract": "([a-m])"},
    "threads": {
        "spawn": "a",
        "close": "e",
        "between": "i",
        "open": "o{text}",
        "join": "l",
        "returns": "t",
        "back": "n{text}",
        "go_on": "s",
        "tokens": 12,
        "depth": 2,
        "threads": 3,
        "spawns": 4,
        "parallel": 3,
    },
    "pipeline": {
        **LETTER,
        "stages": [
            {"op": "generate", "samples": 3, "tokens": 6},
            {"op": "combine", "write": "{texts}e", "tokens": 6, "most": 5},
            {"op": "extend", "write": "ab", "until": "e", "tokens": 8},
            {"op": "verify", "ask": "a", "yes": "b", "no": "c", "keep": 3},
            {"op": "generate", "samples": 2, "write": "u", "tokens": 4, "add": True},
            {"op": "vote"},
        ],
        "parallel": 3,
    },
    "give_up": {"threshold": -9.0},
    "beam": {**LETTER, "width": 4, "border": "e", "step": 5},
    "rebase": {**LETTER, "width": 4, "border": "e", "step": 5},
    "ets": {**LETTER, "width": 4, "border": "e", "step": 5},
    "particles": {**LETTER, "width": 4, "border": "e", "step": 5},
    "cascade": {"by": "mean", "sure": 0.9},
    "switch": {"entropy": 3.0, "window": 2, "stay": 2},
    "step_drafts": {"border": "e", "step": 4, "by": "mean", "accept": 0.0002},
    "lent_thought": {"begin": "x", "end": "ee", "tokens": 9},
    "route": {"joules": 1.0},
    "allocate": {**LETTER, "table": [6, 5, 3], "parallel": 2},
}
ONE_TEXT = (
    *("interim", "threads", "cascade", "switch", "step_drafts", "lent_thought", "route"),
    "give_up",
)
"""Searches that give one text, or as many as are asked for; they may be greedy."""
SEVERAL = [each for each in SETTINGS if each not in (*ONE_TEXT, "pipeline")]
TIMED = ("branches", "cancelled", "tokens_made", "tokens_spared", "tokens_shared", "tokens_held")
"""What a report says that depends on the steps: how far those were that were given up."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("searching")
    tiny_llama(directory / "small", tokenizer=True, **COMPANION)
    return tiny_llama(directory / "model", tokenizer=True)


def make_engine(checkpoint: Path, **settings: Any) -> Engine:
    companions = {"small": str(checkpoint.parent / "small")}
    return plain_engine(checkpoint, companions=companions, **settings)


def request(name: str, search: Any, **params: Any) -> Request:
    values = {"temperature": 1.0, "seed": 5, "max_tokens": 24, "ignore_eos": True, **params}
    return Request(
        request_id=name,
        prompt_token_ids=PROMPT,
        params=SamplingParams(search=search, **values),  # type: ignore[call-arg]
    )


def served(engine: Engine, wanted: list[Request]) -> dict[str, RequestOutput]:
    outputs: dict[str, RequestOutput] = {}
    drive(engine, wanted, lambda output: outputs.update({output.request_id: output}))
    engine.check_integrity()
    assert engine.stats().pages_used == engine.scheduler.reserved_seats == 0
    return outputs


def told(output: RequestOutput, method: str) -> tuple[list[tuple[str, list[int]]], dict[str, Any]]:
    report = output.outputs[0].report
    assert report is not None
    rest = {name: value for name, value in report[method].items() if name not in TIMED}
    return [(choice.text, choice.token_ids) for choice in output.outputs], rest


def test_each_search_that_can_be_asked_for_is_tried_here() -> None:
    assert {*SETTINGS, "superposed", "choices"} == set(asks_at("search"))


ENGINES = [
    {"max_num_batched_tokens": 5},
    {"kv_cache_memory_bytes": 60_000, "max_model_len": 100, "block_size": 4, "reuse": "none"},
    {"speculative_config": "copying"},
]


@pytest.fixture(scope="module")
def engines(checkpoint: Path) -> list[Engine]:
    return [make_engine(checkpoint, **settings) for settings in ({"reuse": "none"}, *ENGINES)]


@pytest.mark.parametrize("method", SETTINGS)
def test_an_answer_depends_on_nothing_beside_it(engines: list[Engine], method: str) -> None:
    search = {"method": method, **SETTINGS[method]}
    alone, *others = engines
    first = told(served(alone, [request("a", search)])["a"], method)
    for engine in others:
        wanted = [
            request("b", None, n=2),
            request("a", search),
            request("c", {"method": "vote", **SETTINGS["vote"]}, seed=6),
        ]
        assert told(served(engine, wanted)["a"], method) == first


@pytest.mark.parametrize("method", SEVERAL)
def test_several_answers_are_told_the_best_first(engines: list[Engine], method: str) -> None:
    search = {"method": method, **SETTINGS[method]}
    one, three = (served(engines[0], [request("a", search, n=n)])["a"] for n in (1, 3))
    choices = [choice.token_ids for choice in three.outputs]
    assert len(choices) == 3
    assert choices[0] == one.outputs[0].token_ids
    assert all(choice.finish_reason in ("stop", "length") for choice in three.outputs[:2])


@pytest.mark.parametrize("method", SEVERAL)
def test_a_budget_holds_for_all_branches_together(engines: list[Engine], method: str) -> None:
    search = {"method": method, **SETTINGS[method], "budget": 30}
    output = served(engines[0], [request("a", search)])["a"]
    report = output.outputs[0].report
    assert report is not None
    assert report[method]["stopped"] == "budget"
    assert 30 <= output.ledger.generated_tokens < 30 + 4 * 4
    assert output.outputs[0].text


def test_a_step_that_ends_with_the_text_is_the_last(checkpoint: Path) -> None:
    """Also where bytes that are no character yet are told only when the text ends."""
    engine = make_engine(checkpoint)
    for seed in range(12):
        for step in (1, 3):
            search = {"method": "rebase", "width": 3, "border": "e", "step": step, **LETTER}
            name = f"{seed} {step}"
            output = served(engine, [request(name, search, seed=seed, max_tokens=6)])[name]
            assert output.outputs[0].finish_reason == "length"
            assert len(output.outputs[0].token_ids) == 6


@pytest.mark.parametrize("method", SETTINGS)
def test_it_ends_with_its_caller(engines: list[Engine], method: str) -> None:
    engine = engines[0]
    engine.take(request("gone", {"method": method, **SETTINGS[method]}, max_tokens=200))
    for _ in range(12):
        engine.step()
    assert engine.abort("gone")[-1].finished
    engine.check_integrity()
    assert engine.stats().pages_used == engine.scheduler.reserved_seats == 0
    assert not engine.has_work


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ("guess", "there is no search 'guess'; there is: .*vote"),
        ({"n": 3}, 'an object with one as "method"'),
        (7, "search must be a name"),
        ({"method": "vote", "guess": 1}, "takes no guess"),
        ({"method": "deepconf", "keep": 0.0}, "keep must be above 0"),
        ({"method": "deepconf", "warmup": 1}, "warmup must be at least 2"),
        ({"method": "shortest", "first": 0}, "first must be at least 1"),
        ({"method": "rpc", "certain": 0.2}, "certain must be above 0.5"),
        (
            {"method": "best", "scorer": "taste"},
            "scorer must be likelihood, confidence, checker:NAME, reward:NAME or",
        ),
        ({"method": "best", "enough": 2}, "enough must be above 0"),
        ({"method": "interim", "border": ""}, "border must have 1 to 1000 characters, got 0"),
        ({"method": "interim", "agree": 0}, r"agree must lie in \[1, 1024\]"),
        ({"method": "interim", "sure": 1.5}, "sure must be above 0"),
        ({"method": "beam", "width": 1}, r"width must lie in \[2, 256\], got 1"),
        ({"method": "beam", "beams": 0}, "beams must be at least 1"),
        ({"method": "rebase", "balance": 0}, "balance must lie in"),
        ({"method": "ets", "diverse": -1}, "diverse must lie in"),
        ({"method": "particles", "step": 0}, "step must lie in"),
        ({"method": "particles", "budget": 0}, "budget must lie in"),
        ({"method": "beam", "border": "x" * 101}, "border must have 1 to 100 characters"),
        ({"method": "promising", "samples": 65}, "there may be 64, got 65"),
        ({"method": "promising", "after": 0}, "after must lie in"),
        ({"method": "promising", "keep": 1}, "keep must be above 0 and below 1"),
        ({"method": "promising", "least": 0}, "least must be at least 1"),
        ({"method": "promising", "enough": 0}, "enough must be above 0"),
        ({"method": "promising", "scorer": "x"}, "scorer must be"),
        ({"method": "consensus", "extract": "text"}, 'extract must be "behaviour", as programs'),
        ({"method": "interim", "extract": "behaviour"}, "an answer in between is no program"),
        ({"method": "vote", "calls": ["1"] * 65}, "at most 64 calls, got 65"),
        ({"method": "beam", "calls": [""]}, "a call must have 1 to 1000 characters"),
        ({"method": "vote", "calls": 3}, "calls"),
        (
            {"method": "cascade", "by": "luck"},
            "cascade: by must be mean, least, agreement, checker:NAME",
        ),
        ({"method": "cascade", "sure": 0}, "sure must be above 0 and at most 1"),
        ({"method": "cascade", "by": "agreement", "samples": 1}, r"samples must lie in \[2, 64\]"),
        ({"method": "switch", "entropy": -1}, r"entropy must lie in \[0, 100\]"),
        ({"method": "switch", "stay": 0}, r"stay must lie in \[1, 1024\]"),
        ({"method": "step_drafts", "border": ""}, "border must have 1 to 1000 characters"),
        ({"method": "step_drafts", "accept": 2}, "accept must be above 0 and at most 1"),
        ({"method": "step_drafts", "by": "taste"}, "by must be mean or least, got 'taste'"),
        ({"method": "lent_thought", "end": " "}, "end must have up to 1000 characters, and not be"),
        ({"method": "lent_thought", "tokens": 0}, "tokens must lie in"),
        ({"method": "allocate", "table": [2]}, "table must have 2 to 256 entries, got 1"),
        ({"method": "allocate", "table": [2, 1]}, r"each entry of table must lie in \[2, 256\]"),
        ({"method": "allocate", "samples": 4}, "the table says how many samples are drawn"),
        ({"method": "route", "joules": 0.0}, "route: joules must be above 0"),
        ({"method": "route", "sure": 1.5}, "sure must be above 0 and at most 1"),
    ],
)
def test_what_cannot_be_searched_is_refused(search: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        request("a", search)


@pytest.mark.parametrize(
    ("search", "params", "said"),
    [
        ({"method": "beam", "width": 4, "beams": 5}, {}, "5 beams are more than the width of 4"),
        ({"method": "deepconf", "samples": 2}, {}, "the first 4 of 2 samples set the threshold"),
        ({"method": "shortest", "samples": 2}, {}, "the first 3 of 2 samples"),
        ({"method": "best", "scorer": "checker:no"}, {}, "no checker 'no'; there is: none; name"),
        ({"method": "rebase", "width": 2}, {"n": 3}, "n of at most 2"),
        ({"method": "rebase"}, {"temperature": 0.0}, "needs a temperature above 0"),
        ({"method": "interim"}, {"n": 2}, "needs n=1"),
        ({"method": "vote", "calls": ["f(1)"]}, {}, 'evaluated where extract is "behaviour"'),
        ({"method": "cascade"}, {"n": 2}, "cascade gives one text: it needs n=1"),
        ({"method": "switch"}, {"logprobs": 1}, "which logprobs does not allow"),
        ({"method": "cascade", "by": "agreement"}, {"temperature": 0.0}, "temperature above 0"),
        ({"method": "route"}, {}, "route needs a router .* or a budget"),
        ({"method": "route", "router": "no"}, {}, "no companion has a probe 'no'"),
        ({"method": "cascade", "model": "no"}, {}, "no companion 'no'; there is: small"),
        ({"method": "cascade", "by": "checker:no"}, {}, "no checker 'no'; there is: none; name"),
    ],
)
def test_what_a_search_cannot_do_with_a_request_is_refused(
    engines: list[Engine], search: Any, params: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        engines[0].take(request("a", search, **params))
    assert not engines[0].has_work


@pytest.mark.parametrize("method", SETTINGS)
def test_an_engines_setting_searches_where_that_makes_sense(checkpoint: Path, method: str) -> None:
    named = f"{method}:joules=1" if method == "route" else method
    engine = make_engine(checkpoint, search=named)
    greedy = served(engine, [request("a", None, temperature=0.0)])["a"].outputs[0].report
    assert (greedy is None) == (method not in ONE_TEXT)
    found = served(engine, [request("b", None), request("c", "choices")])
    assert (found["b"].outputs[0].report or {}).keys() == {method}
    assert found["c"].outputs[0].report is None


@pytest.mark.parametrize("method", ["vote", "beam"])
def test_a_text_that_the_budget_ends_has_no_more_room(engines: list[Engine], method: str) -> None:
    search = {"method": method, **SETTINGS[method], "budget": 12, "extract": "(.+)"}
    output = served(engines[0], [request("a", search)])["a"]
    (choice,) = output.outputs
    report = (choice.report or {})[method]
    assert choice.finish_reason == "length"
    assert report["tokens_made"] == output.ledger.generated_tokens
    assert report["answer"]


def test_a_vote_that_has_all_samples_says_so(engines: list[Engine]) -> None:
    """Also where they are of one mind about nothing."""
    search = {"method": "vote", "samples": 3, "extract": "(never)"}
    report = served(engines[0], [request("a", search)])["a"].outputs[0].report
    assert report is not None
    assert report["vote"]["without_answer"] == 3
    assert report["vote"]["stopped"] == "samples"


def test_programs_are_not_run_unless_the_engine_may(checkpoint: Path) -> None:
    engine = make_engine(checkpoint, run_programs=False)
    for search in ({"method": "vote", "extract": "behaviour"}, {"method": "consensus"}):
        with pytest.raises(InvalidRequest, match="start it with --run-programs"):
            engine.take(request("a", search))
    assert not engine.has_work


def test_a_search_is_asked_for_once() -> None:
    with pytest.raises(InvalidRequest, match="vote is asked for twice, by search and by vote"):
        SamplingParams(vote={"samples": 3}, search="vote")  # type: ignore[call-arg]


def test_options_may_have_colons() -> None:
    best = make("search", "best:scorer=checker:a,samples=4")
    assert best._options.scorer == "checker:a"
    assert best._options.samples == 4
    assert make("search", "vote:extract=json:a.b:samples=5")._options.extract == "json:a.b"


def test_a_method_is_the_technique_of_its_name() -> None:
    asked = asks_by_method("search", {"method": "vote", "samples": 3})
    assert asked == {"search/vote": {"samples": 3}}
    assert asks_by_method("search", "vote") == {"search/vote": True}
    assert asks_by_method("search", None) == {}
    by_field = SamplingParams(vote={"samples": 3})  # type: ignore[call-arg]
    assert by_field == SamplingParams(search={"method": "vote", "samples": 3})  # type: ignore[call-arg]


def test_options_of_an_engine_are_checked() -> None:
    with pytest.raises(ConfigError, match="width must lie in"):
        make("search", "beam:width=1")
    with pytest.raises(ConfigError, match="scorer must be"):
        make("search", "best:scorer=taste")


class SlowJudge:
    """Scores texts in threads of its own, each a moment later."""

    def submit(self, prompt: Any, text: str) -> Future[float]:
        found: Future[float] = Future()
        score = len(set(text)) % 7 / 7
        Timer(0.001 * (len(text) % 5), lambda: found.set_result(score)).start()
        return found


def test_a_step_has_a_token_of_its_own_however_slow_a_judge_is(checkpoint: Path) -> None:
    """Also where the token that ended the step before brought another border, and a branch that
    waits for a seat has said nothing yet."""
    engine = serving.make_engine(
        checkpoint, skip_tokenizer_init=False, max_model_len=400, max_num_seqs=4
    )
    engine.checkers["slow"] = SlowJudge()  # type: ignore[assignment]
    search = {"method": "rebase", "width": 4, "border": "e", "step": 5, "scorer": "checker:slow"}
    wanted = [request(str(n), {**search, **LETTER}, seed=n, max_tokens=60) for n in range(4)]
    outputs = served(engine, wanted)
    assert {output.outputs[0].finish_reason for output in outputs.values()} <= {"stop", "length"}
    engine.checkers.clear()


# -- what the lab model's searches give -----------------------------------------------------------


CHECK = """
import json, re, sys
asked = json.load(sys.stdin)
numbers = re.findall("[0-9]+", asked["prompt"])
said = re.findall("Answer: (.+)", asked["text"])
print(bool(said) and said[-1].split() == sorted(numbers))
"""


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    check = tmp_path_factory.mktemp("checkers") / "check.py"
    check.write_text(CHECK)
    hang = check.with_name("hang.py")
    hang.write_text("print('x' * 100_000_000)")
    checkers = {
        "sorted": f"{sys.executable} {check}",
        "flood": f"{sys.executable} {hang}",
        "broken": "false",
        "slow": f"{sys.executable} -c 'import time; time.sleep(60)'",
    }
    with LLM("lab", max_model_len=512, checkers=checkers, run_programs=True) as llm:
        yield llm


def ask(llm: LLM, search: dict[str, Any], **params: Any) -> list[RequestOutput]:
    numbers = [(34, 23, 12, 64, 29), (55, 23, 12, 64, 29), (71, 18, 44, 96, 10)]
    messages = [
        [{"role": "user", "content": f"Sort {' '.join(map(str, row))}."}] for row in numbers
    ]
    values = {"temperature": 1.0, "max_tokens": 200, "seed": 3, **params}
    sampling = SamplingParams(search={"extract": "Answer: (.+)", **search}, **values)  # type: ignore[call-arg]
    return llm.chat(messages, sampling)  # type: ignore[arg-type]


def test_sampling_ends_with_the_first_sample_that_a_checker_finds_right(llm: LLM) -> None:
    search = {"method": "best", "samples": 12, "parallel": 2, "scorer": "checker:sorted"}
    outputs = ask(llm, search)
    reports = [(output.outputs[0].report or {})["best"] for output in outputs]
    assert any(report["stopped"] == "enough" for report in reports)
    for report in reports:
        *before, last = report["scores"]
        assert not any(before)
        assert (last == 1.0) == (report["stopped"] == "enough")
        assert report["samples"] == len(report["scores"])


def test_one_sample_after_the_other_waits_for_what_the_checker_says(llm: LLM) -> None:
    search = {"method": "best", "samples": 12, "parallel": 1, "scorer": "checker:sorted"}
    for output in ask(llm, search):
        report = (output.outputs[0].report or {})["best"]
        assert report["branches"] == report["samples"]
        assert report["cancelled"] == 0


@pytest.mark.parametrize(("checker", "said"), [("flood", "more than"), ("broken", "status 1")])
def test_a_checker_that_fails_harms_only_its_branches(llm: LLM, checker: str, said: str) -> None:
    search = {"method": "best", "samples": 2, "scorer": f"checker:{checker}"}
    for output in ask(llm, search):
        report = (output.outputs[0].report or {})["best"]
        assert report["scores"] == [0.0, 0.0]
        assert said in report["failed"]["0"]
        assert "/" not in report["failed"]["0"].replace("status 1", "")
        assert output.outputs[0].text.startswith("1")


RUN = {"extract": "behaviour", "calls": ["add_tree(0, 1)", "len('ab')"]}


def ask_code(llm: LLM, search: dict[str, Any], **params: Any) -> dict[str, Any]:
    """The report of a search among programs: a function whose constant is changed."""
    code = "def add_tree(cat, dog):\n    cat = dog + 12\n    return cat"
    asked = f"Change 12 to 34 in cat = dog + 12.\n{code}"
    values = {"temperature": 0.5, "max_tokens": 100, "seed": 3, **params}
    sampling = SamplingParams(search=search, **values)  # type: ignore[call-arg]
    (output,) = llm.chat([[{"role": "user", "content": asked}]], sampling)
    report = output.outputs[0].report
    assert report is not None
    found = report[search["method"]]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("vote", {"samples": 4, "parallel": 2, "stop": "certain"}),
        ("shortest", {"samples": 3, "parallel": 3, "first": 2}),
        ("deepconf", {"samples": 4, "parallel": 2, "warmup": 2}),
        ("rpc", {"samples": 3, "parallel": 2}),
        ("best", {"samples": 3, "parallel": 2}),
        ("consensus", {"samples": 3}),
        ("rebase", {"width": 3}),
    ],
)
def test_what_programs_do_is_compared(llm: LLM, method: str, settings: dict[str, Any]) -> None:
    search = {"method": method, **settings, **RUN}
    report = ask_code(llm, search)
    assert report["answer"] == '["35", "2"]'
    assert report["runs"] + report["runs_spared"] >= 2
    none = ask_code(llm, {**search, "calls": ["no_such_name"]})
    assert none["answer"] is None
    assert "(NameError)" in next(iter(none["without_outputs"].values()))


def test_programs_that_are_alike_are_run_once(llm: LLM) -> None:
    search = {"method": "consensus", "samples": 4, "calls": ["add_tree(1, 2)", "add_tree(1, 'a')"]}
    report = ask_code(llm, search, temperature=0.01)
    assert report["answer"] == '["36", "raises TypeError"]'
    assert (report["runs"], report["runs_spared"], report["kinds"]) == (1, 3, 1)
    assert report["agreement"] == 1.0


def test_a_program_that_hangs_harms_only_its_branch(llm: LLM) -> None:
    report = ask_code(
        llm, {"method": "consensus", "samples": 2, "calls": ["add_tree(1, 2)", "sum(iter(int, 1))"]}
    )
    assert report["answer"] is None
    assert len(report["without_outputs"]) == 2
    assert all("took longer than" in why for why in report["without_outputs"].values())


def test_a_budget_waits_for_programs_that_run(llm: LLM) -> None:
    report = ask_code(llm, {"method": "vote", "samples": 8, "parallel": 1, "budget": 50, **RUN})
    assert report["stopped"] == "budget"
    assert report["answer"] == '["35", "2"]'


def test_checks_that_nobody_waits_for_are_given_up(llm: LLM) -> None:
    engine = llm.engine
    program = engine.checkers["slow"]._program
    search = {"method": "best", "samples": 6, "parallel": 6, "scorer": "checker:slow"}
    engine.take(request("gone", search, max_tokens=2))
    while not program._running:
        engine.step()
    engine.abort("gone")
    began = time.monotonic()
    while program._running and time.monotonic() - began < 10:
        time.sleep(0.05)
    assert time.monotonic() - began < 5
    time.sleep(0.3)
    assert not program._running
    assert not engine.has_work


def test_a_checker_steers_a_tree(llm: LLM) -> None:
    """Particles that are not sorted right so far die out before they are complete."""
    search = {"method": "particles", "width": 6, "scorer": "checker:sorted", "choose": "best"}
    for output in ask(llm, search):
        report = (output.outputs[0].report or {})["particles"]
        assert report["complete"] == 6
        best = max(report["answers"], key=report["answers"].__getitem__)
        assert report["answer"] == best


def test_a_tree_shares_what_its_branches_begin_with(llm: LLM) -> None:
    """It computes each step once, and ets keeps less state than rebase."""
    held = {}
    for method in ("rebase", "ets"):
        outputs = ask(llm, {"method": method, "width": 12})
        reports = [(output.outputs[0].report or {})[method] for output in outputs]
        for output, report in zip(outputs, reports, strict=True):
            drafts = (each for name, each in output.ledger.wasted.items() if name != method)
            rows = output.ledger.rows - len(output.prompt_token_ids)
            rows -= sum(each.tokens for each in drafts)
            assert rows <= report["tokens_made"] + report["branches"]
            shared = report["tokens_shared"] - 11 * len(output.prompt_token_ids)
            assert report["tokens_made"] < 0.5 * (report["tokens_made"] + shared)
        held[method] = sum(report["tokens_held"] for report in reports)
    assert held["ets"] < 0.8 * held["rebase"]


def test_what_is_written_for_a_text_does_not_end_it(checkpoint: Path) -> None:
    """Also where it has a token or a text that would, as the end of a turn."""
    engine = make_engine(checkpoint)
    assert engine.tokenizer is not None
    (stop,) = engine.tokenizer.encode("a", add_special_tokens=False)
    for ends in ({"stop_token_ids": [stop]}, {"stop": ["abab"]}):
        stages = [{"op": "generate", "write": "abab", "tokens": 5}]
        search = {"method": "pipeline", "stages": stages}
        output = served(engine, [request("a", search, **ends)])["a"]
        assert (output.outputs[0].report or {})["pipeline"]["tokens_made"] == 5
        assert len(output.outputs[0].token_ids) == 5
