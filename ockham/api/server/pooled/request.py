"""What requests for vectors, classes and scores may hold."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

import msgspec

from ockham.api.pooling import DOCUMENT, QUERY
from ockham.api.server.fields import ANY
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown
from ockham.core.pooling import PoolingParams, Task

MOST_TEXTS = 2048
"""Inputs, documents or pairs of one request; OpenAI's own limit."""

Text = str | list[int]
"""A text, or its token ids."""
Texts = str | list[str | int | list[int]]
"""One or several: see `listed`."""

SIDES = {
    "query": QUERY,
    "search_query": QUERY,
    "document": DOCUMENT,
    "passage": DOCUMENT,
    "search_document": DOCUMENT,
}
"""`input_type`, as Voyage, Cohere and NVIDIA name the sides of a search -> ours."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    # vLLM
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
    "mm_processor_kwargs": ({},),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "request_id": (ANY,),
    "truncation_side": ("right",),
    # Text Embeddings Inference, Cohere and Jina
    "truncation_direction": ("right", "Right"),
    "embedding_types": (["float"],),
    "embedding_type": ("float",),
    "task": (),
    "late_chunking": (False,),
    # Ollama and llama-server
    "keep_alive": (ANY,),
}
"""Fields of other servers' requests -> the values at which they ask for nothing."""


class PooledBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What all these requests have in common."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = NEUTRAL

    model: str | None = None
    truncate_prompt_tokens: int | None = None
    """Texts are cut to so many tokens, -1: to as many as the model takes. Else one that is too long
    is refused."""
    priority: int | None = None
    """The lower goes first, among the requests of the same tenant."""
    cache_salt: str | None = None
    """Whoever sends another one shares no state with this request."""
    user: str | None = None

    def check(self) -> None:
        """Raise `InvalidRequest` for what cannot be."""
        if self.priority is not None and not -(2**31) <= self.priority < 2**31:
            raise InvalidRequest(
                f"priority must lie in [-2**31, 2**31), got {shown(self.priority)}.", "priority"
            )


class InputBody(PooledBody, kw_only=True):
    """A text, token ids, or a list of either."""

    input: Texts
    add_special_tokens: bool | None = None

    @property
    def inputs(self) -> list[Text]:
        """The texts, one entry each. Raises `InvalidRequest`."""
        return listed(self.input, "input")


class EmbeddingBody(InputBody, kw_only=True):
    """`POST /v1/embeddings`. `prompt_name` names an instruction of the checkpoint's that stands
    before each text, `input_type` says which side of a search the texts are, for models that have
    an instruction for it, and `instruction` is one of the caller's own."""

    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    normalize: bool | None = None
    prompt_name: str | None = None
    input_type: (
        Literal["query", "search_query", "document", "passage", "search_document"] | None
    ) = None
    instruction: str | None = None

    def params(self) -> PoolingParams:
        """Raises `InvalidRequest`."""
        return PoolingParams(task="embed", dimensions=self.dimensions, normalize=self.normalize)

    def check(self) -> None:
        PooledBody.check(self)
        given = [
            name
            for name in ("prompt_name", "input_type", "instruction")
            if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise InvalidRequest(
                f"{' and '.join(given)} each say what stands before the texts; send one of them.",
                given[1],
            )


class ClassifyBody(InputBody, kw_only=True):
    """`POST /v1/classify`. `use_activation` false: the logits in place of probabilities."""

    use_activation: bool = True


class PoolingBody(InputBody, kw_only=True):
    """`POST /pooling`. Without a `task`, an embedding of each token, or a classifier's classes."""

    task: Task | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    normalize: bool | None = None
    use_activation: bool = True


class TextDocument(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A document as an object."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"type": ("text",)}

    text: str


class RerankBody(PooledBody, kw_only=True):
    """`POST /v1/rerank`. `instruction` says what makes a document fit, to models that read one."""

    query: str | TextDocument
    documents: list[str | TextDocument] | None = None
    top_n: int | None = None
    return_documents: bool | None = None
    instruction: str | None = None

    # The same as Text Embeddings Inference calls it; its answer is told in its own shape.
    texts: list[str] | None = None
    return_text: bool = False
    raw_scores: bool = False
    truncate: bool = False

    @property
    def listed(self) -> list[str]:
        """The documents' texts. Raises `InvalidRequest`."""
        name = "documents" if self.texts is None else "texts"
        if self.texts is not None and self.documents is not None:
            raise InvalidRequest("texts and documents are the same; send one of them.", "texts")
        found = self.documents if self.texts is None else self.texts
        if not found:
            raise InvalidRequest(f"{name} must be a list of at least one text.", name)
        _check_count(len(found), name)
        return [text_of(each) for each in found]

    @property
    def most_tokens(self) -> int | None:
        """To how many tokens a pair is cut."""
        return -1 if self.truncate else self.truncate_prompt_tokens

    def check(self) -> None:
        PooledBody.check(self)
        if self.top_n is not None and self.top_n < 1:
            raise InvalidRequest(f"top_n must be at least 1, got {shown(self.top_n)}.", "top_n")


class ScoreBody(PooledBody, kw_only=True):
    """`POST /v1/score`: a text beside each of the others, or as many as there are others. The two
    sides are `text_1` and `text_2`, or `queries` and `documents`."""

    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    instruction: str | None = None
    use_activation: bool = True

    @property
    def sides(self) -> tuple[list[str], list[str]]:
        """The first texts and the second ones: as many, or a single first one. Raises
        `InvalidRequest`."""
        found = []
        for names in (("text_1", "queries"), ("text_2", "documents")):
            given = [name for name in names if getattr(self, name) is not None]
            if len(given) != 1:
                raise InvalidRequest(
                    f"Send either {names[0]} or {names[1]}, and not both.", names[0]
                )
            value = getattr(self, given[0])
            texts = [value] if isinstance(value, str) else value
            if not texts:
                raise InvalidRequest(f"{given[0]} must not be an empty list.", given[0])
            _check_count(len(texts), given[0])
            found.append((given[0], texts))
        (name, first), (_, second) = found
        if len(first) not in (1, len(second)):
            raise InvalidRequest(
                f"There are {len(first)} first texts and {len(second)} second ones; send a first "
                "text for each second one, or a single one for all.",
                name,
            )
        return first, second


class InputsBody(PooledBody, kw_only=True):
    """`POST /embed` of Text Embeddings Inference. `truncate`: a text that is too long is cut."""

    inputs: Texts
    truncate: bool = False
    normalize: bool | None = None
    prompt_name: str | None = None
    dimensions: int | None = None

    @property
    def listed(self) -> list[Text]:
        """The texts, one entry each. Raises `InvalidRequest`."""
        return listed(self.inputs, "inputs")


class ContentBody(PooledBody, kw_only=True):
    """`POST /embedding` of llama-server. `embd_normalize`: -1 for embeddings as they are, 2 for
    those of length 1."""

    content: Texts | None = None
    input: Texts | None = None
    embd_normalize: int | None = None

    @property
    def texts(self) -> list[Text]:
        """The texts, one entry each. Raises `InvalidRequest`."""
        if (self.content is None) == (self.input is None):
            raise InvalidRequest("Send either content or input, and not both.", "content")
        if self.content is not None:
            return listed(self.content, "content")
        return listed(cast(Texts, self.input), "input")

    @property
    def normalize(self) -> bool | None:
        """Raises `InvalidRequest` for a norm that is not here."""
        if self.embd_normalize not in (None, -1, 2):
            raise InvalidRequest(
                f"embd_normalize must be -1 (none) or 2 (Euclidean), got {self.embd_normalize}.",
                "embd_normalize",
            )
        return None if self.embd_normalize is None else self.embd_normalize == 2


def listed(value: Texts, name: str) -> list[Text]:
    """Texts or lists of token ids, one entry each. Raises `InvalidRequest` if kinds are mixed, or
    there are none or too many."""
    if isinstance(value, str):
        return [value]
    if not value:
        raise InvalidRequest(f"{name} must not be an empty list.", name)
    kinds = set(map(type, value))
    if kinds == {int}:
        return [cast(list[int], value)]
    if kinds != {str} and kinds != {list}:
        raise InvalidRequest(
            f"{name} must be a string, a list of strings, a list of token ids, or a list of lists "
            "of token ids; these cannot be mixed.",
            name,
        )
    _check_count(len(value), name)
    return cast(list[Text], value)


def text_of(given: str | TextDocument) -> str:
    return given if isinstance(given, str) else given.text


def _check_count(count: int, name: str) -> None:
    if count > MOST_TEXTS:
        raise InvalidRequest(
            f"{name} has {count} entries, at most {MOST_TEXTS}; split the request.", name
        )
