"""What the programs of this folder share: they run in an environment of clients, against a server.

A program is called with the server's URL and names its claims by functions: `main(URL)` runs those
of its module whose name begins with "check_", says of each whether it holds, and ends with their
number. None of this needs a client.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

MODEL = "smollm2"
EMBEDDER = "minilm"
"""The model of programs whose name begins with embeddings_."""
WEATHER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city in the next days.",
        "parameters": WEATHER_SCHEMA,
    },
}
QUESTION = "What is the capital of France? Answer in one sentence."
LONG_SYSTEM = "You are a careful assistant who knows the weather of every city. " * 20


def url() -> str:
    return sys.argv[1].rstrip("/")


def is_weather(arguments: Any) -> dict[str, Any]:
    """The arguments of a call, as an object; they follow the schema."""
    given = json.loads(arguments) if isinstance(arguments, str) else dict(arguments)
    assert set(given) == {"city", "days"}, given
    assert given["city"] in ("Paris", "Rome", "Oslo"), given
    assert isinstance(given["days"], int), given
    assert 1 <= given["days"] <= 7, given
    return given


def raises(kind: type[BaseException], call: Callable[[], Any]) -> Any:
    """The error of this kind, exactly, with which a call ends."""
    try:
        made = call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised, but {made!r} returned")


def main() -> None:
    """Run the claims of the program that was called. Its last line is the number that hold."""
    claims = [
        (name.removeprefix("check_").replace("_", " "), check)
        for name, check in vars(sys.modules["__main__"]).items()
        if name.startswith("check_")
    ]
    failed = 0
    for claim, check in claims:
        begun_s = time.monotonic()
        try:
            made = check()
            if inspect.isawaitable(made):
                asyncio.run(_wait(made))
        except Exception:
            failed += 1
            print(f"FAILED {claim}\n{traceback.format_exc()}", flush=True)
        else:
            print(f"holds {claim} ({time.monotonic() - begun_s:.1f} s)", flush=True)
    print(f"{len(claims) - failed} of {len(claims)} claims hold")
    sys.exit(bool(failed))


async def _wait(made: Any) -> None:
    await made
