"""`LLM`: a model in the caller's own process, with vLLM's methods and names.

Prompts become requests here and deltas become outputs; what happens between is the engine's.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from ockham.api.driver import Driver, Stream
from ockham.api.progress import Progress
from ockham.api.prompts import Prompt, as_list, named
from ockham.api.settings import check_call, engine_config
from ockham.core.approximation import Approximation
from ockham.core.config import EngineConfig
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown, token_ids
from ockham.core.outputs import RequestOutput, ScoreOutput
from ockham.core.sampling_params import SamplingParams
from ockham.engine.collect import Collector
from ockham.engine.engine import Engine
from ockham.engine.messages import HINTS, Pin, Request, Unpin
from ockham.model.checkpoint.generation_config import chat_defaults
from ockham.text.marking import ReuseParams
from ockham.text.tokenizer import Tokenizer

log = logging.getLogger("ockham.engine")

Encoded = tuple[str | None, list[int], Approximation | None]
"""A prompt's text, if it came as one, its token ids, and what may be reused approximately."""
Message = Mapping[str, Any]

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
        self._driver = Driver(self.engine)
        self._defaults = self.engine.model.sampling_defaults
        self._numbers = itertools.count(1)

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
        encoded = [named(i, self._encode, prompt, reuse) for i, prompt in enumerate(listed)]
        caching = [named(i, _caching, prompt) for i, prompt in enumerate(listed)]
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

        encoded = [named(i, encode, talk) for i, talk in enumerate(conversations)]
        return self._run(encoded, params, use_tqdm)

    def score(
        self, prompts: Prompt | Sequence[Prompt], *, use_tqdm: bool = True
    ) -> list[ScoreOutput]:
        """The log probability of each token of the prompts, given those before it, under the
        unprocessed logits. Nothing is generated. (vLLM's method of this name compares pairs of
        texts.) Raises InvalidRequest for a prompt of fewer than two tokens, of which nothing can
        be scored."""
        encoded = [named(i, self._encode, p) for i, p in enumerate(as_list(prompts))]
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
        self._driver.check_usable()
        params = self._params_for(1, sampling_params)[0]
        text, tokens, _ = self._encode(prompt)
        return Stream(self._driver, self._request(tokens, params, caching=_caching(prompt)), text)

    def close(self) -> None:
        """Give up what still runs, finish writing what goes to the disk, and let others have its
        directory. Done by itself when the object is no more. Afterwards every use of it raises
        OckhamError; closing it again does nothing."""
        self._driver.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an LLM cannot be copied or sent to another process: it holds its model's memory. Make "
            "one in each process, with the same settings."
        )

    def pin(self, prompt: Prompt, name: str) -> int:
        """Compute a prefix, such as a system prompt, and keep its state until `unpin(name)`; how
        many tokens it has. At most half of the pool may be pinned. Raises InvalidRequest."""
        _, tokens, _ = self._encode(prompt)
        params = SamplingParams(max_tokens=1, temperature=0.0)
        self._run([(None, tokens, None)], [params], use_tqdm=False, detokenize=False)
        self._driver.pin(Pin(name, tokens))
        return len(tokens)

    def unpin(self, name: str) -> None:
        """Let a pinned prefix go again. Raises InvalidRequest if there is no such pin."""
        self._driver.unpin(Unpin(name))

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

    # -- running -------------------------------------------------------------------------------

    def _run(
        self,
        prompts: Sequence[Encoded],
        params: list[SamplingParams],
        use_tqdm: bool,
        detokenize: bool = True,
        caching: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[RequestOutput]:
        self._driver.check_usable()
        settings = caching or [_NO_CACHING] * len(prompts)
        collectors = [
            Collector(self._request(tokens, params[i], detokenize, asked, settings[i]), text)
            for i, (text, tokens, asked) in enumerate(prompts)
        ]
        bar = Progress(len(collectors)) if use_tqdm and len(collectors) > 1 else None
        try:
            self._driver.run(collectors, bar)
        finally:
            if bar is not None:
                bar.close()
        return [collector.output() for collector in collectors]


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
