"""Traces: a span for each request, in the caller's trace, sent by OTLP; nobody waits for that."""

from __future__ import annotations

import http.server
import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ockham.api.server.traces import CLOSE_S, Traces
from ockham.core.errors import ConfigError
from tests.api.server.conftest import TINY_FLAGS
from tests.helpers.live import LiveServer, wait_for

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Takes what is sent by OTLP over HTTP; a deaf one never answers."""

    def __init__(self, deaf: bool = False) -> None:
        self.spans: list[Any] = []
        self.service: dict[str, Any] = {}
        self.paths: set[str] = set()
        self.asked = threading.Event()
        self.over = threading.Event()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.asked.set()
                if deaf:
                    collector.over.wait(60)
                    return
                collector.take(self.path, body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                return

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, path: str, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        self.paths.add(path)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.service |= attributes(resource.resource)
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def of(self, request_id: str) -> Any:
        """The span of a request, once it has come."""

        def found() -> list[Any]:
            return [x for x in self.spans if attributes(x)["ockham.request_id"] == request_id]

        (span,) = wait_for(found, 10)
        return span

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()


def attributes(of: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        if kind == "array_value":
            return [plain(each) for each in value.array_value.values]
        return getattr(value, kind)

    return {each.key: plain(each.value) for each in of.attributes}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    live = Collector()
    yield live
    live.close()


@pytest.fixture(scope="module")
def traced(tiny, tmp_path_factory, collector) -> Iterator[LiveServer]:
    flags = (*TINY_FLAGS, "--served-model-name", "tiny", "--log-format", "json")
    flags = (*flags, "--otlp-traces-endpoint", collector.url)
    directory = tmp_path_factory.mktemp("traced")
    with LiveServer(tiny, directory, *flags, OTEL_BSP_SCHEDULE_DELAY="20") as live:
        yield live


def ask(server: LiveServer, name: str, **more: Any) -> Any:
    headers = {"X-Request-Id": name, **more.pop("headers", {})}
    body = {"model": "tiny", "prompt": "a b c", "max_tokens": 4, "ignore_eos": True, **more}
    return server.post("/v1/completions", body, headers=headers)


def test_a_request_is_a_span_of_the_callers_trace_with_times_and_bill(traced, collector):
    answer = ask(traced, "one", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}).json()
    span = collector.of("one")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.name == "text_completion tiny"
    assert span.end_time_unix_nano > span.start_time_unix_nano
    found, bill = attributes(span), answer["usage"]["ockham"]
    assert found["http.route"] == "/v1/completions"
    assert found["http.response.status_code"] == 200
    assert found["gen_ai.operation.name"] == "text_completion"
    assert found["gen_ai.request.model"] == found["gen_ai.response.model"] == "tiny"
    assert found["gen_ai.request.max_tokens"] == 4
    assert found["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == 4
    assert found["gen_ai.response.finish_reasons"] == ["length"]
    for phase in ("queue", "model_prefill", "model_decode"):
        name = f"{phase.removeprefix('model_')}_s"
        assert found[f"gen_ai.latency.time_in_{phase}"] == pytest.approx(bill[name])
    assert found["ockham.flops"] == bill["flops"]
    assert found["ockham.weight_bytes"] == bill["weight_bytes"]
    assert collector.paths == {"/v1/traces"}
    assert collector.service["service.name"] == "ockham"


def test_the_line_in_the_log_names_the_trace(traced, collector):
    ask(traced, "logged")
    span = collector.of("logged")
    lines = [json.loads(line) for line in traced.log.splitlines()]
    (line,) = [x for x in lines if x.get("request_id") == "logged"]
    assert line["trace_id"] == span.trace_id.hex()


def test_what_was_reused_is_in_the_span(traced, collector):
    for name in ("first", "again"):
        ask(traced, name, prompt="x y z " * 100)
    found = attributes(collector.of("again"))
    assert found["gen_ai.usage.cache_read.input_tokens"] > 0
    assert found["ockham.saved.prefix.tokens"] > 0


def test_streams_and_refusals_have_spans_and_checks_of_health_have_none(traced, collector):
    ask(traced, "streamed", stream=True)
    assert attributes(collector.of("streamed"))["gen_ai.usage.output_tokens"] == 4
    traced.get("/health", headers={"X-Request-Id": "well"})
    ask(traced, "refused", n=0, headers={"traceparent": "no trace"})
    refused = collector.of("refused")
    assert refused.name == "POST /v1/completions"
    assert refused.parent_span_id == b""
    assert attributes(refused)["error.type"] == "400"
    assert not [x for x in collector.spans if attributes(x)["ockham.request_id"] == "well"]


def test_who_does_not_want_a_trace_gets_none(traced, collector):
    ask(traced, "unwanted", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    ask(traced, "wanted")
    collector.of("wanted")
    assert not [x for x in collector.spans if attributes(x)["ockham.request_id"] == "unwanted"]


def test_a_deaf_collector_holds_up_neither_answers_nor_the_end(tiny, tmp_path):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    deaf = Collector(deaf=True)
    flags = (*TINY_FLAGS, "--otlp-traces-endpoint", f"{deaf.url}/v1/traces")
    try:
        with LiveServer(tiny, tmp_path, *flags, OTEL_BSP_SCHEDULE_DELAY="20") as live:
            live.complete(prompt="a")
            assert deaf.asked.wait(20)
            for _ in range(3):
                live.complete(prompt="a")
            begin_s = time.monotonic()
            assert live.stop() == 0
            # Without the bound the end would wait for the collector's 60 s.
            assert time.monotonic() - begin_s < CLOSE_S + 15
            assert "could not be sent" in live.log
    finally:
        deaf.close()


@pytest.mark.parametrize(
    "address", ["localhost:4318", "grpc://a:4317", "http://", "http://a:b", "http://[", ""]
)
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ConfigError, match="no address of a collector"):
        Traces(address)


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    for name in [x for x in sys.modules if x.startswith("opentelemetry.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match="pip install opentelemetry-sdk"):
        Traces("http://127.0.0.1:4318")
