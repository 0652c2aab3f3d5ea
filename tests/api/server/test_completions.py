"""`/v1/completions`, as the official client sees it."""

from __future__ import annotations

import openai
import pytest

from tests.helpers.live import LiveServer

PROMPT = "def quicksort(items):\n"
GREEDY = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}


def test_a_completion_has_text_a_reason_and_usage(client):
    answer = client.completions.create(**GREEDY)
    assert answer.choices[0].text
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_text_and_token_ids_give_the_same_completion(server):
    tokens = server.post("/tokenize", {"prompt": PROMPT}).json()["tokens"]
    by_text = server.complete(prompt=PROMPT)
    by_ids = server.complete(prompt=tokens)
    assert by_ids["choices"] == by_text["choices"]


def test_a_list_of_prompts_is_answered_in_its_order(server):
    prompts = ["import os", "class A:", "return x"]
    together = server.complete(prompt=prompts)["choices"]
    assert [choice["index"] for choice in together] == [0, 1, 2]
    alone = [server.complete(prompt=prompt)["choices"][0]["text"] for prompt in prompts]
    assert [choice["text"] for choice in together] == alone


def test_a_list_of_token_lists_is_a_list_of_prompts(server):
    assert len(server.complete(prompt=[[5, 6, 7], [8, 9]])["choices"]) == 2


def test_n_choices_of_each_prompt_are_numbered_prompt_by_prompt(server):
    choices = server.complete(prompt=["a", "b"], n=3, temperature=1.0, seed=1)["choices"]
    assert [choice["index"] for choice in choices] == list(range(6))


def test_the_choices_of_a_prompt_differ_at_temperature_one(client):
    answer = client.completions.create(**{**GREEDY, "temperature": 1}, n=4, seed=3)
    assert len({choice.text for choice in answer.choices}) > 1


def test_a_seed_makes_sampling_repeatable(client):
    sampled = {**GREEDY, "temperature": 1, "n": 2}
    first, second = (client.completions.create(**sampled, seed=7) for _ in range(2))
    assert [c.text for c in first.choices] == [c.text for c in second.choices]


def test_other_seeds_give_other_texts(client):
    sampled = {**GREEDY, "temperature": 1}
    texts = {client.completions.create(**sampled, seed=s).choices[0].text for s in range(4)}
    assert len(texts) > 1


def test_a_stream_adds_up_to_the_answer_in_one_piece(client):
    whole = client.completions.create(**GREEDY)
    chunks = list(client.completions.create(**GREEDY, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_several_prompts_and_choices_share_one_stream(client):
    asked = {**GREEDY, "prompt": ["import", "def"], "n": 2, "temperature": 1, "seed": 5}
    whole = client.completions.create(**asked)
    texts = [""] * 4
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]


def test_a_stream_ends_with_usage_when_asked(client):
    chunks = list(
        client.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_tells_usage_all_along_when_asked(server):
    body = {**GREEDY, "stream": True, "stream_options": {"continuous_usage_stats": True}}
    lines = server.post("/v1/completions", body).text.split("\n\n")
    assert all('"usage":{' in line for line in lines if line.startswith('data: {"id"'))


def test_a_stop_string_ends_the_text_before_it(server):
    free = server.complete(prompt=PROMPT, max_tokens=20)["choices"][0]["text"]
    stop = free[10:14]
    cut = server.complete(prompt=PROMPT, max_tokens=20, stop=stop)["choices"][0]
    assert cut["text"] == free[: free.index(stop)]
    assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", stop)


def test_a_stop_string_never_shows_in_a_stream(server, client):
    free = server.complete(prompt=PROMPT, max_tokens=20)["choices"][0]["text"]
    stop = free[10:14]
    chunks = client.completions.create(
        **{**GREEDY, "max_tokens": 20}, stop=[stop, "never there"], stream=True
    )
    assert "".join(c.choices[0].text for c in chunks) == free[: free.index(stop)]


def test_echo_puts_the_prompt_before_the_text(server):
    plain = server.complete(prompt=PROMPT)["choices"][0]["text"]
    assert server.complete(prompt=PROMPT, echo=True)["choices"][0]["text"] == PROMPT + plain


def test_echo_in_a_stream_puts_the_prompt_first_and_once(client):
    chunks = list(client.completions.create(**GREEDY, echo=True, stream=True))
    assert chunks[0].choices[0].text.startswith(PROMPT)
    assert "".join(c.choices[0].text for c in chunks).count(PROMPT) == 1


def test_echo_of_no_tokens_scores_the_prompt(server):
    choice = server.complete(prompt=[5, 6, 7, 8], echo=True, logprobs=1, max_tokens=0)["choices"][0]
    scores = choice["logprobs"]["token_logprobs"]
    assert scores[0] is None
    assert len(scores) == 4
    assert all(score <= 0 for score in scores[1:])


def test_echo_scores_are_those_of_prompt_logprobs(server):
    tokens = [5, 6, 7, 8]
    echoed = server.complete(prompt=tokens, echo=True, logprobs=0, max_tokens=1)["choices"][0]
    scored = server.complete(prompt=tokens, prompt_logprobs=0, max_tokens=1)["choices"][0]
    expected = [
        entry[str(token)]["logprob"]
        for token, entry in zip(tokens[1:], scored["prompt_logprobs"][1:], strict=True)
    ]
    assert echoed["logprobs"]["token_logprobs"][1:4] == pytest.approx(expected, abs=1e-5)


def test_echo_without_logprobs_and_tokens_gives_the_prompt_back(server):
    assert server.complete(prompt=PROMPT, echo=True, max_tokens=0)["choices"][0]["text"] == PROMPT


def test_logprobs_hold_the_chosen_token_and_the_likeliest(client):
    answer = client.completions.create(**{**GREEDY, "temperature": 1}, seed=2, logprobs=3)
    shown = answer.choices[0].logprobs
    count = answer.usage.completion_tokens
    assert len(shown.tokens) == len(shown.token_logprobs) == len(shown.text_offset) == count
    for token, chosen, top in zip(
        shown.tokens, shown.token_logprobs, shown.top_logprobs, strict=True
    ):
        assert top[token] == chosen
        assert 3 <= len(top) <= 4


def test_logprobs_of_a_stream_are_those_of_the_whole(client):
    asked = {**GREEDY, "logprobs": 2, "echo": True}
    whole = client.completions.create(**asked).choices[0].logprobs
    tokens, offsets = [], []
    for chunk in client.completions.create(**asked, stream=True):
        tokens += chunk.choices[0].logprobs.tokens
        offsets += chunk.choices[0].logprobs.text_offset
    assert (tokens, offsets) == (whole.tokens, whole.text_offset)


def test_vllms_extra_fields_reach_the_sampler(client):
    answer = client.completions.create(
        **{**GREEDY, "temperature": 1},
        extra_body={"allowed_token_ids": [300, 301], "ignore_eos": True, "return_token_ids": True},
    )
    assert set(answer.choices[0].token_ids) <= {300, 301}


def test_min_tokens_holds_the_end_back(server):
    choice = server.complete(prompt="a", stop_token_ids=list(range(4096)), min_tokens=0)
    assert choice["usage"]["completion_tokens"] == 1


def test_token_ids_come_back_when_asked(server):
    choice = server.complete(prompt=[5, 6, 7], return_token_ids=True)["choices"][0]
    assert choice["prompt_token_ids"] == [5, 6, 7]
    assert len(choice["drafted"]) == len(choice["token_ids"])
    text = server.post("/detokenize", {"tokens": choice["token_ids"]}).json()["prompt"]
    assert text == choice["text"]


def test_usage_holds_the_whole_bill(server):
    asked = {"prompt": [5, 6, 7], "n": 2, "temperature": 1.0, "cache_salt": "nobody else"}
    usage = server.complete(**asked)["usage"]
    assert usage["prompt_tokens"] == 3
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    bill = usage["ockham"]
    assert bill["prompt_tokens_computed"] == 3
    assert bill["generated_tokens"] == usage["completion_tokens"] == 16
    assert bill["flops"] > 0
    assert bill["weight_bytes"] > 0


def test_the_fields_of_openai_that_mean_nothing_here_are_accepted(client):
    answer = client.completions.create(
        **GREEDY, user="someone", best_of=1, suffix=None, n=1, logit_bias={"5": -100}
    )
    assert answer.choices


def test_defaults_come_from_generation_config(tmp_path, tiny):
    import json
    import shutil

    directory = tmp_path / "greedy"
    shutil.copytree(tiny, directory)
    (directory / "generation_config.json").write_text(
        json.dumps({"temperature": 0.0, "max_new_tokens": 5})
    )
    with LiveServer(directory, tmp_path, "--kv-cache-memory-bytes", "4M") as live:
        answers = [live.post("/v1/completions", {"prompt": "a"}).json() for _ in range(2)]
    texts = {answer["choices"][0]["text"] for answer in answers}
    assert len(texts) == 1
    assert answers[0]["usage"]["completion_tokens"] == 5


def test_an_unset_max_tokens_means_sixteen(server):
    answer = server.post("/v1/completions", {"prompt": "a", "ignore_eos": True}).json()
    assert answer["usage"]["completion_tokens"] == 16


def test_the_asynchronous_client_works_too(server):
    import asyncio

    async def ask() -> list[str]:
        settings = {"api_key": "none", "max_retries": 0}
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", **settings) as client:
            answers = await asyncio.gather(*(client.completions.create(**GREEDY) for _ in range(8)))
        return [answer.choices[0].text for answer in answers]

    assert len(set(asyncio.run(ask()))) == 1


def test_without_a_tokenizer_token_ids_go_in_and_come_out(tiny, tmp_path):
    flags = ("--kv-cache-memory-bytes", "4M", "--skip-tokenizer-init")
    with LiveServer(tiny, tmp_path, *flags) as live:
        choice = live.complete(prompt=[5, 6, 7], return_token_ids=True, logprobs=1)["choices"][0]
        assert len(choice["token_ids"]) == 8
        assert choice["text"] == ""
        refused = live.post("/v1/completions", {"prompt": "text"})
        assert refused.status_code == 400
        assert "tokenizer" in refused.json()["error"]["message"]


def test_every_setting_may_stand_in_a_file(tiny, tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text(
        "kv-cache-memory-bytes: 4M\nserved-model-name: [one, two]\nmax-model-len: 100\n"
    )
    with LiveServer(tiny, tmp_path, "--config", str(path)) as live:
        models = live.get("/v1/models").json()["data"]
    assert [(model["id"], model["max_model_len"]) for model in models] == [
        ("one", 100),
        ("two", 100),
    ]


def test_a_prompt_that_was_read_before_is_cached_for_its_tenant_only(server):
    prompt = list(range(40, 100))
    cached = []
    for salt in (None, None, "one", "one", "two"):
        usage = server.complete(prompt=prompt, **({"cache_salt": salt} if salt else {}))["usage"]
        cached.append(usage["prompt_tokens_details"]["cached_tokens"])
    assert cached[1:] == [59, 0, 59, 0]
    text = server.get("/metrics").text
    for name in ("prefix_cache_queries", "prefix_cache_hits"):
        assert f"ockham_{name}_total" in text


def test_the_best_of_several_are_the_likeliest_for_each_token(server):
    asked = {"prompt": "a", "temperature": 1.0, "seed": 3, "max_tokens": 6, "logprobs": 0}

    def likelihoods(**fields) -> list[tuple[float, str]]:
        choices = server.complete(**asked, **fields)["choices"]
        assert [choice["index"] for choice in choices] == list(range(len(choices)))
        return [
            (sum(found := choice["logprobs"]["token_logprobs"]) / len(found), choice["text"])
            for choice in choices
        ]

    every = sorted(likelihoods(n=5), reverse=True)
    assert likelihoods(n=2, best_of=5) == every[:2]
    asked.pop("logprobs")
    [best] = server.complete(**asked, best_of=5)["choices"]
    assert (best["text"], best["logprobs"]) == (every[0][1], None)


def test_the_best_of_several_cannot_be_streamed_nor_be_more_than_there_are(server):
    for fields in ({"best_of": 3, "stream": True}, {"best_of": 2, "n": 3}):
        response = server.post("/v1/completions", {"prompt": "a", **fields})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "best_of"


def test_greedy_completions_are_all_the_best(server):
    assert (
        server.complete(prompt="a", best_of=4)["choices"] == server.complete(prompt="a")["choices"]
    )
