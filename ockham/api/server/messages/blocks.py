"""What messages are made of: blocks, and the texts that they hold."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec

from ockham.api.server.fields import ANY
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown


class CacheControl(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Says that the prompt up to here will be used again, and for how long."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] = "5m"

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"scope": (ANY,)}

    @property
    def seconds(self) -> int:
        return 3600 if self.ttl == "1h" else 300


class Source(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where a document or an image comes from. Only `text` and `content` can be read."""

    type: str
    data: str | None = None
    media_type: str | None = None
    content: str | list[Block] | None = None
    url: str | None = None
    file_id: str | None = None


class Block(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One block of a message, of whichever `type`: each has some of the fields."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = dict.fromkeys(
        ("citations", "caller", "toolset_name", "parsed_output"), (ANY,)
    )

    type: str
    """`text`, `tool_use`, `tool_result`, `thinking`, `redacted_thinking`, `document` with a text,
    or `search_result`. Blocks of tools that Anthropic's servers run are skipped."""
    text: str | None = None
    thinking: str | None = None
    """What the model thought; the chat template shows it, or leaves it out."""
    signature: str | None = None
    """Not looked at."""
    data: str | None = None
    """Of `redacted_thinking`; not looked at."""
    id: str | None = None
    """Of a `tool_use`."""
    name: str | None = None
    """The tool of a `tool_use`."""
    input: dict[str, Any] | None = None
    """The arguments of a `tool_use`."""
    tool_use_id: str | None = None
    """The `tool_use` whose result a `tool_result` is."""
    content: str | list[Block] | dict[str, Any] | None = None
    """Of a `tool_result`: a text, or blocks of texts."""
    is_error: bool | None = None
    """Whether a `tool_result` says that the tool failed."""
    source: Source | str | None = None
    """Of a `document` or an `image`; of a `search_result` its address."""
    title: str | None = None
    context: str | None = None
    cache_control: CacheControl | None = None


_UNREADABLE = ("image", "audio", "video")


def text_of(block: Block, where: str) -> str | None:
    """The text of a block that stands for one, None for a block of another type. Raises
    `InvalidRequest` for what this server cannot read."""
    if block.type == "text":
        if block.text is None:
            raise InvalidRequest(f"{where}.text is required and is missing.", f"{where}.text")
        return block.text
    if block.type == "document":
        return _document(block, where)
    if block.type == "search_result":
        heads = [each for each in (block.title, block.source) if isinstance(each, str) and each]
        return "\n".join([*heads, *texts_of(block.content, f"{where}.content", [])])
    if block.type in _UNREADABLE:
        raise InvalidRequest(
            f"{where} is of type {block.type}: this model reads text only; leave it out.", where
        )
    return None


def texts_of(content: Any, where: str, skipped: list[str]) -> list[str]:
    """The texts of a block's content. Types that are no texts are added to `skipped`. Raises
    `InvalidRequest`."""
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a text or a list of blocks.", where)
    texts = []
    for index, block in enumerate(content):
        text = text_of(block, f"{where}[{index}]")
        if text is None:
            skipped.append(f"{where}[{index}] ({shown(block.type)})")
        else:
            texts.append(text)
    return texts


def _document(block: Block, where: str) -> str:
    source = block.source
    if not isinstance(source, Source) or source.type not in ("text", "content"):
        kind = source.type if isinstance(source, Source) else "none"
        raise InvalidRequest(
            f"{where} is a document whose source is of type {shown(kind)}; only documents of text "
            '({"type": "text", "media_type": "text/plain", "data": ...}) can be read. Send its '
            "text.",
            where,
        )
    heads = [each for each in (block.title, block.context) if each]
    data = [source.data] if source.type == "text" and source.data else []
    return "\n".join([*heads, *data, *texts_of(source.content, f"{where}.source.content", [])])
