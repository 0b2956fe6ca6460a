"""Book a table: a dialogue with a scripted user, who has said some of what is needed and is to be asked for the rest."""

from __future__ import annotations

import string
from functools import partial
from typing import Any

import gymnasium as gym

from rlhf_gym.errors import TaskError
from rlhf_gym.tasks.base import Conversation, Task
from rlhf_gym.tasks.samples import Prompt

SLOTS = {"day": ("friday", "sunday", "today"), "time": ("early", "late", "noon"), "people": ("two", "three", "four")}
"""What is needed for a booking, by the word that asks for it, with the user's possible answers."""
BOOK = "book"
QUESTION, OTHER, BOOKED, EARLY = 0.2, -0.2, 1.0, -0.5
"""The rewards of a question that is needed, of another action, and of a booking: complete, or with something missing."""
_TEXTS = string.ascii_letters + string.digits + string.punctuation + " \n"


class BookTableEnv(gym.Env[str, str]):
    """A scripted user wants a table, and says at the beginning some of the day, the time and the number of people.

    Observations and actions are texts. An action that begins with ``day``, ``time`` or ``people`` asks for it: 0.2, or -0.2
    where the user has said it already. ``book`` books and ends the episode: 1 if nothing is missing, else -0.5. Anything else
    is worth -0.2.

    Args:
        turns: the most actions in an episode, at least 4.
        render_mode: ``"ansi"``.

    Raises:
        TaskError: too few turns, or an unknown render mode.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - Gymnasium declares it so

    def __init__(self, turns: int = 6, render_mode: str | None = None) -> None:
        if turns < len(SLOTS) + 1:
            raise TaskError(
                f"turns must be at least {len(SLOTS) + 1}, a question for each thing and the booking; got {turns}"
            )
        if render_mode not in (None, "ansi"):
            raise TaskError(f"render_mode must be 'ansi' or None, got {render_mode!r}")
        self.turns, self.render_mode = turns, render_mode
        self.observation_space = gym.spaces.Text(64, min_length=0, charset=_TEXTS)
        self.action_space = gym.spaces.Text(256, min_length=0, charset=_TEXTS)
        self.wishes: dict[str, str] = {}
        self.said: set[str] = set()
        self.turn, self.lines, self._running = 0, list[str](), False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draw the user's wishes, and which of them the user says at once.

        Args:
            seed: of the random numbers from here on; None goes on with those there are.
            options: not used.
        """
        super().reset(seed=seed)
        self.wishes = {slot: answers[int(self.np_random.integers(3))] for slot, answers in SLOTS.items()}
        self.said = {slot for slot in SLOTS if self.np_random.random() < 0.5}
        self.turn, self._running = 0, True
        self.lines = [" ".join(["a table", *(self.wishes[slot] for slot in SLOTS if slot in self.said)])]
        return self.lines[0], {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Ask for something, or book.

        Raises:
            ResetNeeded: no episode is running.
        """
        if not self._running:
            raise gym.error.ResetNeeded("step() where no episode is running: call reset()")
        self.turn += 1
        asked = action.strip().lower()
        word, booked = next((w for w in (*SLOTS, BOOK) if asked.startswith(w)), ""), False
        if word == BOOK:
            booked = len(self.said) == len(SLOTS)
            line, reward = ("thanks" if booked else "no"), (BOOKED if booked else EARLY)
        elif word:
            line, reward = self.wishes[word], (OTHER if word in self.said else QUESTION)
            self.said.add(word)
        else:
            line, reward = "sorry", OTHER
        self.lines += [action, line]
        over = word == BOOK or self.turn == self.turns
        self._running = not over
        return line, reward, over, False, {"booked": booked}

    def render(self) -> str | None:
        """The conversation so far, a message a line (``ansi``)."""
        return "\n".join(self.lines) if self.render_mode == "ansi" and self.lines else None


def book_table_task(turns: int = 6) -> Task:
    """The task: ask for what is missing, for nothing else, and book.

    Args:
        turns: the most actions in an episode.

    Raises:
        TaskError: too few turns.
    """
    BookTableEnv(turns)  # refuses too few
    line = Prompt("a table")
    return Task(
        name="book_table", prompts=[line], held_out=[line], max_new_tokens=2,
        conversation=Conversation(
            partial(BookTableEnv, turns), template="lines", vocabulary=(*SLOTS, BOOK), max_turns=turns,
            max_context=32 + 16 * turns,
        ),
    )  # fmt: skip
