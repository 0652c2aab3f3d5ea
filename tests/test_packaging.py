"""The container and the systemd unit name what there is: files, settings, flags."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ockham.cli.serve import serve

ROOT = Path(__file__).parents[1]
UNITS = ROOT / "packaging/systemd"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
NO_FLAGS = {"OCKHAM_CACHE"}
"""Variables of Ockham that no flag of the server has."""


def test_the_container_is_built_of_files_that_its_engine_is_shown() -> None:
    shown = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied = [
        name
        for line in re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", DOCKERFILE)
        for name in line.split()
    ]
    assert set(copied) == shown
    for name in copied:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    "path", ["Dockerfile", "packaging/systemd/ockham.service", "docs/operating.md"]
)
def test_variables_are_settings_of_the_server(path: str) -> None:
    known = {variable for each in serve.params for variable in [each.envvar] if variable}
    named = set(re.findall(r"\bOCKHAM_[A-Z_]+(?==|`)", (ROOT / path).read_text()))
    assert named
    assert named <= {*map(str, known), *NO_FLAGS}


def test_flags_of_the_unit_exist() -> None:
    (command,) = re.findall(r"(?m)^ExecStart=(.+)$", (UNITS / "ockham.service").read_text())
    program, verb, *words = command.split()
    assert (Path(program).name, verb) == ("ockham", "serve")
    assert serve.make_context("serve", words).params["log_format"] == "json"


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze")
    service = (UNITS / "ockham.service").read_text()
    (tmp_path / "ockham.service").write_text(service.replace("/opt/ockham/bin/ockham", "/bin/true"))
    shutil.copy(UNITS / "ockham.socket", tmp_path)
    done = subprocess.run(
        [analyze, "verify", tmp_path / "ockham.service", tmp_path / "ockham.socket"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
