"""What requests ask of techniques: typed, checked where it is said, the same after the way to the
engine's process."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ockham.core.asks import Ask, ChunksAsk, merged
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import ask_of, asked_by, asks_at, make_ask, make_asks, techniques
from ockham.core.sampling_params import SamplingParams
from ockham.engine.messages import Request

ASKED = [technique for technique in techniques() if technique.ask is not None]
ALL = {"reuse/chunk": {"chunks": [(0, 2), (4, 6)], "recompute_fraction": 0.5}}


def request(params: dict[str, Any] | None = None, **fields: Any) -> Request:
    return Request(
        request_id="one",
        prompt_token_ids=[1, 2, 3],
        params=SamplingParams(**params or {}),
        **fields,
    )


def test_each_ask_is_found_by_its_name_alone() -> None:
    assert ASKED
    by_name = [t.name for t in ASKED if t.ask is not None and t.ask.named_at is None]
    assert len(by_name) == len(set(by_name)), "two techniques are asked for by one name"
    for technique in ASKED:
        kind = technique.ask
        assert kind is not None
        assert issubclass(kind, Ask)
        assert ask_of(technique.seam, technique.name) is kind
        assert asks_at(technique.seam)[technique.name] is kind
        key = f"{technique.seam}/{technique.name}"
        assert make_ask(key, True) == kind()
        assert asked_by(technique.name) == ((key, kind) if kind.named_at is None else None)


def test_no_name_of_an_ask_is_that_of_a_field() -> None:
    """A parameter or a field of a request would hide it."""
    from ockham.api.server.protocol import ChatRequest, CompletionRequest

    fields = {
        *SamplingParams.__struct_fields__,
        *ChatRequest.__struct_fields__,
        *CompletionRequest.__struct_fields__,
        *CompletionRequest.neutral,
    }
    for technique in ASKED:
        assert technique.ask is not None
        own = {technique.name} if technique.ask.named_at is None else technique.ask.settings()
        assert not fields & set(own)


def test_a_technique_is_asked_for_by_a_parameter_of_its_name() -> None:
    asked = SamplingParams(n=2, temperature=0.0, superposed=True)
    assert asked == SamplingParams(n=2, temperature=0.0, asks={"search/superposed": True})
    assert request({"n": 2, "temperature": 0.0, "superposed": True}).asked("search") == (
        "superposed",
        make_ask("search/superposed", True),
    )
    for nothing in (False, None):
        assert SamplingParams(superposed=nothing) == SamplingParams()
    assert request().asked("search") is None
    assert hash(SamplingParams()) == hash(SamplingParams(asks={}))
    with pytest.raises(TypeError, match="superimposed"):
        SamplingParams(superimposed=True)
    with pytest.raises(TypeError, match="prefix"):  # a technique, and requests do not ask for it
        SamplingParams(prefix=True)


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"superposed": "yes"}, "superposed must be true or false, got 'yes'"),
        ({"superposed": True}, "needs n of at least 2 and temperature 0, got n=1"),
        ({"n": 2, "superposed": True}, "and temperature=1.0"),
        ({"n": 2, "temperature": 0, "superposed": True, "logprobs": 1}, "have no logprobs"),
        ({"n": 2, "temperature": 0, "superposed": True, "min_tokens": 2}, "have no min_tokens"),
        ({"superposed": {"drafts": 2}}, "superposed takes no drafts; leave it out"),
        ({"asks": 5}, "asks must map techniques to what is asked of them, got 5"),
        ({"asks": {5: True}}, "asks must map techniques"),
        ({"asks": {"reuse/chunk": True}}, "is no sampling parameter; ask for it with reuse"),
    ],
)
def test_wrong_parameters_are_refused(params: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        SamplingParams(**params)


@pytest.mark.parametrize(
    ("asks", "sentence"),
    [
        ({"reuse/chunk": 5}, "chunk must be true or false, or an object of chunk_sep.*, got 5"),
        ({"reuse/chunk": {"flux": 1}}, "reuse='chunk' takes no flux; leave it out"),
        ({"reuse/edit": {"chunks": []}}, "reuse='edit' takes no chunks; leave it out"),
        ({"reuse/chunk": {"recompute_fraction": 2}}, r"must lie in \[0, 1\], got 2"),
        ({"reuse/chunk": {"chunk_separator": ""}}, "chunk_separator must not be empty"),
        ({"reuse/chunk": {"chunk_separator": 5}}, "chunk_separator is wrong: expected 'str'"),
        ({"reuse/chunk": {"chunks": [5]}}, r"chunks\[0\] is wrong: expected 'array'"),
    ],
)
def test_wrong_asks_are_refused(asks: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        request(asks=asks)


def test_a_request_is_the_same_on_the_other_side() -> None:
    for asks in (ALL, {"reuse/edit": True}, {"reuse/nobody's": {"x": 1}}, {}):
        sent = request({"n": 2, "temperature": 0.0, "superposed": True}, asks=asks)
        found = msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=Request)
        assert found == sent
        assert {k: type(v) for k, v in found.all_asks.items()} == {
            k: type(v) for k, v in sent.all_asks.items()
        }
    asked = request(asks=ALL).asked("reuse")
    assert asked is not None
    assert isinstance(asked.ask, ChunksAsk)
    assert asked.ask.chunks == [(0, 2), (4, 6)]


@pytest.mark.parametrize(
    "name", ["", "..", "chunk.ChunkReuse", "__init__", "no such", "structures"]
)
def test_a_name_that_a_caller_made_up_imports_nothing(name: str) -> None:
    assert ask_of("reuse", name) is None
    assert ask_of(name, "chunk") is None
    assert asked_by(name) is None
    assert make_asks({f"reuse/{name}": {"x": 1}}) == {f"reuse/{name}": Ask()}


class Numbers(msgspec.Struct, frozen=True):
    tokens: int = 4
    share: float = 0.5
    file: str | None = None

    def __post_init__(self) -> None:
        if self.tokens == 13:
            raise ConfigError("tokens is 13.")


class NumbersAsk(Ask, kw_only=True, frozen=True):
    tokens: int | None = None
    share: float | None = None


def test_options_hold_where_a_request_asks_nothing() -> None:
    options = Numbers(7, 0.25, "a")
    assert merged(options, NumbersAsk()) == options
    assert merged(options, NumbersAsk(share=0.0)) == Numbers(7, 0.0, "a")
    with pytest.raises(ConfigError, match="tokens is 13"):
        merged(options, NumbersAsk(tokens=13))
