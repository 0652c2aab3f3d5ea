"""`ockham bench drafting`: what drafters without a model take of each step, and of the memory."""

from __future__ import annotations

import click

from ockham.cli.options import option
from ockham.cli.report import quantity
from ockham.cli.value_types import Integer

METHODS = "copying,trie,recycling,trigram"


@click.command()
@option("--methods", default=METHODS, help="Drafters.", show_default=True)
@option("--context", type=Integer(1), default=32_000, help="Tokens before.", show_default=True)
@option("--steps", type=Integer(1), default=2000, help="Proposals.", show_default=True)
@option("--json", "as_json", is_flag=True, help="Write one JSON list.")
def drafting(methods: str, context: int, steps: int, as_json: bool) -> None:
    """Time proposing and taking in a token, for one sequence with a long context.

    The text is prose and code that the built-in model was not trained on, in its tokens. 'first' is
    taking in the whole context at once, as the step after a long prompt does.
    """
    import msgspec

    from ockham.api.aliases import own_name
    from ockham.core.config import EngineConfig
    from ockham.lab.drafting import long_text, measure_drafting
    from ockham.lab.tasks.texts import held_out
    from ockham.model.hub import resolve
    from ockham.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(EngineConfig(), resolve("lab"))
    assert tokenizer is not None, "the built-in model has a tokenizer"
    passages = [passage for kind in ("prose", "code") for passage in held_out()[kind]]
    texts = [tokenizer.encode(passage, add_special_tokens=False) for passage in passages]
    tokens = long_text(texts, context + steps)
    names = own_name("speculative_config", methods).split(",")
    found = [measure_drafting(name, tokens, context) for name in names]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
        return
    heads = "".join(f"{head:>11}" for head in ("proposing", "p99", "taking in", "first", "memory"))
    click.echo(f"{'drafter':<12}{heads}")
    for one in found:
        times = [f"{s * 1e6:7.1f} us" for s in (one.propose_s, one.propose_p99_s, one.take_s)]
        first, memory = f"{one.first_s * 1e3:7.1f} ms", quantity(one.bytes, "B")
        click.echo(f"{one.method:<12} {' '.join(times)} {first} {memory:>10}")
