"""From the records of runs to figures: medians, shares of the machine's limit, paired ratios."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.peers.peers import CONFIGURATIONS, Configuration
from benchmarks.peers.ratios import Ratio, paired_ratio
from benchmarks.peers.results import DISTURBED_SHARE, Record, beside_bytes_per_s
from benchmarks.peers.workloads import WORKLOADS, Batch, Drafts, Mixed, Returning, Warm

# The shape of the shared checkpoint, TinyLlama's.
LAYERS, HIDDEN, INNER, KV_WIDTH, VOCABULARY = 22, 2048, 5632, 256, 32000
LAYER_WEIGHTS = LAYERS * HIDDEN * (2 * HIDDEN + 2 * KV_WIDTH + 3 * INNER)
HEAD_WEIGHTS = HIDDEN * VOCABULARY
KV_BYTES_PER_TOKEN = LAYERS * 2 * KV_WIDTH * 2
"""In bf16."""

MEMORY = "memory"
BY_BANDWIDTH = "decode-1 by bandwidth"
"""Tokens of decoding at batch 1 for each GB that could have been read meanwhile: what is left to
compare where the bandwidth drifts from one run to the next."""


@dataclass(frozen=True)
class Sample:
    """What one run gave: a rate where more is better, or seconds or bytes where less is."""

    value: float
    limit_share: float | None = None
    first_token_s: float | None = None
    """The median wait of a request for its first token: of mixed traffic and of prompts that share
    text; after a warm system prompt, that of the new tokens alone."""
    plain: float | None = None
    """The rate without drafts, where the value is that with them."""


class Figures:
    """Samples by workload, configuration and cell (see rounds.py), of memory by what was done. Of a
    run that was done again in its cell the last counts."""

    def __init__(self, records: Sequence[Record]) -> None:
        sessions = [each for each in records if each["kind"] == "session"]
        self.sessions = sessions
        self._token_bytes: dict[str, int] = {}
        self.weight_bytes: dict[str, int] = {}
        for session in sessions:
            self._token_bytes |= session["token_bytes"]
            self.weight_bytes |= session.get("weight_bytes", {})
        self.versions = {
            each["configuration"]: each["version"] for each in records if each["kind"] == "version"
        }
        self.failures = {
            each["configuration"]: each["reason"]
            for each in records
            if each["kind"] in ("failure", "skipped")
        }
        self.quality = {
            each["configuration"]: each for each in records if each["kind"] == "quality"
        }
        self.commits = _rounds_by_commit(records)
        every_run = [each for each in records if each["kind"] == "run"]
        runs = [each for each in every_run if each["others_share"] <= DISTURBED_SHARE]
        self.disturbed = len(every_run) - len(runs)
        self.measured = {(each["workload"], each["configuration"]) for each in runs}
        self.read_rates = [beside_bytes_per_s(each) for each in runs]
        self.int8_rates = [each["limits"]["int8_ops_per_s"] for each in runs]
        self.bf16_rates = [each["limits"]["bf16_ops_per_s"] for each in runs]
        self._samples: dict[tuple[str, str], dict[float | str, Sample]] = {}
        self._first_tokens: dict[str, dict[tuple[str, int], list[int]]] = {}
        for run in runs:
            key = (run["workload"], run["configuration"])
            cell: float | str = run["cell"] if "cell" in run else run["round"]
            self._samples.setdefault(key, {})[cell] = self._sample(run)
            if run["workload"] == "decode-1":
                tokens_per_byte = self._sample(run).value / beside_bytes_per_s(run)
                by_bandwidth = self._samples.setdefault((BY_BANDWIDTH, run["configuration"]), {})
                by_bandwidth[cell] = Sample(tokens_per_byte * 1e9)
            if "first_tokens" in run:
                tokens = self._first_tokens.setdefault(run["configuration"], {})
                tokens[run["workload"], run["round"]] = run["first_tokens"]
        for each in records:
            if each["kind"] == "memory":
                samples = self._samples.setdefault((MEMORY, each["configuration"]), {})
                # Workers are started anew for what is missing of a round: only those that have done
                # the same work can be compared.
                work = " ".join([str(each["round"]), *each["workloads"]])
                known = samples.get(work, Sample(0))
                samples[work] = Sample(max(known.value, each["peak_bytes"]))

    def configurations(self, workload: str, bits: int) -> list[Configuration]:
        """Those of so many bits that have done the workload."""
        return [
            each
            for each in CONFIGURATIONS
            if each.bits == bits and (workload, each.name) in self._samples
        ]

    def samples(self, workload: str, configuration: Configuration) -> list[Sample]:
        return list(self._samples[workload, configuration.name].values())

    def median(self, workload: str, configuration: Configuration) -> float:
        return statistics.median(each.value for each in self.samples(workload, configuration))

    def highest(self, workload: str, configuration: Configuration) -> float:
        return max(each.value for each in self.samples(workload, configuration))

    def limit_share(self, workload: str, configuration: Configuration) -> float | None:
        """The median over the rounds of the least possible time over the time taken."""
        shares = [each.limit_share for each in self.samples(workload, configuration)]
        known = [share for share in shares if share is not None]
        return statistics.median(known) if known else None

    def ratio(self, workload: str, ours: Configuration, theirs: Configuration) -> Ratio | None:
        """How many times as good `ours` is: as fast, or with as much less memory. None where no
        cell has both."""
        a = self._samples[workload, ours.name]
        b = self._samples[workload, theirs.name]
        pairs = [(a[cell].value, b[cell].value) for cell in sorted(a.keys() & b.keys(), key=str)]
        if less_is_better(workload):
            pairs = [(second, first) for first, second in pairs]
        return paired_ratio(pairs) if pairs else None

    def comparisons(self, workload: str) -> Iterator[tuple[Configuration, Configuration, Ratio]]:
        """Every configuration of Ockham with every peer of the same number of bits."""
        for ours in CONFIGURATIONS:
            if not ours.is_ockham or (workload, ours.name) not in self._samples:
                continue
            for theirs in self.configurations(workload, ours.bits):
                if not theirs.is_ockham and (ratio := self.ratio(workload, ours, theirs)):
                    yield ours, theirs, ratio

    def kl(self, configuration: Configuration) -> float | None:
        """KL of the configuration to the unquantised real model, in nats a token, if measured."""
        found = self.quality.get(configuration.name)
        return None if found is None else float(found["kl"])

    def no_worse(self, ours: Configuration, theirs: Configuration) -> bool:
        """Whether both were measured, and theirs is no farther from the real model than ours."""
        our_kl, their_kl = self.kl(ours), self.kl(theirs)
        return our_kl is not None and their_kl is not None and their_kl <= our_kl

    def agreement(self, one: str, other: str) -> tuple[int, int]:
        """First tokens of the same prompts: how many are equal, of how many."""
        a, b = self._first_tokens.get(one, {}), self._first_tokens.get(other, {})
        pairs = [pair for key in a.keys() & b.keys() for pair in zip(a[key], b[key], strict=True)]
        return sum(first == second for first, second in pairs), len(pairs)

    def _sample(self, run: Record) -> Sample:
        if "tokens" not in run:
            return Sample(run["seconds"])
        value = run["tokens"] / run["seconds"]
        workload = next(each for each in WORKLOADS if each.name == run["workload"])
        if isinstance(workload, Warm):
            alone, after = run["first_token_s"][1::2], run["first_token_s"][2::2]
            return Sample(statistics.median(after), first_token_s=statistics.median(alone))
        if isinstance(workload, Drafts):
            return Sample(run["tokens"] / min(run["drafted_s"].values()), plain=value)
        if isinstance(workload, (Mixed, Returning)):
            return Sample(value, first_token_s=statistics.median(run["first_token_s"]))
        assert isinstance(workload, Batch), "only batches and mixed traffic count tokens"
        configuration = next(each for each in CONFIGURATIONS if each.name == run["configuration"])
        # Arithmetic does not drift, but one sample of it may have been disturbed.
        limits = {
            "read_bytes_per_s": beside_bytes_per_s(run),
            "int8_ops_per_s": statistics.median(self.int8_rates),
            "bf16_ops_per_s": statistics.median(self.bf16_rates),
        }
        nbytes = self._token_bytes[configuration.name]
        least_s = least_seconds(workload, configuration, nbytes, limits)
        return Sample(value, least_s / run["seconds"])


def _rounds_by_commit(records: Sequence[Record]) -> dict[str, set[int]]:
    """Which rounds measured which commit of Ockham, in the order in which they came."""
    commit: str | None = None
    found: dict[str, set[int]] = {}
    for each in records:
        if each["kind"] == "session":
            commit = each.get("commit")
        elif each["kind"] == "run" and commit is not None:
            found.setdefault(commit, set()).add(each["round"])
    return found


def less_is_better(workload: str) -> bool:
    return workload in (MEMORY, "first-token", "warm")


def least_seconds(
    workload: Batch, configuration: Configuration, token_bytes: int, limits: dict[str, float]
) -> float:
    """The larger of bytes over bandwidth and operations over the arithmetic rate that the number
    of bits can use (int8's for 8 and 4), for what a run of the workload counts.

    Bytes are those of the configuration's weights, once a step, and of keys and values in bf16;
    operations are those of the matrix products, attention's not counted.
    """
    read = limits["read_bytes_per_s"]
    rate = limits["bf16_ops_per_s" if configuration.bits == 16 else "int8_ops_per_s"]
    if workload.decodes:
        steps = workload.new_tokens - 1
        context = workload.prompt_tokens + workload.new_tokens / 2
        nbytes = token_bytes + workload.prompts * context * KV_BYTES_PER_TOKEN
        operations = 2 * workload.prompts * (LAYER_WEIGHTS + HEAD_WEIGHTS)
        return steps * max(nbytes / read, operations / rate)
    operations = 2 * (workload.prompt_tokens * LAYER_WEIGHTS + HEAD_WEIGHTS)
    return max(token_bytes / read, operations / rate)
