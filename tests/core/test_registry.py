"""What is registered describes itself whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from ockham.core import registry
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.registry import make, split, techniques
from tests.helpers.registering import let_register

PAGE = Path(__file__).parents[2] / "docs" / "techniques.md"


def test_every_description_is_a_whole_sentence() -> None:
    for technique in techniques():
        words = " ".join((technique.cls.__doc__ or "").split())
        assert technique.summary.endswith("."), technique.summary
        assert words.startswith(technique.summary)
        assert "\n" not in technique.summary


@pytest.mark.parametrize("seam", registry.SEAMS)
def test_a_form_is_listed_once(seam: str) -> None:
    forms = [form for technique in techniques(seam) for form in technique.forms]
    assert len(forms) == len(set(forms))


def test_the_page_of_techniques_has_the_descriptions_whole() -> None:
    page = PAGE.read_text()
    for technique in techniques():
        if f"### `{technique.seam}/{technique.name}`" in page:
            assert f"\n{technique.summary}\n" in page


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: int = 3
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ConfigError(f"tokens must be at least 1, got {self.tokens}.")


@dataclass(frozen=True)
class Place:
    name: str = "here"


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Techniques of this test alone, at every seam that exists."""
    let_register(monkeypatch)
    for seam in registry.SEAMS:

        @registry.register(seam, "sized", exact=True)
        class Sized:
            """Has options."""

            Options = Size

            def __init__(self, options: Size) -> None:
                self.options = options

        @registry.register(seam, "placed", exact=True)
        class Placed:
            """Has options in a dataclass."""

            Options = Place

            def __init__(self, options: Place) -> None:
                self.options = options

        @registry.register(seam, "plain", exact=True)
        class Plain:
            """Has none."""


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("seam", registry.SEAMS)
def test_a_technique_of_any_seam_is_made_from_its_name_and_options(seam: str) -> None:
    assert make(seam, "sized").options == Size()
    assert make(seam, "sized:tokens=7").options == Size(7)
    assert make(seam, "sized:tokens=7,share=0.25").options == Size(7, 0.25)
    assert make(seam, "sized: share=1 : tokens=7").options == Size(7, 1.0)
    assert make(seam, "sized", {"tokens": 9}).options == Size(9)
    assert make(seam, "placed:name=there").options == Place("there")
    assert type(make(seam, "plain")).__name__ == "Plain"


@pytest.mark.usefixtures("registered")
def test_a_value_without_a_name_is_the_first_option() -> None:
    assert make("gate", "sized:7").options == Size(7)
    assert make("gate", "sized:7,share=0.25").options == Size(7, 0.25)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("sized:tokens=none", "the options 'tokens=none' of 'sized': Expected `int`"),
        ("sized:tokens=0", "the options 'tokens=0' of 'sized': tokens must be at least 1, got 0"),
        ("sized:colour=red", "the gate 'sized' has no option 'colour'; it has tokens, share."),
        ("sized:", "'' is none; write name=value"),
        ("sized:share=1,7", "'7' is none; write name=value"),
        ("sized:7,tokens=8", "tokens is given twice"),
        ("plain:7", "the gate 'plain' has no options, got '7'"),
        ("plain:", "the gate 'plain' has no options"),
        ("missing", "there is no gate called 'missing'; there is: "),
        ("missing", ", placed, plain, recursions, sized, "),
    ],
)
def test_what_cannot_be_made_is_a_sentence(given: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make("gate", given)
    assert told in str(refused.value)


def test_of_a_word_that_is_none_of_an_options_words_those_are_told() -> None:
    with pytest.raises(ConfigError, match="pooling must be one of 'mean', 'max', got 'median'"):
        make("keep", "snapkv:pooling=median")


@pytest.mark.usefixtures("registered")
def test_a_value_that_is_typed_already_keeps_its_type() -> None:
    with pytest.raises(ConfigError, match="Expected `int`, got `str`"):
        make("gate", "sized", {"tokens": "7"})
    with pytest.raises(ConfigError, match="has no options, got 'tokens'"):
        make("gate", "plain", {"tokens": 7})


def test_a_comma_before_an_option_does_not_end_a_technique() -> None:
    assert split("prefix, chunk:min_tokens=8,share=0.5:recompute_fraction=0.1,edit") == [
        "prefix",
        "chunk:min_tokens=8,share=0.5:recompute_fraction=0.1",
        "edit",
    ]
    assert EngineConfig(reuse="prefix,chunk:min_tokens=8,share=0.5").reuse_techniques == [
        "prefix",
        "chunk:min_tokens=8,share=0.5",
    ]


def test_the_seams_and_the_settings_that_choose_their_techniques() -> None:
    assert list(registry.SEAMS) == [
        "format",
        "transform",
        "correction",
        "reuse",
        "keep",
        "pattern",
        "drafter",
        "verifier",
        "gate",
        "policy",
        "search",
        "adapter",
        "placement",
    ]
    fields = EngineConfig.__struct_fields__
    for seam in registry.SEAMS.values():
        assert seam.setting is None or seam.setting in fields


def test_the_first_that_suits_is_found_by_name_and_none_if_none_does() -> None:
    asked: list[str] = []

    def suits(technique: registry.Technique) -> bool:
        asked.append(technique.name)
        return technique.name == "fcfs"

    found = registry.first("policy", suits)
    assert found is not None
    assert found.name == "fcfs"
    assert asked == ["fcfs"]
    assert registry.first("policy", lambda technique: False) is None
