"""The plans of the lab model's siblings, which start from its weights: a drafter, a mixture of
experts, and two adapters."""

from __future__ import annotations

from dataclasses import dataclass

from recipes.lab.model import Shape
from recipes.lab.plan import Phase, Plan

_DENSE_SHA256 = "c20b37fc4b962f22e54175c7cdf1605c086f13c64b5c4dd554b458b3048bd93d"
"""Of the model.safetensors that the package carries as `lab`."""

DRAFTER = Plan(
    phases=(
        Phase(steps=620, layers=3, context=512, mixture="distilled"),
        Phase(steps=60, layers=3, context=2048, mixture="distilled"),
    ),
    shape=Shape(hidden=96, layers=3, heads=3, kv_heads=1, head_dim=32, intermediate=288),
    start_sha256=_DENSE_SHA256,
    distilled=True,
    batch_tokens=4096,
    micro_tokens=4096,
    warmup_steps=30,
    decay_steps=300,
    matrix_rate=0.02,
    vector_rate=0.005,
    weight_decay=0.02,
)

EXPERTS = Plan(
    phases=(Phase(steps=160, layers=8, context=512, mixture="skills"),),
    shape=Shape(intermediate=384, experts=8),
    start_sha256=_DENSE_SHA256,
    batch_tokens=4096,
    micro_tokens=4096,
    warmup_steps=10,
    decay_steps=110,
    matrix_rate=0.005,
    vector_rate=0.001,
    weight_decay=0.02,
)


def _adapter(mixture: str) -> Plan:
    return Plan(
        phases=(Phase(steps=150, layers=8, context=512, mixture=mixture),),
        start_sha256=_DENSE_SHA256,
        lora_rank=8,
        batch_tokens=2048,
        micro_tokens=2048,
        warmup_steps=10,
        decay_steps=90,
        vector_rate=0.003,
    )


@dataclass(frozen=True)
class Sibling:
    """A plan, and the folder of the package that its export goes to."""

    plan: Plan
    folder: str


SIBLINGS = {
    "drafter": Sibling(DRAFTER, "lab_drafter"),
    "experts": Sibling(EXPERTS, "lab_moe"),
    "steps": Sibling(_adapter("steps"), "lab_adapters/steps"),
    "sentences": Sibling(_adapter("sentences"), "lab_adapters/sentences"),
}
