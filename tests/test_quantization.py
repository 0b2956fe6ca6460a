"""A base in 4 bits: what its weights are, that an adapter learns on it, and what is kept of both."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_setups import assert_same_weights, collected, gradient, learn, letters_env, small_ppo, weights
from test_lora import LORA, Fuse, KilledError, moved
from tiny_models import tiny_language_model, tiny_seq2seq
from tiny_run import metrics_table, save_tiny_model, tiny_settings
from torch import Tensor
from transformers.pytorch_utils import Conv1D

import rlhf_gym.lm.quantization
from rlhf_gym.agents import PPO
from rlhf_gym.agents.common.ray_packing import packed, unpacked
from rlhf_gym.errors import ConfigError, ModelError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import Lora, adapted, adapter_weights
from rlhf_gym.lm.quantization import in_four_bits, settle, whole_weights
from rlhf_gym.lm.sequences import pack_sequences
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.rounds import run_loop
from rlhf_gym.reward_model import RewardModel
from rlhf_gym.reward_model.trained_part import TrunkAndHead

CODES = torch.tensor([
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
])  # fmt: skip
"""NF4's numbers: Dettmers et al. 2023, appendix E."""


def nf4(weight: Tensor) -> Tensor:
    """The nearest numbers of NF4 to blocks of 64 weights, each times its block's largest absolute value."""
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    nearest = (blocks[..., None] / scale[..., None] - CODES).abs().argmin(dim=-1)
    return (CODES[nearest] * scale).reshape(weight.shape)


@pytest.fixture(scope="module", params=["gpt2", "llama", "t5"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    model = tiny_seq2seq(hidden=64) if request.param == "t5" else tiny_language_model(request.param, hidden=64)
    model.save(path)
    return path


def load(folder: Path | str, quantization: str | None = "nf4", **options: Any) -> LanguageModel:
    tokenizer = tiny_language_model().tokenizer
    return LanguageModel.load(str(folder), device="cpu", quantization=quantization, tokenizer=tokenizer, **options)


def states(model: LanguageModel) -> Tensor:
    return model.response_states(pack_sequences([[2, 3, 4], [5]], [[6, 7], [8, 9, 10]], model.tokenizer.pad_id))


def test_weights_are_the_nearest_numbers_of_nf4(folder: Path) -> None:
    whole, base = load(folder, None), load(folder)
    assert (whole.quantization, base.quantization) == (None, "nf4")
    assert not any(p.requires_grad for p in base.model.parameters())
    kept, found = whole.model.state_dict(), whole_weights(base.model)
    assert kept.keys() == found.keys()
    layers = {name: layer for name, layer in base.model.named_modules() if in_four_bits(layer)}
    assert layers
    for name, tensor in kept.items():
        layer = layers.get(name.removesuffix(".weight"))
        if layer is None:
            torch.testing.assert_close(found[name], tensor, atol=0, rtol=0)
            continue
        turned = isinstance(whole.model.get_submodule(name.removesuffix(".weight")), Conv1D)  # stored [in, out]
        expected = nf4(tensor.T.contiguous() if turned else tensor)
        found_here = found[name].T if turned else found[name]
        # The blocks' scales are kept in 8 bits. A number half-way between two codes may go to either.
        near = (found_here - expected).abs() <= 0.02 * tensor.abs().max()
        assert near.float().mean() > 0.995
        assert layer.weight.element_size() * layer.weight.numel() * 2 == tensor.numel()  # type: ignore[operator, union-attr]


def test_an_adapter_gets_the_gradients_of_a_whole_base(folder: Path, tmp_path: Path) -> None:
    """Against a model that holds the same numbers as float32; and merged it is an ordinary model."""
    base = load(folder)
    ours = moved(adapted(base, Lora(rank=4)))
    plain = load(folder, None)
    plain.model.load_state_dict(whole_weights(base.model))
    theirs = moved(adapted(plain, Lora(rank=4)))
    torch.testing.assert_close(states(ours), states(theirs), atol=1e-5, rtol=1e-4)
    for model in (ours, theirs):
        states(model).square().mean().backward()  # type: ignore[no-untyped-call]
    for one, other in zip(adapter_weights(ours), adapter_weights(theirs), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-3)
    ours.save(tmp_path / "merged")
    merged = load(tmp_path / "merged", None)
    assert merged.quantization is None
    torch.testing.assert_close(states(merged), states(ours), atol=1e-5, rtol=1e-4)


def test_copies_share_the_base_and_what_is_written_reads_the_same(folder: Path, tmp_path: Path) -> None:
    base = load(folder)
    model = moved(adapted(base, Lora(rank=4)))
    expected = states(model)
    copy = model.frozen_copy()
    shared = {p.data_ptr() for p in base.model.parameters()}
    assert shared <= {p.data_ptr() for p in copy.model.parameters()}
    torch.testing.assert_close(states(copy), expected, atol=0, rtol=0)
    model.product_dtype = torch.bfloat16
    torch.testing.assert_close(states(model.decoding_copy()), states(model), atol=0, rtol=0)
    model.product_dtype = None
    base.save(tmp_path / "base")  # without an adapter it stays as it is
    again = load(tmp_path / "base", None)
    assert again.quantization == "nf4"
    torch.testing.assert_close(states(again), states(base), atol=0, rtol=0)
    cloudpickle = pytest.importorskip("ray").cloudpickle
    sent = unpacked(packed(model, type("ray", (), {"cloudpickle": cloudpickle})), "cpu")
    torch.testing.assert_close(states(sent), expected, atol=0, rtol=0)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    tiny_language_model("llama", hidden=64, scale=3.0).save(tmp_path / "base")
    return tmp_path / "base"


def test_the_first_ratio_is_1_and_the_base_never_moves(small: Path) -> None:
    base = load(small)
    before = whole_weights(base.model)
    agent = small_ppo(language_model=base, lora=LORA)
    assert agent.reference is base
    rollout = collected(agent)
    torch.testing.assert_close(rollout.log_probs, rollout.reference_log_probs, atol=1e-5, rtol=0)
    gradient(agent, rollout, list(range(16)))
    assert agent.minibatch_metrics["val/ratio"] == pytest.approx([1.0], abs=1e-5)
    rows = learn(small_ppo(language_model=base, lora=LORA, learning_rate=1e-2), 1200)
    assert rows[-1]["objective/kl"] > 1
    after = whole_weights(base.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_training_resumes_exactly_and_finds_its_base(small: Path, tmp_path: Path) -> None:
    whole, half = (small_ppo(language_model=load(small), lora=LORA, learning_rate=1e-2) for _ in range(2))
    whole.learn(800)
    half.learn(400)
    half.save(tmp_path / "half")
    with zipfile.ZipFile(tmp_path / "half.zip") as archive:
        assert not any(name.startswith(("model", "reference")) for name in archive.namelist())
    resumed = PPO.load(tmp_path / "half", env=letters_env())
    assert resumed.policy.language_model.quantization == "nf4"
    resumed.learn(800 - resumed.num_timesteps, reset_num_timesteps=False)
    assert_same_weights(weights(resumed), weights(whole))
    with pytest.raises(ModelError, match="other weights"):
        PPO.load(tmp_path / "half", env=letters_env(), language_model=load(small, None))


def test_a_run_in_two_rounds_goes_on_after_its_first(tmp_path: Path) -> None:
    """The reward model's trunk is the frozen base; what is exported is an ordinary model."""
    settings = tiny_settings(save_tiny_model(tmp_path / "model"), run={"rounds": 2}, agent={"learning_rate": 5e-2})
    settings["model"] |= {"lora": {"rank": 2}, "quantization": "nf4"}
    whole = run_loop(build(settings), tmp_path / "whole", progress=Progress(quiet=True))
    assert LanguageModel.load(str(whole.policy(2)), device="cpu").quantization is None
    with pytest.raises(KilledError):
        run_loop(build(settings), tmp_path / "killed", progress=Fuse(26))
    again = run_loop(build(settings), tmp_path / "killed", resume=True, progress=Progress(quiet=True))
    assert metrics_table(again.path) == metrics_table(whole.path)
    assert (again.path / "evaluation.json").read_text() == (whole.path / "evaluation.json").read_text()


def test_what_cannot_be_is_refused(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"in 4 bits \(nf4\) and cannot learn: give lora"):
        small_ppo(language_model=load(small))
    with pytest.raises(ModelError, match="unknown quantization 'int3'; expected 'nf4'"):
        load(small, "int3")
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "a.gguf").touch()
    with pytest.raises(ModelError, match="is a GGUF file, which cannot be quantized"):
        load(f"{tmp_path / 'gguf'}:a.gguf")
    stored: Any = tiny_language_model().model  # as transformers marks a network whose files hold such weights
    stored.quantization_method = "gptq"
    with pytest.raises(ModelError, match=r"are stored quantized \(gptq\), which is not read here"):
        settle(stored)
    model = RewardModel(load(small))
    with pytest.raises(ModelError, match="cannot learn: fit the head alone, trunk_layers=0"):
        TrunkAndHead(model, 1, 0.0)
    settings = tiny_settings(small)
    settings["model"]["quantization"] = "nf4"
    with pytest.raises(ConfigError, match=r"nothing would learn: give model\.lora"):
        build(settings)
    settings["model"]["lora"] = {"rank": 2}
    settings["reward_model"] = {**settings.get("reward_model", {}), "trunk_layers": 1}
    with pytest.raises(ConfigError, match=r"give reward_model\.trunk_layers 0"):
        build(settings)
    monkeypatch.setattr(rlhf_gym.lm.quantization, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes and accelerate: pip install 'rlhf-gym\[quantized\]'"):
        load(small)
