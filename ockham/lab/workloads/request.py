"""One request of a workload, and the file of them: a JSON object per line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypedDict

import msgspec

from ockham.core.errors import ConfigError
from ockham.core.owned_files import write_output


class Message(TypedDict):
    """One message of a chat."""

    role: str
    content: str


class Request(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What is asked of a server, and when.

    Exactly one of `messages`, `prompt` and `prompt_token_ids` is given. A request that comes
    `after` another waits for its answer, and `arrival_s` counts from the end of that. If it has
    `messages`, they are only what is added to the other's chat and answer. `answer` is a recorded
    one, for replays that must not depend on what the server says.
    """

    id: str
    arrival_s: float = 0.0
    """Seconds after the start of the workload, or after the answer that it waits for."""
    after: str | None = None
    messages: list[Message] | None = None
    prompt: str | None = None
    prompt_token_ids: list[int] | None = None
    max_tokens: int
    n: int = 1
    temperature: float = 0.0
    answer: str | None = None

    def __post_init__(self) -> None:
        given = [self.messages, self.prompt, self.prompt_token_ids]
        if sum(value is not None for value in given) != 1:
            raise ConfigError(
                f"request {self.id!r} must have one of messages, prompt and prompt_token_ids."
            )
        if not any(given):
            raise ConfigError(f"request {self.id!r} asks nothing: its prompt is empty.")
        if self.max_tokens < 1 or self.n < 1:
            raise ConfigError(
                f"request {self.id!r} wants n={self.n} answers of max_tokens={self.max_tokens}; "
                "both must be at least 1."
            )
        if not self.arrival_s >= 0:
            raise ConfigError(f"request {self.id!r} arrives at {self.arrival_s} s, before 0.")


def write_requests(path: Path, requests: Iterable[Request], overwrite: bool = False) -> int:
    """Write a workload, a request a line; how many there were.

    Raises ConfigError if a file stands there, unless `overwrite` says that it may be replaced.
    """
    lines = [msgspec.json.encode(request) + b"\n" for request in requests]
    write_output(path, b"".join(lines), overwrite)
    return len(lines)


def check_order(requests: Iterable[Request], source: str) -> list[Request]:
    """The requests as a list. Raises ConfigError for an id that is there twice, or for one that
    comes after a request that does not stand before it."""
    known: set[str] = set()
    checked = []
    for request in requests:
        if request.id in known:
            raise ConfigError(f"{source} has two requests with the id {request.id!r}.")
        if request.after is not None and request.after not in known:
            raise ConfigError(
                f"{source}: request {request.id!r} comes after {request.after!r}, which does not "
                "stand before it."
            )
        known.add(request.id)
        checked.append(request)
    return checked


def decode_lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Each line's number and JSON object. Raises ConfigError that names the line."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    value = msgspec.json.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise ConfigError(f"{path}, line {number}: no JSON ({error}).") from error
                if not isinstance(value, dict):
                    raise ConfigError(f"{path}, line {number}: must be a JSON object.")
                yield number, value
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}).") from error
