"""The plan of a training run, in steps: the same plan and seed give the same weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from recipes.lab.model import Shape


@dataclass(frozen=True)
class Phase:
    """A number of steps at one depth and one context, from one mixture of the sources."""

    steps: int
    layers: int
    context: int
    mixture: str = "broad"
    batch_tokens: int | None = None
    """Tokens of a step; the plan's where it is None."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides the weights, but the corpus and the tokenizer.

    Learning rates rise linearly for ``warmup_steps``, stay, and fall linearly to zero over the last
    ``decay_steps``. ``micro_tokens`` is how much of a batch is computed at once.
    """

    phases: tuple[Phase, ...]
    shape: Shape = field(default_factory=Shape)
    start_sha256: str = ""
    """Of the safetensors file of the dense weights that it starts from; "" for random ones."""
    start: str = ""
    """The plan that these weights came from, where it is not the first."""
    distilled: bool = False
    """Whether it learns the distributions of the model that it starts from, and not the text."""
    imbalance_weight: float = 0.01
    """Of the loss that spreads tokens over the experts of a layer."""
    active: tuple[float, ...] = ()
    """Of a recursive model, the share of the rows that shall take each pass but the first."""
    routed_from: int = 0
    """The step from which its rows choose their depth; before it they take all passes."""
    lora_rank: int = 0
    """Of the adapter that alone is trained; 0 to train the weights themselves."""
    lora_alpha: float = 16.0
    note: str = ""
    """What the card must say of how it was run."""
    seed: int = 20_261_121
    batch_tokens: int = 8192
    micro_tokens: int = 2048
    warmup_steps: int = 60
    decay_steps: int = 0
    matrix_rate: float = 0.015
    vector_rate: float = 0.01
    weight_decay: float = 0.05
    checkpoint_steps: int = 50
    evaluation_steps: int = 200
    bfloat16: bool = True
    compiled: bool = True
    asked: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Tasks and those of their levels that held-out text is joined by in each evaluation."""

    @property
    def arithmetic(self) -> str:
        """What it is computed in, as a card says it."""
        return "bfloat16 autocast, float32 weights" if self.bfloat16 else "float32"

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def at(self, step: int) -> tuple[int, int]:
        """The number of the phase that ``step`` is in, and the step's number in the phase."""
        for number, phase in enumerate(self.phases):
            if step < phase.steps:
                return number, step
            step -= phase.steps
        raise ValueError(f"The plan has {self.steps} steps; there is no step {step + self.steps}.")

    def rate(self, step: int) -> float:
        """The factor of the learning rates at ``step``."""
        rising = (step + 1) / max(1, self.warmup_steps)
        falling = (self.steps - step) / max(1, self.decay_steps)
        return min(1.0, rising, falling)

    def has_same_past(self, other: Plan, steps: int) -> bool:
        """Whether both plans have the same first ``steps`` steps; what comes after may differ."""
        free = (
            *("note", "start", "phases", "decay_steps"),
            *("checkpoint_steps", "evaluation_steps", "asked", "routed_from"),
        )
        alike = replace(self, **{name: getattr(other, name) for name in free}) == other
        return alike and all(self._step(step) == other._step(step) for step in range(steps))

    def _step(self, step: int) -> tuple[int, Phase, float, bool]:
        number, _ = self.at(step)
        routed = step >= self.routed_from
        return number, replace(self.phases[number], steps=0), self.rate(step), routed

    def tokens_of(self, phase: Phase) -> int:
        """Tokens of a step of the phase."""
        return phase.batch_tokens or self.batch_tokens

    def tokens(self, steps: int | None = None) -> int:
        """Tokens read by the first ``steps`` steps; by the whole run if None."""
        left, tokens = self.steps if steps is None else steps, 0
        for phase in self.phases:
            made = min(left, phase.steps)
            tokens, left = tokens + made * self.tokens_of(phase), left - made
        return tokens


# Shallow and short first, where a token is cheap; the copied layers then start from what the few
# have learned. The longest contexts come when the rate is already falling.
LAB = Plan(
    phases=(
        Phase(steps=500, layers=2, context=256),
        Phase(steps=400, layers=4, context=512),
        Phase(steps=250, layers=8, context=512),
        Phase(steps=60, layers=8, context=1024, mixture="library"),
        Phase(steps=30, layers=8, context=2048, mixture="library"),
        Phase(steps=15, layers=8, context=4096, mixture="library"),
    ),
    decay_steps=360,
)

# From the weights of the plan above: skills, in contexts that grow. What was run is short; a longer
# run is the same plan with more steps in its phases.
SKILLS = Plan(
    phases=(
        Phase(steps=450, layers=8, context=256, mixture="copying", batch_tokens=2048),
        Phase(steps=90, layers=8, context=512, mixture="skills", batch_tokens=4096),
        Phase(steps=60, layers=8, context=1024, mixture="skills", batch_tokens=4096),
        Phase(steps=36, layers=8, context=2048, mixture="long", batch_tokens=4096),
    ),
    start_sha256="70a8e1e61055fd6569064b69ba16c2d88062431abe3cf8ac52a37e200bbd5165",
    micro_tokens=4096,
    warmup_steps=30,
    note="While it ran, the exercises changed their form once (at step 300) and the phases were "
    "shortened, so that running the recipe gives other weights.",
    decay_steps=130,
    matrix_rate=0.01,
    vector_rate=0.003,
    weight_decay=0.02,
)
# From the weights of the plan above: the same skills, with more steps and more text, so that the
# language comes back while the rest is learned; the longest lists last.
PRACTICE = Plan(
    phases=(
        Phase(steps=900, layers=8, context=512, mixture="practice", batch_tokens=2048),
        Phase(steps=200, layers=8, context=512, mixture="practice", batch_tokens=4096),
        Phase(steps=100, layers=8, context=1024, mixture="practice", batch_tokens=4096),
        Phase(steps=110, layers=8, context=2048, mixture="long", batch_tokens=4096),
        Phase(steps=25, layers=8, context=4096, mixture="long", batch_tokens=4096),
    ),
    start_sha256="55b058de46c43a14152eda22f21e402611f952355ef5069d8a1a0322dae4f447",
    start="skills",
    micro_tokens=4096,
    warmup_steps=30,
    decay_steps=285,
    matrix_rate=0.01,
    vector_rate=0.003,
    weight_decay=0.02,
)
# From the weights of the plan above: to find one line among hundreds, and to edit. A larger rotary
# base leaves twice as many directions of a key nearly unturned over the whole context, by which
# alone a line far away is found: after 100 steps, of 8 questions at 2,000 tokens all were answered
# rightly. Short lists first, packed, while the model gets used to the base; edits take longest.
READING = Plan(
    phases=(
        Phase(steps=500, layers=8, context=512, mixture="reading", batch_tokens=4096),
        Phase(steps=400, layers=8, context=1024, mixture="reading", batch_tokens=4096),
        Phase(steps=100, layers=8, context=2048, mixture="far", batch_tokens=8192),
        Phase(steps=1400, layers=8, context=1024, mixture="editing", batch_tokens=4096),
        Phase(steps=250, layers=8, context=4096, mixture="far", batch_tokens=8192),
    ),
    shape=Shape(rope_theta=500_000.0),
    start_sha256="c20b37fc4b962f22e54175c7cdf1605c086f13c64b5c4dd554b458b3048bd93d",
    start="practice",
    micro_tokens=4096,
    warmup_steps=30,
    decay_steps=1200,
    matrix_rate=0.01,
    vector_rate=0.003,
    weight_decay=0.02,
    checkpoint_steps=20,
    evaluation_steps=100,
    asked={
        "recall": ("tokens=512", "tokens=1000", "tokens=2000", "tokens=4000"),
        "edit": ("constant", "rename", "insert", "delete"),
    },
)
PLANS = {"lab": LAB, "skills": SKILLS, "practice": PRACTICE, "reading": READING}
