"""A live server for tests: `ockham serve` in a process of its own, on a free port."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
STARTUP_S = 60.0


def _prepare(descriptors: int | None) -> None:
    """In the server's process, before it begins: have the kernel end it when the tests are killed,
    and limit its file descriptors."""
    if descriptors is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


class LiveServer:
    """One running server. Leave its `with` block to end it."""

    def __init__(
        self,
        model: Path | str | None,
        directory: Path,
        *flags: str,
        descriptors: int | None = None,
        **env: str,
    ) -> None:
        """`model` is None where the flags name several. `descriptors`: the most that the process
        may have, as after `ulimit -n`."""
        self.log_path = directory / f"serve-{time.monotonic_ns()}.log"
        self.model = str(model)
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", "from ockham.cli.main import main; main()"),
                    *("serve", *([] if model is None else [str(model)])),
                    *("--port", "0", *flags),
                ],
                stdout=log,
                stderr=log,
                cwd=directory,
                env={**os.environ, "PYTHONPATH": str(ROOT), **env},
                preexec_fn=functools.partial(_prepare, descriptors),
            )
        try:
            found = wait_for(self._listening, STARTUP_S)
        except BaseException:
            self.stop()
            raise
        self.url = found[1]
        self.metrics_headers: dict[str, str] = {}
        """What `/metrics` is asked with, where only the administrator sees them."""
        # One client for all: it costs more to make one than to ask.
        self._http = httpx.Client(base_url=self.url, timeout=60.0)

    def _listening(self) -> re.Match[str] | None:
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended:\n{self.log}")
        return re.search(r"Listening on (http://[^\s\"]+)[\"\n]", self.log)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def __enter__(self) -> LiveServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        """End it as an operator would; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"SIGTERM did not end the server:\n{self.log}") from None

    def post_bytes(self, path: str, body: bytes) -> httpx.Response:
        """Post something that says it is JSON."""
        headers = {"Content-Type": "application/json"}
        return self._http.post(path, content=body, headers=headers)

    def openai(self, **settings: Any) -> openai.OpenAI:
        settings = {"api_key": "none", "max_retries": 0, "timeout": 60.0, **settings}
        return openai.OpenAI(base_url=f"{self.url}/v1", **settings)

    def post(self, path: str, body: Any, **settings: Any) -> httpx.Response:
        return self._http.post(path, json=body, **settings)

    def get(self, path: str, **settings: Any) -> httpx.Response:
        return self._http.get(path, **settings)

    def complete(self, **body: Any) -> dict[str, Any]:
        """A completion, greedy unless told otherwise."""
        response = self.post("/v1/completions", {"temperature": 0, "max_tokens": 8, **body})
        assert response.status_code == 200, response.text
        return dict(response.json())

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of a metric that have these labels."""
        total, seen = 0.0, False
        text = self.get("/metrics", headers=self.metrics_headers).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    total, seen = total + sample.value, True
        assert seen, f"no metric {name} {labels}"
        return total

    @property
    def engine(self) -> psutil.Process:
        """The engine's process."""
        children = psutil.Process(self.process.pid).children()
        (engine,) = (c for c in children if "ockham.core.worker_process" not in c.cmdline())
        return engine

    def idle(self) -> bool:
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return not any(self.metric(f"ockham_{name}") for name in names)

    def wait_idle(self, timeout_s: float = 15.0) -> None:
        """Wait until no work is left and every page is back."""
        wait_for(self.idle, timeout_s)


def wait_for(condition: Callable[[], Any], timeout_s: float) -> Any:
    """The first true value of `condition`, asked every 20 ms."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"still waiting for {condition} after {timeout_s} s"
        time.sleep(0.02)
    return value
