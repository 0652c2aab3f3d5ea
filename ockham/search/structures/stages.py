"""Stages of a pipeline: operators over texts, as a request or a setting writes them."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import TypeAlias

import msgspec

from ockham.core.numbers import shown
from ockham.search.structures.answers import BEHAVIOUR, check_extract
from ockham.search.structures.scorers import CHECKER, LIKELIHOOD, REWARD

MOST_TEXT = 4000
"""Characters of a text that is written."""
MOST_TEXTS = 64
"""That a stage makes."""
MOST_CALLS_OF_ALL = 200
"""Texts that all stages of a pipeline may write together."""
MOST_STAGES = 16
MOST_TOKENS = 1 << 20
TEXTS = "{texts}"
"""What stands for earlier texts in what is written."""


class _Stage(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag_field="op"):
    """An operator, named by `op`."""


class Writing(_Stage, kw_only=True, frozen=True):
    """A stage whose forks go on with `write` and say one text each, of at most `tokens` tokens, up
    to `until`, if there is one."""

    write: str = ""
    until: str = ""
    tokens: int = 1024


class Generate(Writing, kw_only=True, frozen=True, tag="generate"):
    """`samples` texts, each from the prompt. With `add` the earlier texts stay beside them."""

    samples: int = 1
    add: bool = False


class Combine(Writing, kw_only=True, frozen=True, tag="combine"):
    """A text for each subset of at most `size` of the earlier texts, the smallest first, of at most
    `most` subsets. {texts} of `write` are those of the subset, a line each."""

    write: str = f"{TEXTS}\n"
    size: int = 2
    most: int = 8


class Fuse(Writing, kw_only=True, frozen=True, tag="fuse"):
    """One text from the prompt and all earlier ones, which are {texts} of `write`."""

    write: str = f"Possible answers:\n{TEXTS}\n\nAll in all, the answer is this:\n"


class Extend(Writing, kw_only=True, frozen=True, tag="extend"):
    """Each text goes on."""


class Verify(_Stage, kw_only=True, frozen=True, tag="verify"):
    """The model is asked whether each text is right, on a fork of it: the `keep` texts stay after
    which `yes` is the most probable answer beside `no`."""

    ask: str = "{user}Is this answer right? Answer yes or no.{assistant}"
    yes: str = "yes"
    no: str = "no"
    keep: int = 1


class Best(_Stage, kw_only=True, frozen=True, tag="best"):
    """The `keep` texts that `scorer` finds best: "likelihood", "checker:NAME" or
    "reward:NAME"."""

    scorer: str = LIKELIHOOD
    keep: int = 1


class Vote(_Stage, kw_only=True, frozen=True, tag="vote"):
    """The first text that gives the answer which most give. `extract` is the pipeline's unless it
    is named here."""

    extract: str | None = None


class Sure(_Stage, kw_only=True, frozen=True, tag="sure"):
    """The pipeline ends here if the score of the best text is at least `at`."""

    scorer: str = LIKELIHOOD
    at: float = 0.99


Stage: TypeAlias = Generate | Combine | Fuse | Extend | Verify | Best | Vote | Sure


def wrong_stages(stages: Sequence[Stage]) -> str | None:
    """What of stages cannot be; None if they can."""
    if not 1 <= len(stages) <= MOST_STAGES:
        return f"a pipeline has 1 to {MOST_STAGES} stages, got {len(stages)}."
    texts = calls = 0
    for number, stage in enumerate(stages, 1):
        where = f"stage {number} ({stage.__struct_config__.tag})"
        if not isinstance(stage, Generate) and not texts:
            return f"{where} works on earlier texts, and there are none; begin with generate."
        said = _wrong(stage)
        if said is not None:
            return f"{where}: {said}"
        texts, written = _counts(stage, texts)
        calls += written
    if calls > MOST_CALLS_OF_ALL:
        return f"the stages write {calls} texts together, and at most {MOST_CALLS_OF_ALL} may be."
    return None


def _counts(stage: Stage, texts: int) -> tuple[int, int]:
    """Of a stage after so many texts: the most texts that there are then, and that it writes."""
    if isinstance(stage, Generate):
        return stage.samples + (texts if stage.add else 0), stage.samples
    if isinstance(stage, Combine):
        subsets = sum(comb(texts, size) for size in range(1, stage.size + 1))
        return (made := min(stage.most, subsets)), made
    if isinstance(stage, Fuse):
        return 1, 1
    if isinstance(stage, Verify):
        return min(stage.keep, texts), texts
    if isinstance(stage, Best):
        return min(stage.keep, texts), 0
    if isinstance(stage, Vote):
        return 1, 0
    return texts, texts if isinstance(stage, Extend) else 0


def _wrong(stage: Stage) -> str | None:
    for name, most in (
        ("samples", MOST_TEXTS),
        ("most", MOST_TEXTS),
        ("keep", MOST_TEXTS),
        ("size", MOST_TEXTS),
        ("tokens", MOST_TOKENS),
    ):
        number = getattr(stage, name, 1)
        if not 1 <= number <= most:
            return f"{name} must lie in [1, {most}], got {number}."
    for name in ("write", "until", "ask"):
        text = getattr(stage, name, "")
        if len(text) > MOST_TEXT:
            return f"{name} must have at most {MOST_TEXT} characters, got {len(text)}."
    if isinstance(stage, Combine | Fuse) and TEXTS not in stage.write:
        return f"write must have {TEXTS}, where earlier texts are to stand."
    if isinstance(stage, Verify) and (not stage.ask or not stage.yes or not stage.no):
        return "ask, yes and no must not be empty."
    if isinstance(stage, Verify) and stage.yes.strip().lower() == stage.no.strip().lower():
        return f"yes and no must be two answers, got {shown(stage.yes)} twice."
    if isinstance(stage, Sure) and not 0.0 < stage.at <= 1.0:
        return f"at must be above 0 and at most 1, got {stage.at}."
    if isinstance(stage, Best | Sure):
        kind, _, name = stage.scorer.partition(":")
        if stage.scorer != LIKELIHOOD and not (kind in (CHECKER, REWARD) and name):
            return (
                f"scorer must be {LIKELIHOOD}, {CHECKER}:NAME or {REWARD}:NAME, got "
                f"{shown(stage.scorer)}."
            )
    if isinstance(stage, Vote) and stage.extract is not None:
        return wrong_extract(stage.extract)
    return None


def wrong_extract(extract: str) -> str | None:
    """Why an extractor cannot be used on texts of stages; None if it can."""
    if extract == BEHAVIOUR:
        return f'extract cannot be "{BEHAVIOUR}" here: the programs of texts are not run.'
    return check_extract(extract)
