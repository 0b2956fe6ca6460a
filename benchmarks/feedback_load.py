"""Load on the rating page: many raters at once and a server that is killed meanwhile; measures speed, and checks every answer.

    python benchmarks/feedback_load.py                                   # 200 raters, 3 s think time, SQLite
    python benchmarks/feedback_load.py --store postgresql+psycopg://...  # an empty database
    python benchmarks/feedback_load.py --raters 40 --think 0.2 --kills 50 --seconds 300

A rater sends the requests that the page's script sends: an answer is posted with the ids of the cards on the page, and the
reply brings the next card. Each answer carries a reason of its own. A rater who gets no reply (the server was killed) sends the
same answer again until there is one, as the page does. At the end the store is read: every answer that got a reply must be
there exactly once, nobody may have answered a query twice, and no query may have been answered by more raters than the overlap
asks for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from rlhf_gym.feedback import FeedbackStore, Query
from rlhf_gym.study.people import People
from rlhf_gym.web.security import cookie_name, csrf_token

CARD = re.compile(r'data-id=\\?"([^"\\]+)\\?"')
LEASE = 600.0
START = 240.0  # seconds that a server may take to start, on a busy machine


@dataclass
class Tally:
    """Counts what the raters see: seconds of a round trip, answers that got a reply, requests sent again, errors."""

    seconds: list[float] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    retries: int = 0
    errors: Counter[str] = field(default_factory=Counter)


class Browser:
    """One keep-alive connection with as little code as a request needs: the server must do the work, not this script."""

    def __init__(self, port: int, session: str, cookie: str) -> None:
        self.port = port
        self.session = session
        self.cookie = cookie
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, fields: dict[str, str]) -> tuple[int, bytes]:
        """Post a form; returns the reply's status and body.

        Args:
            path: the address on the server.
            fields: the form's fields, without the token against forgery.

        Raises:
            OSError: the server is not there, or ended before it replied.
        """
        body = urlencode({"csrf": csrf_token(self.session), **fields}).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nCookie: {self.cookie}={self.session}\r\n"
            "Accept: application/json\r\n"
            f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self.port, limit=2**22)
            reader, writer = self._streams
            writer.write(head.encode() + body)
            await writer.drain()
            headers = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = re.search(r"content-length: (\d+)", headers)
            return int(headers.split(" ", 2)[1]), await reader.readexactly(int(length[1]) if length else 0)
        except (OSError, asyncio.IncompleteReadError) as error:
            if self._streams is not None:
                self._streams[1].close()
            self._streams = None
            raise ConnectionError(str(error)) from error


async def rate(
    name: str, browser: Browser, think: float, over: asyncio.Event, tally: Tally, chance: random.Random
) -> None:
    """One rater: think, answer, again and again, until it is over and the last answer has got its reply."""
    await asyncio.sleep(chance.random() * think)
    held: list[str] = []
    number = 0
    while not over.is_set():
        if not held:
            status, body = await insist(browser, "/next", {"have": ""}, tally)
            held += [] if status != 200 else cards(body)
            if not held:
                await asyncio.sleep(0.5)
                continue
        await asyncio.sleep(think * chance.uniform(0.5, 1.5))
        number += 1
        token = f"{name} {number}"
        fields = {
            "query_type": "pair",
            "answer": chance.choice(["a1", "a2", "b2", "b3", "tie"]),
            "reason": token,
            "have": " ".join(held),
        }
        began = time.monotonic()
        status, body = await insist(browser, f"/rate/{held[0]}", {**fields, "seconds": "3"}, tally)
        if status == 200:
            tally.seconds.append(time.monotonic() - began)
            tally.acknowledged.append(token)
            held = [*held[1:], *cards(body)]
        else:
            tally.errors[f"{status} {body[:80].decode(errors='replace')}"] += 1
            held = []


async def insist(browser: Browser, path: str, fields: dict[str, str], tally: Tally) -> tuple[int, bytes]:
    """Post until there is a reply other than "try again later"."""
    while True:
        try:
            status, body = await browser.post(path, fields)
            if status not in (429, 503):
                return status, body
            tally.errors[str(status)] += 1
        except OSError:
            tally.retries += 1
        await asyncio.sleep(0.2)


def cards(body: bytes) -> list[str]:
    """Ids of the cards in a reply."""
    return [found[1] for card in json.loads(body)["cards"] if (found := CARD.search(card))]


class Server:
    """`rlhf-gym rate --serve` in a process of its own, which can be killed and started again on the same port."""

    def __init__(self, store: str, overlap: int) -> None:
        # Bound, and not listening: nobody else is given the port while no server has it, and a server may still take it.
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", 0))
        self.port = self._held.getsockname()[1]
        program = [sys.executable, "-P", "-m", "rlhf_gym", "rate", "--serve", store, "--port", str(self.port)]
        self._command = [*program, "--overlap", str(overlap), "--lease", str(LEASE)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        end = time.monotonic() + START
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self._process.poll() is not None:
                raise SystemExit(f"the server ended with {self._process.returncode}")
            time.sleep(0.05)
        raise SystemExit(f"the server did not start within {START:.0f} s")

    def stop(self, how: signal.Signals) -> None:
        """End it by a signal, and wait until it has ended."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()


async def kill(server: Server, kills: int, until: float, chance: random.Random) -> None:
    """Kill the server at random moments before some time, and start it again; later where starting takes long."""
    for left in range(kills, 0, -1):
        await asyncio.sleep(chance.uniform(0.2, max(0.4, 1.6 * (until - time.monotonic()) / left - 2)))
        await asyncio.to_thread(server.stop, signal.SIGKILL)
        await asyncio.to_thread(server.start)


def check(store: str, tally: Tally, overlap: int) -> dict[str, Any]:
    """Compare the store's answers with those that got a reply."""
    with FeedbackStore(store) as opened:
        answers = opened.answers(superseded=True)
    stored = Counter(judgement.reason for _, judgement in answers)
    per_rater = Counter((judgement.query_id, judgement.rater) for _, judgement in answers)
    per_query = Counter(judgement.query_id for _, judgement in answers)
    return {
        "acknowledged": len(tally.acknowledged),
        "stored": len(answers),
        "lost": sum(stored[token] == 0 for token in tally.acknowledged),
        "doubled": sum(number > 1 for number in stored.values()),
        "answered_twice": sum(number > 1 for number in per_rater.values()),
        "over_the_overlap": sum(number > overlap for number in per_query.values()),
    }


def percentile(values: list[float], share: float) -> float:
    """The value that this share of the values lies at or below; 0 if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


async def run(options: argparse.Namespace, store: str) -> dict[str, Any]:
    """Fill the store, let the raters answer and the server be killed, and check the store."""
    chance = random.Random(options.seed)
    expected = int(options.raters * (options.seconds / max(options.think, 0.02) + 4))
    queries = [
        Query(
            prompt=f"Prompt {i}: what would you write to a friend?",
            responses=(f"first {i} " * 40, f"second {i} " * 40),
            index=i,
        )
        for i in range(expected // options.overlap + options.raters)
    ]
    with FeedbackStore(store) as opened:
        opened.add_queries(queries)
        people = People(opened)
        token = people.invite(uses=options.raters)
        sessions = [people.accept(token)[1] for _ in range(options.raters)]
        cookie = cookie_name(people.study())
    server, tally = Server(store, options.overlap), Tally()
    server.start()
    try:
        began, over = time.monotonic(), asyncio.Event()
        raters = [
            rate(
                f"rater {i}",
                Browser(server.port, session, cookie),
                options.think,
                over,
                tally,
                random.Random(options.seed + i),
            )
            for i, session in enumerate(sessions)
        ]

        async def end() -> None:
            await asyncio.gather(
                asyncio.sleep(options.seconds), kill(server, options.kills, began + options.seconds, chance)
            )
            over.set()

        await asyncio.gather(end(), *raters)
        lasted = time.monotonic() - began
    finally:
        server.stop(signal.SIGTERM)
    took = {
        f"p{int(100 * share)}_ms": round(1000 * percentile(tally.seconds, share), 1) for share in (0.5, 0.95, 0.99, 1.0)
    }
    counted = {"raters": options.raters, "think": options.think, "seconds": round(lasted, 1), "kills": options.kills}
    seen = {
        "retries": tally.retries,
        "errors": dict(tally.errors),
        "answers_a_second": round(len(tally.seconds) / lasted, 1),
    }
    return {**counted, **took, **seen, **check(store, tally, options.overlap)}


def main() -> int:
    """Run, print and write the measurements; returns 1 if an answer is lost or doubled, or a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--store", help="a database's URL or a file that is not there yet; default: a temporary SQLite file"
    )
    parser.add_argument("--raters", type=int, default=200)
    parser.add_argument("--think", type=float, default=3.0, help="seconds between two answers, on average")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--overlap", type=int, default=1)
    parser.add_argument("--kills", type=int, default=0, help="number of times to kill -9 the server")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the measurements to this file, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(run(options, options.store or str(Path(folder) / "feedback.sqlite")))
    text = json.dumps(found, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return int(
        bool(
            found["lost"] or found["doubled"] or found["answered_twice"] or found["over_the_overlap"] or found["errors"]
        )
    )


if __name__ == "__main__":
    sys.exit(main())
