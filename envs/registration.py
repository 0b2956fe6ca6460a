"""Names for `gym.make` and `gym.make_vec`: strings only, so that registering imports nothing."""

from __future__ import annotations

import gymnasium as gym

NAMESPACE = "rlhf_gym"

# Each registered environment: its id, and the keyword arguments of TokenEnv and TokenVectorEnv (plain JSON values).
ENVIRONMENTS: dict[str, dict[str, object]] = {
    "Sentiment-v0": {"task": "sentiment", "tokenizer": "embedded"},
}


def register_all() -> None:
    """Register every environment once."""
    for name, options in ENVIRONMENTS.items():
        if f"{NAMESPACE}/{name}" not in gym.registry:
            gym.register(
                f"{NAMESPACE}/{name}",
                entry_point="rlhf_gym.envs.token_env:TokenEnv",
                vector_entry_point="rlhf_gym.envs.token_vector_env:TokenVectorEnv",
                kwargs=options,
            )
