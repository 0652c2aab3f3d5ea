"""What `LLM` does with models that give vectors or scores: embed, encode, classify, score, rank."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from ockham.api.pooling import TextReader, pooling_request, ranked
from ockham.api.prompts import Encoded, Prompt, as_list, naming_prompt
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown
from ockham.core.outputs import (
    EmbeddingRequestOutput,
    PooledRequestOutput,
    RankedDocument,
    ScoringOutput,
)
from ockham.core.pooling import PoolingParams, Task
from ockham.engine.collect import Collector


class PooledMethods(ABC):
    """The methods of `LLM` for such models, over what it reads texts and runs requests with."""

    @abstractmethod
    def _texts(self) -> TextReader: ...

    @abstractmethod
    def _tasks(self) -> Sequence[str]: ...

    @abstractmethod
    def _name(self) -> str: ...

    @abstractmethod
    def _collect(self, collectors: list[Collector], use_tqdm: bool) -> None: ...

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = True,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        input_type: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[EmbeddingRequestOutput]:
        """An embedding of each text (or list of token ids), as `outputs.embedding`. Before each
        stands the instruction `prompt`, or the checkpoint's own of the name `prompt_name`, or that
        for the side of a search which `input_type` names ("query" or "document"), where the
        checkpoint has one. `dimensions` and `normalize` are those of `PoolingParams`. Texts
        that are too long are refused, or cut to `truncate_prompt_tokens` tokens, -1 for as many as
        the model takes. Raises InvalidRequest before any work is done."""
        params = pooling_params_of(pooling_params, "embed", dimensions, normalize)
        outputs = self._pool(
            prompts,
            params,
            use_tqdm,
            prompt_name=prompt_name,
            prompt=prompt,
            input_type=input_type,
            truncate=truncate_prompt_tokens,
        )
        return cast("list[EmbeddingRequestOutput]", outputs)

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = True,
        *,
        pooling_task: Task = "token_embed",
        truncate_prompt_tokens: int | None = None,
    ) -> list[PooledRequestOutput]:
        """What `pooling_task` makes of each text: by default an embedding of each of its tokens, as
        `outputs.data` (tokens, width). Raises InvalidRequest."""
        params = pooling_params_of(pooling_params, pooling_task)
        return self._pool(prompts, params, use_tqdm, truncate=truncate_prompt_tokens)

    def classify(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = True,
        *,
        truncate_prompt_tokens: int | None = None,
    ) -> list[PooledRequestOutput]:
        """The probability of each of the model's classes for each text, as `outputs.probs`, and the
        likeliest, `outputs.label`. Raises InvalidRequest."""
        return self.encode(
            prompts,
            pooling_params_of(pooling_params, "classify"),
            use_tqdm,
            pooling_task="classify",
            truncate_prompt_tokens=truncate_prompt_tokens,
        )

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_n: int | None = None,
        *,
        instruction: str | None = None,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool = True,
    ) -> list[RankedDocument]:
        """The documents by how well they fit a query, the best first, `top_n` of them at most. A
        model that ranks reads query and document together; of one that embeds, the embeddings are
        compared. `instruction` says what fits, to models that read one. Raises InvalidRequest."""
        documents = check_documents(documents)
        check_top_n(top_n)
        outputs = self._score_pairs(
            [query], documents, instruction, truncate_prompt_tokens, use_tqdm
        )
        return ranked(documents, [score_of(each) for each in outputs], top_n)

    # -- inside --------------------------------------------------------------------------------

    def _score_pairs(
        self,
        first: list[str],
        second: list[str],
        instruction: str | None,
        truncate: int | None,
        use_tqdm: bool,
    ) -> list[PooledRequestOutput]:
        """A score for each pair; a single first text stands beside all second ones."""
        plan = self._texts().plan_pairs(self._tasks(), first, second, instruction, truncate)
        return plan.scores(self._run_pooled(plan.reads, plan.params, use_tqdm))

    def _pool(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: PoolingParams,
        use_tqdm: bool,
        **how: Any,
    ) -> list[PooledRequestOutput]:
        reads = self._texts().read_all(as_list(prompts), naming_prompt, **how)
        return self._run_pooled(reads, params, use_tqdm)

    def _run_pooled(
        self, reads: list[Encoded], params: PoolingParams, use_tqdm: bool
    ) -> list[PooledRequestOutput]:
        collectors = [
            Collector(pooling_request(each, params, self._name()), each.text) for each in reads
        ]
        self._collect(collectors, use_tqdm)
        return [each.pooled(self._texts().facts.labels) for each in collectors]


def score_of(output: PooledRequestOutput) -> float:
    assert isinstance(output.outputs, ScoringOutput), "asked for a score"
    return output.outputs.score


def pair_up(first: Any, second: Any) -> tuple[list[str], list[str]]:
    """The texts of pairs: as many first ones as second ones, or a single first one. Raises
    InvalidRequest."""
    sides = []
    for name, texts in (("text_1", first), ("text_2", second)):
        listed = [texts] if isinstance(texts, str) else texts
        if not isinstance(listed, Sequence) or not listed:
            raise InvalidRequest(f"{name} must be a text or a list of texts.", name)
        sides.append(list(listed))
    if len(sides[0]) not in (1, len(sides[1])):
        raise InvalidRequest(
            f"there are {len(sides[0])} first texts and {len(sides[1])} second ones; give a first "
            "text for each second one, or a single one for all.",
            "text_1",
        )
    return sides[0], sides[1]


def check_top_n(top_n: int | None) -> None:
    """Raise InvalidRequest for a number of documents that cannot be."""
    if top_n is not None and (type(top_n) is not int or top_n < 1):
        raise InvalidRequest(f"top_n must be a positive integer, got {shown(top_n)}.", "top_n")


def pooling_params_of(
    params: PoolingParams | None,
    task: Task,
    dimensions: int | None = None,
    normalize: bool | None = None,
) -> PoolingParams:
    """The parameters for a task, with what is given beside them. Raises InvalidRequest for what
    contradicts that."""
    params = PoolingParams() if params is None else params
    if not isinstance(params, PoolingParams):
        raise InvalidRequest(
            f"pooling_params must be PoolingParams, got {shown(params)}.", "pooling_params"
        )
    if params.task not in (None, task):
        raise InvalidRequest(
            f"pooling_params ask for {params.task}, and the method does {task}; leave the task "
            "out of one of them.",
            "pooling_params",
        )
    beside = {"dimensions": dimensions, "normalize": normalize}
    given = {name: value for name, value in beside.items() if value is not None}
    return msgspec.structs.replace(params, task=task, **given)


def check_documents(documents: Sequence[str]) -> list[str]:
    """The documents' texts; `{"text": ...}` is taken too. Raises InvalidRequest."""
    if isinstance(documents, str) or not isinstance(documents, Sequence) or not documents:
        raise InvalidRequest(
            f"documents must be a list of at least one text, got {shown(documents)}.", "documents"
        )
    return [
        each["text"] if isinstance(each, Mapping) and "text" in each else each for each in documents
    ]
