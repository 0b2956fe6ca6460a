"""The command line as a user meets it: what it says, where it says it, and the exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import closed_pipe, command, save_tiny_model, tiny_settings

from rlhf_gym.cli.main import main
from rlhf_gym.errors import FeedbackError, ModelError, RewardError
from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.loop.config_file import build
from rlhf_gym.version import __version__


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def run_and_output(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory of a run made through the command line, and what the command printed."""
    folder = tmp_path_factory.mktemp("cli")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["run", "--config", str(config_file(folder, model)), "--out", str(folder / "run")]) == 0
    return folder / "run", printed.getvalue()


@pytest.fixture
def finished(run_and_output: tuple[Path, str]) -> Path:
    """The directory of a run made through the command line."""
    return run_and_output[0]


def config_file(folder: Path, model: Path, **sections: dict[str, Any]) -> Path:
    file = folder / "c.yaml"
    file.write_text(yaml.safe_dump(tiny_settings(model, **sections)))
    return file


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that has to end with exit code 2, no traceback, and one message; returns the message."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("rlhf-gym: ")
    assert errors.count("\n") == 1
    return errors


def test_version_and_help_import_nothing_heavy() -> None:
    code = (
        "import sys; from rlhf_gym.cli.main import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'stable_baselines3', 'sqlalchemy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--resume" in done.stdout
    done = subprocess.run(command("--version"), capture_output=True, text=True, check=True)
    assert done.stdout == f"rlhf-gym {__version__}\n"


def test_config_prints_what_run_would_use(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config"]) == 0
    assert build(yaml.safe_load(capsys.readouterr().out)) == build({})
    (tmp_path / "c.yaml").write_text("agent: {kl_coef: 0.5, gamma: 0.9}\nrun: {seed: 3}\n")
    arguments = ["--config", str(tmp_path / "c.yaml"), "--kl-coef", "0.1", "--set", "agent.gae_lambda=1", "--seed=7",
                 "--model", "a: b", "--log", "tensorboard", "--quick"]  # fmt: skip
    assert main(["config", *arguments]) == 0
    config = build(yaml.safe_load(capsys.readouterr().out))
    assert [config.agent.settings[name] for name in ("kl_coef", "gamma", "gae_lambda")] == [0.1, 0.9, 1.0]
    assert (config.run.seed, config.model.name, config.log.to) == (7, "a: b", ("tensorboard",))
    assert config.agent.iterations == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "agent.klcoef=1"], "did you mean 'agent.kl_coef'?"),
        (["--set", "agent.iterations=many"], "agent.iterations must be a whole number, got the text 'many'"),
        (["--rounds", "0"], "run.rounds must be at least 1, got 0"),
        (["--seed", "x"], "run.seed must be a whole number"),
        (["--config", "nowhere.yaml"], "there is no configuration file 'nowhere.yaml'"),
        (["--task", "sentimnet"], "did you mean 'sentiment'?"),
        (["--rater", "oracel"], "did you mean 'oracle'?"),
        (["--reward", "sentimental"], "did you mean 'sentiment'?"),
        (["--reward", "nowhere.py:f"], "nowhere.py"),
        (["--rater", "nowhere.py:f"], "rater 'nowhere.py:f': there is no file 'nowhere.py'"),
        (["--rater", "no_such_module:f"], "rater 'no_such_module:f': there is no module 'no_such_module'"),
        (["--rater", "math:tao"], "rater 'math:tao': there is no 'tao' in math; did you mean 'tau'?"),
        (["--device", "gpu"], "unknown device 'gpu'; expected 'auto'"),
        (["--device", "cuda:99"], "device 'cuda:99' does not work on this machine"),
        (["--model", "/no/such/model"], "model '/no/such/model'"),
        (["--prompts", "nowhere.txt"], "there is no file 'nowhere.txt'"),
        (["--resume"], "--resume needs the run's directory: --out DIR"),
        (["--log", "wanb"], "did you mean 'wandb'?"),
    ],
)
def test_bad_options_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    out = [] if "--resume" in arguments else ["--out", "run"]
    base = [] if "--config" in arguments else ["--config", str(config_file(tmp_path, model))]
    assert message in fails(capsys, "run", *base, *out, *arguments)


def test_an_abbreviated_option_is_not_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "--res"])
    assert caught.value.code == 2
    assert "unrecognized arguments: --res" in capsys.readouterr().err


def test_an_empty_prompt_file(capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    config = config_file(tmp_path, model, task={"prompts": str(tmp_path / "empty.txt")})
    assert "empty.txt holds no prompts" in fails(capsys, "run", "--config", config, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_prompt_longer_than_the_context(capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path) -> None:
    (tmp_path / "p.txt").write_text("a film\n" + "so very long " * 40 + "\nanother film\n")
    config = config_file(tmp_path, model, task={"prompts": str(tmp_path / "p.txt")})
    errors = fails(capsys, "run", "--config", config, "--out", tmp_path / "run")
    assert "1 of 2 prompts are too long. The longest, 'so very long so very long" in errors
    assert "(context of 64) takes prompts of at most 58" in errors


def test_a_second_run_never_overwrites_the_first(
    capsys: pytest.CaptureFixture[str], finished: Path, model: Path, tmp_path: Path
) -> None:
    config = config_file(tmp_path, model)
    assert "already holds a run: give --resume" in fails(capsys, "run", "--config", config, "--out", finished)
    assert "begun with run.seed = 0, not 1" in fails(capsys, "run", "--out", finished, "--resume", "--seed", "1")
    assert main(["run", "--out", str(finished), "--resume"]) == 0
    assert "win rate of tuned over reference" in capsys.readouterr().out


def test_prompts_reward_and_rater_of_ones_own(capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,wanted\n" + "".join(f"tell me about film {i},a\n" for i in range(12)))
    (tmp_path / "mine.py").write_text(
        "def taste(prompts, responses, wanted):\n"
        "    return [r.count(w) for r, w in zip(responses, wanted, strict=True)]\n"
        "from rlhf_gym.raters import SimulatedRater\n"
        "def rater(reward, seed):\n"
        "    return SimulatedRater(lambda prompts, responses: [len(r) for r in responses], seed=seed, name='long')\n"
        "def broken(reward, seed):\n"
        "    return 3\n"
    )
    config, mine = config_file(tmp_path, model), f"{tmp_path}/mine.py"
    arguments = [
        "--config",
        config,
        "--prompts",
        tmp_path / "p.csv",
        "--reward",
        f"{mine}:taste",
        "--rater",
        f"{mine}:rater",
    ]
    assert main(["run", *map(str, arguments), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    captured = capsys.readouterr()
    assert "held-out prompts: 2" in captured.out
    assert captured.out.startswith(str(tmp_path / "run"))
    with FeedbackStore(tmp_path / "run" / "feedback.sqlite", read_only=True) as store:
        assert {judgement.rater for judgement in store.judgements()} == {"long"}
    errors = fails(capsys, "run", *arguments[:-1], f"{mine}:broken", "--out", tmp_path / "other")
    assert "a rater is an object with name, submit and collect, or a function" in errors
    assert "got int" in errors
    errors = fails(capsys, "run", *arguments, "--set", "rater.beta=2")
    assert "rater.beta is for simulated raters" in errors


def test_lines_without_a_terminal(run_and_output: tuple[Path, str]) -> None:
    output = run_and_output[1]
    assert "\x1b" not in output
    assert "\r" not in output
    assert sum("PPO" in line and "KL" in line and "gold" in line for line in output.splitlines()) == 4
    for stage in ("samples", "labels", "reward model", "PPO", "evaluation"):
        assert f"round 1 {stage} ..." in output


def test_interrupted_before_there_is_a_run_to_go_on_with(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rlhf_gym.loop.rounds.RunContext.of", interrupted)
    assert main(["run", "--config", str(config_file(tmp_path, model)), "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "\ninterrupted.\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RewardError("reward 'taste' raised ZeroDivisionError"), "ZeroDivisionError. Go on with: rlhf-gym run --out"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
            "out of memory (CUDA out of memory. Tried",
        ),
        (MemoryError(), "out of memory (MemoryError). Begin anew with fewer responses at once (agent.n_envs"),
    ],
)
def test_trouble_in_the_middle_of_a_run_is_one_message(
    capsys: pytest.CaptureFixture[str], finished: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def trouble(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("rlhf_gym.loop.rounds.RunContext.of", trouble)
    assert message in fails(capsys, "run", "--out", finished, "--resume")


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def nested() -> Exception:
    error = FeedbackError("cannot write x.sqlite: the disk (or quota) is full; free some space and try again")
    error.__cause__ = RuntimeError("sqlite says so")
    return error


@pytest.mark.parametrize(
    ("place", "make"),
    [
        ("loop.candidates.generate", full_disk),
        ("feedback.FeedbackStore.add_judgements", nested),
        ("agents.PPO.save", lambda: RuntimeError("I/O error: No space left on device (os error 28)")),
        ("loop.rounds.write_report", full_disk),
    ],
)
def test_a_full_disk_is_said_and_the_run_goes_on_later(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, place: str,
    make: Callable[[], Exception],
) -> None:  # fmt: skip
    def full(*_: Any, **__: Any) -> None:
        raise make()

    small = config_file(tmp_path, model, agent={"iterations": 1}, evaluation={"prompts": 2})
    arguments = ["run", "--config", small, "--out", tmp_path / "run"]
    with monkeypatch.context() as patch:
        patch.setattr(f"rlhf_gym.{place}", full)
        errors = fails(capsys, *arguments)
    assert "the disk is full" in errors
    assert f"Go on with: rlhf-gym run --out {tmp_path / 'run'} --resume" in errors
    assert main([*map(str, arguments), "--resume"]) == 0


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk needs root on Linux")
def test_a_disk_that_is_really_full(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        arguments = ["run", "--config", str(config_file(tmp_path, model)), "--out", str(disk / "run")]
        assert "the disk is full" in fails(capsys, *arguments)
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        assert main([*arguments, "--resume"]) == 0
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)  # weights may still be mapped


def test_report_writes_it_anew(capsys: pytest.CaptureFixture[str], finished: Path, tmp_path: Path) -> None:
    (finished / "report.html").unlink()
    assert main(["report", str(finished)]) == 0
    output = capsys.readouterr().out
    assert "win rate of tuned over reference" in output
    assert f"report written: {finished / 'report.html'}" in output
    assert (finished / "report.html").exists()
    assert "holds no run" in fails(capsys, "report", tmp_path)
    (tmp_path / "config.yaml").write_text("agent: {kl_coef: x}\n")
    assert "config.yaml: agent.kl_coef must be a number" in fails(capsys, "sample", "x", "--run", tmp_path)
    (tmp_path / "evaluation.json").write_text("{")
    assert "evaluation.json is not the JSON file that the run wrote" in fails(capsys, "report", tmp_path)


def test_sample_from_a_model_and_from_a_run(capsys: pytest.CaptureFixture[str], finished: Path, model: Path) -> None:
    def lines(*arguments: str) -> list[str]:
        assert main(["sample", "the film", *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    capsys.readouterr()
    written = lines("--model", str(model), "-n", "3", "--tokens", "5")
    assert len(written) == 3
    assert all(line.startswith("the film") for line in written)
    assert lines("--model", str(model), "-n", "3", "--tokens", "5") == written
    assert lines("--model", str(model), "-n", "3", "--tokens", "5", "--seed", "1") != written
    reference = lines("--run", str(finished), "--round", "0")
    assert lines("--run", str(finished)) == lines("--run", str(finished), "--round", "1") != reference
    assert "no trained round 2; expected one of 0, 1" in fails(capsys, "sample", "x", "--run", finished, "--round", "2")
    assert "leave one of them out" in fails(capsys, "sample", "x", "--run", finished, "--model", model)
    assert "--number must be at least 1" in fails(capsys, "sample", "x", "-n", "0")
    assert "--tokens must be at least 1" in fails(capsys, "sample", "x", "--model", model, "--tokens", "0")
    assert "temperature" in fails(capsys, "sample", "x", "--model", model, "--temperature", "0")


def test_a_runs_reference_is_loaded_as_the_run_did(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text("model: {name: some/model, revision: v2, dtype: bfloat16}\n")

    def loaded(name: str, **options: Any) -> None:
        raise ModelError(f"{name} {options['revision']} {options['dtype']}")

    monkeypatch.setattr("rlhf_gym.lm.language_model.LanguageModel.load", loaded)
    assert "some/model v2 bfloat16" in fails(capsys, "sample", "x", "--run", tmp_path, "--round", "0")


def test_a_closed_pipe_is_no_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", closed_pipe())
    assert main(["config"]) == 0
    sys.stdout.close()  # as Python does at its end
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert f"{tmp_path}/file/run: Not a directory. Give another place" in fails(
        capsys, "run", "--quick", "--out", tmp_path / "file" / "run"
    )
    assert "File name too long. Give another place" in fails(capsys, "run", "--out", tmp_path / ("x" * 300))
