"""Chat templates, one for each family of formats, and conversations to be rendered with them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from ockham.text.chat_template import ChatTemplate
from ockham.text.reply.formats import THOUGHTS, Format, Thought, format_of

THINK = THOUGHTS[0]
CHATML = """
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.reasoning_content %}
{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}
{{- message.content or '' }}
{%- if message.tool_calls %}CALLS{% endif %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
EACH = "{%- for call in message.tool_calls %}{% set f = call.function %}BODY{% endfor %}"


def chatml(calls: str) -> str:
    return CHATML.replace("CALLS", calls)


def each(body: str) -> str:
    return chatml(EACH.replace("BODY", body))


def each_of(between: str, body: str) -> str:
    """Calls one after another, with this between them."""
    more = f"{{{{ {between!r} if not loop.last }}}}" if between else ""
    return EACH.replace("BODY", body + more)


OBJECT = """{{ '{"name": "' + f.name + '", "arguments": ' + f.arguments | tojson + '}' }}"""
LISTED = (
    "[{%- for call in message.tool_calls %}{% set f = call.function %}"
    + OBJECT
    + "{{ ', ' if not loop.last }}{% endfor %}]"
)
PYTHON = """[{%- for call in message.tool_calls %}{% set f = call.function %}
{{- f.name }}({% for k, v in f.arguments.items() %}
{{- k }}={{ v | tojson }}{{ ', ' if not loop.last }}
{%- endfor %}){{ ', ' if not loop.last }}{% endfor %}]"""
PYTHON_ROWS = PYTHON[1:-1].replace("){{ ', '", "){{ '\\n'")
GEMMA_VALUE = """
{%- macro value(v) -%}
{%- if v is string -%}{{ QUOTE + v + QUOTE }}
{%- elif v is boolean -%}{{ 'true' if v else 'false' }}
{%- elif v is none -%}null
{%- elif v is mapping -%}{{ '{' }}{% for k, x in v.items() %}
{{- k }}:{{ value(x) }}{{ ',' if not loop.last }}{% endfor %}{{ '}' }}
{%- elif v is sequence -%}[{% for x in v %}{{ value(x) }}{{ ',' if not loop.last }}{% endfor %}]
{%- else -%}{{ v }}{%- endif -%}
{%- endmacro -%}
"""


def gemma(open_: str, close: str, quote: str) -> str:
    body = "call:{{ f.name }}{{ value(f.arguments) }}"
    macro = GEMMA_VALUE.replace("QUOTE", f"'{quote}'")
    return macro + each(open_ + body + close).replace(
        "'<think>\n' + message.reasoning_content + '\n</think>\n\n'",
        "'<|channel>thought\n' + message.reasoning_content + '\n<channel|>'",
    )


TEXT_OR_JSON = "{{ v if v is string else v | tojson }}"
HARMONY = """
{%- for message in messages %}
{%- if message.role != 'assistant' %}
{{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
{%- else %}
{%- if message.reasoning_content %}{{ '<|start|>assistant<|channel|>analysis<|message|>' }}
{{- message.reasoning_content + '<|end|>' }}{% endif %}
{%- if message.content %}{{ '<|start|>assistant<|channel|>' }}
{{- ('commentary' if message.tool_calls else 'final') + '<|message|>' }}
{{- message.content + '<|end|>' }}{% endif %}
{%- for call in message.tool_calls or [] %}
{{- '<|start|>assistant<|channel|>commentary to=functions.' + call.function.name }}
{{- ' <|constrain|>json<|message|>' + call.function.arguments | tojson + '<|call|>' }}{% endfor %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}
"""


@dataclass
class Family:
    """A template, what its format must be found to be, and what its texts cannot hold."""

    format: str
    template: str
    thought: Thought | None = THINK
    end: tuple[str, ...] = ("<|im_end|>\n",)
    never: tuple[str, ...] = ()
    content_with_calls: bool = True
    bare_keys: bool = False
    several: bool = True
    made: ChatTemplate = field(init=False)

    def __post_init__(self) -> None:
        self.made = ChatTemplate(self.template, "The test's template", {})

    @property
    def found(self) -> Format:
        found = format_of(self.template)
        assert found is not None
        return found

    def answer(self, message: dict[str, Any]) -> str:
        """What a model of the family writes to say this."""
        asked = [{"role": "user", "content": "x"}]
        before = self.made.render(asked)
        whole = self.made.render([*asked, message], add_generation_prompt=False)
        assert whole.startswith(before)
        for end in self.end:
            whole = whole.removesuffix(end)
        return whole[len(before) :]


FAMILIES = {
    "hermes": Family("hermes", each("{{ '\n<tool_call>\n' }}" + OBJECT + "{{ '\n</tool_call>' }}")),
    "smollm": Family("hermes", chatml("<tool_call>" + LISTED + "</tool_call>")),
    "qwen3-coder": Family(
        "qwen3-coder",
        each(
            "{{ '\n<tool_call>\n<function=' + f.name + '>\n' }}"
            "{%- for k, v in f.arguments.items() %}{{ '<parameter=' + k + '>\n' }}"
            + TEXT_OR_JSON
            + "{{ '\n</parameter>\n' }}{% endfor %}{{ '</function>\n</tool_call>' }}"
        ),
        never=("</parameter>",),
    ),
    "seed": Family(
        "seed",
        each(
            "{{ '\n<seed:tool_call>\n<function=' + f.name + '>\n' }}"
            "{%- for k, v in f.arguments.items() %}{{ '<parameter=' + k + '>' }}"
            + TEXT_OR_JSON
            + "{{ '</parameter>\n' }}{% endfor %}{{ '</function>\n</seed:tool_call>' }}"
        ).replace("think>", "seed:think>"),
        THOUGHTS[3],
        never=("</parameter>",),
    ),
    "olmo3": Family("olmo3", chatml("\n<function_calls>\n" + PYTHON_ROWS + "\n</function_calls>")),
    "minicpm4": Family(
        "minicpm4",
        chatml(
            "{{ '<|tool_call_start|>\n```python\n' }}"
            + PYTHON_ROWS
            + "{{ '\n```\n<|tool_call_end|>' }}"
        ),
    ),
    "glm": Family(
        "glm",
        each(
            "{{ '\n<tool_call>' + f.name + '\n' }}"
            "{%- for k, v in f.arguments.items() %}"
            "{{ '<arg_key>' + k + '</arg_key>\n<arg_value>' }}"
            + TEXT_OR_JSON
            + "{{ '</arg_value>\n' }}{% endfor %}{{ '</tool_call>' }}"
        ),
        never=("</arg_value>",),
    ),
    "glm-4.7": Family(
        "glm-4.7",
        "{# <tool_call>{function-name}<arg_key> #}"
        + each(
            "{{ '<tool_call>' + f.name }}"
            "{%- for k, v in f.arguments.items() %}"
            "{{ '<arg_key>' + k + '</arg_key><arg_value>' }}"
            + TEXT_OR_JSON
            + "{{ '</arg_value>' }}{% endfor %}{{ '</tool_call>' }}"
        ),
        never=("</arg_value>",),
    ),
    "deepseek-v3": Family(
        "deepseek-v3",
        chatml(
            "<｜tool▁calls▁begin｜>"
            + each_of(
                "\n",
                "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ f.name }}{{ '\n```json\n' }}"
                "{{- f.arguments | tojson }}{{ '\n```<｜tool▁call▁end｜>' }}",
            )
            + "<｜tool▁calls▁end｜>"
        ),
    ),
    "deepseek-v3.1": Family(
        "deepseek-v3.1",
        chatml(
            "<｜tool▁calls▁begin｜>"
            + each_of(
                "",
                "<｜tool▁call▁begin｜>{{ f.name }}<｜tool▁sep｜>{{ f.arguments | tojson }}"
                "<｜tool▁call▁end｜>",
            )
            + "<｜tool▁calls▁end｜>"
        ),
    ),
    "deepseek-v3.2": Family(
        "deepseek-v3.2",
        chatml(
            "{{ '<｜DSML｜function_calls>\n' }}"
            + each_of(
                "\n",
                """{{ '<｜DSML｜invoke name="' + f.name + '">\n' }}"""
                "{%- for k, v in f.arguments.items() %}"
                """{{ '<｜DSML｜parameter name="' + k + '" string="' }}"""
                """{{- 'true' if v is string else 'false' }}{{ '">' }}"""
                + TEXT_OR_JSON
                + "{{ '</｜DSML｜parameter>\n' }}{% endfor %}{{ '</｜DSML｜invoke>' }}",
            )
            + "{{ '\n</｜DSML｜function_calls>' }}"
        ),
        never=("</｜DSML｜parameter>",),
    ),
    "minicpm": Family(
        "minicpm",
        each(
            """{{ '<function name="' + f.name + '">' }}"""
            """{%- for k, v in f.arguments.items() %}{{ '<param name="' + k + '">' }}"""
            + TEXT_OR_JSON
            + "{{ '</param>' }}{% endfor %}{{ '</function>' }}"
        ),
        never=("</param>",),
    ),
    "llama-json": Family(
        "llama-json",
        "{# <|python_tag|> #}"
        + each(OBJECT.replace('arguments"', 'parameters"') + "{{ '; ' if not loop.last }}"),
        content_with_calls=False,
    ),
    "llama-pythonic": Family(
        "llama-pythonic", "{# <|python_start|> #}" + chatml(PYTHON), content_with_calls=False
    ),
    "mistral": Family("mistral", chatml("[TOOL_CALLS]" + LISTED)),
    "mistral-args": Family(
        "mistral-args", each("[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}")
    ),
    "gpt-oss": Family("gpt-oss", HARMONY, None, end=("<|call|>", "<|end|>")),
    "gemma": Family(
        "gemma",
        gemma("<|tool_call>", "<tool_call|>", '<|"|>'),
        THOUGHTS[1],
        never=('<|"|>',),
        bare_keys=True,
    ),
    "functiongemma": Family(
        "functiongemma",
        gemma("<start_function_call>", "<end_function_call>", "<escape>"),
        THOUGHTS[1],
        never=("<escape>",),
        bare_keys=True,
    ),
    "lfm2": Family("lfm2", chatml("<|tool_call_start|>" + PYTHON + "<|tool_call_end|>")),
    "granite3": Family("granite3", chatml("<|tool_call|>" + LISTED)),
}

LETTERS = "abcxyzÄß漢😀 \n\t\"'\\/{}[]()<>=:,;|#%&0123456789_.-"


class Talks:
    """Conversations drawn at random."""

    def __init__(self, seed: int, family: Family) -> None:
        self.random = random.Random(seed)
        self.family = family
        self.tools = [
            self._tool(f"{name}_{i}") for i, name in enumerate(("get", "Write.file", "a-b"))
        ]

    def _tool(self, name: str) -> dict[str, Any]:
        kinds = ("string", "integer", "number", "boolean", "array", "object", "string")
        properties = {
            f"{letter}_{kind}": {"type": kind}
            for letter, kind in zip("abcdefg", self.random.sample(kinds, 5), strict=False)
        }
        # Python's names of functions have no hyphen, and arguments are words everywhere.
        if "pythonic" in self.family.format or self.family.format in (
            "lfm2",
            "olmo3",
            "minicpm4",
        ):
            name = name.replace("-", "_")
        schema = {"type": "object", "properties": properties}
        return {
            "type": "function",
            "function": {"name": name, "description": "", "parameters": schema},
        }

    def text(self, most: int = 40) -> str:
        while True:
            text = "".join(self.random.choices(LETTERS, k=self.random.randrange(most)))
            if not any(never in text for never in self.family.never):
                return text

    def prose(self) -> str:
        words = ["Let", "me", "see.", "ja\nnein", "漢字", "😀", "1 < 2", "{x}", "[1]"]
        return " ".join(self.random.choices(words[:8], k=self.random.randrange(1, 8)))

    def value(self, kind: str, depth: int = 0) -> Any:
        draw = self.random
        if kind == "string":
            return self.text()
        if kind == "integer":
            return draw.choice([0, -1, 7, 2**53, -(2**62), draw.randrange(-1000, 1000)])
        if kind == "number":
            return draw.choice([0.5, -1.25e-7, 1e22, 3.0, draw.random()])
        if kind == "boolean":
            return draw.random() < 0.5
        inner = ["string", "integer", "boolean", "null"] + (
            ["array", "object"] if depth < 3 else []
        )
        if kind == "null":
            return None
        entries = [self.value(draw.choice(inner), depth + 1) for _ in range(draw.randrange(4))]
        if kind == "array":
            return entries
        keys = (f"k{i}" if self.family.bare_keys else self.text(8) + str(i) for i in range(4))
        return dict(zip(keys, entries, strict=False))

    def message(self) -> dict[str, Any]:
        draw = self.random
        calls = []
        for _ in range(draw.choice([0, 1, 1, 2, 3])):
            function = draw.choice(self.tools)["function"]
            properties = function["parameters"]["properties"]
            keys = draw.sample(sorted(properties), draw.randrange(len(properties) + 1))
            arguments = {key: self.value(properties[key]["type"]) for key in keys}
            calls.append(
                {
                    "type": "function",
                    "id": "x" * 9,
                    "function": {"name": function["name"], "arguments": arguments},
                }
            )
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        if not calls or (self.family.content_with_calls and draw.random() < 0.5):
            message["content"] = self.prose()
        if draw.random() < 0.5:
            message["reasoning_content"] = self.prose()
        if calls:
            message["tool_calls"] = calls
        return message

    def pieces(self, text: str) -> list[str]:
        cuts = sorted(
            self.random.sample(range(len(text) + 1), min(len(text), self.random.randrange(40)))
        )
        return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
