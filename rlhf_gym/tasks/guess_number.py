"""Guess a number: a conversation in which every answer of the environment halves what is left, if the policy asks well."""

from __future__ import annotations

import re
import string
from functools import partial
from typing import Any

import gymnasium as gym

from rlhf_gym.errors import TaskError
from rlhf_gym.tasks.base import Conversation, Task, whole_number
from rlhf_gym.tasks.samples import Prompt

COST = 0.1
"""What a wrong guess costs."""
_TEXTS = string.ascii_letters + string.digits + string.punctuation + " \n"


class GuessNumberEnv(gym.Env[str, str]):
    """A number is to be guessed; the environment answers ``lower``, ``higher``, or ``right``, which ends the episode.

    Observations and actions are texts. The first number in an action is the guess. A right guess is worth 1, any other action
    -0.1; the episode ends after ``guesses`` actions.

    Args:
        highest: the number lies in 0..highest.
        guesses: the most actions in an episode.
        render_mode: ``"ansi"``.

    Raises:
        TaskError: a number is out of range.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - Gymnasium declares it so

    def __init__(self, highest: int = 9, guesses: int = 5, render_mode: str | None = None) -> None:
        whole_number("highest", highest, 1)
        whole_number("guesses", guesses, 1)
        if render_mode not in (None, "ansi"):
            raise TaskError(f"render_mode must be 'ansi' or None, got {render_mode!r}")
        self.highest, self.guesses, self.render_mode = highest, guesses, render_mode
        self.observation_space = gym.spaces.Text(64, min_length=0, charset=_TEXTS)
        self.action_space = gym.spaces.Text(256, min_length=0, charset=_TEXTS)
        self.number, self.turn, self.lines = 0, 0, list[str]()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draw a number.

        Args:
            seed: of the numbers from here on; None goes on with the random numbers there are.
            options: not used.
        """
        super().reset(seed=seed)
        self.number, self.turn = int(self.np_random.integers(self.highest + 1)), 0
        self.lines = [first_line(self.highest)]
        return self.lines[0], {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Guess.

        Raises:
            ResetNeeded: no episode is running.
        """
        if not self.lines or self.turn >= self.guesses or self.lines[-1] == "right":
            raise gym.error.ResetNeeded("step() where no episode is running: call reset()")
        self.turn += 1
        found = re.search(r"\d+", action)
        guess = int(found[0][:9]) if found else None
        right = guess == self.number
        line = "right" if right else "a number" if guess is None else "lower" if guess > self.number else "higher"
        self.lines += [action, line]
        over = right or self.turn == self.guesses
        return line, 1.0 if right else -COST, over, False, {"guess": guess, "number": self.number if over else None}

    def render(self) -> str | None:
        """The conversation so far, a message a line (``ansi``)."""
        return "\n".join(self.lines) if self.render_mode == "ansi" and self.lines else None


def first_line(highest: int) -> str:
    """The environment's first message."""
    return f"a number from 0 to {highest}"


def guess_number_task(highest: int = 9, guesses: int = 5) -> Task:
    """The task: guess a number in as few turns as can be.

    Args:
        highest: the number lies in 0..highest.
        guesses: the most guesses.

    Raises:
        TaskError: a number is out of range.
    """
    whole_number("highest", highest, 1)
    whole_number("guesses", guesses, 1)
    line = Prompt(first_line(highest))
    return Task(
        name="guess_number", prompts=[line], held_out=[line], max_new_tokens=len(str(highest)),
        conversation=Conversation(
            partial(GuessNumberEnv, highest, guesses), template="lines", vocabulary=tuple(string.digits), max_turns=guesses,
            max_context=32 + 16 * guesses,
        ),
    )  # fmt: skip


def fewest_guesses(count: int, guesses: int) -> float:
    """The mean reward of bisection, which no policy exceeds: of ``2^(k-1)`` numbers each is found by guess ``k``.

    Args:
        count: numbers that may be drawn.
        guesses: the most guesses.

    >>> round(fewest_guesses(10, 5), 2)
    0.81
    """
    found, total = 0, 0.0
    for k in range(1, guesses + 1):
        now = min(2 ** (k - 1), count - found)
        total += now * (1 - COST * (k - 1))
        found += now
    return (total - (count - found) * COST * guesses) / count
