"""OpenTelemetry traces: a span for each request, by OTLP over HTTP (`--otlp-traces-endpoint`).

Attributes have the names of OpenTelemetry's conventions for HTTP and generative AI where these have
one, vLLM's `gen_ai.latency.*` for times, and `ockham.*` for the bill. None holds a caller's text.

A finished span is put into a bounded queue. A thread sends what is there every few seconds; if the
collector is slow or gone, the queue's newest spans are dropped, and nobody waits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

import ockham
from ockham.api.server.wire import UsageMeter
from ockham.core.errors import ConfigError
from ockham.core.sampling_params import SamplingParams

log = logging.getLogger("ockham.server")

ASKED = "ockham.asked"
"""Where a request's scope holds the model and the `SamplingParams` that it asks for."""
CLOSE_S = 2.0
"""How long the end of the server waits for the last spans to be taken."""
QUIET = frozenset({"/health", "/ping", "/metrics", "/", "/docs", "/openapi.json"})
"""Routes that programs ask all day long, and pages: they have no span."""
_OPERATIONS = {
    "completions": "text_completion",
    "generate": "text_completion",
    "infill": "text_completion",
    "embed": "embeddings",
    "embedding": "embeddings",
    "embeddings": "embeddings",
    "pooling": "embeddings",
    "rerank": "rerank",
    "reranking": "rerank",
    "score": "score",
    "classify": "classify",
}
"""Last word of a route without "chat" -> `gen_ai.operation.name`, where it is not "chat"."""
_CONTEXT = ("traceparent", "tracestate")


class Traces:
    """Makes the spans of a server and sends them."""

    def __init__(self, endpoint: str) -> None:
        """Raises `ConfigError` for an address that cannot be one, and if the packages of the extra
        `otel` are not installed."""
        url = _checked(endpoint)
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigError(
                f"--otlp-traces-endpoint needs OpenTelemetry, which is not installed ({error}): "
                "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http."
            ) from error
        about = {"service.version": ockham.__version__}
        if "OTEL_SERVICE_NAME" not in os.environ:
            about["service.name"] = "ockham"
        self._provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        self._tracer = self._provider.get_tracer("ockham", ockham.__version__)
        self._context = TraceContextTextMapPropagator()
        self._server, self._failed = SpanKind.SERVER, StatusCode.ERROR

    def begin(self, scope: Scope, headers: Headers) -> Trace | None:
        """The span of a request, within the trace that its `traceparent` names; None for one that
        has none. A `traceparent` that cannot be read counts as none."""
        if scope["path"] in QUIET:
            return None
        given = {name: headers[name] for name in _CONTEXT if name in headers}
        context = self._context.extract(given) if given else None
        span = self._tracer.start_span(scope["method"], context, kind=self._server)
        return Trace(span, self._failed)

    async def close(self) -> None:
        """Send what there is, for `CLOSE_S` at most."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, CLOSE_S)
        if sending.is_alive():
            log.warning("The last traces could not be sent within %g s and are lost.", CLOSE_S)


class Trace:
    """The span of one request."""

    def __init__(self, span: Any, failed: Any) -> None:
        self._span = span
        self._failed = failed

    @property
    def trace_id(self) -> str:
        """As logs have it, to be found in the other."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def end(
        self,
        scope: Scope,
        route: str,
        status: int,
        meter: UsageMeter | None,
        model: str,
        drafters: Sequence[str],
    ) -> None:
        """End the span, with all that is known of the request now. `meter` has what was used, None
        where nothing was asked of a model. `model` is its name in answers, `drafters` are the names
        under which its ledgers have what was drafted."""
        span = self._span
        if not span.is_recording():  # whoever called does not want it
            span.end()
            return
        word = "" if "chat" in route else route.rpartition("/")[2]
        operation = _OPERATIONS.get(word, "chat")
        span.update_name(f"{scope['method']} {route}" if meter is None else f"{operation} {model}")
        attributes: dict[str, Any] = {
            "http.request.method": scope["method"],
            "http.route": route,
            "http.response.status_code": status,
            "url.path": scope["path"][:200],
            "url.scheme": scope.get("scheme", "http"),
            "ockham.request_id": scope["ockham.request_id"],
        }
        if scope.get("client"):
            attributes["client.address"] = scope["client"][0]
        if status >= 400:
            attributes["error.type"] = str(status)
        if meter is not None:
            attributes["gen_ai.operation.name"] = operation
            attributes |= self._asked(scope) | _used(scope, meter, model, drafters)
        span.set_attributes(attributes)
        if status >= 500:
            span.set_status(self._failed)
        span.end()

    def _asked(self, scope: Scope) -> dict[str, Any]:
        if ASKED not in scope:
            return {}
        model, params = scope[ASKED]
        found = _request(params)
        return {"gen_ai.request.model": model, **found} if model else found


def _used(scope: Scope, meter: UsageMeter, model: str, drafters: Sequence[str]) -> dict[str, Any]:
    course = meter.course
    ledger, (drafted, accepted) = course.ledger, course.drafted(drafters)
    found: dict[str, Any] = {
        "gen_ai.provider.name": "ockham",
        "gen_ai.request.id": scope["ockham.request_id"],
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": list(course.endings),
        "gen_ai.usage.input_tokens": meter.prompt_tokens,
        "gen_ai.usage.output_tokens": course.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": ledger.prompt_tokens_reused,
        "gen_ai.latency.time_in_queue": ledger.queue_s,
        "gen_ai.latency.time_in_model_prefill": ledger.prefill_s,
        "gen_ai.latency.time_in_model_decode": ledger.decode_s,
        "ockham.prompt_tokens_computed": ledger.prompt_tokens_computed,
        "ockham.rows": ledger.rows,
        "ockham.flops": ledger.flops,
        "ockham.weight_bytes": ledger.weight_bytes,
        "ockham.state_read_bytes": ledger.state_read_bytes,
        "ockham.state_written_bytes": ledger.state_written_bytes,
        "ockham.drafted_tokens": drafted,
        "ockham.accepted_tokens": accepted,
    }
    if meter.reasoning_tokens is not None:
        found["gen_ai.usage.reasoning.output_tokens"] = meter.reasoning_tokens
    if (first_s := course.first_token_s) is not None:
        found["gen_ai.latency.time_to_first_token"] = first_s
    for kind, savings in (("saved", ledger.saved), ("wasted", ledger.wasted)):
        for technique, saving in savings.items():
            found[f"ockham.{kind}.{technique}.tokens"] = saving.tokens
            found[f"ockham.{kind}.{technique}.flops"] = saving.flops
    return found


def _request(params: SamplingParams) -> dict[str, Any]:
    """What was asked for, without what is at its neutral value."""
    named = {
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k or None,
        "presence_penalty": params.presence_penalty or None,
        "frequency_penalty": params.frequency_penalty or None,
        "seed": params.seed,
        "choice.count": params.n if params.n != 1 else None,
    }
    return {f"gen_ai.request.{name}": value for name, value in named.items() if value is not None}


def _checked(endpoint: str) -> str:
    """The address that spans are posted to: OTLP's usual path where only a host is named."""
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(
            f"--otlp-traces-endpoint {endpoint!r} is no address of a collector: traces are sent by "
            "OTLP over HTTP, as to http://127.0.0.1:4318/v1/traces (not by gRPC, to port 4317)."
        )
    return endpoint if parts.path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
