"""Chunks and edited texts are taken over by those who ask, and by nobody else."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.ledger import Ledger
from ockham.core.registry import make_asks
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.kernels.native import core
from tests.helpers import serving
from tests.helpers.serving import Said, serve
from tests.helpers.tiny import tiny_llama, tiny_mistral

VOCABULARY = 61
QUESTION = list(range(7))
exact_bits = pytest.mark.skipif(core is None, reason="the reference backend promises no bits")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("approximate"), vocab_size=VOCABULARY)


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mistral(tmp_path_factory.mktemp("windowed"), window=20, vocab_size=VOCABULARY)


make_engine = partial(
    serving.make_engine,
    reuse="prefix,chunk,edit:margin_tokens=0",
    max_num_batched_tokens=32,
    speculative_config="none",  # whose rows would be counted too
)


def tokens(count: int, seed: int = 0) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()
    return found


DOCUMENTS = [tokens(n, 10 + n) for n in (40, 33, 27, 50)]


def about(order: list[int], fraction: float | None = 0.0, **params: Any) -> Request:
    """A question about documents in this order; `fraction` None asks for nothing approximate."""
    prompt: list[int] = []
    chunks = []
    for number in order:
        chunks.append((len(prompt), len(prompt) + len(DOCUMENTS[number])))
        prompt += DOCUMENTS[number]
    asks = {} if fraction is None else by_chunks(chunks, fraction)
    return ask([*prompt, *QUESTION], asks, **params)


def by_chunks(chunks: list[tuple[int, int]], fraction: float | None = None) -> dict[str, Any]:
    return {"reuse/chunk": {"chunks": chunks, "recompute_fraction": fraction}}


def ask(
    prompt: list[int], asks: dict[str, Any] | None = None, salt: str = "", **params: Any
) -> Request:
    """Like no other, whatever it asks for."""
    values = {"max_tokens": 6, "logprobs": 2, **params}
    return serving.ask(f"ask {next(NUMBERS)}", prompt, salt, asks, **values)


NUMBERS = iter(range(1 << 30))


def together(engine: Engine, *requests: Request) -> list[tuple[Said, Ledger]]:
    """Of each request what its first choice said, with log probabilities, and its bill."""
    return list(serve(engine, list(requests)).values())


def one(engine: Engine, request: Request) -> tuple[Said, Ledger]:
    return together(engine, request)[0]


# -- chunks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["checkpoint", "windowed"])
def test_chunks_that_return_in_another_order_are_not_computed(
    model: str, request: pytest.FixtureRequest
) -> None:
    engine = make_engine(request.getfixturevalue(model))
    _, bill = one(engine, about([0, 1, 2]))
    assert bill.prompt_tokens_reused == 0
    _, bill = one(engine, about([2, 0, 1]))
    assert (bill.prompt_tokens_computed, bill.prompt_tokens_reused) == (len(QUESTION), 100)
    assert bill.saved["chunk"].tokens == 100
    assert bill.saved["chunk"].flops > 0
    assert bill.rows == len(QUESTION) + 5
    _, bill = one(engine, about([1, 3, 0]))
    assert bill.prompt_tokens_computed == len(DOCUMENTS[3]) + len(QUESTION)


@exact_bits
@pytest.mark.parametrize("model", ["checkpoint", "windowed"])
def test_recomputing_all_is_exact(model: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(model)
    plain, engine = make_engine(path, reuse="none"), make_engine(path)
    for order in ([0, 1, 2], [2, 0, 1], [1, 3], [2, 0, 1]):
        found, _ = one(engine, about(order, 1.0))
        assert found == one(plain, about(order, None))[0]


@exact_bits
@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("model", ["checkpoint", "windowed"])
def test_chunks_in_their_old_place_are_exact(
    model: str, fraction: float, request: pytest.FixtureRequest
) -> None:
    """Nothing stands before them that was not there before, so that only the copying is new."""
    path = request.getfixturevalue(model)
    plain, engine = make_engine(path, reuse="none"), make_engine(path, reuse="chunk")
    one(engine, about([0, 1, 2]))
    found, bill = one(engine, about([0, 1, 2], fraction))
    assert found == one(plain, about([0, 1, 2], None))[0]
    again = bill.prompt_tokens_computed - len(QUESTION)
    assert 100 * fraction <= again <= 100 * fraction + 3
    assert bill.saved["chunk"].tokens == 100 - again


def test_a_fraction_is_what_is_computed_again(checkpoint: Path) -> None:
    for fraction in (0.1, 0.25, 0.5, 0.9):
        engine = make_engine(checkpoint, reuse="chunk")
        one(engine, about([0, 1, 2, 3]))
        _, bill = one(engine, about([3, 1, 0, 2], fraction))
        again = bill.prompt_tokens_computed - len(QUESTION)
        assert fraction * 150 <= again <= fraction * 150 + 4  # of each chunk rounded up


def test_the_closer_to_all_the_closer_to_exact(checkpoint: Path) -> None:
    plain = make_engine(checkpoint, reuse="none", skip_tokenizer_init=True)
    engine = make_engine(checkpoint, reuse="chunk")

    def last_row(on: Engine, request: Request) -> np.ndarray:
        kept: list[np.ndarray] = []
        on.on_scored = lambda _, logits: kept.append(logits.copy())
        request.score_from = len(request.prompt_token_ids) - 3
        one(on, request)
        on.on_scored = None
        return np.concatenate(kept)

    scored = {"prompt_logprobs": 0, "logprobs": None}
    one(engine, about([0, 1, 2, 3]))
    expected = last_row(plain, about([3, 2, 1, 0], None, **scored))
    errors = [
        np.abs(last_row(engine, about([3, 2, 1, 0], fraction, **scored)) - expected).mean()
        for fraction in (0.0, 0.8, 1.0)
    ]
    assert errors[0] > errors[1] > 0
    assert errors[2] < 1e-4


def test_tenants_share_no_chunks(checkpoint: Path) -> None:
    engine = make_engine(checkpoint)
    one(engine, about([0, 1, 2], salt="one"))
    for salt, reused in (("two", 0), ("", 0), ("one", 100)):
        _, bill = one(engine, about([2, 1, 0], salt=salt))
        assert bill.prompt_tokens_reused == reused


def test_small_chunks_are_left_alone(checkpoint: Path) -> None:
    engine = make_engine(checkpoint, reuse="prefix,chunk:min_tokens=35")
    one(engine, about([0, 1, 2, 3]))
    _, bill = one(engine, about([3, 2, 1, 0]))
    assert bill.saved["chunk"].tokens == 90


# -- nobody else meets them ------------------------------------------------------------------------


@exact_bits
@pytest.mark.parametrize("model", ["checkpoint", "windowed"])
def test_who_asks_for_nothing_has_exact_bits_beside_those_who_do(
    model: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(model)
    plain, engine = make_engine(path, reuse="none"), make_engine(path)
    one(engine, about([0, 1, 2, 3]))
    orders = [[3, 1], [1, 3, 0], [2, 3, 1], [3, 1, 2], [3, 1]]
    asked = [about(order, fraction) for order in orders for fraction in (0.1, None)]
    again = together(engine, *asked) + together(engine, *(about(order, None) for order in orders))
    exact = again[1:10:2] + again[10:]
    expected = [one(plain, about(order, None))[0] for order in orders] * 2
    assert [said for said, _ in exact] == expected


@exact_bits
def test_what_follows_a_given_cell_is_no_prefix_for_others(checkpoint: Path) -> None:
    plain, engine = make_engine(checkpoint, reuse="none"), make_engine(checkpoint)
    one(engine, about([0, 1, 2]))
    one(engine, about([2, 0, 1]))
    found, bill = one(engine, about([2, 0, 1], None))
    assert bill.prompt_tokens_reused == 0
    assert found == one(plain, about([2, 0, 1], None))[0]
    branches = about([1, 0], 0.0, n=3, temperature=1.0, seed=3)
    one(engine, branches)
    found, bill = one(engine, about([1, 0], None))
    assert bill.prompt_tokens_reused == 0


@exact_bits
def test_a_prompt_goes_on_from_its_exact_prefix(checkpoint: Path) -> None:
    """What stands before the first given cell is exact, and both reuses take their part."""
    engine = make_engine(checkpoint)
    one(engine, about([0, 1, 2]))
    _, bill = one(engine, about([0, 2, 1]))
    assert (bill.saved["prefix"].tokens, bill.saved["chunk"].tokens) == (40, 60)


# -- schedules -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["checkpoint", "windowed"])
def test_any_chunking_of_the_prompt_gives_the_same(
    model: str, request: pytest.FixtureRequest
) -> None:
    path, said = request.getfixturevalue(model), []
    for rows in (3, 16, 256):
        engine = make_engine(path, max_num_batched_tokens=rows)
        one(engine, about([0, 1, 2, 3]))
        said.append(one(engine, about([3, 0, 2, 1], 0.3)))
        assert said[-1][1].saved["chunk"].tokens == said[0][1].saved["chunk"].tokens
    if core is not None:
        assert said[0][0] == said[1][0] == said[2][0]


@pytest.mark.parametrize("model", ["checkpoint", "windowed"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_preempted_in_the_middle_it_begins_anew(
    model: str, steps: int, request: pytest.FixtureRequest
) -> None:
    engine = make_engine(request.getfixturevalue(model), max_num_batched_tokens=8)
    one(engine, about([0, 1, 2, 3]))
    expected, _ = one(engine, about([3, 0, 2, 1], 0.3))
    wanted = about([3, 0, 2, 1], 0.3)
    engine.add(wanted)
    for _ in range(steps):
        engine.step()
    engine.scheduler.preempt(engine.scheduler.running[0])
    engine.check_integrity()
    said: list[int] = []
    while engine.has_work:
        for delta in engine.step():
            said += delta.token_ids
            bill = delta.ledger or None
        engine.check_integrity()
    assert bill is not None
    assert bill.prompt_tokens == bill.prompt_tokens_computed + bill.prompt_tokens_reused
    assert said == expected[0]
    assert engine.stats().pages_used == 0


def test_preempted_while_it_generates_it_goes_on(checkpoint: Path) -> None:
    engine = make_engine(checkpoint)
    one(engine, about([0, 1, 2, 3]))
    expected, _ = one(engine, about([3, 0, 2, 1], 0.3, max_tokens=12))
    wanted = about([3, 0, 2, 1], 0.3, max_tokens=12)
    engine.add(wanted)
    said: list[int] = []
    for _ in range(7):
        said += [token for delta in engine.step() for token in delta.token_ids]
    engine.scheduler.preempt(engine.scheduler.running[0])
    while engine.has_work:
        said += [token for delta in engine.step() for token in delta.token_ids]
        engine.check_integrity()
    assert said == expected[0]


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_cancelled_it_leaves_nothing(checkpoint: Path, steps: int) -> None:
    engine = make_engine(checkpoint, max_num_batched_tokens=8)
    one(engine, about([0, 1]))
    wanted = about([2, 1, 3, 0], 0.2)
    engine.add(wanted)
    for _ in range(steps):
        engine.step()
    engine.abort(wanted.request_id)
    engine.check_integrity()
    assert engine.stats().pages_used == 0
    for approximate in engine.approximate.values():
        approximate.forget()
    engine.reuse.forget()
    assert engine.state.pages_used == 0


@pytest.mark.parametrize("pages", [13, 16, 24])
@pytest.mark.parametrize("reuse", ["chunk", "edit"])
def test_a_short_pool_gives_up_what_is_reused(checkpoint: Path, pages: int, reuse: str) -> None:
    """The largest request needs 11 pages: what is kept must give way, whatever holds it."""
    whole = make_engine(checkpoint)
    page_bytes = sum(layout.page_bytes for layout in whole.model.layouts)
    engine = make_engine(checkpoint, max_model_len=176, kv_cache_memory_bytes=pages * page_bytes)
    for round_ in range(4):
        orders = [[0, 1, 2, 3], [3, 1], [2, 0, 3], [1, 2, 3, 0]]
        wanted = [about(order, 0.1) for order in orders]
        if reuse == "edit":
            for request in wanted:
                request.asks = make_asks(EDIT)
        plain = [about(order, None) for order in orders]
        found = together(engine, *wanted, *plain)
        for (_, bill), request in zip(found, wanted + plain, strict=True):
            reused = bill.prompt_tokens_computed + bill.prompt_tokens_reused
            assert reused == len(request.prompt_token_ids), round_
        if core is not None:
            expected = together(make_engine(checkpoint, reuse="none"), *plain)
            assert [said for said, _ in found[4:]] == [said for said, _ in expected]


# -- edits -----------------------------------------------------------------------------------------

EDIT = {"reuse/edit": True}
TEXT = tokens(120, 77)


@pytest.mark.parametrize("model", ["checkpoint", "windowed"])
@pytest.mark.parametrize(
    ("edited", "computed"),
    [
        ([*TEXT[:50], *tokens(5, 1), *TEXT[50:]], 6),
        ([*TEXT[:50], *TEXT[57:]], 1),
        ([*TEXT[:50], *tokens(5, 2), *TEXT[60:]], 6),
        ([*TEXT[:30], *tokens(3, 3), *TEXT[30:70], *TEXT[74:], *tokens(9, 4)], 12),
        ([*tokens(4, 5), *TEXT], 5),
    ],
    ids=["insert", "delete", "replace", "several", "before"],
)
def test_only_what_was_edited_is_computed(
    model: str, edited: list[int], computed: int, request: pytest.FixtureRequest
) -> None:
    engine = make_engine(request.getfixturevalue(model))
    one(engine, ask(TEXT, EDIT))
    _, bill = one(engine, ask(edited, EDIT))
    assert computed <= bill.prompt_tokens_computed <= computed + 1
    assert bill.prompt_tokens_reused == len(edited) - bill.prompt_tokens_computed
    assert bill.saved["edit"].tokens > 0


def test_a_few_tokens_behind_an_edit_are_computed(checkpoint: Path) -> None:
    for margin in (1, 8, 30):
        engine = make_engine(checkpoint, reuse=f"prefix,edit:margin_tokens={margin}")
        one(engine, ask(TEXT, EDIT))
        _, bill = one(engine, ask([*TEXT[:20], 1, *TEXT[20:60], *TEXT[70:]], EDIT))
        expected = 1 + min(margin, 40) + margin + 1
        assert expected <= bill.prompt_tokens_computed <= expected + 1


def test_an_edit_of_an_edit_is_taken_from_what_was_first_computed(checkpoint: Path) -> None:
    """Keys that are moved again and again are rotated once, from the original."""
    engine = make_engine(checkpoint)
    technique: Any = engine.approximate["edit"]
    one(engine, ask(TEXT, EDIT))
    text = TEXT
    for round_ in range(5):
        text = [*text[:20], round_, *text[20:]]
        one(engine, ask(text, EDIT))
        assert len(list(technique.originals)) == 1
    (original,) = technique.originals
    assert original.positions[:20].tolist() == list(range(20))
    assert original.positions[-60:-1].tolist() == list(range(60, 119))


@exact_bits
def test_a_text_that_was_not_edited_is_exact(checkpoint: Path) -> None:
    plain, engine = make_engine(checkpoint, reuse="none"), make_engine(checkpoint, reuse="edit")
    one(engine, ask(TEXT, EDIT))
    for text in (TEXT, [*TEXT, *tokens(9, 6)], TEXT[:90]):
        found, bill = one(engine, ask(text, EDIT))
        assert found == one(plain, ask(text))[0]
        assert bill.saved["edit"].tokens >= min(len(text), 120) - 1


def test_texts_of_other_tenants_are_not_compared(checkpoint: Path) -> None:
    engine = make_engine(checkpoint)
    one(engine, ask(TEXT, EDIT, salt="one"))
    _, bill = one(engine, ask([1, *TEXT], EDIT, salt="two"))
    assert bill.prompt_tokens_reused == 0


# -- refusals --------------------------------------------------------------------------------------


def test_what_the_engine_does_not_have_is_refused(checkpoint: Path) -> None:
    engine = make_engine(checkpoint, reuse="prefix")
    with pytest.raises(InvalidRequest, match=r"no approximate reuse 'chunk'; it has none\. Start"):
        engine.add(about([0, 1]))
    engine = make_engine(checkpoint)
    for chunks in ([(0, 0)], [(5, 3)], [(0, 9), (8, 12)], [(0, 500)]):
        with pytest.raises(InvalidRequest, match="empty, out of order, or outside"):
            engine.add(ask(TEXT, by_chunks(chunks)))
    with pytest.raises(InvalidRequest, match="recompute_fraction must lie in"):
        engine.add(about([0], 1.5))
    with pytest.raises(InvalidRequest, match="takes no recompute_fraction"):
        engine.add(ask(TEXT, {"reuse/edit": {"recompute_fraction": 0.5}}))
    assert not engine.has_work


@pytest.mark.parametrize(
    ("reuse", "sentence"),
    [
        ("prefix,none", "one exact reuse, got prefix and none"),
        ("prefix,chunks", "there is no reuse called 'chunks'"),
        ("chunk:recompute=1", "has no option 'recompute'; it has recompute_fraction"),
        ("chunk:recompute_fraction=2", r"recompute_fraction must lie in \[0, 1\]"),
        ("chunk:min_tokens=many", "'chunk': Expected"),
        ("edit:texts=0", "texts must be at least 1"),
        ("edit:margin_tokens=-1", "margin_tokens must be at least 0"),
        ("prefix:size=1", "the reuse 'prefix' has no options"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    checkpoint: Path, reuse: str, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_engine(checkpoint, reuse=reuse)


def test_a_request_with_approximate_state_does_not_move(checkpoint: Path) -> None:
    engine = make_engine(checkpoint, max_num_batched_tokens=8)
    wanted = about([0, 1])
    engine.add(wanted)
    engine.step()
    with pytest.raises(InvalidRequest, match="takes over state approximately"):
        engine.export_request(wanted.request_id)
    engine.abort(wanted.request_id)


def test_an_ask_from_which_nothing_would_come_is_refused(checkpoint: Path) -> None:
    """Not silently ignored: no request meets a technique of these seams."""
    engine = make_engine(checkpoint)
    for key in ("drafter/copying", "policy/lpm", "gate/none", "search/none", "nothing"):
        with pytest.raises(InvalidRequest, match=r"no technique .* that a request may ask for"):
            engine.take(serving.ask("one", [1, 2, 3], asks={key: True}))
    assert not engine.has_work
