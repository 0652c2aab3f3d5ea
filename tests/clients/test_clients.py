"""What users of other makers' clients see: each program states its claims by functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import PROGRAMS

NAMES = sorted(path.name for path in PROGRAMS.glob("*.py") if path.name != "checks.py")


def test_the_claims_about_chats_hold_with_the_openai_package_of_the_tests(
    run: Callable[..., None],
) -> None:
    run("openai_chat.py")


def test_the_claims_about_embeddings_hold_with_the_openai_package_of_the_tests(
    run: Callable[..., None],
) -> None:
    run("embeddings_openai.py")


@pytest.mark.parametrize("program", NAMES)
def test_the_claims_of_a_program_hold(
    clients: Path, run: Callable[..., None], program: str
) -> None:
    run(program, clients)
