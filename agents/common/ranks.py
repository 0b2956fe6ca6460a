"""The processes that learn together: each has a *rank*; rank 0 writes, scores and steps, all generate and learn.

Launch them with ``accelerate launch`` or ``torchrun``; see docs/scaling.md. Every rank holds the whole agent (but for weights
in parts, ``sharding.py``) and the whole rollout. Rank 0 alone moves the environment and calls the reward, so prompts, adaptive
rewards and checkpoints are those of one process. The ranks share out what costs time: generation, passes of the reference, and
the gradients of a minibatch, which are added up.

Every exchange also says who has failed, so that all ranks stop with one message, and none waits for one that is gone.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf_gym import errors
from rlhf_gym.errors import ConfigError, RankError, RlhfGymError, first_line

T = TypeVar("T")

TIMEOUT = "RLHF_GYM_RANK_TIMEOUT"
"""The environment variable with the minutes that a rank waits for the others; 120 without it."""
BUCKET = 2**24
"""Numbers that are added up over the ranks at once."""


@dataclass(frozen=True)
class Failure:
    """What has failed in another process: the name of the error's class, and its message."""

    kind: str
    message: str

    def as_error(self, where: str, otherwise: type[RlhfGymError]) -> RlhfGymError:
        """The error to raise here.

        Args:
            where: the process, for the message.
            otherwise: its class, where the error is none of this package's.
        """
        kind: Any = getattr(errors, self.kind, otherwise)
        return kind(f"{where}: {self.message}")  # type: ignore[no-any-return]


def failure_of(error: Exception) -> Failure:
    """An error, for another process."""
    return Failure(type(error).__name__, _message(error))


class Ranks:
    """The processes that learn together, as one of them sees them; by default it is alone.

    Args:
        rank: of this process, from 0.
        size: the number of processes.
        control: the group over which objects are exchanged, on the CPU; None for one process.
        seconds: how long it waits for the others.
        sharded: accelerate's FSDP configuration asks for weights of which each rank keeps a part.

    Attributes:
        sharded: likewise.
        told: True once all ranks know why they stop.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, control: dist.ProcessGroup | None = None, seconds: float = 7200.0,
        *, sharded: bool = False,
    ) -> None:  # fmt: skip
        self.rank, self.size, self.sharded = rank, size, sharded
        self.told = False
        self._control, self._seconds = control, seconds
        self._alone = 0
        self._leads = False

    @property
    def is_main(self) -> bool:
        """True for rank 0, and where there is one process."""
        return self.rank == 0

    @property
    def shared(self) -> bool:
        """True where work is shared: with several processes, and not inside work that one of them does by itself."""
        return self.size > 1 and not self._alone

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Work of this rank by itself: nothing inside waits for the others."""
        self._alone += 1
        try:
            yield
        finally:
            self._alone -= 1

    # ------------------------------------------------------------------------------------------------ exchanges

    def from_main(self, work: Callable[[], T], *, patient: bool = False) -> T:
        """The result of work that rank 0 alone does; the others wait.

        Args:
            work: its result must be picklable.
            patient: wait without end, as for people's answers; a lost connection still ends it.

        Raises:
            RlhfGymError: it failed on rank 0, on every rank alike.
            RankError: rank 0 is gone.
        """
        if not self.shared:
            return work()
        outcome, error, data = self._attempt(work) if self.is_main else (None, None, b"")
        found = outcome if self.is_main else None
        received = self._broadcast(data, patient)
        if not self.is_main:
            found = pickle.loads(received)
        self._raise_first([found], error)
        return found  # type: ignore[return-value]

    def gather(self, work: Callable[[], T]) -> list[T]:
        """The results of work that every rank does, in the order of the ranks; ``[work()]`` where there is one process.

        Args:
            work: its result must be picklable.

        Raises:
            RlhfGymError: it failed on a rank; on every rank alike.
            RankError: a rank is gone.
        """
        if not self.shared:
            return [work()]
        _, error, data = self._attempt(work)
        outcomes = [pickle.loads(one) for one in self._all_gather(data)]
        self._raise_first(outcomes, error)
        return outcomes

    def each(self, work: Callable[[], T]) -> T:
        """This rank's result of work that every rank does; only failures are exchanged, as in :meth:`gather`."""
        kept: list[T] = []
        self.gather(lambda: kept.append(work()))
        return kept[0]

    def lead(self, work: Callable[[], T], joint: Callable[[], object] | None = None) -> T:
        """Rank 0's result of work that every rank does, as in :meth:`gather`.

        Args:
            work: its result must be picklable.
            joint: done by the other ranks each time that rank 0's work calls them (:meth:`call`); None where it never does.
        """
        if joint is None or not self.shared:
            return self.gather(work)[0]
        return self.gather(partial(self._led, work, joint))[0]

    def _led(self, work: Callable[[], T], joint: Callable[[], object]) -> T:
        self._leads = self.is_main
        try:
            return work()
        finally:
            self._leads = False
            if self.is_main:
                self._broadcast(b"", False)  # nobody is called any more
            else:
                while self._broadcast(b"", False):
                    joint()

    def call(self) -> None:
        """On rank 0, in work that it leads: have the others do their joint work, of which this rank does its part next.

        Where all ranks come here alike, nobody needs to be called.

        Raises:
            RankError: the others do not wait for a call.
        """
        if self.shared or not self.is_main or self.size == 1:
            return
        if not self._leads:
            raise RankError(
                "a checkpoint of weights that are kept in parts needs all processes: call agent.save in each, or in a callback"
            )
        self._broadcast(b"joint", False)

    def check_same(self, facts: Callable[[], dict[str, Any]], why: str) -> None:
        """Refuse ranks that do not agree.

        Args:
            facts: values by name, which must be the same on every rank.
            why: the end of the message: what to do.

        Raises:
            ConfigError: they differ; it names the first that does.
        """
        if not self.shared:
            return
        found = self.gather(facts)
        for rank, theirs in enumerate(found):
            for name in {**found[0], **theirs}:
                ours, other = found[0].get(name), theirs.get(name)
                if ours != other:
                    self.told = True
                    raise ConfigError(
                        f"the processes do not agree on {name}: rank 0 has {ours!r}, rank {rank} has {other!r}; {why}"
                    )

    def _attempt(self, work: Callable[[], T]) -> tuple[T | Failure, Exception | None, bytes]:
        """The outcome of work, its error if it has failed, and the outcome as bytes."""
        try:
            with self.alone():
                outcome = work()
            return outcome, None, pickle.dumps(outcome)
        except Exception as error:
            failure = failure_of(error)
            return failure, error, pickle.dumps(failure)

    def _raise_first(self, outcomes: Sequence[Any], own: Exception | None) -> None:
        """Raise the first failure, on every rank; where it happened, as it was."""
        failed = [rank for rank, outcome in enumerate(outcomes) if isinstance(outcome, Failure)]
        if not failed:
            return
        self.told = True
        if own is not None and failed[0] == self.rank:
            raise own
        failure: Failure = outcomes[failed[0]]
        raise failure.as_error(f"rank {failed[0]} of {self.size}", RankError)

    # ------------------------------------------------------------------------------------------------ sharing out

    def block(self, slots: int) -> slice:
        """This rank's block of so many slots."""
        if not self.shared:
            return slice(0, slots)
        return slice(slots * self.rank // self.size, slots * (self.rank + 1) // self.size)

    def share(self, rows: Sequence[int], sizes: Sequence[int]) -> list[int]:
        """This rank's part of some rows, in their order; all parts are about as long.

        Args:
            rows: places in ``sizes``.
            sizes: tokens of each row.
        """
        if not self.shared:
            return list(rows)
        own = set(sorted(rows, key=lambda row: -sizes[row])[self.rank :: self.size])
        return [row for row in rows if row in own]

    def sum_gradients(self, weights: Sequence[Tensor]) -> None:
        """Add up the gradients of all ranks, each of which has that of its own share.

        Args:
            weights: the same on every rank, any shapes ``[...]``; those without a gradient on any rank still have none.
        """
        if not self.shared:
            return
        learning = [weight for weight in weights if weight.requires_grad]
        had = self.gather(lambda: [weight.grad is not None for weight in learning])
        moved = [weight for weight, has in zip(learning, map(any, zip(*had, strict=True)), strict=True) if has]
        for weight in moved:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        self.sum_tensors([weight.grad for weight in moved if weight.grad is not None])

    @torch.no_grad()
    def sum_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Add up tensors over the ranks, in place; every rank gets the same sums.

        Args:
            tensors: any shapes ``[...]``, the same ones on every rank.
        """
        if not self.shared:
            return
        bucket: list[Tensor] = []
        for tensor in tensors:
            alike = not bucket or (tensor.dtype, tensor.device) == (bucket[0].dtype, bucket[0].device)
            if bucket and (not alike or sum(t.numel() for t in bucket) + tensor.numel() > BUCKET):
                self._sum_bucket(bucket)
                bucket = []
            bucket.append(tensor)
        if bucket:
            self._sum_bucket(bucket)

    def _sum_bucket(self, tensors: Sequence[Tensor]) -> None:
        whole = torch.cat([tensor.reshape(-1) for tensor in tensors])
        if whole.device.type == "cpu":
            self._finish(dist.all_reduce(whole, group=self._control, async_op=True))
        else:  # every rank is there: they have just exchanged something
            dist.all_reduce(whole)
        for tensor, part in zip(tensors, torch.split(whole, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    # ------------------------------------------------------------------------------------------------ transport

    def _broadcast(self, data: bytes, patient: bool) -> bytes:
        """Rank 0's bytes."""
        size = torch.tensor([len(data)])
        self._finish(dist.broadcast(size, 0, group=self._control, async_op=True), patient)
        body = _as_tensor(data) if self.is_main else torch.empty(int(size), dtype=torch.uint8)
        self._finish(dist.broadcast(body, 0, group=self._control, async_op=True))
        return body.numpy().tobytes()

    def _all_gather(self, data: bytes) -> list[bytes]:
        """Every rank's bytes."""
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        self._finish(dist.all_gather(sizes, torch.tensor([len(data)]), group=self._control, async_op=True))
        longest = max(int(size) for size in sizes)
        bodies = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        padded = _as_tensor(data.ljust(longest, b"\0"))
        self._finish(dist.all_gather(bodies, padded, group=self._control, async_op=True))
        return [body[: int(size)].numpy().tobytes() for body, size in zip(bodies, sizes, strict=True)]

    def _finish(self, work: Any, patient: bool = False) -> None:
        """Wait for an exchange, in a way that signals interrupt.

        Args:
            work: of ``torch.distributed``.
            patient: wait without end.
        """
        began, pause = time.monotonic(), 1e-4
        try:
            while not work.is_completed():
                if not patient and time.monotonic() - began > self._seconds:
                    raise RankError(
                        f"rank {self.rank} of {self.size} has waited {self._seconds / 60:g} minutes for the other processes: "
                        f"one of them hangs, or needs longer ({TIMEOUT} sets the minutes)"
                    )
                time.sleep(pause)
                pause = min(2 * pause, 0.02)
            work.wait()
        except RuntimeError as error:
            raise RankError(
                f"rank {self.rank} of {self.size} has lost the connection to another process, which has ended (killed, out of "
                "memory, or for the reason that it has printed): nothing can be learned without it"
            ) from error

    def outlive_main(self, seconds: float = 30.0) -> None:
        """Wait until rank 0 has ended: a launcher ends all others when the first process fails, even one that is still writing.

        Args:
            seconds: wait at most so long.
        """
        if self.is_main or self._control is None or not self.told:
            return
        began = time.monotonic()
        try:
            gone = dist.broadcast(torch.zeros(1), 0, group=self._control, async_op=True)
            while not gone.is_completed() and time.monotonic() - began < seconds:
                time.sleep(0.02)
        except (RuntimeError, KeyboardInterrupt):
            return

    def leave(self) -> None:
        """End in good order, all ranks together."""
        if self.size > 1:
            self.gather(lambda: None)
            dist.destroy_process_group()


def check_divides(ranks: Ranks, environments: int, group_size: int) -> None:
    """Refuse a number of processes that cannot share the environments equally, groups whole.

    Args:
        ranks: the processes.
        environments: of all processes together.
        group_size: environments in a group.

    Raises:
        ConfigError: with the numbers.
    """
    if ranks.size == 1 or environments % (ranks.size * group_size) == 0:
        return
    groups = f" in groups of {group_size}" if group_size > 1 else ""
    fit = ranks.size * group_size
    raise ConfigError(
        f"{ranks.size} processes cannot share {environments} environments{groups} equally: the number of environments (of all "
        f"processes together) must be a multiple of {fit}: take {-(-environments // fit) * fit}"
    )


def _message(error: Exception) -> str:
    """An error's message for the other ranks."""
    if isinstance(error, RlhfGymError):
        return str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return (
            f"out of memory ({first_line(error) or type(error).__name__}). Take fewer tokens at once "
            "(tokens_per_batch), fewer environments, or more processes"
        )
    return f"{type(error).__name__}: {first_line(error)}"


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[: len(data)]
