"""`ockham plan`: what it refuses, with which words, and one plan from the command line."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ockham.cli.main import cli
from ockham.cli.plan import first_sessions
from ockham.lab.workloads import Request, make_workload
from tests.helpers.tiny import tiny_llama


def call(*args: str) -> Result:
    return CliRunner().invoke(cli, ["plan", *args])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_llama(tmp_path_factory.mktemp("model") / "tiny", tokenizer=True))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--workload", "chats"), "neither a workload"),
        (("--workload", "chat", "--floor", "kl>=1"), "kl<=VALUE"),
        (("--workload", "chat", "--floor", "klx<=1"), "no metric"),
        (("--workload", "chat", "--floor", "ttft_p50<=2,ttft_p95<=1"), "contradict"),
        (("--workload", "chat", "--time", "soon"), "no duration"),
        (("--workload", "chat", "--time", "0"), "must be positive"),
        (("--workload", "chat", "--vary", "colour"), "does not vary 'colour'"),
        (("--workload", "chat", "--also", "keep"), "SETTING=VALUE"),
        (("--workload", "chat", "--also", "keep=nothing"), "no keep called 'nothing'"),
        (("--workload", "chat", "--set", "turns=0"), "at least 1"),
        (("--workload", "chat", "--keep", "recent"), "--also keep=recent"),
        (("--workload", "chat", "--task", "embed"), "models that generate text"),
        (("--workload", "chat", "--machines", "a.json:1"), "--rate"),
        (("--workload", "chat", "--machines", "a.json", "--rate", "1"), "a price for an hour"),
        (("--workload", "chat", "--machine", "none.json"), "cannot be read"),
        (("--workload", "chat", "--also", "kv_cache_dtype=int3"), "int3"),
        (("--workload", "chat", "-o", "new", "--html", "./new"), "name two files"),
        (("--workload", "chat", "--log", "."), "cannot be a file of a plan's log"),
        (("--workload", "chat", "--machines", "a.json:1", "-o", "new.yaml"), "writes no file"),
        (("--workload", "chat", "--beside", "http://127.0.0.1:9"), "does not say whether"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    model: str, args: tuple[str, ...], said: str
) -> None:
    result = call(model, *args)
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_machine_of_another_version_is_refused(model: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"ockham": "0.0.1", "limits": []}))
    result = call(model, "--workload", "chat", "--machine", str(path))
    assert result.exit_code == 2
    assert "written by Ockham 0.0.1" in result.output


def test_a_file_is_not_replaced_unless_asked(model: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("mine")
    result = call(model, "--workload", "chat", "-o", str(path))
    assert result.exit_code == 2
    assert path.read_text() == "mine"


def test_a_plan_is_told_where_its_files_cannot_be_written(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCKHAM_CACHE", str(tmp_path))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ockham.core.owned_files._write_new", full)
    monkeypatch.setattr("ockham.plan.keeping.write_own", full)
    workload = tmp_path / "mine.jsonl"
    workload.write_text(json.dumps({"id": "r", "prompt": "def f(x):", "max_tokens": 2}) + "\n")
    result = call(
        model,
        *("--workload", str(workload), "--vary", "max_num_seqs", "--rounds", "0"),
        *("--threads", "1", "-o", str(tmp_path / "a"), "--html", str(tmp_path / "b")),
    )
    assert result.exit_code == 2, result.output
    assert "chosen: " in result.stdout
    assert "cannot be kept for --auto" in result.stderr
    assert f"{tmp_path / 'a'} cannot be written (No space left" in result.stderr
    assert f"{tmp_path / 'b'} cannot be written (No space left" in result.stderr


def test_a_model_among_the_choices_must_be_there(model: str) -> None:
    result = call(model, "--workload", "chat", "--also", "model=/nowhere")
    assert result.exit_code == 1
    assert "there is no directory '/nowhere'" in result.output


def test_rounds_are_not_negative(model: str) -> None:
    result = call(model, "--workload", "chat", "--rounds", "-1")
    assert result.exit_code == 2
    assert "at least 0" in result.output


def test_a_plan_that_is_stopped_says_that_its_log_stands(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("OCKHAM_CACHE", str(tmp_path))
    monkeypatch.setattr("ockham.plan.planning.Planner.make", stop)
    result = call(model, "--workload", "chat")
    assert "The next plan takes over" in result.output
    result = call(model, "--workload", "chat", "--log", "off")
    assert "The next plan" not in result.output


def test_a_plan_that_is_terminated_removes_its_temporary_files(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(*_: object) -> None:
        assert len([*tmp_path.glob("ockham-plan-*")]) == 1
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setenv("OCKHAM_CACHE", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("ockham.plan.planning.Planner.judge", judge)
    before = signal.getsignal(signal.SIGTERM)
    workload = tmp_path / "mine.jsonl"
    workload.write_text(json.dumps({"id": "r", "prompt": "def f(x):", "max_tokens": 2}) + "\n")
    result = call(model, "--workload", str(workload), "--floor", "kl<=1", "--threads", "1")
    assert result.exit_code == 128 + signal.SIGTERM, result.output
    assert not [*tmp_path.glob("ockham-plan-*")]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_plan_is_written_told_and_taken(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCKHAM_CACHE", str(tmp_path))
    workload = tmp_path / "mine.jsonl"
    lines = [
        {"id": f"r{n}", "prompt": f"def f{n}(x): return x + {n}", "max_tokens": 4}
        for n in range(20)
    ]
    workload.write_text("".join(json.dumps(line) + "\n" for line in lines))
    yaml_file, page_file = tmp_path / "plan.yaml", tmp_path / "plan.html"
    result = call(
        model,
        *("--workload", str(workload), "--floor", "kl<=0.5", "--minimise", "bytes"),
        *("--vary", "kv_cache_dtype", "--threads", "1", "--rounds", "0", "--explain"),
        *("-o", str(yaml_file), "--html", str(page_file)),
    )
    assert result.exit_code == 0, result.output
    assert "chosen: kv_cache_dtype=" in result.stdout
    assert "kv-cache-dtype: " in yaml_file.read_text()
    assert "<svg" in page_file.read_text()
    assert (tmp_path / "plans/log.jsonl").exists()
    taken = CliRunner().invoke(
        cli, ["run", model, "--raw", "-p", "def", "-n", "2", "--auto", "--threads", "1"]
    )
    assert taken.exit_code == 0, taken.output
    assert "--auto: the plan of" in taken.stderr


def test_a_plan_that_misses_a_bound_fails_and_is_not_kept(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCKHAM_CACHE", str(tmp_path))
    workload = tmp_path / "mine.jsonl"
    workload.write_text(json.dumps({"id": "r", "prompt": "def f(x):", "max_tokens": 2}) + "\n")
    floor = ("--floor", "memory<=1000", "--vary", "max_num_seqs", "--rounds", "0")
    result = call(model, "--workload", str(workload), *floor, "--threads", "1")
    assert result.exit_code == 1, result.output
    assert "misses memory<=1000" in result.stdout
    assert not [*(tmp_path / "plans").glob("*.json")]


def test_requests_are_whole_sessions() -> None:
    requests = make_workload("chat", {"sessions": 5, "turns": 4}).requests(0)
    assert [r.id for r in first_sessions(requests, 9)] == [r.id for r in requests[:8]]
    assert len(first_sessions(requests, 1)) == 4  # one session at least
    assert first_sessions(requests, 99) == requests
    alone = [Request(id=str(n), prompt="a", max_tokens=1) for n in range(4)]
    assert len(first_sessions(alone, 3)) == 3


def test_auto_is_refused_for_several_models(model: str) -> None:
    result = CliRunner().invoke(cli, ["serve", model, "lab", "--auto"])
    assert result.exit_code == 2
    assert "--auto takes the plan of one model" in result.output
