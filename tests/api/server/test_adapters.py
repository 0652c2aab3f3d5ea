"""Adapters over HTTP: named as the model, listed beside it, loaded and unloaded by who may."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ockham.kernels.native import core
from tests.helpers.adapters import write_adapter
from tests.helpers.live import ROOT, LiveServer

pytestmark = pytest.mark.skipif(core is None, reason="the native core was not built")

ADMIN = {"Authorization": "Bearer admin"}
FLAGS = ("--kv-cache-memory-bytes", "16M", "--served-model-name", "tiny")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adapters")
    for number in range(3):
        write_adapter(directory / str(number), seed=number)
    return directory


@pytest.fixture(scope="module")
def live(
    tiny: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    module = json.dumps({"name": "one", "path": str(adapters / "1")})
    flags = ("--enable-lora", "--max-loras", "2", "--admin-api-key", "admin", "--lora-modules")
    named = (f"zero={adapters / '0'}", module)
    directory = tmp_path_factory.mktemp("live")
    with LiveServer(tiny, directory, *FLAGS, *flags, *named) as server:
        yield server


def complete(server: LiveServer, model: str, status: int = 200) -> dict[str, Any]:
    body = {"model": model, "prompt": "One two", "temperature": 0, "max_tokens": 6}
    response = server.post("/v1/completions", body, headers=ADMIN)
    assert response.status_code == status, response.text
    return dict(response.json())


def text_of(server: LiveServer, model: str) -> str:
    answer = complete(server, model)
    assert answer["model"] == model
    return str(answer["choices"][0]["text"])


def test_an_adapter_is_named_as_the_model(live: LiveServer) -> None:
    texts = {model: text_of(live, model) for model in ("tiny", "zero", "one")}
    assert len(set(texts.values())) == 3
    assert texts == {model: text_of(live, model) for model in texts}


def test_adapters_are_listed_beside_their_model(live: LiveServer, adapters: Path) -> None:
    listed = live.get("/v1/models", headers=ADMIN).json()["data"]
    found = {each["id"]: (each["parent"], each["root"]) for each in listed}
    assert found["one"] == ("tiny", str(adapters / "1"))
    assert found["tiny"][0] is None
    assert live.get("/v1/models/zero", headers=ADMIN).json()["parent"] == "tiny"


def test_adapters_come_and_go(live: LiveServer, adapters: Path) -> None:
    assert "There is no model 'two' here" in complete(live, "two", 404)["error"]["message"]
    body = {"lora_name": "two", "lora_path": str(adapters / "2")}
    response = live.post("/v1/load_lora_adapter", body, headers=ADMIN)
    assert response.status_code == 200, response.text
    assert response.text == "Success: LoRA adapter 'two' added successfully."
    assert text_of(live, "two") != text_of(live, "tiny")
    again = live.post("/v1/load_lora_adapter", body, headers=ADMIN)
    assert again.status_code == 400
    inplace = live.post("/v1/load_lora_adapter", {**body, "load_inplace": True}, headers=ADMIN)
    assert inplace.status_code == 200
    gone = live.post("/v1/unload_lora_adapter", {"lora_name": "two"}, headers=ADMIN)
    assert gone.text == "Success: LoRA adapter 'two' removed successfully."
    complete(live, "two", 404)
    assert (
        live.post("/v1/unload_lora_adapter", {"lora_name": "two"}, headers=ADMIN).status_code == 404
    )


def test_what_does_not_fit_is_refused_when_it_is_loaded(live: LiveServer, tmp_path: Path) -> None:
    bad = write_adapter(tmp_path / "bad", rank=40)
    for path, message in ((bad, "rank 40"), (tmp_path / "none", "PEFT adapter")):
        body = {"lora_name": "bad", "lora_path": str(path)}
        response = live.post("/v1/load_lora_adapter", body, headers=ADMIN)
        assert response.status_code == 400
        assert message in response.json()["error"]["message"]
    complete(live, "bad", 404)


def test_no_caller_names_a_path(live: LiveServer, adapters: Path) -> None:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
    for extra in (
        {"lora": {"name": "x", "path": str(adapters / "1")}},
        {"asks": {"adapter/lora": {"name": "x", "path": str(adapters / "1")}}},
        {"path": str(adapters / "1")},
    ):
        assert live.post("/v1/completions", {**body, **extra}, headers=ADMIN).status_code == 400


def test_without_a_key_nothing_is_loaded(server: LiveServer, adapters: Path) -> None:
    body = {"lora_name": "two", "lora_path": str(adapters / "2")}
    response = server.post("/v1/load_lora_adapter", body)
    assert response.status_code == 403
    assert "--admin-api-key" in response.json()["error"]["message"]


def test_a_server_with_a_wrong_adapter_does_not_start(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from ockham.cli.main import main; main()", "serve", str(tiny)]
    flags = ["--port", "0", *FLAGS, "--enable-lora", "--lora-modules", f"a={tmp_path / 'none'}"]
    ended = subprocess.run(
        [*command, *flags], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert ended.returncode != 0
    assert "the adapter 'a' cannot be served" in ended.stderr
