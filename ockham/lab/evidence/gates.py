"""Evidence for gates: what it saves to run a part of the model, and what it changes."""

from __future__ import annotations

from ockham.lab.evidence.bench import Bench, greedy, requests, run
from ockham.lab.evidence.fidelity import fidelity_of
from ockham.lab.evidence.recipe import counterfactual, evidence
from ockham.lab.evidence.row import Row

counterfactual("gate", "whole")

SKIPPED_ALONE, ITEMS = 8, 2
"""Of so many layers (of all, or spread evenly) it is said what leaving that one out changes, on so
many items of each task."""


@evidence("gate", "skip_layers")
def skip_layers(bench: Bench) -> Row:
    """Decoding without the layer that changes least, and what each layer is worth."""
    plain = bench.engine()
    layers = plain.model.description.layers
    chosen = sorted({i * (layers - 1) // (SKIPPED_ALONE - 1) for i in range(SKIPPED_ALONE)})
    gated = {layer: bench.engine(gate=f"skip_layers:layers={layer}") for layer in chosen}
    changed = {layer: fidelity_of(bench, plain, gated[layer], ITEMS) for layer in chosen}
    least = max(chosen, key=lambda layer: changed[layer].agreement)
    wanted = requests(bench.prompts(plain, [32] * 2), [greedy(48)] * 2)
    agreements = ", ".join(f"{layer}: {each.agreement:.1%}" for layer, each in changed.items())
    return bench.compare(
        "gate",
        "skip_layers",
        lambda: run(plain, wanted),
        lambda: run(gated[least], wanted),
        lambda outcome: outcome.ledger.flops,
        exact=False,
        identical=None,
        what=f"decoding two sequences of 48 tokens without layer {least} of {layers}; agreement "
        f"with the whole model by the layer that is left out: {agreements}",
        unit="FLOPs",
        fidelity=fidelity_of(bench, plain, gated[least]),
        claim="ShortGPT (Men et al. 2024, arXiv:2403.03853): without a quarter of Llama 2 13B's "
        "layers, MMLU falls from 55.0 to 52.2",
    )
