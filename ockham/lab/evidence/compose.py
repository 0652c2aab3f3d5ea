"""Every pair of techniques at once: do they compose exactly, with what loss, or not at all?

A pair is run on a small mixed load (greedy and sampled requests, of different lengths, arriving one
after another), and every token is compared with the same request alone, on an engine that has
nothing but the pair's weight format. So an exact technique beside an approximate format must change
nothing that the format has not changed already. Of a pair with approximate reuse, a search, or what
alters state (a pattern, a keep, a gate), every other request asks for it, and what the others say
must not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, combinations_with_replacement
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np

from ockham.core.asks import Ask, ChunksAsk
from ockham.core.config import EngineConfig
from ockham.core.errors import InvalidRequest
from ockham.core.registry import SEAMS, Technique, find, make_asks, techniques
from ockham.core.sampling_params import SamplingParams
from ockham.core.speculative import NONE, has_model
from ockham.draft.structures.text_index import order_of
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from ockham.lab.evidence.bench import Bench, requests, run, watched
from ockham.lab.evidence.predictions import lab_maps
from ockham.lab.evidence.recipe import ENGINE
from ockham.lab.tasks.texts import held_out
from ockham.model.checkpoint.corpus_files import END, Corpus, write_corpus
from ockham.model.hub import resolve
from ockham.text.tokenizer import load_tokenizer
from ockham.weights.block_format import BlockFormat

LENGTHS = (3, 40, 17, 70, 1, 25)
"""Tokens of the prompts."""
GENERATED = 24
TOGETHER = 2
"""Choices that are made together, where some are."""
BEFORE_SERVING = ("transform", "correction")
"""Seams whose techniques `ockham convert` applies, and no engine."""
PAIRED_TOKENS = 4000
"""That maps of state are fitted to, where they must be there and need not be good."""
CHUNK = 20
"""Tokens of a chunk, where some are marked."""
DRAFT_MODELS = {
    "draft_model": "lab-drafter",
    "medusa": "lab-medusa",
    "prompt_tokens": "lab-prompt-tokens",
    "early_exit": "lab-early-exit",
    "mtp": "lab-mtp",
    "eagle3": "lab-eagle3",
}
"""What drafters that need a model draft with: the pairs run on the lab model."""
COMPANION = "small=lab-drafter"
"""What writes for searches in which another model does."""


@dataclass(frozen=True, slots=True)
class Part:
    """One technique, as a change of the engine's settings and of what is asked of it."""

    seam: str
    name: str
    exact: bool
    settings: dict[str, Any] = field(default_factory=dict)
    staggered: bool = False
    """Requests arrive while others run."""
    choices: int = 1
    refused: str | None = None
    """Why nothing can be run with it; None where it can."""

    @property
    def asks(self) -> bool:
        """Whether requests must ask for it."""
        return self.alters or (self.seam in ("search", "reuse") and not self.exact)

    @property
    def alters(self) -> bool:
        """Whether the requests that ask for it leave other state than the model alone."""
        return self.seam != ENGINE and _asked_one_by_one(self.seam) and not self.exact

    @property
    def label(self) -> str:
        return f"{self.seam}/{self.name}"


class Cell(msgspec.Struct, kw_only=True):
    """What came of one pair. `refused` says why it cannot be, or is None.

    `identical` of an exact pair must be true; `agreement` is the share of tokens that are those of
    the model's own format, where the pair has an approximate one, or approximate reuse.
    """

    one: str
    other: str
    exact: bool
    refused: str | None = None
    identical: bool | None = None
    agreement: float | None = None
    asked: bool = False
    """Whether some requests asked for an approximate technique: `identical` is about the
    others."""

    @property
    def verdict(self) -> str:
        """In words, short enough for a cell of a table."""
        if self.refused is not None:
            return f"refused: {self.refused}"
        if not self.identical:
            return "DIFFERS"
        if self.agreement is None:
            return "exact"
        if self.asked:
            return (
                "exact for who asks for nothing approximate; "
                f"{self.agreement:.0%} of all tokens are the model's own"
            )
        return f"exact within the format; {self.agreement:.0%} of its tokens are the model's own"


def parts() -> list[Part]:
    """What the engine does by itself, and every registered technique.

    But GGUF's block types: a format that only takes over what a file stores needs such a file. And
    transforms and corrections: they have made another model before an engine starts, of which
    tests/exact/ takes those whose shape no other checkpoint has.
    """
    own = [
        Part(ENGINE, "continuous-batching", True, staggered=True),
        Part(ENGINE, "chunked-prefill", True, {"max_num_batched_tokens": 8}),
        Part(ENGINE, "fork", True, choices=3),
        Part(ENGINE, "preemption", True, {"kv_cache_memory_bytes": 0}),
        Part("reuse", "prefix+swap", True, {"reuse": "prefix", "swap_space": 1 / 64}),
    ]
    return own + [
        _part(each)
        for each in techniques()
        if each.seam not in BEFORE_SERVING
        and not (each.seam == "format" and issubclass(each.cls, BlockFormat))
    ]


def _part(technique: Technique) -> Part:
    """By the setting of the technique's seam, or asked for by requests."""
    seam, name, exact = technique.seam, technique.name, technique.exact
    field = SEAMS[seam].setting
    if seam == "search" and not exact:
        needs = getattr(technique.cls, "needs_companion", False)
        settings = {"companions": COMPANION} if needs else {}
        return Part(seam, name, exact, settings, choices=_searched(technique).n)
    if _asked_one_by_one(seam) and not exact:
        try:
            _tried(technique)
        except InvalidRequest as error:
            return Part(seam, name, exact, refused=str(error).rstrip("."))
        offer = {field: name} if field is not None and SEAMS[seam].offered else {}
        return Part(seam, name, exact, offer)
    if field is not None:
        return Part(seam, name, exact, {field: _setting(technique)})
    return Part(seam, name, exact, refused=f"no setting of an engine chooses a {seam}")


def _asked_one_by_one(seam: str) -> bool:
    """Whether some requests ask for an approximate technique of a seam, and others stay exact."""
    return SEAMS[seam].alters_state or seam == "verifier"


def _tried(technique: Technique) -> dict[str, Ask]:
    """What asks for a technique that alters state: `trial` of its class, which does something to
    texts of a few dozen tokens, or else the plain ask. Raises InvalidRequest if it must be told
    more."""
    return make_asks({f"{technique.seam}/{technique.name}": getattr(technique.cls, "trial", True)})


def _searched(technique: Technique) -> SamplingParams:
    """Parameters that ask for a search: of several greedy choices, or else of a sampled one."""
    asks = {f"search/{technique.name}": getattr(technique.cls, "trial", True)}
    try:
        return SamplingParams(asks=asks, n=TOGETHER, temperature=0.0)
    except InvalidRequest:
        return SamplingParams(asks=asks, temperature=0.9)


def _setting(technique: Technique) -> Any:
    """What chooses it. A drafter always drafts here: whether it pays is not the question."""
    if technique.name == "kv_prediction":
        return f"{technique.name}:maps={_maps().name}"
    if technique.seam != "drafter" or technique.name == NONE:
        return technique.name
    chosen = {"method": technique.name, "adaptive": False}
    if technique.name in DRAFT_MODELS:
        chosen["model"] = DRAFT_MODELS[technique.name]
    elif technique.name == "corpus":
        chosen["model"] = str(Path(_passages().name) / "index")
    return chosen


@lru_cache(maxsize=1)
def _maps() -> TemporaryDirectory[str]:
    """Maps from the lab's drafter to the lab model, fitted to few tokens."""
    folder = TemporaryDirectory()
    lab_maps(EngineConfig().model, Path(folder.name), PAIRED_TOKENS)
    return folder


@lru_cache(maxsize=1)
def _passages() -> TemporaryDirectory[str]:
    """Passages of code, indexed for the lab model."""
    folder = TemporaryDirectory()
    tokenizer = load_tokenizer(EngineConfig(), resolve("lab"))
    assert tokenizer is not None, "the lab model has a tokenizer"
    texts = [tokenizer.encode(text, add_special_tokens=False) for text in held_out()["code"]]
    tokens = np.array([token for text in texts for token in [*text, END]], np.int32)
    write_corpus(
        Path(folder.name) / "index",
        Corpus(tokens, order_of(tokens), tokenizer.vocab_size, tokenizer.digest),
    )
    return folder


def compose(
    bench: Bench,
    chosen: Sequence[Part] | None = None,
    wanted: Callable[[Part, Part], bool] = lambda one, other: True,
) -> list[Cell]:
    """Run every pair of the parts (all of them by default), each with itself included, that is
    wanted."""
    chosen = parts() if chosen is None else chosen
    alone: dict[str, list[list[list[int]]]] = {}
    return [
        _pair(bench, one, other, alone)
        for one, other in combinations_with_replacement(chosen, 2)
        if wanted(one, other)
    ]


def _pair(bench: Bench, one: Part, other: Part, alone: dict[str, list[list[list[int]]]]) -> Cell:
    cell = Cell(one=one.label, other=other.label, exact=one.exact and other.exact)
    cell.refused = one.refused or other.refused
    if cell.refused is not None:
        return cell
    settings = {**one.settings, **other.settings}
    asking = [part.name for part in (one, other) if part.asks and part.seam == "reuse"]
    searches = [part for part in (one, other) if part.seam == "search" and part.asks]
    together = bool(searches)
    altering = [part for part in (one, other) if part.alters]
    if one.seam == other.seam and one.name != other.name and one.seam != ENGINE:
        drafting = _both_draft(one, other)
        if drafting is not None:
            settings["speculative_config"] = drafting
        elif one.seam == "drafter" and NONE not in (one.name, other.name):
            cell.refused = "each has a model of its own, and one is named"
            return cell
        elif not asking and not searches and not altering:
            exact = "exact " * (one.seam == "reuse")
            cell.refused = f"an engine has one {exact}{one.seam}"
            return cell
        elif asking:
            settings["reuse"] = f"{one.settings['reuse']},{other.settings['reuse']}"
    choices = max(one.choices, other.choices)
    weights = settings.get("quantization")
    if settings.get("kv_cache_memory_bytes") == 0:
        settings["kv_cache_memory_bytes"] = _tight_pool(bench, choices, settings)
    expected = _alone(bench, weights, choices, alone)
    engine = bench.engine(**settings)
    wanted = _load(engine, bench.seed, choices)
    _ask(wanted, asking)
    if together:
        for turn, request in enumerate(wanted[1::2]):
            asked = _searched(find("search", searches[turn % len(searches)].name))
            request.detokenize = engine.tokenizer is not None
            request.params = msgspec.structs.replace(
                request.params, asks=asked.asks, temperature=asked.temperature, n=asked.n
            )
    for turn, request in enumerate(wanted[1::2]):
        by_seam = {part.seam: part for part in altering[:: -1 if turn % 2 else 1]}
        for part in by_seam.values():  # of two at one seam, one after the other
            request.asks = {**request.asks, **_tried(find(part.seam, part.name))}
    try:
        if settings.get("reuse", "none") != "none":
            run(engine, [_otherwise(request) for request in wanted])  # what there is to reuse
        found = (
            watched(engine, wanted[:2], _Arrivals(wanted[2:]))
            if one.staggered or other.staggered
            else run(engine, wanted)
        )
    except InvalidRequest as error:
        engine.drop_all()
        cell.refused = str(error)
        return cell
    cell.asked = bool(asking) or together or bool(altering)
    plain = [number for number, request in enumerate(wanted) if not request.all_asks]
    cell.identical = all(found.tokens[number] == expected[number] for number in plain)
    if not cell.exact:
        own = _alone(bench, None, choices, alone)
        cell.agreement = _agreement(own, found.tokens)
    return cell


def _both_draft(one: Part, other: Part) -> dict[str, Any] | None:
    """Two drafters beside each other; None if that cannot be."""
    if one.seam != "drafter" or NONE in (one.name, other.name):
        return None
    if all(has_model(find("drafter", name)) for name in {one.name, other.name}):
        return None
    settings = [part.settings["speculative_config"] for part in (one, other)]
    return {**settings[0], **settings[1], "method": f"{one.name},{other.name}"}


def _ask(wanted: Sequence[Request], names: Sequence[str]) -> None:
    """Let every other request ask for approximate reuse, of these names in turn."""
    for turn, request in enumerate(wanted[1::2] if names else ()):
        name, tokens = names[turn % len(names)], len(request.prompt_token_ids)
        ends = [*range(CHUNK, tokens, CHUNK), tokens]
        chunks = list(zip([0, *ends], ends, strict=False)) if name == "chunk" else []
        request.asks = make_asks({f"reuse/{name}": {"chunks": chunks} if chunks else True})


def _otherwise(request: Request) -> Request:
    """A request like this one before it was edited, or with its chunks in another order."""
    asked, tokens = request.asked("reuse"), request.prompt_token_ids
    if asked is None:
        return request
    if not isinstance(asked.ask, ChunksAsk):
        return msgspec.structs.replace(request, prompt_token_ids=[*tokens[:2], *tokens[3:]])
    pieces = [tokens[start:stop] for start, stop in reversed(asked.ask.chunks)]
    ends = list(accumulate(map(len, pieces)))
    chunks = list(zip([0, *ends], ends, strict=False))
    return msgspec.structs.replace(
        request,
        prompt_token_ids=[token for piece in pieces for token in piece],
        asks={
            **request.asks,
            f"reuse/{asked.name}": msgspec.structs.replace(asked.ask, chunks=chunks),
        },
    )


class _Arrivals:
    """One more request every second step."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._waiting = list(requests)

    def __call__(self, step: int, deltas: list[Delta]) -> list[Request]:
        return [self._waiting.pop(0)] if self._waiting and step % 2 == 0 else []


def _load(engine: Engine, seed: int, choices: int) -> list[Request]:
    rng = Random(f"compose {seed}")
    prompts = [[rng.randrange(engine.vocabulary) for _ in range(length)] for length in LENGTHS]
    params = [
        SamplingParams(
            n=choices,
            temperature=0.9 if number % 2 else 0.0,
            top_p=0.95,
            seed=number,
            max_tokens=GENERATED,
            ignore_eos=True,
        )
        for number in range(len(prompts))
    ]
    return requests(prompts, params)


def _alone(
    bench: Bench, weights: str | None, choices: int, known: dict[str, list[list[list[int]]]]
) -> list[list[list[int]]]:
    """The tokens of each request alone, in this weight format."""
    key = f"{weights} {choices}"
    if key not in known:
        engine = bench.engine(**({"quantization": weights} if weights else {}))
        wanted = _load(engine, bench.seed, choices)
        known[key] = run(engine, wanted, at_once=1).tokens
    return known[key]


def _tight_pool(bench: Bench, choices: int, settings: dict[str, Any]) -> int:
    """A pool that holds the largest request but not the whole load, so that some give way."""
    plain = {name: value for name, value in settings.items() if name != "kv_cache_memory_bytes"}
    state = bench.engine(**plain).state
    page_bytes = sum(group.page_bytes for group in state.groups)
    page_tokens = state.groups[0].page_tokens
    pages = -(-(max(LENGTHS) + choices * (GENERATED + page_tokens)) // page_tokens) + 1
    return pages * page_bytes


def _agreement(own: list[list[list[int]]], found: list[list[list[int]]]) -> float:
    """The share of tokens that are the same at the same place."""
    pairs = [
        (left, right)
        for one, other in zip(own, found, strict=True)
        for mine, theirs in zip(one, other, strict=False)  # a search may give fewer choices
        for left, right in zip(mine, theirs, strict=False)  # and end them sooner
    ]
    return sum(left == right for left, right in pairs) / len(pairs)


def engine_config_of(model: str) -> EngineConfig:
    """The settings that a composition starts from: short contexts, so that many engines fit."""
    return EngineConfig(
        model=model,
        max_model_len=96,
        kv_cache_memory_bytes=16 << 20,
        speculative_config="none",
        run_programs=True,  # for the searches that compare what they do
    )
