"""Threads: what a list of texts begins, what comes back, and that it always ends."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import make
from ockham.core.sampling_params import SamplingParams, StructuredOutputsParams
from ockham.core.seams import Finish
from ockham.lab.evidence.bench import Bench
from ockham.lab.evidence.problems import Problems
from ockham.lab.tasks.parts import THREADS
from ockham.search.threads import Spawning, ThreadsAsk, ThreadsOptions
from tests.helpers.scripted import END, follows, play, problem

STEPS = (1, 2, 5, 40)
MARKS: dict[str, Any] = {
    "spawn": "[",
    "close": "]",
    "between": ",",
    "open": "({number}:{text}:",
    "join": ")",
    "returns": "=",
    "back": "<{text}>",
    "go_on": ";",
}


def run(script: dict[str, str], step: int = 1, most: int = 10_000, **settings: Any) -> Any:
    state = Spawning(ThreadsOptions(**{**MARKS, **settings}), problem())
    text, finish = play(state, follows(script), step, most)
    return text, dict(finish.report or {}), finish


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("parallel", [1, 4])
def test_a_text_goes_on_with_what_its_threads_gave_back(step: int, parallel: int) -> None:
    script = {
        "<3><7>;": f"so 10{END}",
        "(1:1+2:": "well=3) and more",
        "(2:3+4:": "quickly=7) and more",
        "": "do [1+2, 3+4] and never this",
    }
    text, report, _ = run(script, step, parallel=parallel)
    assert text == "do [1+2, 3+4]<3><7>;so 10"
    assert report["threads"] == 2
    assert report["spawns"] == 1
    assert report["unjoined"] == report["refused"] == 0
    assert report["tokens_critical"] == len("do [1+2, 3+4]") + len("quickly=7)") + len("so 10") + 1
    assert report["tokens_made"] == report["tokens_critical"] + len("well=3)")


@pytest.mark.parametrize("step", STEPS)
def test_threads_have_threads_down_to_a_depth(step: int) -> None:
    script = {
        "<u>;": f"done{END}",
        "<d>;": "=u)",
        "(1:deep:": "[x]=d)",
        "(1:up:": "[deep]",
        "": "[up]",
    }
    text, report, _ = run(script, step, depth=2)
    assert text == "[up]<u>;done"
    assert report["threads"] == 2
    assert report["tokens_critical"] == report["tokens_made"] == len("[up][deep][x]=d)=u)done") + 1


@pytest.mark.parametrize("step", STEPS)
def test_where_no_more_threads_may_be_a_list_is_text(step: int) -> None:
    script = {
        "(1:b:": "[c]=z)",
        "<z>;": f"[again]{END}",
        "": "[b]",
    }
    text, report, _ = run(script, step, depth=1, spawns=1)
    assert text == "[b]<z>;[again]"
    assert report["threads"] == 1


@pytest.mark.parametrize("step", STEPS)
def test_a_list_without_its_beginning_or_without_texts_begins_nothing(step: int) -> None:
    for said in ("a] b[ , ] c", "]]]", "[]"):
        text, report, _ = run({"": said + END}, step)
        assert text == said
        assert report["threads"] == 0


@pytest.mark.parametrize("step", STEPS)
def test_a_thread_that_does_not_join_ends_by_its_tokens_or_its_text(step: int) -> None:
    script = {"<1111><22>;": f"!{END}", "(1:a:": "1" * 99, "(2:b:": f"=22{END}", "": "[a,b]"}
    text, report, _ = run(script, step, tokens=4)
    assert text == "[a,b]<1111><22>;!"
    assert report["unjoined"] == 2


def test_too_many_texts_are_refused() -> None:
    script = {"<1><1>;": f"!{END}", ":a:": "=1)", ":b:": "=1)", "": "[a,b,c,d]"}
    text, report, _ = run(script, threads=2)
    assert text == "[a,b,c,d]<1><1>;!"
    assert report["refused"] == 2


@pytest.mark.parametrize("step", STEPS)
def test_paths_begin_at_the_prompt_and_a_summary_reads_them(step: int) -> None:
    script = {"<x><y>;": f"xy{END}", "(1::": "x) over", "(2::": "y) over", "": "zzz"}
    text, report, _ = run(script, step, paths=2, returns="")
    assert text == "<x><y>;xy"
    assert report["threads"] == 2
    assert report["tokens_critical"] == 2 + 3


def test_it_ends_when_there_is_no_more_room() -> None:
    """Whatever the texts say: also where each thread has threads for ever."""
    for most in range(1, 40):
        state = Spawning(ThreadsOptions(**{**MARKS, "depth": 3, "threads": 2}), problem())
        _, finish = play(state, lambda _: "[a,b]", 2, most)
        assert isinstance(finish, Finish)
        assert (finish.report or {})["threads"] <= (2 * 8) ** 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"spawn": ""}, "spawn must have 1 to 1000 characters, got 0"),
        ({"join": "x" * 1001}, "join must have 1 to 1000 characters, got 1001"),
        ({"back": "gone"}, "back must have {text}"),
        ({"depth": 0}, r"depth must lie in \[1, 3\], got 0"),
        ({"tokens": 0}, "tokens must lie in"),
        ({"paths": 65}, "paths must lie in"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        ThreadsAsk(**settings)
    with pytest.raises(ConfigError, match=said):
        ThreadsOptions(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"close": "<spawn>"}, "close and spawn must be told apart"),
        ({"join": "</spawn>!"}, "close and join must be told apart"),
        ({"threads": 64, "spawns": 4}, "spawns times threads must be at most 251"),
        ({"threads": 16, "spawns": 8, "depth": 2}, "might be more than 4096 threads"),
    ],
)
def test_what_cannot_be_together_is_refused(settings: dict[str, Any], said: str) -> None:
    threads = make("search", "threads")
    with pytest.raises(InvalidRequest, match=said):
        threads.begin(ThreadsAsk(**settings), problem())


def test_it_is_one_text_without_a_grammar() -> None:
    with pytest.raises(InvalidRequest, match="they need n=1"):
        SamplingParams(search="threads", n=2)  # type: ignore[call-arg]
    with pytest.raises(InvalidRequest, match="which a grammar does not allow"):
        SamplingParams(search="threads", structured_outputs=StructuredOutputsParams(regex="a"))  # type: ignore[call-arg]


def test_the_lab_model_hands_calculations_to_threads() -> None:
    """Its adapter spawns one for each, all join, and the text goes on with what they found."""
    run = Problems(
        Bench(EngineConfig(model="lab")), "parts", 3, adapter="lab-threads", temperature=0.0
    )
    search = {"method": "threads", **THREADS}
    _, outputs = run("threads", {"search": search}, levels=("threads=4",))
    whole, _ = run("text", {}, levels=("parts=4",))
    critical = 0
    for output in outputs:
        (choice,) = output.outputs
        report = (choice.report or {})["threads"]
        assert (report["threads"], report["spawns"], report["unjoined"]) == (4, 1, 0)
        results = re.findall(r"Result: (.*)\n", choice.text)
        assert choice.text.endswith(f"Answer: {'; '.join(results)}")
        assert len(results) == 4
        assert report["tokens_made"] + report["tokens_written"] == output.ledger.generated_tokens
        critical += report["tokens_critical"]
    assert critical < 0.6 * whole.ledger.generated_tokens
