"""A request that moves from one engine to another in the middle of its work, as bytes.

What moves is all that its next token depends on: tokens, parameters, seed and stream, and the state
of its cells to the bit; beside that its bill, and how long it has waited. What follows from the
tokens (the text that is held back, the counts of penalties) is made again on the other side.
"""

from __future__ import annotations

import msgspec

from ockham.cache.state import ExportedState, State, View
from ockham.core.errors import InvalidRequest, OckhamError
from ockham.core.ledger import Ledger
from ockham.core.outputs import PositionLogprobs
from ockham.engine.messages import Request
from ockham.engine.sequence import Sequence, Status
from ockham.engine.techniques import Chosen

VERSION = 1


class MovedSequence(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One choice. `state` are its cells; None if it has none, or is finished. Ages are seconds
    before the export."""

    index: int
    generated: list[int]
    computed_once: int
    seats: int
    finished: bool
    cumulative_logprob: float
    ledger: Ledger
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    closing: list[int] = []
    """The rest of the text that ends its thought, see `Thinking.closing`."""
    start_age_s: float | None = None
    first_token_age_s: float | None = None
    state: ExportedState | None = None


class MovedRequest(msgspec.Struct, kw_only=True):
    """A request on its way. `most_tokens` is the length at which its choices must end."""

    version: int = VERSION
    numerics_id: str
    request: Request
    seed: int
    most_tokens: int
    stop_ids: list[int]
    age_s: float
    choices: list[MovedSequence]
    altering: list[str] = []
    """What alters its state, see `Chosen.described`."""


def pack(group: list[Sequence], state: State, now_s: float, altering: list[Chosen]) -> bytes:
    """The choices of one request, to which `altering` applies. Raises InvalidRequest if they cannot
    be moved."""
    first = group[0]
    if first.approximation is not None:
        raise InvalidRequest(
            f"request {first.request_id!r} takes over state approximately, which cannot be moved; "
            "let it finish, or abort it."
        )
    # What was scored so far moves with the choices.
    request = msgspec.structs.replace(
        first.request, detokenize=first.text is not None, score_from=1
    )
    return msgspec.msgpack.encode(
        MovedRequest(
            numerics_id=state.numerics_id,
            request=request,
            seed=first.seed,
            most_tokens=first.most_tokens,
            stop_ids=sorted(first.stop_ids),
            age_s=now_s - first.arrival_s,
            choices=[_describe(sequence, state, now_s) for sequence in group],
            altering=[each.described for each in altering],
        )
    )


def _describe(sequence: Sequence, state: State, now_s: float) -> MovedSequence:
    def age(then_s: float | None) -> float | None:
        return None if then_s is None else now_s - then_s

    # What is left out is computed again, to the same bits.
    keeping, view = sequence.keeping, sequence.view
    moves = keeping is None or not keeping.observes
    whole = view is not None and not view.compacted_at and not state.of_passes
    has_state = moves and whole and sequence.computed > 0
    return MovedSequence(
        index=sequence.index,
        generated=sequence.tokens[sequence.prompt_tokens :],
        computed_once=sequence.computed_once,
        seats=sequence.seats,
        finished=sequence.status is Status.FINISHED,
        cumulative_logprob=sequence.cumulative_logprob,
        ledger=sequence.ledger,
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.stop_reason,
        prompt_logprobs=sequence.prompt_logprobs,
        closing=[] if sequence.thinking is None else sequence.thinking.closing,
        start_age_s=age(sequence.start_s),
        first_token_age_s=age(sequence.first_token_s),
        state=state.export(sequence.view) if has_state and sequence.view is not None else None,
    )


def unpack(data: bytes, numerics_id: str) -> MovedRequest:
    """Raises InvalidRequest for what `pack` did not write, or another engine's numerics wrote."""
    try:
        moved = msgspec.msgpack.decode(data, type=MovedRequest)
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidRequest(f"this is no exported request ({error}).") from error
    if moved.version != VERSION:
        raise InvalidRequest(
            f"the request was exported in version {moved.version} of its format; this engine reads "
            f"version {VERSION}."
        )
    if moved.numerics_id != numerics_id:
        raise InvalidRequest(
            f"the request was exported under the numerics id {moved.numerics_id}, and this engine "
            f"runs {numerics_id}: it would not go on with the same bits. Export it to an engine of "
            "the same model, format and instruction set."
        )
    indices = [choice.index for choice in moved.choices]
    if indices not in ([0], list(range(moved.request.params.n))):
        raise InvalidRequest("this is no exported request (its choices are not in order).")
    return moved


def import_states(moved: MovedRequest, state: State) -> list[View | None]:
    """A view of each choice's cells; None where there are none, or no room for them.

    Raises InvalidRequest, and holds nothing, if they are not what they should be."""
    views: list[View | None] = []
    prompt = len(moved.request.prompt_token_ids)
    try:
        for choice in moved.choices:
            cells = 0 if choice.state is None else choice.state.length
            if cells > prompt + len(choice.generated):
                raise OckhamError(f"{cells} cells for {prompt + len(choice.generated)} tokens")
            views.append(None if choice.state is None else state.import_(choice.state))
    except OckhamError as error:
        for view in views:
            if view is not None:
                state.release(view)
        raise InvalidRequest(f"this is no exported request ({error}).") from error
    return views


def restore(sequence: Sequence, moved: MovedSequence, request_age_s: float, now_s: float) -> None:
    """Bring a sequence, as it stood before its first token, to where it was."""
    for token in moved.generated:
        sequence.push(token)
        if sequence.text is not None and not moved.finished:
            sequence.say(sequence.text, token)
    if sequence.thinking is not None:
        sequence.thinking.go_on_closing(moved.closing, moved.generated)
    sequence.computed_once = moved.computed_once
    sequence.seats, sequence.forks = moved.seats, moved.seats > 1
    sequence.cumulative_logprob = moved.cumulative_logprob
    sequence.ledger = moved.ledger
    sequence.finish_reason, sequence.stop_reason = moved.finish_reason, moved.stop_reason
    sequence.prompt_logprobs = moved.prompt_logprobs
    sequence.arrival_s = now_s - request_age_s
    if moved.start_age_s is not None:
        sequence.start_s = now_s - moved.start_age_s
    if moved.first_token_age_s is not None:
        sequence.first_token_s = now_s - moved.first_token_age_s
    if moved.finished:
        sequence.status = Status.FINISHED
