"""Work that leaves the interpreter's lock alone, shared among a few threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")


def in_threads(function: Callable[[T], R], items: Sequence[T], threads: int) -> list[R]:
    """function(item) for each item, in the order of the items. Raises the first error there is."""
    results: list[Any] = [None] * len(items)
    errors: list[BaseException] = []
    waiting = iter(range(len(items)))  # each thread takes the next: under the lock, so only once

    def work() -> None:
        try:
            for index in waiting:
                if errors:
                    return
                results[index] = function(items[index])
        except BaseException as error:
            errors.append(error)

    others = [threading.Thread(target=work) for _ in range(min(threads, len(items)) - 1)]
    for thread in others:
        thread.start()
    work()
    for thread in others:
        thread.join()
    if errors:
        raise errors[0]
    return cast("list[R]", results)
