"""OpenAI's `response_format`, as what the engine calls structured outputs."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ockham.core.errors import InvalidRequest
from ockham.core.structured_outputs import StructuredOutputsParams

_SCHEMA = "response_format.json_schema.schema"


class JsonSchema(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`strict` changes nothing: an answer always follows its schema."""

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the answer must be: any text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def structured_outputs(self) -> StructuredOutputsParams | None:
        """The same under vLLM's names. Raises `InvalidRequest` if it contradicts itself."""
        if (self.json_schema is None) == (self.type == "json_schema"):
            raise InvalidRequest(
                'response_format has a json_schema exactly where its type is "json_schema".',
                "response_format",
            )
        if self.json_schema is not None:
            try:
                return StructuredOutputsParams(json=self.json_schema.schema)
            except InvalidRequest as error:
                said = str(error).replace("structured_outputs.json", _SCHEMA, 1)
                raise InvalidRequest(
                    said.replace("structured_outputs", _SCHEMA, 1), _SCHEMA
                ) from None
        return StructuredOutputsParams(json_object=True) if self.type == "json_object" else None
