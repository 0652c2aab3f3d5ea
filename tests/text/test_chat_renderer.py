"""A chat template of a stranger harms one request at most, and says why."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ockham.core.errors import InvalidRequest
from ockham.text.chat_renderer import CHECKPOINTS, LIMITS, ChatRenderer, Template

PLAIN = Template("{% for m in messages %}{{ m.content }}{% endfor %}", CHECKPOINTS)
HOSTILE = {
    "loops": (
        "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}",
        "CPU time",
    ),
    "pads": ("{{ 'x'.center(3000000000) }}", "MiB of memory"),
    "indents": ("{{ messages | tojson(indent=3000000000) }}", "MiB of memory"),
    "indents lines": ("{{ ('a\n' * 100000) | indent(100000) }}", "MiB of memory"),
    "is long": ("{{ messages[0].content.ljust(40000000) }}", "has more than"),
    "computes": ("{{ 7 ** (7 ** 11) }}", "CPU time"),
    "recurses": ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "calls itself without end"),
    "nests": ("{{" + "(" * 50000 + "1" + ")" * 50000 + "}}", "nested too deeply"),
    "nests blocks": ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "nested too deeply|compiled"),
}


@pytest.fixture(scope="module")
def renderer() -> Iterator[ChatRenderer]:
    made = ChatRenderer({"bos_token": "<s>"}, processes=2)
    yield made
    made.close()


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_exceeds_a_limit_ends_in_a_sentence_and_others_go_on(
    renderer: ChatRenderer, name: str
) -> None:
    source, limit = HOSTILE[name]
    hostile = Template(source, CHECKPOINTS)
    slow = renderer.submit(hostile, say("hello"))
    assert renderer.render(PLAIN, say("meanwhile")) == "meanwhile"
    with pytest.raises(Exception, match=limit):
        slow.result(LIMITS.wall_s)
    with pytest.raises(InvalidRequest, match=f"The checkpoint's chat template.*({limit})"):
        renderer.render(hostile, say("hello"))


@pytest.mark.parametrize("name", ["loops", "pads", "nests"])
def test_a_template_that_is_of_no_use_is_found_by_a_check_and_not_run_again(name: str) -> None:
    source, limit = HOSTILE[name]
    renderer = ChatRenderer({})
    try:
        fault = renderer.check(Template(source, CHECKPOINTS)).fault
        assert fault is not None
        assert limit in fault
        renderer.close()
        with pytest.raises(InvalidRequest, match="checkpoint's chat template"):
            renderer.render(Template(source, CHECKPOINTS), say("hello"))
        assert renderer.pids == []
    finally:
        renderer.close()


def test_a_broken_template_is_found_by_a_check_with_its_line(renderer: ChatRenderer) -> None:
    broken = Template("{# one #}\n\n{% for m in %}", CHECKPOINTS)
    assert "not valid Jinja (line 3:" in (renderer.check(broken).fault or "")
    failing = Template("\n{{ messages.no.such }}", CHECKPOINTS)
    assert "failed (line 2: UndefinedError" in (renderer.check(failing).fault or "")


def test_a_template_that_only_wants_other_messages_is_not_broken(renderer: ChatRenderer) -> None:
    picky = Template("{{ raise_exception('a system prompt is needed') }}", CHECKPOINTS)
    assert renderer.check(picky).fault is None
    indexing = Template("{{ messages[1].content }}{{ messages[0].content }}", CHECKPOINTS)
    assert renderer.check(indexing).fault is None
    assert renderer.check(PLAIN).fault is None


def test_a_check_says_what_a_template_leaves_out(renderer: ChatRenderer) -> None:
    users = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    notes = renderer.check(Template(users, CHECKPOINTS)).notes
    assert [role for role in ("system", "user", "assistant", "tool") if role in " ".join(notes)]
    assert not any("content of user" in note for note in notes)
    assert any("which tools the assistant called" in note for note in notes)


def test_what_is_no_data_is_refused(renderer: ChatRenderer) -> None:
    with pytest.raises(InvalidRequest, match="an object of type function"):
        renderer.render(PLAIN, say("x"), tools=[say])  # type: ignore[list-item]
    with pytest.raises(InvalidRequest, match="half of a surrogate pair"):
        renderer.render(PLAIN, say("\ud800"))
    with pytest.raises(InvalidRequest, match="hold what is no JSON"):
        renderer.render(PLAIN, say("x"), variables={"n": 2**70})
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        renderer.render(PLAIN, say("x"), variables={"n": deep})


def test_calls_with_deeply_nested_arguments_are_refused(renderer: ChatRenderer) -> None:
    arguments = "[" * 100_000 + "]" * 100_000
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    talk = [*say("x"), {"role": "assistant", "content": None, "tool_calls": [call]}]
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        renderer.render(PLAIN, talk)
