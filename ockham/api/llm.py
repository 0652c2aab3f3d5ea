"""`LLM`: a model in the caller's own process, with vLLM's methods and names.

Prompts become requests here and deltas become outputs; what happens between is the engine's.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, overload

from ockham.api.adapters import LoRARequest, asks_of, asks_of_each
from ockham.api.driver import Driver, Stream
from ockham.api.pooled_llm import PooledMethods, pair_up
from ockham.api.pooling import TextReader
from ockham.api.progress import Progress
from ockham.api.prompts import (
    Encoded,
    Prompt,
    PromptReader,
    as_list,
    named,
    reuse_params,
    template_messages,
)
from ockham.api.settings import check_call, engine_config
from ockham.core.asks import Ask
from ockham.core.config import EngineConfig
from ockham.core.errors import InvalidRequest
from ockham.core.guarded import GuardStats
from ockham.core.numbers import shown
from ockham.core.outputs import PooledRequestOutput, RequestOutput, ScoreOutput
from ockham.core.sampling_params import SamplingParams
from ockham.engine.collect import Collector
from ockham.engine.engine import Engine
from ockham.engine.messages import Pin, Request, Unpin
from ockham.model.checkpoint.generation_config import chat_defaults
from ockham.text.marking import ReuseParams
from ockham.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ockham.api.decisions import Choice, DecisionOutput, Score, YesNo

log = logging.getLogger("ockham.engine")

Message = Mapping[str, Any]


class LLM(PooledMethods):
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
        self._prompts = PromptReader(
            self.engine.tokenizer,
            self.engine.max_model_len,
            self.engine.context_limit,
            keeps_messages=bool(config.rewards),
        )
        self._defaults = self.engine.model.sampling_defaults
        self._reader = TextReader(self._prompts, self.engine.pooled_facts)
        self._numbers = itertools.count(1)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        reuse: ReuseParams | str | None = None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        **neutral: Any,
    ) -> list[RequestOutput]:
        """Complete prompts: one, or a list, as texts or token ids. Outputs come in their order.

        One `SamplingParams` holds for all prompts, a list gives each its own, None takes the
        checkpoint's defaults. `reuse` says what may be reused approximately, as
        ReuseParams or by name alone: nothing by default. `lora_request` names an adapter for all
        prompts, or one or None for each, where the LLM was made with `enable_lora`. vLLM's other
        arguments are taken at values that ask for nothing (`priority=None`). Raises
        InvalidRequest, before any work is done, if anything about any prompt is wrong; the message
        names its index.
        """
        check_call(neutral)
        self._check_generates()
        listed = as_list(prompts)
        params = self._params_for(len(listed), sampling_params)
        reuse = reuse_params(reuse)
        encoded = [named(i, self._prompts.read, prompt, reuse) for i, prompt in enumerate(listed)]
        return self._run(encoded, params, use_tqdm, adapters=lora_request)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        reasoning_effort: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        reuse: ReuseParams | str | None = None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        **neutral: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation, or each of a list of them, through the chat template.

        Each output's `reply` has the thoughts, the content and the calls of tools that its text
        holds. `tools`, `tool_choice` ("auto", "none", "required" or one tool) and
        `parallel_tool_calls` are OpenAI's; `reasoning_effort` ("none" to "high") goes to the
        template. Without `sampling_params` those of `get_default_chat_sampling_params` apply.
        `chat_template_kwargs` are passed on to the template; `reuse` and vLLM's other arguments are
        as in `generate`, which raises as this does.
        """
        from ockham.api.chatting import plan_chat, read_tools, thinking_variables

        check_call(neutral)
        self._check_generates()
        several = isinstance(messages, Sequence) and any(
            isinstance(message, Sequence) and not isinstance(message, (str, bytes))
            for message in messages
        )
        conversations: Sequence[Any] = messages if several else [messages]
        if sampling_params is None:
            sampling_params = self.get_default_chat_sampling_params()
        params = self._params_for(len(conversations), sampling_params)
        reuse = reuse_params(reuse)
        tokenizer = self.get_tokenizer()
        variables = thinking_variables(chat_template_kwargs, reasoning_effort)
        choice = read_tools(tools, tool_choice, parallel_tool_calls)
        whole = self.config.enable_in_reasoning
        plan = plan_chat(tokenizer, choice, chat_template, whole=whole)

        def encode(conversation: Sequence[Message]) -> Encoded:
            text = tokenizer.apply_chat_template(
                plan.messages(template_messages(conversation)),
                tools=plan.template_tools,
                add_generation_prompt=add_generation_prompt,
                chat_template=chat_template,
                **variables,
            )
            return self._prompts.read_chat(
                text, conversation, reuse, tools=bool(plan.choice.offered)
            )

        encoded = [named(i, encode, talk) for i, talk in enumerate(conversations)]
        asked = [
            plan.params(each, read.text or "") for each, read in zip(params, encoded, strict=True)
        ]
        outputs = self._run(encoded, asked, use_tqdm, adapters=lora_request)
        for output, each in zip(outputs, params, strict=True):
            for answer in output.outputs:
                answer.reply = plan.reply(
                    answer.text, answer.finish_reason, each, output.prompt or ""
                )
        return outputs

    @overload
    def score(
        self, prompts: Prompt | Sequence[Prompt], *, use_tqdm: bool = True
    ) -> list[ScoreOutput]: ...

    @overload
    def score(
        self,
        prompts: str | Sequence[str],
        documents: str | Sequence[str],
        *,
        use_tqdm: bool = True,
        instruction: str | None = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[PooledRequestOutput]: ...

    def score(
        self,
        prompts: Any,
        documents: str | Sequence[str] | None = None,
        *,
        use_tqdm: bool = True,
        instruction: str | None = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[ScoreOutput] | list[PooledRequestOutput]:
        """The log probability of each token of the prompts, given those before it, under the
        unprocessed logits. Nothing is generated. Raises InvalidRequest for a prompt of fewer than
        two tokens, of which nothing can be scored.

        With `documents`, as in vLLM: how well the texts of each pair fit together, as
        `outputs.score`; a single prompt is paired with every document. Those are models that rank
        or embed, see `rank`."""
        if documents is not None:
            pairs = pair_up(prompts, documents)
            return self._score_pairs(*pairs, instruction, truncate_prompt_tokens, use_tqdm)
        encoded = [named(i, self._prompts.read, p) for i, p in enumerate(as_list(prompts))]
        for index, prompt in enumerate(encoded):
            length = len(prompt.token_ids)
            if length < 2:
                raise InvalidRequest(
                    f"prompt {index}: it has {length} token(s), but only tokens after the first "
                    "can be scored; give at least two.",
                    "prompt",
                )
        params = SamplingParams(max_tokens=0, prompt_logprobs=0, temperature=0.0)
        outputs = self._run(encoded, [params] * len(encoded), use_tqdm, detokenize=False)
        return [_score(output) for output in outputs]

    def decide(
        self,
        state: Any,
        questions: Mapping[str, Choice | Score | YesNo],
        *,
        instructions: str | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        lora_request: LoRARequest | None = None,
    ) -> DecisionOutput:
        """Answer named questions about a state (a text, or JSON), with a probability for each
        option. The state is computed once, and each question costs its own tokens and no
        generation. `instructions` hold for all questions. Thinking is off. Raises InvalidRequest
        before any work is done."""
        from ockham.api import decisions
        from ockham.api.chatting import plan_chat, read_tools

        asked = decisions.read_questions(questions)
        frame = decisions.Frame(decisions.state_messages(state, instructions))
        tokenizer = self.get_tokenizer()
        text = tokenizer.apply_chat_template(
            frame.messages,
            add_generation_prompt=True,
            chat_template=chat_template,
            **decisions.variables(chat_template_kwargs),
        )
        plan = plan_chat(tokenizer, read_tools(None), chat_template)
        reads = frame.decider(tokenizer, plan, text, list(asked.values()))
        prompts = [self._prompts.read_chat(each.text, ()) for each in reads.reads]
        params = [each.params for each in reads.reads]
        outputs = self._run(prompts, params, False, detokenize=False, adapters=lora_request)
        answers = decisions.decision(asked, reads.readings(outputs))
        return decisions.DecisionOutput(answers, decisions.bill(outputs))

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        reuse: ReuseParams | str | None = None,
        lora_request: LoRARequest | None = None,
    ) -> Stream:
        """Complete one prompt, yielding what each step adds. Closing the stream frees its work.
        `reuse` and `lora_request` are as in `generate`."""
        self._driver.check_usable()
        params = self._params_for(1, sampling_params)[0]
        read = self._prompts.read(prompt, reuse)
        asks = asks_of(self.config.adapter, lora_request)
        return Stream(self._driver, self._request(read, params, asks), read.text)

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
        many tokens it has. At most half of the pool may be pinned. A prompt object with a
        `cache_salt` is pinned for the requests of that salt. Raises InvalidRequest."""
        read = self._prompts.read(prompt)
        params = SamplingParams(max_tokens=1, temperature=0.0)
        self._run([read], [params], use_tqdm=False, detokenize=False)
        self._driver.pin(Pin(name, read.token_ids, read.cache_salt or ""))
        return len(read.token_ids)

    def sleep(self, most_s: float = math.inf) -> int:
        """Do what there is to do while nobody asks for anything, for so many seconds, or until
        another thread asks: with a file of pins (`pins="FILE"`), compute what was pinned before a
        restart anew; with a `guard`, score texts again. How many pins and texts are left."""
        return self._driver.sleep(most_s)

    def guard(self) -> GuardStats | None:
        """What the quality guard has found so far, of the texts that `sleep` has scored; None
        without a `guard`."""
        return self._driver.guard()

    def unpin(self, name: str, cache_salt: str = "") -> None:
        """Let a prefix that was pinned under `cache_salt` go again. Raises InvalidRequest if there
        is no such pin."""
        self._driver.unpin(Unpin(name, cache_salt))

    def pins(self, cache_salt: str = "") -> dict[str, int]:
        """The prefixes pinned under `cache_salt` by name, and how many tokens each has."""
        return self.engine.cache.pins(cache_salt)

    def read(self, prompt: Prompt, *, add_special_tokens: bool = True) -> Encoded:
        """A prompt's token ids. Raises InvalidRequest."""
        return self._prompts.read(prompt, add_special_tokens=add_special_tokens)

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises InvalidRequest where none was loaded."""
        return self._prompts.tokenizer

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
        prompt: Encoded,
        params: SamplingParams,
        asks: Mapping[str, Ask],
        detokenize: bool = True,
    ) -> Request:
        return prompt.request(self._name(), params, detokenize=detokenize, asks=asks)

    # -- running -------------------------------------------------------------------------------

    def _check_generates(self) -> None:
        """Raise InvalidRequest for a model that does not, before its lack of a chat template or of
        something else is found fault with."""
        if self.engine.pooler is not None:
            raise InvalidRequest(
                f"this model does {' and '.join(self.engine.tasks)}, and generates no text; ask "
                "for one of those, or load a model that generates.",
                "model",
            )

    def _texts(self) -> TextReader:
        return self._reader

    def _tasks(self) -> Sequence[str]:
        return self.engine.tasks

    def _name(self) -> str:
        return f"request-{next(self._numbers)}"

    def _collect(self, collectors: list[Collector], use_tqdm: bool) -> None:
        self._driver.check_usable()
        bar = Progress(len(collectors)) if use_tqdm and len(collectors) > 1 else None
        try:
            self._driver.run(collectors, bar)
        finally:
            if bar is not None:
                bar.close()

    def _run(
        self,
        prompts: Sequence[Encoded],
        params: list[SamplingParams],
        use_tqdm: bool,
        detokenize: bool = True,
        adapters: LoRARequest | Sequence[LoRARequest | None] | None = None,
    ) -> list[RequestOutput]:
        asks = asks_of_each(self.config.adapter, adapters, len(prompts))
        collectors = [
            Collector(self._request(prompt, params[i], asks[i], detokenize), prompt.text)
            for i, prompt in enumerate(prompts)
        ]
        self._collect(collectors, use_tqdm)
        return [collector.output() for collector in collectors]


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
