"""How figures are written for people: units, timings and the ledger."""

from __future__ import annotations

from ockham.core.ledger import Ledger, Saving
from ockham.core.registry import techniques


def quantity(value: float, unit: str) -> str:
    """A number with an SI prefix: 1234000 bytes is "1.23 MB"."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if seconds >= 1.0:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms"


def describe_speed(ledger: Ledger) -> str:
    """One line: tokens, and how long each phase took."""
    reused = f", {ledger.prompt_tokens_reused} reused" if ledger.prompt_tokens_reused else ""
    plural = "" if ledger.prompt_tokens == 1 else "s"
    line = (
        f"{ledger.prompt_tokens} prompt token{plural}{reused}, "
        f"{ledger.generated_tokens} generated; "
        f"queue {duration(ledger.queue_s)}, prefill {duration(ledger.prefill_s)}, "
        f"decode {duration(ledger.decode_s)}"
    )
    if ledger.generated_tokens > 1 and ledger.decode_s > 0:
        line += f" ({(ledger.generated_tokens - 1) / ledger.decode_s:.1f} tokens/s)"
    return line


def summary(ledger: Ledger, load_s: float | None = None) -> str:
    """One line in plain words: tokens, tokens a second, and what the prompt and loading took."""
    line = f"{_tokens(ledger.generated_tokens)}"
    if ledger.generated_tokens > 1 and ledger.decode_s > 0:
        line += f" at {(ledger.generated_tokens - 1) / ledger.decode_s:.1f} tokens/s"
    reused = f" ({ledger.prompt_tokens_reused} from the cache)" * bool(ledger.prompt_tokens_reused)
    line += f"; prompt of {_tokens(ledger.prompt_tokens)}{reused} read in "
    line += duration(ledger.prefill_s)
    return line if load_s is None else f"{line}; model loaded in {duration(load_s)}"


def _tokens(count: int) -> str:
    return f"{count} token{'' if count == 1 else 's'}"


def describe_ledger(ledger: Ledger) -> list[str]:
    """The itemised bill: what was computed and moved, what was saved, and what was computed for
    nothing."""
    lines = [
        f"computed {ledger.rows} rows, {quantity(ledger.flops, 'FLOP')}; moved "
        f"{quantity(ledger.weight_bytes, 'B')} of weights, state read "
        f"{quantity(ledger.state_read_bytes, 'B')}, written "
        f"{quantity(ledger.state_written_bytes, 'B')}"
    ]
    lines += [f"saved by {name}: {_saving(saving)}" for name, saving in ledger.saved.items()]
    drafters = {technique.name for technique in techniques("drafter")} if ledger.wasted else ()
    lines += [
        f"drafted wrongly by {name}: {_saving(saving)}, checked in steps that ran anyway"
        if name in drafters
        else f"computed again for {name}: {_saving(saving)}"
        for name, saving in ledger.wasted.items()
    ]
    lines += [
        f"recall of {name}: {recall.share:.2%} of the attention, {recall.samples} samples"
        for name, recall in ledger.recall.items()
    ]
    return lines


def _saving(saving: Saving) -> str:
    return (
        f"{saving.tokens} tokens, {quantity(saving.flops, 'FLOP')}, {quantity(saving.bytes, 'B')}"
    )
