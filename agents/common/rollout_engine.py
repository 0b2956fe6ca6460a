"""The engine of an agent: made from its settings, checked before anything is learned, given the weights of every iteration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from rlhf_gym.agents.common.launch import process_ranks
from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.envs.sb3 import TokenVecEnv
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.engines.builtin_engine import BUILTIN, BuiltinEngine
from rlhf_gym.lm.engines.comparison import PROMPTS, compare
from rlhf_gym.lm.engines.engine import Engine, ResponseSettings
from rlhf_gym.lm.engines.find_engine import find_engine
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.tasks.prompt_ids import prompt_ids


def builtin_engine(policy: LMPolicy) -> BuiltinEngine:
    """The built-in engine of a policy, values included where the policy reads them from its own hidden states."""
    engine = BuiltinEngine(policy.values if policy.values_from_trunk else None)
    engine.load_weights(policy.language_model, 0)
    return engine


def connect_engine(values: Mapping[str, Any]) -> None:
    """Reach the engine that an agent will use, before anything is loaded or anybody is asked; of several processes rank 0 does.

    Args:
        values: the agent's settings by name.

    Raises:
        ConfigError: there is no such engine.
        EngineError: it is not there.
    """
    if process_ranks().is_main and (made := engine_of(values)) is not None:
        made.engine.connect()
        made.engine.close()


def engine_of(values: Mapping[str, Any]) -> RolloutEngine | None:
    """The engine that an agent's settings name; None for the built-in one, and for agents that have no choice.

    Args:
        values: the agent's settings by name.

    Raises:
        ConfigError: there is no such engine.
    """
    name = values.get("engine", BUILTIN)
    if name == BUILTIN:
        return None
    engine = find_engine(
        name, folder=values["engine_folder"], timeout=values["engine_timeout"], patience=values["engine_patience"]
    )
    return RolloutEngine(engine, values["engine_tolerance"])


class RolloutEngine:
    """An engine other than the built-in one, in an agent's hands.

    Args:
        engine: the engine.
        most: largest mean difference between its log-probabilities and the learner's, in nats per token.
    """

    def __init__(self, engine: Engine, most: float) -> None:
        self.engine, self.most = engine, most
        self._compared = False

    def refuse(self, env: VecEnv, model: LanguageModel, limits: Limits, sampling: Sampling) -> None:
        """Refuse, before anything starts, what the engine cannot do.

        Args:
            env: the environment.
            model: the model that learns.
            limits: on tokens.
            sampling: of tokens.

        Raises:
            ConfigError: names the engine and what it cannot do.
        """
        if not (isinstance(env, TokenVecEnv) and env.append_only):
            raise ConfigError(
                f"engine {self.engine.name!r} generates whole responses, and this environment must be stepped token by token "
                "(it has masks or wrappers of its own, or a limit on steps): take engine 'builtin'"
            )
        self.engine.refuse(model, ResponseSettings(limits, sampling, tuple(env.stop)))

    def give_weights(self, policy: LMPolicy, env: TokenVecEnv, version: int) -> None:
        """Give the engine the policy's weights as they are; the first time it is compared with the policy.

        Args:
            policy: the policy.
            env: its prompts and stop sequences are used for the comparison; its slots are not touched.
            version: number of the weights.

        Raises:
            EngineError: the engine is not there, or is not the policy.
        """
        if not self._compared:
            self.engine.connect()
        self.engine.load_weights(policy.language_model, version)
        if not self._compared:
            settings = ResponseSettings(policy.limits, policy.sampling, tuple(env.stop))
            prompts = env.env.episodes.task.prompts[:PROMPTS]
            tokenizer = policy.language_model.tokenizer
            ids = [prompt_ids(p, tokenizer) for p in prompts]
            compare(self.engine, policy.language_model, ids, settings, most=self.most)
            self._compared = True
