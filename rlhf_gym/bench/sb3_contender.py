"""Stock stable-baselines3 and sb3-contrib as contenders, on tasks whose vocabulary is small enough for a network of one's own.

Their network is SB3's own: it reads the last tokens one-hot, and starts from nothing, so that there is no KL to the start
model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback

from rlhf_gym.bench.contender import Bench, CurvePoint, Trained
from rlhf_gym.envs import VectorEmbeddedTokens, VectorLastTokens, VectorVecEnv
from rlhf_gym.envs.token_vector_env import TokenVectorEnv
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.decoding import Generation
from rlhf_gym.lm.sampling import episode_uniforms, sample_tokens
from rlhf_gym.tasks.samples import Prompt

MOST_TOKENS = 256
"""The largest vocabulary for one-hot tokens."""


class StockPPO:
    """stable-baselines3's PPO with its own network.

    Args:
        n_envs: environments.
        frame: tokens that the network sees; 0 takes the longest prompt with the longest response.
        settings: the algorithm's arguments, by SB3's names.
    """

    kind: ClassVar[Any] = PPO
    defaults: ClassVar[dict[str, Any]] = {
        "n_steps": 64,
        "batch_size": 256,
        "learning_rate": 3e-3,
        "gamma": 1.0,
        "ent_coef": 0.01,
    }

    def __init__(self, n_envs: int = 16, frame: int = 0, **settings: Any) -> None:
        self.n_envs, self.frame, self.settings = n_envs, frame, {**self.defaults, **settings}

    def train(self, bench: Bench) -> Trained:
        """Train to the budget.

        Raises:
            ConfigError: the task does not allow it, or SB3 refuses a setting.
        """
        model, context = bench.start, bench.context
        if model.vocab_size > MOST_TOKENS or context.config.reward_model.enabled:
            raise ConfigError(
                f"stock SB3 needs a vocabulary of at most {MOST_TOKENS} tokens and a reward without a reward model; this "
                f"one has {model.vocab_size:,} tokens: leave it out of this task"
            )
        if bench.cell.equal != "tokens":
            raise ConfigError("stock SB3 counts timesteps only: it goes with suites that hold tokens equal")
        longest = max(len(ids) for ids in bench.ids(list(bench.task.prompts) + list(bench.task.held_out)))
        frame = self.frame or longest + context.limits.max_new_tokens
        env = TokenVectorEnv(
            self.n_envs,
            autoreset_mode=AutoresetMode.SAME_STEP,
            task=bench.task,
            tokenizer=model.tokenizer,
            reward=bench.reward,
        )
        seen = VectorVecEnv(VectorEmbeddedTokens(VectorLastTokens(env, frame)))
        seen.seed(bench.seed)
        curve = RewardCurve()
        try:
            agent = self.kind("MlpPolicy", seen, seed=bench.seed % 2**32, device="cpu", **self.settings)
        except TypeError as error:
            raise ConfigError(f"{self.kind.__name__}: {error}") from error
        agent.learn(bench.tokens, callback=curve)
        steps = max(
            (int(state["step"]) for state in agent.policy.optimizer.state.values() if "step" in state), default=0
        )
        if not steps:  # RMSprop of SB3's own keeps no count: one step a rollout
            steps = int(agent._n_updates)

        def respond(prompts: Sequence[Prompt], seed: int) -> list[Generation]:
            return sampled(bench, agent, prompts, frame, seed)

        return Trained(respond=respond, tokens=agent.num_timesteps, optimizer_steps=steps, curve=curve.points)


class StockA2C(StockPPO):
    """stable-baselines3's A2C with its own network."""

    kind = A2C
    defaults: ClassVar[dict[str, Any]] = {"n_steps": 8, "learning_rate": 3e-3, "gamma": 1.0, "ent_coef": 0.01}


class StockMaskablePPO(StockPPO):
    """sb3-contrib's MaskablePPO with its own network."""

    kind = MaskablePPO


class RewardCurve(BaseCallback):
    """The mean reward of the episodes of each rollout.

    Attributes:
        points: the curve.
    """

    def __init__(self) -> None:
        super().__init__()
        self.points: list[CurvePoint] = []
        self._rewards: list[float] = []

    def _on_step(self) -> bool:
        self._rewards += [float(info["episode"]["r"]) for info in self.locals["infos"] if "episode" in info]
        return True

    def _on_rollout_end(self) -> None:
        if self._rewards:
            self.points.append(CurvePoint(self.num_timesteps, float(np.mean(self._rewards))))
            self._rewards = []


@torch.no_grad()
def sampled(bench: Bench, agent: Any, prompts: Sequence[Prompt], frame: int, seed: int) -> list[Generation]:
    """Responses of SB3's network, from the same random numbers as everybody's.

    Args:
        bench: the run.
        agent: the trained algorithm.
        prompts: the prompts.
        frame: tokens that the network sees.
        seed: of the random numbers.
    """
    limits, tokenizer, size = bench.context.limits, bench.start.tokenizer, bench.start.vocab_size
    rows = bench.ids(prompts)
    starts, ended = [len(row) for row in rows], [False] * len(rows)
    noise = np.stack([episode_uniforms(seed, i, limits.max_new_tokens) for i in range(len(rows))])
    for step in range(limits.max_new_tokens):
        going = [i for i in range(len(rows)) if not ended[i]]
        if not going:
            break
        last = np.array([([tokenizer.pad_id] * frame + rows[i])[-frame:] for i in going])
        one_hot = torch.as_tensor(np.eye(size, dtype=np.float32)[last]).reshape(
            len(going), *agent.observation_space.shape
        )
        logits = agent.policy.get_distribution(one_hot).distribution.logits
        logits = limits.apply(logits, torch.full((len(going),), step))
        tokens = sample_tokens(torch.log_softmax(logits, -1), torch.as_tensor(noise[going, step]))
        for i, token in zip(going, tokens.tolist(), strict=True):
            rows[i].append(token)
            ended[i] = token in limits.eos_ids
    answers = [row[start:] for row, start in zip(rows, starts, strict=True)]
    texts = [tokenizer.decode(ids[:-1] if done else ids) for ids, done in zip(answers, ended, strict=True)]
    return [
        Generation(ids, [], [], done, bench.task.cut(text))
        for ids, done, text in zip(answers, ended, texts, strict=True)
    ]
