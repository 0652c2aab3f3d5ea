"""Texts that are computed whole, many at a time: what sequences give, in the policy's turns."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ockham.core.errors import InvalidRequest
from ockham.core.ledger import Ledger
from ockham.core.pooling import PoolingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from ockham.engine.texts import GREEDY
from tests.helpers import serving
from tests.helpers.encoders import CLASSIFIERS, ENCODERS
from tests.helpers.oracle import VOCABULARY

EMBED = PoolingParams(task="embed")
ROWS = 96
SECONDS = ("queue_s", "prefill_s", "decode_s")

make_engine = partial(
    serving.make_engine,
    max_model_len=ROWS,
    max_num_batched_tokens=ROWS,
    max_num_seqs=8,
    reuse="none",
    task="embed",
)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bert")
    ENCODERS["bert"].save(directory)
    return directory


def ask(name: str, rows: int, **more: Any) -> Request:
    """A request for what is made of a text of so many tokens, each different."""
    tokens = np.random.default_rng(rows).integers(3, VOCABULARY, rows).tolist()
    values = {"pooling": EMBED, "detokenize": False, **more}
    return Request(request_id=name, prompt_token_ids=tokens, params=GREEDY, **values)


def run(engine: Engine) -> list[Delta]:
    """The last delta of each request, in the order in which they came."""
    done = []
    while engine.has_work:
        done += [delta for delta in engine.step() if delta.finished]
        engine.check_integrity()
    return done


def counted(ledger: Ledger | None) -> dict[str, Any]:
    """A bill without its seconds."""
    assert ledger is not None
    return {k: v for k, v in msgspec.to_builtins(ledger).items() if k not in SECONDS}


@pytest.mark.parametrize(
    "how", ["cls", "mean", "mean_sqrt_len", "weightedmean", "max", "lasttoken"]
)
def test_a_text_has_the_bits_and_the_bill_of_a_sequence(
    tmp_path: Path, bert: Path, how: str
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(bert, directory)
    told = [{"path": "", "type": "Transformer"}, {"path": "1_Pooling", "type": "Pooling"}]
    modules = [{"idx": i, "name": str(i), **each} for i, each in enumerate(told)]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    rule = {"pooling_mode": how, "include_prompt": False}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(rule))
    kinds: list[dict[str, Any]] = [
        {},
        {"prompt_skip": 2},
        {"second_text_at": 3},
        {"pooling": PoolingParams(task="embed", dimensions=7)},
        {"pooling": PoolingParams(task="embed", normalize=True)},
    ]
    wanted = [(rows, kinds[i % len(kinds)]) for i, rows in enumerate([17, 5, 64, 16, 96, 4, 33])]
    texts, sequences = make_engine(directory), make_engine(directory)
    for i, (rows, fields) in enumerate(wanted):
        texts.add(ask(str(i), rows, **fields))
        sequences.add(ask(str(i), rows, progress=True, **fields))
    assert len(texts.texts.waiting) == len(wanted)
    assert not sequences.texts.waiting
    found = {delta.request_id: delta for delta in run(texts)}
    for expected in run(sequences):
        got = found.pop(expected.request_id)
        assert got.pooled == expected.pooled
        assert (got.finish_reason, got.finished) == ("stop", True)
        same = counted(got.ledger), counted(expected.ledger)
        for name in ("weight_bytes", "saved"):  # which depend on who else was in the step
            for bill in same:
                bill.pop(name)
        assert same[0] == same[1]
    assert not found
    assert texts.stats().pages_used == 0


def test_steps_of_the_same_texts_are_billed_alike(bert: Path) -> None:
    texts, sequences = make_engine(bert), make_engine(bert)
    for i in range(12):
        texts.add(ask(str(i), 16))
        sequences.add(ask(str(i), 16, progress=True))
    bills = [{d.request_id: counted(d.ledger) for d in run(each)} for each in (texts, sequences)]
    assert bills[0] == bills[1]
    assert counted(texts.total) == counted(sequences.total)
    assert texts.scheduler.steps == sequences.scheduler.steps == 2
    assert texts.total.prefill_s > 0


def test_classes_of_texts_are_those_of_sequences(tmp_path: Path) -> None:
    CLASSIFIERS["bert"].save(tmp_path)
    engine = make_engine(tmp_path, task="auto")
    params = PoolingParams(task="classify")
    for rows in (3, 30, 9):
        engine.add(ask(f"text {rows}", rows, pooling=params))
        engine.add(ask(f"sequence {rows}", rows, pooling=params, progress=True))
    found = {delta.request_id: delta.pooled for delta in run(engine)}
    for rows in (3, 30, 9):
        assert found[f"text {rows}"] == found[f"sequence {rows}"]


def test_texts_and_sequences_take_turns(bert: Path) -> None:
    engine = make_engine(bert)
    for i in range(6):
        engine.add(ask(f"text {i}", ROWS))
        engine.add(ask(f"sequence {i}", ROWS, progress=True))
    kinds = [delta.request_id.split()[0] for delta in run(engine)]
    assert kinds == ["text", "sequence"] * 6


def test_a_long_text_is_not_passed_for_ever(bert: Path) -> None:
    engine = make_engine(bert)
    engine.add(ask("first", 10))
    engine.add(ask("long", ROWS))
    order: list[str] = []
    for i in range(12):  # there are always short ones that would fill the step
        for n in range(8):
            engine.add(ask(f"short {i} {n}", 12))
        order += [delta.request_id for delta in engine.step() if delta.finished]
        if "long" in order:
            break
    assert order.index("long") <= 8


def test_a_tenant_with_few_texts_passes_anothers_queue(bert: Path) -> None:
    engine = make_engine(bert)
    for i in range(400):
        engine.add(ask(f"many {i}", 48, tenant="a"))
    engine.step()
    engine.add(ask("few", 48, tenant="b"))
    ends = [delta.request_id for _ in range(2) for delta in engine.step()]
    assert "few" in ends
    engine.add(ask("urgent", 48, tenant="a", priority=-1))
    assert "urgent" in [delta.request_id for delta in engine.step()]


def test_a_text_that_waits_can_be_given_up(bert: Path) -> None:
    engine = make_engine(bert)
    engine.add(ask("first", ROWS - 1))
    engine.add(ask("long", ROWS))
    engine.add(ask("third", ROWS))
    engine.step()
    assert engine.stats().waiting == 2
    (gone,) = engine.abort("long")  # which was to begin the next step
    assert (gone.finish_reason, gone.finished) == ("abort", True)
    assert counted(gone.ledger)["prompt_tokens"] == ROWS
    assert engine.abort("long") == []
    with pytest.raises(InvalidRequest, match="wants what is made of hidden states"):
        engine.export_request("third")
    with pytest.raises(InvalidRequest, match="'third' is already running"):
        engine.add(ask("third", 4))
    engine.drop_all()
    assert not engine.has_work
    engine.add(ask("long", 8))
    assert [delta.request_id for delta in run(engine)] == ["long"]


def test_a_step_that_fails_leaves_nothing_behind(bert: Path) -> None:
    engine = make_engine(bert)

    def fail(run: Any) -> None:
        raise RuntimeError("a hook that fails")

    engine.attach("layer.0.after", fail)
    engine.add(ask("one", 20))
    with pytest.raises(RuntimeError, match="a hook that fails"):
        engine.step()
    engine.drop_all()
    engine.check_integrity()
    assert engine.stats().pages_used == 0
    assert not engine.has_work


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 97}, "97 tokens, and the context is 96"),
        ({"pooling": PoolingParams(task="classify")}, "does embed and token_embed, and not"),
        ({"pooling": PoolingParams(task="embed", dimensions=99)}, "have 48 values"),
        ({"second_text_at": 30}, "second_text_at is 30"),
    ],
)
def test_what_cannot_be_is_refused(bert: Path, fields: dict[str, Any], message: str) -> None:
    engine = make_engine(bert)
    with pytest.raises(InvalidRequest, match=message):
        engine.add(ask("wrong", **{"rows": 30, **fields}))
    assert not engine.has_work
