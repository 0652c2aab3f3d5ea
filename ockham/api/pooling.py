"""Texts and pairs of texts for models that give vectors or scores: from what a caller says to the
requests of an engine.

`LLM`, `AsyncLLM` and the server read them here, by the same rules and with the same errors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from ockham.api.prompts import CHARACTERS_PER_TOKEN, Encoded, Prompt, PromptReader
from ockham.core.arrays import Floats
from ockham.core.errors import TOO_LONG, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.outputs import (
    EmbeddingOutput,
    PooledRequestOutput,
    RankedDocument,
    ScoringOutput,
)
from ockham.core.pooling import PoolingParams, Task
from ockham.engine.messages import PooledFacts, Request
from ockham.engine.texts import GREEDY


@dataclass(frozen=True, slots=True)
class Compared:
    """Embeddings are compared: the first `queries` are of first texts."""

    queries: int
    similarity: str


@dataclass(frozen=True, slots=True)
class PairPlan:
    """What is run to score pairs, and how scores are made of it."""

    params: PoolingParams
    reads: list[Encoded]
    compared: Compared | None

    def scores(self, outputs: list[PooledRequestOutput]) -> list[PooledRequestOutput]:
        """One output for each pair, of those of `reads`. What the first texts cost is on the first
        pair's bill."""
        if self.compared is None:
            return outputs
        queries = outputs[: self.compared.queries]
        pairs = []
        for number, each in enumerate(outputs[self.compared.queries :]):
            query = embedding_of(queries[number % len(queries)])
            score = likeness(query, embedding_of(each), self.compared.similarity)
            told = msgspec.structs.asdict(each) | {"outputs": ScoringOutput(score)}
            pairs.append(PooledRequestOutput(**told))
        for each in queries:
            pairs[0].ledger.add(each.ledger)
        return pairs


CUTTING = "truncate_prompt_tokens=-1"
"""What has a text cut that is too long."""

QUERY, DOCUMENT = "query", "document"
"""The names that checkpoints give the instructions before queries and before documents."""


TOGETHER = 256
"""Texts of a list that are tokenized in one go."""


@dataclass(frozen=True, slots=True)
class _How:
    """How texts are read: see `TextReader.read`. `before` is the instruction's text."""

    most: int | None
    before: str
    add_special_tokens: bool
    cutting: str


@dataclass(frozen=True, slots=True)
class TextReader:
    """Reads texts for one model. Safe to use from threads. Raises InvalidRequest."""

    prompts: PromptReader
    facts: PooledFacts

    def read(
        self,
        text: Prompt,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        input_type: str | None = None,
        truncate: int | None = None,
        add_special_tokens: bool = True,
        cutting: str = CUTTING,
    ) -> Encoded:
        """The token ids of a text. Before it stands the instruction `prompt` ("" for none), or the
        checkpoint's own of the name `prompt_name`, or the one for a side of a search, `input_type`,
        or its default. A text is cut at its end to `truncate` tokens, -1 for as many as the model
        takes; special tokens behind it stay. Before token ids stands nothing more. An error
        about the length says that `cutting` cuts a text."""
        how = self._how(prompt_name, prompt, input_type, truncate, add_special_tokens, cutting)
        key = "prompt" if isinstance(text, Mapping) and "prompt" in text else "prompt_token_ids"
        content = text.get(key) if isinstance(text, Mapping) else text
        if isinstance(content, str):
            content = self._content(content, how)
        elif how.most is not None and isinstance(content, Sequence):
            content = content[: how.most]
        whole: Any = {**text, key: content} if isinstance(text, Mapping) else content
        made = self.prompts.read(whole, add_special_tokens=add_special_tokens)
        behind = before = 0
        if made.text is not None:
            behind, before = self._around(how)
        tokens, skip = self._cut_to(made.token_ids, how, behind, before)
        return replace(made, token_ids=tokens, prompt_skip=skip)

    def read_all(
        self,
        texts: Sequence[Prompt],
        naming: Callable[[int], AbstractContextManager[None]],
        **how: Any,
    ) -> list[Encoded]:
        """What `read` gives for each of several texts, with the same keywords. An error with a text
        comes within `naming(its number)`."""
        found: list[Encoded] = []
        for start in range(0, len(texts), TOGETHER):
            some = texts[start : start + TOGETHER]
            together = self._read_together(some, **how) if len(some) > 1 else None
            if together is None:
                together = []
                for number, text in enumerate(some, start):
                    with naming(number):
                        together.append(self.read(text, **how))
            found += together
        return found

    def _read_together(
        self,
        texts: Sequence[Prompt],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        input_type: str | None = None,
        truncate: int | None = None,
        add_special_tokens: bool = True,
        cutting: str = CUTTING,
    ) -> list[Encoded] | None:
        """The same for texts that are tokenized in one go. None if something is wrong with one of
        them, or one is no plain text: then they are read one by one."""
        plain = [text for text in texts if isinstance(text, str)]
        if len(plain) < len(texts):
            return None
        try:
            how = self._how(prompt_name, prompt, input_type, truncate, add_special_tokens, cutting)
            contents = [self._content(text, how) for text in plain]
            self.prompts.check_characters(max(map(len, contents)))
            every = self.prompts.tokenizer.encode_all(contents, add_special_tokens)
            behind, before = self._around(how)
            read = [self._cut_to(tokens, how, behind, before) for tokens in every]
        except InvalidRequest:
            return None
        return [
            self.prompts.encoded(tokens, content, skip)
            for content, (tokens, skip) in zip(contents, read, strict=True)
        ]

    def _how(
        self,
        prompt_name: str | None,
        prompt: str | None,
        input_type: str | None,
        truncate: int | None,
        add_special_tokens: bool,
        cutting: str,
    ) -> _How:
        most = self._most(truncate)
        if input_type is not None:
            prompt_name = self._name_of_side(input_type, prompt_name, prompt)
        before = self._instruction(prompt_name, prompt)
        if self.facts.lower_case:
            before = before.lower()
        return _How(most, before, add_special_tokens, cutting)

    def _content(self, text: str, how: _How) -> str:
        """What is tokenized of a text."""
        if self.facts.lower_case:
            text = text.lower()
        return how.before + (text if how.most is None else self._taken(text, len(how.before)))

    def _around(self, how: _How) -> tuple[int, int]:
        """How many special tokens stand behind a text, and how many tokens before it are the
        instruction's."""
        tokenizer, behind = self.prompts.tokenizer, 0
        if how.add_special_tokens:
            behind = tokenizer.special_around[1]
        if not how.before:
            return behind, 0
        own = tokenizer.encode(how.before, add_special_tokens=how.add_special_tokens)
        return behind, len(own) - behind

    def _cut_to(
        self, tokens: list[int], how: _How, behind: int, before: int
    ) -> tuple[list[int], int]:
        """The tokens of a text, cut where that was asked for, and how many of the first ones are
        no part of it. Raises InvalidRequest for a text that the model does not take."""
        if how.most is not None and len(tokens) > how.most:
            tokens = _cut(tokens, how.most, behind)
        self._check_length(tokens, how.cutting)
        return tokens, min(before, len(tokens))

    def pair(
        self,
        query: str,
        document: str,
        *,
        instruction: str | None = None,
        truncate: int | None = None,
    ) -> Encoded:
        """The token ids of a pair of texts as a cross-encoder reads it, cut to `truncate` tokens
        at the end of the document. `instruction` says what makes a document fit, where the model
        reads one."""
        for name, text in (("query", query), ("documents", document)):
            if not isinstance(text, str):
                raise InvalidRequest(f"a pair is scored of two texts, got {shown(text)}.", name)
        most = self._most(truncate)
        tokenizer = self.prompts.tokenizer
        if most is not None:
            document = self._taken(document, len(query))
        self.prompts.check_characters(len(query) + len(document))
        frame = self.facts.pair_frame
        if frame is not None:
            before, behind = (
                tokenizer.encode(each, add_special_tokens=False)
                for each in (frame.before, frame.behind)
            )
            body = frame.body.format(
                instruction=frame.instruction if instruction is None else instruction,
                query=query,
                document=document,
            )
            tokens = [*before, *tokenizer.encode(body, add_special_tokens=False), *behind]
            if most is not None and len(tokens) > most:
                tokens = _cut(tokens, most, len(behind))
            self._check_length(tokens)
            return self.prompts.encoded(tokens)
        if instruction is not None:
            raise InvalidRequest(
                "this model reads no instruction beside a query; leave it out.", "instruction"
            )
        tokens, second, told_from = tokenizer.encode_pair(query, document)
        if most is not None and len(tokens) > most:
            behind_pair = tokenizer.special_around[1]
            if second + behind_pair >= most:
                raise InvalidRequest(
                    f"the query alone has {second} tokens, and the pair is to be cut to {most}; "
                    "shorten the query.",
                    "query",
                )
            tokens = _cut(tokens, most, behind_pair)
        self._check_length(tokens)
        return replace(self.prompts.encoded(tokens), second_text_at=told_from)

    def _check_length(self, tokens: list[int], cutting: str = CUTTING) -> None:
        """Raise InvalidRequest for a text that the model does not take."""
        most = self.prompts.max_model_len
        if len(tokens) > most:
            raise InvalidRequest(
                f"it has {len(tokens)} tokens, and the model takes {most}. Shorten it, or send "
                f"{cutting} to have its end cut off.",
                "prompt",
                TOO_LONG,
            )
        if not tokens:
            raise InvalidRequest("it is empty; give at least one token.", "prompt")

    def plan_pairs(
        self,
        tasks: Sequence[str],
        first: Sequence[str],
        second: Sequence[str],
        instruction: str | None = None,
        truncate: int | None = None,
        names: tuple[str, str] = ("query", "documents"),
    ) -> PairPlan:
        """How pairs are scored by a model that does `tasks`. There are as many first texts as
        second ones, or a single one that stands beside them all. A model that ranks reads the two
        together; of one that embeds, the embeddings are compared. An error says which text is at
        fault, by what a caller calls the first ones and the second ones: `names`."""
        query, document = names
        reads = []
        if scoring_task(tasks) == "score":
            for index, pair in enumerate(zip(itertools.cycle(first), second, strict=False)):
                with naming_text(document, index, len(second)):
                    reads.append(self.pair(*pair, instruction=instruction, truncate=truncate))
            return PairPlan(PoolingParams(task="score"), reads, None)
        if instruction is not None:
            raise InvalidRequest(
                "this model compares embeddings, and reads no instruction; leave it out.",
                "instruction",
            )
        for name, side, texts in ((query, QUERY, first), (document, DOCUMENT, second)):
            for index, text in enumerate(texts):
                with naming_text(name, index, len(texts)):
                    reads.append(self.read(text, prompt_name=self._side(side), truncate=truncate))
        compared = Compared(len(first), self.facts.similarity)
        return PairPlan(PoolingParams(task="embed"), reads, compared)

    def _taken(self, text: str, beside: int) -> str:
        """The beginning of a text that is going to be cut, as long as texts are tokenized, with so
        many characters beside it: what is behind it would be cut off in any case."""
        return text[: max(0, CHARACTERS_PER_TOKEN * self.prompts.max_model_len - beside)]

    def _most(self, truncate: int | None) -> int | None:
        """To how many tokens a text is cut; None to leave it."""
        if truncate is None:
            return None
        if type(truncate) is not int or truncate < -1 or truncate == 0:
            raise InvalidRequest(
                "truncate_prompt_tokens must be a positive number of tokens, or -1 for as many as "
                f"the model takes, got {shown(truncate)}.",
                "truncate_prompt_tokens",
            )
        longest = self.prompts.max_model_len
        if truncate > longest:
            raise InvalidRequest(
                f"truncate_prompt_tokens is {truncate}, but the model takes {longest} tokens; "
                "lower it, or say -1.",
                "truncate_prompt_tokens",
            )
        return longest if truncate == -1 else truncate

    def _instruction(self, name: str | None, prompt: str | None) -> str:
        """What stands before a text."""
        if prompt is not None:
            return prompt
        named = self.facts.default_prompt if name is None else name
        if named is None:
            return ""
        if named not in self.facts.prompts:
            there = ", ".join(map(shown, self.facts.prompts)) or "none"
            raise InvalidRequest(
                f"the model has no prompt {shown(named)}; it has {there}.", "prompt_name"
            )
        return self.facts.prompts[named]

    def _name_of_side(self, side: str, name: str | None, prompt: str | None) -> str | None:
        """The name of the instruction for one side of a search."""
        if side not in (QUERY, DOCUMENT):
            raise InvalidRequest(
                f"input_type must be {QUERY!r} or {DOCUMENT!r}, got {shown(side)}.", "input_type"
            )
        for other, value in (("prompt_name", name), ("prompt", prompt)):
            if value is not None:
                raise InvalidRequest(
                    f"input_type and {other} each say what stands before the texts; give one of "
                    "them.",
                    "input_type",
                )
        return self._side(side)

    def _side(self, name: str) -> str | None:
        """The name of the instruction for queries or for documents, where the model has one."""
        return name if name in self.facts.prompts else None


@contextmanager
def naming_text(name: str, index: int, count: int) -> Iterator[None]:
    """What is wrong with a text says which one that is; what is wrong with another field does
    not."""
    try:
        yield
    except InvalidRequest as error:
        if error.param not in (None, "prompt"):
            raise
        where = name if count < 2 else f"{name}[{index}]"
        raise InvalidRequest(f"{where}: {error}", name, error.code) from error


def _cut(tokens: list[int], most: int, behind: int) -> list[int]:
    """The first tokens, and the last `behind` of them, `most` in all."""
    if behind >= most:
        return tokens[:most]
    return tokens[: most - behind] + tokens[len(tokens) - behind :]


def pooling_request(read: Encoded, params: PoolingParams, name: str, **more: Any) -> Request:
    """The request for a text that was read; `more` are those of `Encoded.request`."""
    return read.request(name, GREEDY, detokenize=False, pooling=params, **more)


def embedding_of(output: PooledRequestOutput) -> Floats:
    assert isinstance(output.outputs, EmbeddingOutput), "asked for an embedding"
    return output.outputs.embedding


def likeness(first: Floats, second: Floats, kind: str) -> float:
    """How near two embeddings are: "cosine", "dot", "euclidean" or "manhattan" (the negative
    distance), as sentence-transformers names them."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    if kind == "dot":
        return float((a * b).sum())
    if kind == "euclidean":
        return -float(np.sqrt(((a - b) ** 2).sum()))
    if kind == "manhattan":
        return -float(np.abs(a - b).sum())
    lengths = float(np.sqrt((a * a).sum()) * np.sqrt((b * b).sum()))
    return float((a * b).sum()) / max(lengths, 1e-12)


def ranked(
    documents: Sequence[str], scores: Sequence[float], top_n: int | None = None
) -> list[RankedDocument]:
    """The documents, the best first; of equal ones the first that was given."""
    order = sorted(range(len(documents)), key=lambda i: -scores[i])
    return [RankedDocument(i, scores[i], documents[i]) for i in order[:top_n]]


def scoring_task(tasks: Sequence[str]) -> Task:
    """How a model of these tasks scores pairs: by itself, or by the likeness of embeddings. Raises
    InvalidRequest for one that can do neither."""
    if "score" in tasks:
        return "score"
    if "embed" in tasks:
        return "embed"
    raise InvalidRequest(
        f"this model does {' and '.join(tasks)}, and cannot score pairs of texts; load a model of "
        "embeddings, or one that is made for ranking.",
        "model",
    )
