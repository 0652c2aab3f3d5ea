"""The OpenAPI document as a page to read: HTML without a script, and nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from html import escape
from typing import Any

import msgspec

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1a1a1a;background:#fff}
h2{margin-top:2.5rem;border-bottom:1px solid #ccc}
details{border:1px solid #ddd;border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}
summary{cursor:pointer}code,pre{font:13px/1.45 ui-monospace,monospace}
pre{background:#f4f4f4;padding:.8rem;overflow:auto;border-radius:6px}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;
border-top:1px solid #e4e4e4;padding:.25rem .6rem .25rem 0}
.method{font-weight:700;display:inline-block;min-width:4rem}a{color:#0645ad}
@media(prefers-color-scheme:dark){body{background:#161616;color:#e6e6e6}pre{background:#222}
details,td,th,h2{border-color:#3a3a3a}a{color:#8ab4f8}}
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""The page's content security policy: its own style, and nothing else."""


def page(document: dict[str, Any]) -> str:
    """The page that shows a document."""
    info = document["info"]
    title = f"{escape(info['title'])} {escape(info['version'])}"
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{title}</h1><p>{escape(info['description'])}</p>"
        '<p>The same for programs: <a href="openapi.json">openapi.json</a>.</p>',
        *_routes(document["paths"]),
        "<h2>Schemas</h2>",
        *(_schema(name, each) for name, each in sorted(document["components"]["schemas"].items())),
        "</body></html>",
    ]
    return "\n".join(parts)


def _routes(paths: dict[str, Any]) -> Iterator[str]:
    by_tag: dict[str, list[str]] = {}
    for path, methods in paths.items():
        for method, operation in methods.items():
            by_tag.setdefault(operation["tags"][0], []).append(_route(path, method, operation))
    for tag, routes in by_tag.items():
        yield f"<h2>{escape(tag)}</h2>"
        yield from routes


def _route(path: str, method: str, operation: dict[str, Any]) -> str:
    lines = [
        f'<details id="{escape(operation["operationId"])}"><summary><span class="method">'
        f"{method.upper()}</span> <code>{escape(path)}</code> {escape(operation['summary'])}"
        f"</summary><p>{escape(operation['description'])}</p>"
    ]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        lines.append(f"<p>Takes {_type(content['schema'])}.</p>")
        if "example" in content:
            example = msgspec.json.format(msgspec.json.encode(content["example"]), indent=2)
            lines.append(f"<pre>{escape(example.decode())}</pre>")
    lines.append("<table>")
    for code, response in operation["responses"].items():
        kinds = ", ".join(
            f"{escape(kind)}: {_content(content)}"
            for kind, content in response.get("content", {}).items()
        )
        said = escape(response["description"])
        lines.append(f"<tr><td>{code}</td><td>{said}</td><td>{kinds}</td></tr>")
    lines.append("</table></details>")
    return "".join(lines)


def _schema(name: str, schema: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code>{'*' if field in schema.get('required', ()) else ''}"
        f"</td><td>{_type(each)}</td><td>{escape(each.get('description', ''))}</td></tr>"
        for field, each in schema.get("properties", {}).items()
    )
    return (
        f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>'
        f"<p>{escape(schema.get('description', ''))}</p><table>{rows}</table></details>"
    )


def _content(content: dict[str, Any]) -> str:
    if "x-item-schema" in content:
        return f"objects of {_type(content['x-item-schema'])}, one after the other"
    return _type(content["schema"])


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words, with a link to what it refers to."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"<code>{escape(_json(each))}</code>" for each in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items') or {})}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return escape(str(schema.get("type", "anything")))


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
