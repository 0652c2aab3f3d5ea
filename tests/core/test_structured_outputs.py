"""What an answer must look like: what is taken, and what is refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from ockham import SamplingParams
from ockham.core.errors import InvalidRequest
from ockham.core.structured_outputs import MAX_GRAMMAR_BYTES, StructuredOutputsParams


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(depth):
        found = {"items": found}
    return found


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"json": {}}, "json"),
        ({"json": '{"type": "string"}'}, "json"),
        ({"json_object": True, "json": None}, "json_object"),
        ({"regex": "a+"}, "regex"),
        ({"regex": "a\\\\"}, "regex"),
        ({"json": {"const": 2**64 - 1}, "whitespace_pattern": r"( |\n[ \t]{0,4})?"}, "json"),
        ({"json": nested(99)}, "json"),
        ({"choice": ["a"], "json_object": False}, "choice"),
        ({"grammar": "start: /a/"}, "grammar"),
    ],
)
def test_each_kind_is_known_and_survives_the_way_to_the_engine(
    values: dict[str, Any], kind: str
) -> None:
    asked = StructuredOutputsParams(**values)
    assert asked.kind == kind
    params = SamplingParams(structured_outputs=asked)
    sent = msgspec.msgpack.encode(params)
    assert msgspec.msgpack.decode(sent, type=SamplingParams) == params


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "holds nothing"),
        ({"regex": "a", "choice": ["a"]}, "regex and choice"),
        ({"json_object": False}, "holds nothing"),
        ({"choice": []}, "must not be empty"),
        ({"choice": ["a", ""]}, "not empty"),
        ({"choice": ["a", 3]}, "got 3"),
        ({"choice": "yes"}, "cannot be str"),
        ({"json": "{"}, "no valid JSON"),
        ({"json": "[1]"}, "must be a JSON object, got list"),
        ({"json": 3}, "cannot be int"),
        ({"json": {"const": object()}}, "cannot be written as JSON"),
        ({"regex": "a", "disable_any_whitespace": True}, "JSON only"),
        ({"regex": "\\"}, "ends with a backslash that escapes nothing"),
        ({"regex": "a\\\\\\"}, "ends with a backslash"),
        ({"json": {"minimum": 10**400}}, "integers must lie in"),
        ({"json": {"minimum": -(2**63) - 1}}, "integers must lie in"),
        ({"json": '{"enum": [1' + "0" * 400 + "]}"}, "integers must lie in"),
        ({"json": '{"enum": [1' + "0" * 9000 + "]}"}, "no valid JSON"),
        ({"json": {"const": float("nan")}}, "which is no number"),
        ({"json": '{"const": Infinity}'}, "which is no number"),
        ({"json": nested(200)}, "nested more than 100 levels deep"),
        ({"json": json.dumps(nested(200))}, "nested more than 100 levels deep"),
        ({"json": "[" * 100_000}, "no valid JSON"),
        ({"regex": "a", "whitespace_pattern": " ?"}, "JSON only"),
        ({"json": {}, "whitespace_pattern": "a*"}, "nothing but spaces"),
        ({"json": {}, "whitespace_pattern": "\\s*"}, "nothing but spaces"),
        (
            {"json": {}, "whitespace_pattern": " ", "disable_any_whitespace": True},
            "send one of them",
        ),
        ({"regex": "a" * MAX_GRAMMAR_BYTES}, "make it smaller"),
    ],
)
def test_what_says_nothing_or_too_much_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refused:
        StructuredOutputsParams(**values)
    assert refused.value.param == "structured_outputs"


def test_the_order_of_properties_tells_two_schemas_apart() -> None:
    one = {"properties": {"a": {}, "b": {}}}
    other = {"properties": {"b": {}, "a": {}}}
    keys = [StructuredOutputsParams(json=schema).key for schema in (one, other)]
    assert keys[0] != keys[1]


def test_parameters_take_no_plain_mapping() -> None:
    with pytest.raises(InvalidRequest, match="must be StructuredOutputsParams"):
        SamplingParams(structured_outputs={"regex": "a"})  # type: ignore[arg-type]


def deep(levels: int) -> dict[str, object]:
    schema: dict[str, object] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"maximum": 2**64},
        {"enum": [-(2**63) - 1]},
        {"const": 10**400},
        {"minimum": float("nan")},
        '{"maximum": 1e999}',
        '{"maximum": ' + "9" * 400 + "}",
        '{"maximum": ' + "9" * 5000 + "}",
        deep(101),
        deep(5000),
        '{"items": ' * 990 + "{}" + "}" * 990,
    ],
    ids=range(10),
)
def test_numbers_and_depth_of_a_schema_are_bounded(schema):
    with pytest.raises(InvalidRequest, match=r"structured_outputs\.json") as refused:
        StructuredOutputsParams(json=schema)
    assert len(str(refused.value)) < 300


def test_the_largest_numbers_and_nulls_of_a_schema_are_taken():
    asked = StructuredOutputsParams(json={"maximum": 2**64 - 1, "enum": [None], **deep(98)})
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(asked), type=StructuredOutputsParams)
    assert decoded == asked
