"""The recipe's commands: ``python -m recipes.lab COMMAND``; see README.md."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from ockham.training.train import train
from recipes.lab import nested
from recipes.lab.card import card
from recipes.lab.corpus import build_corpus
from recipes.lab.data import Streams, build_streams
from recipes.lab.distill import Distiller
from recipes.lab.drafters import METHODS, SEED, install, train_drafter
from recipes.lab.evaluate import evaluate
from recipes.lab.export import export
from recipes.lab.export_siblings import SOURCES, agreements, export_sibling
from recipes.lab.outputs import Amounts, write_outputs
from recipes.lab.passages import write_passages
from recipes.lab.plan import PLANS
from recipes.lab.recursive import RecursiveTrainer
from recipes.lab.sentences import write_items
from recipes.lab.siblings import DENSE, SIBLINGS
from recipes.lab.small import small_settings, small_texts
from recipes.lab.start import load_dense
from recipes.lab.texts import NESTED_MIX, write_texts
from recipes.lab.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from recipes.lab.train import Trainer

_ROOT = Path(__file__).parents[2]
_MODELS = _ROOT / "ockham/model"
_LAB = _MODELS / "lab"
_WEIGHTS = _LAB / "model.safetensors"
_COMMANDS = (
    "tokenizer",
    "passages",
    "train",
    "export",
    "agreement",
    "items",
    "drafters",
    "nested",
    "small",
)


def main() -> None:
    """Parse the command line and run one command."""
    parser = argparse.ArgumentParser(prog="python -m recipes.lab", description=__doc__)
    parser.add_argument("command", choices=_COMMANDS)
    parser.add_argument("--plan", choices=(*PLANS, *SIBLINGS), default="lab")
    parser.add_argument("--method", choices=METHODS, help="the one drafter to make; all else")
    parser.add_argument("--start", type=Path, help="model.safetensors that the plan starts from")
    parser.add_argument("--run", type=Path, help="checkpoints, curve; runs/PLAN by default")
    parser.add_argument("--out", type=Path, help="the export; the package's folder by default")
    parser.add_argument(
        "--scores", type=Path, help="of `ockham eval --json`, for the card; of nested a folder"
    )
    parser.add_argument("--scores-before", type=Path, help="the same, without the adapter")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="that trains")
    parser.add_argument("--float32", action="store_true", help="where bfloat16 is imitated")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop, resumable, then")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.command == "small":
        folder = options.run or _ROOT / "runs" / "small"
        settings = small_settings(*small_texts(folder), options.out or folder / "lab_small")
        print(json.dumps(train(settings, print).scores, indent=2))
        return
    if options.command == "items":
        write_items(options.out, number=100)
        return
    documents = build_corpus()
    if options.command == "tokenizer":
        texts = [d.text for d in documents if not d.held_out and d.source in ("code", "prose")]
        save_tokenizer(train_tokenizer(texts), options.out or _LAB, DENSE.context_tokens)
        return
    if options.command == "passages":
        write_passages(documents, _ROOT / "ockham/lab/tasks/held_out.json.gz")
        return
    if options.command == "drafters":
        run = options.run or _ROOT / "runs" / "drafters"
        data, held_out = write_texts(documents, SEED, run / "texts")
        for method in [options.method] if options.method else METHODS:
            train_drafter(method, data, held_out, run / method)
            install(method, run / method, _MODELS)
        return
    if options.command == "nested":
        run = options.run or _ROOT / "runs" / "nested"
        if options.scores is not None:
            nested.install(run / "model", options.scores, options.out or _MODELS / "lab_nested")
            return
        data, _ = write_texts(documents, nested.SEED, run / "texts", NESTED_MIX)
        nested.train_lab_nested(data, options.out or run / "model")
        return
    tokenizer = load_tokenizer(_LAB)
    streams = build_streams(documents, tokenizer, _ROOT / "runs/tokens")
    if options.command == "agreement":
        folder = options.out or _MODELS / SIBLINGS["drafter"].folder
        drafter = load_dense(folder / "model.safetensors", SIBLINGS["drafter"].plan.shape)
        texts = {source: streams.held_out[source] for source in SOURCES}
        agreements(load_dense(_WEIGHTS, DENSE), drafter, _LAB, texts)
        return
    trainer = _trainer(options, streams, tokenizer)
    if options.command == "train":
        trainer.run(minutes=options.minutes)
    elif options.plan in SIBLINGS:
        out = options.out or _MODELS / SIBLINGS[options.plan].folder
        dense = load_dense(_WEIGHTS, DENSE)
        before, after = _scores(options.scores_before), _scores(options.scores)
        export_sibling(options.plan, trainer, tokenizer, dense, _LAB, before, after, out)
    else:
        _export(trainer, tokenizer, _scores(options.scores), options.out or _LAB)


def _trainer(options: argparse.Namespace, streams: Streams, tokenizer: Tokenizer) -> Trainer:
    run = options.run or _ROOT / "runs" / options.plan
    sibling = SIBLINGS.get(options.plan)
    plan = sibling.plan if sibling else PLANS[options.plan]
    if options.float32:
        plan = dataclasses.replace(plan, bfloat16=False)
    if sibling is None:
        return Trainer(plan, streams, run, tokenizer, options.start, options.device)
    start = options.start or _WEIGHTS
    if plan.shape.passes > 1:
        dense = load_dense(start, DENSE)
        return RecursiveTrainer(plan, streams, run, tokenizer, dense, start)
    if not plan.distilled:
        return Trainer(plan, streams, run, tokenizer, start, options.device)
    written = write_outputs(start.parent, streams, tokenizer, plan.seed, run, Amounts())
    streams = dataclasses.replace(streams, train={**streams.train, **written})
    return Distiller(plan, streams, run, load_dense(start, DENSE), start, options.device)


def _scores(report: Path | None) -> list[dict[str, Any]]:
    """The scores of tasks that a report of `ockham eval --json` has."""
    scores: list[dict[str, Any]] = json.loads(report.read_text())["scores"] if report else []
    return scores


def _export(
    trainer: Trainer, tokenizer: Tokenizer, skills: list[dict[str, Any]], out: Path
) -> None:
    """Measure the lab model on held-out text, and write it with its card."""
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
    text = card(trainer, scores, skills)
    export(model, tokenizer, text, out)


if __name__ == "__main__":
    main()
