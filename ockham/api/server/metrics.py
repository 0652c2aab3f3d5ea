"""Prometheus metrics under vLLM's names, with the prefix `ockham_`, and the ledger's own.

The engine counts from zero when it is restarted; these counters go on, because they add up what
its statistics gained since the last ones. They are exact whenever the engine is idle, and a
fraction of a second behind while it works.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.process_collector import ProcessCollector

from ockham.core.guarded import Guarded, GuardStats
from ockham.core.ledger import Ledger
from ockham.core.speculative import DraftStats
from ockham.engine.messages import Delta, Ready, Stats
from ockham.engine.stream import Stream

_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
_TOKENS = tuple(float(2**power) for power in range(18))

_COUNTED = {
    "prompt_tokens": ("prompt_tokens", "Prompt tokens taken, once for each choice."),
    "generated_tokens": ("generation_tokens", "Tokens generated."),
    "prompt_tokens_computed": ("prompt_tokens_computed", "Prompt tokens that were computed."),
    "prompt_tokens_reused": ("prompt_tokens_reused", "Prompt tokens that were reused."),
    "rows": ("rows", "Token rows computed, recomputation included."),
    "flops": ("flops", "Floating-point operations of the forward passes."),
    "weight_bytes": ("weight_bytes", "Bytes of weights read."),
    "state_read_bytes": ("state_read_bytes", "Bytes of state (keys and values) read."),
    "state_written_bytes": ("state_written_bytes", "Bytes of state written."),
}
"""Field of the engine's ledger -> name and description of its counter."""
_PREFIX_CACHE = {
    "prompt_tokens": ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
    "prompt_tokens_reused": ("prefix_cache_hits", "Prompt tokens found there."),
}
"""The same under vLLM's names."""
_SAVING = ("tokens", "flops", "bytes")
_TIER_GAUGES = {
    "disk_bytes": ("kv_store_bytes", "Bytes reserved on disk for keys and values."),
    "disk_pages": ("kv_store_pages", "Pages of keys and values on disk."),
    "memory_bytes": ("kv_swap_bytes", "Bytes of keys and values in memory beside the pool."),
}
_TIER_COUNTERS = {
    "bytes_read": ("kv_store_read_bytes", "Bytes of keys and values read from disk."),
    "bytes_written": ("kv_store_written_bytes", "Bytes of keys and values written to disk."),
    "refused": ("kv_store_refused", "Entries on disk that were damaged, torn or another's."),
    "skipped": ("kv_store_skipped", "Pages not written, as the disk was too slow or full."),
    "disk_evicted": ("kv_store_evicted", "Pages on disk that gave way to others."),
    "fetched": ("kv_fetched_pages", "Pages brought back into the pool from memory or disk."),
}
"""Field of the engine's `TierStats` -> name and description."""

_DRAFT_COUNTERS = {
    "drafts": ("spec_decode_num_drafts", "Drafts that were verified."),
    "tokens": ("spec_decode_num_draft_tokens", "Tokens of those drafts."),
    "accepted": ("spec_decode_num_accepted_tokens", "Tokens of them that were accepted."),
}
"""Field of the engine's `DraftStats` -> name and description, which are vLLM's."""
_GUARD_COUNTERS = {
    "shadowed": ("guard_shadowed", "Texts that the exact model has scored again."),
    "dropped": ("guard_dropped", "Texts that were chosen for it and were not scored."),
    "rows": ("guard_rows", "Token rows computed for it."),
}
"""Field of the engine's `GuardStats` -> name and description."""


M = TypeVar("M", Counter, Gauge, Histogram)


class Families:
    """The metrics of a server by name, each of which has series for several models."""

    def __init__(self) -> None:
        # They would be a second series for each counter, which nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._made: dict[str, Any] = {}

    def get(self, kind: type[M], name: str, text: str, *labels: str, **settings: Any) -> M:
        """The metric of a name, which is made the first time. It has the label `model_name`, and
        `labels` besides."""
        if name not in self._made:
            names = ("model_name", *labels)
            self._made[name] = kind(
                f"ockham_{name}", text, names, registry=self.registry, **settings
            )
        found: M = self._made[name]
        return found


class Metrics:
    """All metrics of one model. Implements `ockham.engine.client.Observer`."""

    def __init__(self, model_name: str, families: Families | None = None) -> None:
        """`families` are those that several models share."""
        self._families = families or Families()
        self.registry = self._families.registry
        self._model = model_name
        self._running = self._gauge("num_requests_running", "Sequences in the running batch.")
        self._waiting = self._gauge("num_requests_waiting", "Requests that wait for a place.")
        self._pages = self._gauge("kv_cache_usage_perc", "Share of the state's pages in use, 0-1.")
        self._preemptions = self._counter("num_preemptions", "Sequences that gave up their pages.")
        self._steps = self._counter("steps", "Steps completed by the engine.")
        self._restarts = self._counter("engine_restarts", "Engine processes that died.")
        self._counted = {
            field: [self._counter(name, text)] for field, (name, text) in _COUNTED.items()
        }
        for field, (name, text) in _PREFIX_CACHE.items():
            self._counted[field].append(self._counter(name, text))
        self._saved = self._per_technique("saved", "not done because of a technique")
        self._wasted = self._per_technique("wasted", "done for nothing because of a technique")
        self._tier_gauges = {f: self._gauge(*each) for f, each in _TIER_GAUGES.items()}
        self._tier_counters = {f: self._counter(*each) for f, each in _TIER_COUNTERS.items()}
        self._draft_counters = {f: self._counter(*each) for f, each in _DRAFT_COUNTERS.items()}
        self._draft_bytes = self._gauge("spec_decode_bytes", "Memory of the drafters, about.")
        self._accepted_at = self._families.get(
            Counter,
            "spec_decode_num_accepted_tokens_per_pos",
            "Drafted tokens that were accepted, by their position in the draft.",
            "position",
        )
        self._guard_counters = {f: self._counter(*each) for f, each in _GUARD_COUNTERS.items()}
        gauge, of_use = self._families.get, ("technique", "workload")
        self._guard_agreement = gauge(
            Gauge, "guard_agreement", "Share of tokens that the exact model gives too.", *of_use
        )
        self._guard_kl = gauge(
            Gauge, "guard_kl_nats", "Mean divergence from the exact model, in nats.", *of_use
        )
        self._guard_off = gauge(
            Gauge, "guard_off", "Settings of the technique that are switched off.", *of_use
        )
        seconds = self._histogram
        self._first_token = seconds("time_to_first_token_seconds", "Submission to first token.")
        self._between = seconds("inter_token_latency_seconds", "Between a choice's tokens.")
        self._per_token = seconds(
            "request_time_per_output_token_seconds", "Mean time per output token of a request."
        )
        self._whole = seconds("e2e_request_latency_seconds", "Submission to last token.")
        self._queue = seconds("request_queue_time_seconds", "Waiting for the first step.")
        self._prefill = seconds("request_prefill_time_seconds", "First step to first token.")
        self._decode = seconds("request_decode_time_seconds", "First token to last token.")
        self._prompts = self._histogram("request_prompt_tokens", "Prompt lengths.", _TOKENS)
        self._outputs = self._histogram(
            "request_generation_tokens", "Generated tokens of a request, all choices.", _TOKENS
        )
        self._finished = self._families.get(
            Counter, "request_success", "Choices that finished, by reason.", "finished_reason"
        )
        for reason in ("stop", "length", "abort", "error"):
            self._finished.labels(model_name, reason)
        self._http = self._families.get(
            Counter,
            "http_requests",
            "HTTP requests answered, by route and status.",
            "route",
            "status",
        )
        self._guarded: set[tuple[str, str]] = set()
        """What has a figure of the guard's: techniques and workload."""
        self._previous = Stats()

    # -- the observer's part -------------------------------------------------------------------

    def started(self, ready: Ready) -> None:
        self._previous = Stats()

    def died(self) -> None:
        self._restarts.inc()
        for gauge in (self._running, self._waiting, self._pages):
            gauge.set(0)
        self._switch_on()

    def stats(self, stats: Stats) -> None:
        previous, self._previous = self._previous, stats
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        self._pages.set(stats.pages_used / stats.pages_total if stats.pages_total else 0.0)
        self._preemptions.inc(stats.preemptions - previous.preemptions)
        self._steps.inc(stats.steps - previous.steps)
        for field, gauge in self._tier_gauges.items():
            gauge.set(getattr(stats.tiers, field))
        for field, gained in self._tier_counters.items():
            gained.inc(getattr(stats.tiers, field) - getattr(previous.tiers, field))
        self._count_drafts(stats.drafts, previous.drafts)
        self._count_guard(stats.guard, previous.guard)
        for field, counted in self._counted.items():
            for counter in counted:
                counter.inc(getattr(stats.ledger, field) - getattr(previous.ledger, field))
        for counters, name in ((self._saved, "saved"), (self._wasted, "wasted")):
            _count_savings(counters, self._model, stats.ledger, previous.ledger, name)

    def _count_guard(self, now: GuardStats, before: GuardStats) -> None:
        for field, counter in self._guard_counters.items():
            counter.inc(getattr(now, field) - getattr(before, field))
        for labels, uses in _by_technique(now.uses).items():
            positions = sum(use.positions for use in uses)
            compared = sum(use.kl_positions for use in uses)
            if positions:
                agreed = sum(use.agreed for use in uses)
                self._guard_agreement.labels(self._model, *labels).set(agreed / positions)
            if compared:
                nats = sum(use.kl_nats for use in uses)
                self._guard_kl.labels(self._model, *labels).set(nats / compared)
            off = sum(use.state == "off" for use in uses)
            self._guard_off.labels(self._model, *labels).set(off)
            self._guarded.add(labels)

    def _count_drafts(self, now: DraftStats, before: DraftStats) -> None:
        self._draft_bytes.set(now.bytes)
        for field, counter in self._draft_counters.items():
            counter.inc(getattr(now, field) - getattr(before, field))
        for position, accepted in enumerate(now.accepted_at):
            earlier = before.accepted_at[position] if position < len(before.accepted_at) else 0
            self._accepted_at.labels(self._model, str(position)).inc(accepted - earlier)

    def delta(self, stream: Stream, delta: Delta, now_s: float) -> None:
        if delta.token_ids:
            last_s = stream.last_token_s[delta.index]
            if last_s is not None:
                each_s = (now_s - last_s) / len(delta.token_ids)
                for _ in delta.token_ids:
                    self._between.observe(each_s)
            elif not any(stream.last_token_s):
                self._first_token.observe(now_s - stream.submitted_s)
        if delta.finish_reason is not None:
            self._finished.labels(self._model, delta.finish_reason).inc()
        if delta.ledger is not None:
            self._finish(delta.ledger, now_s - stream.submitted_s)

    def aborted(self, stream: Stream) -> None:
        self._finished.labels(self._model, "abort").inc(stream.choices_left)

    def let_go(self) -> None:
        """The engine was ended on purpose, and holds nothing any more."""
        self._previous = Stats()
        for gauge in (self._running, self._waiting, self._pages, self._draft_bytes):
            gauge.set(0)
        for gauge in self._tier_gauges.values():
            gauge.set(0)
        self._switch_on()

    def _switch_on(self) -> None:
        """The engine is gone, and the next one's guard begins anew."""
        for labels in self._guarded:
            self._guard_off.labels(self._model, *labels).set(0)

    def _finish(self, ledger: Ledger, whole_s: float) -> None:
        self._whole.observe(whole_s)
        self._queue.observe(ledger.queue_s)
        self._prefill.observe(ledger.prefill_s)
        self._decode.observe(ledger.decode_s)
        self._prompts.observe(ledger.prompt_tokens)
        self._outputs.observe(ledger.generated_tokens)
        if ledger.generated_tokens > 1:
            self._per_token.observe(ledger.decode_s / (ledger.generated_tokens - 1))

    def answered(self, route: str, status: int) -> None:
        """An HTTP request was answered. `route` is a path of this server, never the caller's."""
        self._http.labels(self._model, route, str(status)).inc()

    # -- construction --------------------------------------------------------------------------

    def _gauge(self, name: str, text: str) -> Gauge:
        return self._families.get(Gauge, name, text).labels(self._model)

    def _counter(self, name: str, text: str) -> Counter:
        return self._families.get(Counter, name, text).labels(self._model)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return self._families.get(Histogram, name, text, buckets=buckets).labels(self._model)

    def _per_technique(self, name: str, text: str) -> dict[str, Counter]:
        return {
            unit: self._families.get(
                Counter, f"{name}_{unit}", f"Work {text}, in {unit}.", "technique"
            )
            for unit in _SAVING
        }


class ModelMetrics:
    """What a server of several models counts of the loading of one."""

    def __init__(self, model_name: str, families: Families) -> None:
        get = families.get
        self._there = get(Gauge, "model_loaded", "Whether the model is in memory, 0 or 1.").labels(
            model_name
        )
        self._loads = get(Counter, "model_loads", "How often the model was loaded.").labels(
            model_name
        )
        self._failures = get(
            Counter, "model_load_failures", "How often the model could not be loaded."
        ).labels(model_name)

    def loaded(self) -> None:
        self._loads.inc()
        self._there.set(1)

    def let_go(self) -> None:
        self._there.set(0)

    def failed(self) -> None:
        self._failures.inc()


def _by_technique(uses: Iterable[Guarded]) -> dict[tuple[str, str], list[Guarded]]:
    """What was found, by techniques and workload: settings are no labels, since requests may ask
    for any."""
    found: dict[tuple[str, str], list[Guarded]] = {}
    for use in uses:
        found.setdefault(("+".join(use.techniques), use.workload), []).append(use)
    return found


def _count_savings(
    counters: dict[str, Counter], model: str, now: Ledger, before: Ledger, name: str
) -> None:
    """Add what each technique has saved (or wasted) since the statistics before."""
    earlier = getattr(before, name)
    for technique, saving in getattr(now, name).items():
        for unit, counter in counters.items():
            gained = getattr(saving, unit)
            if technique in earlier:
                gained -= getattr(earlier[technique], unit)
            counter.labels(model, technique).inc(gained)
