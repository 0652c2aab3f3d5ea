"""Tasks with exact scores, whose items are generated from a seed."""

from __future__ import annotations

from collections.abc import Iterator

from ockham.core.errors import ConfigError
from ockham.lab.tasks.arithmetic import Arithmetic
from ockham.lab.tasks.chat import Chat
from ockham.lab.tasks.cloze import Cloze
from ockham.lab.tasks.documents import Documents
from ockham.lab.tasks.edit import Edit
from ockham.lab.tasks.edits import Edits
from ockham.lab.tasks.extraction import Extraction
from ockham.lab.tasks.item import Count, Item, Split, Task
from ockham.lab.tasks.long_steps import LongSteps
from ockham.lab.tasks.needles import Needles
from ockham.lab.tasks.parts import Parts
from ockham.lab.tasks.reading import Reading
from ockham.lab.tasks.recall import Recall
from ockham.lab.tasks.steps import Steps
from ockham.lab.tasks.texts import Code, Prose
from ockham.lab.tasks.word_problems import WordProblems

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Recall(),
        Documents(),
        Edit(),
        Steps(),
        LongSteps(),
        Parts(),
        WordProblems(),
        Chat(),
        Needles(),
        Reading(),
        Cloze(),
        Arithmetic(),
        Extraction(),
        Edits(),
        Code(),
        Prose(),
    )
}
"""Every task by its name."""


def items(
    task: str,
    seed: int,
    number: int,
    split: Split = "test",
    level: str | None = None,
    count: Count | None = None,
) -> Iterator[Item]:
    """The first `number` items of a task; of all its levels in turn where none is named.

    Raises ConfigError for an unknown task or level.
    """
    if task not in TASKS:
        raise ConfigError(f"there is no task {task!r}; there are {', '.join(TASKS)}.")
    for index in range(number):
        yield TASKS[task].item(seed, index, split, level, count)


__all__ = ["TASKS", "Count", "Item", "Split", "Task", "items"]
