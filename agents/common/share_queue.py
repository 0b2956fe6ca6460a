"""The episodes that workers generate for one learner: shared out, waited for, and given out again where a worker is lost.

An episode is its number, which its noise comes from, and its prompt: whoever generates it with the same weights generates the
same. So nothing but these two must be kept of what is under way.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf_gym.agents.common.rollout import Episode
from rlhf_gym.errors import WorkerError

MOST_ATTEMPTS = 5
"""Workers in a row that may be lost over the same episodes before training stops."""
_LOOK_UP = 1.0  # seconds after which who waits for episodes looks whether anybody is still generating them


@dataclass(frozen=True)
class Share:
    """Episodes that one worker generates together, groups whole.

    Attributes:
        numbers: of the episodes, for their noise.
        prompts: the number of each one's prompt in the task.
    """

    numbers: tuple[int, ...]
    prompts: tuple[int, ...]


@dataclass(frozen=True)
class Drawn:
    """What a worker returns.

    Attributes:
        episodes: generated and scored, in the order of the share.
        version: of the weights that generated them.
        reward_seconds: the time that was spent in the reward.
    """

    episodes: list[Episode]
    version: int
    reward_seconds: float

    @property
    def tokens(self) -> int:
        """Response tokens."""
        return sum(len(episode.response_ids) for episode in self.episodes)


@dataclass(frozen=True)
class _Group:
    """A group of episodes that are ready."""

    share: Share
    episodes: list[Episode]
    version: int


def cut(numbers: Sequence[int], prompts: Sequence[int], group_size: int, parts: int) -> list[Share]:
    """Share episodes out, groups whole, in parts of about the same size.

    Args:
        numbers: of the episodes.
        prompts: the number of each one's prompt.
        group_size: episodes in a row that belong together; divides their number.
        parts: the largest number of parts.

    Returns:
        As many shares, or one for each group.
    """
    groups = len(numbers) // group_size
    parts = min(parts, groups)
    ends = [groups * i // parts * group_size for i in range(1, parts + 1)]
    return [
        Share(tuple(numbers[begin:end]), tuple(prompts[begin:end]))
        for begin, end in zip([0, *ends], ends, strict=False)
    ]


class ShareQueue:
    """Shares that wait, are under way, or are ready; one thread learns from them, others have them generated.

    Args:
        group_size: episodes of a group, which are learned from together.

    Attributes:
        dropped: episodes that were too old so far, and are generated again.
        closed: True once nobody wants any more.
    """

    def __init__(self, group_size: int) -> None:
        self.group_size = group_size
        self.dropped, self.closed = 0, False
        self._changed = threading.Condition()
        self._waiting: deque[Share] = deque()
        self._under_way: list[Share] = []
        self._ready: dict[int, _Group] = {}  # by the number of the first episode
        self._attempts: dict[Share, int] = {}
        self._error: BaseException | None = None

    # ------------------------------------------------------------------------------------------------ the learner's side

    def put(self, shares: Sequence[Share]) -> None:
        """Add shares behind those that wait."""
        with self._changed:
            self._waiting.extend(shares)
            self._changed.notify_all()

    def take(self, count: int, oldest: int, check: Callable[[], None]) -> list[Episode]:
        """Wait for episodes, and take them: those with the lowest numbers that are ready.

        Those of weights that are too old are dropped, and generated again.

        Args:
            count: the number of episodes, whole groups.
            oldest: the lowest version of the weights that will do.
            check: called now and then; what it raises ends the waiting.

        Returns:
            In the order of their numbers.

        Raises:
            RlhfGymError: a worker has failed.
        """
        while True:
            with self._changed:
                if self._error is not None:
                    raise self._error
                self._drop_older(oldest)
                if len(self._ready) * self.group_size >= count:
                    firsts = sorted(self._ready)[: count // self.group_size]
                    return [episode for first in firsts for episode in self._ready.pop(first).episodes]
                self._changed.wait(_LOOK_UP)
            check()

    def _drop_older(self, oldest: int) -> None:
        old = [first for first, group in self._ready.items() if group.version < oldest]
        for first in sorted(old, reverse=True):  # each is put before those that wait
            share = self._ready.pop(first).share
            self.dropped += len(share.numbers)
            self._waiting.appendleft(share)
        if old:
            self._changed.notify_all()

    def outstanding(self) -> list[tuple[int, int]]:
        """Number and prompt of every episode that nobody has taken yet, in order."""
        with self._changed:
            shares = [*self._waiting, *self._under_way, *(group.share for group in self._ready.values())]
        return sorted((n, p) for share in shares for n, p in zip(share.numbers, share.prompts, strict=True))

    def depth(self) -> tuple[int, int]:
        """The numbers of episodes that wait for a worker, and of those that are ready."""
        with self._changed:
            return sum(len(share.numbers) for share in self._waiting), len(self._ready) * self.group_size

    def close(self) -> None:
        """Let everybody go who waits."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    # ------------------------------------------------------------------------------------------------ the workers' side

    def next(self) -> Share | None:
        """Wait for a share to generate; None once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self._waiting)
            if self.closed:
                return None
            share = self._waiting.popleft()
            self._under_way.append(share)
            return share

    def finish(self, share: Share, drawn: Drawn) -> None:
        """A share has been generated.

        Args:
            share: as :meth:`next` gave it.
            drawn: its episodes.
        """
        size = self.group_size
        with self._changed:
            self._under_way.remove(share)
            self._attempts.pop(share, None)
            for begin in range(0, len(share.numbers), size):
                part = slice(begin, begin + size)
                own = Share(share.numbers[part], share.prompts[part])
                self._ready[own.numbers[0]] = _Group(own, drawn.episodes[part], drawn.version)
            self._changed.notify_all()

    def give_back(self, share: Share, why: str) -> None:
        """The worker of a share is lost: another one generates it, before those that wait.

        Args:
            share: as :meth:`next` gave it.
            why: the worker was lost, for the message after too many of them.
        """
        with self._changed:
            self._under_way.remove(share)
            self._waiting.appendleft(share)
            tried = self._attempts[share] = self._attempts.get(share, 0) + 1
            if tried >= MOST_ATTEMPTS:
                self._fail(
                    WorkerError(
                        f"episodes {share.numbers[0]} to {share.numbers[-1]} have cost {tried} workers on Ray in a row, the "
                        f"last one by: {why}. Generate them in this process (without ray) to see what ends it"
                    )
                )
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Make :meth:`take` raise an error; the first one counts."""
        with self._changed:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self._changed.notify_all()
