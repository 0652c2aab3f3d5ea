"""The thought and the answer of a chat on the command line, told apart as they come."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ockham.cli.options import option
from ockham.cli.terminal import DIM, PLAIN, Note, Wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ockham.api.driver import Stream
    from ockham.api.llm import LLM
    from ockham.core.outputs import Reply
    from ockham.core.sampling_params import SamplingParams


def thinking_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--thinking/--no-thinking`."""
    return option(
        "--thinking/--no-thinking",
        default=None,
        help="Whether the model thinks before it answers, where its chat template leaves the "
        "choice. --thinking-budget bounds a thought.",
    )(function)


def template_variables(thinking: bool | None) -> dict[str, Any]:
    """What the chat template is told of `--thinking`."""
    return {} if thinking is None else {"enable_thinking": thinking}


class Said(NamedTuple):
    """What is new of an answer."""

    thought: str
    content: str


class Spoken:
    """One answer to a chat whose prompt is `prompt`. It is to be generated with `params`, which
    are the caller's with what tells its parts apart."""

    def __init__(self, llm: LLM, params: SamplingParams, prompt: str) -> None:
        from ockham.api.chatting import plan_chat, read_tools

        whole = llm.config.enable_in_reasoning
        self._plan = plan_chat(llm.get_tokenizer(), read_tools(None), whole=whole)
        self._given, self._prompt = params, prompt
        self.params = self._plan.params(params, prompt)
        self._splitter = self._plan.splitter(params, prompt) if self._plan.splits else None

    def add(self, text: str, finish_reason: str | None) -> Said:
        """What is new with the next piece of the text. Nothing comes after one that has a reason to
        be the last."""
        from ockham.text.reply.splitter import CUT

        if self._splitter is None:
            return Said("", text)
        new = self._splitter.feed(text)
        if finish_reason is not None:
            new.add(self._splitter.finish(cut=finish_reason == CUT))
        return Said(new.reasoning, new.content)

    def told(self, stream: Stream) -> Iterator[Said]:
        """What is new with each part of a stream."""
        for delta in stream:
            yield self.add(delta.text, delta.finish_reason)

    def reply(self, text: str, finish_reason: str | None) -> Reply | None:
        """A whole answer, split; None for a model whose answers have no parts."""
        if not self._plan.splits:
            return None
        return self._plan.reply(text, finish_reason, self._given, self._prompt)


class ThoughtWriter:
    """Writes a thought to stderr, dim where that is a terminal, so that only the answer goes to
    stdout."""

    def __init__(self) -> None:
        self._open = False

    def add(self, text: str) -> None:
        if text:
            self._open = True
            click.echo(
                click.style(text, dim=True) if sys.stderr.isatty() else text, err=True, nl=False
            )

    def end(self) -> None:
        """The answer begins, or nothing more comes."""
        if self._open:
            self._open = False
            click.echo("\n", err=True)


def show_in_terminal(said: Iterable[Said], waiting: str) -> None:
    """Write an answer into the terminal as it comes, its thought dim. `waiting` stands there before
    anything has come."""
    wrapped, thinks = Wrapped(), False
    note = Note(waiting)
    try:
        for new in said:
            if new.thought or new.content:
                note.remove()
            if new.thought:
                thinks = True
                _write(f"{DIM}{wrapped.add(new.thought)}{PLAIN}")
            if new.content:
                _write(wrapped.add("\n\n" * thinks + new.content))
                thinks = False
    finally:
        note.remove()


def show_in_pipe(said: Iterable[Said]) -> None:
    """Write an answer to stdout as it comes, and its thought to stderr."""
    thought = ThoughtWriter()
    for new in said:
        thought.add(new.thought)
        if new.content:
            thought.end()
        _write(new.content)
    thought.end()


def _write(text: str) -> None:
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()
