"""TextArena's Tower of Hanoi in short, and scripted players of it: any move, a legal one, the best with some probability."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np

PEGS = "ABC"
GAME = "TowerOfHanoi-v0-train"
"""Three disks, 14 moves. The variants for training show each board once instead of the whole game so far."""
Board = tuple[str, ...]
"""The disks on each peg, from the bottom."""
Player = Callable[[str, np.random.Generator], str]


class InShort(gym.Wrapper[str, str, str, str]):
    """An observation is the board, ``A32 B1 C``, and a move needs no brackets, ``AC``; rules and rewards are the game's own."""

    def reset(self, **options: Any) -> tuple[str, dict[str, Any]]:
        """The first board."""
        observation, info = self.env.reset(**options)
        return in_short(observation), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Move."""
        observation, *rest = self.env.step(f"[{' '.join(action.strip())}]")
        return (in_short(observation), *rest)  # type: ignore[return-value]


def in_short(observation: str) -> str:
    """The last board of an observation."""
    found = re.findall(r"([ABC]): \[([^\]]*)\]", observation)[-len(PEGS) :]
    return " ".join(peg + disks.replace(", ", "") for peg, disks in found)


def any_move(observation: str, rng: np.random.Generator) -> str:
    """One of the six moves."""
    source, target = rng.choice(len(PEGS), size=2, replace=False)
    return PEGS[source] + PEGS[target]


def legal_move(observation: str, rng: np.random.Generator) -> str:
    """One of the two or three legal moves."""
    moves = [move for move, _ in _moves(_read(observation))]
    return moves[int(rng.integers(len(moves)))]


def solver(share: float) -> Player:
    """A player who takes the best move with this probability, else any.

    Args:
        share: in [0, 1]; 1 solves the puzzle in seven moves.
    """

    def play(observation: str, rng: np.random.Generator) -> str:
        if rng.random() >= share:
            return any_move(observation, rng)
        return min(_moves(_read(observation)), key=lambda move: _LEFT[move[1]])[0]

    return play


def _read(observation: str) -> Board:
    return tuple(peg[1:] for peg in observation.rpartition("\n")[2].split(" "))


def _moves(board: Board) -> Iterator[tuple[str, Board]]:
    """Legal moves, and the boards that they lead to."""
    for source, disks in enumerate(board):
        for target, others in enumerate(board):
            if source != target and disks and (not others or others[-1] > disks[-1]):
                after = list(board)
                after[source], after[target] = disks[:-1], others + disks[-1]
                yield PEGS[source] + PEGS[target], tuple(after)


def _distances(solved: Board) -> dict[Board, int]:
    """Of each of the 27 boards, the moves to the solved one."""
    left, waiting = {solved: 0}, deque([solved])
    while waiting:
        board = waiting.popleft()
        for _, after in _moves(board):
            if after not in left:
                left[after] = left[board] + 1
                waiting.append(after)
    return left


_LEFT = _distances(("", "", "321"))
