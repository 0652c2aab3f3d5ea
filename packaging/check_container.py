"""Builds the image and tries it as an operator would: `python check_container.py`, in a checkout.

ENGINE is docker (the default) or podman; BUILD_FLAGS and RUN_FLAGS are added to its commands. IMAGE
is one that exists, and then none is built. The server is asked over the host's network, at a free
port. Prints what was tried, ends with 1 at the first thing that is wrong, and removes the container
and its volume.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

ENGINE = os.environ.get("ENGINE", "docker")
BUILD_FLAGS = shlex.split(os.environ.get("BUILD_FLAGS", ""))
if "podman" in ENGINE:
    BUILD_FLAGS += ["--format", "docker"]  # its own has no health check
RUN_FLAGS = shlex.split(os.environ.get("RUN_FLAGS", ""))
NAME = "ockham-check"
IMAGE = os.environ.get("IMAGE") or NAME
START_S, STOP_S = 120.0, 40
TOKENS = 1500
"""Of the stream that runs while the container is stopped: some seconds."""


def engine(*words: str, check: bool = True) -> str:
    """What the container engine says to a command."""
    done = subprocess.run([ENGINE, *words], check=check, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def run(*words: str, entrypoint: str | None = None) -> str:
    """What a container of the image says to a command."""
    flags = [*RUN_FLAGS, *(() if entrypoint is None else ("--entrypoint", entrypoint))]
    return engine("run", "--rm", *flags, IMAGE, *words)


def inspect(what: str, of: str) -> str:
    return engine("inspect", "--format", f"{{{{{what}}}}}", of)


def check_image() -> None:
    size = int(engine("image", "inspect", "--format", "{{.Size}}", IMAGE))
    print(f"The image takes {size / 1e6:.0f} MB.")
    who = run(entrypoint="id")
    assert "uid=10001" in who, who
    tools = run("-c", "command -v cc gcc g++ make cmake pip || true", entrypoint="sh")
    assert not tools, f"the image holds {tools}"
    kept = run(
        "-c", "touch /opt/ockham/x 2>&1 || true; touch /cache/x && echo kept", entrypoint="sh"
    )
    assert "denied" in kept or "Read-only" in kept, kept
    assert kept.endswith("kept"), kept
    print(run("doctor"))
    print("ockham run lab -p x:", repr(run("run", "lab", "-p", "x", "-n", "8")))


def check_server(port: int) -> None:
    """One that may write nothing but its cache, until it is stopped amid a stream."""
    url = f"http://127.0.0.1:{port}"
    settings = [f"OCKHAM_PORT={port}", "OCKHAM_HOST=127.0.0.1", "OCKHAM_MODEL=lab"]
    flags = [flag for setting in settings for flag in ("--env", setting)]
    flags += ["--network", "host", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
    flags += ["--security-opt", "no-new-privileges", "--volume", f"{NAME}:/cache"]
    engine("run", "--detach", "--name", NAME, *RUN_FLAGS, *flags, IMAGE)
    until_s = time.monotonic() + START_S
    while not _is_well(url):
        assert time.monotonic() < until_s, engine("logs", NAME)
        time.sleep(0.2)
    kind, *command = json.loads(inspect("json .Config.Healthcheck.Test", NAME))
    assert kind == "CMD"
    engine("exec", NAME, *command)
    print("It is healthy, by its own check.")
    assert b"<title>" in urllib.request.urlopen(f"{url}/", timeout=START_S).read()
    body = {"prompt": "x", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=START_S) as stream:
        stream.readline()
        stopping = subprocess.Popen([ENGINE, "stop", "-t", str(STOP_S), NAME])
        rest: Sequence[bytes] = stream.readlines()
    assert stopping.wait(STOP_S + START_S) == 0
    assert rest[-2] == b"data: [DONE]\n", "the stream was cut"
    status = inspect(".State.ExitCode", NAME)
    assert status == "0", f"it ended with {status}: {engine('logs', NAME)}"
    print("SIGTERM let the running stream finish, and the container ended with 0.")


def _is_well(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(f"{url}/health", timeout=5).status == 200)
    except (urllib.error.URLError, OSError):
        return False


def main() -> None:
    if IMAGE == NAME:
        engine("build", "--tag", IMAGE, *BUILD_FLAGS, ".")
    try:
        check_image()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        check_server(port)
    finally:
        engine("rm", "--force", NAME, check=False)
        engine("volume", "rm", "--force", NAME, check=False)
    print("The container works.")


if __name__ == "__main__":
    main()
