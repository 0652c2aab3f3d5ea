"""LiteLLM over the Responses API, and its bridge to Anthropic's API, which asks for it."""

from __future__ import annotations

import litellm
from checks import MODEL, QUESTION, WEATHER, is_weather, main, url

litellm.suppress_debug_info = True
BASE = {"model": f"openai/{MODEL}", "api_base": f"{url()}/v1", "api_key": "none"}


def check_a_response_is_answered():
    made = litellm.responses(**BASE, input=QUESTION, temperature=0, max_output_tokens=60)
    text = "".join(part.text for item in made.output for part in item.content)
    assert "Paris" in text


async def check_anthropics_messages_are_answered_through_the_bridge():
    made = await litellm.anthropic.messages.acreate(
        **BASE,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=60,
        temperature=0,
    )
    assert "Paris" in made["content"][0]["text"]


async def check_anthropics_tools_are_called_through_the_bridge():
    function = WEATHER["function"]
    made = await litellm.anthropic.messages.acreate(
        **BASE,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=60,
        temperature=0,
        tools=[
            {
                "name": function["name"],
                "description": function["description"],
                "input_schema": function["parameters"],
            }
        ],
        tool_choice={"type": "any"},
    )
    [call] = [block for block in made["content"] if block["type"] == "tool_use"]
    is_weather(call["input"])


if __name__ == "__main__":
    main()
