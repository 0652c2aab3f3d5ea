"""`/v1/files` and `/v1/batches`, through openai-python."""

from __future__ import annotations

import json
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.api.server.conftest import TINY_FLAGS
from tests.helpers.live import LiveServer, wait_for

WAIT_S = 60.0


def line(name: str, **body: Any) -> str:
    asked = {"model": "tiny", "prompt": f"Number {name}:", "max_tokens": 4, "temperature": 0}
    request = {"custom_id": name, "method": "POST", "url": "/v1/completions"}
    return json.dumps({**request, "body": {**asked, **body}})


def upload(client: openai.OpenAI, *lines: str) -> str:
    content = "\n".join(lines).encode()
    return client.files.create(file=("requests.jsonl", content), purpose="batch").id


def create(client: openai.OpenAI, file_id: str, **more: Any) -> openai.types.Batch:
    return client.batches.create(
        input_file_id=file_id, endpoint="/v1/completions", completion_window="24h", **more
    )


def ended(client: openai.OpenAI, batch_id: str) -> openai.types.Batch:
    def done() -> openai.types.Batch | None:
        batch = client.batches.retrieve(batch_id)
        running = ("validating", "in_progress", "finalizing", "cancelling")
        return None if batch.status in running else batch

    return wait_for(done, WAIT_S)


def rows(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(row) for row in client.files.content(file_id).text.splitlines()]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("batches") / "kept"


@pytest.fixture(scope="module")
def keyed(
    tiny: Path, directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    flags = ("--served-model-name", "tiny", "--batch-dir", str(directory))
    keys = ("--api-key", "key-a", "--api-key", "key-b", "--batch-dir-bytes", "1M")
    with LiveServer(tiny, tmp_path_factory.mktemp("logs"), *TINY_FLAGS, *flags, *keys) as live:
        yield live


@pytest.fixture
def client(keyed: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="key-a", max_retries=0)


@pytest.fixture
def other(keyed: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="key-b", max_retries=0)


def test_files_are_kept_until_they_are_deleted(
    client: openai.OpenAI, other: openai.OpenAI, directory: Path
) -> None:
    content = b'{"a": 1}\n' * 1000
    made = client.files.create(file=("a.jsonl", content), purpose="batch")
    assert (made.filename, made.bytes, made.purpose) == ("a.jsonl", len(content), "batch")
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).content == content
    assert [file.id for file in client.files.list()] == [made.id]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for hidden in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError):
            hidden(made.id)
    assert list(other.files.list()) == []
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    assert not list(directory.glob(f"{made.id}*"))


def test_a_batch_gives_what_its_requests_would(client: openai.OpenAI, other: openai.OpenAI) -> None:
    file_id = upload(client, line("a"), line("b", n=0), line("c"), "no request")
    batch = create(client, file_id, metadata={"job": "nightly"})
    assert batch.status in ("validating", "in_progress")
    batch = ended(client, batch.id)
    assert batch.status == "completed"
    assert batch.metadata == {"job": "nightly"}
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (4, 2, 2)
    answers = {row["custom_id"]: row["response"] for row in rows(client, batch.output_file_id)}
    assert answers.keys() == {"a", "c"}
    alone = client.completions.create(model="tiny", prompt="Number a:", max_tokens=4, temperature=0)
    assert answers["a"]["body"]["choices"][0]["text"] == alone.choices[0].text
    errors = rows(client, batch.error_file_id)
    assert {row["custom_id"] for row in errors} == {"b", None}
    assert all(row["error"]["message"] for row in errors)
    assert batch.id in [each.id for each in client.batches.list()]
    assert batch.id not in [each.id for each in other.batches.list()]
    with pytest.raises(openai.NotFoundError):
        other.batches.retrieve(batch.id)
    with pytest.raises(openai.BadRequestError):
        create(other, file_id)


def test_a_batch_can_be_cancelled_and_keeps_what_it_has(client: openai.OpenAI) -> None:
    lines = [line(str(i), max_tokens=4000, ignore_eos=True) for i in range(200)]
    batch = create(client, upload(client, *lines))
    waiting = create(client, upload(client, line("a")))
    with pytest.raises(openai.BadRequestError, match="still needs"):
        client.files.delete(batch.input_file_id)
    assert client.batches.cancel(waiting.id).status == "cancelled"
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(client, batch.id)
    assert batch.status == "cancelled"
    assert batch.request_counts is not None
    assert batch.request_counts.completed < 200
    with pytest.raises(openai.BadRequestError):
        client.batches.cancel(batch.id)


@pytest.mark.parametrize(
    ("lines", "said"),
    [(("",), "holds no request"), ((line("a"), line("a")), "is that of line 1 too")],
)
def test_a_file_that_is_no_batch_fails_with_a_sentence(
    client: openai.OpenAI, lines: tuple[str, ...], said: str
) -> None:
    batch = ended(client, create(client, upload(client, *lines)).id)
    assert batch.status == "failed"
    assert batch.errors is not None
    [error] = batch.errors.data or []
    assert said in (error.message or "")


def test_other_routes_than_the_batch_s_are_errors_of_their_lines(client: openai.OpenAI) -> None:
    asked = json.loads(line("a"))
    file_id = upload(client, json.dumps({**asked, "url": "/v1/chat/completions"}))
    batch = ended(client, create(client, file_id).id)
    [error] = rows(client, batch.error_file_id)
    assert error["error"]["message"].startswith("url must be /v1/completions")


FORM = {"Content-Type": "multipart/form-data; boundary=xx", "Authorization": "Bearer key-a"}
PART = '--xx\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n{}\r\n'
PURPOSE, FILE = PART.format("purpose", "", "batch"), PART.format("file", '; filename="a"', "x")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (PURPOSE + FILE + "--xx--\r\n", 200),
        (PURPOSE + "--xx--\r\n", 400),
        (FILE + "--xx--\r\n", 400),
        (PURPOSE + FILE + FILE + "--xx--\r\n", 400),
        (PURPOSE + FILE, 400),
        (PURPOSE + FILE + PART.format("extra", "", "y") + "--xx--\r\n", 400),
        (PART.format("purpose", "", "vision") + FILE + "--xx--\r\n", 400),
        (PART.format("purpose", "", "b" * 5000) + FILE + "--xx--\r\n", 400),
        ("no form", 400),
        ("", 400),
    ],
)
def test_forms_are_read_with_care(
    keyed: LiveServer, directory: Path, body: str, status: int
) -> None:
    before = sorted(directory.iterdir())
    answer = httpx.post(f"{keyed.url}/v1/files", content=body.encode(), headers=FORM)
    assert answer.status_code == status, answer.text
    if status == 400:
        assert answer.json()["error"]["message"]
        assert sorted(directory.iterdir()) == before


def test_what_has_no_room_and_pages_of_others_are_refused(
    keyed: LiveServer, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError, match="--batch-dir-bytes"):
        client.files.create(file=("big", b"x" * (2 << 20)), purpose="batch")
    headers = {**FORM, "Origin": "https://elsewhere.example"}
    content = (PURPOSE + FILE + "--xx--\r\n").encode()
    answer = httpx.post(f"{keyed.url}/v1/files", content=content, headers=headers)
    assert answer.status_code == 403
    answer = httpx.post(f"{keyed.url}/v1/files", json={}, headers={"Authorization": "Bearer key-a"})
    assert answer.status_code == 415


def test_a_batch_goes_on_after_the_server_was_killed(tiny: Path, tmp_path: Path) -> None:
    flags = (*TINY_FLAGS, "--served-model-name", "tiny", "--batch-dir", str(tmp_path / "kept"))
    names = [str(i) for i in range(14)]
    with LiveServer(tiny, tmp_path, *flags, "--max-num-seqs", "2") as live:
        client = live.openai()
        lines = [line(name, max_tokens=80, ignore_eos=True) for name in names]
        batch = create(client, upload(client, *lines))

        def begun() -> bool:
            counts = client.batches.retrieve(batch.id).request_counts
            return counts is not None and counts.completed > 1

        wait_for(begun, WAIT_S)
        live.process.send_signal(signal.SIGKILL)
        live.process.wait()
    ending = _batch_that_was_about_to_end(tmp_path / "kept", batch.id)
    stranger = tmp_path / "kept" / "notes.txt"
    stranger.write_text("mine")
    with LiveServer(tiny, tmp_path, *flags) as live:
        client = live.openai()
        batch = ended(client, batch.id)
        assert batch.status == "completed"
        found = [row["custom_id"] for row in rows(client, batch.output_file_id)]
        assert sorted(found) == sorted(names)
        last = ended(client, ending)
        assert last.status == "completed"
        assert [row["custom_id"] for row in rows(client, last.output_file_id)] == ["done"]
        _one_is_under_way_while_somebody_is_served(live, client)
    assert stranger.read_text() == "mine"
    assert not list((tmp_path / "kept").glob("*.results"))


def _batch_that_was_about_to_end(directory: Path, pattern: str) -> str:
    """What the disk has of a batch when a kill comes between its last answer and its files."""
    file_id, batch_id = f"file-{'1' * 24}", f"batch-{'2' * 24}"
    record = json.loads((directory / f"{pattern}.json").read_text())
    asked = json.loads((directory / f"{record['input_file_id']}.json").read_text())
    content = line("done").encode()
    (directory / f"{file_id}.json").write_text(json.dumps({**asked, "id": file_id}))
    (directory / f"{file_id}.data").write_bytes(content)
    response = {"status_code": 200, "request_id": "batch_req_0", "body": {}}
    result = {"id": "batch_req_0", "custom_id": "done", "response": response, "error": None}
    text = json.dumps(result, separators=(",", ":")) + "\n"
    (directory / f"{batch_id}.results").write_text(text)
    record |= {"id": batch_id, "input_file_id": file_id, "status": "finalizing"}
    record |= {"results": f"{batch_id}.results"}
    (directory / f"{batch_id}.json").write_text(json.dumps(record))
    return batch_id


def _one_is_under_way_while_somebody_is_served(live: LiveServer, client: openai.OpenAI) -> None:
    with client.completions.create(
        model="tiny", prompt="a", max_tokens=6000, extra_body={"ignore_eos": True}, stream=True
    ) as stream:
        next(iter(stream))
        lines = [line(str(i), max_tokens=3000, ignore_eos=True) for i in range(8)]
        batch = create(client, upload(client, *lines))
        wait_for(lambda: client.batches.retrieve(batch.id).status == "in_progress", WAIT_S)
        time.sleep(0.5)  # the figures come a few times a second
        assert live.metric("ockham_num_requests_running") <= 2
    # Nobody is served now, so that all of them are under way.
    wait_for(lambda: live.metric("ockham_num_requests_running") == 8, WAIT_S)
    client.batches.cancel(batch.id)
    assert ended(client, batch.id).status == "cancelled"


def test_a_server_without_a_directory_says_so(talking: LiveServer) -> None:
    for path in ("files", "batches", "files/file-1", "batches/batch-1"):
        answer = talking.get(f"/v1/{path}")
        assert answer.status_code == 404
        assert "--batch-dir" in answer.json()["error"]["message"]
