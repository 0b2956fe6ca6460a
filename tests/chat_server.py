"""A service that speaks the chat-completions protocol and says what a test wants, faults included."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Say = Callable[[dict[str, Any]], Any]


class ChatServer:
    """What was asked, and what is replied.

    Args:
        say: given a request, the reply's text; or a status, or (status, body), for a refusal.
        models: what it lists.
    """

    def __init__(self, say: Say, models: tuple[str, ...] = ("tiny-judge",)) -> None:
        self.say, self.models = say, models
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.url = ""


@contextmanager
def chat_server(say: Say, port: int = 0, **options: Any) -> Iterator[ChatServer]:
    server = ChatServer(say, **options)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def send(self, status: int, body: Any) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.send(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in server.models]})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                server.requests.append(request)
                server.keys.append(self.headers.get("Authorization", ""))
                said = server.say(request)
            if isinstance(said, int):
                said = (said, {"error": {"message": f"no: {self.headers.get('Authorization', '')}"}})
            if isinstance(said, tuple):
                self.send(*said)
                return
            message = {"role": "assistant", "content": said}
            usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            self.send(
                200,
                {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 0,
                    "model": "m",
                    "choices": choices,
                    "usage": usage,
                },
            )

    http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def asked(request: dict[str, Any]) -> str:
    """What the model was asked, without what it was told before."""
    return str(request["messages"][-1]["content"])


def material(request: dict[str, Any]) -> list[str]:
    """The texts between the marks of a question: the prompt, and one response or two."""
    import re

    return [text for _, text in re.findall(r"<(material-\w+)>\n(.*?)\n</\1>", asked(request), flags=re.DOTALL)]
