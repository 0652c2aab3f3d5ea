"""`LLM`: a model in the caller's own process, with vLLM's methods and names.

Prompts become requests here and deltas become outputs; what happens between is the engine's.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ockham.api.settings import check_call, engine_config
from ockham.core.approximation import Approximation
from ockham.core.config import EngineConfig
from ockham.core.errors import FAULT, InvalidRequest, OckhamError, fault
from ockham.core.numbers import shown, token_ids
from ockham.core.outputs import RequestOutput, ScoreOutput
from ockham.core.sampling_params import SamplingParams
from ockham.engine.collect import Collector
from ockham.engine.engine import Engine
from ockham.engine.intake import describe
from ockham.engine.messages import HINTS, Delta, Pin, Request, Unpin
from ockham.engine.offline import OfflineBatch
from ockham.model.checkpoint.generation_config import chat_defaults
from ockham.text.marking import ReuseParams
from ockham.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")

log = logging.getLogger("ockham.engine")

Prompt = str | Sequence[int] | Mapping[str, Any]
"""A text, its token ids, `{"prompt": text}` or `{"prompt_token_ids": ids}`; the mappings may have
`cache_salt` and `cache_hint` beside that, as `AsyncLLM.generate` takes them."""
Encoded = tuple[str | None, list[int], Approximation | None]
"""A prompt's text, if it came as one, its token ids, and what may be reused approximately."""
Message = Mapping[str, Any]
Listener = Callable[[Collector, Delta], None]

_PROGRESS_DELAY_S = 1.0
_CACHING = ("cache_salt", "cache_hint")
_NO_CACHING: Mapping[str, Any] = {}


class LLM:
    """A model that is loaded, ready to complete, chat and score.

    Raises ModelError, DoesNotFit or ConfigError if it cannot be loaded. Methods may be called from
    several threads; their requests share the engine's steps. As a context manager it is closed at
    the end of the block. A process that is forked off one with an LLM may use it too, except with
    a kv_store, or while another thread was using it when the process was forked.
    """

    def __init__(
        self,
        model: str = "lab",
        *,
        tokenizer: str | None = None,
        dtype: str = "auto",
        quantization: str | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 512,
        gpu_memory_utilization: float = 0.9,
        kv_cache_memory_bytes: int | None = None,
        skip_tokenizer_init: bool = False,
        seed: int = 0,
        trust_remote_code: bool = False,
        progress: Callable[[str], None] | None = None,
        **settings: Any,
    ) -> None:
        """`settings` are the further fields of `EngineConfig`, and vLLM's names at values that mean
        nothing here (`tensor_parallel_size=1`). `progress` is told in words what is loaded;
        without one, the logger "ockham.engine" is."""
        config = engine_config(
            model,
            {
                "tokenizer": tokenizer,
                "dtype": dtype,
                "quantization": quantization,
                "max_model_len": max_model_len,
                "max_num_seqs": max_num_seqs,
                "max_num_batched_tokens": max_num_batched_tokens,
                "gpu_memory_utilization": gpu_memory_utilization,
                "kv_cache_memory_bytes": kv_cache_memory_bytes,
                "skip_tokenizer_init": skip_tokenizer_init,
                "seed": seed,
                "trust_remote_code": trust_remote_code,
                **settings,
            },
        )
        self._load(config, progress)

    @classmethod
    def from_config(
        cls, config: EngineConfig, progress: Callable[[str], None] | None = None
    ) -> LLM:
        """An `LLM` with settings that were put together before."""
        llm = cls.__new__(cls)
        llm._load(config, progress)
        return llm

    def _load(self, config: EngineConfig, progress: Callable[[str], None] | None) -> None:
        self.config = config
        self.engine = Engine(config, progress=progress or (lambda line: log.info("%s", line)))
        self._pid = os.getpid()
        self._closed = False
        self._defaults = self.engine.model.sampling_defaults
        self._lock = threading.Lock()
        self._waiting: dict[str, tuple[Collector, Listener | None]] = {}
        self._numbers = itertools.count(1)
        self._batches: dict[str, OfflineBatch] = {}
        """Of each unfinished request, the batch that it is part of."""

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        reuse: ReuseParams | str | None = None,
        **neutral: Any,
    ) -> list[RequestOutput]:
        """Complete prompts: one, or a list, as texts or token ids. Outputs come in their order.

        One `SamplingParams` holds for all prompts, a list gives each its own, None takes the
        checkpoint's defaults. `reuse` says what may be reused approximately, as
        ReuseParams or by name alone: nothing by default. vLLM's other arguments are taken at values
        that ask for nothing (`lora_request=None`). Raises InvalidRequest, before any work is done,
        if anything about any prompt is wrong; the message names its index.
        """
        check_call(neutral)
        listed = as_list(prompts)
        params = self._params_for(len(listed), sampling_params)
        reuse = ReuseParams(reuse=reuse) if isinstance(reuse, str) else reuse
        encoded = [self._named(i, self._encode, prompt, reuse) for i, prompt in enumerate(listed)]
        caching = [self._named(i, _caching, prompt) for i, prompt in enumerate(listed)]
        return self._run(encoded, params, use_tqdm, caching=caching)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        reuse: ReuseParams | str | None = None,
        **neutral: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation, or each of a list of them, through the chat template.

        Without `sampling_params` those of `get_default_chat_sampling_params` apply.
        `chat_template_kwargs` are passed on to the template; `reuse` and vLLM's other arguments are
        as in `generate`, which raises as this does.
        """
        check_call(neutral)
        several = isinstance(messages, Sequence) and any(
            isinstance(message, Sequence) and not isinstance(message, (str, bytes))
            for message in messages
        )
        conversations: Sequence[Any] = messages if several else [messages]
        if sampling_params is None:
            sampling_params = self.get_default_chat_sampling_params()
        params = self._params_for(len(conversations), sampling_params)
        reuse = ReuseParams(reuse=reuse) if isinstance(reuse, str) else reuse
        tokenizer = self.get_tokenizer()

        def encode(conversation: Sequence[Message]) -> Encoded:
            text = tokenizer.apply_chat_template(
                conversation,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                chat_template=chat_template,
                **(chat_template_kwargs or {}),
            )
            if reuse is not None and reuse.marks_chunks:
                pieces = reuse.cut_chat(text, conversation)
                return text, *reuse.encode(tokenizer, pieces, add_special_tokens=False)
            asked = None if reuse is None else reuse.approximation()
            return text, tokenizer.encode(text, add_special_tokens=False), asked

        encoded = [self._named(i, encode, talk) for i, talk in enumerate(conversations)]
        return self._run(encoded, params, use_tqdm)

    def score(
        self, prompts: Prompt | Sequence[Prompt], *, use_tqdm: bool = True
    ) -> list[ScoreOutput]:
        """The log probability of each token of the prompts, given those before it, under the
        unprocessed logits. Nothing is generated. (vLLM's method of this name compares pairs of
        texts.) Raises InvalidRequest for a prompt of fewer than two tokens, of which nothing can
        be scored."""
        encoded = [self._named(i, self._encode, p) for i, p in enumerate(as_list(prompts))]
        for index, (_, tokens, _) in enumerate(encoded):
            if len(tokens) < 2:
                raise InvalidRequest(
                    f"prompt {index}: it has {len(tokens)} token(s), but only tokens after the "
                    "first can be scored; give at least two.",
                    "prompt",
                )
        params = SamplingParams(max_tokens=0, prompt_logprobs=0, temperature=0.0)
        outputs = self._run(encoded, [params] * len(encoded), use_tqdm, detokenize=False)
        return [_score(output) for output in outputs]

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Stream:
        """Complete one prompt, yielding what each step adds. Closing the stream frees its work."""
        self._usable()
        params = self._params_for(1, sampling_params)[0]
        text, tokens, _ = self._encode(prompt)
        return Stream(self, self._request(tokens, params, caching=_caching(prompt)), text)

    def close(self) -> None:
        """Give up what still runs, finish writing what goes to the disk, and let others have its
        directory. Done by itself when the object is no more. Afterwards every use of it raises
        OckhamError; closing it again does nothing."""
        theirs = self._pid != os.getpid()  # of the process that this one was forked off
        if self._closed or theirs:
            self._closed = True
            return
        self._closed = True
        for collector, _ in list(self._waiting.values()):
            self._withdraw(collector)
        with self._lock:
            self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an LLM cannot be copied or sent to another process: it holds its model's memory. Make "
            "one in each process, with the same settings."
        )

    def _usable(self) -> None:
        """Raise OckhamError if this LLM was closed, or belongs to another process in a way that a
        process forked off it cannot share."""
        if self._closed:
            raise OckhamError("this LLM was closed; make another one.")
        if self._pid == os.getpid():
            return
        reason = None
        if self._lock.locked():
            reason = "another thread was using it when the process was forked"
        elif self.config.kv_store is not None:
            reason = f"its kv_store {self.config.kv_store!r} is for one process at a time"
        if reason is not None:
            raise OckhamError(
                f"this LLM belongs to the process {self._pid}, from which this one was forked, and "
                f"cannot be used here: {reason}. Make the LLM after the fork."
            )
        self.engine.forked()
        self._pid = os.getpid()

    def pin(self, prompt: Prompt, name: str) -> int:
        """Compute a prefix, such as a system prompt, and keep its state until `unpin(name)`; how
        many tokens it has. At most half of the pool may be pinned. Raises InvalidRequest."""
        _, tokens, _ = self._encode(prompt)
        params = SamplingParams(max_tokens=1, temperature=0.0)
        self._run([(None, tokens, None)], [params], use_tqdm=False, detokenize=False)
        with self._lock:
            self.engine.cache.pin(Pin(name, tokens))
        return len(tokens)

    def unpin(self, name: str) -> None:
        """Let a pinned prefix go again. Raises InvalidRequest if there is no such pin."""
        self._usable()
        with self._lock:
            self.engine.cache.unpin(Unpin(name))

    def pins(self) -> dict[str, int]:
        """The pinned prefixes by name, and how many tokens each has."""
        return self.engine.cache.pins()

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises InvalidRequest where none was loaded."""
        if self.engine.tokenizer is None:
            raise InvalidRequest(
                "text needs a tokenizer, and none was loaded (skip_tokenizer_init); give ids.",
                "prompt",
            )
        return self.engine.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """`SamplingParams` with the defaults of the checkpoint's generation_config.json."""
        return SamplingParams(**self._defaults)

    def get_default_chat_sampling_params(self) -> SamplingParams:
        """The same for chats: where the checkpoint sets nothing, not all tokens are sampled from
        (temperature 0.8, top-k 40, top-p 0.95, min-p 0.05; generation_config="vllm" leaves it)."""
        return SamplingParams(**chat_defaults(self._defaults, self.config.generation_config))

    def get_metrics(self) -> dict[str, float]:
        """The engine's counters so far, under the names that `/metrics` of the server has."""
        stats = self.engine.stats()
        ledger = stats.ledger
        return {
            "ockham_num_requests_running": stats.running,
            "ockham_num_requests_waiting": stats.waiting,
            "ockham_kv_cache_usage_perc": stats.pages_used / max(1, stats.pages_total),
            "ockham_num_preemptions_total": stats.preemptions,
            "ockham_prompt_tokens_total": ledger.prompt_tokens,
            "ockham_prompt_tokens_computed_total": ledger.prompt_tokens_computed,
            "ockham_prompt_tokens_reused_total": ledger.prompt_tokens_reused,
            "ockham_generation_tokens_total": ledger.generated_tokens,
            "ockham_steps_total": stats.steps,
            "ockham_rows_total": ledger.rows,
            "ockham_flops_total": ledger.flops,
            "ockham_weight_bytes_total": ledger.weight_bytes,
            "ockham_state_read_bytes_total": ledger.state_read_bytes,
            "ockham_state_written_bytes_total": ledger.state_written_bytes,
        }

    # -- from prompts to requests --------------------------------------------------------------

    def _encode(self, prompt: Any, reuse: ReuseParams | None = None) -> Encoded:
        """A prompt, and what may be reused for it."""
        if isinstance(prompt, Mapping):
            given = prompt.keys() - _CACHING
            if len(given) != 1 or not given <= {"prompt", "prompt_token_ids"}:
                raise InvalidRequest(
                    "a prompt object must hold either 'prompt' or 'prompt_token_ids', and may hold "
                    f"{' and '.join(map(repr, _CACHING))}; got {sorted(map(str, prompt))}.",
                    "prompt",
                )
            prompt = prompt[given.pop()]
        asked = None if reuse is None else reuse.approximation()
        if reuse is not None and reuse.marks_chunks:
            if not isinstance(prompt, str):
                raise InvalidRequest(
                    "reuse 'chunk' finds chunks in text; give the prompt as text.", "prompt"
                )
            return prompt, *reuse.encode(self.get_tokenizer(), reuse.cut_text(prompt), True)
        if isinstance(prompt, str):
            return prompt, self.get_tokenizer().encode(prompt), asked
        return None, token_ids(prompt), asked

    def _params_for(
        self, prompts: int, params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[SamplingParams]:
        """One `SamplingParams` for each of so many prompts."""
        if params is None:
            params = self.get_default_sampling_params()
        if isinstance(params, SamplingParams):
            return [params] * prompts
        if not isinstance(params, Sequence):
            raise InvalidRequest(
                f"sampling_params must be SamplingParams or a list of them, got {shown(params)}.",
                "sampling_params",
            )
        if len(params) != prompts:
            raise InvalidRequest(
                f"there are {prompts} prompts but {len(params)} sampling_params; give one for "
                "each, or a single one.",
                "sampling_params",
            )
        for index, each in enumerate(params):
            if not isinstance(each, SamplingParams):
                raise InvalidRequest(
                    f"prompt {index}: its sampling_params are {shown(each)}, not SamplingParams.",
                    "sampling_params",
                )
        return list(params)

    def _request(
        self,
        tokens: list[int],
        params: SamplingParams,
        detokenize: bool = True,
        approximation: Approximation | None = None,
        caching: Mapping[str, Any] = _NO_CACHING,
    ) -> Request:
        return Request(
            request_id=f"request-{next(self._numbers)}",
            prompt_token_ids=tokens,
            params=params,
            detokenize=detokenize and self.engine.tokenizer is not None,
            approximation=approximation,
            **caching,
        )

    @staticmethod
    def _named(index: int, work: Callable[..., T], *args: Any) -> T:
        """Do something for the prompt at `index`; an error names it."""
        try:
            return work(*args)
        except InvalidRequest as error:
            raise InvalidRequest(f"prompt {index}: {error}", error.param) from error

    # -- running -------------------------------------------------------------------------------

    def _run(
        self,
        prompts: Sequence[Encoded],
        params: list[SamplingParams],
        use_tqdm: bool,
        detokenize: bool = True,
        caching: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[RequestOutput]:
        self._usable()
        settings = caching or [_NO_CACHING] * len(prompts)
        collectors = [
            Collector(self._request(tokens, params[i], detokenize, asked, settings[i]), text)
            for i, (text, tokens, asked) in enumerate(prompts)
        ]
        bar = _Progress(len(collectors)) if use_tqdm and len(collectors) > 1 else None
        try:
            for index in self._plan(collectors):
                self._named(index, self._submit, collectors[index], bar)
            for collector in collectors:
                while not collector.finished:
                    self._step(collector)
                if collector.error is not None:
                    raise collector.error
        finally:  # refused, interrupted or failed: leave no work behind
            if bar is not None:
                bar.close()
            for collector in collectors:
                self._withdraw(collector)
                self._batches.pop(collector.request.request_id, None)
        return [collector.output() for collector in collectors]

    def _plan(self, collectors: Sequence[Collector]) -> list[int]:
        """The order in which the requests of a batch go to the engine."""
        if len(collectors) < 2:
            return list(range(len(collectors)))
        batch = OfflineBatch(self.engine, [collector.request for collector in collectors])
        for collector in collectors:
            self._batches[collector.request.request_id] = batch
        return batch.order

    def _submit(self, collector: Collector, listener: Listener | None = None) -> None:
        """Hand a request to the engine; its deltas go to the collector, then to the listener."""
        request = collector.request
        compiling = self.engine.prepare(request)
        grammar = None if compiling is None else compiling.result()  # beside other callers' steps
        with self._lock:
            self.engine.add(request, grammar)
            self._waiting[request.request_id] = (collector, listener)

    def _step(self, collector: Collector) -> None:
        """One step of the engine, for whoever waits: callers in several threads share its steps.
        Raises what ended the collector's request, if a fault did, be it met by another's step."""
        self._usable()
        with self._lock, _Uninterrupted():
            if collector.error is None and not collector.finished:
                try:
                    deltas = self.engine.step()
                except Exception as error:
                    self._give_up(error)
                    raise
                self._deliver(deltas)
        if collector.error is not None:
            raise collector.error

    def _give_up(self, error: Exception) -> None:
        """A step failed, and left nothing to go on with: all requests end, whoever waits."""
        reason = OckhamError(f"The engine failed in a step ({describe(error)}); ask again.")
        for collector, _ in self._waiting.values():
            collector.error = reason
        self._waiting.clear()
        self._batches.clear()
        self.engine.drop_all()

    def _withdraw(self, collector: Collector) -> None:
        """Give up what has not finished of a request."""
        request_id = collector.request.request_id
        with self._lock:
            if request_id in self._waiting:
                self._deliver(self.engine.abort(request_id))
                self._waiting.pop(request_id, None)

    def _deliver(self, deltas: list[Delta]) -> None:
        """Hand deltas to those who wait. What goes wrong with one is told to its own caller."""
        for delta in deltas:
            found = self._waiting.get(delta.request_id)
            if found is None:
                continue  # it ended with an earlier one
            collector, listener = found
            try:
                collector.add(delta)
                if delta.stop_reason == FAULT:
                    collector.error = fault()
                elif listener is not None:
                    listener(collector, delta)
            except Exception as error:
                traceback.print_exception(error)
                collector.error = fault()
                self.engine.abort(delta.request_id)
            if collector.finished or collector.error is not None:
                del self._waiting[delta.request_id]
                batch = self._batches.pop(delta.request_id, None)
                if batch is not None:
                    batch.ended(collector)


def _caching(prompt: Any) -> dict[str, Any]:
    """What a prompt object says of the prefix cache. Raises InvalidRequest for wrong values."""
    if not isinstance(prompt, Mapping):
        return {}
    found = {name: prompt[name] for name in _CACHING if name in prompt}
    if not isinstance(found.get("cache_salt", ""), str):
        raise InvalidRequest(
            f"cache_salt must be a text, got {shown(found['cache_salt'])}.", "cache_salt"
        )
    if found.get("cache_hint") not in HINTS:
        raise InvalidRequest(
            f"cache_hint must be 'keep' or 'discard', got {shown(found['cache_hint'])}.",
            "cache_hint",
        )
    return found


class Stream:
    """One prompt's completion as it comes: an iterator of `Delta`s. `output` is all of it so far.

    Closing it, or leaving its `with` block, gives up what has not come yet.
    """

    def __init__(self, llm: LLM, request: Request, prompt: str | None) -> None:
        self._llm = llm
        self._collector = Collector(request, prompt)
        self._news: deque[Delta] = deque()
        llm._submit(self._collector, lambda _, delta: self._news.append(delta))

    @property
    def output(self) -> RequestOutput:
        return self._collector.output()

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        while not self._news:
            if self._collector.error is not None:
                raise self._collector.error
            if self._collector.finished:
                raise StopIteration
            self._llm._step(self._collector)
        return self._news.popleft()

    def close(self) -> None:
        self._llm._withdraw(self._collector)
        self._news.clear()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Uninterrupted:
    """Holds Ctrl-C back while a step runs, and lets it through when the step is complete, so that
    an interrupted batch leaves an engine that can go on."""

    def __enter__(self) -> None:
        self._came = False
        in_main = threading.current_thread() is threading.main_thread()
        self._handler = signal.signal(signal.SIGINT, self._note) if in_main else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True

    def __exit__(self, *_: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
        if self._came and callable(self._handler):
            self._handler(signal.SIGINT, None)


class _Progress:
    """A progress bar on stderr, for batches that take longer than a second."""

    def __init__(self, prompts: int) -> None:
        from tqdm import tqdm

        self._bar: tqdm[Any] = tqdm(
            total=prompts, desc="Prompts", unit="prompt", delay=_PROGRESS_DELAY_S
        )
        self._prompt_tokens = 0
        self._generated_tokens = 0

    def __call__(self, collector: Collector, delta: Delta) -> None:
        self._generated_tokens += len(delta.token_ids)
        if not delta.finished:
            return
        self._prompt_tokens += len(collector.request.prompt_token_ids)
        seconds = max(1e-9, self._bar.format_dict["elapsed"])
        self._bar.set_postfix_str(
            f"input {self._prompt_tokens / seconds:.1f} tokens/s, "
            f"output {self._generated_tokens / seconds:.1f} tokens/s",
            refresh=False,
        )
        self._bar.update()

    def close(self) -> None:
        self._bar.close()


def as_list(prompts: Any) -> list[Any]:
    """The prompts of a batch: a text, an object or a list of token ids is a batch of one."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, (bytes, bytearray)):
        raise InvalidRequest(
            "prompts must be text, token ids, a prompt object, or a list of these, got "
            f"{type(prompts).__name__}.",
            "prompt",
        )
    if prompts and all(isinstance(entry, int) for entry in prompts):
        return [prompts]
    return list(prompts)


def _score(output: RequestOutput) -> ScoreOutput:
    tokens = output.prompt_token_ids
    scored = output.prompt_logprobs or []
    logprobs = [
        entry[token].logprob
        for token, entry in zip(tokens[1:], scored[1:], strict=True)
        if entry is not None
    ]
    return ScoreOutput(
        prompt_token_ids=tokens,
        logprobs=logprobs,
        perplexity=math.exp(-math.fsum(logprobs) / len(logprobs)),
        ledger=output.ledger,
    )
