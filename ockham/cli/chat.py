"""`ockham chat`: a conversation in the terminal, or over a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec

from ockham.cli.auto import auto_option, with_plan
from ockham.cli.command import command, did_you_mean
from ockham.cli.conversation import Conversation, tell, tell_end
from ockham.cli.default_model import for_chats
from ockham.cli.options import (
    engine_config,
    engine_options,
    option,
    sampling_options,
    sampling_params,
)
from ockham.cli.report import describe_ledger, describe_speed
from ockham.cli.run import (
    chat_prompt,
    check_model,
    check_sampling,
    start_renderer,
    tell_warnings,
    with_max_tokens,
)
from ockham.cli.thoughts import Spoken, thinking_option
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.owned_files import make_directory, open_own, write_output
from ockham.core.sampling_params import SamplingParams
from ockham.model.hub import served_names

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

    from ockham.api.llm import LLM
    from ockham.core.config import EngineConfig

DEFAULT_MAX_TOKENS = 1024

COMMANDS = {
    "/help": "show these lines",
    "/reset": "forget the conversation (the system prompt stays)",
    "/set": "show the sampling settings, or change one: /set temperature 0.2",
    "/system": "show the system prompt, or set it: /system You are terse.",
    "/undo": "take back the last question and its answer",
    "/retry": "answer the last question again",
    "/stats": "what the conversation has cost so far",
    "/save": "write the conversation to a JSON file: /save talk.json",
    "/load": "go on from such a file: /load talk.json",
    "/quit": "leave (so does Ctrl-D)",
}
HELP = "\n".join(
    [
        *(f"  {command:<8} {meaning}" for command, meaning in COMMANDS.items()),
        "  Alt-Enter, or a backslash at the end of a line, starts another line.",
        "  // at the start sends a message that begins with /.",
        "  Ctrl-C stops an answer, Ctrl-Z puts the chat aside (fg goes on).",
    ]
)


@command()
@option(
    "--url",
    help="Talk with a running server, such as http://127.0.0.1:8000, instead; MODEL is "
    "then its name there.",
)
@option("--api-key", help="The key that the server of --url wants.")
@option("--system", "system_prompt", help="System prompt of the conversation.")
@thinking_option
@auto_option
@engine_options
@sampling_options
def chat(
    system_prompt: str | None,
    thinking: bool | None,
    url: str | None,
    api_key: str | None,
    auto: bool,
    **kwargs: Any,
) -> None:
    """Talk with MODEL: a directory, a GGUF file, a hub name, a short name such as smollm2 or
    qwen3:4b, or the built-in 'lab'. Without MODEL, smollm2 is taken if it is on this machine.

    With a pipe on stdin, each line is a message, and only the answers go to stdout; thoughts go to
    stderr. In the terminal
    /help lists the commands; `ockham run MODEL` begins the same chat there.
    """
    if url is not None:
        from ockham.cli.remote_chat import connect

        talk(connect(url, api_key, system_prompt, thinking, **kwargs))
        return
    if api_key is not None:
        raise click.UsageError("--api-key goes with --url.")
    config = engine_config(**with_plan(for_chats(kwargs), auto))
    check_model(config.model, False)
    converse(config, system_prompt, thinking, **kwargs)


def converse(
    config: EngineConfig, system_prompt: str | None, thinking: bool | None, **kwargs: Any
) -> None:
    """Load the model and answer messages until they end. `kwargs` are the sampling flags."""
    if kwargs["n"] not in (None, 1):
        raise InvalidRequest(f"a chat has one answer at a time; n is {kwargs['n']}.", "n")
    check_sampling(config, **kwargs)

    from ockham.api.llm import LLM

    renderer = start_renderer()
    llm = LLM.from_config(config, progress=tell_warnings)
    llm.get_tokenizer().take_renderer(renderer)
    if not llm.get_tokenizer().has_chat_template:
        raise InvalidRequest(
            f"{config.model} has no chat template: give one with --chat-template, or complete "
            "plain text with `ockham run --raw`."
        )
    fault, _ = llm.get_tokenizer().check_chat_template()
    if fault is not None:
        raise InvalidRequest(
            f"{fault} Give another with --chat-template, or complete plain text with "
            "`ockham run --raw`."
        )
    defaults = with_max_tokens(llm.get_default_chat_sampling_params(), llm, DEFAULT_MAX_TOKENS)
    params = sampling_params(defaults, **kwargs)
    talk(LocalConversation(llm, params, system_prompt, thinking))


def talk(conversation: Conversation) -> None:
    """Answer messages until they end."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    lines = _typed_messages(conversation) if interactive else _piped_messages()
    if interactive:
        tell(f"{conversation.described}. /help shows the commands, Ctrl-D leaves.\n")
    for line in lines:
        command = _command_of(line)
        if command is not None:
            if not _command(conversation, command, line.partition(" ")[2].strip()):
                break
        else:
            conversation.ask(line.removeprefix("/") if line.startswith("//") else line)
            if interactive:
                click.echo()


def _command_of(line: str) -> str | None:
    """The command that a line is, known or not; None for a message. A path is a message, and so is
    what begins with //."""
    word, _, rest = line.partition(" ")
    if word in COMMANDS or word == "/exit":
        return word
    unknown = word.startswith("/") and not rest and "/" not in word[1:] and "\n" not in word
    return word if unknown and len(word) > 1 else None


class LocalConversation(Conversation):
    """With a model in this process."""

    def __init__(
        self,
        llm: LLM,
        params: SamplingParams,
        system_prompt: str | None,
        thinking: bool | None = None,
    ) -> None:
        super().__init__(params, system_prompt, thinking)
        self.llm, self.model = llm, llm.config.model
        self.longest = llm.engine.max_model_len
        self.name = Path(served_names(llm.config.model)[0]).name
        facts = llm.engine.model
        self.described = (
            f"{self.name}: {facts.parameters / 1e6:.3g} million parameters, "
            f"{facts.weight_format}, context {self.longest} tokens"
        )

    def count(self) -> None:
        """Count the tokens of the conversation as it now is."""
        self.context_tokens = 0
        if self.messages:
            with contextlib.suppress(InvalidRequest):  # a template may want a question first
                _, tokens = chat_prompt(self.llm, self.messages, add_generation_prompt=False)
                self.context_tokens = len(tokens)

    def generate(self) -> str:
        """Show the answer to the last message as it comes."""
        prompt, tokens = chat_prompt(self.llm, self.messages, thinking=self.thinking)
        spoken = Spoken(self.llm, self.seeded(), prompt)
        with self.llm.stream(tokens, spoken.params) as stream:
            stopped = self.show(spoken.told(stream), f"reading {len(tokens)} tokens ...")
        output = stream.output
        choice = output.outputs[0]
        self.spent.add(output.ledger)
        self.context_tokens = len(output.prompt_token_ids) + len(choice.token_ids)
        reply = spoken.reply(choice.text, choice.finish_reason)
        text = choice.text if reply is None else reply.content or ""
        tell_end(stopped, text, choice.finish_reason)
        return text


def _command(conversation: Conversation, command: str, rest: str) -> bool:
    """Do what a command says; False means to leave."""
    if command in ("/quit", "/exit"):
        return False
    if command == "/reset":
        conversation.turns.clear()
        conversation.context_tokens = 0
        tell("The conversation is forgotten.")
    elif command == "/system":
        if rest:
            conversation.system_prompt = rest
            conversation.count()
        tell(f"System prompt: {conversation.system_prompt or 'none'}")
    elif command == "/undo":
        conversation.undo()
        last = conversation.turns[-1]["content"] if conversation.turns else None
        tell(f"Back at: {last}" if last else "The conversation is empty.")
    elif command == "/retry":
        conversation.retry()
    elif command == "/stats":
        tell(describe_speed(conversation.spent))
        for item in describe_ledger(conversation.spent):
            tell(item)
    elif command == "/save":
        _save(conversation, rest)
    elif command == "/load":
        _load(conversation, rest)
    elif command == "/set":
        _set(conversation, rest)
    elif command == "/help":
        tell(HELP)
    else:
        tell(f"There is no command {command}; /help lists them, and /{command} sends it.")
    return True


def _set(conversation: Conversation, text: str) -> None:
    """Show the sampling settings that are not their defaults, or change one."""
    name, _, value = text.replace("=", " ", 1).partition(" ")
    name = name.replace("-", "_")
    hidden = ("n", "asks", "thought")
    known = [each for each in SamplingParams.__struct_fields__ if each not in hidden]
    if name and (name not in known or not value.strip()):
        tell(
            f"Write /set NAME VALUE.{did_you_mean(name, known) if name not in known else ''} There "
            f"are {', '.join(known)}."
        )
        return
    if name:
        given = msgspec.to_builtins(conversation.params)
        try:
            given[name] = msgspec.json.decode(value.strip())
        except msgspec.DecodeError:
            given[name] = value.strip()
        try:
            conversation.params = msgspec.convert(given, SamplingParams, str_keys=True)
        except (InvalidRequest, msgspec.ValidationError) as error:
            tell(f"{error}")
            return
    now, defaults = conversation.params, SamplingParams()
    changed = [
        f"{each} {getattr(now, each)}"
        for each in known
        if getattr(now, each) != getattr(defaults, each)
    ]
    tell(", ".join(changed) or "All sampling settings have their defaults.")


def _load(conversation: Conversation, name: str) -> None:
    """Take over the conversation of a file that /save wrote."""
    path = Path(os.path.expanduser(name))
    try:
        saved = msgspec.json.decode(path.read_bytes(), type=_Saved)
    except OSError as error:
        tell(f"{path} cannot be read: {error.strerror}.")
        return
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        tell(f"{path} is no conversation that /save wrote: {error}.")
        return
    system = [each.content for each in saved.messages if each.role == "system"]
    conversation.system_prompt = system[0] if system else conversation.system_prompt
    conversation.turns = [
        {"role": each.role, "content": each.content}
        for each in saved.messages
        if each.role != "system"
    ]
    conversation.count()
    tell(f"{len(conversation.turns)} messages from {path}.")


class _Message(msgspec.Struct):
    role: Literal["system", "user", "assistant"]
    content: str


class _Saved(msgspec.Struct):
    """What /save writes."""

    messages: list[_Message]


def _save(conversation: Conversation, name: str) -> None:
    try:
        path = Path(name or time.strftime("ockham-chat-%Y%m%d-%H%M%S.json")).expanduser()
    except RuntimeError:
        tell(f"{name} cannot be written: there is no such home directory.")
        return
    record = {"model": conversation.model, "messages": conversation.messages}
    text = json.dumps(record, ensure_ascii=False, indent=2) + "\n"
    if not _may_save(path):
        tell(f"{path} is no saved conversation, and is not replaced: name another file.")
        return
    try:
        write_output(path, text.encode("utf-8", "surrogatepass"), overwrite=True)
    except ConfigError as error:
        tell(str(error))
    else:
        tell(f"Saved to {path}.")


def _may_save(path: Path) -> bool:
    """Whether nothing stands there but a conversation that was saved before, or an empty file."""
    if not path.is_file():
        return True  # there is nothing to be lost
    try:
        text = path.read_bytes()
        found = json.loads(text) if text else None
    except (OSError, ValueError, RecursionError):
        return False
    return found is None or (isinstance(found, dict) and found.keys() == {"model", "messages"})


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
        longest = f" of {conversation.longest}" if conversation.longest else ""
        return HTML("<b>{}</b>  {}{} tokens  /help").format(
            conversation.name, conversation.context_tokens, longest
        )

    history: History = InMemoryHistory()
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "ockham"
    try:
        make_directory(state)
        file = os.path.realpath(state / "chat_history")  # a link is the user's to give
        os.close(open_own(file, os.O_RDWR | os.O_CREAT))
        history = FileHistory(file)
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
        enable_suspend=True,
    )
