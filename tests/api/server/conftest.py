"""Live servers on a tiny random model with the lab's tokenizer, and a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.helpers.browser import Browser, browsing
from tests.helpers.families import FAMILIES
from tests.helpers.live import LiveServer
from tests.helpers.tiny import tiny_llama

TINY_FLAGS = ("--kv-cache-memory-bytes", "16M")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint whose context is long enough for a request that runs for seconds."""
    directory = tmp_path_factory.mktemp("tiny")
    return tiny_llama(directory, tokenizer=True, max_position_embeddings=8192)


@pytest.fixture(scope="session")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    directory = tmp_path_factory.mktemp("server")
    flags = (*TINY_FLAGS, "--served-model-name", "tiny", "--batch-dir", str(directory / "batches"))
    with LiveServer(tiny, directory, *flags) as live:
        yield live


@pytest.fixture(scope="session")
def talking(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The same model with a chat template for tools and thoughts. What it says is nonsense, unless
    `structured_outputs` has it say something."""
    directory = tmp_path_factory.mktemp("tools")
    template = directory / "template.jinja"
    shown = "{% if tools %}{{ tools | tojson }}{% endif %}"
    opened = "{% if add_generation_prompt and enable_thinking %}{{ '<think>\n' }}{% endif %}"
    effort = "{% if reasoning_effort %}EFFORT={{ reasoning_effort }}{% endif %}"
    template.write_text(effort + shown + FAMILIES["hermes"].template + opened)
    flags = (*TINY_FLAGS, "--served-model-name", "tiny", "--chat-template", str(template))
    flags = (*flags, "--enable-in-reasoning")  # so that what it is to say may hold a thought
    with LiveServer(tiny, directory, *flags) as live:
        yield live


@pytest.fixture(scope="session")
def client(server: LiveServer) -> openai.OpenAI:
    return server.openai()


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("downloads")) as found:
        yield found


@pytest.fixture
def browser(window: Browser) -> Iterator[Browser]:
    """The window, at its usual size. A test that leaves an error in its console has failed."""
    window.driver.set_window_size(1200, 900)
    yield window
    assert window.console() == []
