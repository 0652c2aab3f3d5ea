"""`ockham chat --url`: a conversation with a server that runs, over OpenAI's chat completions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import httpx
import msgspec

from ockham.cli.conversation import Conversation, tell_end
from ockham.cli.default_model import NAMED
from ockham.cli.options import sampling_params
from ockham.cli.thoughts import Said
from ockham.core.errors import ConfigError, InvalidRequest, OckhamError
from ockham.core.ledger import Ledger
from ockham.core.numbers import shown
from ockham.core.sampling_params import SamplingParams

CONNECT_S = 10.0
DEFAULTS = SamplingParams()
OURS = ("asks", "thought", "n")
"""Parameters that are said in another way, or not at all."""


def connect(
    url: str, api_key: str | None, system_prompt: str | None, thinking: bool | None, **kwargs: Any
) -> RemoteConversation:
    """A conversation with the server at an address, with or without /v1. `kwargs` are the flags of
    `ockham chat`. Raises ConfigError if there is no such server, or it has not the model."""
    _refuse_engine_flags()
    base = url.rstrip("/").removesuffix("/v1")
    if not base.startswith(("http://", "https://")):
        raise ConfigError(f"--url must begin with http:// or https://, got {shown(url)}.")
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    # No limit for reading: a long prompt may keep a server silent for minutes.
    timeout = httpx.Timeout(None, connect=CONNECT_S)
    client = httpx.Client(base_url=base, headers=headers, timeout=timeout)
    with _answering(base):
        response = client.get("/v1/models")
        _check(response)
        models = response.json()["data"]
    name = kwargs["model"] if click.get_current_context().meta.get(NAMED, True) else None
    found = [each for each in models if name is None or each["id"] == name]
    if not found:
        there = ", ".join(each["id"] for each in models)
        raise ConfigError(f"{base} has no model {shown(name)}; it has {there or 'none'}.")
    defaults = SamplingParams(**found[0].get("chat_sampling_defaults", {}))
    params = sampling_params(defaults, **kwargs)
    return RemoteConversation(client, found[0], params, system_prompt, thinking)


def _refuse_engine_flags() -> None:
    """Raise UsageError for flags that the server's own engine would have to be started with."""
    context = click.get_current_context()
    known = {*SamplingParams.__struct_fields__, "system_prompt", "thinking", "url", "api_key"}
    known |= {"model", "model_argument", "ask", "sampling_seed", "thinking_budget"}
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name not in known and source is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"{parameter.opts[0]} is a setting of an engine, and --url talks with one that "
                "runs; leave it out."
            )


class RemoteConversation(Conversation):
    """With a model of a server."""

    def __init__(
        self,
        client: httpx.Client,
        model: dict[str, Any],
        params: SamplingParams,
        system_prompt: str | None,
        thinking: bool | None,
    ) -> None:
        super().__init__(params, system_prompt, thinking)
        self._client = client
        self.name = self.model = model["id"]
        self.longest = int(model.get("max_model_len") or 0)
        self.described = f"{self.name} at {client.base_url}"
        if self.longest:
            self.described += f", context {self.longest} tokens"
        self._usage: dict[str, Any] = {}
        self._finish_reason: str | None = None

    def count(self) -> None:
        """The server tells with the next answer."""
        self.context_tokens = 0

    def generate(self) -> str:
        """Show the answer to the last message as it comes."""
        self._usage, self._finish_reason = {}, None
        answer: list[str] = []
        with (
            _answering(str(self._client.base_url)),
            self._client.stream("POST", "/v1/chat/completions", json=self._body()) as response,
        ):
            if response.status_code != 200:
                response.read()
                _check(response)
            stopped = self.show(self._said(response, answer), "waiting for the server ...")
        text = "".join(answer)
        bill = self._usage.get("ockham")
        if bill is not None:
            self.spent.add(msgspec.convert(bill, Ledger))
        self.context_tokens = int(self._usage.get("total_tokens", 0))
        tell_end(stopped, text, self._finish_reason)
        return text

    def _body(self) -> dict[str, Any]:
        params = self.seeded()
        defaults = msgspec.to_builtins(DEFAULTS)
        given = {
            name: value
            for name, value in msgspec.to_builtins(params).items()
            if name not in OURS and value != defaults.get(name)
        }
        for key, ask in (params.asks or {}).items():
            given[key.partition("/")[2]] = msgspec.to_builtins(ask) or True
        if self.thinking is not None:
            given["chat_template_kwargs"] = {"enable_thinking": self.thinking}
        return {
            **given,
            "model": self.model,
            "messages": self.messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def _said(self, response: httpx.Response, answer: list[str]) -> Iterator[Said]:
        """What is new with each event; the content goes to `answer` as well."""
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise InvalidRequest(str(event["error"].get("message", event["error"])))
            self._usage = event.get("usage") or self._usage
            for choice in event.get("choices") or ():
                delta = choice.get("delta") or {}
                self._finish_reason = choice.get("finish_reason") or self._finish_reason
                content = delta.get("content") or ""
                answer.append(content)
                thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
                yield Said(thought, content)


@contextmanager
def _answering(base: str) -> Iterator[None]:
    """A server that cannot be reached, or goes away, is a sentence."""
    try:
        yield
    except OckhamError:
        raise
    except (httpx.HTTPError, KeyError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise ConfigError(f"{base} does not answer as OpenAI's API does: {reason}.") from error


def _check(response: httpx.Response) -> None:
    """Raise what the server refused a request with."""
    if response.status_code == 200:
        return
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"{response.url} answered {response.status_code}."
    if response.status_code in (401, 403):
        raise ConfigError(f"{message} --api-key gives one.")
    raise InvalidRequest(str(message))
