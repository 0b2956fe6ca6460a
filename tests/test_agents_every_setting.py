"""Every setting of every agent takes effect: with another value, an iteration or two end in other weights.

The few settings that are to change no weight stand in ``EFFECTS``, each with the effect that it has instead. A new setting
needs a line in one of the two tables: the test fails without.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from stable_baselines3.common.logger import Logger
from talking import talker
from test_agents_guarantees import NAMES
from tiny_models import LetterTokenizer, tiny_language_model
from toy_tasks import count_a, letter_task

from rlhf_gym import agents
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.envs.sb3 import TokenVecEnv
from rlhf_gym.errors import ConfigError, TrainingStopped
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.reward_model import RewardModel

PAIRS = [("abc", "ba"), ("d", "aaa"), ("bb", "c"), ("efg", "abab"), ("ab", "b"), ("d", "ca")]
PREFERENCES = [(prompt, response, other) for (prompt, response), (_, other) in pairwise(PAIRS)]
TRAJECTORIES = [(prompt, response, float(number**2)) for number, (prompt, response) in enumerate(PAIRS)]
BASE: dict[str, Any] = {
    "learning_rate": 0.03, "n_episodes": 8, "batch_size": 8, "n_epochs": 2, "clip_range": 0.2, "clip_range_high": None,
    "kl_coef": 0.5, "group_size": 2, "mask_top_p": 0.7, "cg_steps": 2, "data": PAIRS, "preferences": PREFERENCES,
    "trajectories": TRAJECTORIES, "seed": 0, "device": "cpu",
}  # fmt: skip
"""What the runs start from; agents leave out what they do not have."""


@cache
def built(seed: int) -> LanguageModel:
    return tiny_language_model(layers=1, hidden=16, context=16, scale=3.0, seed=seed)


def model(seed: int = 0) -> LanguageModel:
    made = built(seed)
    return LanguageModel(deepcopy(made.model), made.tokenizer, made.name)


def late_letters(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """A score that hardly two responses share."""
    return [sum(ord(letter) - 97 for letter in response) / 20 for response in responses]


def brevity(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """The best responses are of several lengths, unlike those by :func:`late_letters`."""
    return [late - len(response) for late, response in zip(late_letters(prompts, responses), responses, strict=True)]


def no_score(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    return [0.0] * len(responses)


# A value other than that of BASE or the default, and what else both runs have for it to matter.
OTHER: dict[str, tuple[Any, dict[str, Any]]] = {
    "reference": (lambda: model(seed=5), {}), "language_model": (lambda: model(seed=6), {}), "lora": ({"rank": 2}, {}),
    "learning_rate_warmup": (0.9, {}), "adam_beta1": (0.1, {}), "adam_beta2": (0.1, {}), "adam_epsilon": (1.0, {}),
    "weight_decay": (5.0, {}), "precision": ("bf16", {}), "value_learning_rate": (1e-3, {}), "value_max_grad_norm": (1e-4, {}),
    "importance_sampling": ("token_truncate", {"old_log_probs": "recompute", "mismatch": True}),
    "importance_cap": (
        1.0001, {"old_log_probs": "recompute", "mismatch": True, "importance_sampling": "token_truncate"},
    ),
    "old_log_probs": ("recompute", {"mismatch": True}),
    "learning_rate": (0.01, {}), "learning_rate_decay": ("linear", {}), "n_episodes": (16, {}), "batch_size": (2, {}),
    "max_grad_norm": (1e-4, {}), "seed": (1, {}), "gamma": (0.5, {}),
    "discount_per": ("turn", {"gamma": 0.5}), "gae_lambda": (0.5, {}),
    "normalize_advantage": (False, {}), "whiten_rewards": (True, {}), "vf_coef": (3.0, {}),
    "value_network": ("separate", {}), "value_start": (lambda: RewardModel(model(seed=7)), {"value_network": "separate"}),
    "clip_range_vf": (1e-3, {}), "ent_coef": (1.0, {}), "max_ratio": (1e-6, {}), "n_epochs": (3, {}),
    "clip_range": (0.01, {}), "clip_range_high": (3.0, {}), "dual_clip": (1.001, {"learning_rate": 0.1}),
    "policy_loss": ("sapo", {}), "sapo_temperature": (9.0, {"policy_loss": "sapo"}),
    "sapo_temperature_negative": (9.0, {"policy_loss": "sapo"}), "overlong_filtering": (True, {}),
    "group_baseline": ("length_weighted", {}), "cov_control": ("kl", {"cov_share": 0.9}),
    "cov_share": (0.9, {"cov_control": "kl"}),
    "cov_low": (1.0, {"cov_control": "clip", "cov_share": 0.9, "cov_low": 0.0}),
    "cov_high": (0.01, {"cov_control": "clip", "cov_share": 0.9, "cov_low": 0.0}),
    "cov_kl_coef": (20.0, {"cov_control": "kl", "cov_share": 0.9}),
    "ent_target": (100.0, {"ent_coef_step": 0.5}), "ent_coef_step": (0.5, {"ent_target": 100.0}),
    "target_kl": (1e-6, {}),
    "aggregation": ("sequence", {"aggregation": "token", "n_episodes": 32, "score": brevity}),
    "kl_coef": (0.1, {"kl_in": "loss"}),
    "kl_target": (0.1, {"kl_horizon": 10.0, "kl_in": "loss"}),
    "kl_horizon": (1000.0, {"kl_target": 0.1, "kl_horizon": 10.0, "kl_in": "loss"}),
    "kl_estimator": ("k2", {"kl_in": "loss", "kl_estimator": "k3"}),
    "kl_in": ("loss", {"kl_in": "reward"}), "temperature": (0.5, {}),
    "kl_gradient": ("sequence", {"kl_in": "loss"}), "kl_importance": (True, {"kl_in": "loss", "kl_estimator": "k3"}),
    "value_warmup": (1, {}), "value_gae_lambda": (0.3, {}), "gae_lambda_alpha": (0.4, {}), "scale_returns": (True, {}),
    "top_k": (3, {}), "top_p": (0.5, {}), "clip_scores": (0.5, {"kl_coef": 0.0}), "missing_eos_penalty": (2.0, {}),
    "missing_eos_score": (-2.0, {}), "kl_limit": (1e-6, {}), "mask_top_p": (0.3, {}), "mask_refresh": (1, {}),
    "max_kl": (1e-3, {}), "keep": ("all", {"min_score": 0.1}), "min_score": (2.5, {}),
    "on_too_long": (
        "skip",
        {
            "on_too_long": "truncate", "data": [*PAIRS, ("a" * 20, "ba")], "preferences": [*PREFERENCES, ("a" * 20, "ba", "c")],
            "trajectories": [*TRAJECTORIES, ("a" * 20, "ba", 1.0)],
        },
    ),
    "cg_steps": (5, {}), "cg_damping": (10.0, {}), "sub_sampling_factor": (2, {}),
    "line_search_steps": (1, {"max_kl": 1.0, "cg_damping": 1e-3, "cg_steps": 20}),
    "group_size": (4, {}),
    "overlong_buffer": (2, {"n_episodes": 32, "score": no_score, "kl_coef": 0.0}),
    "scale_rewards": ("batch", {}), "dynamic_sampling": (True, {"score": count_a}),
    "minibatch_groups": (True, {"batch_size": 4}),
    "max_resamples": (2, {"dynamic_sampling": True, "kl_in": "loss", "score": count_a}), "baseline": ("none", {}),
    "running_share": (0.7, {}),
    "baseline_decay": (0.1, {"baseline": "running", "running_share": 0.7, "iterations": 3}),
    "beta": (2.0, {}), "loss": ("ipo", {}),
    "label_smoothing": (0.3, {}), "rater": (lambda: (lambda prompt, a, b: 0), {}), "data": (PAIRS[::-1], {}),
    "preferences": (PREFERENCES[::-1], {}), "target_margin": (3.0, {"loss": "simpo"}),
    "desirable_weight": (3.0, {"loss": "kto"}), "undesirable_weight": (3.0, {"loss": "kto"}),
    "trajectories": (TRAJECTORIES[::-1], {}), "expectile": (0.95, {}), "q_coef": (0.1, {}), "cql_coef": (2.0, {}),
    "target_rate": (0.9, {}), "normalize_rewards": (False, {}), "sigma": (0.3, {}), "fitness": ("z_scores", {}),
    # What is not differentiated is part of the reward.
    "ES.kl_coef": (0.1, {"fitness": "z_scores"}), "ES.precision": ("bf16", {"fitness": "z_scores"}),
    "ES.kl_target": (0.1, {"fitness": "z_scores", "kl_horizon": 10.0}),
    "ES.kl_horizon": (1000.0, {"fitness": "z_scores", "kl_horizon": 10.0, "kl_target": 0.1}),
    "ES.kl_estimator": ("k2", {"fitness": "z_scores", "kl_estimator": "k3"}),
    # Ratios of whole responses leave the clip later; the best of two responses changes where the KL weighs enough.
    "GSPO.dual_clip": (1.001, {"learning_rate": 0.1, "n_epochs": 4}),
    "RAFT.reference": (lambda: model(seed=5), {"kl_coef": 5.0}),
}  # fmt: skip


LATER = {
    "adam_beta1", "adam_beta2", "aggregation", "dual_clip", "ent_coef_step", "ent_target", "kl_horizon", "kl_target",
    "learning_rate_decay", "mask_refresh", "max_resamples", "overlong_buffer", "running_share", "sapo_temperature_negative",
}  # fmt: skip
"""What matters from the second iteration on; for all else one will do."""


def trained(name: str, **options: Any) -> Any:
    """An agent after an iteration, from a policy that is not the reference."""
    kind: Any = getattr(agents, name)
    own: dict[str, Any] = {"batch_size": None, "group_size": 8} if name == "ES" else {}
    given = {**BASE, **own, "language_model": model(), "reference": model(seed=4), **options}
    iterations, score = given.pop("iterations", 1), given.pop("score", late_letters)
    mismatch = given.pop("mismatch", False)
    has = kind.Settings.names()
    if "clip_range" not in has:
        given.pop("clip_range_high")
    env = make_sb3_env(8, task=letter_task(score, limit=4), tokenizer=LetterTokenizer())
    agent = kind("LMPolicy", env, **{key: value for key, value in given.items() if key in has})
    agent.set_logger(Logger(None, []))
    other = patch.object(LanguageModel, "decoding_copy", flatter) if mismatch else nullcontext()
    with warnings.catch_warnings(), other:
        warnings.simplefilter("ignore", TrainingStopped)
        agent.learn(iterations=iterations)
    return agent


def flatter(self: LanguageModel) -> LanguageModel:
    """What responses are drawn from, where it is not what learns from them."""
    other: Any = self.frozen_copy()
    with torch.no_grad():
        other.head.weight *= 0.7
    return other


def weights(agent: Any) -> torch.Tensor:
    return torch.cat(
        [tensor.flatten() for name, tensor in sorted(agent.policy.state_dict().items()) if "mask_" not in name]
    )


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape != other.shape or float((one - other).abs().max()) > 1e-5


# ---------------------------------------------------------------------------- effects of settings that change no weight


def smaller_passes(name: str, tmp_path: Path) -> bool:
    """tokens_per_batch: more and smaller passes, the same weights."""
    passes: list[int] = []
    hidden = LanguageModel.hidden

    def counted(self: LanguageModel, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        passes[-1] += 1
        return hidden(self, ids, **kwargs)

    with patch.object(LanguageModel, "hidden", counted):
        found = []
        for size in (4096, 20):
            passes.append(0)
            found.append(weights(trained(name, tokens_per_batch=size, learning_rate=1e-3)))
    return passes[1] > passes[0] and not float((found[0] - found[1]).abs().max()) > 1e-3


def steps_taken(name: str, tmp_path: Path) -> bool:
    """collect: the environment is stepped, and the weights are the same."""
    with patch.object(TokenVecEnv, "step_async", autospec=True, side_effect=TokenVecEnv.step_async) as stepped:
        decoded = weights(trained(name, learning_rate=1e-3))
        assert not stepped.called
        one = weights(trained(name, learning_rate=1e-3, collect="step"))
    return bool(stepped.called) and not float((decoded - one).abs().max()) > 1e-3


def backs_off(name: str, tmp_path: Path) -> bool:
    """on_kl_limit: at a limit that learning exceeds, training stops or goes on at a lower rate."""
    # Within a mask, NLPO begins away from the reference. Every other rollout must be beyond the limit, the sixth among them:
    # else the policy is measured once more at the end, and training stops there.
    given = {"kl_limit": 1e-9, "reference": None, "iterations": 6, "mask_top_p": 1.0, "scale_rewards": "group"}
    stopped, slower = (trained(name, **given, on_kl_limit=action) for action in ("stop", "back_off"))
    return stopped.stopped is not None and slower.stopped is None and slower.kl_guard.back_offs > 0


def recomputed(name: str, tmp_path: Path) -> bool:
    """gradient_checkpointing: activations are computed anew, and the weights are the same."""
    plain, anew = (trained(name, learning_rate=1e-3, gradient_checkpointing=on) for on in (False, True))
    switched = [any("forward" in vars(m) for m in agent.policy.lm.modules()) for agent in (plain, anew)]
    return switched == [False, True] and not float((weights(plain) - weights(anew)).abs().max()) > 1e-3


def in_8_bits(name: str, tmp_path: Path) -> bool:
    """optimizer: another one, which of tensors as small as these keeps exact moments, so that steps differ by rounding."""
    pytest.importorskip("bitsandbytes")
    agents_made = [trained(name, learning_rate=1e-3, optimizer=kind) for kind in ("adamw", "adamw_8bit")]
    kinds = [type(agent.policy.optimizer).__name__ for agent in agents_made]
    return (
        kinds == ["AdamW", "AdamW8bit"]
        and not float((weights(agents_made[0]) - weights(agents_made[1])).abs().max()) > 1e-3
    )


def refused(name: str, tmp_path: Path) -> bool:
    """TRPO differentiates twice, in float32 only."""
    with pytest.raises(ConfigError, match="float32"):
        trained(name, precision="bf16")
    return True


def refused_by_es(name: str, tmp_path: Path) -> bool:
    """Minibatches, and the KL as a loss: there is one step an iteration, and nothing is differentiated."""
    for given in ({"batch_size": 2}, {"kl_in": "loss"}, {"kl_gradient": "sequence"}, {"kl_importance": True}):
        with pytest.raises(ConfigError, match=r"one step an iteration|differentiates nothing|give kl_in=.loss"):
            trained(name, **given)
    return True


def window(name: str, tmp_path: Path) -> bool:
    return bool(trained(name, stats_window_size=3).ep_info_buffer.maxlen == 3)


def device(name: str, tmp_path: Path) -> bool:
    """The device of models that are given by name."""
    with patch.object(LanguageModel, "load", return_value=model()) as load:
        trained(name, language_model="named", reference=None, device="cpu")
    return bool(load.call_args.kwargs["device"] == "cpu")


def written(name: str, tmp_path: Path) -> bool:
    agent = made(name, tensorboard_log=str(tmp_path / "logs"))
    agent.learn(1)
    return any((tmp_path / "logs").rglob("events*"))


def printed(name: str, tmp_path: Path) -> bool:
    with patch("builtins.print"), patch("sys.stdout.write") as write:
        made(name, verbose=1).learn(1)
    return bool(write.called)


def made(name: str, **options: Any) -> Any:
    """An agent with its own logger, which is to be made."""
    with patch.object(getattr(agents, name), "learn"), patch.object(getattr(agents, name), "set_logger"):
        return trained(name, **options)


def reported(name: str, tmp_path: Path) -> bool:
    """The reference of SFT and ILQL is measured against, and not learned from."""
    kls = []
    for seed in (4, 5):
        agent = trained(name, reference=model(seed=seed))
        kls.append(float(agent.rollout.reference_log_probs.sum()))
    return kls[0] != kls[1]


def shifts_logits(name: str, tmp_path: Path) -> bool:
    """ILQL's beta: the weight of the values in what it acts by, which learning does not depend on."""
    one, other = (trained(name, beta=beta) for beta in (1.0, 2.0))
    hidden = torch.ones(1, 16)
    shifts = [a.policy.acting_model.logits(hidden) - a.policy.language_model.logits(hidden) for a in (one, other)]
    return not differ(weights(one), weights(other)) and not differ(2 * shifts[0], shifts[1]) and bool(shifts[0].any())


def other_engine(name: str, tmp_path: Path) -> bool:
    """engine: it generates, with the weights of each iteration, and the weights learned are the same."""
    own, other = (
        trained(name, learning_rate=1e-3, engine=engine, iterations=2)
        for engine in ("builtin", "rlhf_gym.lm.engines.builtin_engine:BuiltinEngine")
    )
    same = float((weights(own) - weights(other)).abs().max()) < 1e-3
    return bool(own.rollout_engine is None and other.rollout_engine.engine.version == 1 and same)


def given_to_the_engine(name: str, tmp_path: Path) -> bool:
    """engine_folder, engine_timeout, engine_patience, engine_tolerance."""
    agent = made(
        name, engine="vllm:http://127.0.0.1:9", engine_folder=str(tmp_path), engine_timeout=7.0, engine_patience=3.0,
        engine_tolerance=0.5,
    )  # fmt: skip
    engine, most = agent.rollout_engine.engine, agent.rollout_engine.most
    return (engine._folder, engine.connection.timeout, engine.connection.patience, most) == (tmp_path, 7.0, 3.0, 0.5)


def given_to_the_workers(name: str, tmp_path: Path) -> bool:
    """ray, ray_workers, ray_cpus, ray_gpus; max_staleness, which needs the correction of stale responses."""
    given: dict[str, Any] = {"ray": "auto", "ray_workers": 3, "ray_cpus": 0.5, "ray_gpus": 0.25}
    if getattr(agents, name).greedy_first:
        with pytest.raises(ConfigError, match="workers on Ray sample all responses"):
            made(name, **given)
        return True
    correction = {"old_log_probs": "recompute", "importance_sampling": "token_mask"}
    if correction.keys() <= getattr(agents, name).Settings.names():
        given |= {"max_staleness": 2, **correction}
    else:
        with pytest.raises(ConfigError, match="this agent has none"):
            made(name, max_staleness=2, **given)
    workers = made(name, **given).rollout_workers
    found = (workers.address, workers.workers, workers.cpus, workers.gpus, workers.max_staleness)
    return found == ("auto", 3, 0.5, 0.25, given.get("max_staleness", 0))


def turns_compared(name: str, tmp_path: Path) -> bool:
    """compare: one turn is one response; of conversations, turns and whole ones give other weights."""
    by_turn, whole = (talker(getattr(agents, name), group_size=4, compare=how) for how in ("turn", "response"))
    for agent in (by_turn, whole):
        agent.learn(1, iterations=1)
    return differ(weights(by_turn), weights(whole))


Effect = Callable[[str, Path], bool]
EFFECTS: dict[str, Effect] = {
    "tokens_per_batch": smaller_passes, "collect": steps_taken, "stats_window_size": window,
    "on_kl_limit": backs_off, "device": device,
    "tensorboard_log": written, "verbose": printed, "SFT.reference": reported, "ILQL.reference": reported,
    "ILQL.beta": shifts_logits,
    "engine": other_engine, "compare": turns_compared,
    **dict.fromkeys(["engine_folder", "engine_timeout", "engine_patience", "engine_tolerance"], given_to_the_engine),
    **dict.fromkeys(["ray", "ray_workers", "ray_cpus", "ray_gpus", "max_staleness"], given_to_the_workers),
    "gradient_checkpointing": recomputed, "optimizer": in_8_bits, "TRPO.precision": refused,
    **dict.fromkeys(["ES.batch_size", "ES.kl_in", "ES.kl_gradient", "ES.kl_importance"], refused_by_es),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_takes_effect(name: str, tmp_path: Path) -> None:
    names = getattr(agents, name).Settings.names()
    runs: dict[str, torch.Tensor] = {}
    dead = []
    for setting in sorted(names):
        effect = EFFECTS.get(f"{name}.{setting}") or EFFECTS.get(setting)
        if effect is not None:
            if not effect(name, tmp_path):
                dead.append(setting)
            continue
        assert setting in OTHER, f"give {setting} another value in OTHER, or its effect in EFFECTS"
        value, beside = OTHER.get(f"{name}.{setting}", OTHER[setting])
        beside = {"iterations": 2, **beside} if setting in LATER else beside
        beside = {key: other for key, other in beside.items() if key in (*names, "iterations", "score", "mismatch")}
        key = str(sorted(beside.items()))
        if key not in runs:
            runs[key] = weights(trained(name, **beside))
        if not differ(runs[key], weights(trained(name, **beside | {setting: value() if callable(value) else value}))):
            dead.append(setting)
    assert not dead, dead


@pytest.mark.parametrize("name", ["PPO", "A2C", "GRPO", "RLOO", "ReMax", "REINFORCE", "ReinforcePlusPlus"])
def test_an_entropy_bonus_alone_raises_the_entropy(name: str) -> None:
    given = {"ent_coef": 1.0, "kl_coef": 0.0, "score": no_score, "n_episodes": 32, "learning_rate": 0.01}
    before, after = (
        trained(
            name, language_model=tiny_language_model(layers=1, hidden=16, context=16, scale=12.0), iterations=n, **given
        )
        for n in (1, 6)
    )
    entropies = [agent.minibatch_metrics["policy/entropy_avg"] for agent in (before, after)]
    assert entropies[1][-1] > entropies[0][0] + 0.1


@pytest.mark.parametrize("name", ["REINFORCE", "ReinforcePlusPlus"])
def test_a_discount_halves_returns_token_by_token(name: str) -> None:
    agent = trained(name, gamma=0.5, baseline="none", iterations=1)
    rollout = SimpleNamespace(mask=torch.ones(2, 4, dtype=torch.bool), lengths=[4, 4])
    agent.group_size = 1
    with patch("rlhf_gym.agents.reinforce.whiten", lambda returns, mask: returns):
        returns = agent.advantages(rollout, torch.tensor([[0.0, 0.0, 0.0, 1.0]] * 2))
    assert returns.tolist() == [[0.125, 0.25, 0.5, 1.0]] * 2
