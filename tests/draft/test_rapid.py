"""Drafts for long texts from retrieved passages: they cost little, and change no token."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from ockham.core.errors import ConfigError, DoesNotFit
from ockham.core.seams import Target
from ockham.draft.rapid import FIRST, LATEST, Rapid
from ockham.draft.structures.passages import PASSAGE, Passages
from ockham.engine.runner.small_model import SmallModel
from tests.helpers import drafting
from tests.helpers.drafting import VOCABULARY, answers
from tests.helpers.tiny import tiny_llama, tiny_mistral

CONTEXT = 64

make_engine = partial(drafting.make_engine, max_model_len=400)


@pytest.fixture(scope="module", params=["full", "window"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make = tiny_llama if request.param == "full" else tiny_mistral
    return make(tmp_path_factory.mktemp("target"), vocab_size=VOCABULARY)


def rapid(**more: Any) -> dict[str, Any]:
    return {"method": "rapid", "adaptive": False, "draft_context": CONTEXT, **more}


@pytest.mark.parametrize("named", [False, True], ids=["itself", "another"])
def test_whatever_it_reads_no_token_changes(target: Path, tmp_path: Path, named: bool) -> None:
    other = {"model": str(tiny_llama(tmp_path, vocab_size=VOCABULARY, seed=5))} if named else {}
    engine = make_engine(target, speculative_config=rapid(**other))
    assert answers(engine, 8) == answers(make_engine(target), 8)
    assert engine.speculation.stats().drafts > 0
    (drafter,) = engine.speculation.drafters
    assert isinstance(drafter, Rapid)
    assert isinstance(drafter.model, SmallModel)
    assert drafter.model.state.pages_used == 0


def test_it_reads_a_bounded_part_of_a_text(target: Path) -> None:
    """The first tokens, the passages that are asked for, the latest tokens; then what is said."""
    drafter = Rapid.__new__(Rapid)
    goal = Target(vocabulary=VOCABULARY, max_model_len=400, sequences=2, cells=800)
    model = SmallModel(str(target), goal, longest=300)
    drafter.model, drafter._context = model, CONTEXT
    stream = drafter.open("")
    rng = Random(3)
    text = [rng.randrange(60) for _ in range(320)]
    needle = list(range(70, 86))
    text[4 * PASSAGE : 4 * PASSAGE + len(needle)] = needle
    text += needle  # the question
    stream.extend(np.array(text, np.int32))
    stream.settle()
    latest = text[-(CONTEXT // LATEST) :]
    passage = text[4 * PASSAGE : 5 * PASSAGE]
    assert stream.unread == [*text[:FIRST], *passage, *latest]
    assert stream.position == len(text)
    assert stream.reserve(len(stream.unread))
    assert stream.take(400) == [*text[:FIRST], *passage, *latest]
    stream.extend(np.array([5, 6], np.int32))
    stream.settle()
    assert stream.unread == [5, 6]  # it goes on from there
    assert stream.position == len(text) + 2
    stream.close()


def test_the_passages_are_those_of_bm25() -> None:
    """Against the formula, written out."""
    rng = Random(1)
    text = [min(rng.randrange(40), rng.randrange(40)) for _ in range(40 * PASSAGE + 7)]
    passages = Passages()
    for end in range(0, len(text), 100):
        passages.grow(text[:end])
    passages.grow(text)
    assert len(passages) == 40
    query = text[-20:]
    pieces = [text[i * PASSAGE : (i + 1) * PASSAGE] for i in range(40)]

    def score(piece: list[int]) -> float:
        total = 0.0
        for token in set(query):
            n = sum(token in other for other in pieces)
            tf = Counter(piece)[token]
            if tf:
                total += math.log(1 + (40 - n + 0.5) / (n + 0.5)) * tf * 2.2 / (tf + 1.2)
        return total

    ranked = sorted(range(35), key=lambda i: (-round(score(pieces[i]), 9), -i))
    assert passages.best(query, 35, 6) == sorted(ranked[:6])


def test_too_short_a_context_is_refused(target: Path) -> None:
    with pytest.raises(ConfigError, match="draft_context must be at least 64, got 10"):
        make_engine(target, speculative_config=rapid(draft_context=10))


def test_a_state_that_does_not_fit_is_refused(target: Path) -> None:
    endless = Target(vocabulary=VOCABULARY, max_model_len=10**9, sequences=10**4, cells=10**14)
    own = make_engine(target).model
    with pytest.raises(DoesNotFit, match="drafting with the model itself needs"):
        SmallModel(None, endless, 10**8, own)
