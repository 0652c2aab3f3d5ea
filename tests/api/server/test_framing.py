"""What is taken as HTTP: only what a proxy before the server would understand in the same way."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.api.server.conftest import TINY_FLAGS
from tests.helpers.live import LiveServer
from tests.helpers.raw import chunk, exchange, post, status

BODY = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"
CHUNKS = chunk(BODY) + b"0\r\n\r\n"
NEXT = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def completion(*lines: str, body: bytes) -> bytes:
    return post("/v1/completions", *lines, body=body)


@pytest.mark.parametrize(
    "sent",
    [
        completion(LENGTH, CHUNKED, body=CHUNKS),
        completion(CHUNKED, LENGTH, body=BODY),
        completion(LENGTH, LENGTH, body=BODY),
        completion(LENGTH, "Content-Length: 3", body=BODY),
        completion(f"{LENGTH}, {len(BODY)}", body=BODY),
        completion("Content-Length: +30", body=BODY),
        completion("Content-Length: -1", body=BODY),
        completion("Content-Length: 0x1e", body=BODY),
        completion("Content-Length:", body=BODY),
        completion(CHUNKED, CHUNKED, body=CHUNKS),
        completion("Transfer-Encoding: xchunked", body=CHUNKS),
        completion("Transfer-Encoding: gzip, chunked", body=CHUNKS),
        completion("Transfer-Encoding: identity", LENGTH, body=BODY),
        completion("Transfer-Encoding : chunked", body=CHUNKS),
        completion(LENGTH, "X: a\r\n b", body=BODY),
        completion(LENGTH, "X: a\r\n\tTransfer-Encoding: chunked", body=BODY),
        completion(LENGTH, "X: a\nTransfer-Encoding: chunked", body=BODY),
        completion(LENGTH, "X: a\rTransfer-Encoding: chunked", body=BODY),
        completion(LENGTH, "X: a\0b", body=BODY),
        completion(LENGTH, "X y: a", body=BODY),
        completion(LENGTH, "Host: y", body=BODY),
        completion(LENGTH, body=BODY).replace(b"\r\n", b"\n"),
        completion(CHUNKED, body=CHUNKS).replace(b"HTTP/1.1", b"HTTP/1.0"),
        completion(LENGTH, body=BODY).replace(b"HTTP/1.1", b"HTTP/2.0"),
        completion(CHUNKED, body=b"-1\r\n" + BODY),
        completion(CHUNKED, body=b"0x1e\r\n" + BODY),
        completion(CHUNKED, body=b"1e;a\nb\r\n" + BODY),
        completion(CHUNKED, body=chunk(BODY).replace(b"\r\n", b"\n")),
        completion(CHUNKED, body=chunk(BODY)[:-2] + b"xx0\r\n\r\n"),
        b"GET /version\r\n\r\n",
        b"GET  /version HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /version HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_can_be_read_in_two_ways_is_400_and_ends_the_connection(server, sent):
    answer = exchange(server.url, sent + NEXT)
    assert status(answer) == 400
    assert b'"type":"invalid_request_error"' in answer
    assert answer.count(b"HTTP/1.1 ") == 1, "what followed was taken as a request"


@pytest.mark.parametrize("end", [b"0\r\n\n", b"0\r\nX: y\r\n\r\n", b"0\r\nX: y\n\n"])
def test_nothing_follows_the_last_chunk(server, end):
    answer = exchange(server.url, completion(CHUNKED, body=chunk(BODY) + end) + NEXT)
    assert b"/version" not in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert status(answer) == 400


def test_chunks_are_taken_in_order(server):
    sent = completion(CHUNKED, body=b"".join(chunk(bytes([b])) for b in BODY) + b"0\r\n\r\n")
    answer = exchange(server.url, sent + NEXT)
    assert answer.count(b"HTTP/1.1 200") == 2


def test_thousands_of_tiny_chunks_are_refused(server):
    answer = exchange(server.url, completion(CHUNKED, body=chunk(b" ") * 5000))
    assert status(answer) == 400
    assert b"chunks" in answer


def test_large_chunks_may_be_many(server):
    body = json.dumps({"prompt": "a" * 1_500_000}).encode()
    chunks = b"".join(chunk(body[i : i + 500]) for i in range(0, len(body), 500))
    answer = exchange(server.url, completion(CHUNKED, body=chunks + b"0\r\n\r\n") + NEXT)
    assert status(answer) == 400
    assert b"characters" in answer


def test_too_many_headers_are_431(server):
    lines = [f"X-{number}: y" for number in range(200)]
    assert status(exchange(server.url, completion(LENGTH, *lines, body=BODY))) == 431


def test_a_head_that_is_too_large_is_431(server):
    assert status(exchange(server.url, completion("X: " + "y" * 100_000, body=BODY))) == 431


def test_a_large_head_that_comes_in_one_packet_is_431(server):
    small = completion(LENGTH, "X: " + "y" * 12_000, body=BODY)
    assert status(exchange(server.url, small + NEXT)) == 200
    large = completion(LENGTH, "X: " + "y" * 20_000, body=BODY)
    assert status(exchange(server.url, large + NEXT)) == 431


def test_requests_may_follow_without_waiting_for_answers(server):
    answer = exchange(server.url, completion(LENGTH, body=BODY) * 3 + NEXT)
    assert answer.count(b"HTTP/1.1 200") == 4


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
@pytest.mark.parametrize("path", [b"/health", b"/v1/models"])
def test_a_client_that_sends_no_more_gets_its_answer(server, path, version):
    sent = b"GET %s %s\r\nHost: x\r\n\r\n" % (path, version)
    assert status(exchange(server.url, sent, half_close=True)) == 200


def test_a_client_that_sends_no_more_gets_a_completion_that_takes_time(server):
    body = json.dumps({"prompt": "a", "max_tokens": 3000, "ignore_eos": True}).encode()
    sent = completion(f"Content-Length: {len(body)}", body=body)
    answer = exchange(server.url, sent, half_close=True)
    assert status(answer) == 200
    assert b'"completion_tokens":3000' in answer


def test_a_client_that_sends_no_more_gets_all_that_it_asked_before(server):
    sent = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n" * 3
    answer = exchange(server.url, sent, half_close=True)
    assert answer.count(b"HTTP/1.1 200") == 3


def test_a_target_may_name_the_server_as_well(server):
    sent = b"GET http://any.where:80/version?x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert status(exchange(server.url, sent)) == 200


@pytest.mark.parametrize("path", ["/version/", "/v1/models/", "/v1/models/tiny/", "/health//"])
def test_a_slash_at_the_end_is_answered_in_place(server, path):
    assert server.get(path, headers={"X-Forwarded-Proto": "https"}).status_code == 200


def test_a_request_with_a_slash_at_the_end_is_served(server):
    assert server.post("/v1/completions/", {"prompt": "a", "max_tokens": 1}).status_code == 200


def test_a_model_called_by_its_directory_can_be_looked_up(tiny, tmp_path):
    with LiveServer(f"{tiny}/", tmp_path, *TINY_FLAGS) as live:
        assert live.get(f"/v1/models/{live.model}").status_code == 200


def test_a_compressed_body_is_refused_by_name(server):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    response = httpx.post(f"{server.url}/v1/completions", content=b"\x1f\x8b", headers=headers)
    assert response.status_code == 415
    assert "Content-Encoding 'gzip'" in response.json()["error"]["message"]


def test_a_preflight_that_is_refused_says_which_flag_allows_it(server):
    headers = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    response = httpx.options(f"{server.url}/v1/completions", headers=headers)
    assert response.status_code == 405
    assert "--cors-origin" in response.json()["error"]["message"]
