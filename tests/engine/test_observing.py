"""What observers want of a step is what they are told, of their own rows and no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from ockham.core.arrays import Ints
from ockham.core.config import EngineConfig
from ockham.core.sampling_params import SamplingParams, StructuredOutputsParams
from ockham.core.seams import Draft, Drafter, DraftStream, OwnRows, Seen, Wants
from ockham.core.speculative import SpeculativeConfig
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.engine.speculation import Speculation
from tests.helpers.foretelling import Foretelling
from tests.helpers.tiny import tiny_llama

VOCABULARY, HEADS, KV_HEADS = 97, 4, 2
EVERYTHING = Wants(
    candidates=3, logits=True, hidden=(-1, 1), scores=(0,), score_sums=(1,), queries=(0, 1)
)
NEWEST = Wants(candidates=2, logits=True, hidden=(-1,), scores=(1,), score_sums=(1,), newest=True)
FIRST_ROW = Wants(hidden=(-1,), scores=(0,), queries=(1,), rows=np.zeros(1, np.int32))


@dataclass
class Told:
    """What a stream was told, with the sequence's tokens that it had been given by then."""

    text: list[int]
    tokens: Ints
    cells: Ints
    choosing: int
    seen: Seen


class Watching(Drafter):
    """Drafts nothing, and notes down what its streams see."""

    name: ClassVar[str] = "watching"
    kinds: ClassVar[tuple[float, ...]] = (0.5,)
    observes: ClassVar[bool] = True

    def __init__(self, wants: Wants) -> None:
        self.wants = wants
        self.told: list[Told] = []

    def open(self, salt: str) -> WatchingStream:
        return WatchingStream(self)


class WatchingStream(DraftStream):
    def __init__(self, drafter: Watching) -> None:
        self._drafter = drafter
        self._text: list[int] = []

    def extend(self, tokens: Ints) -> None:
        self._text += tokens.tolist()

    def propose(self, most: int, accepted: Sequence[float], worth: float) -> Draft | None:
        return None

    def wants(self, own: OwnRows) -> Wants:
        return self._drafter.wants

    def saw(self, own: OwnRows, seen: Seen) -> None:
        told = Told(list(self._text), own.tokens.copy(), own.places.copy(), own.choosing, seen)
        self._drafter.told.append(told)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("target"), vocab_size=VOCABULARY)


def make_engine(checkpoint: Path, drafters: Sequence[Drafter] = ()) -> Engine:
    engine = Engine(
        EngineConfig(
            model=str(checkpoint),
            max_model_len=200,
            skip_tokenizer_init=True,
            block_size=4,
            speculative_config="none",
        )
    )
    if drafters:
        config = SpeculativeConfig(method="none", num_speculative_tokens=5, adaptive=False)
        engine.speculation = Speculation(config, list(drafters))
    return engine


def answers(engine: Engine, **params: Any) -> list[list[int]]:
    """Greedy and sampled requests, which end at different steps."""
    found: dict[str, list[int]] = {}
    for i in range(4):
        prompt = [(7 * i + 3 * j) % VOCABULARY for j in range(5 + 9 * i)]
        asked = {"temperature": 0.9 * (i % 2), "seed": i, "max_tokens": 9 + 5 * i, **params}
        found[str(i)] = list(prompt)
        engine.add(
            Request(
                request_id=str(i),
                prompt_token_ids=prompt,
                params=SamplingParams(ignore_eos=True, **asked),
                detokenize=False,
            )
        )
    while engine.has_work:
        for delta in engine.step():
            found[delta.request_id] += delta.token_ids
    return list(found.values())


def whole(texts: list[list[int]], told: Told) -> list[int]:
    """The text of the sequence that this was told of."""
    (text,) = [each for each in texts if each[: len(told.text)] == told.text]
    return text


@pytest.mark.parametrize("drafted", [False, True])
def test_observers_are_told_of_their_own_rows(checkpoint: Path, drafted: bool) -> None:
    expected = answers(make_engine(checkpoint))
    every, first = Watching(EVERYTHING), Watching(FIRST_ROW)
    drafters: list[Drafter] = [first, every]
    if drafted:
        drafters.append(Foretelling(VOCABULARY, 0))
        drafters[-1].texts.extend(expected)  # type: ignore[attr-defined]
    engine = make_engine(checkpoint, drafters)
    assert answers(engine) == expected
    assert bool(engine.stats().drafts.accepted) == drafted
    assert len(every.told) == len(first.told) > 20
    for told, other in zip(every.told, first.told, strict=True):
        seen, count = told.seen, len(told.tokens)
        assert told.tokens.tolist() == other.tokens.tolist()
        assert told.choosing == count  # they all decode
        assert whole(expected, told)[told.cells[0]] == told.tokens[0]
        assert seen.rows.tolist() == list(range(count))
        assert seen.logits.shape == (count, VOCABULARY)
        order = np.argsort(-seen.logits, axis=1, kind="stable")
        assert seen.candidates.tolist() == order[:, :3].tolist()
        embedded = engine.own_model.embed(told.tokens.tolist())
        np.testing.assert_array_equal(seen.hidden[-1], embedded)
        np.testing.assert_array_equal(other.seen.hidden[-1], embedded[:1])
        np.testing.assert_array_equal(other.seen.scores[0][0], seen.scores[0][0])
        assert len(other.seen.scores[0]) == 1
        assert seen.scores[0][0].shape == (KV_HEADS, told.cells[0] + 1)
        np.testing.assert_allclose(seen.scores[0][0].sum(axis=1), HEADS / KV_HEADS, rtol=1e-5)
        assert seen.score_sums[1][0].shape == (told.cells[0] + 1,)
        assert not other.seen.score_sums
        assert [len(seen.queries[layer]) for layer in (0, 1)] == [count, count]
        np.testing.assert_array_equal(other.seen.queries[1], seen.queries[1][:1])
        assert other.seen.queries.keys() == {1}
        assert other.seen.candidates.size == other.seen.logits.size == 0


@pytest.mark.parametrize("drafted", [False, True])
def test_the_row_of_the_newest_token_is_that_before_it(checkpoint: Path, drafted: bool) -> None:
    expected = answers(make_engine(checkpoint))
    newest = Watching(NEWEST)
    drafters: list[Drafter] = [newest]
    if drafted:
        drafters.append(Foretelling(VOCABULARY, 1))
        drafters[-1].texts.extend(expected)  # type: ignore[attr-defined]
    engine = make_engine(checkpoint, drafters)
    assert answers(engine) == expected
    assert len(newest.told) > 15
    reached = set()
    for told in newest.told:
        (row,) = told.seen.rows.tolist()
        reached.add(row > 0)
        text = whole(expected, told)
        summed, by_head = told.seen.score_sums[1][0], told.seen.scores[1][0]
        np.testing.assert_allclose(summed, by_head.sum(axis=0), rtol=1e-5, atol=1e-7)
        length = len(summed)
        assert text[length - 1] == told.tokens[row]
        embedded = engine.own_model.embed([text[length - 1]])
        np.testing.assert_array_equal(told.seen.hidden[-1], embedded)
        if expected.index(text) % 2 == 0:  # greedy
            assert int(told.seen.logits[0].argmax()) == text[length]
    assert reached == ({False, True} if drafted else {False})


class Reading(Watching):
    """Is told of every row, those of prompts too."""

    reads: ClassVar[bool] = True


@pytest.mark.parametrize("drafted", [False, True])
def test_who_reads_is_told_of_each_row_that_stays(checkpoint: Path, drafted: bool) -> None:
    expected = answers(make_engine(checkpoint))
    reading = Reading(Wants(hidden=(-1, 1), settled=True))
    drafters: list[Drafter] = [reading]
    if drafted:
        drafters.append(Foretelling(VOCABULARY, 1))
        drafters[-1].texts.extend(expected)  # type: ignore[attr-defined]
    engine = make_engine(checkpoint, drafters)
    assert answers(engine) == expected
    read: dict[int, list[int]] = {}
    for told in reading.told:
        places = told.cells[told.seen.rows].tolist()
        own = told.tokens[told.seen.rows].tolist()
        embedded = engine.own_model.embed(own)
        np.testing.assert_array_equal(told.seen.hidden[-1], embedded)
        assert told.seen.hidden[1].shape == embedded.shape
        (number,) = [
            number
            for number, text in enumerate(expected)
            if len(read.get(number, ())) == places[0] and text[places[0] :][: len(own)] == own
        ][:1]
        read.setdefault(number, []).extend(own)
    assert engine.speculation.streams.readers == {}
    # Nothing is told of rows by which the last token was chosen: the sequence has ended.
    for number, text in enumerate(expected):
        assert text[: len(read[number])] == read[number]
        assert len(text) - 7 <= len(read[number]) < len(text)


class Marking(Watching):
    """Drafts nothing but two marks behind the latest token."""

    def __init__(self, wants: Wants) -> None:
        super().__init__(wants)
        self.marks = np.ones((2, 32), np.float32)

    def open(self, salt: str) -> WatchingStream:
        return MarkingStream(self)


class MarkingStream(WatchingStream):
    def propose(self, most: int, accepted: Sequence[float], worth: float) -> Draft | None:
        return Draft([-1, -2], [-1, 0], [0, 0]) if most >= 2 else None


def test_marks_are_told_of_to_those_who_want_candidates(checkpoint: Path) -> None:
    expected = answers(make_engine(checkpoint))
    marking = Marking(Wants(candidates=2, newest=True))
    standing = Watching(Wants(hidden=(-1,), newest=True))
    everything = Watching(Wants(candidates=1))
    assert answers(make_engine(checkpoint, [marking, standing, everything])) == expected
    assert len(marking.told) > 20
    assert all(told.seen.candidates.shape == (2, 2) for told in marking.told)
    assert all(told.seen.hidden[-1].shape == (1, 32) for told in standing.told)
    assert all(told.seen.candidates.size == 0 for told in standing.told)
    drafted = [told for told in everything.told if len(told.tokens) == 3]
    assert drafted
    assert all(told.tokens[1:].tolist() == [-1, -2] for told in drafted)
    assert all(told.seen.candidates.shape == (len(told.tokens), 1) for told in everything.told)


def test_nobody_asks_for_anything_by_default(checkpoint: Path) -> None:
    class Quiet(Watching):
        observes: ClassVar[bool] = False

    quiet, silent = Quiet(EVERYTHING), Watching(Wants())
    answers(make_engine(checkpoint, [quiet, silent]))
    assert not quiet.told
    assert not silent.told


def test_a_row_that_is_not_computed_is_told_of_to_nobody(checkpoint: Path) -> None:
    """The token after it is forced, so that the head leaves it out."""
    watching = Watching(Wants(candidates=3, hidden=(-1,)))
    engine = Engine(EngineConfig(model="lab", max_model_len=200, speculative_config="none"))
    config = SpeculativeConfig(method="none", num_speculative_tokens=5, adaptive=False)
    engine.speculation = Speculation(config, [watching])
    forced = StructuredOutputsParams(choice=["the same words every time"])
    assert engine.tokenizer is not None
    prompts = {"forced": engine.tokenizer.encode("One"), "free": engine.tokenizer.encode("Two")}
    for name, prompt in prompts.items():
        engine.take(
            Request(
                request_id=name,
                prompt_token_ids=prompt,
                params=SamplingParams(
                    temperature=0.0,
                    max_tokens=6,
                    ignore_eos=True,
                    structured_outputs=forced if name == "forced" else None,
                ),
            )
        )
    while engine.has_work:
        engine.step()
    assert watching.told
    for told in watching.told:
        assert told.text[: len(prompts["free"])] == prompts["free"]
