"""A batch job: a question about each row of a CSV file, answered into a copy with more columns.

    ockham serve smollm2 --batch-dir batches
    python examples/batch.py reviews.csv labelled.csv

reviews.csv needs a column `text`. The server answers batches behind what callers ask for
themselves, and goes on with them after a restart. `ockham run-batch` answers the same file of
requests (--requests keeps it) without a server.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

from openai import OpenAI

QUESTION = "What is the mood of this text, and what is it about?"
SCHEMA = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["positive", "neutral", "negative"]},
        "topic": {"type": "string", "maxLength": 40},
    },
    "required": ["mood", "topic"],
    "additionalProperties": False,
}
"""The new columns. Answers can be nothing else: the schema becomes a grammar."""

COLUMNS = ["mood", "topic"]
ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"


def request(model: str, row: int, text: str) -> dict[str, Any]:
    """One line of the file of requests. Answers come in any order, so that each needs a name."""
    body = {
        "model": model,
        # What is the same in all requests comes first: it is computed once.
        "messages": [{"role": "system", "content": QUESTION}, {"role": "user", "content": text}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": SCHEMA},
        },
        "temperature": 0,
        "max_tokens": 100,
    }
    return {
        "custom_id": f"row-{row}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
    }


def wait(client: OpenAI, requests: Path) -> dict[str, Any]:
    """Send the file as a batch, and wait; the line of each answer and each error by its name."""
    file = client.files.create(file=requests, purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    while batch.status in ("validating", "in_progress", "finalizing"):
        time.sleep(1)
        batch = client.batches.retrieve(batch.id)
        print(f"{batch.status}: {batch.request_counts}", file=sys.stderr)
    if batch.status != "completed":
        raise SystemExit(f"the batch is {batch.status}: {batch.errors}")
    lines = [
        json.loads(line)
        for id in (batch.output_file_id, batch.error_file_id)
        if id is not None
        for line in client.files.content(id).text.splitlines()
    ]
    for id in (file.id, batch.output_file_id, batch.error_file_id):
        if id is not None:  # the server deletes nothing by itself
            client.files.delete(id)
    return {line["custom_id"]: line for line in lines}


def columns(line: dict[str, Any] | None) -> dict[str, str]:
    """The new columns of a row; `error` says why there are none."""
    if line is None:
        return {"error": "the row has no text"}
    if line.get("error") or line["response"]["status_code"] != 200:
        return {"error": json.dumps(line.get("error") or line["response"]["body"])}
    choice = line["response"]["body"]["choices"][0]
    if choice["finish_reason"] != "stop":
        return {"error": f"the answer was cut: {choice['message']['content']}"}
    return dict(json.loads(choice["message"]["content"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("table", type=Path, help="CSV with a column `text`")
    parser.add_argument("output", type=Path, help="the same with more columns")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--requests", type=Path, default=Path("requests.jsonl"))
    args = parser.parse_args()

    with args.table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with args.requests.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            if row["text"].strip():
                file.write(json.dumps(request(args.model, number, row["text"])) + "\n")

    found = wait(OpenAI(base_url=args.url, api_key=args.api_key), args.requests)
    with args.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *COLUMNS, "error"])
        writer.writeheader()
        for number, row in enumerate(rows):
            writer.writerow({**row, **columns(found.get(f"row-{number}"))})


if __name__ == "__main__":
    main()
