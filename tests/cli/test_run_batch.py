"""`ockham run-batch`: every line gets its result, once, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from tests.helpers.live import ROOT, LiveServer
from tests.helpers.tiny import tiny_llama

FLAGS = ("--max-model-len", "256", "--kv-cache-memory-bytes", "2M", "--max-num-seqs", "4")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("run-batch"), tokenizer=True)


@pytest.fixture(scope="module")
def live(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tiny, tmp_path_factory.mktemp("server"), *FLAGS) as server:
        yield server


def line(custom_id: str, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    body = {"temperature": 0, "max_tokens": 4, **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def lines(count: int, **body: Any) -> list[dict[str, Any]]:
    return [
        line(f"r{i}", prompt=f"Group {i % 3}. " * 8 + f"Question {i}", **body) for i in range(count)
    ]


def write(path: Path, entries: list[Any]) -> Path:
    path.write_text("".join(e if isinstance(e, str) else json.dumps(e) + "\n" for e in entries))
    return path


def command(tiny: Path, given: Path, output: Path) -> list[str]:
    return ["run-batch", str(tiny), "-i", str(given), "-o", str(output), *FLAGS]


def run(tiny: Path, given: Path, output: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from ockham.cli.main import main; main()",
            *command(tiny, given, output),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )


def results(path: Path) -> dict[str | None, dict[str, Any]]:
    found = [json.loads(text) for text in path.read_text().splitlines()]
    by_id = {entry["custom_id"]: entry for entry in found}
    assert len(by_id) == len(found), "a request has one result"
    return by_id


def test_each_line_is_answered_as_the_server_does_it(
    tiny: Path, live: LiveServer, tmp_path: Path
) -> None:
    asked = lines(7)
    chat = {"messages": [{"role": "user", "content": "Hi"}], "logprobs": True}
    asked.append(line("chat", "/v1/chat/completions", **chat))
    output = tmp_path / "out.jsonl"
    done = run(tiny, write(tmp_path / "in.jsonl", asked), output)
    assert done.returncode == 0, done.stderr
    found = results(output)
    assert found.keys() == {entry["custom_id"] for entry in asked}
    for entry in asked:
        response = found[entry["custom_id"]]["response"]
        assert response["status_code"] == 200
        expected = live.post(entry["url"], entry["body"]).json()
        assert response["body"]["choices"] == expected["choices"]
    assert "8 of 8 requests, 0 failed" in done.stderr
    assert "saved by prefix" in done.stderr


def test_huge_numbers_and_deep_values_of_a_line_are_its_own(tiny: Path, tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    wrong = [
        line("seed", prompt="x", seed=10**400),
        line("stop", prompt="x", stop_token_ids=[2**64]),
        line("bias", prompt="x", logit_bias={str(2**64): 1}),
        line("deep", prompt=deep),
        line("digits", prompt="x", n=10**4000),
        {**line("url", prompt="x"), "url": "/" * 10_000},
        line("schema", prompt="x", structured_outputs={"json": {"maximum": 2**64}}),
    ]
    echo = line("echo", prompt=[5], echo=True, logprobs=1, max_tokens=1, ignore_eos=True)
    output = tmp_path / "out.jsonl"
    done = run(tiny, write(tmp_path / "in.jsonl", [*wrong, echo, *lines(2)]), output)
    assert "Traceback" not in done.stderr
    found = results(output)
    for entry in wrong:
        result = found[entry["custom_id"]]
        assert result["response"]["status_code"] == 400, result
        assert len(result["error"]["message"]) < 400
    assert {i for i, entry in found.items() if entry["error"] is None} == {"r0", "r1", "echo"}
    (choice,) = found["echo"]["response"]["body"]["choices"]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert len(choice["logprobs"]["token_logprobs"]) == 2


def test_a_bad_line_harms_no_other(tiny: Path, tmp_path: Path) -> None:
    asked = [
        *lines(3),
        "this is not JSON\n",
        line("unknown-field", prompt="x", nonsense=1),
        line("stream", prompt="x", stream=True),
        line("url", url="/v1/moderations", input="x"),
        line("long", prompt=[5] * 400),
        {**line("method", prompt="x"), "method": "GET"},
        line("model", prompt="x", model="another"),
    ]
    output = tmp_path / "out.jsonl"
    given = write(tmp_path / "in.jsonl", asked)
    done = run(tiny, given, output)
    assert done.returncode == 1
    assert "7 requests failed" in done.stderr
    found = results(output)
    assert {i for i, entry in found.items() if entry["error"] is None} == {"r0", "r1", "r2"}
    said = {i: entry["error"]["message"] for i, entry in found.items() if entry["error"]}
    assert "line 4 is no request" in said[None]
    assert "nonsense is not a field" in said["unknown-field"]
    assert "a batch has no streams" in said["stream"]
    assert "url must be one of" in said["url"]
    assert "400 tokens" in said["long"]
    assert "method must be POST" in said["method"]
    assert found["model"]["response"]["status_code"] == 404
    before = output.read_bytes()
    again = run(tiny, given, output)
    assert "10 of 10 requests (10 before), 7 failed" in again.stderr
    assert again.returncode == 1
    assert output.read_bytes() == before


def test_a_killed_run_goes_on_where_it_ended(tiny: Path, tmp_path: Path) -> None:
    asked = lines(60, max_tokens=40, ignore_eos=True)
    given, output = write(tmp_path / "in.jsonl", asked), tmp_path / "out.jsonl"
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from ockham.cli.main import main; main()",
            *command(tiny, given, output),
        ],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    deadline_s = time.monotonic() + 60
    while not output.exists() or output.read_bytes().count(b"\n") < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = output.read_bytes()
    assert 5 <= finished.count(b"\n") < 60
    with output.open("ab") as file:
        file.write(b'{"id":"torn","custom_id":"r')
    done = run(tiny, given, output)
    assert done.returncode == 0, done.stderr
    assert output.read_bytes().startswith(finished)
    assert len(results(output)) == 60
    whole = tmp_path / "whole.jsonl"
    assert run(tiny, given, whole).returncode == 0
    expected = results(whole)
    for name, entry in results(output).items():
        assert entry["response"]["body"]["choices"] == expected[name]["response"]["body"]["choices"]


@pytest.mark.parametrize(
    ("given", "output", "reason"),
    [
        (None, "out.jsonl", "in.jsonl cannot be read (No such file or directory)"),
        ([], "out.jsonl", "holds no request"),
        (
            [line("a", prompt="x"), line("a", prompt="y")],
            "out.jsonl",
            "line 2: custom_id 'a' is that of line 1 too",
        ),
        ([line("a", prompt="x")], "missing/out.jsonl", "out.jsonl cannot be written"),
        ([line("a", prompt="x")], "in.jsonl", "is the input too"),
        ([line("a", prompt="x")], "foreign.jsonl", "a result for custom_id 'b'"),
        ([line("a", prompt="x")], "text.jsonl", "line 1 is no result of a batch"),
    ],
)
def test_what_cannot_be_run_is_refused(
    tmp_path: Path, given: list[Any] | None, output: str, reason: str
) -> None:
    if given is not None:
        write(tmp_path / "in.jsonl", given)
    write(
        tmp_path / "foreign.jsonl", [{"id": "x", "custom_id": "b", "response": None, "error": None}]
    )
    write(tmp_path / "text.jsonl", ["some text\n"])
    before = (tmp_path / "foreign.jsonl").read_bytes()
    args = ["run-batch", "lab", "-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / output)]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 2 or result.exception is not None
    assert reason in f"{result.output} {result.exception}"
    assert (tmp_path / "foreign.jsonl").read_bytes() == before


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    from ockham.api.batch_file import BatchInput, BatchOutput
    from ockham.core.errors import ConfigError

    given = BatchInput(write(tmp_path / "in.jsonl", [line("a", prompt="x")]))
    first = BatchOutput(tmp_path / "out.jsonl", given)
    with pytest.raises(ConfigError, match="being written by another process"):
        BatchOutput(tmp_path / "out.jsonl", given)
    first.close()
    BatchOutput(tmp_path / "out.jsonl", given).close()


def test_lines_that_begin_alike_come_together(tmp_path: Path) -> None:
    from ockham.api.batch_file import BatchInput, Done

    asked = [line(str(i), prompt=f"{'abc'[i % 3]} " * 100 + f"{i}") for i in range(30)]
    given = BatchInput(write(tmp_path / "in.jsonl", asked))
    groups = [json.loads(text)["body"]["prompt"][0] for _, text in given.lines(Done())]
    assert len(groups) == 30
    assert sum(one != other for one, other in pairwise(groups)) == 2
