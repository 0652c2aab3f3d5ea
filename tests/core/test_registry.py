"""What is registered describes itself whole."""

from __future__ import annotations

from pathlib import Path

from ockham.core.registry import techniques

PAGE = Path(__file__).parents[2] / "docs" / "techniques.md"


def test_every_description_is_a_whole_sentence() -> None:
    for technique in techniques():
        words = " ".join((technique.cls.__doc__ or "").split())
        assert technique.summary.endswith("."), technique.summary
        assert words.startswith(technique.summary)
        assert "\n" not in technique.summary


def test_the_page_of_techniques_has_the_descriptions_whole() -> None:
    page = PAGE.read_text()
    for technique in techniques():
        if f"### `{technique.seam}/{technique.name}`" in page:
            assert f"\n{technique.summary}\n" in page
