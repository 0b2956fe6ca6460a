"""A server for rewards over HTTP; :mod:`rlhf_gym.rewards.service.remote` is the client.

``POST /score`` takes ``{"prompts": [...], "responses": [...], "columns": {name: [...]}}``, or only ``query`` (prompt and
response in one text) with or without ``prompts``; it replies ``{"rewards": [...], "terms": {name: [...]}}``.
``GET /health`` replies ``{"reward": name}``, and ``GET /openapi.json`` describes the interface.
"""

from __future__ import annotations

import hmac
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rlhf_gym.errors import RewardError
from rlhf_gym.rewards.base import AnyReward, reward_name, score

LARGEST_BODY = 64 * 2**20
LONGEST_DISCARDED = 16 * LARGEST_BODY


class RewardServer:
    """A reward behind an HTTP port. Requests are scored one after the other: few rewards can be called from many threads.

    Args:
        reward: any reward.
        host: the address to listen on; the default takes requests from this machine only.
        port: the port; 0 takes a free one.
        token: if given, requests must carry ``Authorization: Bearer TOKEN``. Plain HTTP does not hide it: across an
            untrusted network put a TLS proxy in front.

    >>> with RewardServer(lambda prompts, responses: [len(r) for r in responses], port=0) as server:
    ...     from rlhf_gym.rewards.service.remote import RemoteReward
    ...     RemoteReward(server.url)(["p"], ["four"])
    [4.0]
    """

    def __init__(
        self,
        reward: AnyReward,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        token: str | None = None,
    ) -> None:
        self.reward, self.token = reward, token
        self._lock = threading.Lock()
        outer = self

        class Handler(_Handler):
            server_of = outer

        self._http = ThreadingHTTPServer((host, port), Handler)
        self._http.daemon_threads = True
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The address to send samples to."""
        host, port = self._http.server_address[:2]
        return f"http://{host!s}:{port}/score"

    def serve_forever(self) -> None:
        """Serve requests until interrupted."""
        try:
            self._http.serve_forever()
        finally:
            self._http.server_close()

    def __enter__(self) -> RewardServer:
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        if self._thread is not None:
            self._thread.join()

    def answer(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """Score the samples in the body of a request; returns status and reply."""
        try:
            prompts, responses, columns = read_request(json.loads(body))
        except ValueError as error:
            return 400, {"error": str(error)}
        except RecursionError:
            return 400, {"error": "the JSON is nested too deeply"}
        try:
            with self._lock:
                scored = score(self.reward, prompts, responses, columns)
        except RewardError as error:
            return 500, {"error": str(error), "kind": "reward_error"}
        except Exception as error:  # from inside a combination or a judge; a repetition would not help either
            said = f"reward {reward_name(self.reward)!r} raised {type(error).__name__}: {error}"
            return 500, {"error": said, "kind": "reward_error"}
        terms = {name: values.tolist() for name, values in scored.terms.items()}
        return 200, {"rewards": scored.values.tolist(), "terms": terms}


def read_request(data: Any) -> tuple[list[str], list[str], dict[str, list[Any]]]:
    """Read prompts, responses and columns of a request.

    Raises:
        ValueError: the request does not have the format at the top of this file.
    """
    if not isinstance(data, dict):
        raise ValueError(f"expected a JSON object, got {type(data).__name__}")
    texts: dict[str, list[str]] = {}
    for key in ("query", "prompts", "responses"):
        if key in data:
            if not isinstance(data[key], list) or not all(isinstance(text, str) for text in data[key]):
                raise ValueError(f"{key!r} must be a list of texts")
            texts[key] = data[key]
    if "responses" not in texts and "query" not in texts:
        raise ValueError("expected 'responses' or 'query'")
    n = len(texts.get("responses", texts.get("query", [])))
    prompts = texts.get("prompts", [""] * n)
    columns = data.get("columns", {})
    if not isinstance(columns, dict) or not all(isinstance(column, list) for column in columns.values()):
        raise ValueError("'columns' must be an object of lists")
    for key, values in {**texts, "prompts": prompts, **columns}.items():
        if len(values) != n:
            raise ValueError(f"{key!r} has {len(values)} values for {n} samples")
    if "responses" in texts:
        return prompts, texts["responses"], columns
    return prompts, [q.removeprefix(p) for q, p in zip(texts["query"], prompts, strict=True)], columns


class _Handler(BaseHTTPRequestHandler):
    server_of: RewardServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            self._reply(200, {"reward": reward_name(self.server_of.reward)})
        elif self.path == "/openapi.json":
            self._reply(200, OPENAPI)
        else:
            self._misdirected()

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            self.close_connection = True  # the body was not read whole, so the connection cannot be used again
            if length.isdecimal():
                self._discard(min(int(length), LONGEST_DISCARDED))
            message = f"expected a body of at most {LARGEST_BODY} bytes; send fewer samples at once (batch_size)"
            self._reply(413 if length.isdecimal() else 411, {"error": message})
            return
        body = self.rfile.read(int(length))
        token = self.server_of.token
        given = self.headers.get("Authorization", "").encode()
        if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            self._reply(401, {"error": "expected the header Authorization: Bearer TOKEN with the server's token"})
        elif self.path not in ("/", "/score"):
            self._misdirected()
        else:
            self._reply(*self.server_of.answer(body))

    def _discard(self, left: int) -> None:
        """Read and drop the body: a client whose connection closes while it sends never reads the reply."""
        while left > 0 and (piece := self.rfile.read(min(left, 65536))):
            left -= len(piece)

    def _misdirected(self) -> None:
        """Refuse a wrong path or method."""
        allowed = {"/": "POST", "/score": "POST", "/health": "GET", "/openapi.json": "GET"}.get(self.path)
        message = {"error": "expected POST /score, GET /health or GET /openapi.json"}
        if allowed is None:
            self._reply(404, message)
        else:
            self._reply(405, message, Allow=allowed)

    def _other_method(self) -> None:
        self.close_connection = True  # its body, if any, is not read
        self._misdirected()

    do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_HEAD = do_TRACE = _other_method  # noqa: N815

    def _reply(self, status: int, data: dict[str, Any], **headers: str) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: a line a request would hide everything else."""


def _list_of(kind: str) -> dict[str, Any]:
    return {"type": "array", "items": {"type": kind}}


_REQUEST = {
    "type": "object",
    "anyOf": [{"required": ["responses"]}, {"required": ["query"]}],
    "properties": {
        "prompts": {**_list_of("string"), "description": "n prompts"},
        "responses": {**_list_of("string"), "description": "n responses"},
        "query": {**_list_of("string"), "description": "n texts, prompt and response in one; used without responses"},
        "columns": {"type": "object", "additionalProperties": {"type": "array"}, "description": "n values by name"},
    },
}
_REPLY = {
    "type": "object",
    "required": ["rewards"],
    "properties": {
        "rewards": {**_list_of("number"), "description": "n finite numbers"},
        "terms": {"type": "object", "additionalProperties": _list_of("number")},
    },
}
_HEALTH = {"type": "object", "required": ["reward"], "properties": {"reward": {"type": "string"}}}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}


def _content(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


OPENAPI: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "rlhf-gym reward", "version": "1"},
    "paths": {
        "/score": {
            "post": {
                "summary": "Score n samples",
                "requestBody": {"required": True, "content": {"application/json": {"schema": _REQUEST}}},
                "responses": {
                    "200": _content(_REPLY, "Scores in the order of the samples"),
                    "400": _content(_ERROR, "The request is not in this form"),
                    "401": _content(_ERROR, "The token is missing or wrong"),
                    "405": _content(_ERROR, "Not by this method"),
                    "411": _content(_ERROR, "The header Content-Length is missing or no number"),
                    "413": _content(_ERROR, f"The body is larger than {LARGEST_BODY} bytes"),
                    "500": _content(_ERROR, "The reward failed on these samples"),
                },
            }
        },
        "/health": {
            "get": {
                "summary": "Is it up",
                "responses": {
                    "200": _content(_HEALTH, "The reward's name"),
                    "405": _content(_ERROR, "Not by this method"),
                },
            }
        },
    },
}
