"""Which technique applies to a request at a seam: what it asks for, else what the engine's setting
names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ockham.core.asks import Ask
from ockham.core.config import EngineConfig
from ockham.core.errors import InvalidRequest
from ockham.core.registry import SEAMS, Technique, find, make, name_of, read_options
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import AttentionGroup, Keeping, KeptText, LayerAttention
from ockham.core.state_key import state_key
from ockham.engine.messages import Request

LEFT_OUT = ("keep", "pattern", "gate", "verifier", "reuse")
"""The seams whose approximate techniques an exact request is served without. Without them the
same prompt is answered by the same model. (A search answers another question, and an adapter is
another model.)"""


class Chosen(msgspec.Struct, frozen=True):
    """A technique that applies to a request. `technique` is the object that the engine made of it,
    once; `ask` is what the request asks of it, the plain ask where only a setting names it."""

    name: str
    technique: Any
    ask: Ask
    exact: bool
    described: str
    """All that decides what it computes: its seam, its name, its options and what is asked."""
    shares: bool
    """Whether state that was computed under it follows from the tokens before, and from
    `described`, alone. Others may then go on from it."""
    alters_prompts: bool = True
    """Whether it alters the state of a prompt too, and not only of what comes after it."""


class _Made(msgspec.Struct, frozen=True):
    """A technique's object, and the options that it was made with, as text."""

    technique: Technique
    object: Any
    options: str


class Techniques:
    """The techniques of an engine at the seams where requests may ask for one.

    A class says `shares = True` if state that was computed under it may be shared by requests
    that ask the same of it, and may have a method `identity(ask) -> str` that describes what an ask
    stands for, where its fields do not say that (a file's name does not say what it holds).

    Raises ConfigError for a setting that names no technique, or wrong options.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._made: dict[tuple[str, str], _Made] = {}
        self._settings: dict[str, str] = {}
        self._plain: dict[str, Chosen | None] = {}
        """What applies where nothing is asked, by seam, as far as that was needed already."""
        self._plain_altering: list[Chosen] | None = None
        self.groups: tuple[AttentionGroup, ...] = ()
        """The layers that hold cells; none until the model is loaded."""
        self.hidden_size = 0
        """Of the model's hidden states; 0 until it is loaded."""
        self.layers: dict[int, LayerAttention] = {}
        """How the layers that hold cells attend; none until the model is loaded."""
        self.sees_whole_past = False
        """Whether rows must see all that comes before them, because of the model's positions."""
        self.passes = 1
        """How often the model runs the layers between the first and the last one."""
        for name, seam in SEAMS.items():
            if seam.asked and not seam.several and seam.setting is not None:
                given = getattr(config, seam.setting)
                if given is not None:
                    self._make(name, given)
                if not seam.offered:
                    self._settings[name] = name_of(given)

    def of(self, request: Request, seam: str) -> Chosen | None:
        """What applies to a request at a seam; None if nothing does. Raises ConfigError for a
        technique that does not exist, which `Limits.check` has refused."""
        asked = request.asked(seam)
        if asked is not None:
            return self._chosen(seam, asked.name, asked.ask)
        found = self._of_setting(seam)
        if request.exact and seam in LEFT_OUT and found is not None and not found.exact:
            return None
        return found

    def offered(self, seam: str) -> dict[str, Any]:
        """What the setting of a seam offers to requests: the objects of techniques, by name."""
        return {name: made.object for (at, name), made in self._made.items() if at == seam}

    def altering(self, request: Request) -> list[Chosen]:
        """What applies to a request and alters the state that is computed for its prompt."""
        asks = request.asks or request.params.asks
        plain = not asks and not request.exact
        if plain and self._plain_altering is not None:
            return self._plain_altering
        names = [name for name, seam in SEAMS.items() if seam.alters_state]
        chosen = [self.of(request, name) for name in names]
        found = [e for e in chosen if e is not None and not e.exact and e.alters_prompts]
        if plain and all(name in self._plain for name in names):
            self._plain_altering = found
        return found

    def keeping(self, request: Request) -> Keeping | None:
        """What decides which cells of a request's sequence stay; None if all do. Raises
        InvalidRequest where what it asks does not fit the prompt or the model."""
        chosen = self.of(request, "keep")
        if chosen is None:
            return None
        if self.sees_whole_past and not chosen.exact:
            raise InvalidRequest(
                f"{chosen.name} drops cells, and with dual chunk attention rows must see all that "
                "comes before them; leave one of the two out.",
                chosen.name,
            )
        self.check_passes(chosen)
        prompt_tokens = len(request.prompt_token_ids)
        text = KeptText(prompt_tokens, self.groups, self.hidden_size, self.layers)
        found: Keeping | None = chosen.technique.open(chosen.ask, text)
        return found

    def check_passes(self, chosen: Chosen) -> None:
        """Raise InvalidRequest for what chooses among the cells of all rows, of a model whose
        passes hold those of some."""
        if self.passes > 1 and not chosen.exact:
            raise InvalidRequest(
                f"{chosen.name} chooses among the cells of all tokens, and this model runs layers "
                "several times, which hold those of some; leave it out.",
                chosen.name,
            )

    def key(self, request: Request) -> str:
        """The key of a request's state, see `core.state_key`. State that nobody may share has a key
        that no other request has."""
        altering = self.altering(request)
        described = [each.described for each in altering]
        if not all(each.shares for each in altering):
            described.append(request.request_id)
        return state_key(request.cache_salt, described)

    def plain_key(self, salt: str) -> str:
        """The key of the state of a request that asks for nothing."""
        return self.key(
            Request(request_id="", prompt_token_ids=[], params=SamplingParams(), cache_salt=salt)
        )

    def _of_setting(self, seam: str) -> Chosen | None:
        """What applies where nothing is asked."""
        if seam in self._plain:
            return self._plain[seam]
        name = self._settings.get(seam)
        chosen = None if name is None else self._chosen(seam, name, Ask())
        if chosen is None or not hasattr(chosen.technique, "identity"):
            self._plain[seam] = chosen
        return chosen

    def _chosen(self, seam: str, name: str, ask: Ask) -> Chosen:
        made = self._made.get((seam, name)) or self._make(seam, name)
        kind = made.technique.ask
        if kind is not None and not isinstance(ask, kind):
            ask = kind()
        identity = getattr(made.object, "identity", None)
        alters = getattr(made.object, "alters_prompts", None)
        said = _text(ask) if identity is None else identity(ask)
        return Chosen(
            name,
            made.object,
            ask,
            made.technique.exact,
            f"{seam}/{name}:{made.options}:{said}",
            getattr(made.technique.cls, "shares", False),
            True if alters is None else alters(ask),
        )

    def _make(self, seam: str, given: str, options: Mapping[str, Any] | None = None) -> _Made:
        technique = find(seam, name_of(given))
        made = _Made(
            technique,
            make(seam, given, options),
            _text(read_options(technique, given, options)),
        )
        self._made[seam, technique.name] = made
        return made


def _text(fields: Any) -> str:
    """A structure's fields as text, in a fixed order."""
    return msgspec.json.encode(fields, order="sorted").decode()
