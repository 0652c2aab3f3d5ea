"""The asynchronous engine: `async for output in AsyncLLM("lab").generate(prompt, params)`.

The model runs in a process of its own (`ockham.engine.process`); here prompts become token ids and
what comes back becomes outputs. A generator that is closed, or whose task is cancelled, frees its
work in the engine.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ockham.api.adapters import LoRARequest, asks_of
from ockham.api.async_pooled import AsyncPooledMethods
from ockham.api.chatting import ChatPlan, ToolChoice, plan_chat, read_tools, thinking_variables
from ockham.api.pooling import TextReader
from ockham.api.prompts import Encoded, Prompt, PromptReader, characters, template_messages
from ockham.api.settings import engine_config
from ockham.api.threads import Threads
from ockham.core.config import EngineConfig
from ockham.core.guarded import GuardStats
from ockham.core.ledger import Ledger
from ockham.core.outputs import CompletionOutput, RequestOutput
from ockham.core.sampling_params import SamplingParams
from ockham.engine.client import EngineClient
from ockham.engine.collect import Collector
from ockham.engine.messages import (
    AdapterQuery,
    CacheHint,
    Delta,
    EndThought,
    GuardQuery,
    Ready,
    Request,
)
from ockham.engine.stream import Observer
from ockham.model.checkpoint.generation_config import chat_defaults
from ockham.model.hub import resolve
from ockham.text.marking import ReuseParams
from ockham.text.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from ockham.api.decisions import Choice, DecisionOutput, Score, YesNo

T = TypeVar("T")

Kind = Literal["cumulative", "delta", "final"]


class AsyncLLM(AsyncPooledMethods):
    """A model in an engine process of its own, with streaming and cancellation.

    Takes the settings of `LLM` (see `EngineConfig`). Use it as an async context manager, or call
    `start` (the first request does it too) and `shutdown`.
    """

    def __init__(
        self,
        model: str = "lab",
        *,
        stall_s: float = 30.0,
        observer: Observer | None = None,
        **settings: Any,
    ) -> None:
        """`stall_s`: an engine that completes no step for so long while requests wait counts as
        stuck (`client.trouble()`). Raises `ConfigError` for a setting that cannot be."""
        self._prepare(engine_config(model, settings), stall_s, observer)

    @classmethod
    def from_config(
        cls,
        config: EngineConfig,
        *,
        stall_s: float = 30.0,
        observer: Observer | None = None,
        restarts: bool = True,
    ) -> AsyncLLM:
        """An `AsyncLLM` with settings that were put together before. `restarts`: an engine that
        dies is followed by another one."""
        llm = cls.__new__(cls)
        llm._prepare(config, stall_s, observer, restarts)
        return llm

    def _prepare(
        self,
        config: EngineConfig,
        stall_s: float,
        observer: Observer | None,
        restarts: bool = True,
    ) -> None:
        self.config = config
        self.client = EngineClient(config, stall_s=stall_s, observer=observer, restarts=restarts)
        self.tokenizer: Tokenizer | None = None
        self._prompts: PromptReader | None = None
        self._starting: asyncio.Task[Ready] | None = None
        self._threads = Threads()
        self._numbers = itertools.count()

    async def start(self) -> Ready:
        """Start the engine and wait until the model is loaded. Raises `ModelError`."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> Ready:
        ready = await self.client.start()
        await asyncio.to_thread(self._load_tokenizer)
        return ready

    def _load_tokenizer(self) -> None:
        """The files are there: the engine has read the same checkpoint, or fetched it."""
        directory = resolve(self.config.model, self.config.revision)
        self.tokenizer = load_tokenizer(self.config, directory)
        self._prompts = PromptReader(
            self.tokenizer,
            self.ready.max_model_len,
            self.ready.context_limit,
            keeps_messages=bool(self.config.rewards),
        )

    async def guard(self) -> GuardStats | None:
        """What the quality guard has found so far; None without a `guard`. Raises `EngineDead`."""
        await self.start()
        return await self.client.guard(GuardQuery(ask_id=uuid.uuid4().hex))

    async def shutdown(self) -> None:
        """Stop the engine. Requests that still run fail with `EngineDead`."""
        if self._starting is not None:
            self._starting.cancel()
        await self.client.close()
        if self.tokenizer is not None:
            self.tokenizer.close()
        self._threads.shutdown()

    async def close(self) -> None:
        """The same as `shutdown`, by the name that `LLM` has for it."""
        await self.shutdown()

    async def __aenter__(self) -> AsyncLLM:
        try:
            await self.start()
        except BaseException:
            await self.shutdown()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.shutdown()

    @property
    def ready(self) -> Ready:
        """What the engine said of itself. Raises `RuntimeError` before the first start."""
        if self.client.ready is None:
            raise RuntimeError("The engine has not been started; await start() first.")
        return self.client.ready

    @property
    def prompts(self) -> PromptReader:
        """What reads prompts for this model. Raises `RuntimeError` before the first start."""
        if self._prompts is None:
            raise RuntimeError("The engine has not been started; await start() first.")
        return self._prompts

    @property
    def texts(self) -> TextReader:
        """What reads texts for a model that gives vectors or scores. Raises `RuntimeError` before
        the first start."""
        return TextReader(self.prompts, self.ready.pooled)

    def _name(self) -> str:
        return f"request-{next(self._numbers)}"

    @property
    def default_parameters(self) -> dict[str, Any]:
        """The sampling defaults of the checkpoint's generation_config.json, as parameters of
        `SamplingParams`."""
        return dict(self.ready.sampling_defaults)

    @property
    def default_chat_parameters(self) -> dict[str, Any]:
        """The same for chats, which have defaults of ours where the checkpoint has none."""
        return chat_defaults(self.ready.sampling_defaults, self.config.generation_config)

    def get_default_sampling_params(self) -> SamplingParams:
        """`SamplingParams` with the checkpoint's own defaults."""
        return SamplingParams(**self.default_parameters)

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        kind: Kind = "cumulative",
        cache_salt: str = "",
        tenant: str = "",
        priority: int = 0,
        asks: Mapping[str, Any] | None = None,
        cache_hint: CacheHint | None = None,
        reuse: ReuseParams | str | None = None,
        lora_request: LoRARequest | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Complete a prompt, yielding outputs as they come.

        `kind`: each output holds everything so far ("cumulative"), only what is new since the last
        one ("delta": `outputs` lists the choices that have news), or there is one at the end
        ("final"). Requests share state only with those of the same `cache_salt`, and approximately
        only where `reuse` says so; `asks` is what is asked of further techniques, by key (see
        `ockham.core.asks`; an approximate reuse with chunks of token ids, too). `cache_hint`
        predicts whether this one's will be used again. `lora_request` names an adapter, where the
        engine was made with `enable_lora`. Tenants (`tenant`, else `cache_salt`) take
        turns; of one tenant's requests those of a lower `priority` begin first. Without
        `sampling_params` the checkpoint's defaults apply. Raises `InvalidRequest`, `EngineDead`, or
        what else the engine refuses the request with.
        """
        await self.start()
        params = sampling_params or self.get_default_sampling_params()
        read = await self.read(prompt, reuse)
        request = read.request(
            request_id or self._name(),
            params,
            cache_salt=cache_salt,
            cache_hint=cache_hint,
            asks={**(asks or {}), **asks_of(self.config.adapter, lora_request)},
            tenant=tenant,
            priority=priority,
        )
        async with aclosing(self.run(request, read.text, kind=kind)) as outputs:
            async for output in outputs:
                yield output

    async def run(
        self, request: Request, prompt: str | None = None, *, kind: Kind = "cumulative"
    ) -> AsyncGenerator[RequestOutput, None]:
        """Run a request that is made; outputs and errors are those of `generate`. `prompt` is the
        text that the request's token ids came from, if there was one."""
        stream = self.client.submit(request)
        try:
            collector = Collector(request, prompt)
            finished = False
            while not finished:
                deltas = await stream.read()
                finished = any(delta.finished for delta in deltas)
                if kind == "delta":
                    yield _only(request, prompt, deltas)
                    continue
                for delta in deltas:
                    collector.add(delta)
                if kind == "cumulative" or finished:
                    yield collector.output()
        finally:
            self.client.abort(request.request_id)

    async def check_adapter(self, asks: Mapping[str, Any]) -> None:
        """Raises `InvalidRequest` for an adapter that cannot be served; no weights are read."""
        await self.client.check_adapter(AdapterQuery(ask_id=uuid.uuid4().hex, asks=dict(asks)))

    async def end_thought(self, request_id: str) -> None:
        """Let the thoughts of a running request end with the next step, so that its answer begins;
        `thinking_closing_text` is what ends them. Raises `InvalidRequest` if the request is over or
        does not think now."""
        await self.client.end_thought(EndThought(ask_id=uuid.uuid4().hex, request_id=request_id))

    async def abort(self, request_id: str) -> None:
        """Give up a request: its generator ends with `finish_reason` "abort". Unknown ids are
        ignored."""
        self.client.cancel(request_id)

    async def read(
        self,
        prompt: Prompt,
        reuse: ReuseParams | str | None = None,
        *,
        add_special_tokens: bool = True,
    ) -> Encoded:
        """A prompt's token ids. Raises `InvalidRequest`, also for a text that is so long that no
        tokenization could make it fit."""
        return await self.in_thread(
            characters(prompt),
            lambda: self.prompts.read(prompt, reuse, add_special_tokens=add_special_tokens),
        )

    async def render_chat(
        self,
        messages: Callable[[], list[dict[str, Any]]],
        size: int,
        *,
        plan: ChatPlan | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        owner: str = "",
    ) -> str:
        """The prompt that the chat template makes of what `messages` gives, which came in about so
        many bytes, and of the tools of a `plan`. It is made in another process, while the event
        loop goes on. Raises `InvalidRequest`, also if the template is broken or exceeds a limit."""
        tokenizer = self.prompts.tokenizer
        tools = None if plan is None else plan.template_tools
        template = tokenizer.chat_template(with_tools=bool(tools))
        asked = await self.in_thread(
            size,
            lambda: tokenizer.renderer.submit(
                template,
                messages() if plan is None else plan.messages(messages()),
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                variables=variables,
                owner=owner,
            ),
        )
        return await tokenizer.renderer.wait(template, asked)

    async def plan_chat(self, choice: ToolChoice) -> ChatPlan:
        """How a chat with these tools is served. Raises `InvalidRequest`."""
        tokenizer = self.prompts.tokenizer
        plan = partial(plan_chat, whole=self.config.enable_in_reasoning)
        if not choice.offered:
            return plan(tokenizer, choice)
        return await asyncio.to_thread(plan, tokenizer, choice)

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        reasoning_effort: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        cache_salt: str = "",
        lora_request: LoRARequest | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Answer a conversation, yielding everything so far as it comes, as `generate` does. The
        last output's `reply` has the thoughts, the content and the calls of tools. Arguments are
        those of `LLM.chat`."""
        await self.start()
        params = sampling_params or SamplingParams(**self.default_chat_parameters)
        plan = await self.plan_chat(read_tools(tools, tool_choice, parallel_tool_calls))
        text = await self.render_chat(
            lambda: template_messages(messages),
            len(messages),
            plan=plan,
            variables=thinking_variables(chat_template_kwargs, reasoning_effort),
        )
        tools_offered = bool(plan.choice.offered)
        prompt = await self.in_thread(
            len(text), lambda: self.prompts.read_chat(text, messages, tools=tools_offered)
        )
        name = request_id or self._name()
        asks = asks_of(self.config.adapter, lora_request)
        request = prompt.request(name, plan.params(params, text), cache_salt=cache_salt, asks=asks)
        async with aclosing(self.run(request, text)) as outputs:
            async for output in outputs:
                if output.finished:
                    for answer in output.outputs:
                        answer.reply = plan.reply(answer.text, answer.finish_reason, params, text)
                yield output

    async def decide(
        self,
        state: Any,
        questions: Mapping[str, Choice | Score | YesNo],
        *,
        instructions: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        cache_salt: str = "",
        lora_request: LoRARequest | None = None,
    ) -> DecisionOutput:
        """Answer named questions about a state: see `LLM.decide`."""
        from ockham.api import decisions

        await self.start()
        asked = decisions.read_questions(questions)
        frame = decisions.Frame(decisions.state_messages(state, instructions))
        size = sum(len(message["content"]) for message in frame.messages)
        plan = await self.plan_chat(read_tools(None))
        variables = decisions.variables(chat_template_kwargs)
        text = await self.render_chat(lambda: frame.messages, size, plan=plan, variables=variables)
        asks, name = asks_of(self.config.adapter, lora_request), next(self._numbers)

        def read() -> tuple[decisions.Decider, list[Request]]:
            found = frame.decider(self.prompts.tokenizer, plan, text, list(asked.values()))
            requests = [
                self.prompts.read_chat(each.text, ()).request(
                    f"request-{name}.{index}", each.params, cache_salt=cache_salt, asks=asks
                )
                for index, each in enumerate(found.reads)
            ]
            return found, requests

        reads, requests = await self.in_thread(size * len(asked), read)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._final(request)) for request in requests]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        outputs = [task.result() for task in tasks]
        answers = decisions.decision(asked, reads.readings(outputs))
        return decisions.DecisionOutput(answers, decisions.bill(outputs))

    async def _final(self, request: Request) -> RequestOutput:
        async with aclosing(self.run(request, kind="final")) as outputs:
            return await anext(outputs)

    async def check_chat_template(self) -> tuple[str | None, tuple[str, ...]]:
        """Why the chat template is of no use, if it is, and what it leaves out: see `Tokenizer`."""
        if self.tokenizer is None:
            return None, ()
        return await asyncio.to_thread(self.tokenizer.check_chat_template)

    async def recovered(self) -> None:
        """Wait until the engine takes requests again, after it died."""
        while self.client.trouble() is not None:
            await asyncio.sleep(0.1)

    async def in_thread(self, size: int, work: Callable[[], T]) -> T:
        """Do work on so many characters, bytes or entries: here if they are few, else in a
        thread."""
        return await self._threads.in_thread(size, work)


def _only(request: Request, text: str | None, deltas: list[Delta]) -> RequestOutput:
    """An output that holds what the deltas say, and nothing from before."""
    output = RequestOutput(
        request_id=request.request_id,
        prompt=text,
        prompt_token_ids=request.prompt_token_ids,
        outputs=[],
        finished=any(delta.finished for delta in deltas),
    )
    for delta in deltas:
        output.progress = delta.progress or output.progress
        if delta.progress is not None and not (delta.token_ids or delta.finish_reason):
            continue
        output.outputs.append(
            CompletionOutput(
                index=delta.index,
                text=delta.text,
                token_ids=delta.token_ids,
                logprobs=delta.logprobs,
                finish_reason=delta.finish_reason,
                stop_reason=delta.stop_reason,
                drafted=delta.marks,
                report=delta.report,
            )
        )
        output.prompt_logprobs = output.prompt_logprobs or delta.prompt_logprobs
        output.ledger = delta.ledger or Ledger()
        output.num_cached_tokens = output.ledger.prompt_tokens_reused
    return output
