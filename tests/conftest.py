"""What holds for every test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

ALONE = (
    "api/server/test_connections.py",
    "api/server/test_fuzz.py",
    "api/server/test_fuzz_document.py",
    "api/server/test_idle.py",
    "api/server/test_lifecycle.py",
    "api/server/test_limits.py",
    "api/server/test_models_soak.py",
    "api/server/test_soak.py",
    "benchmarks/test_peers_process.py",
    "cli/test_warm.py",
    "engine/test_intake.py",
    "engine/test_process.py",
    "engine/test_slow_grammars.py",
    "engine/test_tiers.py",
    "hostile/test_battery.py",
    "lab/test_traffic.py",
    "text/test_chat_renderer.py",
)
"""Files whose tests wait for a time, or need both cores: `make test` runs them one by one, after
all others, which it runs side by side."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of these files."""
    for item in items:
        if item.nodeid.removeprefix("tests/").startswith(ALONE):
            item.add_marker(pytest.mark.alone)


# A shell without job control starts what it puts in the background with Ctrl-C ignored, and Python
# and every process that a test starts would inherit that. Some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def variables_of_its_own() -> Iterator[None]:
    """What a command sets in the environment, for the processes that it starts, is gone after the
    test that called it."""
    before = {name: os.environ[name] for name in os.environ if name.startswith("OCKHAM_")}
    yield
    for name in [name for name in os.environ if name.startswith("OCKHAM_")]:
        if name not in before:
            del os.environ[name]
    os.environ.update(before)
