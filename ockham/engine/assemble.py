"""What an engine is made of, built from a config."""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from ockham.cache.state import State
from ockham.core.clock import Clock
from ockham.core.config import EngineConfig
from ockham.core.cost import FEED_FORWARD
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.ledger import Ledger
from ockham.core.registry import make
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import AttentionGroup, Drafter, GatedModel, Target, UsesSecondModel
from ockham.core.speculative import AUTO, NONE, SpeculativeConfig, parse
from ockham.core.step import Floats
from ockham.engine import search_billing
from ockham.engine.adapters import Adapters
from ockham.engine.attending import layer_attention
from ockham.engine.cache_report import CacheKeeper
from ockham.engine.checkers import all_probes, checkers_of, fitting
from ockham.engine.chosen import (
    NO_REUSE,
    choose_reuses,
    make_drafters,
    plain_policy,
)
from ockham.engine.companions import Companions
from ockham.engine.gates import Gates
from ockham.engine.group import Group
from ockham.engine.known import KnownTexts
from ockham.engine.limits import Limits, context_limit
from ockham.engine.messages import Delta, PooledFacts, Request
from ockham.engine.passes import skips_of_passes
from ockham.engine.patterns import Patterns, Summaries, with_codebooks
from ockham.engine.pooling import Pooler
from ockham.engine.programs import Programs
from ockham.engine.rewards import rewards_of
from ockham.engine.runner.attach import Attachments
from ockham.engine.runner.head_model import load_head
from ockham.engine.runner.own_model import OwnModel
from ockham.engine.runner.small_model import SmallModel
from ockham.engine.scheduler import Scheduler
from ockham.engine.speculation import Speculation
from ockham.engine.structured.compiler import Grammars
from ockham.engine.techniques import Techniques
from ockham.engine.tiering import Pace, open_tiers
from ockham.engine.transfers import Transfers
from ockham.kernels.ops import AttentionInput, LatentInput
from ockham.model.adapting import precision
from ockham.model.loading import LoadedModel, load_model
from ockham.model.program.costs import cost_of
from ockham.text.tokenizer import Tokenizer, load_tokenizer

SCORED_LOGITS = 2_000_000
"""Logits of scored prompt rows in a step in which others decode: some 20 ms of looking at them."""
SCORED_ROWS = 128
"""And so many rows: what is found of each takes 0.1 ms more to be written down."""


Load = Callable[[EngineConfig, Callable[[str], None] | None], LoadedModel]
"""Loads a model, telling what it does, with the metadata of its file."""


def load_with_metadata(config: EngineConfig, progress: Callable[[str], None] | None) -> LoadedModel:
    """The `Load` of an engine that computes."""
    return load_model(config, progress, keep_metadata=True)


class Assembly:
    """The parts of an engine. What works with them (`Runner`, `Requests`, `Harvest`, ...) reads
    them here and keeps none, so that a part can be exchanged for another between two steps.

    Raises ModelError, DoesNotFit or ConfigError if it cannot be built; `progress` is told in words
    what is being loaded. `load` is by what the model is loaded, with the metadata of its file.
    """

    companions: Companions
    """The other models that write for searches. Each is an engine, and so the engine makes them."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        progress: Callable[[str], None] | None,
        clock: Clock,
        load: Load,
    ) -> None:
        self.config = config
        self.clock = clock
        """What the engine times itself and its requests by."""
        policy = make("policy", config.scheduling_policy)
        self.techniques = Techniques(config)
        """What applies to a request, at the seams of which it may ask for one."""
        self.reuse, self.approximate = choose_reuses(config)
        drafting = parse(config.speculative_config)
        drafters = make_drafters(drafting)
        loaded = load(config, progress)
        self.model: LoadedModel = dataclasses.replace(loaded, metadata=None)
        described = self.model.description
        self.pooler: Pooler | None = None
        """What makes vectors or scores of hidden states; None for a model that generates."""
        if not self.model.generates:
            assert described.pooling is not None, "so it was loaded"
            pooled = self.model.program.pooled
            self.pooler = Pooler(described.pooling, pooled, described.hidden_size)
            drafting, drafters = SpeculativeConfig(method="none"), []
        self.second_texts = described.learned_positions if described.types > 1 else 0
        """By how much the positions of the second texts of pairs are shifted."""
        reuses = self.pooler is not None and self.reuse.name != NO_REUSE
        self.known = KnownTexts() if reuses else None
        """What was made of texts before; None where nothing may be reused."""
        self.answered: list[Delta] = []
        """What the next step says first: answers for which nothing had to be computed."""
        self.hidden_layer = None if self.pooler is None else described.layers
        self.passes = skips_of_passes(described)
        """What a row skips that takes 1, 2, ... passes; of most models there is one."""
        if described.passes > 1:
            drafting, drafters = _without_drafts(drafting, drafters)
            self.reuse = make("reuse", NO_REUSE)
        if not described.causal:
            self.reuse, self.approximate = make("reuse", NO_REUSE), {}
            policy = plain_policy(config, policy)
        self.tokenizer: Tokenizer | None = load_tokenizer(config, loaded.directory, loaded.metadata)
        del loaded
        self.checkers = checkers_of(config.checkers, self.tokenizer)
        """The programs that score texts for searches, by name."""
        self.probes = {
            name: probe
            for name, probe in all_probes(config.probes).items()
            if fitting(probe, described)
        }
        """What scores hidden states for searches, by name."""
        self.rewards = rewards_of(config.rewards, self.tokenizer, config.threads)
        """The models that score texts for searches, by name."""
        self.programs = Programs() if config.run_programs else None
        """What runs programs that completions are; None where they are not run."""
        for note in () if self.tokenizer is None else self.tokenizer.notes:
            (progress or (lambda _: None))(note)
        plan = self.model.plan
        self.max_model_len = plan.max_model_len
        self.context_limit = context_limit(config, plan, self.model.description)
        self.vocabulary = self.model.description.vocab_size
        planes = self.model.backend.allocate(with_codebooks(self.model.layouts, config))
        self.executor = self.model.backend.bind(self.model.program, planes)
        self.adapters = self._adapters()
        """The adapters in memory; None where requests may ask for none."""
        self.state = State(planes, self.model.layouts, self.max_model_len, self.model.numerics_id)
        self.cost = cost_of(self.model.program, self.model.layouts)
        self.techniques.groups = tuple(
            [AttentionGroup(g.layers, g.spec.uniform.heads, g.window) for g in self.model.layouts]
        )
        self.techniques.hidden_size = self.model.description.hidden_size
        self.techniques.layers = layer_attention(self.model.program)
        self.techniques.sees_whole_past = described.dual_chunk
        self.techniques.passes = described.passes
        self.recurs = any(layout.spec.ends for layout in self.model.layouts)
        """Whether layers keep a state that every token changes."""
        if described.dual_chunk or described.passes > 1 or self.recurs:
            self._check_every_cell()
        self.patterns = Patterns(
            self.techniques, self.techniques.groups, Summaries(plan, self.model.layouts)
        )
        self.sublayers = self.model.program.sublayers()
        self.gates = Gates(self.techniques, self._gated_model())
        self.ledger = Ledger()
        """The engine's own: what all steps have cost, but for those of a decoding that goes on
        (`Runner.settle`)."""
        inputs = [
            op for op in self.model.program.ops if isinstance(op, (AttentionInput, LatentInput))
        ]
        self.transfers = Transfers(
            self.executor,
            self.state,
            self.cost,
            self.ledger,
            self.reuse.name,
            {op.layer: op.rope for op in inputs},
            clock,
        )
        self.scheduler = Scheduler(
            self.state,
            policy,
            self.reuse,
            self.approximate,
            self.transfers,
            most_rows=plan.step_rows,
            most_sequences=config.max_num_seqs,
            checkpoint_tokens=plan.checkpoint_tokens,
            most_logits=plan.logits_rows,
            most_scores=max(1, min(SCORED_ROWS, SCORED_LOGITS // self.vocabulary)),
            whole=not described.causal,
        )
        self.groups: dict[str, Group] = {}
        """The sequences of each request that is served, by its id."""
        self.searched: dict[str, Group] = {}
        """Those of them that a search goes through."""
        self.grammars = Grammars(self._tokenizer_described, self.vocabulary)
        self.attachments = Attachments(self.model.program)
        self.on_scored: Callable[[str, Floats], None] | None = None
        """Given a request's id and the logits, (positions, vocabulary), that scored the next tokens
        of its prompt. They are valid until it returns."""
        self.own_model = OwnModel(
            self.model.program,
            self.executor,
            self.state,
            self.model.description.hidden_size,
            self.vocabulary,
            self.max_model_len,
            plan.step_rows,
            self.scheduler.reserve_draft,
            lambda: {id(s.view): s.gate for s in self.scheduler.running if s.gate},
            lambda: None if self.tokenizer is None else self.tokenizer.digest,
        )
        self.pace = Pace(self.cost)
        self.tiers = open_tiers(config, self.model, self.state, self.pace.seconds)
        self.speculation = self.make_speculation(drafting, drafters)
        closes = [self.speculation.save, *([self.tiers.close] if self.tiers else [])]
        self._closing = weakref.finalize(self, _close_all, os.getpid(), closes)
        self.reuse.attach(self.state, self.cost.attention_slope, self.tiers)
        layers = sorted(self.techniques.layers)
        for approximate in self.approximate.values():
            approximate.attach(self.state, self.cost.attention_slope, layers)
            if isinstance(approximate, UsesSecondModel):
                heads = {op.layer: (op.kv_heads, op.head_dim) for op in inputs}
                approximate.attach_second(self._load_second, described.hidden_size, heads)
        decode = None if self.tokenizer is None else self.tokenizer.decode
        self.cache = CacheKeeper(self.reuse, self.state, decode, self.techniques.plain_key)
        """Shows and pins what the reuse holds."""
        self.eos_token_ids = self._end_tokens()
        """Tokens that end a sequence: those of the model's files and of its tokenizer."""
        self.eos = frozenset(self.eos_token_ids)
        self.limits = Limits(
            vocabulary=self.vocabulary,
            max_model_len=self.max_model_len,
            context_limit=self.context_limit,
            max_num_seqs=config.max_num_seqs,
            chunk=plan.step_rows,
            state=self.state,
            has_tokenizer=lambda: self.tokenizer is not None,
            eos=self.eos,
            approximate=self.approximate,
            techniques=self.techniques,
            check_adapter=lambda ask: None if self.adapters is None else self.adapters.check(ask),
            pooler=self.pooler,
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """What requests may ask for."""
        return ("generate",) if self.pooler is None else self.pooler.tasks

    @property
    def pooled_facts(self) -> PooledFacts:
        """What a caller may want to know of a model that gives vectors or scores."""
        pooling = self.model.description.pooling
        if self.pooler is None or pooling is None:
            return PooledFacts(width=0)
        return PooledFacts(
            width=self.pooler.width,
            labels=pooling.labels,
            prompts=dict(pooling.prompts),
            default_prompt=pooling.default_prompt,
            lower_case=pooling.lower_case,
            similarity=pooling.similarity or "cosine",
            pair_frame=pooling.pair_frame,
        )

    def add_group(self, group: Group) -> None:
        """Serve a request."""
        self.groups[group.first.request_id] = group
        if group.search is not None:
            self.searched[group.first.request_id] = group

    def remove_group(self, request_id: str) -> Group | None:
        """The request is served no longer; its group, if it was."""
        searched = self.searched.pop(request_id, None)
        if searched is not None and searched.search is not None:
            searched.search.close()
            self.companions.end(request_id)
        self.release(request_id)
        return self.groups.pop(request_id, None)

    def close(self) -> None:
        """Finish writing what goes to the disk and let others have its directory. Done by itself
        when the engine is no more; it must not be used afterwards."""
        self._closing()
        self.grammars.close()
        if self.adapters is not None:
            self.adapters.close()
        if self.tokenizer is not None:
            self.tokenizer.close()
        for checker in self.checkers.values():
            checker.close()
        if self.programs is not None:
            self.programs.close()
        for reward in self.rewards.values():
            reward.close()
        self.companions.close()

    def release(self, request_id: str) -> None:
        """A request is over, or gives up what it waited for: others may have what it held."""
        if self.adapters is not None:
            self.adapters.release(request_id)

    def forked(self) -> None:
        """Make anew what a process lacks that was forked off the engine's: the threads that compile
        grammars and read adapters. (The kernels' threads see to themselves.)"""
        self.grammars = Grammars(self._tokenizer_described, self.vocabulary)
        self.adapters = self._adapters()

    def make_speculation(
        self,
        config: SpeculativeConfig,
        drafters: list[Drafter] | None = None,
        vocabulary: int | None = None,
    ) -> Speculation:
        """A controller for this engine, and its drafters unless they are given. `vocabulary` is
        how many tokens its texts have, where they are replayed. Raises ConfigError or DoesNotFit
        for what cannot draft for this one, or learned drafts of other tokens."""
        drafters = make_drafters(config) if drafters is None else drafters
        target = self.target(vocabulary or self.vocabulary)
        for drafter in drafters:
            drafter.attach(lambda name, longest=None: SmallModel(name, target, longest, self.model))
            drafter.attach_head(
                partial(
                    load_head,
                    config=self.config,
                    own=self.model,
                    target=target,
                    state=self.state,
                )
            )
            drafter.attach_model(self.own_model)
            drafter.recall(self._vocabulary_digest)
        page_tokens = self.state.page_tokens if self.recurs else None
        return Speculation(config, drafters, self.clock, page_tokens=page_tokens)

    # -- for the engine ------------------------------------------------------------------------

    def book_companion(self, request_id: str, bill: Ledger) -> None:
        """A companion has computed this for a request."""
        group = self.groups.get(request_id)
        work = search_billing.work_of(
            bill, search_billing.CALLERS_SEARCH if group is None else group.name
        )
        self.ledger.add(work)
        if group is not None:
            group.book(work)

    def target(self, vocabulary: int) -> Target:
        """What a second model may know of this one."""
        return Target(
            vocabulary=vocabulary,
            max_model_len=self.max_model_len,
            sequences=self.config.max_num_seqs,
            cells=max(layout.pages * layout.page_tokens for layout in self.state.groups),
        )

    # -- inside --------------------------------------------------------------------------------

    def _load_second(self, model: str | None, longest: int | None = None) -> SmallModel:
        """A second model that reads one text at a time."""
        target = dataclasses.replace(self.target(self.vocabulary), sequences=1)
        return SmallModel(model, target, longest or self.max_model_len, self.model)

    def _gated_model(self) -> GatedModel:
        described, ops = self.model.description, self.model.program.ops
        nowhere = range(0)
        return GatedModel(
            described.layers,
            described.hidden_size,
            tuple(
                max(
                    (ops[n].neurons for n in self.sublayers.get((i, FEED_FORWARD), nowhere)),
                    default=0,
                )
                for i in range(described.layers)
            ),
            described.passes,
            described.read_by_others,
        )

    def _check_every_cell(self) -> None:
        """Raise ConfigError for settings by which rows would not see all cells that they must."""
        if self.approximate:
            raise ConfigError(
                f"reuse {next(iter(self.approximate))!r} puts state of other positions in place, "
                "which dual chunk attention, layers that run several times and recurrent layers "
                "cannot go on from; leave it out."
            )
        if self.model.description.recurrent is not None:
            return  # what attention drops is nothing to the other layers
        try:
            self.techniques.keeping(
                Request(request_id="", prompt_token_ids=[], params=SamplingParams())
            )
        except InvalidRequest as error:
            raise ConfigError(str(error)) from None

    def _adapters(self) -> Adapters | None:
        for technique in self.techniques.offered("adapter").values():
            technique.attach(self.model.program.parts, precision(self.model.program))
            return Adapters(technique, lambda *given: self.executor.pack_adapter(*given))
        return None

    def _end_tokens(self) -> tuple[int, ...]:
        """A fine-tuned checkpoint often names its end of turn in the tokenizer's files alone."""
        named = None if self.tokenizer is None else self.tokenizer.eos_token_id
        more = () if named is None or named >= self.vocabulary else (named,)
        return tuple(dict.fromkeys([*self.model.eos_token_ids, *more]))

    def _tokenizer_described(self) -> str:
        assert self.tokenizer is not None, "checked with the request"
        return self.tokenizer.described

    def _vocabulary_digest(self) -> str:
        """Of what the tokens mean: of the tokenizer, or of the model where there is none."""
        if self.tokenizer is not None:
            return self.tokenizer.digest
        return self.model.numerics_id


def _without_drafts(
    config: SpeculativeConfig, drafters: list[Drafter]
) -> tuple[SpeculativeConfig, list[Drafter]]:
    """No drafts, for a model whose rows decide which of its layers they run. Raises ConfigError if
    some were asked for by name."""
    if drafters and config.methods != [AUTO]:
        raise ConfigError(
            f"{config.methods[0]} drafts, and this model runs layers several times, for which "
            "drafts are not verified; leave speculative_config out."
        )
    return SpeculativeConfig(method=NONE), []


def _close_all(pid: int, closes: list[Callable[[], None]]) -> None:
    """Close the parts of an engine, each of them though another fails. They are those of the
    process `pid`: one that was forked off it leaves them alone."""
    if os.getpid() != pid:
        return
    with ExitStack() as stack:
        for close in closes:
            stack.callback(close)
