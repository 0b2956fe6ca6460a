"""Several processes that learn together do what one process does, and stop together."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import rank_worker
import torch
from ppo_setups import letters_env
from tiny_run import command, save_tiny_model, tiny_settings
from torch.distributed import TCPStore
from waiting import LONG

from rlhf_gym.agents import GRPO, PPO
from rlhf_gym.agents.common.divergence import replay_divergence
from rlhf_gym.agents.common.launch import check_launch, process_ranks
from rlhf_gym.agents.common.ranks import Ranks, check_divides
from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.config_file import build, dump

EXACT = {"timesteps", "episodes"}
COUNTS = ("val/clipfrac_avg", "policy/clipfrac_avg", "train/clip_fraction")  # a number on the edge falls on either side
AGENTS = (
    "PPO", "NLPO", "TRPO", "A2C", "REINFORCE", "ReinforcePlusPlus", "RLOO", "GSPO", "OnlineDPO", "RAFT", "ReMax", "SFT",
    "PreferenceOptimization", "ILQL",
)  # fmt: skip


IN_PARTS = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
}  # as `accelerate launch --use_fsdp --fsdp_version 2` sets them


def launch(arguments: list[str], size: int = 2, **variables: str) -> list[subprocess.CompletedProcess[str]]:
    """Run a command as several processes, as torchrun does, and wait for all of them."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=LONG))
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(size)}
    shared |= {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
        "LOCAL_WORLD_SIZE": str(size),
    } | variables
    processes = [
        subprocess.Popen(
            arguments, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]  # fmt: skip
    ends = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=LONG)
            ends.append(subprocess.CompletedProcess(arguments, process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return ends


def worked(folder: Path, *cases: str, **variables: str) -> dict[str, dict[str, Any]]:
    """What two processes have found in some cases."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ends = launch([sys.executable, rank_worker.__file__, str(folder), *cases], PYTHONPATH=path, **variables)
    found = {case: folder / f"{case}.pt" for case in cases}
    missing = [case for case, file in found.items() if not file.exists()]
    assert not missing, "\n".join(end.stderr for end in ends)
    return {case: torch.load(file, weights_only=False) for case, file in found.items()}


def assert_same(one: dict[str, Any], several: dict[str, Any], atol: float = 2e-4) -> None:
    """The same episodes; the same metrics and weights, but for rounding."""
    assert {name: one[name] for name in EXACT} == {name: several[name] for name in EXACT}
    for mine, theirs in zip(one["rows"], several["rows"], strict=True):
        assert mine.keys() == theirs.keys()
        for name, number in mine.items():
            if name not in COUNTS:
                assert theirs[name] == pytest.approx(number, abs=2e-4, rel=2e-3, nan_ok=True), name
    for name, weight in one["weights"].items():
        torch.testing.assert_close(several["weights"][name], weight, atol=atol, rtol=2e-3, msg=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes leave what they have found; it holds a checkpoint of one process."""
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, dict[str, Any]]:
    """One process, its checkpoint after the first iteration included."""
    ppo = rank_worker.ppo(folder)
    (folder / "saved_by_several.zip").rename(folder / "saved_by_one.zip")
    return {"ppo": ppo, **{case: rank_worker.CASES[case](folder) for case in ("grpo", "talks", "limited", "served")}}


@pytest.fixture(scope="module")
def together(folder: Path, alone: object) -> dict[str, dict[str, Any]]:
    """Two processes."""
    return worked(folder, "ppo", "resumed", "grpo", "talks", "served", "faults")


@pytest.fixture(scope="module")
def in_parts(folder: Path, alone: object) -> dict[str, dict[str, Any]]:
    """Two processes, each with a part of the weights, and what they save in ``folder / "parts"``."""
    own = folder / "parts"
    own.mkdir()
    shutil.copy(folder / "saved_by_one.zip", own)
    return worked(own, "ppo", "resumed", "grpo", "limited", "served", **IN_PARTS)


@pytest.mark.parametrize("case", ["ppo", "grpo", "talks", "served"])
def test_two_processes_learn_what_one_does(alone: Any, together: Any, case: str) -> None:
    """Adaptive rewards and coefficients, early stops, resampling and uneven minibatches included."""
    assert_same(alone[case], together[case])
    rows = alone[case]["rows"]
    if case == "ppo":
        assert any(row["policy/skipped_updates"] > 0 for row in rows if "policy/skipped_updates" in row)
        assert len({row["objective/kl_coef"] for row in rows}) == len(rows)
    elif case == "grpo":
        assert any(row["groups/resamples"] > 0 for row in rows)


def test_one_process_goes_on_where_two_have_stopped_and_the_other_way_round(
    folder: Path, alone: Any, together: Any
) -> None:
    assert_same(alone["ppo"], together["resumed"])
    agent = PPO.load(folder / "saved_by_several", env=rank_worker.adaptive_env())
    assert_same(alone["ppo"], rank_worker.learned(agent))


@pytest.mark.parametrize("case", ["ppo", "grpo", "limited", "served"])
def test_two_processes_with_a_part_of_the_weights_each_learn_what_one_does(
    alone: Any, in_parts: Any, case: str
) -> None:
    assert_same(alone[case], in_parts[case])
    if case == "limited":
        assert alone[case]["rows"][-1]["train/kl_back_offs"] > 0


def test_one_engine_generates_for_all_processes(alone: Any, together: Any, in_parts: Any) -> None:
    """Each response is asked for once, and the weights are sent once an iteration."""
    for several in (together, in_parts):
        for what in ("seeds", "versions"):
            assert several["served"][what] == alone["served"][what]
    assert len(set(alone["served"]["seeds"])) >= 2 * 32


def test_each_process_keeps_half_of_weights_moments_and_reference(in_parts: Any) -> None:
    """Measured in the first step, when nothing else is left of the weights and of the reference."""
    found = in_parts["limited"]
    first, second = [sizes for (sizes,) in found["held"]]
    whole, rows = found["sizes"], 32  # the widest row of a weight is what halves may differ by
    for kind in ("weights", "moments", "reference"):
        assert [a + b for a, b in zip(first[kind], second[kind], strict=True)] == whole
        assert sum(first[kind]) == pytest.approx(sum(whole) / 2, abs=rows * len(whole))
    assert set(first["loaded"]) == set(second["loaded"]) == {0}


def test_one_process_goes_on_from_parts_and_parts_go_on_from_one(folder: Path, alone: Any, in_parts: Any) -> None:
    """What a callback of rank 0 has saved by itself included."""
    assert_same(alone["ppo"], in_parts["resumed"])
    assert set(in_parts["resumed"]["left"]) == {0}  # whole moments are let go before weights are whole again
    agent = PPO.load(folder / "parts" / "saved_by_several", env=rank_worker.adaptive_env())
    assert_same(alone["ppo"], rank_worker.learned(agent))
    limited = GRPO.load(folder / "parts" / "saved_by_callback", env=letters_env())
    assert limited.kl_guard.last_good is not None
    rank_worker.learned(limited, 4)
    for name, weight in alone["limited"]["weights"].items():
        torch.testing.assert_close(limited.policy.state_dict()[name], weight, atol=2e-4, rtol=2e-3)


def test_a_batch_that_is_not_finite_is_saved_with_weights_in_parts(folder: Path, in_parts: Any) -> None:
    assert "rank 1 of 2: iteration 5, epoch 1, minibatch 1" in in_parts["limited"]["broken"]
    replay = replay_divergence(GRPO, folder / "parts" / "divergence-5.zip", env=letters_env())
    for name, weight in in_parts["limited"]["weights"].items():
        torch.testing.assert_close(replay.agent.policy.state_dict()[name], weight, atol=0, rtol=0)


def test_a_fault_of_one_rank_stops_all_with_the_same_message(together: Any) -> None:
    (main, calls, told), (second, other_calls, other_told) = together["faults"]["both"]
    assert calls == (1, True)
    assert other_calls == (0, False)
    assert main.keys() == second.keys() == {
        "settings", "slots", "groups", "reward", "memory", "divergence", "weights"
    }  # fmt: skip
    for fault in ("settings", "slots", "groups", "weights"):
        assert main[fault] == second[fault]
        assert main[fault].startswith("ConfigError")
    assert "kl_coef: rank 0 has 0.2, rank 1 has 0.1" in main["settings"]
    assert "2 processes cannot share 15 environments equally" in main["slots"]
    assert "12 environments in groups of 4 equally" in main["groups"]
    assert "take 16" in main["groups"]
    assert main["reward"].startswith("RewardError")
    assert "no score today" in second["reward"]
    assert second["reward"].startswith("RewardError: rank 0 of 2: ")
    assert main["memory"].startswith("RankError: rank 1 of 2: out of memory")
    assert second["memory"].startswith("MemoryError")
    assert main["divergence"].startswith("NotFiniteError: rank 1 of 2: iteration 1, epoch 1, minibatch 1")
    assert len(told) == 1  # rank 0 keeps the batch that did it
    assert other_told == []
    assert "the weights (their checksum)" in main["weights"]
    assert together["faults"]["killed"].startswith("RankError: rank 0 of 2 has lost the connection to another process")


def test_a_run_of_two_processes_has_one_writer(tmp_path: Path) -> None:
    """All stages, from the command line; what one of them writes is what one process writes, and a wrong rank stops it."""
    file = tmp_path / "config.yaml"
    model = save_tiny_model(tmp_path / "model")
    config = build(tiny_settings(model, agent={"iterations": 2}, sampling={"prompts": 4}, evaluation={"prompts": 4}))
    file.write_text(dump(config))
    ends = launch(command("run", "--config", file, "--out", tmp_path / "run"))
    assert [end.returncode for end in ends] == [0, 0], ends[0].stderr + ends[1].stderr
    assert "report:" in ends[0].stdout
    assert ends[1].stdout == ""
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["1", "1"], ["1", "2"]]
    again = launch(command("run", "--config", file, "--out", tmp_path / "run"))
    assert [end.returncode for end in again] == [2, 2]
    assert "already holds a run" in again[0].stderr
    assert again[1].stderr == ""  # rank 0 says it for all


def test_what_accelerate_is_asked_for_and_not_built_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, word in (
        ("ACCELERATE_USE_FSDP", "true", "--fsdp_version 2"), ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "agent.precision=bf16"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "tokens_per_batch"),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(ConfigError, match=word):
                check_launch(2)
    for name, word in (("FSDP_OFFLOAD_PARAMS", "offload"), ("FSDP_ACTIVATION_CHECKPOINTING", "gradient_checkpointing")):
        with monkeypatch.context() as patch:
            for variable, value in {**IN_PARTS, name: "true"}.items():
                patch.setenv(variable, value)
            with pytest.raises(ConfigError, match=word):
                check_launch(2)
    monkeypatch.setattr("rlhf_gym.agents.common.launch.version", lambda package: "0.34.2")
    with pytest.raises(ConfigError, match=r"accelerate 0\.34\.2 is too old"):
        check_launch(2)
    monkeypatch.undo()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="WORLD_SIZE"):
        process_ranks()


def test_shares_are_whole_disjoint_and_even() -> None:
    sizes = [5, 50, 7, 30, 20, 11, 9, 44]
    parts = [Ranks(rank, 3).share(range(8), sizes) for rank in range(3)]
    assert sorted(row for part in parts for row in part) == list(range(8))
    assert all(part == sorted(part) for part in parts)
    assert max(sum(sizes[row] for row in part) for part in parts) < 2 * min(
        sum(sizes[row] for row in part) for part in parts
    )
    assert [Ranks(rank, 4).block(16) for rank in range(4)] == [slice(0, 4), slice(4, 8), slice(8, 12), slice(12, 16)]
    check_divides(Ranks(0, 4), 16, 4)
    with pytest.raises(ConfigError, match="3 processes"):
        check_divides(Ranks(0, 3), 16, 4)


@pytest.mark.distributed
@pytest.mark.parametrize("variables", [{}, IN_PARTS], ids=["whole", "in_parts"])
def test_every_agent_learns_in_two_processes_what_it_learns_in_one(tmp_path: Path, variables: dict[str, str]) -> None:
    """`make distributed` runs it."""
    found = worked(tmp_path, *AGENTS, "stepped", "adapted", "half", "kto", **variables)
    for name, several in found.items():
        # Adam's first steps are as long where a gradient is rounding alone; TRPO's conjugate gradient enlarges rounding, too.
        assert_same(rank_worker.CASES[name](tmp_path), several, atol=2e-3)
