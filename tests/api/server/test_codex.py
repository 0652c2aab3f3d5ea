"""Sessions of the shape that Codex CLI has, on a tiny model whose words are given."""

from __future__ import annotations

import json
from typing import Any

from tests.helpers.codex import CodexSession, prose
from tests.helpers.live import LiveServer

TURNS = 10


def called(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def test_each_turn_computes_its_new_tokens_only(talking: LiveServer) -> None:
    session = CodexSession("tiny", "Mend the test.", instructions_words=1200)
    shares = []
    for turn in range(TURNS):
        say = [
            f"I look at part {turn}.\n" + called("exec_command", cmd=f"sed -n {turn},9p a.py"),
            called("mcp__docs__lookup", query=f"part {turn}"),
            called("apply_patch", input=f"*** Begin Patch\n+{turn}\n*** End Patch"),
        ][turn % 3]
        say = f"Part {turn} is next.\n</think>\n\n{say}"
        asked = session.body(structured_outputs={"choice": [say]}, temperature=0)
        asked["reasoning"]["effort"] = "medium"  # which has the template open a thought
        response = talking.post("/v1/responses", asked)
        assert response.status_code == 200, response.text
        usage = session.took(response.text, [prose(turn, 20)])
        shares.append(usage["input_tokens_details"]["cached_tokens"] / usage["input_tokens"])
    kinds = [item["type"] for item in session.items[4:]]
    assert kinds.count("function_call") == 7
    assert kinds.count("custom_tool_call") == 3
    assert kinds.count("reasoning") == TURNS
    assert min(shares[1:]) > 0.95, shares


def test_the_list_of_models_can_be_read_by_codex(talking: LiveServer) -> None:
    asked = talking.get("/v1/models", params={"client_version": "0.171.0"}).json()
    assert asked["models"] == []
    assert asked["data"][0]["id"] == "tiny"
    assert "models" not in talking.get("/v1/models").json()
