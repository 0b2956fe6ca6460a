"""TensorBoard and Weights & Biases: the same metrics as in metrics.csv; nothing leaves the machine, no key is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import save_tiny_model, tiny_settings

from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.metrics_table import MetricsTable
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.rounds import run_loop

KEY = "0123456789abcdef0123456789abcdef01234567"


def test_metrics_reach_every_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    settings = tiny_settings(
        save_tiny_model(tmp_path / "model"), log={"to": ["wandb", "tensorboard"]}, run={"rounds": 2}
    )
    run = run_loop(build(settings), tmp_path / "run", progress=Progress(quiet=True))
    rows = MetricsTable(run.metrics_file).rows

    events = accumulator.EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("objective/kl")
    assert [e.step for e in scalars] == [int(row["timesteps"]) for row in rows]
    assert [e.value for e in scalars] == pytest.approx([float(row["objective/kl"]) for row in rows], rel=1e-6)

    assert list((run.path / "wandb").glob("offline-run-*/*.wandb"))
    for file in (p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".safetensors"):
        assert KEY.encode() not in file.read_bytes(), file


@pytest.mark.parametrize("asked", [False, True])  # on a terminal, where the user chooses to go without
def test_wandb_without_a_key_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    wandb = pytest.importorskip("wandb")

    def no_key() -> bool:
        if not asked:
            raise wandb.errors.UsageError("No API key configured.")
        return False

    monkeypatch.setattr("wandb.login", no_key)
    config = build({"log": {"to": ["wandb"], "wandb_mode": "online"}})
    with pytest.raises(ConfigError, match=r"(No API key configured\.|has no key)\. Give log\.wandb_mode=offline"):
        run_loop(config, tmp_path / "run", progress=Progress(quiet=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_logger_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"--log {name} needs the package '{name}': pip install 'rlhf-gym\[log\]'"):
        run_loop(build({"log": {"to": [name]}}), tmp_path / "run", progress=Progress(quiet=True))
    assert not (tmp_path / "run").exists()
