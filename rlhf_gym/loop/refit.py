"""People go on answering while the policy is trained: every so many answers, the reward model is fitted anew.

    people   |■■■■|■■■■■■■■■■■■■■■■■■■■■■■■■■■■■■■|
    machine       |fit|train|fit|train|fit|train|

What they say in the morning then counts in the afternoon of the same round, and nobody waits for anybody.
"""

from __future__ import annotations

from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.fit import fit, fits
from rlhf_gym.loop.train_reward import ProxyAndGold


class Refits:
    """Looks at the store after each iteration, and puts a new reward model in the old one's place.

    A run that is resumed goes on with the newest reward model, also where that is newer than its agent's checkpoint.

    Args:
        context: the run's means.
        number: the round.
        reward: what the agent is trained against.
    """

    def __init__(self, context: RunContext, number: int, reward: ProxyAndGold) -> None:
        self._bench = context
        self._number = number
        self._reward = reward
        self._after = context.config.people.refit if context.people is not None else None

    def look(self, iteration: int) -> bool:
        """Fit if there are answers enough since the last time.

        Args:
            iteration: how many the agent has done.

        Returns:
            Whether the reward is another one now.
        """
        if self._after is None:
            return False
        run = self._bench.run
        seen = max((one["judgements"] for one in fits(run.round(self._number))), default=0)
        with FeedbackStore(run.store_file, read_only=True) as store:
            new = store.count().current - seen
        if new < self._after:
            return False
        self._bench.progress.say(f"{new} new answers: the reward model is fitted anew")
        fit(self._bench, self._number, iteration=iteration)
        self._reward.replace(self._bench.proxy(self._number))
        return True
