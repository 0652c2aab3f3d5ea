"""`ockham bench fidelity`: what a model's other precision costs, in what it predicts."""

from __future__ import annotations

from pathlib import Path

import click

from ockham.cli.options import Integer, option

WINDOW_TOKENS = 512
STATE_BYTES = 64 << 20


@click.command()
@click.argument("model")
@click.argument("candidate", required=False)
@option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@option("--quantization", default=None, help="Of CANDIDATE; without one, of MODEL itself.")
@option("--tokens", type=Integer(2), default=16384, help="Of the text.", show_default=True)
@option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def fidelity(
    model: str,
    candidate: str | None,
    text: Path,
    quantization: str | None,
    tokens: int,
    as_json: bool,
) -> None:
    """Compare CANDIDATE's predictions with MODEL's on a text (or a .jsonl with "text")."""
    import msgspec

    from ockham.core.config import EngineConfig
    from ockham.core.errors import ConfigError
    from ockham.lab.fidelity import fidelity as compare
    from ockham.model.loading import load_model
    from ockham.model.tokenizer import load_tokenizer
    from ockham.model.windows import cut, read_text

    if candidate is None and quantization is None:
        raise ConfigError("name a second model, or a --quantization of the first.")
    configs = [
        EngineConfig(model=name, quantization=how, kv_cache_memory_bytes=STATE_BYTES)
        for name, how in ((model, None), (candidate or model, quantization))
    ]
    reference, other = (load_model(config) for config in configs)
    tokenizer = load_tokenizer(configs[0], reference.directory)
    if tokenizer is None:
        raise ConfigError(f"{model} has no tokenizer to read the text with.")
    content, _ = read_text(text)
    limits = [each.description.max_position_embeddings for each in (reference, other)]
    length = min(WINDOW_TOKENS, *limits)
    ids = tokenizer.encode(content, add_special_tokens=False)
    found = compare(reference, other, cut(ids, length, max(1, tokens // length)))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
        return
    for line in (
        f"{found.tokens} predictions in windows of {length} tokens",
        f"KL divergence   {found.divergence:.4f} nats (99th percentile {found.divergence_p99:.3f})",
        f"same likeliest  {found.agreement:.1%}",
        f"perplexity      {found.reference_perplexity:.3f} -> {found.candidate_perplexity:.3f}",
    ):
        click.echo(line)
