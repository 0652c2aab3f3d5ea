"""`ockham chat`: a conversation in the terminal, or over a pipe."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ockham.cli.options import (
    engine_config,
    engine_options,
    option,
    sampling_options,
    sampling_params,
)
from ockham.cli.report import describe_ledger, describe_speed
from ockham.core.errors import InvalidRequest
from ockham.core.ledger import Ledger
from ockham.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

    from ockham.api.llm import LLM

DEFAULT_MAX_TOKENS = 1024

COMMANDS = {
    "/help": "show these lines",
    "/reset": "forget the conversation (the system prompt stays)",
    "/system": "show the system prompt, or set it: /system You are terse.",
    "/undo": "take back the last question and its answer",
    "/retry": "answer the last question again",
    "/stats": "what the conversation has cost so far",
    "/save": "write the conversation to a JSON file: /save talk.json",
    "/quit": "leave (so does Ctrl-D)",
}
HELP = "\n".join(
    [
        *(f"  {command:<8} {meaning}" for command, meaning in COMMANDS.items()),
        "  Alt-Enter, or a backslash at the end of a line, starts another line.",
        "  Ctrl-C stops an answer.",
    ]
)


@click.command()
@option("--system", "system_prompt", help="System prompt of the conversation.")
@engine_options
@sampling_options
def chat(system_prompt: str | None, **kwargs: Any) -> None:
    """Talk with MODEL: a directory, a hub name, or the built-in 'lab'.

    With a pipe on stdin, each line is a message, and only the answers go to stdout. In the terminal
    /help lists the commands.
    """
    config = engine_config(**kwargs)

    from ockham.api.llm import LLM
    from ockham.cli.run import with_max_tokens

    llm = LLM.from_config(config, progress=_tell)
    if not llm.get_tokenizer().has_chat_template:
        raise InvalidRequest(
            f"{config.model} has no chat template: give one with --chat-template, or complete "
            "plain text with `ockham run`."
        )
    fault, _ = llm.get_tokenizer().check_chat_template()
    if fault is not None:
        raise InvalidRequest(
            f"{fault} Give another with --chat-template, or complete plain text with `ockham run`."
        )
    defaults = with_max_tokens(llm.get_default_chat_sampling_params(), llm, DEFAULT_MAX_TOKENS)
    params = sampling_params(defaults, **kwargs)
    if params.n != 1:
        raise InvalidRequest(f"a chat has one answer at a time; n is {params.n}.", "n")
    conversation = Conversation(llm, params, system_prompt)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    lines = _typed_messages(conversation) if interactive else _piped_messages()
    if interactive:
        _tell("Type a message; /help shows the commands, Ctrl-D leaves.\n")
    for line in lines:
        if line.startswith("/"):
            if not _command(conversation, line):
                break
        else:
            conversation.ask(line)
            if interactive:
                click.echo()


class Conversation:
    """The messages so far, and how the next answer is made."""

    def __init__(self, llm: LLM, params: SamplingParams, system_prompt: str | None) -> None:
        self.llm = llm
        self.params = params
        self.system_prompt = system_prompt
        self.turns: list[dict[str, str]] = []
        self.spent = Ledger()
        self.context_tokens = 0
        self._attempts = 0

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
            text = self._generate()
        except InvalidRequest as error:
            self.turns.pop()
            _tell(f"{error} (/undo and /reset make room.)")
            return
        self.turns.append({"role": "assistant", "content": text})

    def retry(self) -> None:
        """Answer the last question again, with other sampling noise."""
        if self.turns and self.turns[-1]["role"] == "assistant":
            self.turns.pop()
        if not self.turns:
            _tell("There is no question yet.")
            return
        self._attempts += 1
        self.answer()

    def undo(self) -> None:
        """Drop the last question and its answer."""
        while self.turns and self.turns.pop()["role"] != "user":
            pass

    def _generate(self) -> str:
        tokenizer = self.llm.get_tokenizer()
        prompt = tokenizer.apply_chat_template(self.messages)
        tokens = tokenizer.encode(prompt, add_special_tokens=False)
        params = self.params
        if params.seed is not None and self._attempts:
            params = msgspec.structs.replace(params, seed=params.seed + self._attempts)
        stopped = False
        with self.llm.stream(tokens, params) as stream:
            try:
                for delta in stream:
                    _write(delta.text)
            except KeyboardInterrupt:
                stopped = True
        _write("\n")
        output = stream.output
        choice = output.outputs[0]
        self.spent.add(output.ledger)
        self.context_tokens = len(output.prompt_token_ids) + len(choice.token_ids)
        if stopped:
            _tell("[stopped]")
        elif choice.finish_reason == "length":
            _tell("[cut at the limit of tokens; --max-tokens raises it]")
        return choice.text


def _command(conversation: Conversation, line: str) -> bool:
    """Do what a line that begins with '/' says; False means to leave."""
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if command in ("/quit", "/exit"):
        return False
    if command == "/reset":
        conversation.turns.clear()
        conversation.context_tokens = 0
        _tell("The conversation is forgotten.")
    elif command == "/system":
        if rest:
            conversation.system_prompt = rest
        _tell(f"System prompt: {conversation.system_prompt or 'none'}")
    elif command == "/undo":
        conversation.undo()
        last = conversation.turns[-1]["content"] if conversation.turns else None
        _tell(f"Back at: {last}" if last else "The conversation is empty.")
    elif command == "/retry":
        conversation.retry()
    elif command == "/stats":
        _tell(describe_speed(conversation.spent))
        for item in describe_ledger(conversation.spent):
            _tell(item)
    elif command == "/save":
        _save(conversation, rest)
    else:
        if command != "/help":
            _tell(f"There is no command {command}.")
        _tell(HELP)
    return True


def _save(conversation: Conversation, name: str) -> None:
    path = Path(name or time.strftime("ockham-chat-%Y%m%d-%H%M%S.json")).expanduser()
    record = {"model": conversation.llm.config.model, "messages": conversation.messages}
    try:
        path.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        _tell(f"{path} cannot be written: {error.strerror}.")
    else:
        _tell(f"Saved to {path}.")


def _piped_messages() -> Iterator[str]:
    """Messages from a pipe: one a line, or several lines joined by backslashes at their ends."""
    joined = ""
    for line in sys.stdin.buffer:
        try:
            text = joined + line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise click.UsageError(f"stdin is not UTF-8 text ({error}).") from error
        if text.endswith("\\"):
            joined = text[:-1] + "\n"
            continue
        joined = ""
        if text.strip():
            yield text
    if joined.strip():
        yield joined


def _typed_messages(conversation: Conversation) -> Iterator[str]:
    """Messages from the terminal, with history, completion of commands and several lines."""
    session = _session(conversation)
    while True:
        try:
            text = session.prompt()
        except KeyboardInterrupt:  # clears what was typed
            continue
        except EOFError:
            return
        if text.strip():
            yield text.strip()


def _session(conversation: Conversation) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.formatted_text import HTML
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    def toolbar() -> HTML:
        longest = conversation.llm.engine.max_model_len
        name = Path(conversation.llm.config.model).name
        return HTML("<b>{}</b>  {} of {} tokens  /help").format(
            name, conversation.context_tokens, longest
        )

    history: History = InMemoryHistory()
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "ockham"
    try:
        state.mkdir(parents=True, exist_ok=True)
        history = FileHistory(str(state / "chat_history"))
    except OSError:
        pass  # a home that cannot be written to: history lasts for this chat
    return PromptSession(
        HTML("<ansigreen><b>you › </b></ansigreen>"),
        history=history,
        key_bindings=keys,
        multiline=True,
        prompt_continuation="    … ",
        completer=WordCompleter(list(COMMANDS), sentence=True),
        complete_while_typing=True,
        auto_suggest=AutoSuggestFromHistory(),
        bottom_toolbar=toolbar,
    )


def _tell(line: str) -> None:
    click.echo(click.style(line, dim=True) if sys.stderr.isatty() else line, err=True)


def _write(text: str) -> None:
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()
