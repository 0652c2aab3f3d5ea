"""A conversation on the command line, wherever its answers are made."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable

import click
import msgspec

from ockham.cli.terminal import without_echo
from ockham.cli.thoughts import Said, show_in_pipe, show_in_terminal
from ockham.core.errors import InvalidRequest
from ockham.core.ledger import Ledger
from ockham.core.sampling_params import SamplingParams


class Conversation(ABC):
    """The messages so far, and how the next answer is made."""

    name: str
    """The model's, as the terminal shows it."""
    model: str
    """The model's, as a saved conversation has it."""
    described: str
    """The model in a line."""
    longest: int
    """Tokens of its context; 0 if they are not known."""

    def __init__(
        self, params: SamplingParams, system_prompt: str | None, thinking: bool | None
    ) -> None:
        self.thinking = thinking
        self.params = params
        self.system_prompt = system_prompt
        self.turns: list[dict[str, str]] = []
        self.spent = Ledger()
        self.context_tokens = 0
        self.attempts = 0
        self.in_terminal = sys.stdin.isatty() and sys.stdout.isatty()

    @property
    def messages(self) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, *self.turns]

    def ask(self, text: str) -> None:
        """Add a message of the user and answer it."""
        self.turns.append({"role": "user", "content": text})
        self.answer()

    def answer(self) -> None:
        """Stream the answer to the last message. A message that cannot be answered is dropped."""
        try:
            text = self.generate()
        except InvalidRequest as error:
            self.turns.pop()
            tell(f"{error} (/undo and /reset make room.)")
            return
        self.turns.append({"role": "assistant", "content": text})

    def retry(self) -> None:
        """Answer the last question again, with other sampling noise."""
        if self.turns and self.turns[-1]["role"] == "assistant":
            self.turns.pop()
        if not self.turns:
            tell("There is no question yet.")
            return
        self.attempts += 1
        self.answer()

    def undo(self) -> None:
        """Drop the last question and its answer."""
        while self.turns and self.turns.pop()["role"] != "user":
            pass
        self.count()

    @abstractmethod
    def count(self) -> None:
        """Count the tokens of the conversation as it now is."""

    @abstractmethod
    def generate(self) -> str:
        """Show the answer to the last message as it comes. Raises InvalidRequest if there can be
        none."""

    def show(self, said: Iterable[Said], waiting: str) -> bool:
        """Show an answer as it comes; whether it was stopped."""
        stopped = False
        try:
            if self.in_terminal:
                with without_echo():
                    show_in_terminal(said, waiting)
            else:
                show_in_pipe(said)
        except KeyboardInterrupt:
            stopped = True
        sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()
        return stopped

    def seeded(self) -> SamplingParams:
        """The parameters, with other noise for each attempt."""
        params = self.params
        if params.seed is not None and self.attempts:
            params = msgspec.structs.replace(params, seed=params.seed + self.attempts)
        return params


def tell_end(stopped: bool, text: str, finish_reason: str | None) -> None:
    """Say what is to be said of an answer that ended."""
    if stopped:
        tell("[stopped]")
    elif not text.strip():
        tell("[the model answered nothing; /retry asks again]")
    elif finish_reason == "length":
        tell("[cut at the limit of tokens; --max-tokens raises it]")


def tell(line: str) -> None:
    click.echo(click.style(line, dim=True) if sys.stderr.isatty() else line, err=True)
