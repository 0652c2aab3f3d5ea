"""Votes over samples: when they are decided, and what they save."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ockham import LLM, SamplingParams
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.outputs import RequestOutput
from ockham.core.registry import make
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.running import drive
from ockham.lab.tasks.steps import Steps
from ockham.search.structures.answers import Reader
from ockham.search.structures.tally import Tally
from tests.helpers import serving
from tests.helpers.tiny import tiny_llama

make_engine = partial(serving.make_engine, skip_tokenizer_init=False, max_model_len=200)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("lab", max_model_len=512) as llm:
        yield llm


# -- counting ----------------------------------------------------------------------------------


def winner(answers: list[str]) -> str:
    counts = Counter(answers)
    return max(counts, key=lambda each: (counts[each], -answers.index(each)))


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=5), st.integers(1, 7))
def test_what_is_certain_cannot_change_and_what_is_not_can(said: list[str], more: int) -> None:
    """Against every way in which the samples that are left can come out."""
    tally = Tally(len(said) + more)
    for answer in said:
        tally.add(answer)
    assert tally.answer == winner(said)
    others = [*"abcd"] if more < 5 else [*dict.fromkeys(said), "d"]
    ways = itertools.product(others, repeat=more)
    same = all(winner([*said, *rest]) == tally.answer for rest in ways)
    assert tally.certain == same


def test_the_criterion_is_that_of_beta_variables() -> None:
    def after(*counts: int) -> float:
        tally = Tally(99)
        for answer, count in enumerate(counts):
            for _ in range(count):
                tally.add(str(answer))
        return tally.confidence

    # 1 - I(1/2; a + 1, b + 1), which is a polynomial in 1/2.
    assert after() == 0.0
    assert after(1) == pytest.approx(3 / 4)
    assert after(4) == pytest.approx(31 / 32)
    assert after(3, 1) == pytest.approx(26 / 32)
    assert after(2, 2, 1) == 0.5
    assert after(40, 10) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("extract", "text", "answer"),
    [
        ("last number", "2+2=4, so 1,234.50 and +7", "7"),
        ("last number", "costs $1,234.50.", "1234.5"),
        ("last number", "none", None),
        ("last line", "one\n two \n\n", "two"),
        ("last line", "", None),
        (r"Answer: (.+)", "Answer: 3\nAnswer:  5 \n", "5"),
        ("x", "y", None),
        ("( *)", "  ", None),
    ],
)
def test_an_answer_is_read(extract: str, text: str, answer: str | None) -> None:
    assert Reader(extract)(text) == answer


def test_a_hostile_expression_is_given_up() -> None:
    reader = Reader("(?:.*a){12}b")
    assert reader("a" * 5000) is None
    assert reader("aaaaaaaaaaaab") is None  # it is not tried again


# -- votes -------------------------------------------------------------------------------------


def ask(llm: LLM, count: int, **params: Any) -> list[RequestOutput]:
    task = Steps()
    chats = [list(task.item(3, index, "test").messages) for index in range(count)]
    every = [
        SamplingParams(temperature=0.9, max_tokens=120, seed=index, **params)
        for index in range(count)
    ]
    return llm.chat(chats, every, use_tqdm=False)  # type: ignore[arg-type]


def test_a_vote_is_that_of_all_samples_and_takes_fewer(llm: LLM) -> None:
    extract, samples, count = "Answer: (.+)", 9, 8
    voted = ask(llm, count, vote={"samples": samples, "extract": extract, "stop": "certain"})
    whole = ask(llm, count, n=samples)
    read = Reader(extract)
    for vote, every in zip(voted, whole, strict=True):
        texts = [choice.text for choice in every.outputs]
        answers = [answer for answer in map(read, texts) if answer is not None]
        (choice,) = vote.outputs
        assert choice.report is not None
        report = choice.report["vote"]
        assert report["answer"] == winner(answers)
        assert choice.text == next(text for text in texts if read(text) == report["answer"])
        drawn = every.outputs[: report["samples"]]
        assert report["tokens"] == sum(len(each.token_ids) for each in drawn)
        assert report["answers"] == Counter(read(e.text) for e in drawn if read(e.text))
        assert report["of"] == samples
    saved = sum(vote.ledger.saved["vote"].tokens for vote in voted if "vote" in vote.ledger.saved)
    assert saved == sum(vote.outputs[0].report["vote"]["tokens_spared"] for vote in voted)  # type: ignore[index]
    drawn_tokens = [sum(each.ledger.generated_tokens for each in all_) for all_ in (voted, whole)]
    assert drawn_tokens[0] < drawn_tokens[1]
    assert llm.engine.scheduler.reserved_seats == 0


def test_a_vote_that_need_not_be_certain_takes_fewer_still(llm: LLM) -> None:
    settings = {"samples": 16, "extract": "Answer: (.+)", "parallel": 1}
    certain, likely = (ask(llm, 6, vote={**settings, "stop": s}) for s in ("certain", 0.8))
    tokens = [sum(each.ledger.generated_tokens for each in all_) for all_ in (certain, likely)]
    assert tokens[1] < tokens[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("voting"), tokenizer=True)


def served(engine: Engine, wanted: list[Request]) -> dict[str, RequestOutput]:
    outputs: dict[str, RequestOutput] = {}
    drive(engine, wanted, lambda output: outputs.update({output.request_id: output}))
    return outputs


PROMPT = [(7 * i) % 4096 for i in range(40)]


def request(name: str, vote: Any = True, **params: Any) -> Request:
    values = {"temperature": 1.0, "seed": 5, "max_tokens": 12, "ignore_eos": True, **params}
    return Request(
        request_id=name,
        prompt_token_ids=PROMPT,
        params=SamplingParams(vote=vote, **values),  # type: ignore[call-arg]
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_batched_tokens": 3},
        {"kv_cache_memory_bytes": 30_000, "max_model_len": 80, "block_size": 4, "reuse": "none"},
        {"max_num_seqs": 3},
    ],
)
def test_an_answer_depends_on_nothing_beside_it(checkpoint: Path, settings: dict[str, Any]) -> None:
    vote = {"samples": 7, "extract": "([a-m])", "parallel": 3, "stop": "certain"}
    found = []
    for engine in (make_engine(checkpoint, reuse="none"), make_engine(checkpoint, **settings)):
        wanted = [request("a", vote, logprobs=2)]
        if found:
            wanted = [request("b", None), *wanted, request("c", {**vote, "parallel": 2}, seed=6)]
        choice = served(engine, wanted)["a"].outputs[0]
        engine.check_integrity()
        assert engine.stats().pages_used == engine.scheduler.reserved_seats == 0
        assert choice.report is not None
        for told in ("branches", "cancelled", "tokens_made", "tokens_spared", "tokens_shared"):
            del choice.report["vote"][told]  # how far others were is a matter of the steps
        found.append(choice)
    assert found[0] == found[1]
    assert found[0].logprobs is not None
    assert len(found[0].logprobs) == 12


def test_an_engines_setting_votes_where_that_makes_sense(checkpoint: Path) -> None:
    engine = make_engine(checkpoint, search="vote:samples=3,parallel=2")
    wanted = [
        request("voted", None),
        request("greedy", None, temperature=0.0),
        request("several", None, n=2),
        Request(
            request_id="out",
            prompt_token_ids=PROMPT,
            params=SamplingParams(temperature=1.0, max_tokens=5, choices=True),  # type: ignore[call-arg]
        ),
        request("asked", {"samples": 2}),
    ]
    outputs = served(engine, wanted)
    reports = {name: output.outputs[0].report for name, output in outputs.items()}
    of = {name: report and report["vote"]["of"] for name, report in reports.items()}
    assert of == {"voted": 3, "greedy": None, "several": None, "out": None, "asked": 2}


@pytest.mark.parametrize(
    ("vote", "params", "said"),
    [
        ({"samples": 1}, {}, r"samples must lie in \[2, 256\], got 1"),
        ({"parallel": 0}, {}, r"parallel must lie in \[1, 64\], got 0"),
        ({"stop": 0.4}, {}, "stop must be .certain., .window. or a probability"),
        ({"stop": "soon"}, {}, "stop is wrong"),
        ({"extract": "(a)(b)"}, {}, "cannot be used: it has several groups"),
        ({"answers": 3}, {}, "vote takes no answers; leave it out"),
        ({"stop": "window", "window": 1}, {}, "window must be at least 2, got 1"),
        ({"budget": 0}, {}, r"budget must lie in \[1, .*\], got 0"),
        ({"extract": "json:a..b"}, {}, "whose field has no name"),
        ({"samples": 2}, {"n": 3}, "n of at most 2"),
        (True, {"temperature": 0.0}, "got temperature=0.0"),
    ],
)
def test_what_cannot_be_voted_on_is_refused(vote: Any, params: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        request("a", vote, **params)


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"of .vote.: samples must lie in"):
        make("search", "vote:samples=0")


def test_what_an_engine_cannot_do_is_refused(checkpoint: Path) -> None:
    engine = make_engine(checkpoint, max_num_seqs=3)
    with pytest.raises(InvalidRequest, match="vote runs 5 sequences at once, but at most 3 run"):
        engine.take(request("a", {"parallel": 5}))
    silent = make_engine(checkpoint, skip_tokenizer_init=True)
    with pytest.raises(InvalidRequest, match="reads answers from text"):
        silent.take(request("a"))
    assert not engine.has_work
