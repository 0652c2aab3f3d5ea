"""instructor: its default mode, which is tools, its JSON modes, and partial objects."""

from __future__ import annotations

from typing import Literal

import instructor
import openai
from checks import MODEL, QUESTION, main, url
from pydantic import BaseModel

plain = openai.OpenAI(base_url=f"{url()}/v1", api_key="none", max_retries=0)


class Weather(BaseModel):
    """What the weather is like."""

    city: Literal["Paris", "Rome", "Oslo"]
    sunny: bool


ASKED = {
    "model": MODEL,
    "messages": [{"role": "user", "content": QUESTION}],
    "response_model": Weather,
    "temperature": 0,
    "max_tokens": 60,
    "max_retries": 0,
}


def check_the_default_mode():
    assert isinstance(instructor.from_openai(plain).create(**ASKED), Weather)


def check_strict_tools():
    client = instructor.from_openai(plain, mode=instructor.Mode.TOOLS_STRICT)
    assert isinstance(client.create(**ASKED), Weather)


def check_json_schemas():
    client = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)
    assert isinstance(client.create(**ASKED), Weather)


def check_partial_objects_are_streamed():
    client = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)
    asked = {name: value for name, value in ASKED.items() if name != "max_retries"}
    parts = list(client.create_partial(**asked))
    assert parts
    Weather.model_validate(parts[-1].model_dump())


def check_a_provider_by_name():
    client = instructor.from_provider(f"openai/{MODEL}", base_url=f"{url()}/v1", api_key="none")
    assert isinstance(client.create(**{k: v for k, v in ASKED.items() if k != "model"}), Weather)


if __name__ == "__main__":
    main()
