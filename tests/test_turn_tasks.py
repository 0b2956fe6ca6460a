"""Conversations of the catalogue: what they pay, the best there is, that a policy learns in them, and a whole run of one."""

from __future__ import annotations

import doctest
import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from ppo_setups import learn
from talking import Script, letters_talk, talker
from tiny_models import tiny_language_model

from rlhf_gym.agents import NLPO, PPO
from rlhf_gym.envs import make_conversation_env
from rlhf_gym.errors import ConfigError, TaskError
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.rounds import run_loop
from rlhf_gym.loop.summary import summary
from rlhf_gym.tasks import guess_number, load_task
from rlhf_gym.tasks.book_table import SLOTS, BookTableEnv, book_table_task
from rlhf_gym.tasks.guess_number import GuessNumberEnv, fewest_guesses, guess_number_task


def test_environments_pass_the_checker() -> None:
    for env in (GuessNumberEnv(), BookTableEnv()):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=".*spec.*")
            check_env(env, skip_render_check=True)
    assert doctest.testmod(guess_number).failed == 0


def test_guessing_pays_per_turn_and_bisection_is_best() -> None:
    env, total = GuessNumberEnv(render_mode="ansi"), 0.0
    for number in range(10):
        env.reset(seed=0)
        env.number, low, high, over = number, 0, 9, False
        while not over:
            guess = (low + high) // 2
            line, reward, over, cut, _ = env.step(f"perhaps {guess}!")
            low, high = (guess + 1, high) if line == "higher" else (low, guess - 1)
            assert reward == (1.0 if line == "right" else -0.1)
            total += reward
        assert not cut
    assert total / 10 == pytest.approx(fewest_guesses(10, 5))
    assert env.step if (text := env.render()) is None else text.endswith("right")
    with pytest.raises(gym.error.ResetNeeded):
        env.step("1")
    env.reset(seed=0)
    assert [env.step("none")[0:3] for _ in range(5)] == [("a number", -0.1, i == 4) for i in range(5)]
    with pytest.raises(TaskError, match="highest must be a whole number of at least 1"):
        guess_number_task(0)


def test_a_table_is_booked_once_everything_is_known() -> None:
    env, rewards = BookTableEnv(), []
    for seed in range(400):
        first, _ = env.reset(seed=seed)
        missing = [slot for slot in SLOTS if env.wishes[slot] not in first.split()]
        total = sum(float(env.step(slot)[1]) for slot in missing)
        line, reward, over, _, info = env.step(" book it")
        assert (line, reward, over, info["booked"]) == ("thanks", 1.0, True, True)
        rewards.append(total + reward)
    assert np.mean(rewards) == pytest.approx(
        1.3, abs=0.03
    )  # 0.2 for each of the three that is missing, half of the time
    env.reset(seed=next(s for s in range(99) if env.reset(seed=s)[0] == "a table"))
    assert [env.step(action)[1] for action in ("day", "day", "hello")] == [0.2, -0.2, -0.2]
    assert env.step("book")[:3] == ("no", -0.5, True)
    with pytest.raises(TaskError, match="at least 4"):
        book_table_task(3)


def test_only_the_vocabulary_is_drawn() -> None:
    env = make_conversation_env(2, task="book_table", max_new_tokens=3)
    tokenizer = env.rules.tokenizer
    kept = set(range(tokenizer.vocab_size)) - set(env.rules.limits.suppress_tokens)
    assert {tokenizer.decode([i]).strip() for i in kept} == {"", "day", "time", "people", "book"}
    assert (env.rules.limits.max_new_tokens, env.rules.max_turns) == (3, 6)
    with pytest.raises(ConfigError, match="'sentiment' is no conversation"):
        make_conversation_env(task="sentiment")
    with pytest.raises(ConfigError, match="NLPO does not learn in conversations"):
        talker(NLPO)


class Replies(Script):
    """Says x, y or z; "a", "b" or "c" is the right answer, and worth a point."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        right = action == {"x": "a", "y": "b", "z": "c"}[self.line]
        _, _, over, _, _ = super().step(action)
        return self._draw(), float(right), over, False, {}

    def _draw(self) -> str:
        self.line = str(self.np_random.choice(list("xyz")))
        return self.line


def test_a_policy_learns_to_answer_what_was_said_last() -> None:
    env = letters_talk(32, env=Replies, max_new_tokens=1, vocabulary=("a", "b", "c"))
    options = {"n_episodes": 32, "batch_size": 32, "n_epochs": 4, "kl_coef": 0.0, "gamma": 0.0, "discount_per": "turn"}
    agent = talker(PPO, env, language_model=tiny_language_model(layers=1), **options)
    scores = [row["objective/scores"] for row in learn(agent, 1, iterations=16)]
    assert scores[0] < 1.6  # one of three turns right, by chance
    assert np.mean(scores[-3:]) > 2.7


def test_a_run_on_the_environments_own_rewards(tmp_path: Path) -> None:
    config = {
        "task": {"name": "guess_number"}, "run": {"rounds": 1, "threads": 1}, "evaluation": {"prompts": 4},
        "agent": {"iterations": 1, "n_episodes": 4, "batch_size": 4, "n_epochs": 1}, "log": {"completions": 0},
        "reward_model": {"enabled": False},
    }  # fmt: skip
    run = run_loop(build(config), tmp_path / "run")
    found = json.loads((run.path / "evaluation.json").read_text())
    assert (found["n"], len(found["pairs"])) == (4, 4)
    assert found["gold_after"] == found["proxy_after"]
    pair = found["pairs"][0]
    assert pair["prompt"] == "a number from 0 to 9"
    assert pair["after"].splitlines()[1] in ("> lower", "> higher", "> right", "> a number")
    assert not (run.path / "round-1" / "samples.jsonl").exists()
    report = (run.path / "report.html").read_text(encoding="utf-8")
    assert "Conversations before and after" in report
    assert '<div class="theirs">&gt; ' in report
    assert " / > " in summary(run.path)
    assert load_task("guess_number").conversation is not None
