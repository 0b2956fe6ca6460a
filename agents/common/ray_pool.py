"""The actors of Ray that generate for a learner: made, fed with shares, and replaced where they die."""

from __future__ import annotations

import atexit
import threading
import time
from typing import Any

from rlhf_gym.agents.common.ranks import Failure
from rlhf_gym.agents.common.ray_actor import Replica, RolloutActor, learned_weights, pack_weights
from rlhf_gym.agents.common.ray_packing import packed
from rlhf_gym.agents.common.share_queue import MOST_ATTEMPTS, Share, ShareQueue
from rlhf_gym.errors import WorkerError, first_line
from rlhf_gym.lm.engines.engine import weights_marker
from rlhf_gym.ray_connection import worker_environment

PATIENCE = 600.0
"""Seconds without any worker after which training stops."""
_LOOK_UP = 1.0  # seconds after which a thread that waits for its actor looks whether it is still wanted


class RayPool:
    """Workers on Ray, each an actor and a thread here that feeds it.

    An actor that is lost gives its share back, which the next free worker generates by the same numbers, and another one
    takes its place wherever Ray finds room.

    Args:
        ray: the library, connected.
        workers: their number.
        cpus: CPUs of each.
        gpus: GPUs of each.
        replica: what they generate with.
        queue: of the shares.

    Attributes:
        restarts: workers that have been replaced.

    Raises:
        ConfigError: the environment or the model cannot be sent to another process.
    """

    def __init__(self, ray: Any, workers: int, cpus: float, gpus: float, replica: Replica, queue: ShareQueue) -> None:
        self.restarts = 0
        self._ray, self._queue, self._size = ray, queue, workers
        self._device = "cuda" if gpus else "cpu"
        self._weights: tuple[tuple[int, int], Any] | None = None
        self._actor = ray.remote(RolloutActor).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, runtime_env=worker_environment()
        )
        self._replica = ray.put(packed(replica, ray))
        self._lock = threading.Lock()
        self._measured = self._alone_since = time.monotonic()
        self._hired: dict[int, Any] = {}
        self._works: dict[int, float] = {}  # since when each works on its share
        self._seconds, self._tokens, self._reward_seconds = ([0.0] * workers, [0] * workers, 0.0)
        atexit.register(self.close)  # before Ray's own, which would leave the threads without it
        self._threads = [threading.Thread(target=self._feed, args=(place,), daemon=True) for place in range(workers)]

    def publish(self, replica: Replica, version: int) -> None:
        """Give the workers new weights, for the shares that they begin from now on.

        Args:
            replica: the learner's own models.
            version: of the weights as they are.
        """
        label = (version, weights_marker(replica.model))
        if self._weights is None or self._weights[0] != label:
            packed = pack_weights(learned_weights(replica.model, replica.value_head))
            self._weights = (label, self._ray.put(packed))
        for thread in self._threads:
            if thread.ident is None:
                thread.start()

    def check(self) -> None:
        """Refuse to wait any longer where there has been no worker for a long time.

        Raises:
            WorkerError: there is none.
        """
        with self._lock:
            waited = 0.0 if self._hired else time.monotonic() - self._alone_since
        if waited > PATIENCE:
            raise WorkerError(
                f"there has been no worker on Ray for {waited:.0f} s: the cluster has no room for one any more (`ray status` "
                "says what it has); go on from the last checkpoint when it has"
            )

    # ------------------------------------------------------------------------------------------------ threads

    def _feed(self, place: int) -> None:
        """Feed the worker in a place, until nobody wants any more."""
        lost = 0
        try:
            while not self._queue.closed:
                actor = self._hire(place)
                if actor is None:
                    lost += 1
                    if lost >= MOST_ATTEMPTS:
                        raise WorkerError(
                            f"worker {place} on Ray has died {lost} times in a row before its first response"
                        )
                    continue
                lost = 0
                self._work(place, actor)
                with self._lock:
                    self.restarts += not self._queue.closed
        except BaseException as error:  # the learner raises it
            self._queue.fail(error)

    def _hire(self, place: int) -> Any:
        """A new actor that is ready; None where it has died meanwhile, or nobody wants it any more."""
        actor, found = self._actor.remote(), None
        try:
            ready = actor.prepare.remote(self._replica, self._device)
            while not self._queue.closed:
                if self._ray.wait([ready], timeout=_LOOK_UP)[0]:
                    found = self._result(ready, place)
                    break
        finally:
            if found is None:
                self._ray.kill(actor)
        with self._lock:
            if found is not None:
                self._hired[place] = actor
        return None if found is None else actor

    def _work(self, place: int, actor: Any) -> None:
        """Have an actor generate share after share, until it dies or nobody wants any more."""
        while (share := self._queue.next()) is not None:
            assert self._weights is not None
            label, weights = self._weights
            with self._lock:
                self._works[place] = time.monotonic()
            drawn = self._result(actor.draw.remote(share, label, weights), place, share)
            with self._lock:
                self._count(place)
                del self._works[place]
                if drawn is None:
                    del self._hired[place]
                    self._alone_since = time.monotonic()
                else:
                    self._tokens[place] += drawn.tokens
                    self._reward_seconds += drawn.reward_seconds
            if drawn is None:
                break
            self._queue.finish(share, drawn)
        self._ray.kill(actor)  # it may only have been out of reach

    def _result(self, reference: Any, place: int, share: Share | None = None) -> Any:
        """What a worker returns; None where it is lost, and its share is given back.

        Raises:
            RlhfGymError: it has failed; another one would, too.
        """
        errors = self._ray.exceptions
        try:
            found = self._ray.get(reference)
        except errors.RayTaskError as error:
            raise WorkerError(f"worker {place} on Ray: {str(error.cause).splitlines()[0]}") from error
        except errors.RayError as error:
            if share is not None:
                self._queue.give_back(share, first_line(error))
            return None
        if isinstance(found, Failure):
            raise found.as_error(f"worker {place} on Ray", WorkerError)
        return found

    def _count(self, place: int) -> None:
        """Count the time that a worker has worked since it was last counted."""
        if place in self._works:
            now = time.monotonic()
            self._seconds[place] += now - max(self._works[place], self._measured)

    # ------------------------------------------------------------------------------------------------ metrics

    def metrics(self) -> dict[str, float]:
        """Counts and rates since the last call, by the names that metrics are logged under."""
        with self._lock:
            for place in range(self._size):
                self._count(place)
            now = time.monotonic()
            wall, self._measured = now - self._measured, now
            worked, tokens = self._seconds, self._tokens
            out = {
                "ray/workers": float(len(self._hired)),
                "ray/restarts": float(self.restarts),
                "ray/worker_idle_share": max(0.0, 1 - sum(worked) / (wall * self._size)),
                "ray/worker_reward_share": self._reward_seconds / max(sum(worked), 1e-9),
            }
            for place in range(self._size):
                out[f"ray/worker_{place}_tokens_per_second"] = tokens[place] / wall
            self.restarts, self._reward_seconds = 0, 0.0
            self._seconds, self._tokens = [0.0] * self._size, [0] * self._size
        return out

    def close(self) -> None:
        """End the workers and their threads."""
        atexit.unregister(self.close)
        self._queue.close()
        with self._lock:
            hired = list(self._hired.values())
        if self._ray.is_initialized():
            for actor in hired:
                self._ray.kill(actor)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
