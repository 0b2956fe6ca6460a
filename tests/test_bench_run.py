"""`rlhf-gym bench`: runs are made once, kept, resumed; failures stay; what does not fit is refused; the report shows it all."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from bench_suite import SUITE, Kept, write_suite
from PIL import Image
from rich.console import Console

from rlhf_gym.bench import runner
from rlhf_gym.bench.cells import Selection, make_cell
from rlhf_gym.bench.compare import compare_sides
from rlhf_gym.bench.loop_contender import run_config
from rlhf_gym.bench.report_folder import read_leaderboard, write_bench_report
from rlhf_gym.bench.results import Attempt, ResultsFolder
from rlhf_gym.bench.runner import run_suite
from rlhf_gym.bench.suite import BASELINES, load_suite, parse_suite, suite_names, with_models
from rlhf_gym.cli.bench_progress import BenchProgress
from rlhf_gym.cli.main import main
from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.rounds import run_loop
from rlhf_gym.loop.run_directory import locked


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    write_suite(folder)
    return folder


@pytest.fixture(scope="module")
def out(place: Path) -> Path:
    """Results of all kinds of contenders, two seeds each, made by one command."""
    suite = load_suite(str(place / "tiny.yaml"))
    run_suite(Selection.of(suite, agents=agents_of(place)), place / "out", Kept())
    return place / "out"


def agents_of(place: Path) -> list[str]:
    return ["ppo", "sb3_ppo", *(f"{place / 'mine.py'}:{name}" for name in ("Mine", "Boom"))]


def by_contender(out: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for result in ResultsFolder(out).read():
        found.setdefault(result["contender"], []).append(result)
    return found


def test_every_contender_is_trained_to_the_budget_and_measured_alike(out: Path) -> None:
    found = by_contender(out)
    assert set(found) == {*BASELINES, "ppo", "Mine", "Boom", "sb3_ppo"}
    assert all(len(results) == 2 for results in found.values())
    for name in ("ppo", "Mine"):
        for result in found[name]:
            assert result["status"] == "done", result["error"]
            assert 300 <= result["tokens"] < 300 + 16 * 4  # the iteration that reaches it is the last
            assert result["optimizer_steps"] > 0
            assert result["curve"][-1][0] == result["tokens"]
            assert result["metrics"]["kl"] != 0  # an estimate: of 16 responses it may fall below 0
            assert result["versions"]["torch"]
            assert result["cpu_seconds"] > 0
    assert found["sb3_ppo"][0]["tokens"] == 16 * 64  # a rollout of its own
    assert found["sb3_ppo"][0]["metrics"]["kl"] is None  # its network is another one
    assert found["untrained"][0]["metrics"]["kl"] == 0
    assert found["untrained"][0]["metrics"]["win_rate"] == 0.5
    assert found["best_of_4"][0]["metrics"]["kl"] == pytest.approx(0.6363, abs=1e-4)  # log 4 - 3 / 4
    assert found["best_of_16"][0]["metrics"]["reward"] > found["untrained"][0]["metrics"]["reward"]
    assert found["sft_best"][0]["tokens"] >= 300
    assert found["sft_best"][0]["status"] == "done"
    prompts = {tuple(s["prompt"] for s in r["samples"]) for name, rs in found.items() for r in rs if r["samples"]}
    assert len(prompts) == 1  # all answer the same ones


class Stops(Progress):
    """Ends the process's work, as a kill would, once the second iteration is done."""

    def say(self, line: str) -> None:
        if line.startswith("round 1 PPO 2 "):
            raise KeyboardInterrupt


def test_a_run_to_a_budget_that_was_killed_ends_as_one_that_was_not(out: Path, place: Path, tmp_path: Path) -> None:
    suite = load_suite(str(place / "tiny.yaml"))
    cell = make_cell(suite, suite.problems[0], "ppo", suite.agents["ppo"], 0)
    whole = out / "runs" / cell.folder
    config = run_config(cell, {"name": str(whole / "start_model")}, "ppo")
    with pytest.raises(KeyboardInterrupt):
        run_loop(config, tmp_path / "run", progress=Stops(quiet=True))
    assert not (tmp_path / "run" / "round-1" / "policy").exists()
    run_loop(config, tmp_path / "run", resume=True, progress=Progress(quiet=True))
    assert (tmp_path / "run" / "metrics.csv").read_text() == (whole / "run" / "metrics.csv").read_text()
    with pytest.raises(ConfigError, match=r"agent.tokens \(5\) is the budget of a single round"):
        build({"agent": {"tokens": 5}, "run": {"rounds": 2}})


def test_failures_are_kept_with_their_reason(out: Path) -> None:
    found = by_contender(out)
    assert {r["status"] for r in found["Boom"]} == {"failed"}
    assert found["Boom"][0]["error"] == "RuntimeError: <script>alert(1)</script> no luck"
    assert found["Boom"][0]["attempts"] == 1


def test_what_is_made_is_not_made_again_and_what_was_lost_is(out: Path, place: Path) -> None:
    suite, folder = load_suite(str(place / "tiny.yaml")), ResultsFolder(out)
    before = folder.file.read_bytes()
    lines = before.splitlines(keepends=True)
    # The line of a run that ended while nobody wrote it down, and one that a kill cut short.
    lost = json.loads(lines[0])["run_id"]
    folder.file.write_bytes(b"".join(lines[1:-1]) + lines[-1][:40])
    kept = Kept()
    run_suite(Selection.of(suite, agents=agents_of(place)), out, kept)
    assert not kept.begins  # their results were in the runs' own folders
    assert lost in kept.ends
    assert len(kept.ends) == 2
    assert len(kept.earlier) == len(lines) - 2
    assert sorted(r["run_id"] for r in folder.read()) == sorted(json.loads(line)["run_id"] for line in lines)


def test_runs_that_hang_or_die_are_ended_and_the_next_one_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_suite(tmp_path, SUITE.replace("time_limit: 240", "time_limit: 1").replace("seeds: 2", "seeds: 1"))
    suite = load_suite(str(path))
    monkeypatch.setattr(runner, "MOST_ATTEMPTS", 1)
    whole = Selection.of(suite, agents=[f"{tmp_path / 'mine.py'}:{name}" for name in ("Hangs", "Dies")])
    one = {name: Selection(suite, {name: whole.agents[name]}, whole.tasks, whole.seeds) for name in ("Hangs", "Dies")}
    run_suite(one["Hangs"], tmp_path / "out", Kept())
    patient = load_suite(str(write_suite(tmp_path)))  # a time limit is no part of the hash
    run_suite(Selection(patient, one["Dies"].agents, whole.tasks, whole.seeds), tmp_path / "out", Kept())
    found = by_contender(tmp_path / "out")
    assert found["Hangs"][0]["status"] == "timeout"
    assert "time limit of 1 seconds" in found["Hangs"][0]["error"]
    assert found["Dies"][0]["status"] == "failed"
    assert "ended with code 9" in found["Dies"][0]["error"]


def test_failed_runs_are_made_again_if_wanted(out: Path, place: Path) -> None:
    suite, kept = load_suite(str(place / "tiny.yaml")), Kept()
    lines = len((out / "results.jsonl").read_text().splitlines())

    def execute(left: list[tuple[Any, Path]], watcher: Kept) -> Iterator[tuple[Any, dict[str, Any]]]:
        for cell, path in left:
            yield (
                cell,
                Attempt.begin(path).write_result(
                    cell, {"status": "failed", "error": "<script>alert(1)</script> no luck"}
                ),
            )

    run_suite(Selection.of(suite, agents=agents_of(place)), out, kept, executor=execute, retry_failed=True)
    assert len(kept.ends) == 2
    assert len((out / "results.jsonl").read_text().splitlines()) == lines + 2  # the old lines stay
    assert len(by_contender(out)["Boom"]) == 2


@pytest.mark.slow
def test_a_trainer_of_trl_competes(place: Path, tmp_path: Path) -> None:
    suite = load_suite(str(place / "tiny.yaml"))
    whole = Selection.of(suite, agents=["trl_grpo"], seeds=1)
    run_suite(Selection(suite, {"trl_grpo": whole.agents["trl_grpo"]}, whole.tasks, whole.seeds), tmp_path, Kept())
    result = by_contender(tmp_path)["trl_grpo"][0]
    assert result["status"] == "done", result["error"]
    assert 300 <= result["tokens"] < 300 + 64 * 4  # the rollout that reaches the budget is the last
    assert result["optimizer_steps"] == 4 * len(result["curve"])
    assert result["metrics"]["kl"] != 0
    assert result["curve"][-1][0] == result["tokens"]


def test_the_report_shows_everything_and_runs_nothing_that_models_wrote(out: Path, tmp_path: Path) -> None:
    board = read_leaderboard([out])
    written = write_bench_report(board, [out], tmp_path, pictures=True)
    html = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; no luck" in html
    for words in ("best_of_16", "Learning curves", "Reward and KL", "rlhf-gym bench run tiny", "run/config.yaml"):
        assert words in html
    assert "| Boom" in (tmp_path / "report.md").read_text()
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert len(rows) == len(board.results)
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "results.parquet")
    assert table.num_rows == len(rows)
    assert table.schema.field("reward").type == "double"
    svgs = [path for path in written if path.suffix == ".svg"]
    assert {path.stem for path in svgs} == {"leaderboard", "profiles", "curves-sort", "frontier-sort"}
    assert all(path.read_text().startswith('<svg xmlns="http://www.w3.org/2000/svg"') for path in svgs)
    for path in svgs:
        with Image.open(path.with_suffix(".png")) as picture:
            assert picture.width == 1120
            words = (0, 0, 240 if path.stem == "leaderboard" else 100, picture.height)  # left of what is drawn
            assert picture.convert("L").crop(words).getextrema()[0] < 128, path.stem


def test_two_sides_are_compared_by_pairs(out: Path) -> None:
    assert "identical: all 2 runs" in compare_sides(f"{out}:ppo", f"{out}:ppo")
    found = compare_sides(f"{out}:ppo", f"{out}:untrained")
    assert "all problems: " in found
    assert "2 seeds" in found
    with pytest.raises(ConfigError, match=r"no contender 'pppo'.*did you mean 'ppo'"):
        compare_sides(f"{out}:pppo", str(out))


def test_what_does_not_fit_is_refused_before_any_work(place: Path, out: Path) -> None:
    suite = load_suite(str(place / "tiny.yaml"))
    with pytest.raises(ConfigError, match=r"no suite 'smok'.*did you mean 'smoke'"):
        load_suite("smok")
    with pytest.raises(ConfigError, match=r"no agent 'gropo'.*did you mean 'grpo'"):
        Selection.of(suite, agents=["gropo"])
    with pytest.raises(ConfigError, match=r"no task 'sorrt'.*did you mean 'sort'"):
        Selection.of(suite, tasks=["sorrt"])
    with pytest.raises(ConfigError, match="no key 'taks'"):
        parse_suite(SUITE.replace("tasks:", "taks:"), "x")
    other = parse_suite(SUITE.replace("short: 300", "short: 301"), "x")
    with pytest.raises(ConfigError, match="holds results of suite 'tiny' version 3"):
        run_suite(Selection.of(other), out, Kept())
    changed = parse_suite(SUITE.replace("0.003}", "0.004}"), "x")
    assert changed.hash == suite.hash
    with pytest.raises(ConfigError, match="holds a run of ppo on sort with settings"):
        run_suite(Selection.of(changed), out, Kept())
    wrong = parse_suite(SUITE.replace("learning_rate: 0.003}", "learning_rat: 0.003}"), "x")
    with pytest.raises(ConfigError, match=r"contender ppo on sort: .*learning_rat"):
        run_suite(Selection.of(wrong), place / "new", Kept())
    assert not (place / "new").exists()
    with locked(out / ".lock", out), pytest.raises(ConfigError, match="another process is working on"):
        run_suite(Selection.of(suite), out, Kept())


def test_a_cell_names_everything_that_alters_its_result(place: Path) -> None:
    suite = load_suite(str(place / "tiny.yaml"))
    problem, entrant = suite.problems[0], suite.agents["ppo"]
    ids = {
        make_cell(suite, problem, "ppo", entrant, seed, part=part).run_id
        for seed in (0, 1)
        for part in ("test", "validation")
    }
    assert len(ids) == 4
    mine = Selection.of(suite, agents=[f"{place / 'mine.py'}:Mine"]).agents["Mine"]
    before = make_cell(suite, problem, "Mine", mine, 0).run_id
    with (place / "mine.py").open("a") as file:
        file.write("\n# another version\n")
    assert make_cell(suite, problem, "Mine", mine, 0).run_id != before


@pytest.mark.parametrize("name", suite_names())
def test_suites_that_come_along_load_and_fit(name: str) -> None:
    from rlhf_gym.bench.runner import check_cells

    suite = load_suite(name)
    assert set(BASELINES) <= set(suite.agents)
    check_cells(list(Selection.of(suite, seeds=1).cells()))


def test_a_model_of_a_suite_comes_from_elsewhere(place: Path) -> None:
    suite = load_suite("small-real")
    other = with_models(suite, ["smollm2=owner/name"])
    assert other.hash != suite.hash
    assert {cell.model["name"] for cell in Selection.of(other, seeds=1).cells()} == {"owner/name"}
    (place / "model").mkdir()
    given = f"smollm2={place / 'model'}:weights.gguf"
    assert with_models(suite, [given]).models["smollm2"]["name"] == f"{place / 'model'}:weights.gguf"
    for wrong, message in {"smollm2": "NAME=PLACE", "smolm2=x": "no model 'smolm2'; did you mean 'smollm2'"}.items():
        with pytest.raises(ConfigError, match=message):
            with_models(suite, [wrong])
    with pytest.raises(ConfigError, match="random weights"):
        with_models(load_suite("smoke"), ["small=x"])


def test_the_command_lists_and_reports(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "list"]) == 0
    assert "smoke (version" in capsys.readouterr().out
    assert main(["bench", "report", str(out)]) == 0
    assert "score [95%]" in capsys.readouterr().out
    assert main(["bench", "report", str(out / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_terminal_shows_a_table_and_a_pipe_lines(place: Path) -> None:
    cells = [c for c in Selection.of(load_suite(str(place / "tiny.yaml"))).cells() if c.contender == "ppo"]
    done = {"status": "done", "metrics": {"reward": 0.25, "kl": 1.0}, "wall_seconds": 3.0, "error": None}
    failed = {"status": "timeout", "metrics": {}, "wall_seconds": 3.0, "error": "too slow"}
    shown = {}
    for terminal in (True, False):
        out = StringIO()
        console = Console(file=out, force_terminal=terminal, width=100, markup=False, highlight=False)
        with BenchProgress(cells, console=console) as progress:
            progress.begun(cells[0])
            assert progress._cell(("ppo", "sort")) == "0/2 …"
            progress.ended(cells[0], done)
            progress.ended(cells[1], failed)
        with BenchProgress(cells, console=console) as progress:
            progress.found([(cells[0], done)])
            assert progress._cell(("ppo", "sort")) == "0.250 1/2"
            progress.ended(cells[1], done)
        shown[terminal] = out.getvalue()
    assert "0.250 2/2 1 failed" in shown[True]
    assert "1/2 sort ppo seed 0: reward 0.250, KL 1.00, 3 s" in shown[False]
    assert "2/2 sort ppo seed 1: timeout: too slow, 3 s" in shown[False]
    assert "1 of 2 runs have their results already\n2/2 sort ppo seed 1: reward 0.250" in shown[False]
