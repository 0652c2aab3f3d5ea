"""Evidence for pins that are computed anew while a restarted engine has nothing else to do."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import msgspec

from ockham.core.ledger import Ledger
from ockham.engine.engine import Engine
from ockham.engine.messages import Pin
from ockham.engine.sleeping import ROWS, PinFile, Sleeper
from ockham.lab.evidence.bench import POOL_BYTES, Bench, Outcome, greedy, requests, run
from ockham.lab.evidence.recipe import ENGINE, evidence
from ockham.lab.evidence.row import Row

CONTEXT, QUESTION, ANSWER = 2000, 16, 8


@evidence(ENGINE, "pins-restored", "Pinned contexts are computed anew in idle time.")
def pins_restored(bench: Bench) -> Row:
    """The first question about a pinned context after a restart, with idle time before it."""
    config = msgspec.structs.replace(
        bench.config,
        reuse="prefix",
        speculative_config="none",
        kv_cache_memory_bytes=bench.config.kv_cache_memory_bytes or POOL_BYTES,
    )
    some = bench.engine()
    size = min(CONTEXT, some.max_model_len - QUESTION - ANSWER)
    context, question = bench.prompts(some, [size, QUESTION])
    longest_s = [0.0]

    def first_question(slept: bool) -> Outcome:
        with tempfile.TemporaryDirectory() as folder:
            file = PinFile(Path(folder) / "pins.json")
            engine = Engine(config)
            try:
                run(engine, requests([question], [greedy(1)]))
                file.write([Pin("context", context)], engine.model.numerics_id)
                if slept:
                    longest_s[0] = max(longest_s[0], _sleep(Sleeper(engine, file)))
                outcome = run(engine, requests([[*context, *question]], [greedy(1)]))
                more = run(engine, requests([[*context, *question]], [greedy(ANSWER)]))
            finally:
                engine.close()
        return replace(outcome, tokens=more.tokens)

    row = bench.compare(
        ENGINE,
        "pins-restored",
        lambda: first_question(False),
        lambda: first_question(True),
        lambda outcome: _computed(outcome.ledger),
        exact=True,
        what="",
        unit="prompt tokens computed for the first question",
        claim="Sleep-time compute (paper 313, arXiv:2504.13171): about 5 times less compute when "
        "the question comes, at equal accuracy, by inferences that a model wrote about the context "
        "before. Here only the context's state is made before, and the answer is the same",
    )
    row.what = (
        f"the first token of a question of {QUESTION} tokens about a pinned context of {size}, "
        f"after a restart: at once, against after idle time, in steps of at most {ROWS} rows, of "
        f"which the longest took {1e3 * longest_s[0]:.1f} ms"
    )
    return row


def _sleep(sleeper: Sleeper) -> float:
    """Work until nothing is left; the seconds of the longest step."""
    longest = 0.0
    while sleeper.engine.has_work or sleeper.wake():
        began = time.perf_counter()
        sleeper.after(sleeper.engine.step())
        longest = max(longest, time.perf_counter() - began)
    return longest


def _computed(ledger: Ledger) -> float:
    return float(ledger.prompt_tokens_computed)
