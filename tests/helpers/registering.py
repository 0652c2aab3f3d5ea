"""Techniques that exist for one test."""

from __future__ import annotations

import pytest

from ockham.core import registry


def let_register(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered from now on is forgotten after the test, and nothing else: every technique
    is imported before, since a module that a test imports first would be forgotten with it."""
    registry.techniques()
    monkeypatch.setattr(registry, "_techniques", dict(registry._techniques))
