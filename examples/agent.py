"""An agent: a chat model that looks things up in a directory of text files and calculates.

    ockham serve qwen3:4b
    python examples/agent.py "How many cells has --keep recent:window=1024,sinks=4, times three?"

The model is given tools, and calls them until it answers. What it can read is what is below
--documents. Any model that calls tools will do (docs/tools.md); the smallest ones often do not.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

from openai import OpenAI

from agent_tools import TOOLS, described, run

DOCS = Path(__file__).resolve().parents[1] / "docs"
SYSTEM = "You answer with the help of tools. Say which file the answer is from."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("question")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--model", help="default: the server's first")
    parser.add_argument("--documents", type=Path, default=DOCS, help="directory of Markdown files")
    parser.add_argument("--turns", type=int, default=8, help="most answers of the model")
    parser.add_argument("--insist", action="store_true", help="the first answer must call a tool")
    parser.add_argument("--max-tokens", type=int, default=500, help="of each answer")
    args = parser.parse_args()

    client = OpenAI(base_url=args.url, api_key=args.api_key)
    model = args.model or client.models.list().data[0].id
    messages: list[Any] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": args.question},
    ]
    computed = read = 0
    for turn in range(args.turns):
        last = turn == args.turns - 1  # without tools, so that the loop ends with an answer
        choice: Literal["none", "required", "auto"] = "none" if last else "auto"
        if args.insist and turn == 0:
            choice = "required"
        answer = client.chat.completions.create(
            model=model,
            messages=messages,
            tools=[described(*each) for each in TOOLS.items()],
            tool_choice=choice,
            temperature=0,
            max_tokens=args.max_tokens,
        )
        assert answer.usage is not None
        bill = (answer.usage.model_extra or {})["ockham"]
        read, computed = read + bill["prompt_tokens"], computed + bill["prompt_tokens_computed"]
        message = answer.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:
            break
        for call in message.tool_calls:
            assert call.type == "function"
            result = run(args.documents, call.function.name, call.function.arguments)
            print(f"{call.function.name}({call.function.arguments}): {result.splitlines()[0]}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    print((message.content or "").strip())
    # Each turn repeats the conversation so far, which the server has computed before.
    print(f"bill: {read} prompt tokens in {turn + 1} turns, {computed} of them computed")


if __name__ == "__main__":
    main()
