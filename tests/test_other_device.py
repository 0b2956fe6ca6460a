"""Every part of the loop on a device that is not the processor: no tensors of two devices meet, and few waits for it.

The device is pretended (``pretended_device.py``), as a GPU is rarely at hand. It computes as the processor does, so results
must be those of the processor.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_setups import collected, learn, letters_env, weights
from pretended_device import WAITS, DeviceMismatchError, pretended_device
from stable_baselines3.common.vec_env import VecMonitor
from talking import letters_talk
from tiny_models import LetterTokenizer, tiny_language_model, tiny_seq2seq
from tiny_run import save_tiny_model, tiny_settings

from rlhf_gym import agents
from rlhf_gym.feedback.preferences import Preference
from rlhf_gym.lm import sampling
from rlhf_gym.lm.decoding import LOOK, generate
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import response_log_probs, token_log_probs
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.lm.sequences import pack_sequences, response_positions
from rlhf_gym.loop.config_file import build, merge
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.rounds import run_loop
from rlhf_gym.reward_model import FitConfig, Rating, Readout, RewardModel, fit

pytestmark = pytest.mark.filterwarnings("ignore:.*CPU Autocast.*")


@pytest.fixture(scope="module", autouse=True)
def device() -> Iterator[torch.device]:
    with pretended_device() as place:
        yield place


def there(model: Any, device: torch.device) -> Any:
    """The model on the device, its checks made there."""
    torch.nn.Module.to(model.model, device)
    return type(model)(model.model, model.tokenizer, model.name)


def test_it_refuses_what_a_gpu_refuses(device: torch.device) -> None:
    here, ours = torch.arange(3.0), torch.arange(3.0, device=device)
    index = torch.tensor([1], device=device)
    for wrong in (
        lambda: ours + here, lambda: here + ours, lambda: torch.cat([ours, here]), lambda: here[index], lambda: ours.add_(here),
        lambda: torch.where(ours > 1, ours, here), lambda: here @ ours, lambda: torch.tensor(1.0).add_(ours.sum()),
        lambda: torch.stack([ours[0], torch.tensor(1.0)]), lambda: ours.masked_fill(here > 1, 0.0),
        lambda: torch.rand(2, device=device, generator=torch.Generator()),
    ):  # fmt: skip
        with pytest.raises(DeviceMismatchError):
            wrong()
    with pytest.raises((TypeError, RuntimeError)):
        ours.numpy()
    layer = torch.nn.Linear(3, 2)
    with pytest.raises(DeviceMismatchError):
        layer(ours)
    assert layer.to(device)(ours).device == device
    # Single numbers of the processor may meet it, its indices too, and copies go either way.
    assert ((ours * torch.tensor(2.0))[torch.tensor([2])] + 1).tolist() == [5.0]
    assert torch.where(ours > 1, ours, 7.0).cpu().tolist() == [7.0, 7.0, 2.0]
    ours.copy_(here + 1)
    assert ours.tolist() == [1.0, 2.0, 3.0]


def test_it_counts_what_makes_the_processor_wait(device: torch.device) -> None:
    x = torch.arange(4.0, device=device).requires_grad_()
    with WAITS.counted() as none:
        (x * 2 + torch.ones(4).to(device, non_blocking=True)).square().sum().backward()  # type: ignore[no-untyped-call]
        y = x.detach().masked_fill(x > 1, 0.0).clone()
        y[y > 0] = 1.0
        y[0], y[torch.arange(2, device=device)] = 3.0, x.detach()[2:]
    assert not none
    for wait in (
        lambda: x.detach().sum().item(), lambda: x.tolist(), lambda: bool((x > 0).all()), lambda: float(x.detach()[0]),
        lambda: x.cpu(),
        lambda: (x > 1).nonzero(), lambda: x[x > 1], lambda: torch.tensor([1.0], device=device),
        lambda: torch.ones(4).to(device), lambda: x[[0, 1]],
        lambda: torch.repeat_interleave(x, torch.tensor([1, 0, 2, 1]).to(device, non_blocking=True)),
    ):  # fmt: skip
        with WAITS.counted() as found:
            wait()
        assert sum(found.values()) == 1, found


DATA: list[Any] = [("abc", "ba"), ("d", "aaa"), ("bb", "c"), ("efg", "abab"), ("ab", "b"), ("d", "ca")]
GIVEN: dict[str, Any] = {
    "seed": 0, "learning_rate": 0.01, "n_episodes": 8, "batch_size": 4, "n_epochs": 1, "kl_coef": 0.05, "group_size": 2,
    "mask_top_p": 0.7, "cg_steps": 2, "data": DATA, "preferences": [(p, r, f"{r}d") for p, r in DATA],
    "trajectories": [(p, r, float(n)) for n, (p, r) in enumerate(DATA)],
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "PPO": ("PPO", {}),
    "PPO, Llama": ("PPO", {"kind": "llama", "n_epochs": 2}),
    "PPO, separate values": ("PPO", {"value_network": "separate", "ent_coef": 0.1, "kl_in": "loss"}),
    "PPO, LoRA": ("PPO", {"lora": {"rank": 2}, "gradient_checkpointing": True}),
    "PPO, recomputed": ("PPO", {"old_log_probs": "recompute", "importance_sampling": "token_truncate", "top_k": 9}),
    "NLPO": ("NLPO", {}),
    "TRPO": ("TRPO", {"sub_sampling_factor": 1}),
    "A2C": ("A2C", {}),
    "REINFORCE": ("REINFORCE", {}),
    "REINFORCE++": ("ReinforcePlusPlus", {}),
    "RLOO": ("RLOO", {"policy_loss": "response", "clip_range": 0.2}),
    "GRPO": ("GRPO", {"kl_limit": 1e9, "minibatch_groups": True, "kl_in": "loss"}),
    "GMPO": ("GRPO", {"policy_loss": "gmpo", "kl_coef": 0.0}),
    "GSPO": ("GSPO", {}),
    "online DPO": ("OnlineDPO", {}),
    "RAFT": ("RAFT", {"kl_coef": 0.0}),
    "ReMax": ("ReMax", {}),
    "ES": ("ES", {"batch_size": None, "group_size": 4}),
    "SFT": ("SFT", {}),
    "ILQL": ("ILQL", {}),
    "offline DPO": ("PreferenceOptimization", {}),
    "KTO": ("PreferenceOptimization", {"loss": "kto"}),
}


def letters_score(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """Hardly two responses share a score."""
    return [sum(ord(letter) - 97 for letter in response) / 20 for response in responses]


def agent_on(device: torch.device | None, name: str, env: Any = None, **options: Any) -> Any:
    """An agent of a tiny model; None is the processor."""
    kind: Any = getattr(agents, name)
    family = options.pop("kind", "gpt2")
    models = [tiny_language_model(family, layers=1, hidden=16, scale=3.0, seed=seed) for seed in range(2)]
    if device is not None:
        models = [there(model, device) for model in models]
    own = {"language_model": models[0]} | ({} if "lora" in options else {"reference": models[1]})
    given = {key: value for key, value in (GIVEN | own | options).items() if key in kind.Settings.names()}
    env = letters_env(8, reward=letters_score) if env is None else env
    return kind("LMPolicy", env, **given)


def assert_close(one: Any, other: Any, row: dict[str, Any], other_row: dict[str, Any], *, atol: float = 2e-5) -> None:
    """The same weights and metrics, but for rounding."""
    expected = weights(one)
    for key, value in weights(other).items():
        torch.testing.assert_close(value.cpu(), expected[key], atol=atol, rtol=0, msg=key)
    for key, metric in row.items():
        if isinstance(metric, float) and not key.startswith("time/"):
            assert other_row[key] == pytest.approx(metric, rel=1e-3, abs=1e-4, nan_ok=True), key


@pytest.mark.parametrize("case", CASES)
def test_agents_learn_there_as_on_the_processor(case: str, device: torch.device) -> None:
    name, options = CASES[case]
    iterations = 2 if case == "PPO" else 1
    here, other = agent_on(None, name, **options), agent_on(device, name, **options)
    before = weights(here)
    *_, row = learn(here, None, iterations=iterations)
    *_, other_row = learn(other, None, iterations=iterations)
    assert_close(here, other, row, other_row)
    assert max(float((value - before[key]).detach().abs().max()) for key, value in weights(here).items()) > 1e-3
    assert {p.device for p in other.policy.parameters()} == {device}


def test_talking_agents_do(device: torch.device) -> None:
    here, other = (agent_on(place, "PPO", letters_talk(4)) for place in (None, device))
    *_, row = learn(here, None, iterations=1)
    with WAITS.counted() as waits:
        *_, other_row = learn(other, None, iterations=1)
    assert_close(here, other, row, other_row)
    ours = Counter[str]()
    for place, n in waits.items():
        ours["drawn" if "common/policy.py" in place else "others" if "collect_turns.py" in place else ""] += n
    # Once a token of all slots together; and once for what would have come after the conversations that were cut.
    assert 0 < ours["drawn"] <= sum(len(e.response_ids) for e in other.rollout.episodes)
    assert ours["others"] <= 1


def test_an_environment_that_is_stepped_waits_once_a_token(device: torch.device) -> None:
    agent = agent_on(device, "REINFORCE", VecMonitor(letters_env(8)))
    with WAITS.counted() as waits:
        rollout = collected(agent)
    stepped = [place for place in waits.elements() if "collect.py" in place or "policy.py" in place]
    assert len(stepped) == max(len(e.response_ids) for e in rollout.episodes)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_rounded_products(precision: str, device: torch.device) -> None:
    """Autocast is pretended, too: products of the device are rounded, and what learns stays float32."""
    here, other = (agent_on(place, "PPO", precision=precision) for place in (None, device))
    *_, row = learn(here, None, iterations=1)
    *_, other_row = learn(other, None, iterations=1)
    assert {p.dtype for p in other.policy.parameters()} == {torch.float32}
    for key in ("objective/scores", "objective/entropy", "loss/value_avg", "train/grad_norm"):
        assert other_row[key] == pytest.approx(row[key], rel=0.05, abs=1e-3), key
    model, ids = other.policy.language_model, torch.tensor([[3, 4, 5]]).to(device)
    with torch.no_grad():
        exact = model.frozen_copy()
        exact.product_dtype = None
        assert 0 < float((model.logits(model.hidden(ids)) - exact.logits(exact.hidden(ids))).abs().max()) < 0.1


@pytest.mark.parametrize("options", [{}, {"lora": {"rank": 2}}, {"value_network": "separate"}])
def test_checkpoints_go_from_one_device_to_the_other(
    options: dict[str, Any], device: torch.device, tmp_path: Path
) -> None:
    other = agent_on(device, "PPO", **options)
    learn(other, None, iterations=1)
    other.save(tmp_path / "there")
    base, env = tiny_language_model(layers=1, hidden=16, scale=3.0), letters_env(8, reward=letters_score)
    given = {"language_model": base} if "lora" in options else {}
    here = agents.PPO.load(tmp_path / "there", env=env, device="cpu", **given)
    here.save(tmp_path / "here")
    given = {"language_model": there(deepcopy(base), device)} if "lora" in options else {}
    back = agents.PPO.load(tmp_path / "here", env=letters_env(8, reward=letters_score), device=str(device), **given)
    assert {p.device for p in back.policy.parameters()} == {device}
    rows = [learn(agent, None, iterations=2)[-1] for agent in (here, other, back)]
    assert_close(here, other, rows[0], rows[1])
    assert_close(here, back, rows[0], rows[2])
    assert {p.device for p in back.reference.model.parameters()} == {device}  # type: ignore[union-attr]


def ratings(number: int) -> list[Rating]:
    return [
        Rating("ab"[n % 2] * (1 + n % 5), "abcd"[n % 4] * (n % 7), value=float(n % 3), rater="ab"[n % 2])
        for n in range(number)
    ]


def preferences(number: int) -> list[Preference]:
    return [
        Preference("ab"[n % 2] * (1 + n % 5), "a" * (1 + n % 7), "c" * (n % 4), query_id=str(n), rater="xy"[n % 2])
        for n in range(number)
    ]


@pytest.mark.parametrize(
    "config",
    [
        {"dropout": 0.0}, {"trunk_layers": 0, "rater_weights": "learned"},
        {"loss": "davidson", "trunk_layers": 1, "pooling": "both"}, {"loss": "plackett_luce", "pooling": "mean"},
        {"loss": "ordinal"}, {"loss": "regression", "precision": "bf16"},
    ],
    ids=str,
)  # fmt: skip
def test_reward_models_fit_and_score_there(config: dict[str, Any], device: torch.device, tmp_path: Path) -> None:
    settings = FitConfig(**{"learning_rate": 3e-3, "epochs": 1, "batch_size": 16, "precision": "float32", **config})
    texts = [p.prompt for p in preferences(5)], [p.chosen for p in preferences(5)]
    scores = []
    for place in (None, device):
        trunk = tiny_language_model(hidden=16)
        model = RewardModel(
            trunk if place is None else there(trunk, device), readout=Readout(pooling=settings.pooling or "last")
        )
        given = {"ratings": ratings(40)} if config.get("loss") in ("ordinal", "regression") else {}
        fit(model, preferences(40), settings, **given)
        model.normalise(*texts)
        scores.append(model(*texts))
    assert scores[1] == pytest.approx(scores[0], abs=0.05 if "precision" in config else 1e-3)
    assert max(scores[0]) - min(scores[0]) > 0.1
    model.save(tmp_path)
    for place in ("cpu", str(device)):
        again = RewardModel.load(tmp_path, device=place, tokenizer=LetterTokenizer())
        assert again(*texts) == pytest.approx(scores[1], abs=1e-4)
        assert again.language_model.device.type == torch.device(place).type
    if settings.pooling in (None, "last", "mean"):
        assert len(again.prefix_scores([[2, 3, 4], [5]])[0]) == 3


PROMPTS = [[2, 3, 4], [5], [6, 7, 8, 9, 10, 11], [3, 3], [5]]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gpt2", {}), ("llama", {"min_new_tokens": 9}), ("gpt2", {"stop": ("a", "fx")}),
        ("llama", {"stop": ("b",), "greedy": True}),
        ("llama", {"sampling": Sampling(0.7, 12, 0.9), "batch_size": 3}),
    ],
    ids=str,
)  # fmt: skip
def test_the_same_responses_are_generated_there(kind: Any, options: dict[str, Any], device: torch.device) -> None:
    """Where the ends of responses, and stop sequences, are sought every few tokens."""
    limits = Limits(0, (1,), options.get("min_new_tokens", 0), max_new_tokens=20)
    options = {key: value for key, value in options.items() if key != "min_new_tokens"}

    def generated(place: torch.device | None) -> list[tuple[list[int], bool, str]]:
        model = tiny_language_model(kind, hidden=16, layers=1, scale=2.0)
        model = model if place is None else there(model, place)
        head = torch.nn.Linear(16, 1).to(model.device)
        found = generate(
            model,
            PROMPTS * 2,
            limits,
            seed=3,
            value_head=lambda hidden: head(hidden).squeeze(-1),
            **{"batch_size": 4, **options},
        )
        return [(g.ids, g.ended, g.text) for g in found]

    assert generated(device) == generated(None)


def waits_of_decoding(model: LanguageModel, length: int, minimum: int, **options: Any) -> Counter[str]:
    limits = Limits(0, (1,), min_new_tokens=minimum, max_new_tokens=length)
    with WAITS.counted() as waits:
        generate(model, PROMPTS, limits, value_head=lambda hidden: hidden.sum(-1), **options)
    return waits


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_decoding_waits_once_in_eight_tokens(kind: Any, device: torch.device) -> None:
    model = there(tiny_language_model(kind, hidden=16, layers=1, context=72), device)
    waits_of_decoding(model, 1, 1)  # checks of the model are made once
    counts = [waits_of_decoding(model, length, length).total() for length in (8, 24, 56)]
    assert [more - counts[0] for more in counts] == [0, 2, 6]
    assert counts[0] < 12
    # Responses that end when they like: a wait more where rows are taken out, and few where a waiting prompt starts.
    assert waits_of_decoding(model, 56, 0).total() <= counts[2] + len(PROMPTS)
    assert waits_of_decoding(model, 24, 24, batch_size=3).total() <= 2 * counts[1] + 2 * len(PROMPTS)
    # Stop sequences are sought in what a look brings.
    assert waits_of_decoding(model, 56, 56, stop=("no such text",)).total() - counts[2] == 56 // LOOK


def test_a_planted_fault_is_found(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the library's own code: what is left on the processor, and a wait a token."""
    model = there(tiny_language_model(hidden=16, layers=1), device)
    with pytest.raises(DeviceMismatchError, match=r"decoding\.py"):
        generate(model, PROMPTS, Limits(0, (1,)), value_head=torch.nn.Linear(16, 1))
    before = waits_of_decoding(model, 24, 24)
    monkeypatch.setattr(sampling, "index_on", lambda device, ids: torch.tensor(ids).to(device))
    more = waits_of_decoding(model, 24, 24) - before
    assert more.total() >= 24
    assert all("lm/sampling.py" in place or "lambda" in place or "test_other_device" in place for place in more)


def test_an_encoder_decoder_waits_for_transformers_masks_alone(device: torch.device) -> None:
    here, model = tiny_seq2seq("t5", hidden=16, scale=0.3), there(tiny_seq2seq("t5", hidden=16, scale=0.3), device)
    limits = Limits(0, (1,), max_new_tokens=12)
    assert [g.ids for g in generate(model, PROMPTS, limits)] == [g.ids for g in generate(here, PROMPTS, limits)]
    more = waits_of_decoding(model, 40, 40) - waits_of_decoding(model, 8, 8)
    assert sum(n for place, n in more.items() if "masking_utils" not in place) == 4


def test_passes_in_chunks_and_over_shared_prompts(device: torch.device) -> None:
    prompts = [list(range(2, 26)) * 4, [5, 6]] * 6
    responses = [[3 + i, 4, 0][: 1 + i % 3] for i in range(12)]
    limits, grads, logs = Limits(0, (1,), min_new_tokens=1), [], []
    for place in (None, device):
        model = tiny_language_model("llama", hidden=16, context=128)
        model = model if place is None else there(model, device)
        batch = pack_sequences(prompts, responses, 1, device=model.device)
        assert model.shares(batch)
        with WAITS.counted() as waits:
            found, entropies = token_log_probs(
                model, model.response_states(batch), batch.tokens, response_positions(batch), Sampling(), limits,
                entropy=True, chunk=5 * 28,
            )  # fmt: skip
            assert entropies is not None
            (found.sum() + entropies.sum()).backward()  # type: ignore[no-untyped-call]
        logs.append(found.detach().cpu())
        grads.append(torch.cat([p.grad.cpu().flatten() for p in model.model.parameters() if p.grad is not None]))
    torch.testing.assert_close(logs[1], logs[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(grads[1], grads[0], atol=1e-4, rtol=0)
    # None is this library's: transformers begins an empty cache by a copy for keys and one for values, layer by layer.
    assert all("transformers" in place for place in waits)
    own = response_log_probs(model, prompts, responses, Sampling(), limits, tokens_per_batch=300)
    torch.testing.assert_close(torch.cat(own), logs[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "case", ["PPO", "PPO, separate values", "GRPO", "GSPO", "ILQL", "KTO", "offline DPO", "online DPO"]
)
def test_a_minibatch_waits_a_few_times_however_large_it_is(case: str, device: torch.device) -> None:
    name, options = CASES[case]
    agent = agent_on(device, name, **(options | {"batch_size": 8, "tokens_per_batch": 1 << 20, "n_episodes": 8}))
    rollout = collected(agent)
    rows = [i for batch in rollout.minibatches(8, agent._update_rng) for i in batch]
    agent.update(rollout, rows)  # measures the update, once an iteration
    counts = []
    for size in (2, len(rows)):
        with WAITS.counted() as waits:
            agent.update(rollout, rows[:size])
        counts.append(sum(waits.values()))
    assert counts[1] == counts[0] <= 6, waits


def test_a_whole_run_there_is_the_processors(device: torch.device, tmp_path: Path) -> None:
    """Samples, labels, reward model, PPO, checkpoints, evaluation and report."""
    model, tables = save_tiny_model(tmp_path / "model"), []
    for place in ("cpu", str(device)):
        own: Any = {"model": {"device": place}, "run": {"rounds": 1}, "agent": {"iterations": 2, "checkpoint_every": 1}}
        folder = tmp_path / place.partition(":")[0]
        run_loop(build(merge(tiny_settings(model), own)), folder, progress=Progress(quiet=True))
        with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
            tables.append(list(csv.DictReader(file)))
    assert len(tables[0]) == 2
    for here, other in zip(*tables, strict=True):
        for name in here:
            if not name.startswith("time/"):
                assert float(other[name] or 0) == pytest.approx(float(here[name] or 0), rel=1e-3, abs=1e-4), name
