"""Tries a wheel as somebody without a compiler would: `python check_wheel.py WHEEL CONSTRAINTS`.

It is installed into a new virtual environment, with what it needs as wheels only. From then on no
other program can be found. Prints what was tried, and ends with 1 at the first thing that is wrong.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import venv
from pathlib import Path

START_S = 120.0


def main(wheel: Path, constraints: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        venv.create(directory / "venv", with_pip=True)
        programs = directory / "venv/bin"
        pip = [programs / "python", "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
        subprocess.run([*pip, "--constraint", constraints, wheel.resolve()], check=True)
        home = directory / "home"
        home.mkdir()
        environment = {"PATH": str(programs), "HOME": str(home), "LANG": "C.UTF-8"}
        for compiler in ("cc", "gcc", "c++", "cmake", "ninja"):
            assert shutil.which(compiler, path=str(programs)) is None, compiler

        def ockham(*words: str) -> str:
            done = subprocess.run(
                [programs / "ockham", *words],
                cwd=home,
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            )
            return done.stdout

        doctor = ockham("doctor")
        print(doctor)
        assert re.search(r"(?m)^in use\s+cpu", doctor), "the compiled core is not there"
        for model in ("lab", "lab-moe"):
            said = ockham("run", model, "-p", "x", "-n", "8", "--temperature", "0")
            print(f"ockham run {model} -p x: {said!r}")
        _serve(programs / "ockham", home, environment)
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, works.")


def _serve(program: Path, home: Path, environment: dict[str, str]) -> None:
    """A server, its page, a chat, and its end."""
    process = subprocess.Popen(
        [program, "serve", "lab", "--port", "0"],
        cwd=home,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        url = ""
        for line in process.stderr:
            if found := re.search(r"Listening on (http://\S+)", line):
                url = found[1]
                break
        assert url, "the server did not start"
        page = urllib.request.urlopen(f"{url}/", timeout=START_S).read()
        assert b"<title>" in page
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
        request = urllib.request.Request(
            f"{url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        answer = json.load(urllib.request.urlopen(request, timeout=START_S))
        print(f"ockham serve lab: the page has {len(page)} bytes, a chat says {answer['choices']}")
    finally:
        process.terminate()
    assert process.wait(START_S) == 0, "SIGTERM did not end the server in order"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
