"""The pages are true where a program can tell: links, files, commands and figures."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import click
import pytest

from ockham import SamplingParams, draft, gate
from ockham.api.server.errors import decode
from ockham.api.server.protocol import CompletionRequest
from ockham.cli.main import cli
from ockham.core import registry
from ockham.core.config import EngineConfig
from ockham.lab.evidence import Bench, fidelity, recipe
from ockham.model.checkpoint.gguf.config import GGUF_ARCHITECTURES, GGUF_MIXTURES
from ockham.model.program.decoders import DECODERS
from tests.helpers.registering import let_register

ROOT = Path(__file__).parents[1]
TECHNIQUES = ROOT / "docs/techniques.md"
RESULTS = ROOT / "benchmarks/RESULTS.md"
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "benchmarks/README.md",
    ROOT / "examples/README.md",
]
WRITTEN = [page for page in PAGES if page != TECHNIQUES]
"""All pages but the generated one that figures are taken from."""

RATIO = re.compile(r"\d+\.\d+ \(\d+\.\d+ to \d+\.\d+\)")
RATIO_OF_PEERS = re.compile(r"\d+\.\d+ \(\d+\.\d+ to \d+\.\d+; \d+\)")
MEASURED = re.compile(r"ockham techniques measure\s+([\w./-]+)`")


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _blocks(text: str) -> list[str]:
    """Rows of tables, and paragraphs."""
    paragraphs = re.split(r"\n\s*\n", text)
    return [
        block
        for paragraph in paragraphs
        for block in (paragraph.splitlines() if paragraph.startswith("|") else [paragraph])
    ]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in _anchors(there), target


def test_the_map_of_the_code_names_files_that_exist() -> None:
    named = re.findall(
        r"`((?:\w+/)+(?:\w+\.(?:py|cpp|h))?)`", (ROOT / "docs/architecture.md").read_text()
    )
    assert len(named) > 50
    for path in named:
        places = [
            ROOT / path,
            *(ROOT / start / path for start in ("ockham", "csrc", "ockham/model")),
        ]
        assert any(place.exists() for place in places), path


CACHED = (registry._load, registry._modules, registry.asks_at)


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """The Python of the page on architecture. Its techniques are files beside the others, for as
    long as the test runs."""
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```", (ROOT / "docs/architecture.md").read_text())
    let_register(monkeypatch)
    monkeypatch.setattr(recipe, "_recipes", dict(recipe._recipes))
    for package, name, block in ((draft, "repeat", 0), (gate, "thin", 2)):
        module = f"{package.__name__}.{name}"
        directory = tmp_path / module
        directory.mkdir()
        (directory / f"{name}.py").write_text(blocks[block])
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(directory)])
        monkeypatch.setitem(sys.modules, module, ModuleType(module))  # taken out again afterwards
        del sys.modules[module]
    for cached in CACHED:
        cached.cache_clear()
    yield blocks
    monkeypatch.undo()
    for cached in CACHED:
        cached.cache_clear()


def _run_tests(source: str) -> None:
    names: dict[str, object] = {}
    exec(compile(source, "docs/architecture.md", "exec"), names)
    claims = [claim for name, claim in names.items() if name.startswith("test_")]
    assert claims
    for claim in claims:
        claim()  # type: ignore[operator]


def test_the_example_of_a_drafter_works_as_it_is_printed(printed: list[str]) -> None:
    assert registry.make("drafter", "repeat:4")._times == 4
    _run_tests(printed[1])


def test_the_example_of_a_gate_works_as_it_is_printed(
    printed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(printed) == 5
    _run_tests(printed[3])
    body = b'{"prompt": "x", "thin": {"every": 3}}'
    params = decode(body, CompletionRequest).sampling_params(
        {}, max_tokens=1, logprobs=None, prompt_logprobs=None
    )
    assert params == SamplingParams(max_tokens=1, thin={"every": 3})
    quick = partial(fidelity.fidelity_of, items=1)
    monkeypatch.setattr(fidelity, "fidelity_of", quick)
    exec(compile(printed[4], "docs/architecture.md", "exec"), {})
    bench = Bench(EngineConfig(max_model_len=600, kv_cache_memory_bytes=64 << 20), rounds=1)
    measure = recipe._recipes["gate", "thin"].measure
    assert measure is not None
    row = measure(bench)
    assert row.with_ < row.without
    assert row.fidelity is not None
    assert row.fidelity.agreement < 1.0


@pytest.mark.parametrize("page", WRITTEN, ids=_name)
def test_a_speed_stands_in_the_row_that_it_cites(page: Path) -> None:
    sections = dict(re.findall(r"(?ms)^### `([^`]+)`\n(.*?)(?=^##|\Z)", TECHNIQUES.read_text()))
    for block in _blocks(page.read_text()):
        cited = MEASURED.findall(block)
        if len(cited) != 1:
            continue
        rows = [text for name, text in sections.items() if cited[0] in (name, name.split("/")[-1])]
        for ratio in RATIO.findall(block):
            assert any(ratio in text for text in rows), (cited[0], ratio)


@pytest.mark.parametrize("page", WRITTEN, ids=_name)
def test_ratios_of_pairs_are_those_of_the_results(page: Path) -> None:
    results = RESULTS.read_text()
    for ratio in RATIO_OF_PEERS.findall(page.read_text()):
        assert ratio in results, ratio


def test_rates_beside_other_engines_are_those_of_the_results() -> None:
    results = RESULTS.read_text()
    rows = re.findall(
        r"(?m)^\|[^|]*\| (?:Q4_K_M|bf16)[^|]*\|(.+)\|$", (ROOT / "docs/performance.md").read_text()
    )
    assert len(rows) == 7
    for row in rows:
        for figure in re.findall(r"[\d,.]*\d", re.sub(r"\(.*?\)", "", row)):
            assert re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d,]|\.\d)", results), (
                row,
                figure,
            )


def _commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in re.findall(r"(?ms)^```\w*\n(.*?)^```", page.read_text()):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(_name(page), line) for line in lines if re.search(r"(^|\| )ockham ", line)]
        for code in re.findall(r"`(ockham [a-z][^`]*)`", page.read_text()):
            found.append((_name(page), " ".join(code.split())))
    return found


@pytest.mark.parametrize(("page", "line"), _commands())
def test_commands_and_their_flags_exist(page: str, line: str) -> None:
    words = shlex.split(line[re.search(r"(^|\| )ockham ", line).end() :], comments=True)  # type: ignore[union-attr]
    words = words[
        : next((i for i, word in enumerate(words) if word in ("|", ">", "<")), len(words))
    ]
    command: click.Command = cli
    while isinstance(command, click.Group) and words:
        found = command.get_command(click.Context(command), words[0])
        if found is None:
            break
        command, words = found, words[1:]
    assert not (isinstance(command, click.Group) and command is cli), f"{page}: {line}"
    flags = {flag for each in command.params for flag in [*each.opts, *each.secondary_opts]}
    for word in words:
        if re.match(r"--?[a-z]", word):
            assert word.partition("=")[0] in flags, f"{page}: {word}"


def test_rates_of_the_readme_are_those_of_the_results() -> None:
    """Each row holds rates of one page of results, which was measured on the row's day."""
    rows = re.findall(
        r"(?m)^\| (?:int|Q4|bf16)[^|]*\|(.+)\| (\d{4}-\d\d-\d\d) \|$",
        (ROOT / "README.md").read_text(),
    )
    assert len(rows) == 5
    pages = [page.read_text() for page in (RESULTS, RESULTS.with_name("RESULTS-formats.md"))]
    for row, day in rows:
        (page,) = (page for page in pages if re.search(rf"(?m)^{day} \d\d:\d\d( to |,)", page))
        cells = {cell.strip() for line in page.splitlines() for cell in line.split("|")}
        figures = re.findall(r"\d+(?:\.\d+)?", row)
        assert len(figures) in (4, 6)
        assert cells.issuperset(figures), (row, day)


def test_what_is_said_of_quality_is_measured() -> None:
    said = re.search(
        r"SmolLM2-135M, `int8` keeps ([\d.]+%) of the likeliest tokens and `int4` ([\d.]+%)",
        (ROOT / "docs/weights.md").read_text(),
    )
    assert said is not None
    page = (ROOT / "docs/evaluation.md").read_text()
    for name, share in zip(("int8", "int4"), said.groups(), strict=True):
        assert re.search(rf"\| `{name}` \| [\d]+ MB \| {re.escape(share)} \|", page)


def test_the_page_of_architectures_lists_every_decoder_and_every_gguf_architecture() -> None:
    page = (ROOT / "docs/architectures.md").read_text()
    rows = [line.split("|")[2:4] for line in page.splitlines() if line.startswith("| ")][1:]
    named = [[name for row in rows for name in re.findall(r"`([^`]+)`", row[at])] for at in (0, 1)]
    assert sorted(named[0]) == sorted(DECODERS)
    assert {*named[1]} == {*GGUF_ARCHITECTURES, *GGUF_MIXTURES}
