"""The whole loop on a tiny model: what it leaves behind, and that no interruption changes a metric or loses a judgement."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import closed_pipe, metrics_table, rlhf_gym, save_tiny_model, tiny_settings

from rlhf_gym.cli.main import main
from rlhf_gym.errors import RewardError, RlhfGymError
from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.loop.config_file import build, merge
from rlhf_gym.loop.progress import Bar, Progress
from rlhf_gym.loop.rounds import run_loop
from rlhf_gym.loop.run_directory import RunDirectory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Two rounds, never interrupted."""
    config = build(tiny_settings(model, run={"rounds": 2}))
    return run_loop(config, tmp_path_factory.mktemp("whole") / "run", progress=Progress(quiet=True))


def evaluation(run: RunDirectory) -> Any:
    return json.loads(run.evaluation_file.read_text())


def same_result(run: RunDirectory, other: RunDirectory) -> None:
    assert metrics_table(run.path) == metrics_table(other.path)
    assert evaluation(run) == evaluation(other)
    for number in (1, 2):
        for name in ("samples.jsonl", "completions.jsonl"):
            file = f"round-{number}/{name}"
            assert (run.path / file).read_text() == (other.path / file).read_text()
    with FeedbackStore(run.store_file) as one, FeedbackStore(other.store_file) as two:
        assert [(j.id, j.ranking) for j in one.judgements()] == [(j.id, j.ranking) for j in two.judgements()]


def test_what_a_run_leaves_behind(whole: RunDirectory) -> None:
    names = {p.name for p in whole.path.iterdir()}
    assert {"config.yaml", "versions.json", "metrics.csv", "feedback.sqlite", "evaluation.json", "report.html",
            "summary.txt", "round-1", "round-2"} <= names  # fmt: skip
    for number in (1, 2):
        folder = whole.path / f"round-{number}"
        left = (
            "samples.jsonl reward_model reward_model.json reward_models.jsonl agent.json agent.zip agent_seconds.json"
        )
        left += " policy completions.jsonl evaluation.json stages.json training.json"
        assert {p.name for p in folder.iterdir()} == set(left.split())
    rows = metrics_table(whole.path).splitlines()
    assert len(rows) == 1 + 2 * 4
    assert rows[0].startswith("round,iteration,timesteps,objective/scores,gold,objective/kl")
    assert [row.split(",")[:2] for row in rows[1:]] == [[r, i] for r in "12" for i in "1234"]
    steps = [int(row.split(",")[2]) for row in rows[1:]]
    assert steps == sorted(set(steps))
    with FeedbackStore(whole.store_file) as store:
        assert store.count().judgements == 24
        assert {q.model_versions for q in store.queries(2)} == {("round-1", "round-1")}


def test_the_evaluation_says_what_was_promised(whole: RunDirectory) -> None:
    found = evaluation(whole)
    assert found["n"] == len(found["pairs"]) == 10
    assert found["win_rate"] == (found["wins"] + found["ties"] / 2) / 10
    assert found["win_rate_low"] < found["win_rate"] < found["win_rate_high"]
    better = sum(p["gold_after"] > p["gold_before"] for p in found["pairs"])
    assert found["wins"] == better
    assert found["gold_after"] == pytest.approx(sum(p["gold_after"] for p in found["pairs"]) / 10)
    for name in ("proxy", "perplexity", "distinct_2", "length"):
        assert {f"{name}_before", f"{name}_after"} <= set(found)
    assert found["kl"] != 0
    assert found["kl_exact"] > 0
    assert found["kl_exact_se"] < found["kl_se"]
    assert found["judge"] == "readability"
    assert 0 <= found["judge_win_rate"] <= 1
    assert [point["n"] for point in found["best_of_n"]] == [1, 2, 3, 4, 6, 8]
    assert {row["name"] for row in found["fluency"]} == {"perplexity", "repetition", "distinct word pairs"}
    assert 0.5 <= found["labels_agree"] <= 1


def test_the_summary_fits_one_screen(whole: RunDirectory) -> None:
    text = (whole.path / "summary.txt").read_text()
    assert "win rate of tuned over reference by gold" in text
    assert len(text.splitlines()) <= 45
    assert max(len(line) for line in text.splitlines()[1:-1]) <= 100  # the first and the last name paths


class KilledError(BaseException):
    """A kill: nothing in the package catches it, nothing is tidied up on purpose."""


class Fuse(Progress):
    """Kills at the n-th sign of progress, wherever in the loop that is."""

    def __init__(self, burns: int) -> None:
        super().__init__(quiet=True)
        self.left = burns

    def burn(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KilledError

    def say(self, line: str) -> None:
        self.burn()

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Bar]:
        fuse = self
        fuse.burn()

        class BurningBar(Bar):
            def update(self, done: int, note: str = "", total: int | None = None) -> None:
                fuse.burn()

        yield BurningBar(None, total, title)
        fuse.burn()


def test_killed_anywhere_and_resumed_the_metrics_are_the_same(model: Path, whole: RunDirectory, tmp_path: Path) -> None:
    config = build(tiny_settings(model, run={"rounds": 2}))
    burns = 3
    kills = 0
    while True:  # killed again and again: samples, labels, fit, PPO between checkpoints, evaluation, both rounds
        try:
            run = run_loop(config, tmp_path / "run", resume=True, progress=Fuse(burns))
            break
        except KilledError:
            kills += 1
            burns = 3 + (5 * kills) % 7
    assert kills >= 8
    same_result(run, whole)


def test_a_finished_run_resumed_does_nothing_again(whole: RunDirectory) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.path.glob("round-*/*")}
    run_loop(whole.config(), whole.path, resume=True, progress=Progress(quiet=True))
    assert {p: p.stat().st_mtime_ns for p in whole.path.glob("round-*/*")} == before


def test_a_further_round_can_be_asked_for(model: Path, whole: RunDirectory, tmp_path: Path) -> None:
    settings = tiny_settings(model, run={"rounds": 1})
    quiet = Progress(quiet=True)
    run_loop(build(settings), tmp_path / "run", progress=quiet)
    more = build(merge(settings, {"run": {"rounds": 2}}))
    same_result(run_loop(more, tmp_path / "run", resume=True, progress=quiet), whole)


# A gold reward that sends its own process a signal once the run has some rows: the file `plan` says which, and how many.
SIGNALS = """
import os
import pathlib
import signal

here = pathlib.Path(__file__).parent


def taste(prompts, responses):
    plan, table = here / "plan", here / "run" / "metrics.csv"
    if plan.exists() and table.exists():
        name, rows = plan.read_text().split()
        if table.read_bytes().count(b"\\n") - 1 == int(rows):
            plan.unlink()
            os.kill(os.getpid(), getattr(signal, name))
    return [len(response) / 10 for response in responses]
"""


def rows(out: Path) -> int:
    return (out / "metrics.csv").read_bytes().count(b"\n") - 1 if (out / "metrics.csv").exists() else 0


def test_killed_interrupted_and_cut_off_a_run_goes_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(SIGNALS)
    settings = tiny_settings(
        model, agent={"iterations": 9, "checkpoint_every": 3}, task={"reward": f"{tmp_path}/mine.py:taste"}
    )
    config, out, plan = (tmp_path / name for name in ("c.yaml", "run", "plan"))
    config.write_text(yaml.safe_dump(settings))
    whole = run_loop(build(settings), tmp_path / "whole", progress=Progress(quiet=True))
    arguments = ["run", "--config", str(config), "--out", str(out), "--resume"]
    hint = f"Go on with: rlhf-gym run --out {out} --resume"

    plan.write_text("SIGKILL 4")  # one row is beyond the checkpoint, and is written again
    assert rlhf_gym(*arguments).returncode == -signal.SIGKILL
    assert rows(out) == 4

    for name, row, code, word in (("SIGINT", 5, 130, "interrupted"), ("SIGTERM", 7, 143, "terminated")):
        plan.write_text(f"{name} {row}")
        assert main(arguments) == code
        assert rows(out) == row
        assert capsys.readouterr().err == f"\n{word}. {hint}\n"

    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", closed_pipe())
        assert main(arguments) == 130
        sys.stdout.close()
    assert capsys.readouterr().err == f"\nnobody reads the output any more. {hint}\n"

    with monkeypatch.context() as patch:  # messages go to the same pipe: `2>&1 | head`
        for name in ("sys.stdout", "sys.stderr"):
            patch.setattr(name, closed_pipe())
        assert main(arguments) == 130
        sys.stdout.close()
        sys.stderr.close()

    assert main(arguments) == 0
    assert "win rate of tuned over reference" in capsys.readouterr().out
    assert metrics_table(out) == metrics_table(whole.path)
    assert evaluation(RunDirectory(out)) == evaluation(whole)


FAULTS = {
    "nan": ("[float('nan')] * len(responses)", r"expected a finite number"),
    "count": ("[0.0]", r"1 scores? for \d+ samples"),
    "none": ("None", r"expected .*numbers"),
    "raises": ("1 / 0", r"ZeroDivisionError"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_reward_that_fails_is_named_and_nothing_is_lost(
    model: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, message = FAULTS[fault]
    file = tmp_path / "mine.py"
    # Well at first, broken later: the judgements made until then have to be there.
    file.write_text(
        "import pathlib\n"
        "calls = 0\n"
        "def taste(prompts, responses):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    good = calls < 3 or pathlib.Path(__file__).with_name('mended').exists()\n"
        f"    return [len(r) / 10 for r in responses] if good else {code}\n"
    )
    settings = tiny_settings(model, task={"reward": f"{file}:taste"}, rater={"batch_size": 4})
    out = tmp_path / "run"
    with pytest.raises(RlhfGymError, match=message) as caught:
        run_loop(build(settings), out, progress=Progress(quiet=True))
    assert "taste" in str(caught.value)
    with FeedbackStore(out / "feedback.sqlite") as store:
        stored = store.count().judgements
    assert stored == 8
    (tmp_path / "mended").touch()
    run_loop(build(settings), out, resume=True, progress=Progress(quiet=True))
    assert rows(out) == 4


def test_without_a_reward_model_ppo_trains_on_the_reward_itself(model: Path, tmp_path: Path) -> None:
    settings = tiny_settings(model, reward_model={"enabled": False})
    run = run_loop(build(settings), tmp_path / "run", progress=Progress(quiet=True))
    assert not (run.path / "round-1" / "reward_model").exists()
    found = evaluation(run)
    assert found["proxy_after"] == found["gold_after"]


def test_pairs_ties_and_skips(model: Path, tmp_path: Path) -> None:
    rater = {"query_type": "pair", "tie_threshold": 0.3, "skip_rate": 0.2}
    settings = tiny_settings(model, rater=rater, sampling={"candidates": 4, "prompts": 12})
    run = run_loop(build(settings), tmp_path / "run", progress=Progress(quiet=True))
    with FeedbackStore(run.store_file) as store:
        count = store.count()
    assert count.judgements == 24
    assert count.skipped > 0


def test_only_ties_is_said_and_not_fitted(model: Path, tmp_path: Path) -> None:
    settings = tiny_settings(model, rater={"tie_threshold": 1e9})
    with pytest.raises(RlhfGymError, match="no judgement prefers one response to another"):
        run_loop(build(settings), tmp_path / "run", progress=Progress(quiet=True))


def test_reward_error_is_the_users() -> None:
    assert issubclass(RewardError, RlhfGymError)
