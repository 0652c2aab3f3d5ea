"""What holds for every test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

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
