"""What a run shows of its reward: terms, a constraint's multiplier and slack, and what it takes of the time."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_run import metrics_table, save_tiny_model, tiny_settings
from waiting import limit_time_by

from rlhf_gym.errors import RewardError
from rlhf_gym.loop.after_iteration import iteration_line
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.report.run_data import read_run
from rlhf_gym.loop.rounds import run_loop

REWARD = """
constrained:
  objective: {sum: [{reward: repetition, n: 1, name: again}, {reward: sentiment, weight: 0.5}]}
  constraint: {reward: length, unit: characters, name: characters}
  level: 12
  rate: 0.01
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("run") / "model")


def run(model: Path, out: Path, lines: list[str] | None = None, *, resume: bool = False, **agent: Any) -> Path:
    reward = out.parent / "reward.yaml"
    reward.write_text(REWARD)
    settings = tiny_settings(model, task={"reward": str(reward)}, reward_model={"enabled": False}, agent=agent)
    progress = Progress(quiet=True)
    if lines is not None:
        progress.say = lines.append  # type: ignore[method-assign]
    run_loop(build(settings), out, resume=resume, progress=progress)
    return out


def test_terms_reach_table_line_and_report(model: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    out = run(model, tmp_path / "run", lines)
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        value = {
            name: float(row[f"reward/{name}"]) for name in ("sentiment", "sentiment_weighted", "again", "characters")
        }
        assert value["sentiment_weighted"] == pytest.approx(0.5 * value["sentiment"])
        assert float(row["reward/constrained_slack"]) == pytest.approx(value["characters"] - 12, abs=1e-6)
    # Dual ascent without damping, by hand: eight responses an iteration.
    multiplier = 0.0
    for row in rows:
        assert float(row["reward/constrained_multiplier"]) == pytest.approx(multiplier, abs=1e-6)
        multiplier = max(0.0, multiplier - 0.01 * 8 * float(row["reward/constrained_slack"]))
    figures = [line for line in lines if "REINFORCE" in line or "PPO" in line]
    assert all(
        re.search(r"multiplier \d\.\d\d  slack [+-]\d", line) for line in figures if " 1/4 " in line or " 4/4 " in line
    )
    assert sum("of the time" in line for line in figures) == 4
    page = (out / "report.html").read_text()
    for name in ("constrained_multiplier", "constrained_slack", "sentiment_weighted", "characters"):
        assert re.search(rf"<figcaption><h3>{name}</h3>", page), name
    assert "waiting for rewards" in page
    assert ">skipped<" not in page


def test_the_time_of_all_iterations_also_over_a_resume(model: Path, tmp_path: Path) -> None:
    out = run(model, tmp_path / "run")
    spent = json.loads((out / "round-1" / "agent_seconds.json").read_text())
    assert {"generation", "reward", "reference", "learning", "scoring"} <= set(spent)
    assert all(value >= 0 for value in spent.values())
    data = read_run(out)
    assert data.seconds == pytest.approx(spent)
    # As if it had been killed after the second checkpoint's iteration: what those took is counted on.
    stages = json.loads((out / "round-1" / "stages.json").read_text())
    stages = {stage: entry for stage, entry in stages.items() if stage not in ("train", "evaluate")}
    (out / "round-1" / "stages.json").write_text(json.dumps(stages))
    (out / "round-1" / "agent_seconds.json").write_text(json.dumps({**spent, "reward": 1000.0}))
    run(model, out, resume=True)
    assert read_run(out).seconds["reward"] >= 1000


def test_a_reward_that_hangs_ends_the_run_and_it_goes_on_once_mended(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, hangs = tmp_path / "mine.py", tmp_path / "hangs"
    (broken := tmp_path / "broken").touch()
    file.write_text(
        "import pathlib, time\n\n\ndef mine(prompt, response):\n"
        f"    while pathlib.Path({str(broken)!r}).exists():\n"
        f"        pathlib.Path({str(hangs)!r}).touch()\n"
        "        time.sleep(0.01)\n"
        "    return float(len(response))\n"
    )
    limit_time_by(monkeypatch, lambda: broken.exists() and hangs.exists())
    task = {"reward": f"{file}:mine", "time_limit": 0.5}
    settings = tiny_settings(model, task=task, reward_model={"enabled": False})
    with pytest.raises(
        RewardError, match=r"'mine' did not return within 0\.5 seconds for sample 0, prompt .*, response"
    ):
        run_loop(build(settings), tmp_path / "run", resume=False, progress=Progress(quiet=True))
    broken.unlink()
    run_loop(build(settings), tmp_path / "run", resume=True, progress=Progress(quiet=True))
    assert (tmp_path / "run" / "report.html").exists()


def test_the_line_says_what_there_is() -> None:
    row = {"round": "1", "iteration": "3", "reward/constrained_multiplier": "0.5", "reward/constrained_slack": "-1.25"}
    assert "multiplier 0.50  slack -1.25" in iteration_line(row, "PPO", 4)
    assert "left out" not in iteration_line({**row, "reward/left_out": "0"}, "PPO", 4)
    assert "3 left out: reward failed  rewards 7.1% of the time" in iteration_line(
        {**row, "reward/left_out": "3"}, "PPO", 4, 0.071
    )
    assert "mine_multiplier 2.00" in iteration_line({**row, "reward/mine_multiplier": "2"}, "PPO", 4)


HABITUAL = """
class Habitual:
    learned = 0

    def __call__(self, prompts, responses):
        scores = [len(text) / (10 + self.learned) for text in responses]
        self.learned += len(responses)
        return scores

    def state_dict(self):
        return {"learned": self.learned}

    def load_state_dict(self, state):
        self.learned = state["learned"]


reward = Habitual()
"""


def test_rewards_that_learn_are_part_of_a_run(model: Path, tmp_path: Path) -> None:
    """A user's own object and a built-in one: a round added later equals the longer run, in training and in evaluation."""
    for kind in ("plain", "running"):
        found = []
        for plan in ((2,), (1, 2)):
            out = tmp_path / f"{kind}-{len(plan)}"
            for rounds in plan:
                mine = tmp_path / f"{kind}_{len(plan)}.py"
                mine.write_text(HABITUAL)
                running = tmp_path / f"{kind}.yaml"
                running.write_text(f"reward: {mine}:reward\nrunning: true\n")
                spec = str(running) if kind == "running" else f"{mine}:reward"
                settings = tiny_settings(
                    model, run={"rounds": rounds}, reward_model={"enabled": False}, task={"reward": spec},
                    agent={"iterations": 2}, evaluation={"prompts": 4},
                )  # fmt: skip
                run = run_loop(build(settings), out, resume=True, progress=Progress(quiet=True))
            found.append((metrics_table(run.path), run.evaluation_file.read_text()))
        assert found[0] == found[1]
        states = json.loads((run.path / "round-2" / "reward_state.json").read_text())
        assert states[-1] == {"name": "Habitual", "state": {"learned": 32}}
