"""A worker of the peers' benchmark without an engine behind it: `precision` says how it behaves."""

import signal
import time

from benchmarks.peers.workers.serve import Arrival, Generated, one_after_another, serve

PAUSES = 2
"""Of one that is slow: as often it is stopped and woken between its first token and its last."""


class Fake:
    version = "fake 1"

    def __init__(self, behaviour):
        self.behaviour = behaviour
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCONT])  # it goes on all the same

    def generate(self, prompts, new_tokens):
        if self.behaviour == "fails":
            raise RuntimeError("out of luck")
        if self.behaviour == "dies":
            raise SystemExit(3)
        if self.behaviour == "hangs":
            time.sleep(60)
        print("an engine that prints on stdout")
        count = new_tokens - self.behaviour.endswith("stops early")
        start = time.perf_counter()
        tokens = [[sum(prompt) % 100] * count for prompt in prompts]
        first = time.perf_counter()
        if self.behaviour == "is slow":
            while signal.sigtimedwait([signal.SIGCONT], 0.0):
                pass  # pauses before the first token
            for _ in range(PAUSES):
                assert signal.sigtimedwait([signal.SIGCONT], 30.0)
        return Generated(tokens, start, first, time.perf_counter())

    def mixed(self, trace: list[Arrival]):
        return one_after_another(self, trace)


class FakeThatReuses(Fake):
    def returning(self, trace: list[Arrival], at_once, reuse):
        return one_after_another(self, trace)


class FakeThatDrafts(Fake):
    def drafting(self, prompt, new_tokens, drafted):
        run = self.generate([prompt], new_tokens)
        tokens = [[drafted] * len(run.tokens[0])] if drafted == 10 else run.tokens
        return Generated(tokens, run.start, run.first, run.end + 1e-6)


if __name__ == "__main__":
    kinds = {"reuses": FakeThatReuses, "drafts": FakeThatDrafts}
    serve(lambda path, precision, threads: kinds.get(precision.split()[0], Fake)(precision))
