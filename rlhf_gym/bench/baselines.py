"""The baselines of every table: the start model itself, random tokens, best-of-n, SFT on the best samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf_gym.agents import SFT
from rlhf_gym.agents.best_of_n import best_of_n, best_of_n_kl, score_groups
from rlhf_gym.bench.contender import Bench, Trained
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.chat_template import Messages, messages_before
from rlhf_gym.lm.decoding import Generation, generate
from rlhf_gym.tasks.samples import Prompt

ROUND = 64
"""Responses that are generated at once, where a budget is used up."""


class Untrained:
    """The start model as it is."""

    def train(self, bench: Bench) -> Trained:
        """Train nothing."""
        return Trained(policy=bench.start)


class RandomTokens:
    """Tokens drawn uniformly from those that may be drawn: what a reward pays for noise."""

    def train(self, bench: Bench) -> Trained:
        """Train nothing."""
        limits, tokenizer = bench.context.limits, bench.start.tokenizer
        drawn = np.setdiff1d(np.arange(bench.start.vocab_size), limits.suppress_tokens)
        drawn_first = np.setdiff1d(drawn, limits.eos_ids)

        def respond(prompts: Sequence[Prompt], seed: int) -> list[Generation]:
            found = []
            for number in range(len(prompts)):
                rng = np.random.default_rng((seed, number))
                ids: list[int] = []
                while len(ids) < limits.max_new_tokens and not (ids and ids[-1] in limits.eos_ids):
                    ids.append(int(rng.choice(drawn_first if len(ids) < limits.min_new_tokens else drawn)))
                ended = ids[-1] in limits.eos_ids
                text = bench.task.cut(tokenizer.decode(ids[:-1] if ended else ids))
                found.append(Generation(ids, [], [], ended, text))
            return found

        return Trained(respond=respond)


class BestOfSamples:
    """The best of ``n`` responses by the reward that others train against; its KL is the formula's, at most.

    Args:
        n: responses to each prompt.

    Raises:
        ConfigError: ``n`` below 1.
    """

    def __init__(self, n: int = 4) -> None:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ConfigError(f"best_of_n needs n of at least 1, got {n!r}")
        self.n = n

    def train(self, bench: Bench) -> Trained:
        """Train nothing."""
        context, reward = bench.context, bench.reward

        def respond(prompts: Sequence[Prompt], seed: int) -> list[Generation]:
            best = best_of_n(
                bench.start, [prompt.text for prompt in prompts], reward, self.n, context.limits,
                columns=bench.columns(prompts), sampling=context.sampling, stop=bench.task.stop, seed=seed,
            )  # fmt: skip
            return [generation for generation, _ in best]

        return Trained(respond=respond, kl=best_of_n_kl(self.n))


class SFTOnBest:
    """Rejection sampling, then SFT: the budget buys groups of responses, and the best of each group is imitated.

    Args:
        n: responses to each prompt.
        epochs: passes over the best responses.
        learning_rate: of SFT.
        batch_size: of SFT.

    Raises:
        ConfigError: ``n`` below 2, or ``epochs`` below 1.
    """

    def __init__(self, n: int = 4, epochs: int = 2, learning_rate: float = 3e-4, batch_size: int = 16) -> None:
        if n < 2 or epochs < 1:
            raise ConfigError(f"sft_best needs n of at least 2 and epochs of at least 1, got {n!r} and {epochs!r}")
        self.n, self.epochs, self.learning_rate, self.batch_size = n, epochs, learning_rate, batch_size

    def train(self, bench: Bench) -> Trained:
        """Generate for the budget, keep the best, imitate them."""
        pairs, tokens = self._best(bench)
        steps_per_pass = -(-len(pairs) // self.batch_size)
        episodes = len(pairs)
        agent = SFT(
            env=make_sb3_env(1, tokenizer=bench.start.tokenizer, task=bench.task, reward=bench.reward),
            data=pairs, language_model=bench.trainable(), seed=bench.seed, device=str(bench.start.device),
            n_episodes=episodes, batch_size=min(self.batch_size, episodes), learning_rate=self.learning_rate,
        )  # fmt: skip
        agent.learn(iterations=self.epochs)
        steps = self.epochs * steps_per_pass
        return Trained(policy=agent.policy.language_model, tokens=tokens, optimizer_steps=steps)

    def _best(self, bench: Bench) -> tuple[list[tuple[str | Messages, str]], int]:
        """The best response to each prompt that the budget allows, and the tokens used."""
        context, reward, rng = bench.context, bench.reward, np.random.default_rng(bench.seed)
        prompts, tokens, drawn = list(bench.task.prompts), 0, 0
        pairs: list[tuple[str | Messages, str]] = []
        most = max(1, bench.optimizer_steps * self.batch_size // self.epochs)  # pairs that the steps can learn from
        while tokens < bench.tokens and len(pairs) < most:
            chosen = [prompts[i] for i in rng.integers(len(prompts), size=max(1, ROUND // self.n))]
            repeated = [prompt for prompt in chosen for _ in range(self.n)]
            responses = generate(
                bench.start, bench.ids(repeated), context.limits, sampling=context.sampling, stop=bench.task.stop,
                seed=bench.seed, first_episode=drawn,
            )  # fmt: skip
            drawn += len(responses)
            tokens += sum(len(response.ids) for response in responses)
            scores = score_groups(
                reward, [p.text for p in repeated], [r.text for r in responses], bench.columns(repeated), self.n
            )
            best = scores.argmax(1)
            for i, prompt in enumerate(chosen):
                given = messages_before(prompt.columns.get("messages"), text=prompt.text) or prompt.text
                pairs.append((given, responses[i * self.n + int(best[i])].text))
        return pairs[:most], tokens
