"""What the tests of training share: one thread, a small target, a little text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ockham.lab.tasks.texts import held_out
from ockham.model.hub import BUILT_IN


@pytest.fixture(autouse=True)
def quiet_torch() -> Iterator[None]:
    """One thread: small matrices are slower in parallel. Afterwards, torch as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def target() -> Path:
    """The smallest model that has something to say: two layers, 128 wide."""
    return BUILT_IN["lab-drafter"]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some passages, one in a line."""
    path = tmp_path_factory.mktemp("data") / "passages.jsonl"
    passages = held_out()["prose"][:4]
    path.write_text("".join(json.dumps({"text": passage}) + "\n" for passage in passages))
    return path
