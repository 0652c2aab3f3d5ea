"""What a request may ask of an engine: everything is checked before any work is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ockham.cache.state import State
from ockham.core.asks import AdapterAsk, Ask
from ockham.core.config import EngineConfig
from ockham.core.errors import TOO_LONG, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.registry import SEAMS, ask_of, techniques
from ockham.core.seams import ApproximateReuse, Keeping
from ockham.engine.messages import Request
from ockham.engine.moving import MovedRequest
from ockham.engine.pooling import Pooler
from ockham.engine.techniques import Techniques
from ockham.model.memory import MemoryPlan
from ockham.model.program.description import ModelDescription


def context_limit(config: EngineConfig, plan: MemoryPlan, description: ModelDescription) -> str:
    """What sets the length of the context, and what would raise it: a clause after the length."""
    longest = description.max_position_embeddings
    if plan.max_model_len >= longest:
        return "which is the model's own limit"
    if config.max_model_len is not None:
        return f"as max_model_len sets it; the model itself takes {longest}"
    pooling = description.pooling
    if pooling is not None and pooling.max_tokens == plan.max_model_len:
        return f"which its own files set; there are positions for {longest} (max_model_len)"
    return (
        f"as many as the memory has room for; the model itself takes {longest}, with more memory "
        "(gpu_memory_utilization, kv_cache_memory_bytes)"
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """The facts of an engine that bound its requests. `chunk` is the most rows of a step,
    `context_limit` what the function of this name says."""

    vocabulary: int
    max_model_len: int
    context_limit: str
    max_num_seqs: int
    chunk: int
    state: State
    has_tokenizer: Callable[[], bool]
    eos: frozenset[int]
    approximate: Mapping[str, ApproximateReuse]
    techniques: Techniques
    check_adapter: Callable[[AdapterAsk], None]
    """Raises InvalidRequest for an adapter that is not there, or does not fit the model."""
    pooler: Pooler | None
    """Of a model that gives vectors or scores, and generates nothing."""

    def check(self, request: Request) -> None:
        """Raise InvalidRequest for what can never be served."""
        tokens, params = request.prompt_token_ids, request.params
        self._check_prompt(request)
        if params.n > self.max_num_seqs:
            raise InvalidRequest(
                f"n is {params.n}, but at most {self.max_num_seqs} sequences run at once; "
                "lower n or raise max_num_seqs.",
                "n",
            )
        if not 1 <= request.score_from <= len(tokens):
            raise InvalidRequest(
                f"score_from is {request.score_from}, but the prompt has tokens 1 to "
                f"{len(tokens) - 1} to score; choose one of them, or {len(tokens)} for none."
            )
        params.check_vocabulary(self.vocabulary)
        self.check_asks(request.all_asks, len(tokens))
        self._check_together(request)
        if not self.has_tokenizer() and (params.stop_strings or params.bad_words):
            raise InvalidRequest(
                "stop strings and bad_words need a tokenizer, and none was loaded; use "
                "stop_token_ids, or load one.",
                "stop" if params.stop_strings else "bad_words",
            )
        if not self.has_tokenizer() and params.structured_outputs is not None:
            raise InvalidRequest(
                "structured outputs need a tokenizer, and none was loaded; load one.",
                "structured_outputs",
            )
        if params.thinking_token_budget is not None and params.thought is None:
            raise InvalidRequest(
                "thinking_token_budget needs thought, which says what stands around thoughts: "
                'ThoughtMarks(open="<think>", close="</think>"). Chats know it of the model.',
                "thinking_token_budget",
            )
        if params.thought is not None and not self.has_tokenizer():
            raise InvalidRequest(
                "thoughts are found by a tokenizer, and none was loaded; load one, or leave out "
                "thought.",
                "thought",
            )
        stops = set(params.stop_token_ids or ()) | (set() if params.ignore_eos else self.eos)
        if (
            params.min_tokens
            and params.allowed_token_ids
            and stops.issuperset(params.allowed_token_ids)
        ):
            raise InvalidRequest(
                "allowed_token_ids holds only tokens that end the text, which min_tokens forbids.",
                "allowed_token_ids",
            )

    def check_text(self, request: Request) -> None:
        """The same of a request that pools and asks for nothing else: see `ockham.engine.texts`."""
        self._check_prompt(request)
        self.check_pool(request, None)

    def _check_prompt(self, request: Request) -> None:
        """Refuse what a model of this kind does not do, and a prompt that cannot be."""
        tokens = request.prompt_token_ids
        self._check_task(request)
        if not tokens:
            raise InvalidRequest("the prompt is empty; give at least one token.", "prompt")
        if min(tokens) < 0 or max(tokens) >= self.vocabulary:
            wrong = next(t for t in tokens if not 0 <= t < self.vocabulary)
            raise InvalidRequest(
                f"the prompt holds token id {wrong}; the vocabulary has ids from 0 to "
                f"{self.vocabulary - 1}.",
                "prompt",
            )
        room = self.max_model_len - bool(request.most_generated(self.max_model_len))
        if len(tokens) > room:
            raise InvalidRequest(
                f"the prompt is too long: it has {len(tokens)} tokens, and the context is "
                f"{self.max_model_len} tokens, {self.context_limit}. Shorten the prompt to "
                f"{room} or less.",
                "prompt",
                TOO_LONG,
            )

    def _check_task(self, request: Request) -> None:
        """Refuse what a model of this kind does not do."""
        if request.pooling is None:
            if self.pooler is not None:
                raise InvalidRequest(
                    f"this model does {' and '.join(self.pooler.tasks)}, and generates no text; "
                    "ask for one of those, or load a model that generates.",
                    "model",
                )
            return
        if self.pooler is None:
            raise InvalidRequest(
                f"this model generates text, and does not {request.pooling.task}; load one that is "
                "made for it, or this one with task='embed'.",
                "model",
            )
        if request.pooling.task is None:
            raise InvalidRequest("a request that pools must name its task.", "task")
        self.pooler.check(request.pooling)
        if request.params.n != 1:
            raise InvalidRequest("a request that pools has one answer; n must be 1.", "n")
        second = request.second_text_at
        if second is not None and not 0 < second < len(request.prompt_token_ids):
            raise InvalidRequest(
                f"second_text_at is {second}, but the prompt has {len(request.prompt_token_ids)} "
                "tokens."
            )

    def check_moved(self, moved: MovedRequest) -> None:
        """Refuse what a request that comes from elsewhere would need and is not here."""
        if moved.most_tokens > self.max_model_len:
            raise InvalidRequest(
                f"the request may grow to {moved.most_tokens} tokens, and the context here is "
                f"{self.max_model_len}, {self.context_limit}."
            )
        if moved.request.detokenize and not self.has_tokenizer():
            raise InvalidRequest(
                "the request wants text, and no tokenizer was loaded here; load one."
            )
        generated = [token for choice in moved.choices for token in choice.generated]
        if generated and not 0 <= min(generated) <= max(generated) < self.vocabulary:
            raise InvalidRequest("this is no exported request (it has tokens that do not exist).")

    def check_asks(self, asks: Mapping[str, Ask], tokens: int | None = None) -> None:
        """Raise InvalidRequest for what cannot be asked of this engine, for a prompt of so many
        tokens if there is one."""
        seams = set()
        for key, ask in asks.items():
            seam, _, name = key.partition("/")
            if seam == "reuse":
                self._check_reuse(name)
            elif seam not in SEAMS or not SEAMS[seam].asked or ask_of(seam, name) is None:
                raise InvalidRequest(
                    f"there is no technique {shown(key)} that a request may ask for.", "asks"
                )
            elif SEAMS[seam].offered and name not in self.techniques.offered(seam):
                raise InvalidRequest(
                    f"this engine was started without the {seam} {shown(name)}; start it with "
                    f"--{SEAMS[seam].setting} {name}, or leave it out of the request.",
                    "asks",
                )
            if seam in seams:
                raise InvalidRequest(
                    f"a request may ask for one {seam}, and this one asks for several; leave "
                    f"{shown(name)} out.",
                    name,
                )
            seams.add(seam)
            if tokens is not None:
                ask.check_prompt(tokens)
            if isinstance(ask, AdapterAsk):
                self.check_adapter(ask)

    def _check_together(self, request: Request) -> None:
        """Raise InvalidRequest for techniques that exclude each other."""
        keeping = self.techniques.keeping(request)
        if keeping is not None and request.asked("reuse") is not None:
            raise InvalidRequest(
                f"{keeping.name} drops cells, and reuse puts cells of other prompts in their "
                "place; a request can have one of the two.",
                "reuse",
            )
        pattern = self.techniques.of(request, "pattern")
        if keeping is not None and pattern is not None and not pattern.exact:
            raise InvalidRequest(
                f"{keeping.name} drops cells, and {pattern.name} chooses among blocks of all "
                "cells; a request can have one of the two.",
                pattern.name,
            )

    def _check_reuse(self, name: str) -> None:
        if name not in self.approximate:
            there = ", ".join(self.approximate) or "none"
            known = [t.name for t in techniques("reuse") if not t.exact]
            remedy = f"Start it with --reuse prefix,{name}, or leave"
            if name not in known:
                remedy = f"There are {', '.join(known)}; name one of them, or leave"
            raise InvalidRequest(
                f"this engine has no approximate reuse {shown(name)}; it has {there}. "
                f"{remedy} reuse out of the request.",
                "reuse",
            )

    def check_pool(self, request: Request, keeping: Keeping | None) -> None:
        """Refuse what could not be served even with the whole pool to itself. `keeping` says how
        many of its cells stay."""
        most = prompt = len(request.prompt_token_ids)
        generated = request.most_generated(self.max_model_len)
        if generated:
            most = min(self.max_model_len, prompt + generated) - 1
        chunk = self.chunk
        for group, layout in enumerate(self.state.groups):
            cells = most
            if keeping is not None and layout.window is None:
                cells = keeping.most_cells_of(group, most)
            if self.state.pages_for(cells, group, chunk) > layout.pages:
                fits = layout.pages * layout.page_tokens
                why = ""
                if keeping is not None and cells == most and layout.window is None:
                    why = f", which {keeping.name} as it is asked for may hold all at once"
                remedy = "raise kv_cache_memory_bytes"
                if layout.window is None and layout.pages < max(self.state.sizes):
                    remedy = "ask for no other way to keep cells than the engine's own setting"
                raise InvalidRequest(
                    f"the request needs the state of {cells} tokens{why}, but the pool "
                    f"holds {fits}. Shorten it to {fits} tokens in all, or {remedy}.",
                    "max_tokens" if prompt <= fits else "prompt",
                )
