"""What `AsyncLLM` does with models that give vectors or scores: embed, encode, classify, score,
rank."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar, cast

from ockham.api.pooled_llm import check_documents, check_top_n, pooling_params_of, score_of
from ockham.api.pooling import TextReader, pooling_request, ranked
from ockham.api.prompts import Prompt, characters
from ockham.core.outputs import EmbeddingRequestOutput, PooledRequestOutput, RankedDocument
from ockham.core.pooling import PoolingParams, Task
from ockham.engine.client import EngineClient
from ockham.engine.collect import Collector
from ockham.engine.messages import Ready, Request

T = TypeVar("T")


class AsyncPooledMethods(ABC):
    """The methods of `AsyncLLM` for such models, over what it reads texts and runs requests with.
    `tenant` and `priority` are those of `generate`."""

    client: EngineClient

    @abstractmethod
    async def start(self) -> Ready: ...

    @abstractmethod
    async def in_thread(self, size: int, work: Callable[[], T]) -> T: ...

    @property
    @abstractmethod
    def texts(self) -> TextReader:
        """What reads texts for the model. Raises `RuntimeError` before the first start."""
        ...

    @abstractmethod
    def _name(self) -> str: ...

    async def embed(
        self,
        prompt: Prompt,
        pooling_params: PoolingParams | None = None,
        request_id: str | None = None,
        *,
        prompt_name: str | None = None,
        instruction: str | None = None,
        input_type: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate_prompt_tokens: int | None = None,
        tenant: str = "",
        priority: int = 0,
    ) -> EmbeddingRequestOutput:
        """The embedding of a text: see `LLM.embed`, whose `prompt` is `instruction` here."""
        output = await self.encode(
            prompt,
            pooling_params_of(pooling_params, "embed", dimensions, normalize),
            request_id,
            pooling_task="embed",
            prompt_name=prompt_name,
            instruction=instruction,
            input_type=input_type,
            truncate_prompt_tokens=truncate_prompt_tokens,
            tenant=tenant,
            priority=priority,
        )
        return cast("EmbeddingRequestOutput", output)

    async def encode(
        self,
        prompt: Prompt,
        pooling_params: PoolingParams | None = None,
        request_id: str | None = None,
        *,
        pooling_task: Task = "token_embed",
        prompt_name: str | None = None,
        instruction: str | None = None,
        input_type: str | None = None,
        truncate_prompt_tokens: int | None = None,
        tenant: str = "",
        priority: int = 0,
    ) -> PooledRequestOutput:
        """What `pooling_task` makes of a text: see `LLM.encode`."""
        params = pooling_params_of(pooling_params, pooling_task)
        await self.start()
        read = await self.in_thread(
            characters(prompt),
            lambda: self.texts.read(
                prompt,
                prompt_name=prompt_name,
                prompt=instruction,
                input_type=input_type,
                truncate=truncate_prompt_tokens,
            ),
        )
        name = request_id or self._name()
        request = pooling_request(read, params, name, tenant=tenant, priority=priority)
        return await self.pool(request, read.text)

    async def classify(
        self,
        prompt: Prompt,
        pooling_params: PoolingParams | None = None,
        request_id: str | None = None,
        *,
        truncate_prompt_tokens: int | None = None,
        tenant: str = "",
        priority: int = 0,
    ) -> PooledRequestOutput:
        """The probabilities of a text's classes: see `LLM.classify`."""
        return await self.encode(
            prompt,
            pooling_params,
            request_id,
            pooling_task="classify",
            truncate_prompt_tokens=truncate_prompt_tokens,
            tenant=tenant,
            priority=priority,
        )

    async def score(
        self,
        first: Sequence[str],
        second: Sequence[str],
        *,
        instruction: str | None = None,
        truncate_prompt_tokens: int | None = None,
        tenant: str = "",
        priority: int = 0,
    ) -> list[PooledRequestOutput]:
        """How well the texts of each pair fit together, a single first text with every second one:
        see `LLM.score`."""
        ready = await self.start()
        size = sum(map(len, second)) + len(second) * sum(map(len, first))
        plan = await self.in_thread(
            size,
            lambda: self.texts.plan_pairs(
                ready.tasks, first, second, instruction, truncate_prompt_tokens
            ),
        )
        requests = [
            pooling_request(each, plan.params, self._name(), tenant=tenant, priority=priority)
            for each in plan.reads
        ]
        outputs = await gathered(
            self.pool(request, read.text)
            for request, read in zip(requests, plan.reads, strict=True)
        )
        return plan.scores(outputs)

    async def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_n: int | None = None,
        *,
        instruction: str | None = None,
        truncate_prompt_tokens: int | None = None,
        tenant: str = "",
        priority: int = 0,
    ) -> list[RankedDocument]:
        """The documents by how well they fit a query, the best first: see `LLM.rank`."""
        listed = check_documents(documents)
        check_top_n(top_n)
        outputs = await self.score(
            [query],
            listed,
            instruction=instruction,
            truncate_prompt_tokens=truncate_prompt_tokens,
            tenant=tenant,
            priority=priority,
        )
        return ranked(listed, [score_of(each) for each in outputs], top_n)

    async def pool(self, request: Request, prompt: str | None = None) -> PooledRequestOutput:
        """What is made of the text of a request that is made. Raises as `generate` does."""
        stream = self.client.submit(request)
        try:
            collector = Collector(request, prompt)
            while not collector.finished:
                for delta in await stream.read():
                    collector.add(delta)
            return collector.pooled(self.texts.facts.labels)
        finally:
            self.client.abort(request.request_id)


async def gathered(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of coroutines that run beside each other. If one fails, the others are given up,
    and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [task.result() for task in tasks]
