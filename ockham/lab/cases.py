"""What an evaluation asks of a model: cases made of the tasks' items or of the user's own file.

A case is a prompt of token ids that is to be completed, a text whose tokens are scored, or both.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.ledger import divide
from ockham.lab.interview import Interview, interview_of
from ockham.lab.tasks import TASKS, Item, Split
from ockham.lab.tasks.shared import LEVELS, SHARED, Question, shared
from ockham.text.tokenizer import Tokenizer

DATA = "data"
"""The source of cases that come from the user's file."""
_FORMS = ("prompt", "messages", "text")
_FIELDS = {*_FORMS, "answer", "references", "level"}


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt of an evaluation.

    `max_tokens` of 0 generates nothing; the log probabilities of the tokens from `score_from` on
    are then what is wanted, of which `scored_bytes` is the length in UTF-8. A text longer than the
    context is cut into several cases, whose `part` counts.
    """

    source: str
    index: int
    level: str
    tokens: tuple[int, ...]
    max_tokens: int
    score: Callable[[str], float] | None = None
    """Of a completion; None where there is nothing to compare it with."""
    scores_prompt: bool = False
    scored_bytes: int = 0
    part: int = 0
    interview: Interview | None = None
    """Several questions about one context, which `tokens` are with the first of them; `questions`
    score their answers."""
    questions: tuple[Question, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.source}/{self.index}/{self.part}"


@dataclass(frozen=True, slots=True)
class Cases:
    """The cases of an evaluation, and in words what had to be left out."""

    cases: list[Case]
    left_out: list[str]


def check_tasks(names: Sequence[str], levels: Sequence[str]) -> None:
    """Raises ConfigError for a task or level that does not exist."""
    known_levels = {name: task.levels for name, task in TASKS.items()}
    known_levels |= dict.fromkeys(SHARED, LEVELS)
    unknown = [name for name in names if name not in known_levels]
    if unknown:
        raise ConfigError(f"there is no task {unknown[0]!r}; there are {', '.join(known_levels)}.")
    for asked in levels:
        if not any(asked in known_levels[name] for name in names):
            known = ". ".join(f"{name}: {'; '.join(known_levels[name])}" for name in names)
            raise ConfigError(f"no chosen task has the level {asked!r}. {known}.")


def check_data(path: Path) -> None:
    """Raises ConfigError for a file of cases that cannot be read, naming the line; no model is
    needed for that."""
    for _ in _lines(path):
        pass


def task_cases(
    names: Sequence[str],
    items: int,
    seed: int,
    levels: Sequence[str],
    tokenizer: Tokenizer,
    context: int,
    split: Split = "test",
) -> Cases:
    """`items` items of each task's split, in turn from its levels, or from those of `levels` that
    it has. What does not fit into `context` tokens is left out, and said; so is what is there
    already (a text counted twice would make intervals narrower than they are).

    Raises ConfigError for a task or level that does not exist.
    """
    check_tasks(names, levels)
    cases: list[Case] = []
    too_long: Counter[tuple[str, str]] = Counter()
    repeated: Counter[str] = Counter()
    for name in names:
        if name in SHARED:
            found = shared_cases(name, items, seed, levels, tokenizer, context)
            cases += found
            fit = Counter(case.level for case in found)
            for number in range(items):
                too_long[name, _level(levels, number)] += 1
            too_long.subtract({(name, level): count for level, count in fit.items()})
            continue
        task = TASKS[name]
        chosen: Sequence[str | None] = [level for level in task.levels if level in levels]
        chosen = chosen or task.levels or [None]
        seen: set[tuple[int, ...]] = set()
        for index in range(items):
            level = chosen[index % len(chosen)]
            item = task.item(seed, index, split, level, lambda text: len(tokenizer.encode(text)))
            made = _item_cases(item, index, tokenizer, context)
            if not made:
                too_long[name, item.level] += 1
            elif made[0].tokens in seen:
                repeated[name] += 1
            else:
                seen.add(made[0].tokens)
                cases += made
    left_out = [
        f"{number} items of {name} at {level} do not fit into the context of {context} tokens and "
        "were left out"
        for (name, level), number in too_long.items()
        if number
    ]
    left_out += [
        f"{name} has only {items - number} different items; {number} repetitions were left out"
        for name, number in repeated.items()
    ]
    return Cases(cases, left_out)


def shared_cases(
    name: str, items: int, seed: int, levels: Sequence[str], tokenizer: Tokenizer, context: int
) -> list[Case]:
    """So many contexts with their questions, in turn of all levels or of those of `levels`, without
    those that do not fit into `context` tokens."""
    cases = []
    for index in range(items):
        level = _level(levels, index)
        way, _, size = level.partition(", tokens=")
        drawn = shared(name, seed, index, int(size), lambda text: len(tokenizer.encode(text)))
        interview = interview_of(tokenizer, drawn, way)
        if interview.longest <= context:
            cases.append(
                Case(
                    name,
                    index,
                    level,
                    interview.first,
                    drawn.questions[0].max_tokens,
                    interview=interview,
                    questions=drawn.questions,
                )
            )
    return cases


def _level(levels: Sequence[str], index: int) -> str:
    """Of the levels that tasks over one context have, that of an item."""
    chosen = [level for level in LEVELS if level in levels] or LEVELS
    return chosen[index % len(chosen)]


def _item_cases(item: Item, index: int, tokenizer: Tokenizer, context: int) -> list[Case]:
    """The cases of one item; none if it does not fit."""
    if item.text is not None:
        return list(_text_cases(item.task, index, item.level, item.text, tokenizer, context))
    if item.prompt is not None:
        tokens = tuple(tokenizer.encode(item.prompt))
    else:
        tokens = _chat_tokens(tokenizer, item.messages)
    if len(tokens) + item.max_tokens > context:
        return []
    score = partial(TASKS[item.task].score, item)
    return [Case(item.task, index, item.level, tokens, item.max_tokens, score)]


def data_cases(
    path: Path, tokenizer: Tokenizer, context: int, max_tokens: int, contains: bool = False
) -> Cases:
    """The lines of a JSONL file: objects with "prompt" (text), "messages" (through the chat
    template) or "text" (scored by perplexity), and perhaps "answer" or "references" (a list), of
    which a right completion equals one, but for white space around it, or with `contains` has it
    in it. A prompt without references is scored by its own perplexity and completed.

    Raises ConfigError, with the line's number, for a line that is none of this.
    """
    cases: list[Case] = []
    left_out = 0
    for index, (number, fields) in enumerate(_lines(path)):
        where = f"{path}, line {number}"
        level = str(fields.get("level", "all"))
        if "text" in fields:
            made = list(_text_cases(DATA, index, level, fields["text"], tokenizer, context))
            if not made:
                raise ConfigError(f"{where}: a text of one token or none has nothing to score.")
            cases += made
            continue
        try:
            tokens = (
                tuple(tokenizer.encode(fields["prompt"]))
                if "prompt" in fields
                else _chat_tokens(tokenizer, fields["messages"])
            )
        except InvalidRequest as error:
            raise ConfigError(f"{where}: {error}") from error
        if not tokens:
            raise ConfigError(f"{where}: the prompt is empty.")
        if len(tokens) >= context:
            left_out += 1
            continue
        references = _references(fields)
        score = partial(_matches, references, contains) if references is not None else None
        room = min(max_tokens, context - len(tokens))
        scores_prompt = score is None and len(tokens) > 1
        size = _scored_bytes(tokenizer, tokens) if scores_prompt else 0
        cases.append(Case(DATA, index, level, tokens, room, score, scores_prompt, size))
    said = f"{left_out} prompts of {path} do not fit into the context of {context} tokens and "
    return Cases(cases, [said + "were left out"] if left_out else [])


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Number and fields of each line that is not blank."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}).") from error
    for number, line in zip(count(1), text.split("\n"), strict=False):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: it is no JSON ({error}).") from error
        _check_fields(f"{path}, line {number}", fields)
        yield number, fields


def _check_fields(where: str, fields: Any) -> None:
    if not isinstance(fields, dict) or sum(form in fields for form in _FORMS) != 1:
        raise ConfigError(f"{where}: it must be an object with one of {', '.join(_FORMS)}.")
    unknown = sorted(fields.keys() - _FIELDS)
    if unknown:
        raise ConfigError(
            f"{where}: it has {unknown[0]!r}, which means nothing here; known are "
            f"{', '.join(sorted(_FIELDS))}."
        )
    form = next(form for form in _FORMS if form in fields)
    if form != "messages" and not isinstance(fields[form], str):
        raise ConfigError(f"{where}: {form} must be a string, got {fields[form]!r}.")
    if form == "text" and fields.keys() & {"answer", "references"}:
        raise ConfigError(f"{where}: a text is scored by perplexity and takes no references.")
    if fields.keys() >= {"answer", "references"}:
        raise ConfigError(f"{where}: give either answer or references.")
    references = _references(fields)
    if references is not None and not (
        isinstance(references, list)
        and references
        and all(isinstance(reference, str) for reference in references)
    ):
        raise ConfigError(f"{where}: answer must be a string and references a list of strings.")


def _references(fields: Mapping[str, Any]) -> list[str] | None:
    if "answer" in fields:
        return [fields["answer"]]
    references: list[str] | None = fields.get("references")
    return references


def _matches(references: list[str], contains: bool, completion: str) -> float:
    found = completion.strip()
    if contains:
        return float(any(reference.strip() in found for reference in references))
    return float(any(reference.strip() == found for reference in references))


def _chat_tokens(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    text = tokenizer.apply_chat_template(messages)
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _text_cases(
    source: str, index: int, level: str, text: str, tokenizer: Tokenizer, context: int
) -> Iterator[Case]:
    """A text in windows of at most `context` tokens. Each begins with the token that ends the one
    before, or with the token that begins every text, so that no token is scored twice."""
    tokens = tuple(tokenizer.encode(text))
    begins = tokens[:1] if tokens and tokenizer.is_silent(tokens[0], True) else ()
    scored, step = len(tokens) - 1, context - 1
    windows = [
        begins + tokens[start + 1 : start + context] if begins else tokens[start : start + context]
        for start in range(0, scored, step)
    ]
    sizes = divide(_scored_bytes(tokenizer, tokens), [len(window) - 1 for window in windows])
    for part, (window, size) in enumerate(zip(windows, sizes, strict=True)):
        yield Case(source, index, level, window, 0, None, True, size, part)


def _scored_bytes(tokenizer: Tokenizer, tokens: Sequence[int]) -> int:
    """UTF-8 bytes of the text of all tokens but the first, which nothing predicts."""
    whole = len(tokenizer.decode(tokens, False).encode())
    return whole - len(tokenizer.decode(tokens[:1], False).encode())
