"""The recipe's commands: ``python -m recipes.english texts``, ``... card REPORT PAGE``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from recipes.english.card import card
from recipes.english.texts import write_texts

_TEXTS = Path(__file__).parents[2] / "ockham/lab/tasks/documentation.json.gz"


def main() -> None:
    """Parse the command line and run one command."""
    parser = argparse.ArgumentParser(prog="python -m recipes.english", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("texts", help="the paragraphs that tasks are made of, of this Python")
    of_card = commands.add_parser("card", help="a page from what `ockham eval --json` wrote")
    of_card.add_argument("report", type=Path)
    of_card.add_argument("page", type=Path)
    of_card.add_argument("--name", default="SmolLM2-135M-Instruct", help="of the model")
    asked = parser.parse_args()
    if asked.command == "texts":
        print(f"{write_texts(_TEXTS)} paragraphs in {_TEXTS}")
        return
    report = json.loads(asked.report.read_text("utf-8"))
    asked.page.write_text(card(report, asked.name), encoding="utf-8")


if __name__ == "__main__":
    main()
