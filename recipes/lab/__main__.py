"""The recipe's commands: ``python -m recipes.lab {tokenizer,passages,train,export}``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from recipes.lab.card import card
from recipes.lab.corpus import build_corpus
from recipes.lab.data import build_streams
from recipes.lab.evaluate import evaluate
from recipes.lab.export import export
from recipes.lab.passages import write_passages
from recipes.lab.plan import PLANS
from recipes.lab.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from recipes.lab.train import Trainer

_ROOT = Path(__file__).parents[2]
_LAB = _ROOT / "ockham/model/lab"


def main() -> None:
    """Parse the command line and run one command."""
    parser = argparse.ArgumentParser(prog="python -m recipes.lab", description=__doc__)
    parser.add_argument("command", choices=("tokenizer", "passages", "train", "export"))
    parser.add_argument("--plan", choices=tuple(PLANS), default="lab")
    parser.add_argument("--start", type=Path, help="model.safetensors that the plan starts from")
    parser.add_argument("--run", type=Path, help="checkpoints, curve; runs/PLAN by default")
    parser.add_argument("--out", type=Path, default=_LAB, help="the export")
    parser.add_argument("--scores", type=Path, help="of `ockham eval --json`, for the card")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop, resumable, then")
    options = parser.parse_args()
    plan, run = PLANS[options.plan], options.run or _ROOT / "runs" / options.plan
    torch.set_num_threads(options.threads)

    documents = build_corpus()
    if options.command == "tokenizer":
        texts = [d.text for d in documents if not d.held_out and d.source in ("code", "prose")]
        save_tokenizer(train_tokenizer(texts), options.out, plan.shape.context_tokens)
        return
    if options.command == "passages":
        write_passages(documents, _ROOT / "ockham/lab/tasks/held_out.json.gz")
        return
    tokenizer = load_tokenizer(_LAB)
    streams = build_streams(documents, tokenizer, _ROOT / "runs/tokens")
    trainer = Trainer(plan, streams, run, tokenizer, options.start)
    if options.command == "train":
        trainer.run(minutes=options.minutes)
        return
    model = trainer.model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())  # what is measured is what is shipped
    scores = {}
    for source in ("code", "prose"):
        for context in (512, 2048, 4096):
            score = evaluate(model, trainer.streams.held_out[source], context)
            scores[source, context] = score, score.bits_per_byte(tokenizer)
            print(f"{source} at {context}: perplexity {score.perplexity:.2f}")
    skills = json.loads(options.scores.read_text())["scores"] if options.scores else ()
    text = card(trainer, scores, skills)
    export(model, tokenizer, text, options.out)


if __name__ == "__main__":
    main()
