"""A server for tests that speaks vLLM's completions protocol: real sockets, real sampling by a language model."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rlhf_gym.lm.decoding import generate
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import load_adapter
from rlhf_gym.lm.sampling import Limits, Sampling

PATHS = [
    "/v1/completions", "/v1/models", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/weight_info",
]  # fmt: skip
ADAPTER_PATHS = ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"]


class CompletionsServer(ThreadingHTTPServer):
    """A vLLM server with one model.

    Attributes:
        calls: the paths that were asked for, and the bodies.
        before: called with each completion's body; may raise :class:`RefusalError`, or change what follows.
        change: called with each completion, which it may change.
    """

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.paths, self.calls = PATHS, []  # type: ignore[var-annotated]
        self.before: Callable[[dict[str, Any]], None] = lambda body: None
        self.change: Callable[[dict[str, Any]], None] = lambda reply: None
        self.ignores_reloads = False
        self.first, self.lock = model, threading.Lock()
        self.restart()

    def restart(self) -> None:
        """Forget all weights that were loaded, as a process that starts anew does."""
        self.model, self.version, self.adapters = self.first, "default", {}  # type: ignore[var-annotated]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [body for asked, body in self.calls if asked == path]

    def answer(self, path: str, body: Any) -> Any:
        if path == "/openapi.json":
            return {"paths": dict.fromkeys(self.paths)}
        if path == "/v1/models":
            adapters = [{"id": name, "parent": "tiny"} for name in self.adapters]
            return {"data": [*adapters, {"id": "tiny", "parent": None}]}
        if path == "/weight_info":
            return {"weight_version": self.version}
        if path == "/reset_prefix_cache":
            return {"success": True}
        if path == "/collective_rpc":
            if not self.ignores_reloads:
                self.model = LanguageModel.load(body["kwargs"]["weights_path"], tokenizer=self.first.tokenizer)
            return {"results": [None]}
        if path == "/update_weight_version":
            self.version = body["new_version"]
            return {"success": True}
        if path == "/v1/load_lora_adapter":
            self.adapters[body["lora_name"]] = load_adapter(self.first, body["lora_path"])
            return "loaded"
        if path == "/v1/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
            return "unloaded"
        assert path == "/v1/completions", path
        self.before(body)
        reply = {**self.complete(body), "request": body}  # several are under way at once
        self.change(reply)
        return reply

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        model = self.model if body["model"] == "tiny" else self.adapters.get(body["model"])
        if model is None:
            raise RefusalError(404, f"The model `{body['model']}` does not exist.")
        eos, *more = body["stop_token_ids"]
        assert body["ignore_eos"]
        limits = Limits(
            eos, tuple(int(token) for token, bias in body.get("logit_bias", {}).items() if bias == -100.0),
            body["min_tokens"], body["max_tokens"], tuple(more),
        )  # fmt: skip
        sampling = Sampling(body["temperature"], body["top_k"], body["top_p"])
        with self.lock:  # a forward pass changes a model's caches
            drawn = generate(
                model, [body["prompt"]], limits, sampling=sampling, seed=body["seed"], stop=body.get("stop", ())
            )[0]
        choice = {
            "token_ids": drawn.ids, "logprobs": {"token_logprobs": drawn.log_probs},
            "finish_reason": "stop" if drawn.ended else "length", "text": drawn.text,
        }  # fmt: skip
        return {"model": body["model"], "choices": [choice]}


class RefusalError(Exception):
    """A reply with an error's status; status 0 closes the connection without a reply."""

    def __init__(self, status: int, message: str = "") -> None:
        self.status, self.message = status, message


class Handler(BaseHTTPRequestHandler):
    server: CompletionsServer

    def do_GET(self) -> None:
        self._reply(None)

    def do_POST(self) -> None:
        self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "null"))

    def _reply(self, body: Any) -> None:
        self.server.calls.append((self.path, body))
        status = 200
        try:
            value = self.server.answer(self.path, body)
        except RefusalError as refusal:
            if refusal.status == 0:
                self.close_connection = True
                return
            status, value = refusal.status, {"error": {"message": refusal.message}}
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(model: LanguageModel) -> Iterator[CompletionsServer]:
    """Serve a model while the context is open."""
    server = CompletionsServer(model)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
