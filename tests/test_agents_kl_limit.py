"""A policy that runs away from its reference: stopped or slowed as configured, and never left beyond the limit."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_setups import LIMIT, NUM_ENVS, assert_same_weights, letters_env, small_ppo, weights
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_models import LetterTokenizer, tiny_language_model
from toy_tasks import letter_task

from rlhf_gym.agents import A2C, GRPO, PPO, RAFT, RLOO, TRPO, OnlineDPO
from rlhf_gym.agents.common import collect
from rlhf_gym.agents.common.kl import MOST_BACK_OFFS, KLLimit
from rlhf_gym.envs import TokenEnv, make_sb3_env
from rlhf_gym.errors import ConfigError, TrainingStopped
from rlhf_gym.lm.decoding import generate

FAST: dict[str, Any] = {"learning_rate": 0.05, "kl_coef": 0.0}  # leaves the reference within an iteration or two


class Rows(BaseCallback):
    """Keeps the KL of every rollout, and the weights that generated it."""

    def __init__(self) -> None:
        super().__init__()
        self.kl: list[float] = []
        self.generated_by: list[dict[str, torch.Tensor]] = []

    def _on_rollout_end(self) -> None:
        rollout = self.model.rollout  # type: ignore[attr-defined]
        kl = ((rollout.log_probs - rollout.reference_log_probs) * rollout.mask).sum(1).mean()
        self.kl.append(float(kl))
        self.generated_by.append(weights(self.model))

    def _on_step(self) -> bool:
        return True


def test_stopping_leaves_the_weights_of_the_last_rollout_within_the_limit() -> None:
    model, rows = small_ppo(kl_limit=0.5, **FAST), Rows()
    with pytest.warns(TrainingStopped, match=r"iteration \d+: KL [\d.]+ nats per response is above kl_limit \(0.5\)"):
        model.learn(100_000, callback=rows)
    assert model.stopped is not None
    assert rows.kl[-1] > 0.5
    assert all(kl <= 0.5 for kl in rows.kl[:-1])
    assert len(rows.kl) >= 2
    assert_same_weights(weights(model), rows.generated_by[-2])
    assert model.iteration == len(rows.kl)


def test_backing_off_halves_the_rate_and_goes_on_from_the_last_good_weights() -> None:
    model, rows = small_ppo(kl_limit=0.5, on_kl_limit="back_off", **FAST), Rows()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingStopped)
        model.learn(3000, callback=rows)
    passed = [i for i, kl in enumerate(rows.kl) if kl > 0.5]
    assert passed
    for i in passed:
        if i + 1 < len(rows.kl):
            within = max(j for j in range(i) if j not in passed)
            assert_same_weights(rows.generated_by[i + 1], rows.generated_by[within])
    assert model.kl_guard.back_offs == min(len(passed), MOST_BACK_OFFS)
    assert model.logger.name_to_value.get("train/kl_back_offs", model.kl_guard.back_offs) == model.kl_guard.back_offs
    rate = model.policy.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(0.05 * 0.5**model.kl_guard.back_offs)


@pytest.mark.parametrize("action", ["stop", "back_off"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_last_update_does_not_leave_the_policy_beyond_the_limit(action: Any, masked: bool) -> None:
    """One iteration at a rate that runs away; and within the limit nothing is put back."""
    for limit in (0.5, 1e6):
        env = letters_env() if not masked else make_sb3_env(
            NUM_ENVS, task=letter_task(limit=LIMIT), tokenizer=LetterTokenizer(), mask={"pattern": "[a-z]*"}
        )  # fmt: skip
        model = small_ppo(env, kl_limit=limit, on_kl_limit=action, **{**FAST, "learning_rate": 0.5})
        before = weights(model)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.learn(iterations=1)
        told = [str(one.message) for one in caught if one.category is TrainingStopped]
        if limit > 1:
            assert not told
            continue
        assert "after the last update is above kl_limit (0.5): the weights of the last rollout" in told[0]
        assert model.stopped == told[0]
        assert_same_weights(weights(model), before)
        assert model.kl_guard.back_offs == (action == "back_off")


class Stops(BaseCallback):
    """Ends training in the second rollout."""

    def _on_step(self) -> bool:
        return self.model.iteration < 1  # type: ignore[attr-defined]


class Maskless(TokenEnv):
    """An environment of somebody's own that says its rules, and has no masks."""

    @property
    def action_masks(self) -> Any:  # type: ignore[override]
        raise AttributeError("action_masks")


@pytest.mark.parametrize("kind", ["stop", "time limit"])
def test_the_kl_at_the_end_is_of_responses_that_end_as_the_environment_has_it(kind: str, monkeypatch: Any) -> None:
    """Stop sequences of any VecEnv hold; at time limits, which a step alone tells, no response is generated."""

    task = letter_task(limit=LIMIT, stop=("a", "b", "c", "d"))
    env: Any = DummyVecEnv([lambda: Maskless(task, LetterTokenizer())] * NUM_ENVS)
    if kind == "time limit":
        env = make_sb3_env(NUM_ENVS, task=task, tokenizer=LetterTokenizer(), max_episode_steps=2)
    drawn: list[list[int]] = []

    def noted(*given: Any, **options: Any) -> Any:
        generations = generate(*given, **options)
        drawn.extend(g.ids for g in generations)
        return generations

    monkeypatch.setattr(collect, "generate", noted)
    model = small_ppo(env, kl_limit=1e6)
    rows = RowsWritten()
    model.set_logger(Logger(None, [rows]))
    model.learn(100_000, callback=Stops())
    assert rows.written[-1]["objective/kl_at_end"] != 0  # though a callback ended training
    decode = LetterTokenizer().decode
    assert bool(drawn) == (kind == "stop")
    assert not any(letter in decode(ids[:-1]) for ids in drawn for letter in "abcd")


class RowsWritten(KVWriter):
    """Keeps the logger's rows."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.written.append(dict(key_values))

    def close(self) -> None:
        """Nothing is open."""


def test_it_gives_up_after_so_many_halvings() -> None:
    limit, policy = KLLimit(1.0, "back_off"), small_ppo().policy
    assert not limit.exceeded(0.5)
    limit.remember(policy)
    good = weights(small_ppo())
    for i in range(MOST_BACK_OFFS):
        with torch.no_grad():
            next(iter(policy.parameters())).add_(1.0)
        assert limit.exceeded(2.0)
        assert limit.restore(policy, 2.0, "iteration 2") is None
        assert limit.rate == 0.5 ** (i + 1)
        assert_same_weights({name: value.clone() for name, value in policy.state_dict().items()}, good)
    assert f"after {MOST_BACK_OFFS} halvings" in str(limit.restore(policy, 2.0, "iteration 9"))


@pytest.mark.parametrize("kind", [PPO, A2C, TRPO, RLOO, GRPO, OnlineDPO, RAFT])
def test_every_agent_has_it(kind: Any) -> None:
    own: dict[Any, dict[str, Any]] = {OnlineDPO: {}, TRPO: {"max_kl": 1.0, "kl_coef": 0.0}}
    options = {"learning_rate": 0.05, "seed": 0, "device": "cpu"} | own.get(kind, {"kl_coef": 0.0})
    model = kind("LMPolicy", letters_env(), language_model=tiny_language_model("gpt2"), kl_limit=0.05, **options)
    with pytest.warns(TrainingStopped, match="above kl_limit"):
        model.learn(20_000)
    within = model.kl_guard.last_good
    assert within is not None
    now = model.policy.state_dict()
    assert all(torch.equal(now[name].detach(), value) for name, value in within.weights.items())


def test_within_the_limit_nothing_changes() -> None:
    free, bound = small_ppo(), small_ppo(kl_limit=1e6, on_kl_limit="back_off")
    for model in (free, bound):
        model.learn(400)
    assert_same_weights(weights(free), weights(bound))
    assert free.kl_guard.last_good is None  # no copy is kept without a limit


def test_a_policy_that_begins_beyond_the_limit_is_told_so() -> None:
    model = small_ppo(kl_limit=1e-3)
    with torch.no_grad():
        model.reference.model.get_output_embeddings().weight.mul_(0.1)
    before = weights(model)
    with pytest.warns(TrainingStopped, match="begins too far from the reference"):
        model.learn(5000)
    assert_same_weights(weights(model), before)


def test_a_checkpoint_holds_the_way_back(tmp_path: Path) -> None:
    options = {"kl_limit": 0.5, "on_kl_limit": "back_off", **FAST}

    def learned(model: PPO, tokens: int) -> PPO:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TrainingStopped)
            model.learn(tokens, reset_num_timesteps=False)
        return model

    whole = small_ppo(**options)
    while whole.kl_guard.back_offs < 1 or whole.kl_guard.last_good is None:
        learned(whole, 1)
    learned(whole, 1)
    whole.save(tmp_path / "agent")
    halved = PPO.load(tmp_path / "agent", env=copy.deepcopy(letters_env()))
    assert halved.kl_guard.back_offs == whole.kl_guard.back_offs
    for _ in range(4):
        learned(whole, 1)
        learned(halved, 1)
    assert halved.kl_guard.back_offs == whole.kl_guard.back_offs
    assert_same_weights(weights(halved), weights(whole))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_kl_limit": "stop"}, "on_kl_limit='stop' needs a kl_limit"),
        ({"kl_limit": 0}, "kl_limit must be a finite number above 0, or None"),
        ({"kl_limit": 1.0, "on_kl_limit": "panic"}, "on_kl_limit must be one of stop, back_off"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_ppo(**options)


@pytest.mark.parametrize("options", [{}, {"lora": {"rank": 2}}])
def test_float16_is_refused_for_training_and_bfloat16_warned_of(options: dict[str, Any]) -> None:
    model = tiny_language_model()
    model.model.half()
    with pytest.raises(ConfigError, match=r"is in float16.* precision='fp16'.*dtype='float32'"):
        small_ppo(language_model=model, **options)
    assert small_ppo(reference=model).reference.model.dtype == torch.float16
    model.model.bfloat16()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        small_ppo(language_model=model, **options)
    assert len([one for one in caught if "that learn are in bfloat16" in str(one.message)]) == (0 if options else 1)
