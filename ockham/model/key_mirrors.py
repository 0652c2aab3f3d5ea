"""Along which direction the keys of each layer and head have most in common, for keys in int4.

The direction is that of the mean key over `TOKENS` token ids that lie evenly in the vocabulary,
read as one text when the model is loaded. So it depends on the model alone; which tokens they are
matters little. It decides bits, and is part of the numerics id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.state_dtype import state_types
from ockham.kernels.base import Backend, GroupLayout
from ockham.kernels.ops import Program
from ockham.kernels.reference.stored import mirror_of
from ockham.model.program.description import ModelDescription
from ockham.model.windows import layouts_for, window_step

TOKENS = 64


def with_mirrors(
    layouts: Sequence[GroupLayout],
    state_dtype: str,
    backend: Backend,
    program: Program,
    description: ModelDescription,
    longest: int,
) -> tuple[GroupLayout, ...]:
    """The layouts of a model's state, with mirrors where its keys are in int4. One step of at most
    `longest` rows is run. Rows that see what follows them are no text, and have none."""
    if state_types(state_dtype)[0] != "int4" or not description.causal:
        return tuple(layouts)
    count = min(TOKENS, longest)
    ids = np.linspace(0, description.vocab_size - 1, count).astype(np.int32)[None]
    measured = layouts_for(description, 1, count, "float32")
    planes = backend.allocate(measured)
    executor = backend.bind(program, planes)
    run = executor.begin(window_step(ids, len(measured), logits=False))
    executor.run(run, 0, len(program.ops))
    executor.finish(run)
    found = []
    for group, layout in enumerate(layouts):
        if not layout.spec.attends:
            found.append(layout)
            continue
        keys: Floats = planes.read(group, np.arange(count))[:, 0].astype(np.float32)
        found.append(replace(layout, mirrors=mirror_of(keys.mean(axis=1))))
    return tuple(found)
