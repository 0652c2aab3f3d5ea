"""Where a model argument leads, without ever asking the network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ockham.core.errors import ModelError
from ockham.model.hub import (
    ADAPTERS,
    BUILT_IN,
    could_be_a_model,
    resolve,
    resolve_adapter,
    served_names,
    weights_facts,
)
from tests.helpers.tiny import tiny_llama

PRINT_DIRECTORY = "import sys; from ockham.model.hub import resolve; print(resolve(sys.argv[1]))"


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_built_in_models_are_in_the_package(name: str) -> None:
    assert (resolve(name) / "config.json").exists()


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_built_in_adapters_are_in_the_package(name: str) -> None:
    assert (resolve_adapter(name) / "adapter_config.json").exists()


def test_facts_of_weights_change_with_every_file_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    names = ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "alone.gguf", "folder/a.safetensors")
    for number, name in enumerate((*names, "folder/config.json")):
        (tmp_path / name).write_bytes(bytes(number))
    models = [tmp_path / name for name in (names[0], names[2], "folder")]
    before = [weights_facts(model) for model in models]
    assert len(set(before)) == 3
    for name, changed in zip((*names, "folder/config.json"), (0, 0, 1, 2, None), strict=True):
        os.utime(tmp_path / name, ns=(1, 1))
        after = [weights_facts(model) for model in models]
        assert [i for i in range(3) if after[i] != before[i]] == [changed] * (changed is not None)
        before = after
    with pytest.raises(ModelError, match="cannot be read"):
        weights_facts(tmp_path / "none.gguf")


def test_a_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == tmp_path


def test_a_file_and_a_missing_path_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(ModelError, match="is a file; name the directory"):
        resolve(str(file))
    for path in (str(tmp_path / "nowhere"), "./nowhere", "a/b/c", "what is this"):
        with pytest.raises(ModelError, match="there is no directory"):
            resolve(path)


def test_a_hub_name_is_found_in_the_cache_that_hf_home_names(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--someone--tiny"
    tiny_llama(repository / "snapshots" / "abc123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    found = run(PRINT_DIRECTORY, "someone/tiny", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert found.stdout.strip() == str(repository / "snapshots" / "abc123"), found.stderr


def test_a_gguf_file_is_taken_by_path_or_by_the_end_of_its_name(tmp_path: Path) -> None:
    files = tmp_path / "hub" / "models--someone--tiny-GGUF" / "snapshots" / "abc123"
    files.mkdir(parents=True)
    for name in ("tiny-Q4_K_M.gguf", "tiny-Q4_K_S.gguf", "tiny.q8_0.gguf"):
        (files / name).touch()
    (files.parents[1] / "refs").mkdir()
    (files.parents[1] / "refs" / "main").write_text("abc123")
    assert resolve(str(files / "tiny-Q4_K_M.gguf")) == files / "tiny-Q4_K_M.gguf"
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for wanted, name in (("q4_k_m", "tiny-Q4_K_M.gguf"), ("Q8_0", "tiny.q8_0.gguf")):
        found = run(PRINT_DIRECTORY, f"someone/tiny-GGUF:{wanted}", **offline)
        assert found.stdout.strip() == str(files / name), found.stderr
    found = run(PRINT_DIRECTORY, "someone/tiny-GGUF:Q2_K", **offline)
    assert "ModelError: someone/tiny-GGUF has no GGUF file whose name ends in Q2_K" in found.stderr
    (files / "other-Q8_0.gguf").touch()
    found = run(PRINT_DIRECTORY, "someone/tiny-GGUF:Q8_0", **offline)
    assert "stands for several files: other-Q8_0.gguf, tiny.q8_0.gguf" in found.stderr


def test_a_split_gguf_file_is_found_on_the_hub_and_in_a_directory(tmp_path: Path) -> None:
    files = tmp_path / "hub" / "models--someone--big-GGUF" / "snapshots" / "abc123"
    (files / "Q4_K_M").mkdir(parents=True)
    (files.parents[1] / "refs").mkdir()
    (files.parents[1] / "refs" / "main").write_text("abc123")
    (files / "big-Q8_0.gguf").touch()
    (files / "mmproj-Q8_0.gguf").touch()
    for part in (1, 2, 3):
        (files / "Q4_K_M" / f"big-Q4_K_M-0000{part}-of-00003.gguf").touch()
    first = files / "Q4_K_M" / "big-Q4_K_M-00001-of-00003.gguf"
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    found = run(PRINT_DIRECTORY, "someone/big-GGUF:q4_k_m", **offline)
    assert found.stdout.strip() == str(first), found.stderr
    assert resolve(f"{files}:Q4_K_M") == first
    assert resolve(f"{files}:Q8_0") == files / "big-Q8_0.gguf"
    assert resolve(str(first.parent)) == first
    with pytest.raises(ModelError, match=r"/abc123 has no GGUF file whose name ends in Q2_K; see"):
        resolve(f"{files}:Q2_K")


def test_a_directory_of_one_gguf_model_names_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.gguf").touch()
    assert resolve(str(tmp_path)) == tmp_path / "a.gguf"
    (tmp_path / "b-00001-of-00002.gguf").touch()
    (tmp_path / "b-00002-of-00002.gguf").touch()
    with pytest.raises(ModelError, match=r"several GGUF models: a.gguf, b-00001-of-00002.gguf\. N"):
        resolve(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    assert resolve(str(tmp_path)) == tmp_path


def test_offline_without_the_model_is_said_in_a_sentence(tmp_path: Path) -> None:
    found = run(PRINT_DIRECTORY, "someone/else", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert "ModelError: someone/else is not in the cache" in found.stderr
    assert "HF_HUB_OFFLINE forbids" in found.stderr


def test_a_hub_that_cannot_be_reached_is_said_in_a_sentence(tmp_path: Path) -> None:
    found = run(
        PRINT_DIRECTORY,
        "someone/else",
        HF_HOME=str(tmp_path),
        HF_HUB_OFFLINE="0",
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    assert "ModelError: someone/else" in found.stderr
    assert found.stderr.strip().splitlines()[-1].endswith("name a local directory.")


def test_loading_a_local_model_imports_neither_the_hub_client_nor_pytorch() -> None:
    code = (
        "import sys; from ockham.core.config import EngineConfig\n"
        "from ockham.model.loading import load_model; load_model(EngineConfig(model='lab'))\n"
        "print([m for m in ('huggingface_hub', 'torch', 'transformers') if m in sys.modules])"
    )
    assert run(code).stdout.strip() == "[]"


def test_a_revision_of_what_is_not_on_the_hub_is_refused(tmp_path: Path) -> None:
    for model in ("lab", str(tmp_path)):
        with pytest.raises(ModelError, match="revision 'v1' means nothing"):
            resolve(model, "v1")


def test_offline_the_best_gguf_file_of_the_cache_is_taken(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--someone--tiny"
    snapshot = repository / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    for name in ("Tiny-1B.Q4_1.gguf", "tiny-1b-q8_0-00001-of-00002.gguf", "Tiny-1B-F16.gguf"):
        (snapshot / name).touch()
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    found = run(PRINT_DIRECTORY, "someone/tiny", **offline)
    assert Path(found.stdout.strip()).name == "Tiny-1B.Q4_1.gguf", found.stderr
    for path in snapshot.iterdir():
        path.unlink()
    found = run(PRINT_DIRECTORY, "someone/tiny", **offline)
    assert "someone/tiny is not in the cache" in found.stderr


@pytest.mark.parametrize(
    "text", ["what is up", "x" * 5000, "a\0b", "a\nb", "~no-such-user/x y", "eh?", ""]
)
def test_a_text_that_is_no_model_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ModelError, match="there is no directory"):
        resolve(text)


@pytest.mark.parametrize("name", ["missing.gguf", "./missing.gguf", "/no/such/missing.gguf"])
def test_a_missing_file_is_looked_for_nowhere_else(name: str) -> None:
    with pytest.raises(ModelError, match=r"there is no file '.*missing\.gguf'"):
        resolve(name)


@pytest.mark.parametrize("name", ["lab", "owner/name", "owner/name:Q4_1", "./x", "/a b", "llama"])
def test_what_is_spelt_as_a_model_could_be_one(name: str) -> None:
    assert could_be_a_model(name)


def test_a_gguf_file_is_served_by_its_name_and_by_its_path() -> None:
    assert served_names("/models/Tiny-1B.Q4_1.gguf") == (
        "Tiny-1B.Q4_1",
        "/models/Tiny-1B.Q4_1.gguf",
    )
    assert served_names("a/big-00001-of-00003.gguf") == ("big", "a/big-00001-of-00003.gguf")
    assert served_names("owner/name") == ("owner/name",)
