"""Which configurations a plan may choose: all of them come from the registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.registry import SEAMS, find, name_of, read_options, techniques
from ockham.lab.evidence.compose_page import refused_json
from ockham.plan.space import REFUSED, Point, space_of

ROOT = Path(__file__).parents[2]


def test_every_value_that_a_technique_names_can_be_read() -> None:
    for technique in techniques():
        assert technique.tried
        for form in technique.tried:
            read_options(technique, form)


def test_every_technique_that_a_setting_names_is_a_choice() -> None:
    """But for what holds only what a file stores, and what only requests ask for."""
    space = space_of(EngineConfig(), cores=2)
    for seam in ("keep", "pattern", "gate", "verifier", "policy", "drafter"):
        setting = SEAMS[seam].setting
        assert setting is not None
        named = {name_of(str(choice.value)) for choice in space.choices[setting]}
        named |= {name_of(str(getattr(EngineConfig(), setting)))}
        assert named >= {technique.name for technique in techniques(seam)}
    assert {choice.value for choice in space.choices["threads"]} == {1}
    assert "search" not in space_of(EngineConfig()).choices


def test_what_stands_already_is_no_choice() -> None:
    base = EngineConfig(quantization="int4", threads=1)
    space = space_of(base, cores=2)
    assert "int4" not in {choice.value for choice in space.choices["quantization"]}
    assert "threads" not in space.choices


def test_weights_and_state_of_another_type_are_never_exact() -> None:
    space = space_of(EngineConfig(), cores=2)
    assert not any(choice.exact for choice in space.choices["quantization"])
    assert not any(choice.exact for choice in space.choices["kv_cache_dtype"])
    assert all(choice.exact for choice in space.choices["max_num_batched_tokens"])
    exact = space.exact_only()
    assert "keep" not in exact.choices
    assert "quantization" not in exact.choices
    assert "threads" in exact.choices


def test_the_matrix_of_pairs_says_what_is_not_combined() -> None:
    space = space_of(EngineConfig())
    pair = Point.of({"keep": "recent:window=256", "attention_pattern": "quest:tokens=512"})
    assert "choose" in str(space.refusal(pair))
    products = [*space.products(pair.parts)]
    assert pair not in products
    assert len(products) == 3  # nothing, and each alone
    fitting = Point.of({"keep": "recent:window=256", "kv_cache_dtype": "int8"})
    assert space.refusal(fitting) is None
    assert fitting in [*space.products(fitting.parts)]


def test_the_refused_pairs_are_those_of_the_page() -> None:
    """Else: `ockham techniques compose --page docs/composition.md --pairs ockham/plan/refused.json`
    writes both."""
    page = (ROOT / "docs/composition.md").read_text("utf-8")
    assert (ROOT / "ockham/plan" / REFUSED).read_text("utf-8") == refused_json(page)


def test_a_user_may_add_choices() -> None:
    also = {"speculative_config": ["draft_model"], "model": ["elsewhere"], "keep": ["recent:7"]}
    space = space_of(EngineConfig(), also=also)
    assert not space.choice("model", "elsewhere").exact
    assert not space.choice("keep", "recent:7").exact
    assert space.choice("keep", "recent:7").technique == "keep/recent"
    assert space.choice("speculative_config", "draft_model").exact
    assert find("drafter", "draft_model").exact
    with pytest.raises(ConfigError, match="no setting"):
        space_of(EngineConfig(), also={"colour": ["red"]})


def test_a_space_may_be_of_some_settings() -> None:
    space = space_of(EngineConfig()).only(["keep"])
    assert list(space.choices) == ["keep"]
    with pytest.raises(ConfigError, match="does not vary 'seed'"):
        space_of(EngineConfig()).only(["seed"])


def test_a_point_makes_a_configuration() -> None:
    point = Point.of({"keep": "recent:window=64", "threads": 1})
    config = point.config(EngineConfig(model="lab"))
    assert (config.keep, config.threads, config.model) == ("recent:window=64", 1, "lab")
    assert str(point) == "keep=recent:window=64, threads=1"
    assert str(point.without("keep")) == "threads=1"
    assert str(Point()) == "the default"
    with pytest.raises(ConfigError, match="threads"):
        Point.of({"threads": 0}).config(EngineConfig())
