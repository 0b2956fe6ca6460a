"""The memory plan: bytes that can be counted by hand, settings that save memory, and what the command says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model

from rlhf_gym.agents.common.ranks import Ranks
from rlhf_gym.cli.main import main
from rlhf_gym.cli.plan_command import bytes_of
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.precision import use_fast_float32
from rlhf_gym.lm.quantization import in_four_bits
from rlhf_gym.lm.traced_memory import traced_memory
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.memory_plan import MemoryPlan, plan_memory, smaller


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_language_model("llama").save(path)
    return path


def planned(folder: Path, ranks: Ranks | None = None, **settings: Any) -> MemoryPlan:
    model = {"name": str(folder), "device": "cpu", **settings.pop("model", {})}
    agent = {"n_episodes": 8, "batch_size": 8, **settings}
    config = build({"model": model, "agent": agent, "reward_model": {"enabled": False}})
    use_fast_float32.cache_clear()  # as the command, which plans before any model is made
    return plan_memory(config, prompt_tokens=4, response_tokens=8, ranks=ranks)


def test_live_bytes_by_hand() -> None:
    def work() -> torch.Tensor:
        first = torch.zeros(100)  # 400 bytes
        second = first + 1  # 800 alive
        del first
        third = second.double()  # 400 + 800
        return third.view(10, 10)  # no storage of its own

    with traced_memory() as live:
        kept = torch.zeros(10)
        assert live.peak_of(work) == 40 + 1200
        assert live.now == kept.numel() * 4


def test_what_is_held_by_hand(folder: Path, tmp_path: Path) -> None:
    size = sum(p.numel() for p in tiny_language_model("llama").model.parameters())
    plain = planned(folder)
    assert (plain.parameters, plain.trainable) == (size, size)
    buffers = plain.held["policy"] - 4 * size
    assert 0 <= buffers < 2000  # rotary frequencies
    assert plain.held["reference"] == plain.held["policy"]
    assert plain.held["optimizer"] == 8 * size
    assert plain.phases["learning"] > sum(plain.held.values()) + 4 * size
    separate = planned(folder, value_network="separate")
    assert separate.held["value network"] == plain.held["policy"]
    assert separate.held["optimizer"] == 16 * size
    tiny_language_model("llama", hidden=16).save(tmp_path / "teacher")
    taught = planned(folder, teacher=str(tmp_path / "teacher"), model={"lora": {"rank": 2, "targets": ["q_proj"]}})
    assert 0 < taught.held["reference"] < plain.held["reference"]
    offline = planned(folder, name="ilql", data="rows.jsonl")
    model = tiny_language_model("llama")
    head, width = (model.hidden_size + 1) * model.vocab_size, model.hidden_size + 1
    assert offline.held["Q heads"] - 4 * (4 * head + width) in range(
        64
    )  # two that learn, two that follow, and the value
    assert offline.trainable == size + 2 * head + width
    assert offline.held["optimizer"] == 8 * offline.trainable
    assert offline.phases["learning"] > planned(folder, name="sft", data="rows.jsonl").phases["learning"] + 24 * head
    free = planned(folder, kl_coef=0.0)
    assert "reference" not in {**free.held, **free.phases}
    assert free.phases["learning"] == plain.phases["learning"] - plain.held["reference"]
    wide = tiny_language_model(layers=1, hidden=64)
    wide.save(tmp_path / "wide")
    sizes = [p.numel() for p in wide.model.parameters()]
    eights = sum(2 * (size + 4 * -(-size // 256)) for size in sizes if size >= 4096)
    assert eights > 0
    floats = sum(8 * size for size in sizes if size < 4096)
    assert planned(tmp_path / "wide", optimizer="adamw_8bit").held["optimizer"] == eights + floats
    adapter = planned(folder, model={"lora": {"rank": 2, "targets": ["q_proj"]}})
    assert "reference" not in adapter.held
    assert 0 <= adapter.held["adapter"] - 4 * adapter.trainable < 100  # a scalar or two
    assert adapter.held["optimizer"] == 8 * adapter.trainable


def test_a_base_in_4_bits_takes_what_bitsandbytes_takes(folder: Path) -> None:
    lora = {"lora": {"rank": 2}}
    whole, four = planned(folder, model=lora), planned(folder, model={**lora, "quantization": "nf4"})
    assert (four.parameters, four.trainable) == (whole.parameters, whole.trainable)
    tokenizer = tiny_language_model("llama").tokenizer
    real = LanguageModel.load(str(folder), device="cpu", quantization="nf4", tokenizer=tokenizer).model
    states = [layer.weight.quant_state for layer in real.modules() if in_four_bits(layer)]  # type: ignore[union-attr]
    tensors = [*real.parameters(), *real.buffers(), *(s.absmax for s in states), *(s.state2.absmax for s in states)]  # type: ignore[union-attr]
    assert abs(four.held["policy"] - sum(t.numel() * t.element_size() for t in tensors)) < 100
    assert four.held["adapter"] == whole.held["adapter"]
    saved = whole.held["policy"] - four.held["policy"]
    assert four.phases["generation"] <= whole.phases["generation"] - 0.9 * saved
    assert "reference" not in four.held


def test_evolution_strategies_run_nothing_backwards(folder: Path) -> None:
    weights = list(tiny_language_model("llama").model.parameters())
    size, largest = sum(p.numel() for p in weights), max(p.numel() for p in weights)
    found = planned(folder, name="es", n_episodes=32, group_size=4, batch_size=None)
    assert found.held["optimizer"] == 8 * size  # Adam follows the estimate
    held = sum(found.held.values())
    assert found.phases["learning"] - held in range(
        4 * size, 4 * (size + 2 * largest) + 64
    )  # the estimate, and one noise
    assert found.phases["generation"] >= held + 4 * size  # the weights that are put back
    # A copy decodes its own slots: eight here, as many as of an agent with eight environments.
    alike = planned(folder, name="grpo", n_episodes=8, group_size=4, kl_coef=0.05)
    assert found.phases["generation"] - held - 4 * size == alike.phases["generation"] - sum(alike.held.values())
    wider = planned(folder, name="es", n_episodes=64, group_size=8, batch_size=None)
    assert wider.phases["learning"] == found.phases["learning"]


def test_processes_share_slots_and_rows_out(folder: Path) -> None:
    """Each has what a single process has with its share of the environments and of a minibatch."""
    single, several = planned(folder, n_episodes=4, batch_size=4), planned(folder, Ranks(0, 2))
    assert (several.held, several.phases, several.resuming) == (single.held, single.phases, 0)
    stepped = planned(folder, Ranks(0, 2), collect="step")  # by the first process alone
    assert stepped.phases == {**single.phases, "generation": planned(folder).phases["generation"]}


@pytest.mark.parametrize(("processes", "bytes_a_weight"), [(2, 16), (4, 12)])
def test_weights_in_parts_by_hand(folder: Path, processes: int, bytes_a_weight: int) -> None:
    """What counting tensors in real processes gave (docs/scaling.md), of 20 bytes a weight where each has all of them."""
    weights = list(tiny_language_model("llama").model.parameters())
    size = sum(p.numel() for p in weights)
    part = sum(-(-len(p) // processes) * p[0].numel() for p in weights)  # the first process has a row more of some
    assert part == pytest.approx(size / processes, rel=0.05)
    assert 8 + 16 / processes == bytes_a_weight
    ranks = Ranks(0, processes, sharded=True)
    whole, parts = planned(folder, Ranks(0, processes)), planned(folder, ranks)
    buffers = sum(whole.held.values()) - 16 * size  # of the policy and of the reference
    assert sum(parts.held.values()) - buffers == 8 * size + 16 * part
    assert parts.held["optimizer"] == parts.held["parts of the weights"] == 8 * part
    saved = whole.phases["learning"] - parts.phases["learning"]  # activations are the same
    assert saved == 20 * size - (8 * size + 16 * part)
    assert parts.phases["optimizer step"] - buffers == 20 * part
    assert parts.resuming - buffers == 16 * size + 4 * part
    gathered = planned(folder, ranks, name="preference_optimization", loss="kto", data="rows.jsonl")
    released = planned(folder, ranks, name="preference_optimization", data="rows.jsonl")
    stays = gathered.phases["optimizer step"] - released.phases["optimizer step"]
    assert stays == 4 * size  # KTO's reference
    adapter = planned(folder, ranks, model={"lora": {"rank": 2, "targets": ["q_proj"]}})
    base = adapter.held["policy"]
    assert base == whole.held["policy"]
    assert "reference" not in adapter.held
    assert base < adapter.phases["optimizer step"] < base + 20 * adapter.trainable


def test_settings_that_save_memory_do(folder: Path) -> None:
    plain = planned(folder).phases["learning"]
    assert planned(folder, gradient_checkpointing=True).phases["learning"] < plain
    assert planned(folder, tokens_per_batch=24).phases["learning"] < plain
    whole = planned(folder).held["policy"]
    assert planned(folder, model={"dtype": "bfloat16"}).held["policy"] < 0.6 * whole
    masters = planned(folder, model={"dtype": "bfloat16"}, precision="bf16")  # as an agent takes them over
    assert masters.held["policy"] == whole
    assert masters.held["reference"] < 0.6 * whole
    tied = planned(Path("embedded"))  # an output layer that is the input's
    assert planned(Path("embedded"), precision="bf16").held["policy"] == tied.held["policy"]


def test_the_command_says_what_makes_it_fit(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["plan", "--model", str(folder), "--prompt-tokens", "4", "--response-tokens", "8", "--device", "cpu"]
    assert main([*options, "--memory", "64GB"]) == 0
    assert "It fits in 64GB." in capsys.readouterr().out
    assert main([*options, "--memory", "1MB", "--set", "model.lora={rank: 2}"]) == 1
    out = capsys.readouterr().out
    assert "--set agent.gradient_checkpointing=true" in out
    assert "No setting makes it fit" in out
    wide = tmp_path / "wide"
    tiny_language_model("llama", layers=1, hidden=1024).save(wide)
    options[2] = str(wide)
    assert main([*options, "--processes", "8", "--parts"]) == 0
    out = capsys.readouterr().out
    assert "each of 8 processes, with parts of the weights" in out
    assert "optimizer step" in out
    assert "while --resume loads a checkpoint" in out


def test_nothing_is_advised_that_a_run_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def advised(agent: str, **settings: Any) -> list[str]:
        config = build({"agent": {"name": agent, **settings}, "reward_model": {"enabled": "value_start" in settings}})
        return [changes[-1] for changes, _ in smaller(config)]

    assert "agent.precision=bf16" in advised("ppo")
    assert "agent.precision=bf16" not in advised("trpo")  # which runs in float32 alone
    for installed in (None, object()):
        monkeypatch.setattr("rlhf_gym.loop.memory_plan.find_spec", lambda name, found=installed: found)
        for change in ("agent.optimizer=adamw_8bit", "model.quantization=nf4"):
            assert (change in advised("ppo")) == (installed is not None)
    own = {"value_network": "separate", "value_start": "reward_model"}
    assert not {"model.lora={rank: 8}", "agent.value_network=shared"} & {*advised("ppo", **own)}
    parts = [changes for changes, _ in smaller(build({}), Ranks(0, 2, sharded=True))][-1]
    assert "agent.optimizer=adamw_8bit" not in parts


@pytest.mark.parametrize(("text", "size"), [("24GB", 24e9), ("1.5 GiB", 1.5 * 2**30), ("512mib", 2**29), ("8e9", 8e9)])
def test_sizes(text: str, size: float) -> None:
    assert bytes_of(text) == size


def test_bad_input_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a size such as 24GB"):
        bytes_of("much")
    assert main(["plan", "--model", str(folder), "--prompt-tokens", "0"]) != 0
    assert main(["plan", "--model", str(tmp_path / "none")]) != 0
    assert main(["plan", "--model", str(folder), "--response-tokens", "100000"]) != 0
    assert "Traceback" not in capsys.readouterr().err
    for options, words in (
        ("--processes 0", "--processes must be at least 1"),
        ("--parts", "a single process keeps all weights"),
        ("--processes 3", "3 processes cannot share 64 environments equally"),
        ("--processes 16 --set agent.name=grpo", "64 environments in groups of 8 equally"),
        ("--processes 2 --parts --set agent.optimizer=adamw_8bit", "cannot step weights of which each rank keeps a"),
        ("--processes 2 --set agent.name=es", "ES learns in one process"),
    ):
        assert main(["plan", "--model", str(folder), *options.split()]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
