"""Embeddings and ranking over HTTP, as the clients of several makers ask for them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from ockham import InvalidRequest
from ockham.api.server.errors import decode
from ockham.api.server.pooled.request import (
    MOST_TEXTS,
    ContentBody,
    EmbeddingBody,
    RerankBody,
    ScoreBody,
)
from tests.api.server.test_openapi import POOLED, fits
from tests.helpers import raw
from tests.helpers.embedder import PROMPTS, embedder
from tests.helpers.live import LiveServer, wait_for

TEXTS = ["def f(x): return x", "class A:", "x = 1\n" * 40, "def f(x): return y", "a"]
LONGEST = 256
"""Tokens that the server's model takes."""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    directory = tmp_path_factory.mktemp("embedding")
    model = embedder(directory / "model")
    flags = ("--kv-cache-memory-bytes", "32M", "--served-model-name", "lab-embed")
    more = ("--max-model-len", str(LONGEST), "--batch-dir", str(directory / "batches"))
    with LiveServer(model, directory, *flags, *more) as started:
        yield started


def answered(live: LiveServer, path: str, **body: Any) -> Any:
    response = live.post(path, body)
    assert response.status_code == 200, response.text
    return response.json()


def vectors(live: LiveServer, texts: Any, **more: Any) -> np.ndarray:
    made = answered(live, "/v1/embeddings", input=texts, **more)
    assert [each["index"] for each in made["data"]] == list(range(len(made["data"])))
    return np.array([each["embedding"] for each in made["data"]], np.float32)


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return dict(response.json()["error"])


def test_openais_client_gets_the_same_numbers_as_base64_and_as_floats(live: LiveServer) -> None:
    create = live.openai().embeddings.create
    packed = create(model="lab-embed", input=TEXTS)  # the client asks for base64 by itself
    plain = create(model="lab-embed", input=TEXTS, encoding_format="float")
    assert [each.embedding for each in packed.data] == [each.embedding for each in plain.data]
    assert len(packed.data) == len(TEXTS)
    assert np.linalg.norm(packed.data[0].embedding) == pytest.approx(1.0, abs=1e-6)
    assert packed.usage.prompt_tokens == packed.usage.total_tokens > len(TEXTS)
    few = create(model="lab-embed", input=TEXTS[0], dimensions=8)
    head = np.array(packed.data[0].embedding[:8])
    assert few.data[0].embedding == pytest.approx(head / np.linalg.norm(head), abs=1e-6)


def test_the_example_of_the_page_works_as_it_is_printed(
    live: LiveServer, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[3] / "docs/embeddings.md").read_text()
    _, example = re.findall(r"(?ms)^```python\n(.*?)^```", page)
    exec(example, {"openai": openai, "url": f"{live.url}/v1", "model": "lab-embed"})
    assert capsys.readouterr().out.startswith("2 256 ")


def test_an_embedding_is_the_same_in_any_request(live: LiveServer) -> None:
    together = vectors(live, TEXTS)
    for number, text in enumerate(TEXTS):
        assert vectors(live, text).tobytes() == together[number].tobytes()
    tokens = [answered(live, "/tokenize", prompt=text)["tokens"] for text in TEXTS]
    assert vectors(live, tokens).tobytes() == together.tobytes()
    assert vectors(live, tokens[0]).tobytes() == together[0].tobytes()


def test_every_protocol_gives_the_same_numbers(live: LiveServer) -> None:
    expected = vectors(live, TEXTS).tolist()
    assert answered(live, "/embed", inputs=TEXTS) == expected
    llama = answered(live, "/embedding", content=TEXTS)
    assert [each["embedding"] for each in llama] == [[vector] for vector in expected]
    ollama = answered(live, "/api/embed", model="lab-embed", input=TEXTS)
    assert ollama["embeddings"] == expected
    assert ollama["prompt_eval_count"] > len(TEXTS)
    old = answered(live, "/api/embeddings", model="lab-embed:latest", prompt=TEXTS[0])
    assert old == {"embedding": expected[0]}
    task = answered(live, "/pooling", input=TEXTS, task="embed")
    assert [each["data"] for each in task["data"]] == expected


def test_pooling_without_a_task_embeds_each_token(live: LiveServer) -> None:
    tokens = answered(live, "/tokenize", prompt=TEXTS[0])["count"]
    (entry,) = answered(live, "/pooling", input=TEXTS[0])["data"]
    assert np.array(entry["data"]).shape == (tokens, 256)
    (packed,) = answered(live, "/pooling", input=TEXTS[0], encoding_format="base64")["data"]
    values = np.frombuffer(base64.b64decode(packed["data"]), "<f4").reshape(tokens, 256)
    assert values.tolist() == entry["data"]


def test_a_side_of_a_search_and_an_instruction_stand_before_the_text(live: LiveServer) -> None:
    query = vectors(live, TEXTS[0], input_type="search_query")
    assert query.tobytes() != vectors(live, TEXTS[0]).tobytes()
    assert query.tobytes() == vectors(live, TEXTS[0], prompt_name="query").tobytes()
    assert query.tobytes() == vectors(live, TEXTS[0], instruction=PROMPTS["query"]).tobytes()
    assert query.tobytes() == vectors(live, PROMPTS["query"] + TEXTS[0]).tobytes()
    both = {"input": "a", "prompt_name": "query", "instruction": "x"}
    assert refused(live.post("/v1/embeddings", both))["param"] == "instruction"
    unknown = refused(live.post("/v1/embeddings", {"input": "a", "prompt_name": "none"}))
    assert "'query'" in unknown["message"]


def test_a_text_that_is_too_long_is_refused_or_cut_where_asked(live: LiveServer) -> None:
    text = "x y " * 1000
    tokens = answered(live, "/tokenize", prompt=text[:400])["tokens"]
    too_long = {"input": ["a", text]}
    error = refused(live.post("/v1/embeddings", too_long))
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "input"
    assert error["message"].startswith("input[1]: it has ")
    assert f"the model takes {LONGEST}" in error["message"]
    cut = vectors(live, ["a", text], truncate_prompt_tokens=-1)
    assert cut[0].tobytes() == vectors(live, "a").tobytes()
    few = vectors(live, text, truncate_prompt_tokens=20)
    assert few.tobytes() == vectors(live, tokens[:20]).tobytes()
    longer = "x y " * 20_000  # no text of so many characters is tokenized whole
    assert refused(live.post("/v1/embeddings", {"input": longer}))["param"] == "input"
    assert vectors(live, longer, truncate_prompt_tokens=-1).tobytes() == cut[1].tobytes()
    asked = {"model": "lab-embed", "input": text}
    assert "it has" in live.post("/api/embed", asked).json()["error"]
    ollama = answered(live, "/api/embed", **asked, truncate=True)
    assert ollama["embeddings"] == [cut[1].tolist()]
    assert answered(live, "/embed", inputs=text, truncate=True) == [cut[1].tolist()]


def test_documents_are_ranked_by_the_likeness_of_their_embeddings(live: LiveServer) -> None:
    query = vectors(live, "def f(x)", input_type="query")[0].astype(float)
    documents = vectors(live, TEXTS, input_type="document").astype(float)
    expected = documents @ query
    made = answered(live, "/v1/rerank", query="def f(x)", documents=TEXTS)
    order = [each["index"] for each in made["results"]]
    assert order == sorted(range(len(TEXTS)), key=lambda index: -expected[index])
    for each in made["results"]:
        assert each["relevance_score"] == pytest.approx(expected[each["index"]], abs=1e-5)
        assert each["document"] == {"text": TEXTS[each["index"]]}
    listed = [{"text": text} for text in TEXTS]
    cohere = answered(live, "/v2/rerank", query="def f(x)", documents=listed, top_n=2)
    assert [each["index"] for each in cohere["results"]] == order[:2]
    assert set(cohere["results"][0]) == {"index", "relevance_score"}
    tei = answered(live, "/rerank", query="def f(x)", texts=TEXTS, return_text=True)
    assert [each["index"] for each in tei] == order
    assert tei[0]["text"] == TEXTS[order[0]]
    pairs = answered(live, "/score", text_1="def f(x)", text_2=TEXTS)["data"]
    assert [each["score"] for each in pairs] == pytest.approx(expected.tolist(), abs=1e-5)
    crossed = answered(live, "/v1/score", queries=TEXTS, documents=TEXTS[::-1])["data"]
    assert crossed[2]["score"] > 0.9  # the middle one beside itself, each with its instruction


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ["a", 1]}, "input"),
        ("/v1/embeddings", {"input": ["a", ""]}, "input"),
        ("/v1/embeddings", {"input": [[1, 10**9]]}, "input"),
        ("/v1/embeddings", {"input": ["a"] * (MOST_TEXTS + 1)}, "input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 257}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 999}, "truncate_prompt_tokens"),
        ("/v1/embeddings", {"input": "a", "colour": "red"}, "colour"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "texts": ["b"]}, "texts"),
        ("/v1/rerank", {"query": "a", "documents": ["b", "x y " * 1000]}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "raw_scores": True}, "use_activation"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "instruction": "c"}, "instruction"),
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ("/embedding", {"content": "a", "embd_normalize": 1}, "embd_normalize"),
        ("/embedding", {}, "content"),
        ("/v1/classify", {"input": "a"}, "model"),
        ("/pooling", {"input": "a", "task": "score"}, "model"),
        ("/v1/completions", {"prompt": "a"}, "model"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, "model"),
    ],
)
def test_what_cannot_be_is_refused_by_the_name_of_its_field(
    live: LiveServer, path: str, body: dict[str, Any], param: str
) -> None:
    assert refused(live.post(path, body))["param"] == param


def test_a_model_that_generates_says_what_it_does(server: LiveServer) -> None:
    for path, body in (
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/rerank", {"query": "a", "documents": ["b"]}),
        ("/v1/classify", {"input": "a"}),
    ):
        error = refused(server.post(path, body))
        assert "generates text" in error["message"]
        assert error["param"] == "model"


def test_the_examples_of_the_document_are_answered_and_fit_their_schemas(live: LiveServer) -> None:
    document = live.get("/openapi.json").json()
    answered_paths = []
    for path, methods in document["paths"].items():
        if not path.startswith(POOLED) or "classify" in path:
            continue
        operation = methods["post"]
        example = operation["requestBody"]["content"]["application/json"]["example"]
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        fits(document, schema, answered(live, path, **example))
        answered_paths.append(path)
    assert len(answered_paths) == len(POOLED)


def test_as_many_texts_as_openai_takes_are_one_request(live: LiveServer) -> None:
    texts = [f"x{number % 50}" for number in range(MOST_TEXTS)]
    found = vectors(live, texts, dimensions=4)
    assert found.shape == (MOST_TEXTS, 4)
    assert found[50:100].tobytes() == found[:50].tobytes()
    live.wait_idle()


def test_a_caller_that_goes_away_frees_the_work(live: LiveServer) -> None:
    def aborted() -> float:
        return live.metric("ockham_request_success_total", finished_reason="abort")

    before = aborted()
    texts = [f"x{number} " + "y = 1\n" * 60 for number in range(300)]  # seconds of work
    body = json.dumps({"input": texts, "truncate_prompt_tokens": -1}).encode()
    with raw.connect(live.url) as sock:
        sock.sendall(raw.post("/v1/embeddings", f"Content-Length: {len(body)}", body=body))
        wait_for(lambda: live.metric("ockham_num_requests_running"), 60.0)
    wait_for(lambda: aborted() > before, 60.0)
    live.wait_idle(60.0)


def test_the_model_says_what_it_does(live: LiveServer) -> None:
    assert live.get("/v1/models").json()["data"][0]["tasks"] == ["embed", "token_embed"]
    shown = answered(live, "/api/show", model="lab-embed")
    assert shown["capabilities"] == ["embedding"]


def test_a_batch_holds_embeddings(live: LiveServer, tmp_path: Path) -> None:
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "lab-embed", "input": text},
        }
        for number, text in enumerate(TEXTS)
    ]
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    client = live.openai()
    uploaded = client.files.create(file=path, purpose="batch")
    batch = client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/embeddings", completion_window="24h"
    )
    done = wait_for(lambda: _ended(client, batch.id), 60.0)
    assert done.request_counts.completed == len(TEXTS), done
    said = [json.loads(line) for line in client.files.content(done.output_file_id).iter_lines()]
    found = {each["custom_id"]: each["response"]["body"]["data"][0]["embedding"] for each in said}
    assert [found[str(number)] for number in range(len(TEXTS))] == vectors(live, TEXTS).tolist()


def _ended(client: Any, batch_id: str) -> Any:
    found = client.batches.retrieve(batch_id)
    return found if found.status in ("completed", "failed", "expired") else None


def body(kind: type, **fields: Any) -> Any:
    return decode(json.dumps(fields).encode(), kind)


def test_inputs_are_one_entry_each() -> None:
    for given, meant in (
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ):
        assert body(EmbeddingBody, input=given).inputs == meant
        assert body(ContentBody, content=given).texts == meant
    with pytest.raises(InvalidRequest, match="cannot be mixed"):
        _ = body(EmbeddingBody, input=[[1], "a"]).inputs


def test_what_other_servers_have_is_taken_where_it_asks_for_nothing() -> None:
    made = body(EmbeddingBody, input="a", user="me", embed_dtype="float32", dimensions=None)
    assert made.dimensions is None
    with pytest.raises(InvalidRequest, match="embed_dtype"):
        body(EmbeddingBody, input="a", embed_dtype="float16")


def test_pairs_are_named_in_either_way() -> None:
    assert body(ScoreBody, text_1="a", text_2=["b", "c"]).sides == (["a"], ["b", "c"])
    assert body(ScoreBody, queries=["a", "b"], documents=["c", "d"]).sides[1] == ["c", "d"]
    with pytest.raises(InvalidRequest, match="either text_1 or queries"):
        _ = body(ScoreBody, text_1="a", queries="a", text_2="b").sides
    assert body(RerankBody, query="a", documents=[{"text": "b", "type": "text"}]).listed == ["b"]
    assert body(RerankBody, query="a", texts=["b"], truncate=True).most_tokens == -1
