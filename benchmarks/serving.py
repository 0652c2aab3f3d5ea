"""What a change costs a request: two checkouts serve the same model, and are asked in turn.

    python -m benchmarks.serving OLD NEW [--blocks 40] [--requests 10] [--tokens 32]

OLD and NEW are directories of checkouts with their compiled core. Each block sends the same
requests to both, first to the one, then to the other, the next block the other way round. The
table has the medians of the blocks' ratios NEW / OLD, with 95% intervals by the bootstrap: of the
wall clock, of the processor time of the server's processes (which a busy machine disturbs less),
and of the time to the first byte.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

STARTUP_S = 120.0
RESAMPLES = 4000
WARM_UP = 20
"""Requests before anything is measured."""
KINDS = ("completion", "chat", "stream")


@dataclass
class Server:
    """A server of one checkout."""

    process: psutil.Process
    client: httpx.Client

    def processor_s(self) -> tuple[float, float]:
        """What all its processes have used, and that of the API alone; to the nanosecond where the
        system tells."""
        api_s = _used_s(self.process)
        others = self.process.children(recursive=True)
        return api_s + sum(_used_s(each) for each in others), api_s


def _used_s(process: psutil.Process) -> float:
    tasks = list(Path(f"/proc/{process.pid}/task").glob("*/schedstat"))
    if tasks:
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
    times = process.cpu_times()
    return float(times.user + times.system)


@contextlib.contextmanager
def serving(checkout: Path, model: str, flags: list[str]) -> Iterator[Server]:
    """`ockham serve` from a checkout, until the block ends."""
    with tempfile.TemporaryDirectory() as directory:
        log_path = Path(directory) / "log"
        command = [
            *(sys.executable, "-c", "from ockham.cli.main import main; main()", "serve", model),
            *("--port", "0", "--no-access-log", *flags),
        ]
        environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=directory, env=environment
            )
        try:
            url = _url(process, log_path)
            with httpx.Client(base_url=url, timeout=60.0) as client:
                yield Server(psutil.Process(process.pid), client)
        finally:
            process.terminate()
            process.wait(30)


def _url(process: subprocess.Popen[bytes], log_path: Path) -> str:
    deadline_s = time.monotonic() + STARTUP_S
    while time.monotonic() < deadline_s:
        found = re.search(r"Listening on (http://\S+)\n", log_path.read_text())
        if found:
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise SystemExit(f"A server did not start:\n{log_path.read_text()}")


def body(kind: str, number: int, tokens: int) -> tuple[str, dict[str, Any]]:
    """The path and the body of a request; `number` makes its prompt another than the others'."""
    text = f"{number}: the quick brown fox jumps over the lazy dog, and the dog sleeps on."
    common = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    if kind == "chat":
        message = {"role": "user", "content": text}
        return "/v1/chat/completions", {"messages": [message], **common}
    return "/v1/completions", {"prompt": text, "stream": kind == "stream", **common}


def ask(server: Server, kind: str, number: int, tokens: int) -> tuple[float, float]:
    """Seconds of a request, and to the first byte of what it answers."""
    path, asked = body(kind, number, tokens)
    begin_s = time.perf_counter()
    first_s = 0.0
    with server.client.stream("POST", path, json=asked) as response:
        for data in response.iter_bytes():
            if data and not first_s:
                first_s = time.perf_counter() - begin_s
        response.raise_for_status()
    return time.perf_counter() - begin_s, first_s


def block(server: Server, kind: str, numbers: range, tokens: int) -> dict[str, float]:
    """Mean milliseconds of some requests, one after the other."""
    before_s, api_before_s = server.processor_s()
    seconds = [ask(server, kind, number, tokens) for number in numbers]
    after_s, api_after_s = server.processor_s()
    count = len(seconds)
    return {
        "wall": 1000.0 * statistics.median(whole for whole, _ in seconds),
        "processor": 1000.0 * (after_s - before_s) / count,
        "processor, API alone": 1000.0 * (api_after_s - api_before_s) / count,
        "first byte": 1000.0 * statistics.median(first for _, first in seconds),
    }


def interval(ratios: list[float], seed: int = 0) -> tuple[float, float, float]:
    """The median, and the interval that has 95% of the medians of resamples."""
    drawn = random.Random(seed)
    medians = sorted(
        statistics.median(drawn.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES)
    )
    low, high = medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]
    return statistics.median(ratios), low, high


def compare(
    old: Server, new: Server, kind: str, blocks: int, requests: int, tokens: int
) -> dict[str, list[tuple[float, float]]]:
    """Of each measure, what both servers took in each block."""
    found: dict[str, list[tuple[float, float]]] = {}
    for server in (old, new):
        block(server, kind, range(WARM_UP), tokens)
    for number in range(blocks):
        numbers = range(WARM_UP + number * requests, WARM_UP + (number + 1) * requests)
        order = [("old", old), ("new", new)]
        took = {
            name: block(server, kind, numbers, tokens)
            for name, server in order[:: 1 - number % 2 * 2]
        }
        for measure in took["old"]:
            found.setdefault(measure, []).append((took["old"][measure], took["new"][measure]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--requests", type=int, default=10, help="of a block")
    parser.add_argument("--tokens", type=int, default=32)
    given = parser.parse_args()
    flags = ["--speculative-config", "none"]  # every token takes a step of its own
    with (
        serving(given.old, given.model, flags) as old,
        serving(given.new, given.model, flags) as new,
    ):
        print("| request | measure | old, ms | new, ms | new / old | 95% |")
        print("|---|---|---|---|---|---|")
        for kind in KINDS:
            found = compare(old, new, kind, given.blocks, given.requests, given.tokens)
            for measure, pairs in found.items():
                before, after = (statistics.median(side) for side in zip(*pairs, strict=True))
                middle, low, high = interval([now / then for then, now in pairs])
                print(
                    f"| {kind} | {measure} | {before:.2f} | {after:.2f} | {middle:.3f} | "
                    f"{low:.3f} to {high:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
