"""From what a step found to what is said of it: prompts scored, tokens chosen, deltas."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ockham.core.outputs import Logprob, PositionLogprobs, PromptProgress
from ockham.core.seams import TokenScores
from ockham.core.step import Floats, Ints, StepOutput
from ockham.engine.assemble import Assembly
from ockham.engine.batch import Batch, Walk
from ockham.engine.endings import Endings
from ockham.engine.known import key_of
from ockham.engine.messages import Delta, merged
from ockham.engine.observing import deal_newest
from ockham.engine.part import Part
from ockham.engine.pooling import Pool, encoded
from ockham.engine.runner.runner import Runner
from ockham.engine.sequence import Sequence, Status
from ockham.engine.slow_grammars import SlowGrammars
from ockham.engine.speculation.tree import ROOT
from ockham.kernels.sampling import Draw, Drawn

REPETITION = "repetition_detected"
"""The stop reason of a text that has got into a loop, as in vLLM."""

Due = tuple[Sequence, Part, int]
"""A sequence whose next token is due, the part that gives it, and the place in that part's draft
after which it comes: `ROOT`, or the number of a drafted token."""


class Harvest:
    """Samples where a sequence is due, and turns what a step gave into deltas."""

    def __init__(
        self, engine: Assembly, runner: Runner, endings: Endings, slow_grammars: SlowGrammars
    ) -> None:
        self._engine, self._runner = engine, runner
        self._endings, self._slow_grammars = endings, slow_grammars

    def collect(self, batch: Batch, output: StepOutput) -> list[Delta]:
        """The deltas of a step of any kind."""
        endings, parts = self._endings, batch.parts
        progress = [
            _progress(part.sequence, self._engine.clock())
            for part in parts
            if part.sequence.request.progress
        ]
        deltas: list[Delta | None] = [
            endings.guarded(part.sequence, self._score_prompt, part, output.logits)
            if part.sequence.pool is None
            else endings.guarded(part.sequence, self._gather, part, part.sequence.pool, output)
            for part in parts
        ]
        for part in parts:
            if part.sequence.unscored is not None:
                endings.guarded(part.sequence, self._score_written, part, output.logits)
        sampled = [p for p in parts if p.samples and p.sequence.finish_reason is None]
        due: list[Due] = [
            (choice, part, ROOT)
            for part in sampled
            for choice in self._choices(part, output.logits)
        ]
        walks = {p.sequence: Walk(p, p.draft) for p in parts if p.draft is not None}
        reached: dict[Sequence, int] = {}
        while due:
            due = self._follow(due, walks, reached, output, deltas)
        for sequence, walk in walks.items():
            if sequence.finish_reason is None:  # otherwise it ended with its sequence
                endings.end_walk(walk)
        if batch.watches:
            deal_newest(batch.watches, reached, batch.step, output)
        told = merged([delta for delta in deltas if delta is not None])
        return [*(delta for delta in progress if delta is not None), *told] if progress else told

    def decoded(self, sequences: list[Sequence], tokens: list[int]) -> list[Delta]:
        """The deltas of a step of a kept decoding, whose tokens are booked with its rows."""
        guarded, append = self._endings.guarded, self._append
        deltas = [
            guarded(sequence, append, sequence, token)
            for sequence, token in zip(sequences, tokens, strict=True)
        ]
        return [delta for delta in deltas if delta is not None]

    # -- tokens --------------------------------------------------------------------------------

    def _follow(
        self,
        due: list[Due],
        walks: dict[Sequence, Walk],
        reached: dict[Sequence, int],
        output: StepOutput,
        deltas: list[Delta | None],
    ) -> list[Due]:
        """One more token of each sequence that is due; those whose token was drafted are due again,
        after it. `reached` is told where each sequence's token came."""
        endings = self._endings
        due, draws = self._draws(due, deltas)
        drawn = iter(self._runner.sample(output, [draw for draw in draws if draw is not None]))
        likely = self._likely(due, walks, output)
        accepted: list[Due] = []
        scored: list[tuple[TokenScores, int, int]] = []
        for (sequence, part, at), draw in zip(due, draws, strict=True):
            one = None if draw is None else next(drawn)
            if sequence.finish_reason is not None:
                continue  # with another choice of its request, which met a fault
            try:
                kept = likely.get(sequence)
                if kept is not None:
                    one = self._kept(walks[sequence], at, one, kept)
                token, entry = self._token(output, sequence, part, at, one)
            except Exception as error:
                deltas.append(endings.fault(sequence, error))
                continue
            walk = walks.get(sequence)
            reached[sequence] = at
            if sequence.token_scores is not None and token is not None:
                if one is None:
                    sequence.token_scores.add_unknown()
                else:
                    scored.append((sequence.token_scores, part.logits_row(at), token))
            following = None if walk is None or token is None else walk.follow(at, token)
            delta = endings.guarded(sequence, self.push, sequence, token, entry, walk)
            deltas.append(delta)
            if walk is None:
                continue
            running = sequence.status is Status.RUNNING
            if following is not None and running and not sequence.ready:
                walk.accepted.discard(following)  # its row is computed again, some steps later
                following = None
            if delta is not None and delta.token_ids:
                delta.drafted = [following is not None]
            if following is not None and running:
                self._engine.scheduler.accept(sequence, part.start + 1 + following)
                accepted.append((sequence, part, following))
        if scored:
            self._score(scored, output.logits)
        return accepted

    def _likely(
        self, due: list[Due], walks: dict[Sequence, Walk], output: StepOutput
    ) -> dict[Sequence, int]:
        """Of the sequences whose verifier lets drafted tokens stay that are likely enough, the
        likeliest one that is due, the lowest of those that tie."""
        found: list[tuple[Sequence, int, int]] = []
        for sequence, part, at in due:
            walk = walks.get(sequence)
            if sequence.leniency is None or walk is None or sequence.closes is not None:
                continue
            if part.argmax is None:
                row = part.logits_row(at)
                drafted = sorted(token for place, token in walk.tree.children if place == at)
                found += [(sequence, row, token) for token in drafted if token >= 0]
        if not found:
            return {}
        rows = np.array([row for _, row, _ in found], np.int32)
        tokens = np.array([token for _, _, token in found], np.int32)
        logprobs = self._runner.token_scores(output.logits, rows, tokens)[:, 0].tolist()
        best: dict[Sequence, tuple[float, int]] = {}
        for (sequence, _, token), logprob in zip(found, logprobs, strict=True):
            assert sequence.leniency is not None, "only then is it asked"
            other = best.get(sequence)
            if logprob >= sequence.leniency.least_logprob and (other is None or logprob > other[0]):
                best[sequence] = logprob, token
        return {sequence: token for sequence, (_, token) in best.items()}

    @staticmethod
    def _kept(walk: Walk, at: int, drawn: Drawn | None, kept: int) -> Drawn | None:
        """What follows at a place of a walk: what was drawn if it was drafted, else the drafted
        token `kept`."""
        if drawn is None or drawn.token is None or (at, drawn.token) in walk.tree.children:
            return drawn
        walk.lenient.add(walk.tree.children[at, kept])
        return Drawn(kept)

    def _score(self, scored: list[tuple[TokenScores, int, int]], logits: Floats) -> None:
        """Note how sure the model is of tokens: where, of which row, and which one."""
        rows = np.array([row for _, row, _ in scored], np.int32)
        tokens = np.array([token for _, _, token in scored], np.int32)
        found = self._runner.token_scores(logits, rows, tokens).tolist()
        for (scores, _, _), of_token in zip(scored, found, strict=True):
            scores.add(*of_token)

    def _draws(
        self, due: list[Due], deltas: list[Delta | None]
    ) -> tuple[list[Due], list[Draw | None]]:
        """What is due, and what the sampler needs for each: None where the token is known without
        it. What meets a fault here is not due any more."""
        still: list[Due] = []
        draws: list[Draw | None] = []
        for sequence, part, at in due:
            try:
                known = part.argmax is not None or sequence.forced is not None
                draws.append(None if known else sequence.draw(part.logits_row(at)))
            except Exception as error:
                if sequence.finish_reason is None:
                    deltas.append(self._endings.fault(sequence, error))
            else:
                still.append((sequence, part, at))
        return still, draws

    def _token(
        self,
        output: StepOutput,
        sequence: Sequence,
        part: Part,
        at: int,
        drawn: Drawn | None,
    ) -> tuple[int | None, PositionLogprobs | None]:
        """The token that follows at a place of a part, and its log probabilities if wanted. `drawn`
        is what the sampler gave, where it was asked."""
        closing = None if sequence.thinking is None else sequence.closes
        argmax = part.argmax_row(at)
        if argmax is not None:
            return output.argmax[argmax] if closing is None else closing, None
        if drawn is None:
            return sequence.forced, None
        token, row = drawn.token if closing is None else closing, part.logits_row(at)
        return token, self.logprobs(output.logits[row : row + 1], sequence, token)

    def push(
        self,
        sequence: Sequence,
        token: int | None,
        entry: PositionLogprobs | None,
        walk: Walk | None = None,
        ends: bool = True,
    ) -> Delta:
        """Append a sampled token to its sequence and see whether that ends it, and with it the walk
        through its draft. If not `ends`, only its length may."""
        if token is None:  # masks left nothing to choose
            delta = Delta(sequence.request_id, sequence.index)
            grammar = sequence.grammar
            error = None if grammar is None else grammar.error
            error = error or "every token was masked"
            return self._endings.end(sequence, delta, "error", error, walk)
        if sequence.first_token_s is None:
            sequence.first_token_s = self._engine.clock()
        for book in (sequence.ledger, self._engine.ledger):
            book.generated_tokens += 1
        if entry is not None:
            sequence.cumulative_logprob += entry[token].logprob
        return self._append(sequence, token, entry, walk, ends)

    def _append(
        self,
        sequence: Sequence,
        token: int,
        entry: PositionLogprobs | None = None,
        walk: Walk | None = None,
        ends: bool = True,
    ) -> Delta:
        """The delta of a token that is booked."""
        sequence.push(token)
        delta = Delta(sequence.request_id, sequence.index, [token])
        if entry is not None:
            delta.logprobs = [entry]
        thinks = sequence.thinking is not None  # few do: nothing else is asked of the others
        if thinks and sequence.closes is not None and self._runner.decoding is not None:
            self._runner.forget_decoding()  # which goes on with what is drawn
        stopped = ends and token in sequence.stop_ids
        stopped = stopped and (not thinks or sequence.ends_with(token))
        if sequence.text is not None and (
            not stopped or sequence.params.include_stop_str_in_output
        ):
            if thinks:
                delta.text, stop = sequence.say(sequence.text, token)
            else:
                may_stop = ends and sequence.generated >= sequence.params.min_tokens
                delta.text, stop = sequence.text.push(token, may_stop=may_stop)
            if sequence.ends is not None:
                sequence.note_end(delta.text)
            if stop is not None and ends:
                return self._endings.end(sequence, delta, "stop", stop, walk)
        if stopped:
            by_user = token in (sequence.params.stop_token_ids or ())
            return self._endings.end(sequence, delta, "stop", token if by_user else None, walk)
        if sequence.grammar is not None:
            if sequence.grammar.slow:
                self._slow_grammars.leave(sequence)
                return delta
            if sequence.grammar.complete:
                return self._endings.end(sequence, delta, "stop", None, walk)
        if sequence.repetition is not None and sequence.repeats:
            return self._endings.end(sequence, delta, "repetition", REPETITION, walk)
        if len(sequence.tokens) >= sequence.most_tokens:
            return self._endings.end(sequence, delta, "length", None, walk)
        return delta

    # -- branches ------------------------------------------------------------------------------

    def _choices(self, part: Part, logits: Floats) -> Iterator[Sequence]:
        """The sequences of which the sampler chooses the next token by a part's last row: the
        part's own and, if its prompt has just been computed, the others of its request. None where
        a search says what comes next."""
        sequence = part.sequence
        if sequence.chosen:
            self._come_due(part, logits)
            return
        yield sequence
        if sequence.waits_for_fork:
            yield from self._engine.groups[sequence.request_id].begin()

    def _come_due(self, part: Part, logits: Floats) -> None:
        """A search is to say what comes next in the sequence of a part."""
        sequence = part.sequence
        if sequence.first_token_s is None:
            sequence.first_token_s = self._engine.clock()
        branch = self._engine.groups[sequence.request_id].branches[sequence.index]
        wanted, row = sequence.params.logprobs is not None, part.logits_row(ROOT)
        branch.come_due(logits[row : row + 1].copy() if wanted else None)

    # -- hidden states -------------------------------------------------------------------------

    def _gather(self, part: Part, pool: Pool, output: StepOutput) -> Delta | None:
        """Take in the hidden states of a part's rows. Of its text's last ones, what is answered."""
        sequence, rows, engine = part.sequence, part.hidden, self._engine
        if len(rows):
            assert engine.hidden_layer is not None, "only then are there any"
            pool.add(output.hidden[engine.hidden_layer][rows.start : rows.stop])
        if sequence.remaining:
            return None
        params, pooler = sequence.request.pooling, engine.pooler
        assert params is not None, "checked with the request"
        assert pooler is not None, "and so is this"
        sequence.first_token_s = self._engine.clock()
        found = pool.finish()
        if engine.known is not None and params.task != "token_embed":
            engine.known.put(key_of(sequence.request, sequence.salt), found)
        pooled = encoded(pooler.answer(found, params))
        delta = Delta(sequence.request_id, sequence.index, pooled=pooled)
        return self._endings.end(sequence, delta, "stop")

    # -- log probabilities ---------------------------------------------------------------------

    def _score_prompt(self, part: Part, logits: Floats) -> Delta | None:
        """Log probabilities of the prompt tokens that this chunk's rows predict."""
        sequence = part.sequence
        scored = sequence.prompt_logprobs
        if scored is not None and len(scored) < sequence.prompt_tokens:
            rows = part.logits[: len(part.logits) - part.samples]
            first = len(scored)
            targets = np.array(sequence.tokens[first : first + len(rows)], np.int32)
            top = sequence.params.prompt_logprobs or 0
            if self._engine.on_scored is not None and len(rows):
                self._engine.on_scored(sequence.request_id, logits[rows.start : rows.stop])
            scored.extend(self._entries(logits[rows.start : rows.stop], targets, top))
        if scored is not None and part.samples and not sequence.generated:
            # They come before the first token, also where there is nothing to say of any.
            return Delta(sequence.request_id, 0, prompt_logprobs=scored)
        if sequence.scores_only and sequence.remaining == 0:
            delta = Delta(sequence.request_id, 0, prompt_logprobs=scored)
            return self._endings.end(sequence, delta, "length")
        return None

    def _score_written(self, part: Part, logits: Floats) -> None:
        """How sure the model is of what its search wrote, as far as this chunk's rows say."""
        sequence = part.sequence
        first, scores = sequence.unscored, sequence.token_scores
        assert first is not None, "only then is it asked"
        rows = part.logits[: len(part.logits) - part.samples]
        if scores is not None and len(rows):
            tokens = np.array(sequence.tokens[first : first + len(rows)], np.int32)
            found = self._runner.token_scores(logits, np.array(rows, np.int32), tokens).tolist()
            for place, of_token in enumerate(found, first - sequence.prompt_tokens):
                scores.put(place, *of_token)
        sequence.unscored = first + len(rows)
        if sequence.unscored == len(sequence.tokens):
            sequence.unscored = None

    def logprobs(
        self, logits: Floats, sequence: Sequence, token: int | None
    ) -> PositionLogprobs | None:
        """The entry of a chosen token, of logits (1, vocabulary), if its sequence wants one."""
        if sequence.params.logprobs is None or token is None:
            return None
        targets = np.array([token], np.int32)
        params = sequence.params
        return self._entries(logits, targets, params.logprobs or 0, params.logprob_token_ids)[0]

    def _entries(
        self, logits: Floats, targets: Ints, top: int, also: list[int] | None = None
    ) -> list[PositionLogprobs]:
        tokenizer = self._engine.tokenizer
        names = tokenizer.token_text if tokenizer is not None else lambda _: None
        return [
            {token: Logprob(value, rank, names(token)) for token, (value, rank) in entry.items()}
            for entry in self._runner.logprobs(logits, targets, top, also)
        ]


def _progress(sequence: Sequence, now_s: float) -> Delta | None:
    """How far a prompt has been read; None if it had been before this step."""
    if sequence.generated or sequence.start_s is None:
        return None
    told = PromptProgress(
        total=sequence.prompt_tokens,
        cached=sequence.ledger.prompt_tokens_reused,
        processed=min(sequence.computed, sequence.prompt_tokens),
        seconds=now_s - sequence.start_s,
    )
    return Delta(sequence.request_id, sequence.index, progress=told)
