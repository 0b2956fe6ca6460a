"""A reward of one's own: a plain function, combined with others, checked, and given to an environment.

``python examples/custom_reward.py`` scores two texts and plays a random episode;
``rlhf-gym run --reward examples/custom_reward.py:politeness`` trains with the function as the gold reward.
"""

from __future__ import annotations

import gymnasium as gym

import rlhf_gym  # noqa: F401  (registers the environments)
from rlhf_gym.rewards import score, term
from rlhf_gym.rewards.builtin.text_statistics import Length, Repetition

POLITE = ("please", "thank", "sorry", "kind")


def politeness(prompts: list[str], responses: list[str]) -> list[float]:
    """Count the polite words of each response."""
    return [float(sum(response.lower().count(word) for word in POLITE)) for response in responses]


# Operators make rewards of rewards; every term is reported by name.
reward = term(politeness).clip(0, 2) - 0.5 * term(Repetition(n=2)) + 0.1 * term(Length(target=12), "near_12_words")


def main() -> None:
    """Score two responses, then one episode of the sentiment task under this reward."""
    scored = score(reward, ["say hello"] * 2, ["hello, and thank you kindly", "no no no no"])
    print("scores:", scored.values.round(3))
    for name, values in scored.terms.items():
        print(f"  {name:32}", values.round(3))

    env = gym.make("rlhf_gym/Sentiment-v0", reward=reward)
    env.action_space.seed(0)
    env.reset(seed=0)
    done = False
    while not done:
        _, value, terminated, truncated, info = env.step(env.action_space.sample())
        done = terminated or truncated
    print(f"a random episode earned {value:.3f}:", info["response"][:60])
    print("  its terms:", {name: round(value, 3) for name, value in info["reward_terms"].items()})


if __name__ == "__main__":
    main()
