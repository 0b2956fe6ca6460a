"""Watching an agent learn: norms by group of layers, quantiles, repetition, validation, the batch that diverged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_setups import Rows, assert_same_weights, learn, letters_env, small_agent, small_ppo, weights
from stable_baselines3.common.logger import Logger
from talking import talker
from tiny_models import LetterTokenizer, tiny_language_model

from rlhf_gym.agents import GRPO, PPO, TRPO, SaveDivergence, Validation, replay_divergence
from rlhf_gym.agents.common.metrics import quantiles
from rlhf_gym.agents.common.norms import layer_groups
from rlhf_gym.errors import ConfigError, ModelError, NotFiniteError, TrainingStopped


@pytest.mark.parametrize("kind", [PPO, GRPO, TRPO])
def test_gradient_norms_by_group_add_up_to_the_norm_of_all(kind: Any) -> None:
    once = {} if kind is TRPO else {"n_epochs": 1}  # one minibatch: means are its values
    (row,) = learn(small_agent(kind, batch_size=16, **once), 1)
    groups = {name: value for name, value in row.items() if name.startswith("gradient_norm/")}
    if once:
        assert sum(norm**2 for norm in groups.values()) ** 0.5 == pytest.approx(row["train/grad_norm"], rel=1e-5)
    assert ("gradient_norm/value" in groups) == (kind is not GRPO)
    assert {"gradient_norm/first_layers", "gradient_norm/last_layers"} <= groups.keys()
    assert row["ratio/q01"] <= row["ratio/q50"] <= row["ratio/q99"] if kind is not TRPO else "ratio/q50" not in row
    assert row["truncated_rate"] == pytest.approx(1 - row["ended_rate"])
    assert row["objective/entropy_per_token"] > 0


def test_update_norms_are_those_of_the_weights_that_moved() -> None:
    model = small_ppo(batch_size=16, n_epochs=1, weight_decay=0.0)
    before, named = weights(model), dict(model.policy.named_parameters())
    (row,) = learn(model, 1)
    for group, members in layer_groups(model.policy).items():
        ids = {id(member) for member in members}
        moved = [(named[name] - before[name]).flatten() for name in named if id(named[name]) in ids]
        assert row[f"update_norm/{group}"] == pytest.approx(torch.cat(moved).norm().item(), rel=1e-3), group


def test_blocks_are_grouped_in_thirds_and_a_separate_value_network_by_itself() -> None:
    model = small_ppo(language_model=tiny_language_model(layers=5, hidden=8), value_network="separate")
    groups = {name: len(members) for name, members in layer_groups(model.policy).items()}
    per_block = 12
    assert groups["first_layers"] == groups["last_layers"] == 2 * per_block
    assert groups["middle_layers"] == per_block
    assert groups["value"] > 5 * per_block


def test_quantiles_are_values_that_occur() -> None:
    values = torch.arange(101.0).flip(0)
    assert quantiles("x", values) == {"x/q01": 1.0, "x/q50": 50.0, "x/q99": 99.0}
    assert quantiles("x", torch.tensor([3.0])) == {"x/q01": 3.0, "x/q50": 3.0, "x/q99": 3.0}


def test_validation_changes_nothing_keeps_the_best_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    """With it an agent learns what it learns without it; an evaluation of an equal policy is an equal evaluation."""
    plain, watched = small_ppo(kl_coef=0.0, learning_rate=1e-2), small_ppo(kl_coef=0.0, learning_rate=1e-2)
    validation = Validation(["ab", "ca", "d"], every=2, best=tmp_path / "best.zip", history=tmp_path / "history.jsonl")
    plain.learn(iterations=6)
    rows = Rows()
    watched.set_logger(Logger(None, [rows]))
    watched.learn(iterations=6, callback=validation)
    assert_same_weights(weights(plain), weights(watched))
    scores = [row.get("validation/scores") for row in rows.rows]
    assert [score is None for score in scores] == [True, False] * 3
    assert scores[1] == rows.rows[1]["validation/count_a"]
    best = validation.best_evaluation
    assert best is not None
    assert best["scores"] == max(score for score in scores if score is not None) > 0
    kept = PPO.load(tmp_path / "best.zip", env=letters_env(), tokenizer=LetterTokenizer())
    assert kept.iteration == best["iteration"]
    assert validation.evaluate(kept) == {name: value for name, value in best.items() if name != "iteration"}
    again = Validation(["ab", "ca", "d"], every=2, history=tmp_path / "history.jsonl")
    again.go_on_after(4)
    assert again.evaluations == validation.evaluations[:2]
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 2


def test_validation_ends_training_and_says_so() -> None:
    model = small_ppo()
    with pytest.warns(TrainingStopped, match="iteration 1: validation/scores .* reaches -1; training ends"):
        model.learn(iterations=3, callback=Validation(["ab"], every=1, stop_at=-1.0))
    assert model.iteration == 1
    assert model.stopped is not None
    flat = Validation(["ab"], every=1, reward=lambda prompts, responses: [0.0] * len(prompts), patience=2)
    with pytest.warns(TrainingStopped, match="not been better than 0 of iteration 2 in 2 evaluations"):
        model.learn(iterations=9, callback=[flat], reset_num_timesteps=False)
    assert model.iteration == 4
    with pytest.raises(ConfigError, match="no validation metric 'gold'; there are count_a, scores"):
        model.learn(iterations=9, callback=Validation(["ab"], every=1, metric="gold"), reset_num_timesteps=False)
    with pytest.raises(ConfigError, match="at least one prompt"):
        Validation([])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (PPO, {"ent_target": 9.0, "ent_coef": 0.1}), (GRPO, {}), (GRPO, GRPO.preset("kl_cov")), (GRPO, {"kl_coef": 0.1}),
    ],
)  # fmt: skip
def test_the_batch_that_diverged_is_written_and_replays(kind: Any, options: Any, tmp_path: Path) -> None:
    """An infinite loss of one response: the file finds that response again, without the environment."""
    model = small_agent(kind, n_epochs=1, **options)
    model.learn(iterations=1)
    prepare = model.prepare

    def poisoned(rollout: Any) -> None:
        prepare(rollout)
        if options.get("kl_coef"):
            rollout.reference_log_probs[3, 0] += 500.0  # k3 overflows
            return
        rollout.advantages[3, 0] = -1.0
        rollout.log_probs[3, 0] -= 500.0  # the ratio overflows, and with a negative advantage nothing clips it

    model.prepare = poisoned
    with pytest.raises(NotFiniteError, match="not finite") as caught:
        model.learn(iterations=2, callback=SaveDivergence(tmp_path), reset_num_timesteps=False)
    file = tmp_path / "divergence-2.zip"
    assert str(file) in str(caught.value)
    found = replay_divergence(kind, file, device="cpu", tokenizer=LetterTokenizer())
    assert found.again == found.message
    assert found.where.startswith("iteration 2, epoch 1")
    assert found.culprits == [3]
    assert found.agent.entropy_controller.bonus == model.entropy_controller.bonus
    assert found.rollout.episodes[3].info["response"] == model.rollout.episodes[3].info["response"]
    assert_same_weights(weights(found.agent), weights(model))
    with pytest.raises(ModelError, match="Expected a divergence-ITERATION"):
        replay_divergence(kind, Path(__file__))


def test_a_rollout_that_is_not_finite_is_written_whole(tmp_path: Path) -> None:
    model = small_ppo()
    model.shaped_rewards = lambda rollout: rollout.rewards.clone().fill_(float("nan"))  # type: ignore[method-assign]
    with pytest.raises(NotFiniteError, match="advantages are not finite"):
        model.learn(iterations=1, callback=SaveDivergence(tmp_path))
    found = replay_divergence(PPO, tmp_path / "divergence-1.zip", device="cpu", tokenizer=LetterTokenizer())
    assert found.rows is None
    assert found.again == found.message
    assert found.culprits == list(range(16))
    whitened = small_ppo()
    prepare = whitened.prepare

    def poisoned(rollout: Any) -> None:
        rollout.rewards[3, 0] = float("nan")
        prepare(rollout)

    whitened.prepare = poisoned  # type: ignore[method-assign]
    with pytest.raises(NotFiniteError, match="rewards are not finite"):
        whitened.learn(iterations=1, callback=SaveDivergence(tmp_path))
    found = replay_divergence(PPO, tmp_path / "divergence-1.zip", device="cpu", tokenizer=LetterTokenizer())
    assert found.culprits == [3]  # whose NaN is in all advantages


def test_a_conversation_that_diverged_replays(tmp_path: Path) -> None:
    model = talker(PPO)
    prepare = model.prepare

    def poisoned(rollout: Any) -> None:
        prepare(rollout)
        rollout.advantages[3, 0] = -1.0
        rollout.log_probs[3, 0] -= 500.0

    model.prepare = poisoned
    with pytest.raises(NotFiniteError, match="The batch is in"):
        model.learn(iterations=1, callback=SaveDivergence(tmp_path))
    found = replay_divergence(PPO, tmp_path / "divergence-1.zip", device="cpu", tokenizer=LetterTokenizer())
    assert (found.again, found.culprits) == (found.message, [3])
    assert found.rollout.episodes[3].segments == model.rollout.episodes[3].segments
