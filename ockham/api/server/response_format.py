"""OpenAI's `response_format`, as what the engine calls structured outputs."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ockham.core.errors import InvalidRequest
from ockham.core.structured_outputs import StructuredOutputsParams


class JsonSchema(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`strict` changes nothing: an answer always follows its schema."""

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the answer must be: any text, any JSON object, or JSON of a schema. `schema` is
    llama.cpp's and Together's place for it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | None = None

    def structured_outputs(self) -> StructuredOutputsParams | None:
        """The same under vLLM's names. Raises `InvalidRequest` if it contradicts itself."""
        if self.schema is not None:
            return self._of_schema()
        if (self.json_schema is None) == (self.type == "json_schema"):
            raise InvalidRequest(
                'response_format has a json_schema exactly where its type is "json_schema".',
                "response_format",
            )
        if self.json_schema is not None:
            return _following(self.json_schema.schema, "response_format.json_schema.schema")
        return StructuredOutputsParams(json_object=True) if self.type == "json_object" else None

    def _of_schema(self) -> StructuredOutputsParams:
        if self.type == "text" or self.json_schema is not None:
            raise InvalidRequest(
                "response_format.schema is for the types json_object and json_schema, without "
                "json_schema beside it; leave it out.",
                "response_format.schema",
            )
        return _following(self.schema or {}, "response_format.schema")


def _following(schema: dict[str, Any], field: str) -> StructuredOutputsParams:
    """Raises `InvalidRequest` in the words of the field that holds the schema."""
    try:
        return StructuredOutputsParams(json=schema)
    except InvalidRequest as error:
        said = str(error).replace("structured_outputs.json", field, 1)
        raise InvalidRequest(said.replace("structured_outputs", field, 1), field) from None
