"""Which technique applies to a request, and what of its state others may go on from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from ockham.core import registry
from ockham.core.asks import Ask
from ockham.core.config import EngineConfig
from ockham.core.errors import InvalidRequest
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import GatedModel
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.engine.techniques import Techniques
from tests.helpers.serving import make_engine
from tests.helpers.tiny import tiny_llama

PROMPT = list(range(20, 84))


class ToyAsk(Ask, kw_only=True, frozen=True):
    strength: int | None = None


class ToyOptions(msgspec.Struct, frozen=True):
    strength: int = 1


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Approximate gates that do nothing: one whose state may be shared, and one whose may not."""
    modules = registry._modules
    monkeypatch.setattr(
        registry,
        "_modules",
        lambda seam: modules(seam) | ({"toy", "loner"} if seam == "gate" else set()),
    )

    @registry.register("gate", "toy", exact=False)
    class Toy:
        """A toy."""

        shares = True
        Options: ClassVar[type[msgspec.Struct]] = ToyOptions
        Ask: ClassVar[type[Ask]] = ToyAsk

        def __init__(self, options: ToyOptions) -> None:
            self.options = options

        def open(self, ask: ToyAsk, model: GatedModel) -> None:
            return None

    @registry.register("gate", "loner", exact=False)
    class Loner:
        """Another."""

        Ask: ClassVar[type[Ask]] = ToyAsk

        def open(self, ask: ToyAsk, model: GatedModel) -> None:
            return None

    yield
    for name in ("toy", "loner"):
        del registry._techniques["gate", name]


def request(salt: str = "", request_id: str = "r", **asks: object) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=PROMPT,
        params=SamplingParams(max_tokens=8, temperature=0),
        cache_salt=salt,
        asks={f"gate/{name}": ask for name, ask in asks.items()},
        detokenize=False,
    )


def computed(engine: Engine, asked: Request) -> int:
    """Rows of the prompt that were computed for a request."""
    before = engine.total.prompt_tokens_computed
    engine.add(asked)
    while engine.has_work:
        engine.step()
    return engine.total.prompt_tokens_computed - before


def test_a_request_that_asks_for_nothing_has_what_the_settings_name() -> None:
    techniques = Techniques(EngineConfig())
    kept = techniques.of(request(), "keep")
    assert kept is not None
    assert kept.exact
    assert kept.name == EngineConfig().keep
    assert techniques.of(request(), "adapter") is None
    assert techniques.key(request("tenant")) == "tenant"


@pytest.mark.usefixtures("toys")
def test_the_object_is_made_once_and_the_ask_is_the_requests() -> None:
    techniques = Techniques(EngineConfig())
    one = techniques.of(request(toy={"strength": 3}), "gate")
    other = techniques.of(request(toy=True), "gate")
    assert one is not None
    assert other is not None
    assert one.technique is other.technique
    assert one.ask == ToyAsk(strength=3)
    assert other.ask == ToyAsk()
    assert not one.exact


@pytest.mark.usefixtures("toys")
def test_state_is_shared_by_requests_that_ask_the_same() -> None:
    techniques = Techniques(EngineConfig())
    keys = {
        techniques.key(each)
        for each in (
            request(),
            request("tenant"),
            request(toy=True),
            request("tenant", toy=True),
            request(toy={"strength": 3}),
            request(loner=True),
            request(request_id="s", loner=True),
        )
    }
    assert len(keys) == 7
    assert techniques.key(request(toy=True)) == techniques.key(request(request_id="s", toy=True))
    assert techniques.plain_key("tenant") == "tenant"


@pytest.mark.usefixtures("toys")
def test_no_prefix_is_shared_across_techniques(tmp_path: Path) -> None:
    engine = make_engine(tiny_llama(tmp_path))
    whole = computed(engine, request())
    again = computed(engine, request(request_id="again"))
    assert again < whole
    assert computed(engine, request(request_id="first", toy=True)) == whole
    assert computed(engine, request(request_id="second", toy=True)) == again
    for name in ("one", "two"):
        assert computed(engine, request(request_id=name, loner=True)) == whole


@pytest.mark.usefixtures("toys")
def test_a_request_does_not_move_to_an_engine_that_computes_otherwise(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path)
    here, there = make_engine(path), make_engine(path)
    here.add(request(toy=True))
    here.step()
    data = here.export_request("r")
    techniques = there.techniques
    of = techniques.of
    techniques.of = lambda asked, seam: of(request(), seam)  # type: ignore[method-assign]
    with pytest.raises(InvalidRequest, match=r"computed under .*gate/toy"):
        there.import_request(data)
    techniques.of = of  # type: ignore[method-assign]
    assert there.import_request(data) == "r"
