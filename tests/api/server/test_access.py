"""Keys, origins, addresses, and what the log says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.api.server.conftest import TINY_FLAGS
from tests.helpers.live import ROOT, LiveServer, wait_for

ORIGIN = "https://example.org"


@pytest.fixture(scope="module")
def guarded(tiny, tmp_path_factory) -> Iterator[LiveServer]:
    directory = tmp_path_factory.mktemp("guarded")
    keys = directory / "keys"
    keys.write_text("from-file-1\n\nfrom-file-2\n")
    flags = ("--api-key", "from-flag", "--api-key-file", str(keys), "--cors-origin", ORIGIN)
    with LiveServer(tiny, directory, *TINY_FLAGS, *flags, "--no-access-log") as live:
        yield live


ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/x"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/tokenizer_info"),
    ("GET", "/metrics"),
    ("GET", "/version"),
    ("GET", "/v1/models/"),
    ("GET", "/no/such/path"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_but_health_and_ping_asks_for_a_key(guarded, method, path):
    response = httpx.request(method, f"{guarded.url}{path}")
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", ["/health", "/ping"])
def test_health_asks_for_no_key(guarded, path):
    assert guarded.get(path).status_code == 200


@pytest.mark.parametrize("key", ["from-flag", "from-file-1", "from-file-2"])
def test_each_key_opens_the_api(guarded, key):
    client = guarded.openai(api_key=key)
    assert client.completions.create(model=guarded.model, prompt="a", max_tokens=1).choices


def test_a_key_may_come_in_anthropics_header(guarded):
    assert guarded.get("/v1/models", headers={"x-api-key": "from-flag"}).status_code == 200
    assert guarded.get("/v1/models", headers={"x-api-key": "from-fla"}).status_code == 401


@pytest.mark.parametrize("key", ["wrong", "from-flag2", "from-fla", "é"])
def test_a_wrong_key_does_not(guarded, key):
    headers = {b"Authorization": f"Bearer {key}".encode()}
    assert guarded.get("/v1/models", headers=headers).status_code == 401


def test_a_key_may_come_from_the_environment(tiny, tmp_path):
    with LiveServer(tiny, tmp_path, *TINY_FLAGS, OCKHAM_API_KEY="from-env") as live:
        assert live.get("/v1/models").status_code == 401
        assert live.openai(api_key="from-env").models.list().data
        assert "OCKHAM_API_KEY" not in live.engine.environ()


ADMIN = "the-administrator's"


@pytest.fixture(scope="module")
def governed(tiny, tmp_path_factory) -> Iterator[LiveServer]:
    """One key, and an administrator's from the environment."""
    flags = (*TINY_FLAGS, "--api-key", "plain")
    directory = tmp_path_factory.mktemp("governed")
    with LiveServer(tiny, directory, *flags, OCKHAM_ADMIN_API_KEY=ADMIN) as live:
        yield live


def with_key(key):
    return {"Authorization": f"Bearer {key}"}


def test_the_administrators_key_opens_everything(governed):
    body = {"prompt": "a", "max_tokens": 1}
    for key in ("plain", ADMIN):
        answer = governed.post("/v1/completions", body, headers=with_key(key))
        assert answer.status_code == 200
        assert governed.get("/v1/models", headers=with_key(key)).status_code == 200
    assert governed.get("/v1/models").status_code == 401
    assert "OCKHAM_ADMIN_API_KEY" not in governed.engine.environ()
    assert ADMIN not in governed.log


def test_sums_over_all_tenants_are_the_administrators(governed, guarded):
    assert governed.get("/metrics", headers=with_key(ADMIN)).status_code == 200
    for live, key in ((governed, "plain"), (guarded, "from-flag"), (guarded, "from-file-1")):
        answer = live.get("/metrics", headers=with_key(key))
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "admin_key_required"
        assert "ockham_" not in answer.text


def test_an_administrators_key_alone_shuts_nobody_out(tiny, tmp_path):
    with LiveServer(tiny, tmp_path, *TINY_FLAGS, "--admin-api-key", ADMIN) as live:
        assert live.get("/v1/models").status_code == 200
        assert live.get("/v1/models", headers=with_key("whatever")).status_code == 200
        assert live.get("/metrics", headers=with_key("whatever")).status_code == 403
        assert live.get("/metrics", headers=with_key(ADMIN)).status_code == 200


def test_the_administrators_key_is_no_other(tiny):
    flags = (str(tiny), "--port", "0", "--api-key", "same", "--admin-api-key", "same")
    refusal = serve_and_fail(*flags)
    assert "give it to nobody else" in refusal
    assert "same" not in refusal.replace("the same", "")


def test_an_allowed_origin_is_told_so(guarded):
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(f"{guarded.url}/v1/completions", headers=headers)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN


def test_allowed_origins_may_be_a_list_as_for_vllm(tiny, tmp_path):
    with LiveServer(tiny, tmp_path, *TINY_FLAGS, "--allowed-origins", '["*"]') as live:
        response = live.get("/v1/models", headers={"Origin": ORIGIN})
        assert response.headers["access-control-allow-origin"] == "*"


def test_no_origin_is_allowed_unless_asked_for(server):
    response = server.get("/v1/models", headers={"Origin": ORIGIN})
    assert "access-control-allow-origin" not in response.headers


def test_the_access_log_has_one_line_a_request(server):
    server.get("/version", headers={"X-Request-Id": "look-for-me"})
    # The line is written once the answer is out.
    (line,) = wait_for(lambda: [at for at in server.log.splitlines() if "look-for-me" in at], 5)
    assert "GET /version 200" in line


def test_the_access_log_can_be_left_out(guarded):
    guarded.get("/health", headers={"X-Request-Id": "look-for-me"})
    assert "look-for-me" not in guarded.log


def test_a_path_cannot_forge_a_line_of_the_log(server):
    server.get("/a%0a00:00:00%20I%20forged")
    assert not any(line.startswith("00:00:00 I forged") for line in server.log.splitlines())


def serve_and_fail(*flags: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from ockham.cli.main import main; main()", "serve", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


def test_an_address_in_use_is_a_sentence(server, tiny):
    port = server.url.rpartition(":")[2]
    assert "choose another" in serve_and_fail(str(tiny), "--port", port)


def test_a_model_that_cannot_be_loaded_is_a_sentence(tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert "config.json" in serve_and_fail(str(tmp_path), "--port", "0")


def test_an_empty_key_file_is_refused(tmp_path, tiny):
    path = tmp_path / "keys"
    path.write_text("\n")
    assert "holds no key" in serve_and_fail(str(tiny), "--api-key-file", str(path))


def test_keys_are_not_told_apart_by_the_client_library(guarded):
    with pytest.raises(openai.AuthenticationError):
        guarded.openai(api_key="wrong").models.list()


def test_an_answer_is_controlled_by_the_key_that_asked_for_it(guarded):
    client = guarded.openai(api_key="from-file-1")
    asked = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4000}
    more = {"ignore_eos": True, "temperature": 0}
    with client.chat.completions.create(
        model=guarded.model, **asked, stream=True, extra_body=more
    ) as stream:
        name = next(iter(stream)).id
        said = {}
        for key in ("from-flag", "from-file-1"):
            headers = {"authorization": f"Bearer {key}"}
            path = f"/v1/chat/completions/{name}/control"
            answer = guarded.post(path, {"action": "reasoning_end"}, headers=headers)
            said[key] = (answer.status_code, answer.json()["error"]["message"])
    assert said["from-flag"][0] == 404
    assert said["from-file-1"][0] == 400
    assert "is not thinking now" in said["from-file-1"][1]
