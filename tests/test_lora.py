"""LoRA: a frozen base, an adapter that learns, and the base as the reference."""

from __future__ import annotations

import copy
import json
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_setups import assert_same_weights, collected, gradient, learn, letters_env, small_agent, small_ppo, weights
from stable_baselines3.common.vec_env import VecMonitor
from test_agents_guarantees import agent_of
from tiny_models import LetterTokenizer, tiny_language_model, tiny_seq2seq
from tiny_run import metrics_table, save_tiny_model, tiny_settings
from waiting import LONG

import rlhf_gym.lm.lora
from rlhf_gym.agents import GRPO, PPO
from rlhf_gym.agents.common.forward import rollout_log_probs
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.errors import ConfigError, ModelError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import Lora, adapted, adapter_weights, from_peft, load_adapter, save_adapter
from rlhf_gym.lm.sequences import pack_sequences
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.rounds import run_loop

KINDS: dict[str, Any] = {
    "gpt2": tiny_language_model, "llama": lambda **options: tiny_language_model("llama", **options), "t5": tiny_seq2seq
}  # fmt: skip
LORA = {"rank": 4}


def logits(model: LanguageModel) -> torch.Tensor:
    batch = pack_sequences([[2, 3, 4], [5]], [[6, 7], [8, 9, 10]], model.tokenizer.pad_id)
    with torch.no_grad():
        return model.logits(model.response_states(batch))


def moved(model: LanguageModel) -> LanguageModel:
    """Give the adapter something to say."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in adapter_weights(model):
            weight.normal_(0, 0.1)
    return model


def tensors(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_begins_as_its_base_and_shares_its_tensors(kind: str) -> None:
    base = KINDS[kind](scale=3.0)
    before = logits(base)
    model = adapted(base, Lora(4))
    assert torch.equal(logits(model), before)
    assert [p for p in model.model.parameters() if p.requires_grad] == adapter_weights(model) != []
    frozen = moved(model).frozen_copy()
    shared = {tensor.data_ptr() for tensor in base.model.state_dict().values()}
    for network in (model.model, frozen.model):
        for name, tensor in network.state_dict().items():
            assert (tensor.data_ptr() in shared) == (".lora_" not in name), name
    assert not torch.allclose(logits(model), before, atol=1e-3)
    assert torch.equal(logits(frozen), logits(model))
    assert torch.equal(logits(base), before)
    assert not any(p.requires_grad for p in (*frozen.model.parameters(), *base.model.parameters()))


def test_the_random_start_depends_on_the_seed_alone() -> None:
    base = tiny_language_model()
    torch.manual_seed(5)
    one = adapted(base, Lora(4), seed=1)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)  # nobody else's noise has moved
    other, third = adapted(base, Lora(4), seed=1), adapted(base, Lora(4), seed=2)
    assert_same_weights(tensors(one.model), tensors(other.model))
    assert not all(torch.equal(a, b) for a, b in zip(adapter_weights(one), adapter_weights(third), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", ["shared", "separate"])
def test_the_base_is_the_reference_and_never_moves(kind: str, network: Any) -> None:
    """The first divergence is 0 and the first ratio 1; then the adapter alone moves, and the reference stays what it was."""
    base = KINDS[kind](scale=3.0)
    apart = copy.deepcopy(base)
    before = tensors(base.model)
    agent = small_ppo(language_model=base, lora=LORA, value_network=network, learning_rate=1e-2)
    assert agent.reference is base
    first, *_, last = learn(agent, 1000)
    assert first["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert last["objective/kl"] > 0.05
    assert_same_weights(tensors(base.model), before)
    rollout = agent.rollout
    assert rollout is not None
    of_reference, of_base = (rollout_log_probs(agent.policy, m, rollout, 4096) for m in (agent.reference, apart))
    torch.testing.assert_close(of_reference, of_base, atol=0, rtol=0)
    agent.policy.optimizer.zero_grad()
    rollout = collected(agent)
    gradient(agent, rollout, list(range(8)))
    touched = {name for name, p in agent.policy.named_parameters() if p.grad is not None}
    trunk = {name for name in touched if not name.startswith("value_head")}
    assert all(".lora_" in name for name in trunk)
    assert {name.partition(".")[0] for name in trunk} == {"lm"} | (
        {"value_network"} if network == "separate" else set()
    )
    assert touched - trunk == {"value_head.linear.weight", "value_head.linear.bias"}
    held = {id(p) for group in agent.policy.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in agent.policy.parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_ratio_is_1(kind: str) -> None:
    agent = small_ppo(language_model=moved(adapted(KINDS[kind](scale=3.0), Lora(4))), reference="base", temperature=0.8)
    rollout = collected(agent)
    assert float((rollout.log_probs - rollout.reference_log_probs).abs().max()) > 0.01
    gradient(agent, rollout, list(range(16)))
    assert agent.minibatch_metrics["val/ratio"] == pytest.approx([1.0], abs=1e-5)
    again = rollout_log_probs(agent.policy, agent.policy.language_model, rollout, 4096)
    torch.testing.assert_close(again, rollout.log_probs, atol=1e-5, rtol=0)


def test_a_separate_value_network_is_another_adapter_on_the_same_base() -> None:
    agent = small_ppo(lora=LORA, value_network="separate")
    trunk = agent.policy.value_trunk
    assert trunk is not None
    assert trunk.base is agent.reference
    own = {p.data_ptr() for p in adapter_weights(agent.policy.language_model)}
    values = {p.data_ptr() for p in adapter_weights(trunk)}
    assert len(values) == len(own)
    assert not own & values
    # All networks together hold the base's weights once.
    networks = (agent.policy, agent.reference.model)
    held = {p.data_ptr(): p.numel() for network in networks for p in network.parameters()}
    base = {p.data_ptr(): p.numel() for p in agent.reference.model.parameters()}
    extra = sum(p.numel() for p in adapter_weights(agent.policy.language_model))
    head = sum(p.numel() for p in agent.policy.value_head.parameters())  # type: ignore[union-attr]
    assert sum(held.values()) == sum(base.values()) + 2 * extra + head


@pytest.mark.parametrize(
    "name", ["NLPO", "TRPO", "A2C", "REINFORCE", "RLOO", "GRPO", "GSPO", "OnlineDPO", "RAFT", "SFT"]
)
def test_every_agent_moves_the_adapter_alone(name: str) -> None:
    base = tiny_language_model(scale=4.0)
    before = tensors(base.model)
    agent = agent_of(name, lora=LORA, language_model=base)
    start = [weight.clone() for weight in adapter_weights(agent.policy.language_model)]
    agent.learn(200)
    assert_same_weights(tensors(base.model), before)
    assert agent.reference is (None if name == "SFT" else base)  # nothing in SFT needs one
    now = adapter_weights(agent.policy.language_model)
    assert any(not torch.equal(a, b) for a, b in zip(start, now, strict=True))
    assert agent.settings.as_json()["lora"] == {"rank": 4, "alpha": None, "targets": []}


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_to_collect_train_the_same_adapter(kind: str) -> None:
    found = []
    for collect in ("auto", "step"):
        agent = small_ppo(language_model=KINDS[kind](scale=3.0), lora=LORA, collect=collect, learning_rate=1e-2)
        rows = learn(agent, 300)
        found.append((rows[-1]["objective/kl"], adapter_weights(agent.policy.language_model)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-4)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("wrapped", [False, True])
def test_it_learns_letters(wrapped: bool) -> None:
    """24 iterations of 16 responses on a frozen random base: 0.1 of 8 becomes 6.8 to 7.6 over seeds 0 to 4."""
    env = VecMonitor(letters_env()) if wrapped else letters_env()  # decoded, and stepped
    agent = small_ppo(env, lora=LORA, seed=4, learning_rate=1e-2, scale=10.0, kl_coef=0.0)
    rows = learn(agent, 16 * 8 * 24)
    assert rows[0]["objective/scores"] < 1
    assert rows[-1]["objective/scores"] > 5


@pytest.mark.parametrize("options", [{}, {"value_network": "separate"}, {"kl_limit": 50.0}], ids=str)
def test_training_resumes_exactly(tmp_path: Path, options: dict[str, Any]) -> None:
    """And a checkpoint does not hold the base."""
    whole = small_ppo(lora=LORA, learning_rate=1e-2, **options)
    whole.learn(800)
    half = small_ppo(lora=LORA, learning_rate=1e-2, **options)
    half.learn(400)
    half.save(tmp_path / "half")
    with zipfile.ZipFile(tmp_path / "half.zip") as archive:
        assert not any(name.startswith(("model", "reference")) for name in archive.namelist())
    base = tiny_language_model()
    resumed = PPO.load(tmp_path / "half", env=letters_env(), language_model=base)
    assert resumed.reference is base
    assert_same_weights(weights(resumed), weights(half))
    assert resumed.settings == half.settings
    resumed.learn(800 - resumed.num_timesteps, reset_num_timesteps=False)
    assert resumed.num_timesteps == whole.num_timesteps
    assert_same_weights(weights(resumed), weights(whole))


def test_a_lagging_policy_and_a_reference_of_its_own_are_kept(tmp_path: Path) -> None:
    env = letters_env()
    agent = agent_of("NLPO", lora=LORA, language_model=tiny_language_model(scale=4.0), env=env, mask_refresh=2)
    agent.learn(300)
    agent.save(tmp_path / "nlpo")
    other = type(agent).load(tmp_path / "nlpo", env=env, language_model=tiny_language_model(scale=4.0))
    assert_same_weights(weights(other), weights(agent))
    elsewhere = tiny_language_model(seed=7)
    agent = small_ppo(lora=LORA, reference=elsewhere)
    agent.save(tmp_path / "ppo")
    other = PPO.load(tmp_path / "ppo", language_model=tiny_language_model(), tokenizer=LetterTokenizer())
    assert_same_weights(tensors(other.reference.model), tensors(elsewhere.model))


def peft_trained(base: LanguageModel) -> Any:
    """The base with an adapter of peft that says something."""
    import peft

    target = rlhf_gym.lm.lora.target_layers(base)[0][0].rpartition(".")[2]
    trained = peft.get_peft_model(copy.deepcopy(base.model), peft.LoraConfig(r=2, target_modules=[target]), "tuned")
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if ".lora_" in name:
                parameter.normal_(0, 0.3)
    return trained


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("origin", ["SFT", "peft"])
def test_kl_is_measured_from_the_policy_as_it_was_handed_over(kind: str, origin: str, tmp_path: Path) -> None:
    """After supervised fine-tuning of an adapter, here or by peft; and save, load and going on keep to it exactly."""
    base = KINDS[kind](scale=3.0)
    apart = copy.deepcopy(base)
    if origin == "SFT":
        tuner = agent_of("SFT", lora=LORA, language_model=base, learning_rate=3e-2)
        tuner.learn(200)
        model = tuner.policy.language_model
    else:
        trained = peft_trained(base)
        with pytest.raises(ModelError, match="from_peft"):
            LanguageModel(trained, base.tokenizer, "tuned")
        model = from_peft(trained, base.tokenizer, "tuned")
    start = logits(model)
    options: dict[str, Any] = {"learning_rate": 1e-2, "kl_limit": 90.0}
    whole = small_ppo(language_model=model, **options)
    assert whole.reference.base is model.base  # the base's tensors are there once
    rows = learn(whole, 400)
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert abs(rows[-1]["objective/kl"]) > 0.01
    assert torch.equal(logits(whole.reference), start)
    assert not torch.allclose(start, logits(apart), atol=1e-3)
    whole.save(tmp_path / "agent")
    resumed = PPO.load(tmp_path / "agent", env=letters_env(), language_model=apart)
    assert torch.equal(logits(resumed.reference), start)
    for agent in (whole, resumed):
        agent.learn(200, reset_num_timesteps=False)
    assert_same_weights(weights(resumed), weights(whole))
    from_base = small_ppo(language_model=whole.policy.language_model, reference="base")
    assert from_base.reference is model.base
    assert abs(collected(from_base).kl.sum()) > 0.1
    from_base.save(tmp_path / "base")
    assert PPO.load(tmp_path / "base", language_model=apart).reference is apart
    # A precision is the agent's alone: others who hold the base compute as before.
    in_bf16 = small_ppo(language_model=model, reference="base", precision="bf16")
    assert (in_bf16.reference.product_dtype, model.base.product_dtype) == (torch.bfloat16, None)
    assert in_bf16.reference.model is model.base.model
    in_bf16.save(tmp_path / "bf16")
    with zipfile.ZipFile(tmp_path / "bf16.zip") as archive:
        assert json.loads(archive.read("data.json"))["base"]["is_reference"]
        assert not any(name.startswith("reference/") for name in archive.namelist())


def test_the_base_as_reference_needs_an_adapter() -> None:
    with pytest.raises(ConfigError, match="reference='base' is the model beneath an adapter, and 'tiny-gpt2' has none"):
        small_ppo(reference="base")


def test_a_loaded_reference_keeps_its_own_dtype(tmp_path: Path) -> None:
    rough = tiny_language_model(seed=7)
    rough.model.bfloat16()
    agent = small_ppo(reference=rough)
    agent.save(tmp_path / "agent")
    loaded = PPO.load(tmp_path / "agent", tokenizer=LetterTokenizer())
    assert (loaded.reference.model.dtype, loaded.policy.lm.dtype) == (torch.bfloat16, torch.float32)
    assert_same_weights(tensors(loaded.reference.model), tensors(rough.model))


NEW_PROCESS = """
import sys
from rlhf_gym.agents import GRPO
from rlhf_gym.envs import make_sb3_env
agent = GRPO.load(sys.argv[1], env=make_sb3_env(4, task="sentiment"), device="cpu")
actions, _ = agent.predict(make_sb3_env(4, task="sentiment", seed=1).reset(), deterministic=True)
print(actions.tolist(), agent.reference.name, agent.policy.language_model.adapter)
"""


def test_a_base_that_has_a_name_is_found_again_in_a_new_process(tmp_path: Path) -> None:
    env = make_sb3_env(4, task="sentiment", seed=1)
    agent = GRPO(env=env, language_model="embedded", lora=LORA, group_size=4, batch_size=4, seed=0, device="cpu")
    agent.learn(1)
    agent.save(tmp_path / "agent")
    assert (tmp_path / "agent.zip").stat().st_size < 4e6  # the base alone has 15 MB
    ran = subprocess.run(
        [sys.executable, "-c", NEW_PROCESS, str(tmp_path / "agent")], capture_output=True, text=True, timeout=LONG
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    actions = agent.predict(make_sb3_env(4, task="sentiment", seed=1).reset(), deterministic=True)[0].tolist()
    assert ran.stdout.strip() == f"{actions} embedded Lora(rank=4, alpha=None, targets=())"


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_is_pefts_own_and_a_merged_model_an_ordinary_one(kind: str, tmp_path: Path) -> None:
    import peft

    base = KINDS[kind](scale=3.0)
    model = moved(adapted(base, Lora(4, alpha=6)))
    wanted = logits(model)
    save_adapter(model, tmp_path / "adapter")
    assert torch.equal(logits(load_adapter(base, tmp_path / "adapter")), wanted)
    theirs = copy.copy(base)
    theirs.model = peft.PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path / "adapter").base_model.model
    torch.testing.assert_close(logits(theirs), wanted, atol=1e-5, rtol=0)
    # And theirs is read here.
    config = peft.LoraConfig(r=2, target_modules=[rlhf_gym.lm.lora.target_layers(base)[0][0].rpartition(".")[2]])
    trained: Any = peft.get_peft_model(copy.deepcopy(base.model), config)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if ".lora_" in name:
                parameter.normal_(0, 0.1)
    trained.save_pretrained(tmp_path / "theirs")
    theirs.model = trained.base_model.model
    torch.testing.assert_close(logits(load_adapter(base, tmp_path / "theirs")), logits(theirs), atol=1e-5, rtol=0)
    model.save(tmp_path / "merged")
    plain = LanguageModel.load(str(tmp_path / "merged"), tokenizer=base.tokenizer, device="cpu")
    assert plain.adapter is None
    torch.testing.assert_close(logits(plain), wanted, atol=1e-5, rtol=0)
    assert plain.model.state_dict().keys() == base.model.state_dict().keys()


def test_half_precision_keeps_its_adapter_in_float32(tmp_path: Path) -> None:
    base = tiny_language_model(scale=3.0)
    base.model.to(torch.bfloat16)
    with pytest.warns(UserWarning, match="the base 'tiny-gpt2' is in bfloat16 and computes in it, unlike its adapter"):
        agent = small_ppo(language_model=base, lora=LORA, learning_rate=1e-2, value_network="separate")
    assert {p.dtype for p in adapter_weights(agent.policy.language_model)} == {torch.float32}
    agent.learn(300)
    agent.save(tmp_path / "agent")
    other = PPO.load(tmp_path / "agent", language_model=base, tokenizer=LetterTokenizer())
    assert_same_weights(weights(other), weights(agent))


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 0}, "lora.rank must be a whole number of at least 1, got 0"),
        ({"rank": True}, "lora.rank must be"),
        ({"rank": 2.0}, "lora.rank must be"),
        ({"alpha": 0}, "lora.alpha must be a finite number above 0"),
        ({"alpha": float("inf")}, "lora.alpha must be"),
        ({"r": 8}, "there is no lora.r; expected some of rank, alpha, targets"),
        ({"dropout": 0.1}, "lora.dropout must be 0, got 0.1"),
        ({"targets": "c_attn"}, "lora.targets must be a list of names"),
        (
            {"targets": ["q_proj"]},
            "has no linear layer 'q_proj' that can be adapted; expected some of c_attn, c_proj, c_fc",
        ),
        ({"targets": ["lm_head"]}, "has no linear layer 'lm_head'"),
        ({"targets": ["wte"]}, "has no linear layer 'wte'"),
        (8, "lora must be a mapping such as"),
    ],
)
def test_what_cannot_be_adapted_is_refused_by_name(lora: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_ppo(lora=lora)
    with pytest.raises(ConfigError, match=message):
        small_agent(GRPO, lora=lora, group_size=4)


def test_targets_choose_layers() -> None:
    model = adapted(tiny_language_model(), Lora(4, targets=("mlp.c_fc", "transformer.h.0.attn.c_attn")))
    names = {n.partition(".lora_")[0] for n, p in model.model.named_parameters() if p.requires_grad}
    assert names == {"transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_fc"}
    small_ppo(lora={"rank": 2, "dropout": 0, "targets": ["c_attn"]})


def test_an_adapter_needs_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(tiny_language_model(), Lora(4))
    with pytest.raises(ConfigError, match="has a LoRA adapter already, and an adapter needs a base without one"):
        small_ppo(language_model=model, lora=LORA)
    assert small_ppo(language_model=model).reference is model.base
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"holds a LoRA adapter and not a whole model \(its base: tiny-gpt2\)"):
        LanguageModel.load(str(tmp_path / "adapter"))
    with pytest.raises(ModelError, match="has no adapter to save"):
        save_adapter(tiny_language_model(), tmp_path / "none")
    with pytest.raises(ModelError, match="there is no LoRA adapter in"):
        load_adapter(tiny_language_model(), tmp_path / "none")
    with pytest.raises(ModelError, match="does not fit 'tiny-llama', which has no layer"):
        load_adapter(tiny_language_model("llama"), tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"does not fit 'tiny-gpt2': .* has the shape \(4, 32\), expected \(4, 16\)"):
        load_adapter(tiny_language_model(hidden=16), tmp_path / "adapter")
    data = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(data | {"use_dora": True}))
    with pytest.raises(ModelError, match=r"is not a plain LoRA \(use_dora\)"):
        load_adapter(tiny_language_model(), tmp_path / "adapter")
    broken = {'{"peft_type": "LORA"}': r"plain LoRA \(no r, no lora_alpha\)", "[3]": "there is no LoRA adapter in"}
    for content, message in broken.items():
        (tmp_path / "adapter" / "adapter_config.json").write_text(content)
        with pytest.raises(ModelError, match=message):
            load_adapter(tiny_language_model(), tmp_path / "adapter")
    with pytest.raises(ConfigError, match="no weight of 'tiny-gpt2' learns: it is frozen"):
        small_ppo(language_model=model.base)
    monkeypatch.setattr(rlhf_gym.lm.lora, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"LoRA needs the library peft: pip install 'rlhf-gym\[lora\]'"):
        small_ppo(lora=LORA)


def test_a_checkpoint_says_which_base_it_wants(tmp_path: Path) -> None:
    small_ppo(lora=LORA).save(tmp_path / "agent")
    with pytest.raises(ModelError, match="adapter without its base, 'tiny-gpt2', which cannot be loaded"):
        PPO.load(tmp_path / "agent", tokenizer=LetterTokenizer())
    with pytest.raises(ModelError, match="was made for a base 'tiny-gpt2' with other weights than 'tiny-gpt2' has"):
        PPO.load(tmp_path / "agent", language_model=tiny_language_model(seed=1))
    with pytest.raises(ConfigError, match="leave language_model, lora and value_start out"):
        PPO.load(tmp_path / "agent", language_model=tiny_language_model(), lora={"rank": 2})
    small_ppo().save(tmp_path / "plain")
    with pytest.raises(ConfigError, match="leave language_model, lora and value_start out"):
        PPO.load(tmp_path / "plain", language_model=tiny_language_model(), tokenizer=LetterTokenizer())


class KilledError(BaseException):
    pass


class Fuse(Progress):
    def __init__(self, lines: int) -> None:
        super().__init__(quiet=True)
        self.left = lines

    def say(self, message: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise KilledError


def test_a_run_learns_adapters_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    """KL is measured from the base in both rounds; the second goes on with the first one's adapter."""
    folder = save_tiny_model(tmp_path / "model")
    settings = tiny_settings(folder, run={"rounds": 2}, agent={"learning_rate": 5e-2})
    settings["model"]["lora"] = {"rank": 2, "targets": ["c_attn"]}
    whole = run_loop(build(settings), tmp_path / "whole", progress=Progress(quiet=True))
    first, second = (whole.path / f"round-{number}" for number in (1, 2))
    assert json.loads((first / "agent.json").read_text())["lora"] == {"rank": 2, "alpha": None, "targets": ["c_attn"]}
    base = LanguageModel.load(str(folder), device="cpu")
    for number in (first, second):
        tuned = load_adapter(base, number / "adapter")
        merged = LanguageModel.load(str(number / "policy"), device="cpu")
        torch.testing.assert_close(logits(tuned), logits(merged), atol=1e-5, rtol=0)
        assert not torch.allclose(logits(tuned), logits(base), atol=1e-4)
    rows = [line.split(",") for line in metrics_table(whole.path).splitlines()]
    kl = [float(row[rows[0].index("objective/kl")]) for row in rows[1:]]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert abs(kl[4]) > 1e-4  # the second round begins where the first ended
    for lines in (11, 26):  # after the third iteration of the first round, and of the second
        with pytest.raises(KilledError):
            run_loop(build(settings), tmp_path / f"killed-{lines}", progress=Fuse(lines))
        again = run_loop(build(settings), tmp_path / f"killed-{lines}", resume=True, progress=Progress(quiet=True))
        assert metrics_table(again.path) == metrics_table(whole.path)
        assert (again.path / "evaluation.json").read_text() == (whole.path / "evaluation.json").read_text()


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 0}, "lora.rank must be"),
        ({"ranks": 4}, "there is no lora.ranks"),
        ({"targets": ["q_proj"]}, "has no linear layer 'q_proj'"),
    ],
)
def test_a_run_refuses_before_it_begins(tmp_path: Path, lora: dict[str, Any], message: str) -> None:
    settings = tiny_settings(save_tiny_model(tmp_path / "model"))
    settings["model"]["lora"] = lora
    with pytest.raises(ConfigError, match=message):
        run_loop(build(settings), tmp_path / "run", progress=Progress(quiet=True))
    assert not (tmp_path / "run").exists()


def test_what_it_saves_can_be_measured() -> None:
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "speed" / "lora.py"
    measure = runpy.run_path(str(script))["measure"]
    full, adapter = (measure(width=32, layers=2, episodes=4, iterations=1, variant=variant) for variant in (0, 1))
    assert min(full["seconds"], adapter["seconds"]) > 0
    assert adapter["held"] < full["held"] / 2
