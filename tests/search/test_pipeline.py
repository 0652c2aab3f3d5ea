"""Pipelines: what each operator makes of texts, what is refused, and what is told."""

from __future__ import annotations

import math
from concurrent.futures import Future
from typing import Any

import msgspec
import numpy as np
import pytest

from ockham import LLM, SamplingParams
from ockham.core.arrays import Ints
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import make
from ockham.search.pipeline import PipelineAsk, PipelineOptions, ScoredStages, Stages
from ockham.search.structures.stages import MOST_CALLS_OF_ALL
from ockham.search.structures.verdict import Verdict, first_tokens, shares
from tests.helpers.scripted import END, follows, play, problem

STEPS = (1, 3, 40)


def options(stages: list[dict[str, Any]], **settings: Any) -> PipelineOptions:
    return msgspec.convert({"stages": stages, "extract": "([0-9]+)", **settings}, PipelineOptions)


def test_only_likelihoods_are_noted() -> None:
    for last, kind in (({"op": "vote"}, Stages), ({"op": "best"}, ScoredStages)):
        ask = msgspec.convert({"stages": [{"op": "generate"}, last]}, PipelineAsk)
        assert type(make("search", "pipeline").begin(ask, problem())) is kind


def run(stages: list[dict[str, Any]], script: dict[str, str], step: int = 1, **more: Any) -> Any:
    state = Stages(options(stages, **more), problem())
    text, finish = play(state, follows(script), step)
    return text, dict(finish.report or {})


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("parallel", [1, 2, 9])
def test_subsets_of_texts_are_written_the_smallest_first(step: int, parallel: int) -> None:
    stages = [
        {"op": "generate", "write": "#", "until": "\n", "tokens": 9},
        {"op": "generate", "write": "@", "until": "\n", "add": True},
        {"op": "combine", "write": "({texts})", "size": 2, "until": "."},
        {"op": "fuse", "write": "<{texts}>"},
    ]
    script = {
        "<a\nfa\nb\nfb\na\nb\nfab>": f"all{END}",
        "(a)": "fa.",
        "(b)": "fb. more",
        "(a\nb)": "fab.",
        "#": "a\n and more",
        "@": "b\n",
        "": "never",
    }
    text, report = run(stages, script, step, parallel=parallel)
    assert text == ""  # an answer that is no branch has no text here
    assert [each["texts"] for each in report["stages"]] == [1, 2, 3, 1]
    assert report["tokens_made"] == len("a\nb\nfa.fb.fab.all") + 1
    assert report["branches"] == 6


@pytest.mark.parametrize("step", STEPS)
def test_a_sure_text_ends_the_pipeline(step: int) -> None:
    """Each token of the script has a probability of e^-0.1."""
    sure = math.exp(-0.1)
    for at, stopped, branches in ((sure - 0.01, "sure", 0), (sure + 0.01, "stages", 3)):
        stages = [
            {"op": "generate"},
            {"op": "sure", "at": at},
            {"op": "generate", "samples": 3, "add": True},
            {"op": "vote"},
        ]
        text, report = run(stages, {"": f"it is 7{END}"}, step)
        assert text.rstrip(END) == "it is 7"
        assert report["answer"] == "7"
        assert report["stopped"] == stopped
        assert report["branches"] == branches


def test_a_stage_tells_how_many_texts_it_made_and_not_how_many_stayed_later() -> None:
    stages = [
        {"op": "generate", "write": "p", "until": ";"},
        {"op": "generate", "write": "q", "until": ";", "add": True},
        {"op": "verify", "ask": "?", "yes": "y", "no": "n", "keep": 1},
    ]
    _, report = run(stages, {"p1;?": "y", "q2;?": "n", "p": "1;", "q": "2;", "": "x"})
    assert [each["texts"] for each in report["stages"]] == [1, 2, 1]
    stages[:2] = [{"op": "generate", "samples": 3, "write": "p", "until": ";"}]
    _, report = run(stages, {"p1;?": "y", "p": "1;", "": "x"})
    assert [each["texts"] for each in report["stages"]] == [3, 1]


def test_texts_go_on_and_the_majority_answers() -> None:
    stages = [
        {"op": "generate", "write": "p", "until": ";"},
        {"op": "generate", "write": "q", "until": ";", "add": True},
        {"op": "generate", "write": "r", "until": ";", "add": True},
        {"op": "extend", "write": "so ", "tokens": 2},
        {"op": "vote"},
    ]
    script = {
        "p1;so ": "99",
        "q2;so ": "42",
        "r3;so ": "42",
        "p": "1;",
        "q": "2;",
        "r": "3;",
        "": "x",
    }
    _, report = run(stages, script)
    assert report["answer"] == "42"
    assert report["stages"][-1] == {"op": "vote", "texts": 1}


class Judge:
    """Finds texts with a 2 right, later; fails for a 3."""

    def submit(self, prompt: Ints, text: str) -> Future[float]:
        future: Future[float] = Future()
        if "3" in text:
            future.set_exception(ValueError("no"))
        else:
            future.set_result(float("2" in text))
        return future


def test_a_checker_says_which_is_best_and_may_fail() -> None:
    stages = [
        {"op": "generate", "write": "r", "tokens": 1},
        {"op": "generate", "write": "q", "tokens": 1, "add": True},
        {"op": "best", "scorer": "checker:two"},
    ]
    asked = msgspec.structs.replace(problem(), judges={"two": Judge()})
    state = Stages(options(stages), asked)
    _, finish = play(state, follows({"r": "3", "q": "2", "": "x"}))
    assert (finish.report or {})["answer"] == "2"
    stages[-1]["scorer"] = "checker:three"
    ask = msgspec.convert({"stages": stages}, PipelineAsk)
    with pytest.raises(InvalidRequest, match="no checker 'three'; there is: two"):
        make("search", "pipeline").begin(ask, asked)


def test_turns_stand_where_they_are_known() -> None:
    stages = [{"op": "generate", "write": "{user}hi{assistant}", "tokens": 1}]
    ended = (f"{END}<u>", f"{END}<a>")  # what ends a turn does not end the text
    for turns, written in ((None, "\n\nhi\n"), (ended, "<u>hi<a>")):
        state = Stages(options(stages), msgspec.structs.replace(problem(), turns=turns))
        _, finish = play(state, follows({written: "1", "": "x"}))
        assert (finish.report or {})["answer"] == "1"


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([{"op": "vote"}], r"stage 1 \(vote\) works on earlier texts, and there are none"),
        ([{"op": "generate", "samples": 0}], r"stage 1 \(generate\): samples must lie in"),
        ([{"op": "generate", "tokens": 0}], "tokens must lie in"),
        ([{"op": "generate"}, {"op": "fuse", "write": "x"}], "write must have {texts}"),
        ([{"op": "generate"}, {"op": "sure", "at": 0}], "at must be above 0"),
        (
            [{"op": "generate"}, {"op": "best", "scorer": "x"}],
            "scorer must be likelihood, checker:NAME or",
        ),
        ([{"op": "generate"}, {"op": "verify", "no": "Yes"}], "yes and no must be two answers"),
        ([{"op": "generate"}, {"op": "vote", "extract": ""}], "extract is ''"),
        ([{"op": "generate"}, {"op": "vote", "extract": "behaviour"}], "are not run"),
        ([{"op": "generate"}] * 17, "a pipeline has 1 to 16 stages, got 17"),
        (
            [{"op": "generate", "samples": 64}, *[{"op": "extend"}] * 3],
            f"write 256 texts together, and at most {MOST_CALLS_OF_ALL}",
        ),
    ],
)
def test_what_cannot_be_is_refused(stages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        SamplingParams(search={"method": "pipeline", "stages": stages})  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=said):
        make("search", "pipeline", {"stages": stages})


@pytest.mark.parametrize(
    ("search", "params", "said"),
    [
        ({"stages": [{"op": "guess"}]}, {}, "guess"),
        ({"stages": [{"op": "generate", "guess": 1}]}, {}, "guess"),
        ({"preset": "guess"}, {}, "guess"),
        ({"preset": "hybrid", "stages": [{"op": "generate"}]}, {}, "stages and preset are two"),
        ({}, {"n": 2}, "it needs n=1"),
        ({}, {"logprobs": 1}, "no logprobs"),
    ],
)
def test_what_a_request_may_not_say_is_refused(
    search: dict[str, Any], params: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        SamplingParams(search={"method": "pipeline", **search}, **params)  # type: ignore[call-arg]


def test_samples_need_a_temperature() -> None:
    with pytest.raises(InvalidRequest, match="stage 3 draws 7 samples, which are alike"):
        make("search", "pipeline").begin(PipelineAsk(), problem(temperature=0.0))


def test_a_verdict_is_the_share_of_yes() -> None:
    logits = np.log(np.array([1.0, 3.0, 2.0, 2.0], np.float32))
    assert shares(logits, [1], [0]) == pytest.approx(0.75)
    assert shares(logits, [1, 2], [0, 3]) == pytest.approx(5 / 8)
    assert shares(logits, [], [0]) == 0.0
    encode = {"yes": [1], " yes": [2], "Yes": [3], " Yes": [4, 5], "YES": [3], " YES": []}
    assert first_tokens(encode.__getitem__, " yes ") == {1, 2, 3, 4}
    assert Verdict(frozenset([1]), frozenset([1])).value is None


def test_the_lab_model_thinks_fast_where_it_is_sure() -> None:
    """The answer of one sample then, by itself, and the rows of one."""
    with LLM("lab", max_model_len=512) as llm:
        chat = [[{"role": "user", "content": "Add 27 and 58."}]]
        values = {"temperature": 0.5, "max_tokens": 100, "seed": 1}
        one = llm.chat(chat, SamplingParams(**values))[0]  # type: ignore[arg-type]
        search = {"method": "pipeline", "preset": "hybrid", "extract": "Answer: (.+)"}
        sampling = SamplingParams(search=search, **values)  # type: ignore[arg-type, call-arg]
        hybrid = llm.chat(chat, sampling)[0]
        assert hybrid.outputs[0].token_ids == one.outputs[0].token_ids
        assert hybrid.outputs[0].finish_reason == "stop"
        report = (hybrid.outputs[0].report or {})["pipeline"]
        assert (report["stopped"], report["answer"]) == ("sure", "85")
        stages = [{"op": "generate", "samples": 2}, {"op": "extend", "write": "\nIs", "tokens": 5}]
        search = {"method": "pipeline", "stages": stages}
        sampling = SamplingParams(search=search, **values)  # type: ignore[arg-type, call-arg]
        (choice,) = llm.chat(chat, sampling)[0].outputs
        assert len(choice.token_ids) <= 5
        assert "Is" not in choice.text[:2]


def test_calls_whose_texts_begin_alike_compute_that_once() -> None:
    """The first computes it, and the others go on from there; the answer is the same as alone."""
    with LLM("lab", max_model_len=1024, reuse="none") as llm:
        chat = [[{"role": "user", "content": "Add 27 and 58."}]]
        long = "One two three four five six seven eight nine ten. " * 10
        rows = []
        for samples in (1, 4):
            stages = [{"op": "generate", "samples": samples, "write": long, "tokens": 4}]
            search = {"method": "pipeline", "stages": stages, "extract": "text"}
            values = {"temperature": 1.0, "max_tokens": 400, "seed": 1, "search": search}
            (output,) = llm.chat(chat, SamplingParams(**values))  # type: ignore[arg-type]
            report = (output.outputs[0].report or {})["pipeline"]
            rows.append((output.ledger.rows, report["answer"]))
        assert rows[1][0] <= rows[0][0] + 3 * (4 + 2)
        assert rows[1][1] == rows[0][1]
