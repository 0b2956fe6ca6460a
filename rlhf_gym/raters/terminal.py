"""A person at the terminal: one key a decision, undo, and every answer stored the moment it is given."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback.queries import Judgement, Query, QueryType, content_id
from rlhf_gym.feedback.store import FeedbackStore
from rlhf_gym.raters.base import RaterStoppedError, Ticket
from rlhf_gym.raters.keyboard import Keyboard
from rlhf_gym.text import visible

_LETTERS = "abcdefghijklmnop"  # before q, s, t and u, which are commands
_HELP: dict[QueryType, str] = {
    "pair": "a/b which is better · t tie · s skip · u undo · q stop",
    "best": "a letter: which is best · s skip · u undo · q stop",
    "ranking": "letters, best first · s skip · u undo · q stop",
    "rating": "a digit 1-9 for each response (9 best) · s skip · u undo · q stop",
}
ANSWERED: tuple[QueryType, ...] = tuple(_HELP)
"""The query types that can be answered at the terminal."""


class TerminalRater:
    """Shows queries one by one, blind and in random order, and reads single keys.

    Args:
        name: signs the judgements.
        store: where each answer goes the moment it is given, so that none is lost if the terminal closes; without one,
            answers are kept until they are collected.
        console: shows the queries; default standard output.
        keyboard: reads the keys; default standard input.
        seed: of the order responses are shown in, which depends on it, the rater's name and the query only.
    """

    def __init__(
        self,
        name: str = "terminal",
        store: FeedbackStore | None = None,
        *,
        console: Console | None = None,
        keyboard: Keyboard | None = None,
        seed: int = 0,
    ) -> None:
        self._name = name
        self._store = store
        self._console = console or Console()
        self._keyboard = keyboard or Keyboard()
        self._seed = seed
        self._queries: dict[str, Query] = {}
        # Queries in the order they were answered, and the latest answer to each: what undo goes back through.
        self._history: list[str] = []
        self._latest: dict[str, Judgement] = {}

    @property
    def name(self) -> str:
        """Signs the judgements."""
        return self._name

    def submit(self, queries: Sequence[Query]) -> list[Ticket]:
        """Take queries; they are shown when they are collected. See :meth:`Rater.submit`.

        Raises:
            FeedbackError: more responses than there are letters for, or thumbs and edits, which want the rating page.
        """
        for query in queries:
            if query.query_type not in _HELP:
                raise FeedbackError(
                    f"the terminal asks {', '.join(_HELP)} queries; got {query.query_type}: use the rating page"
                )
            if len(query.responses) > len(_LETTERS):
                raise FeedbackError(f"the terminal shows at most {len(_LETTERS)} responses, got {len(query.responses)}")
        self._queries.update((query.id, query) for query in queries)
        return [Ticket(query.id, self._name) for query in queries]

    def collect(self, tickets: Sequence[Ticket], timeout: float | None = None) -> list[Judgement]:
        """Ask, in the order of the tickets; undo asks the one before again. See :meth:`Rater.collect`.

        With a timeout, returns after the answer during which it ran out.

        Args:
            tickets: from :meth:`submit`.
            timeout: seconds to wait.

        Raises:
            RaterStoppedError: the person pressed q; ``judgements`` holds the answers before.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        given: list[Judgement] = []
        waiting = [self._submitted(ticket) for ticket in reversed(tickets)]
        undone = 0  # queries on top of the waiting ones that are asked again, however late it is
        while waiting or self._undo_last():
            if not waiting:
                waiting.append(self._queries[self._history.pop()])
                undone += 1
            query = waiting[-1]
            answer = self._ask(query, left=len(waiting), given=given)
            if answer is None:  # undo
                if self._history:
                    waiting.append(self._queries[self._history.pop()])
                    undone += 1
                continue
            waiting.pop()
            undone = max(0, undone - 1)
            self._keep(answer, given)
            self._history.append(query.id)
            if waiting and not undone and deadline is not None and time.monotonic() >= deadline:
                break
        return given

    def _submitted(self, ticket: Ticket) -> Query:
        if ticket.query_id not in self._queries:
            raise FeedbackError(f"query {ticket.query_id} was not submitted to rater {self._name!r}")
        return self._queries[ticket.query_id]

    def _undo_last(self) -> bool:
        """After the very last query, the last chance to take an answer back."""
        if not self._history or len(self._latest) < len(self._queries):
            return False
        self._console.print(Text("That was the last one. u undo · any other key to finish", style="dim"))
        self._keyboard.discard()
        return self._keyboard.read() == "u"

    def _keep(self, answer: Judgement, given: list[Judgement]) -> None:
        earlier = self._latest.get(answer.query_id)
        if earlier is not None and replace(answer, supersedes=earlier.supersedes).same_answer(earlier):
            return  # undone, and answered as before: there is nothing to correct
        if self._store is not None:
            self._store.add_judgements([answer])
        self._latest[answer.query_id] = answer
        given.append(answer)

    def _ask(self, query: Query, left: int, given: list[Judgement]) -> Judgement | None:
        """Show one query and read its answer; None to undo the answer before."""
        k = len(query.responses)
        key = int(content_id("terminal", self._seed, self._name, query.id), 16)
        order = tuple(int(i) for i in np.argsort(np.random.Generator(np.random.Philox(key=key)).random(k)))
        self._show(query, order, left)
        self._keyboard.discard()
        began = time.monotonic()
        typed: list[str] = []
        while True:
            pressed = self._keyboard.read()
            if pressed == "q":
                message = f"rater {self._name!r} stopped with {left} to go; --resume goes on from here, nothing is lost"
                raise RaterStoppedError(message, given)
            if pressed == "u":
                if not typed:
                    return None
                typed.pop()  # within an answer of several keys, undo takes back one key
                continue
            answer = {"skipped": True} if pressed == "s" else self._read(query, order, typed, pressed)
            if answer is None:
                continue
            earlier = self._latest.get(query.id)
            return Judgement(
                query_id=query.id,
                rater=self._name,
                order_shown=order,
                seconds=time.monotonic() - began,
                supersedes=earlier.id if earlier else None,
                **answer,
            )

    def _read(self, query: Query, order: Sequence[int], typed: list[str], pressed: str) -> dict[str, Any] | None:
        """Take one more key into account; the answer once it is whole."""
        k = len(order)
        shown = _LETTERS[:k]
        if query.query_type in ("pair", "best"):
            if pressed == "t" and query.query_type == "pair":
                return {"tie": True}
            return {"choice": order[shown.index(pressed)]} if pressed and pressed in shown else None
        if query.query_type == "ranking":
            if not pressed or pressed not in shown or pressed in typed:
                return None
            typed.append(pressed)
            self._console.print(Text(f"{len(typed)}. {pressed.upper()}", style="cyan"))
            if len(typed) < k - 1:
                return None
            last = [letter for letter in shown if letter not in typed]
            return {"ranking": tuple((order[shown.index(letter)],) for letter in [*typed, *last])}
        if pressed not in tuple("123456789"):
            return None
        typed.append(pressed)
        self._console.print(Text(f"{shown[len(typed) - 1].upper()}: {pressed}", style="cyan"))
        if len(typed) < k:
            return None
        of_response = dict(zip(order, typed, strict=True))
        return {"ratings": {"overall": tuple(float(of_response[i]) for i in range(k))}}

    def _show(self, query: Query, order: Sequence[int], left: int) -> None:
        """Prompt, responses in the order shown, and the keys; all as plain text, for models may write anything."""
        self._console.print(Rule(f"{left} to go"))
        self._console.print(Panel(Text(visible(query.prompt)), title="prompt", title_align="left", style="bold"))
        for letter, i in zip(_LETTERS, order, strict=False):
            self._console.print(Panel(Text(visible(query.responses[i])), title=letter.upper(), title_align="left"))
        self._console.print(Text(_HELP[query.query_type], style="dim"))
