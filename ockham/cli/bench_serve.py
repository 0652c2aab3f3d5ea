"""`ockham bench serve`: load an OpenAI-compatible server with requests and time the answers."""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ockham.cli.options import Integer, config_file, option
from ockham.cli.report import duration
from ockham.cli.spread import spread
from ockham.core.errors import ConfigError, OckhamError

if TYPE_CHECKING:
    from httpx import AsyncClient

ERRORS_SHOWN = 5
DEFAULT_INPUT_LEN = 128


@dataclass(slots=True)
class Answer:
    """What one request gave. Seconds since it was sent; `error` is None if all went well."""

    first_s: float = math.nan
    end_s: float = math.nan
    gaps_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    generated_tokens: int = 0
    error: str | None = None

    @property
    def per_token_s(self) -> float:
        return (self.end_s - self.first_s) / (self.generated_tokens - 1)


@dataclass(frozen=True, slots=True)
class Load:
    """The requests to send."""

    model: str
    prompts: list[str | list[int]]
    output_len: int
    request_rate: float
    concurrency: int
    seed: int


@click.command()
@option(
    "--base-url", default="http://127.0.0.1:8000", show_default=True, help="Where the server is."
)
@option("--model", default=None, help="Model to ask for; the server's first by default.")
@option("--api-key", default=None, help="Key, if the server wants one.")
@option("--num-prompts", type=Integer(), default=100, show_default=True, help="Requests to send.")
@option(
    "--request-rate",
    type=float,
    default=math.inf,
    show_default=True,
    help="Requests a second on average, at random (Poisson) times; 'inf' sends all at once.",
)
@option("--max-concurrency", type=Integer(), default=64, show_default=True, help="Most at once.")
@option("--prompt", default=None, help="Prompt of every request, instead of random token ids.")
@option("--input-len", type=Integer(), default=None, help="Random tokens. [default: 128]")
@option("--output-len", type=Integer(), default=64, show_default=True, help="Tokens to generate.")
@option(
    "--vocab-size",
    type=Integer(),
    default=1000,
    show_default=True,
    help="Random token ids are below this; no more than the model's vocabulary.",
)
@option("--seed", type=Integer(), default=0, show_default=True, help="Seed of the random prompts.")
@option("--timeout", type=float, default=600.0, show_default=True, help="Seconds for one answer.")
@option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@config_file
def serve(
    base_url: str,
    model: str | None,
    api_key: str | None,
    num_prompts: int,
    request_rate: float,
    max_concurrency: int,
    prompt: str | None,
    input_len: int | None,
    output_len: int,
    vocab_size: int,
    seed: int,
    timeout: float,
    as_json: bool,
) -> None:
    """Send completions to a running server and report latencies and throughput."""
    if prompt is not None and input_len is not None:
        raise ConfigError(
            f"--prompt and --input-len {input_len} contradict each other: a prompt has the length "
            "it has. Give one of them."
        )
    if input_len is None:
        input_len = DEFAULT_INPUT_LEN
    for name, value in (
        ("num-prompts", num_prompts),
        ("max-concurrency", max_concurrency),
        ("input-len", input_len),
        ("output-len", output_len),
        ("vocab-size", vocab_size),
        ("request-rate", request_rate),
    ):
        if not value > 0:
            raise ConfigError(f"--{name} must be above 0, got {value}.")
    numbers = random.Random(seed)
    prompts: list[str | list[int]] = [
        prompt if prompt is not None else [numbers.randrange(vocab_size) for _ in range(input_len)]
        for _ in range(num_prompts)
    ]
    report = asyncio.run(
        _measure(
            base_url,
            api_key,
            timeout,
            model,
            prompts,
            output_len,
            request_rate,
            max_concurrency,
            seed,
        )
    )
    if as_json:
        # msgspec writes NaN, the spread of nothing, as null.
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
    else:
        for line in _lines(report):
            click.echo(line)
    if report["failed"]:
        sys.exit(1)  # not ctx.exit, whose status `main` never sees: it is not standalone


async def _measure(
    base_url: str,
    api_key: str | None,
    timeout_s: float,
    model: str | None,
    prompts: list[str | list[int]],
    output_len: int,
    request_rate: float,
    concurrency: int,
    seed: int,
) -> dict[str, Any]:
    import httpx

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    connections = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(
        base_url=base_url.rstrip("/").removesuffix("/v1"),
        headers=headers,
        timeout=timeout_s,
        limits=connections,
        trust_env=False,
    ) as client:
        name = model or await _first_model(client)
        load = Load(name, prompts, output_len, request_rate, concurrency, seed)
        started = time.perf_counter()
        answers = await _send_all(client, load)
        return _report(load, answers, time.perf_counter() - started)


async def _first_model(client: AsyncClient) -> str:
    import httpx

    try:
        response = await client.get("/v1/models")
        response.raise_for_status()
        return str(response.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise OckhamError(
            f"{client.base_url} does not say which models it has ({error}). Is the server up? "
            "Start one with `ockham serve`, or set --base-url or --api-key."
        ) from error


async def _send_all(client: AsyncClient, load: Load) -> list[Answer]:
    """Send each request at its time, no more than so many at once."""
    numbers = random.Random(load.seed + 1)
    room = asyncio.Semaphore(load.concurrency)

    async def send(prompt: str | list[int]) -> Answer:
        async with room:
            return await _send(client, load, prompt)

    tasks = []
    for prompt in load.prompts:
        tasks.append(asyncio.create_task(send(prompt)))
        if math.isfinite(load.request_rate):
            await asyncio.sleep(numbers.expovariate(load.request_rate))
    return await asyncio.gather(*tasks)


async def _send(client: AsyncClient, load: Load, prompt: str | list[int]) -> Answer:
    """Stream one completion."""
    import httpx

    body = {
        "model": load.model,
        "prompt": prompt,
        "max_tokens": load.output_len,
        "ignore_eos": True,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = Answer()
    started = last = time.perf_counter()
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")
                answer.error = f"status {response.status_code}: {text[:300]}"
                return answer
            async for line in response.aiter_lines():
                if not line.startswith("data:") or line.endswith("[DONE]"):
                    continue
                now = time.perf_counter()
                event = json.loads(line[5:])
                if "error" in event:
                    answer.error = str(event["error"])[:300]
                    return answer
                usage = event.get("usage")
                if usage:
                    answer.prompt_tokens = usage["prompt_tokens"]
                    answer.generated_tokens = usage["completion_tokens"]
                if not event.get("choices"):
                    continue
                if math.isnan(answer.first_s):
                    answer.first_s = now - started
                else:
                    answer.gaps_s.append(now - last)
                last = now
                answer.end_s = now - started
    except (httpx.HTTPError, ValueError, LookupError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    if answer.error is None and (math.isnan(answer.first_s) or not answer.generated_tokens):
        answer.error = "the stream ended without text or without usage"
    return answer


def _report(load: Load, answers: list[Answer], seconds: float) -> dict[str, Any]:
    good = [answer for answer in answers if answer.error is None]
    generated = sum(answer.generated_tokens for answer in good)
    prompt_tokens = sum(answer.prompt_tokens for answer in good)
    return {
        "kind": "serve",
        "model": load.model,
        "request_rate": load.request_rate if math.isfinite(load.request_rate) else None,
        "max_concurrency": load.concurrency,
        "completed": len(good),
        "failed": len(answers) - len(good),
        "errors": [answer.error for answer in answers if answer.error][:ERRORS_SHOWN],
        "duration_s": seconds,
        "prompt_tokens": prompt_tokens,
        "generated_tokens": generated,
        "requests_per_s": len(good) / seconds,
        "output_tokens_per_s": generated / seconds,
        "total_tokens_per_s": (prompt_tokens + generated) / seconds,
        "time_to_first_token_s": spread([answer.first_s for answer in good]),
        "time_per_output_token_s": spread(
            [answer.per_token_s for answer in good if answer.gaps_s and answer.generated_tokens > 1]
        ),
        "inter_token_latency_s": spread([gap for answer in good for gap in answer.gaps_s]),
        "end_to_end_s": spread([answer.end_s for answer in good]),
    }


def _lines(report: dict[str, Any]) -> list[str]:
    lines = [
        f"{report['completed']} completed, {report['failed']} failed in "
        f"{duration(report['duration_s'])}",
        *(f"  error: {error}" for error in report["errors"]),
        f"throughput               {report['requests_per_s']:.2f} requests/s, "
        f"{report['output_tokens_per_s']:.1f} output tokens/s, "
        f"{report['total_tokens_per_s']:.1f} tokens/s in all",
    ]
    if report["completed"]:
        for name, key in (
            ("time to first token", "time_to_first_token_s"),
            ("time per output token", "time_per_output_token_s"),
            ("inter-token latency", "inter_token_latency_s"),
            ("end to end", "end_to_end_s"),
        ):
            values = report[key]
            if math.isnan(values["median"]):
                lines.append(f"{name:<24} not measured: every answer came in one piece")
                continue
            lines.append(
                f"{name:<24} median {duration(values['median'])}, mean {duration(values['mean'])}, "
                f"p90 {duration(values['p90'])}, p99 {duration(values['p99'])}"
            )
    return lines
