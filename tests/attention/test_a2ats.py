"""Codebooks of keys: what they are fitted to, which files are taken, and who may ask for them. What
rows choose by them is tested with the other choosers, and engines with the other patterns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham.attention import key_books
from ockham.attention.key_books import LEAST_KEYS, KeyBooks
from ockham.core.errors import ConfigError, InvalidRequest, ModelError
from ockham.core.registry import make, make_ask
from ockham.core.seams import AttentionGroup, QueryBlock
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from ockham.kernels.reference.choosing import lookups
from ockham.model.checkpoint.codebook_files import (
    BOOK_SIZE,
    Codebooks,
    packed_codebooks,
    read_codebooks,
)
from tests.helpers.codebooks import write_random_codebooks
from tests.helpers.foretelling import foretelling
from tests.helpers.serving import ask, drain, make_engine, tokens_of
from tests.helpers.tiny import tiny_llama

GROUPS = [AttentionGroup((0, 2), 2, None), AttentionGroup((1,), 4, 100)]
WIDTH = 16


def seen(layers: tuple[int, ...], keys: int, looked_at: int = 1) -> KeyBooks:
    """Queries that look at the first element alone, or at more, and keys of two heads."""
    rng, books = np.random.default_rng(0), KeyBooks()
    for layer in layers:
        queries = np.zeros((64, 4, WIDTH), np.float32)
        queries[..., :looked_at] = rng.standard_normal((64, 4, looked_at))
        shape = (keys, 2, WIDTH)
        books.saw(QueryBlock(layer, queries, rng.standard_normal(shape).astype(np.float32)))
    return books


def test_keys_are_as_near_as_their_scores() -> None:
    """What no query looks at does not count: the centroids tell scores apart, and not keys."""
    rng = np.random.default_rng(1)
    keys = rng.standard_normal((640, WIDTH)).astype(np.float32)
    query = np.zeros((1, WIDTH), np.float32)
    query[0, 0] = 1
    blocks = np.log(np.exp(keys[:, 0]).reshape(-1, 64).sum(axis=1))
    like, apart = [], []
    for looked_at in (1, WIDTH):
        book = seen((0, 2), 3000, looked_at).fit().entries([2])[0, 0]
        like.append(float(np.corrcoef(lookups(query, keys, book)[0], blocks)[0, 1]))
        centroids = book[:, :WIDTH]
        distances = np.square(keys[:, None] - centroids).sum(axis=-1)
        apart.append(float(distances.min(axis=1).mean()))
    assert like[0] > 0.9 > like[1], "scores by the codebook, and those with the keys"
    assert apart[0] > apart[1]


def test_a_text_is_counted_once_however_many_blocks_of_it_are_seen() -> None:
    rng, books = np.random.default_rng(0), KeyBooks()
    queries = rng.standard_normal((64, 2, WIDTH)).astype(np.float32)
    text = rng.standard_normal((1024, 2, WIDTH)).astype(np.float32)
    for keys in (text[:256], text, text[:512]):
        books.saw(QueryBlock(0, queries, keys))
    assert sum(len(keys) for keys in books._heads[0][0]._keys) == 1024 + 512


def test_of_many_keys_a_sample_is_held_that_is_drawn_from_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(key_books, "MOST_KEYS", 200)
    books, held = KeyBooks(), np.zeros(2000)
    for seed in range(20):
        books = KeyBooks(seed)
        for text in range(5):
            keys = np.broadcast_to(np.arange(400, dtype=np.float32), (WIDTH, 1, 400)).T + 400 * text
            for end in (64, 400):
                books.saw(QueryBlock(0, np.ones((64, 1, WIDTH), np.float32), keys[:end]))
        (own,) = books._heads[0]
        found = np.concatenate(own._keys)[:, 0].astype(int)
        assert len(found) == len(set(found.tolist())) == 200
        held[found] += 1
    by_text = held.reshape(5, 400).sum(axis=1) / held.sum()
    assert ((by_text > 0.17) & (by_text < 0.23)).all(), by_text


def test_too_few_keys_are_refused() -> None:
    with pytest.raises(ConfigError, match=f"at least {LEAST_KEYS} tokens, and 640 were read"):
        seen((0,), 640).result({})


def test_a_file_holds_what_was_fitted(tmp_path: Path) -> None:
    books, file = seen((0, 2), 1200), tmp_path / "books"
    file.write_bytes(books.result({"model": "a", "tokens": 7}))
    read, fitted = read_codebooks(file), books.fit()
    assert read.layers == (0, 2)
    np.testing.assert_array_equal(read.centroids, fitted.centroids)
    np.testing.assert_array_equal(read.metrics, fitted.metrics)
    assert "of 4 heads" in books.described()[0]


def random_books(layers: tuple[int, ...], heads: int, width: int) -> Codebooks:
    rng = np.random.default_rng(0)
    shape = (len(layers), heads, BOOK_SIZE, width)
    metrics = np.broadcast_to(np.eye(width, dtype=np.float32), (*shape[:2], width, width))
    return Codebooks(layers, rng.standard_normal(shape).astype(np.float32), metrics)


def test_files_that_hold_no_codebooks_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "books"
    with pytest.raises(ModelError, match="books"):
        make("pattern", f"a2ats:codebook={file}")
    whole = packed_codebooks(random_books((0, 2), 2, WIDTH), {})
    for damaged in (b"", whole[:100], whole[:-1]):
        file.write_bytes(damaged)
        with pytest.raises(ModelError):
            make("pattern", f"a2ats:codebook={file}")
    other = random_books((0, 2), 2, WIDTH)
    few = Codebooks(other.layers, other.centroids[:, :, :9], other.metrics)
    file.write_bytes(packed_codebooks(few, {}))
    with pytest.raises(ModelError, match="holds no codebooks of keys"):
        make("pattern", f"a2ats:codebook={file}")


def test_codebooks_of_another_model_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "books"
    file.write_bytes(packed_codebooks(random_books((0, 2), 2, WIDTH), {}))
    technique: Any = make("pattern", f"a2ats:codebook={file}")
    own, none = technique.codebooks(GROUPS)
    assert own.shape == (2, 2, BOOK_SIZE, 2 * WIDTH + 1)
    assert none is None
    assert technique.open(make_ask("pattern/a2ats", True), GROUPS).choice(1) is None
    for groups in ([AttentionGroup((0, 1), 2, None)], [AttentionGroup((0, 2), 4, None)]):
        with pytest.raises(ConfigError, match="2 layers without a window, with 2 key-value heads"):
            technique.open(make_ask("pattern/a2ats", True), groups)
    checkpoint = tiny_llama(tmp_path / "tiny")
    file.write_bytes(packed_codebooks(random_books((0, 1), 2, 24), {}))
    with pytest.raises(ConfigError, match="codebooks"):
        make_engine(checkpoint, attention_pattern=f"a2ats:codebook={file}")


def test_who_was_started_without_a_codebook_says_how_to_get_one(tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path)
    words = "ockham calibrate a2ats MODEL FILE"
    with pytest.raises(ConfigError, match=words):
        make_engine(checkpoint, attention_pattern="a2ats")
    engine = make_engine(checkpoint)
    with pytest.raises(InvalidRequest, match=words):
        engine.add(ask("a", [3, 4, 5], asks={"pattern/a2ats": True}))


def test_what_the_file_holds_is_part_of_the_key_of_state(tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path)
    keys = []
    for seed in (1, 2, 1):
        file = write_random_codebooks(tmp_path / "books", checkpoint, seed)
        engine = make_engine(checkpoint, attention_pattern=f"a2ats:codebook={file}")
        asking = {"pattern/a2ats": {"first": 3}}
        keys.append(engine.techniques.key(ask("a", [3, 4, 5], asks=asking)))
    assert keys[0] == keys[2] != keys[1]


def test_both_backends_say_the_same(tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path)
    file = write_random_codebooks(tmp_path / "books", checkpoint)
    setting = f"a2ats:tokens=0,share=0.3,sinks=0,local=1,dense_layers=0,codebook={file}"
    prompt = np.random.default_rng(3).integers(2, 97, 300).tolist()
    said = []
    for backend in ("cpu", "reference"):
        engine = make_engine(
            checkpoint, attention_pattern=setting, backend=backend, max_model_len=400
        )
        engine.add(ask("a", prompt, temperature=0, max_tokens=12))
        said.append(tokens_of(drain(engine))["a", 0])
        engine.add(ask("b", prompt, temperature=0, max_tokens=12, asks={"pattern/full": True}))
        said.append(tokens_of(drain(engine))["b", 0])
    assert said[0] == said[2]
    assert said[1] == said[3] != said[0]


def test_company_chunks_preemption_and_drafts_change_no_token(tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path)
    file = write_random_codebooks(tmp_path / "books", checkpoint)
    setting = f"a2ats:tokens=0,share=0.3,sinks=0,local=1,dense_layers=0,codebook={file}"
    rng = np.random.default_rng(1)
    prompts = [rng.integers(2, 97, rng.integers(150, 330)).tolist() for _ in range(5)]
    asks: list[dict[str, Any]] = [{}, {"pattern/full": True}, {"pattern/a2ats": {"every": 8}}]
    asks += [{"pattern/a2ats": {"first": 90}}, {"pattern/a2ats": {"first": 90, "every": 4}}]

    def engine(**settings: Any) -> Engine:
        values = {"max_model_len": 500, "speculative_config": "none", **settings}
        return make_engine(checkpoint, attention_pattern=setting, **values)

    def request(number: int) -> Request:
        params = {"temperature": 0.8 * (number % 2), "max_tokens": 60, "seed": 7}
        return ask(str(number), prompts[number], asks=asks[number], **params)

    expected: dict[Any, list[int]] = {}
    alone = engine(reuse="none", max_num_batched_tokens=500, threads=1)
    for number in range(5):
        alone.add(request(number))
        expected |= tokens_of(drain(alone))
    for settings in ({"block_size": 8}, {"max_num_batched_tokens": 37}):
        crowded = engine(**settings)
        for number in range(5):
            crowded.add(request(number))
        deltas: list[Delta] = []
        for step in range(200):
            if step % 37 == 30 and crowded.scheduler.running:
                crowded.scheduler.preempt(crowded.scheduler.running[-1])
            deltas += crowded.step()
        assert tokens_of(deltas + drain(crowded)) == expected
    texts = [[*p, *expected[str(n), 0]] for n, p in enumerate(prompts)]
    drafting = engine()
    drafting.speculation = foretelling(97, texts, most=9, seed=1, right=0.8, branches=3)
    for number in range(5):
        drafting.add(request(number))
    assert tokens_of(drain(drafting)) == expected
    assert drafting.speculation.counters.accepted > 50
