"""Several models in one server, as clients see them."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.api.server.test_idle import MOST_SHARE, WATCHED_S, used_s
from tests.helpers.live import LiveServer, wait_for
from tests.helpers.tiny import tiny_llama

POOL = 4 << 20


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with other weights than `tiny`."""
    return tiny_llama(tmp_path_factory.mktemp("other"), tokenizer=True, seed=7)


@pytest.fixture(scope="module")
def house(
    tiny: Path, other: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server of three models that fit together, and one that is damaged."""
    directory = tmp_path_factory.mktemp("house")
    broken = directory / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((tiny / "config.json").read_text())
    table = {
        "first": {"model": str(tiny), "aliases": ["gpt-4o"]},
        "second": {"model": str(other), "max-model-len": 256, "keep-alive": -1},
        "encoder": {"model": str(tiny), "task": "embed"},
        "broken": {"model": str(broken)},
    }
    config = directory / "serve.yaml"
    config.write_text(json.dumps({"models": table, "kv-cache-memory-bytes": POOL}))
    flags = ("--config", str(config), "--admin-api-key", "boss")
    store = ("--kv-store", str(directory / "kv"), "--batch-dir", str(directory / "batches"))
    with several(directory, *flags, *store) as live:
        live.metrics_headers = {"Authorization": "Bearer boss"}
        yield live


def several(directory: Path, *flags: str) -> LiveServer:
    """A server whose models the flags name."""
    return LiveServer(None, directory, *flags)


def status(server: LiveServer, name: str) -> dict[str, Any]:
    found = server.get(f"/v1/models/{name}").json()["status"]
    return dict(found)


def engines(server: LiveServer) -> dict[str, psutil.Process]:
    """The engines' processes, the oldest first."""
    children = psutil.Process(server.process.pid).children()
    running = [c for c in children if _is_engine(c)]
    return {str(c.pid): c for c in sorted(running, key=lambda c: c.create_time())}


def _is_engine(process: psutil.Process) -> bool:
    try:
        return "ockham.engine.process" in process.cmdline()
    except psutil.Error:  # it has just ended
        return False


def answers(server: LiveServer, model: str, **more: Any) -> Any:
    """What a completion of each protocol says."""
    return server.complete(model=model, prompt=[5, 6, 7], ignore_eos=True, **more)["choices"]


def manage(server: LiveServer, what: str, model: str, key: str = "boss") -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return server.post(f"/models/{what}", {"model": model}, headers=headers)


def ask_in_each_protocol(server: LiveServer, model: str) -> dict[str, httpx.Response]:
    said = [{"role": "user", "content": "Hi"}]
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": "a", "max_tokens": 2},
        "/v1/chat/completions": {"messages": said, "max_tokens": 2},
        "/v1/responses": {"input": "Hi", "max_output_tokens": 2},
        "/v1/messages": {"messages": said, "max_tokens": 2},
        "/api/chat": {"messages": said, "stream": False, "options": {"num_predict": 2}},
        "/api/generate": {"prompt": "a", "stream": False, "options": {"num_predict": 2}},
        "/infill": {"input_prefix": "a", "input_suffix": "b", "n_predict": 2},
        "/v1/systemone": {"state": "a", "questions": {"x": {"type": "noul", "instructions": "?"}}},
        "/tokenize": {"prompt": "a"},
        "/detokenize": {"tokens": [5]},
        "/apply-template": {"messages": said},
        "/v1/messages/count_tokens": {"messages": said},
        "/v1/cache": {},
    }
    return {path: server.post(path, {"model": model, **body}) for path, body in bodies.items()}


def test_nothing_is_loaded_until_it_is_asked_for(house: LiveServer) -> None:
    listed = {model["id"]: model for model in house.get("/v1/models").json()["data"]}
    assert set(listed) == {"first", "gpt-4o", "second", "encoder", "broken"}
    assert {model["status"]["value"] for model in listed.values()} == {"unloaded"}
    assert listed["encoder"]["tasks"] == ["embed", "token_embed"]
    assert house.get("/health").status_code == 200
    assert house.get("/api/ps").json() == {"models": []}
    assert len(house.get("/api/tags").json()["models"]) == 5
    assert engines(house) == {}


def test_what_a_model_cannot_do_is_refused_before_it_is_loaded(house: LiveServer) -> None:
    for path in ("/api/embed", "/v1/embeddings"):
        refused = house.post(path, {"model": "second", "input": "a"})
        assert refused.status_code == 400
        assert "The model second generates text" in refused.text
    unnamed = house.post("/v1/classify", {"input": "a"})
    assert unnamed.status_code == 400
    assert "None of the models here classifies texts" in unnamed.text
    assert not engines(house)


def test_requests_choose_by_model_in_every_protocol(house: LiveServer) -> None:
    for path, response in ask_in_each_protocol(house, "second").items():
        assert response.status_code == 200, (path, response.text)
        assert response.json().get("model", "second") == "second", path
    assert len(engines(house)) == 1
    assert house.complete(model="gpt-4o", prompt="a")["model"] == "first"
    assert house.complete(prompt="a")["model"] == "first", "who names none gets the first"
    assert answers(house, "first") != answers(house, "second")
    assert status(house, "second")["value"] == "loaded"
    assert status(house, "first")["bytes"] > POOL
    assert house.get("/v1/models/second").json()["max_model_len"] == 256
    assert house.get("/props", params={"model": "second"}).json()["model_alias"] == "second"


def test_a_name_that_no_model_has_is_refused_with_those_there_are(house: LiveServer) -> None:
    for path, response in ask_in_each_protocol(house, "nobody").items():
        assert response.status_code == 404, path
        assert "first" in response.text, path


def test_lists_say_which_are_loaded_and_until_when(house: LiveServer) -> None:
    for model in ("first", "second"):
        answers(house, model)
    running = {each["name"]: each for each in house.get("/api/ps").json()["models"]}
    assert set(running) == {"first:latest", "second:latest"}
    assert running["second:latest"]["expires_at"].startswith("9999")
    assert running["first:latest"]["expires_at"].startswith("2")
    assert "expires_at" not in status(house, "second")
    assert running["first:latest"]["size"] == status(house, "first")["bytes"]
    tags = {each["name"]: each for each in house.get("/api/tags").json()["models"]}
    assert tags["first:latest"]["details"]["family"] == "llama"
    assert tags["encoder:latest"]["capabilities"] == ["embedding"]
    assert house.metric("ockham_model_loaded", model_name="first") == 1
    assert house.metric("ockham_generation_tokens_total", model_name="second") > 0


def test_looking_at_a_cache_loads_nothing(house: LiveServer) -> None:
    response = house.post("/v1/cache", {"model": "encoder"})
    assert response.status_code == 400
    assert "not loaded" in response.json()["error"]["message"]
    assert status(house, "encoder")["value"] == "unloaded"


def test_a_model_for_embeddings_generates_nothing(house: LiveServer) -> None:
    response = house.post("/v1/completions", {"model": "encoder", "prompt": "a"})
    assert response.status_code == 400
    assert "embeds texts" in response.json()["error"]["message"]
    assert status(house, "encoder")["value"] == "unloaded", "that is known before it is loaded"


def test_texts_are_embedded_by_the_model_that_is_there_for_it(house: LiveServer) -> None:
    answered = house.post("/v1/embeddings", {"input": "a"}).json()
    assert answered["model"] == "encoder", "who names none gets the first that does this"
    named = house.post("/api/embed", {"model": "encoder", "input": "a"}).json()
    assert len(named["embeddings"][0]) == len(answered["data"][0]["embedding"])
    refused = house.post("/v1/embeddings", {"model": "second", "input": "a"})
    assert refused.status_code == 400
    assert "generates text" in refused.json()["error"]["message"]


def test_a_damaged_model_harms_no_other_and_says_why(house: LiveServer) -> None:
    before = answers(house, "second")
    with ThreadPoolExecutor(6) as threads:
        failed = list(
            threads.map(
                lambda _: house.post("/v1/completions", {"model": "broken", "prompt": "a"}),
                range(6),
            )
        )
    for response in failed:
        assert response.status_code == 503
        assert "broken cannot be loaded" in response.json()["error"]["message"]
    assert house.metric("ockham_model_load_failures_total", model_name="broken") <= 2
    said = status(house, "broken")
    assert said["value"] == "unloaded"
    assert said["failed"] is True
    assert "cannot be loaded" in said["message"]
    assert answers(house, "second") == before
    assert house.get("/health").status_code == 200


def test_only_the_administrator_loads_and_unloads(house: LiveServer) -> None:
    answers(house, "first")
    assert manage(house, "unload", "first", "me").status_code == 403
    assert manage(house, "load", "first").json()["status"] == "loaded"
    assert manage(house, "unload", "first").json()["status"] == "unloading"
    wait_for(lambda: status(house, "first")["value"] == "unloaded", 10)
    assert manage(house, "unload", "first").json()["status"] == "unloaded"
    assert manage(house, "load", "nobody").status_code == 404
    response = house.post("/api/generate", {"model": "second", "keep_alive": 0})
    assert response.status_code == 403
    kept = house.post(
        "/api/generate", {"model": "second", "prompt": "a", "keep_alive": 0, "stream": False}
    )
    assert kept.headers["x-ockham-ignored-fields"] == "keep_alive"
    assert status(house, "second")["value"] == "loaded"


def test_what_was_let_go_finds_its_prefixes_in_the_store(house: LiveServer) -> None:
    prompt = {"model": "first", "prompt": list(range(100, 164)), "temperature": 0}
    first = house.post("/v1/completions", {**prompt, "max_tokens": 4}).json()
    manage(house, "unload", "first")
    wait_for(lambda: status(house, "first")["value"] == "unloaded", 10)
    again = house.post("/v1/completions", {**prompt, "max_tokens": 4}).json()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 48
    assert again["choices"] == first["choices"]


class Streamed(threading.Thread):
    """Reads a completion's stream; `lines` are its events."""

    def __init__(self, server: LiveServer, model: str, tokens: int) -> None:
        super().__init__()
        self.url = f"{server.url}/v1/completions"
        self.body = {"model": model, "prompt": [5, 6, 7], "max_tokens": tokens, "stream": True}
        self.body |= {"temperature": 0, "ignore_eos": True, "return_token_ids": True}
        self.began = threading.Event()
        self.lines: list[str] = []
        self.start()

    def run(self) -> None:
        with httpx.stream("POST", self.url, json=self.body, timeout=60) as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    self.lines.append(line.removeprefix("data: "))
                    self.began.set()

    def tokens(self) -> list[int]:
        self.join(60)
        events = [json.loads(line) for line in self.lines if line != "[DONE]"]
        return [t for e in events for c in e.get("choices", ()) for t in c["token_ids"]]


def test_an_engine_that_is_killed_harms_only_its_own_requests(house: LiveServer) -> None:
    expected = Streamed(house, "first", 1500).tokens()
    for model in ("first", "second", "encoder"):  # whatever other tests have loaded
        manage(house, "unload", model)
    wait_for(lambda: not engines(house), 10)
    for model in ("second", "first"):
        answers(house, model)
    victim, _ = engines(house).values()  # the oldest is of the second model
    going = Streamed(house, "first", 1500)
    assert going.began.wait(20)
    dying = Streamed(house, "second", 240)
    assert dying.began.wait(20)
    victim.kill()
    dying.join(30)
    assert "killed by SIGKILL" in dying.lines[-2]
    assert dying.lines[-1] == "[DONE]"
    assert answers(house, "second"), "the next request loads it again"
    assert going.tokens() == expected
    assert house.get("/health").status_code == 200


def test_the_only_model_of_a_server_is_not_unloaded(server: LiveServer) -> None:
    assert server.post("/models/load", {"model": "tiny"}).json()["status"] == "loaded"
    response = server.post("/models/unload", {"model": "tiny"})
    assert response.status_code == 400
    assert "one model" in response.json()["error"]["message"]


@pytest.fixture(scope="module")
def narrow(
    tiny: Path, other: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server of two models of which one is in memory at a time, and one that can never be."""
    directory = tmp_path_factory.mktemp("narrow")
    table = {
        "a": {"model": str(tiny), "preload": True},
        "missing": "/nowhere/model.gguf",
        "b": {"model": str(other), "aliases": "c"},
        "huge": {"model": str(tiny), "memory-bytes": "4G"},
    }
    flags = ("--models", json.dumps(table), "--models-memory-bytes", "400M")
    memory = ("--memory-bytes", "200M", "--max-num-seqs", "4", "--no-access-log")
    with several(directory, *flags, *memory) as live:
        yield live


def test_a_model_may_be_there_from_the_start(narrow: LiveServer) -> None:
    wait_for(lambda: status(narrow, "a")["value"] == "loaded", 30)
    assert "missing cannot be loaded as things are: there is no /nowhere/model.gguf" in narrow.log


def test_a_model_waits_until_the_requests_of_another_have_ended(narrow: LiveServer) -> None:
    running = Streamed(narrow, "a", 1000)
    assert running.began.wait(20)
    assert answers(narrow, "b")
    assert len(running.tokens()) == 1000
    assert status(narrow, "a")["value"] == "unloaded"


def test_what_can_never_fit_is_refused_and_nothing_goes(narrow: LiveServer) -> None:
    answers(narrow, "a")
    response = narrow.post("/v1/completions", {"model": "huge", "prompt": "a"})
    assert response.status_code == 400
    assert "memory_bytes" in response.json()["error"]["message"]
    assert status(narrow, "a")["value"] == "loaded"


def test_ollamas_keep_alive_lets_a_model_go(narrow: LiveServer) -> None:
    body = {"model": "a", "prompt": "a", "stream": False, "options": {"num_predict": 2}}
    assert narrow.post("/api/generate", {**body, "keep_alive": "10m"}).status_code == 200
    left_s = status(narrow, "a")["expires_at"]
    assert left_s > 0
    assert narrow.post("/api/generate", {**body, "keep_alive": 0}).status_code == 200
    wait_for(lambda: status(narrow, "a")["value"] == "unloaded", 10)
    loaded = narrow.post("/api/generate", {"model": "a"})
    assert loaded.json()["done_reason"] == "load"
    unloaded = narrow.post("/api/chat", {"model": "a", "keep_alive": 0})
    assert unloaded.json()["done_reason"] == "unload"
    wait_for(lambda: status(narrow, "a")["value"] == "unloaded", 10)


def test_a_client_that_leaves_while_its_model_waits_is_forgotten(narrow: LiveServer) -> None:
    running = Streamed(narrow, "a", 1200)
    assert running.began.wait(20)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{narrow.url}/v1/completions", json={"model": "b", "prompt": "a"}, timeout=0.3)
    assert answers(narrow, "a"), "a need not make room any more"
    assert len(running.tokens()) == 1200
    assert status(narrow, "b")["value"] == "unloaded"


def test_a_batch_is_answered_by_the_models_that_its_lines_name(house: LiveServer) -> None:
    admin = {"Authorization": "Bearer boss"}
    url, body = "/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 3, "temperature": 0}
    lines = [
        json.dumps(
            {"custom_id": f"{n}", "method": "POST", "url": url, "body": {**body, "model": model}}
        )
        for n, model in enumerate(["first", "second", "first", "nobody"])
    ]
    made = house.openai(api_key="boss").files.create(
        file=("in.jsonl", "\n".join(lines).encode()), purpose="batch"
    )
    batch = house.post(
        "/v1/batches",
        {"input_file_id": made.id, "endpoint": url, "completion_window": "24h"},
        headers=admin,
    ).json()

    def done() -> dict[str, Any] | None:
        found = house.get(f"/v1/batches/{batch['id']}", headers=admin).json()
        return found if found["status"] == "completed" else None

    ended = wait_for(done, 30)
    assert ended["request_counts"] == {"total": 4, "completed": 3, "failed": 1}
    text = house.get(f"/v1/files/{ended['output_file_id']}/content", headers=admin).text
    told = [json.loads(line)["response"]["body"]["model"] for line in text.splitlines()]
    assert sorted(told) == ["first", "first", "second"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own figures are read")
def test_an_idle_server_of_three_models_uses_no_core(house: LiveServer) -> None:
    for model in ("first", "second", "encoder"):
        assert manage(house, "load", model).status_code == 200
    house.wait_idle()
    assert len(engines(house)) == 3
    time.sleep(0.5)
    before_s = used_s(house)
    time.sleep(WATCHED_S)
    assert used_s(house) - before_s < MOST_SHARE * WATCHED_S


def test_at_the_end_those_who_run_finish_and_those_who_wait_are_told(narrow: LiveServer) -> None:
    """The last one: the server is gone afterwards."""
    running = Streamed(narrow, "a", 1000)
    assert running.began.wait(20)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(narrow.post, "/v1/completions", {"model": "b", "prompt": "a"})
        wait_for(lambda: status(narrow, "b")["value"] == "unloaded" and not waiting.done(), 5)
        time.sleep(0.3)
        narrow.process.send_signal(signal.SIGTERM)
        response = waiting.result(20)
    assert response.status_code == 503
    assert "shutting down" in response.json()["error"]["message"]
    assert len(running.tokens()) == 1000
    assert narrow.process.wait(15) == 0
