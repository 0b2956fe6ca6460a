"""Settings that contradict one another or do not fit are refused by name when an agent is made, before any work starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ppo_setups import LIMIT, NUM_ENVS, learn, letters_env
from test_agents_every import NAMES, small
from tiny_models import tiny_language_model

from rlhf_gym import agents
from rlhf_gym.errors import RlhfGymError

PAIRS = [("ab", "ba")]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("GRPO", {"vf_coef": 0.1}, "GRPO has no vf_coef: it learns without a value function"),
        ("RLOO", {"value_network": "separate"}, "RLOO has no value_network: it learns without a value function"),
        ("REINFORCE", {"gae_lambda": 0.9}, "REINFORCE has no gae_lambda: it learns without a value function"),
        ("OnlineDPO", {"clip_range_vf": 0.2}, "OnlineDPO has no clip_range_vf: it learns without a value function"),
        ("PPO", {"ent_coeff": 0.1}, "PPO has no setting ent_coeff; did you mean 'ent_coef'"),
        ("TRPO", {"cgsteps": 3}, "TRPO has no setting cgsteps"),
        ("PPO", {"group_size": 4}, "PPO has no setting group_size"),
        ("GRPO", {"group_size": 1}, "group_size must be a whole number of at least 2, got 1"),
        ("RAFT", {"group_size": 1}, "group_size must be a whole number of at least 2, got 1"),
        ("GRPO", {"group_size": 5}, r"group_size \(5\) must divide the number of environments \(16\)"),
        ("OnlineDPO", {"batch_size": 3}, "batch_size must be even, got 3"),
        ("OnlineDPO", {"env": 3, "batch_size": 2}, r"group_size \(2\) must divide the number of environments \(3\)"),
        ("GSPO", {"clip_range": None, "clip_range_high": None, "n_epochs": 1}, "clip_range must be a finite number above 0"),
        ("PPO", {"batch_size": NUM_ENVS + 1}, r"batch_size \(17, episodes in a minibatch\) must lie in 1..n_episodes \(16\)"),
        ("PPO", {"reference": {"vocab_size": 40}}, "has 40 logits and ends responses with id 0, 'tiny-gpt2' has 28 and 0"),
        ("GRPO", {"reference": {"vocab_size": 20}}, "KL needs one and the same vocabulary"),
        ("PPO", {"reference": {"context": 8}}, "do not fit in the 8 tokens"),
        ("PPO", {"reference": 3}, "reference must be a rlhf_gym.lm.language_model.LanguageModel or a name, got int"),
        ("GRPO", {"language_model": "network"}, "language_model must be .*, got GPT2LMHeadModel; a model of transformers"),
        ("PPO", {"top_k": 2.5}, "top_k must be a whole number"),
        ("PPO", {"normalize_advantage": "no"}, "normalize_advantage must be True or False, got 'no'"),
        ("GRPO", {"dynamic_sampling": 1}, "dynamic_sampling must be True or False, got 1"),
        ("SFT", {"data": ["ab", "cd"]}, r"data\[0\] must be a pair \(prompt, response\) of texts, .* got 'ab'"),
        ("SFT", {"data": [*PAIRS, ("a", "b", "c")]}, r"data\[1\] must be a pair"),
        ("SFT", {"data": PAIRS, "clip_range": 0.2}, "SFT has no setting clip_range; leave it out"),
        ("PPO", {"kl_in": "loss", "kl_estimator": "k1"}, "holds nothing back, since the gradient of k1 has mean 0"),
        ("PPO", {"kl_target": 6.0, "kl_coef": 0.0}, "kl_target needs a kl_coef above 0"),
    ],
)  # fmt: skip
def test_it_is_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    model = tiny_language_model()
    options = dict(options)
    if options.get("language_model") == "network":
        model = model.model  # type: ignore[assignment]
        del options["language_model"]
    if isinstance(given := options.get("reference"), dict):
        options["reference"] = tiny_language_model(**given)
    env = letters_env(options.pop("env", NUM_ENVS))
    make: Any = getattr(agents, name)
    with pytest.raises(RlhfGymError, match=message):
        make(env=env, language_model=model, seed=0, device="cpu", **options)


@pytest.mark.parametrize("name", ["GRPO", "GSPO", "ReinforcePlusPlus", "RLOO"])
def test_the_clip_may_be_a_function_of_progress(name: str) -> None:
    seen: list[float] = []

    def clip(progress: float) -> float:
        seen.append(progress)
        return 0.2 * progress

    rows = learn(small(name, clip_range=clip, clip_range_high=None), 3 * NUM_ENVS * LIMIT)
    assert len(rows) >= 3
    assert seen[0] == 1
    assert seen[-1] < 1
    assert seen == sorted(seen, reverse=True)


NEW_PROCESS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from ppo_setups import letters_env
from rlhf_gym import agents
from tiny_models import LetterTokenizer
for file in sorted(Path(sys.argv[2]).glob("*.zip")):
    agent = getattr(agents, file.stem).load(file, env=letters_env(), tokenizer=LetterTokenizer(), device="cpu")
    held_out = letters_env(4)
    held_out.seed(0)
    print(file.stem, agent.num_timesteps, agent.predict(held_out.reset(), deterministic=True)[0].tolist())
    agent.learn(1, reset_num_timesteps=False)
"""


def test_every_agent_goes_on_in_a_new_process(tmp_path: Path) -> None:
    expected = []
    for name in sorted(NAMES):
        agent = small(name)
        agent.learn(1)
        agent.save(tmp_path / name)
        held_out = letters_env(4)
        held_out.seed(0)
        observation: Any = held_out.reset()
        actions, _ = agent.predict(observation, deterministic=True)
        expected.append(f"{name} {agent.num_timesteps} {actions.tolist()}")
    ran = subprocess.run(
        [sys.executable, "-c", NEW_PROCESS, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert ran.stdout.splitlines() == expected, ran.stderr[-2000:]
