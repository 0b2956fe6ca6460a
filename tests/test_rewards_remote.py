"""A reward over HTTP: client against server, on this machine."""

from __future__ import annotations

import contextlib
import json
import math
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from datetime import date
from types import SimpleNamespace

import numpy as np
import pytest
from held_port import held_port
from waiting import LONG, wait_until

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.rewards import load_reward, score, term
from rlhf_gym.rewards.service import remote as remote_module
from rlhf_gym.rewards.service.remote import RemoteReward
from rlhf_gym.rewards.service.serve import OPENAPI, RewardServer
from rlhf_gym.rewards.spec import TOKEN_VARIABLE

PROMPTS = [f"p{i} " for i in range(100)]
RESPONSES = ["é" * i for i in range(100)]


def lengths(prompts, responses):
    return [len(r) for r in responses]


def post(url, data, headers=None):
    request = urllib.request.Request(url, data=json.dumps(data).encode(), headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=LONG) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_scores_come_in_order_over_many_requests():
    with RewardServer(lengths, port=0) as server:
        remote = RemoteReward(server.url, batch_size=7, concurrency=5)
        assert score(remote, PROMPTS, RESPONSES).values.tolist() == list(range(100))
        assert score(term(remote) * 2, PROMPTS, RESPONSES).terms["remote"][3] == 3


def test_a_service_by_its_address(monkeypatch):
    with RewardServer(lengths, port=0, token="secret") as server:
        monkeypatch.setenv(TOKEN_VARIABLE, "secret")
        assert score(load_reward(server.url), ["p"], ["four"]).values.tolist() == [4]
        known = load_reward({"reward": server.url, "cache": True, "name": "far"})
        assert score(known, ["p", "p"], ["four", "four"]).values.tolist() == [4, 4]
        monkeypatch.delenv(TOKEN_VARIABLE)
        with pytest.raises(RewardError, match="401"):
            score(load_reward(server.url, patience=0), ["p"], ["four"])
    with pytest.raises(ConfigError, match="has no option 'batch'; did you mean 'batch_size'"):
        load_reward(server.url, batch=3)


def test_columns_travel():
    def add(prompts, responses, bonus):
        return [len(r) + b["x"] for r, b in zip(responses, bonus, strict=True)]

    with RewardServer(add, port=0) as server:
        columns = {"bonus": [{"x": i} for i in range(100)]}
        assert score(RemoteReward(server.url), PROMPTS, RESPONSES, columns).values.tolist() == list(range(0, 200, 2))
        with pytest.raises(RewardError, match="'bonus' holds set, which cannot be sent as JSON"):
            score(RemoteReward(server.url), ["p"], ["r"], {"bonus": [{1, 2}]})


def test_the_common_convention():
    with RewardServer(lengths, port=0) as server:
        request = {"query": ["ask: abc", "ask: a"], "prompts": ["ask: ", "ask: "]}
        assert post(server.url, request) == (200, {"rewards": [3.0, 1.0], "terms": {"lengths": [3.0, 1.0]}})
        assert post(server.url, {"query": ["abc"]})[1]["rewards"] == [3.0]
        health = server.url.replace("score", "health")
        with urllib.request.urlopen(health) as reply:
            assert json.load(reply) == {"reward": "lengths"}
        with urllib.request.urlopen(server.url.replace("score", "openapi.json")) as reply:
            assert json.load(reply) == OPENAPI


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ([], "expected a JSON object, got list"),
        ({}, "expected 'responses' or 'query'"),
        ({"responses": "abc"}, "'responses' must be a list of texts"),
        ({"responses": [1]}, "'responses' must be a list of texts"),
        ({"responses": ["a"], "prompts": []}, "'prompts' has 0 values for 1 samples"),
        ({"responses": ["a"], "columns": {"c": [1, 2]}}, "'c' has 2 values for 1 samples"),
        ({"responses": ["a"], "columns": []}, "must be an object of lists"),
    ],
)
def test_wrong_requests(request_, message):
    with RewardServer(lengths, port=0) as server:
        status, reply = post(server.url, request_)
    assert status == 400
    assert message in reply["error"]


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_the_openapi_page_tells_the_truth(mode):
    """Requests made from the page, right and wrong: every reply has a status, a type and a form that the page says."""
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from schemathesis.checks import CHECKS, load_all_checks

    load_all_checks()
    # That all lists have one length is nothing that JSON Schema can say: such requests are refused although they fit.
    excluded = [check for check in CHECKS.get_all() if check.__name__ == "positive_data_acceptance"]
    statuses: dict[str, set[int]] = {}

    with RewardServer(lengths, port=0) as server:
        schema = schemathesis.openapi.from_url(server.url.replace("score", "openapi.json"))
        for result in schema.get_all_operations():
            operation = result.ok()
            if mode == "negative" and operation.path == "/health":
                continue  # there is nothing in such a request that could be wrong

            @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
            @settings(
                max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
            )
            def ask(case):
                reply = case.call()
                statuses.setdefault(case.path, set()).add(reply.status_code)
                case.validate_response(reply, excluded_checks=excluded)

            ask()
    assert statuses == ({"/score": {200, 400}, "/health": {200}} if mode == "positive" else {"/score": {400}})


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("PUT", "score", 405, "POST"),
        ("GET", "score", 405, "POST"),
        ("POST", "health", 405, "GET"),
        ("HEAD", "health", 405, "GET"),
        ("DELETE", "nowhere", 404, None),
        ("TRACE", "", 405, "POST"),
    ],
)
def test_other_methods_and_paths(method, path, status, allow):
    with RewardServer(lengths, port=0) as server:
        request = urllib.request.Request(server.url.replace("score", path), method=method, data=b"{}")
        if method in ("GET", "HEAD", "TRACE"):
            request.data = None
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=LONG)
    assert (caught.value.code, caught.value.headers["Allow"]) == (status, allow)
    assert method == "HEAD" or "expected POST /score" in json.load(caught.value)["error"]


def test_json_that_is_nested_too_deeply():
    with RewardServer(lengths, port=0) as server:
        request = urllib.request.Request(server.url, data=b"[" * 200_000)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=LONG)
    assert caught.value.code == 400


def test_a_token():
    with RewardServer(lengths, port=0, token="secret") as server:
        with pytest.raises(RewardError, match="refused the request with status 401") as caught:
            score(RemoteReward(server.url, headers={"Authorization": "Bearer wrong"}), ["p"], ["r"])
        assert "wrong" not in str(caught.value)
        good = RemoteReward(server.url, headers={"Authorization": "Bearer secret"})
        assert score(good, ["p"], ["abc"]).values.tolist() == [3]


def test_a_reward_that_fails_over_there_is_not_asked_again():
    calls = []

    def broken(prompts, responses):
        calls.append(1)
        return [float("nan")] * len(responses)

    with RewardServer(broken, port=0) as server, pytest.raises(RewardError, match="'broken' gave nan"):
        score(RemoteReward(server.url), ["p"], ["r"])
    assert len(calls) == 1


def test_a_service_that_restarts_loses_nothing():
    retries = []
    got = {}
    with held_port() as port:
        remote = RemoteReward(f"http://127.0.0.1:{port}/score", batch_size=10, on_retry=retries.append)

        def ask():
            got["values"] = score(remote, PROMPTS, RESPONSES).values

        with RewardServer(lengths, port=port):
            ask()
        client = threading.Thread(target=ask)  # the service is down when it asks
        got.clear()
        client.start()
        wait_until(lambda: retries)
        assert not got
        with RewardServer(lengths, port=port):
            client.join(LONG)
    np.testing.assert_array_equal(got["values"], np.arange(100))
    assert "trying again in" in retries[0]


def test_after_an_error_the_rest_is_not_waited_for():
    """The last request is refused for good while the service is busy with the others: the call ends, and their threads too."""

    def moody(prompts, responses):
        raise ValueError("no")

    with RewardServer(moody, port=0) as server:
        remote = RemoteReward(server.url, batch_size=1, concurrency=8)
        plain, stopped = remote._post, []

        def post(body, stop):
            if b"p7 " in body:
                return plain(body, stop)
            stopped.append(stop.wait(LONG))  # a call that waits for it would wait so long
            raise RewardError("stopped")

        remote._post = post  # type: ignore[method-assign]
        with pytest.raises(RewardError, match="raised ValueError: no"):
            score(remote, PROMPTS[:8], RESPONSES[:8])
        wait_until(lambda: len(stopped) == 7)
    assert all(stopped)


def test_a_failure_inside_a_combination_is_not_asked_again():
    class Broken:
        def score_terms(self, prompts, responses, columns):
            raise KeyError("inside")

        def __call__(self, prompts, responses):
            raise AssertionError

    with RewardServer(Broken(), port=0) as server, pytest.raises(RewardError, match="raised KeyError: 'inside'"):
        score(RemoteReward(server.url), ["p"], ["r"])


def test_texts_of_any_kind_and_length():
    texts = ["\ud800", "\udfff x", "\0", "\U0001f600" * 3, "x" * 3_000_000, ""]
    with RewardServer(lengths, port=0) as server:
        assert score(RemoteReward(server.url), texts, texts).values.tolist() == [len(text) for text in texts]


def test_a_body_that_is_too_large_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr("rlhf_gym.rewards.service.serve.LARGEST_BODY", 1_000_000)
    with RewardServer(lengths, port=0) as server:
        with pytest.raises(RewardError, match=r"status 413: .* send fewer samples at once \(batch_size\)"):
            score(RemoteReward(server.url), ["p"] * 4, ["x" * 4_000_000] * 4)
        remote = RemoteReward(server.url, batch_size=1)
        assert score(remote, ["p"] * 4, ["x" * 400_000] * 4).values.tolist() == [400_000] * 4


def test_columns_become_json():
    seen = {}

    def look(prompts, responses, **columns):
        seen.update(columns)
        return [0.0] * len(prompts)

    columns = {
        "number": [np.float32(0.5), np.int64(3)], "gap": [math.nan, 1.0], "when": [date(2026, 1, 2), None],
        "many": [np.arange(2), {"a": (1, math.inf)}], "flag": [np.bool_(True), False],
    }  # fmt: skip
    with RewardServer(look, port=0) as server:
        score(RemoteReward(server.url), ["p", "q"], ["r", "s"], columns)
        assert seen == {
            "number": [0.5, 3], "gap": [None, 1.0], "when": ["2026-01-02", None], "many": [[0, 1], {"a": [1, None]}],
            "flag": [True, False],
        }  # fmt: skip
        columns["picture"] = [b"png", b"png"]
        with pytest.raises(RewardError, match=r"the column 'picture' holds bytes.*columns=\[...\]"):
            score(RemoteReward(server.url), ["p", "q"], ["r", "s"], columns)
        seen.clear()
        score(RemoteReward(server.url, columns=["number"]), ["p", "q"], ["r", "s"], columns)
        assert list(seen) == ["number"]
        with pytest.raises(RewardError, match="is to send the column 'nubmer'; the data have 'number', 'gap'"):
            score(RemoteReward(server.url, columns=["nubmer"]), ["p", "q"], ["r", "s"], columns)


def read_request(connection):
    """Read a whole request: a connection that is closed with unread bytes in it is reset, and the reply may be lost."""
    request = connection.recv(65536)
    while request.startswith(b"POST") and missing(request) and (piece := connection.recv(65536)):
        request += piece


def missing(request):
    """Whether part of this HTTP request is still to come."""
    head, border, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    return not border or (bool(length) and len(body) < int(length[1]))


def raw_service(replies):
    """A socket that answers each connection by the next of these functions of the connection; its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        for answer in replies:
            connection, _ = listener.accept()
            with connection:
                read_request(connection)
                answer(connection)
        listener.close()

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/score"


def whole(connection):
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"rewards": [7]}')


def test_a_reply_that_is_cut_off_or_comes_in_drops_is_asked_for_again(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(remote_module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def cut(connection):
        connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"rew')

    def drops(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        with contextlib.suppress(OSError):  # until the client has gone
            while True:
                now[0] += 60.0
                connection.sendall(b" ")
                time.sleep(0.001)

    for broken in (cut, drops):
        remote = RemoteReward(raw_service([broken, whole]), timeout=LONG, patience=math.inf)
        assert score(remote, ["p"], ["r"]).values.tolist() == [7]
    # Nobody asked to be told, so the log says why it takes long.
    assert "IncompleteRead" in caplog.text
    assert "the reply came too slowly; trying again in" in caplog.text


def test_what_no_restart_mends_is_not_waited_for():
    def plain(connection):
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with pytest.raises(RewardError, match="does not speak TLS; write http://"):
        score(RemoteReward(raw_service([plain]).replace("http:", "https:")), ["p"], ["r"])


def test_patience_ends():
    with held_port() as port, pytest.raises(RewardError, match=r"did not answer within 0.1 s .*--resume"):
        score(RemoteReward(f"http://127.0.0.1:{port}/score", patience=0.1), ["p"], ["r"])


@pytest.mark.parametrize("reply", [b"no json", b"[1]", b'{"rewards": [1]}', b'{"rewards": "1"}', b'{"scores": [1, 2]}'])
def test_replies_that_make_no_sense(reply, monkeypatch):
    remote = RemoteReward("http://example.invalid/score")
    monkeypatch.setattr(remote, "_post", lambda body, stop: reply)
    with pytest.raises(RewardError, match=r"example.invalid/score replied"):
        score(remote, ["p", "q"], ["r", "s"])


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"timeout": 0}, {"patience": -1}, {"concurrency": 0}])
def test_settings(options):
    with pytest.raises(ConfigError):
        RemoteReward("http://host/score", **options)
    with pytest.raises(ConfigError, match="http"):
        RemoteReward("host:8000")
