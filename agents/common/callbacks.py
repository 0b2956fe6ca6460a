"""What stable-baselines3's callbacks do not have: a call after every iteration."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList


class IterationCallback(BaseCallback):
    """A callback that is called after every iteration, once it has learned and its metrics are written."""

    def _on_step(self) -> bool:
        return True

    def on_iteration_end(self, agent: Any) -> bool:
        """An iteration is done: ``agent.iteration`` counts it, ``agent.rollout`` holds it.

        Args:
            agent: the agent that learns.

        Returns:
            False stops training.
        """
        return True


def end_iteration(callback: BaseCallback, agent: Any) -> bool:
    """Call :meth:`IterationCallback.on_iteration_end` of every such callback, in lists too.

    Args:
        callback: what ``learn`` was given, as stable-baselines3 wraps it.
        agent: the agent that learns.

    Returns:
        False if one of them stops training.
    """
    if isinstance(callback, CallbackList):
        goes_on = [end_iteration(one, agent) for one in callback.callbacks]  # every one is called
        return all(goes_on)
    return callback.on_iteration_end(agent) is not False if isinstance(callback, IterationCallback) else True
