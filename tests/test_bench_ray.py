"""Runs on Ray: of two raylets one is killed half-way; nothing is lost, and nothing runs to its end twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from bench_suite import SUITE, Kept
from waiting import wait_until

from rlhf_gym.bench.cells import Selection
from rlhf_gym.bench.ray_runner import RayRuns
from rlhf_gym.bench.results import ResultsFolder
from rlhf_gym.bench.runner import run_suite
from rlhf_gym.bench.suite import parse_suite
from rlhf_gym.cli.main import main

pytest.importorskip("ray")

GATE = """
import os
import time
from pathlib import Path
from rlhf_gym.bench.contender import Trained

HERE = Path(__file__).parent

class Gate:
    "Waits for the file `go`, and says when it begins and when it is through."
    def train(self, bench):
        with (HERE / "begun").open("a") as file:
            file.write(f"{bench.cell.seed}:{os.getpid()}\\n")
        while not (HERE / "go").exists():
            time.sleep(0.05)
        with (HERE / "through").open("a") as file:
            file.write(f"{bench.cell.seed}\\n")
        return Trained(policy=bench.start)
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("RAY_worker_niceness", "0")  # other tests run beside this one
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "240")  # on a busy machine
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield found
    found.shutdown()


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_a_raylet_that_dies_costs_no_run(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "gate.py").write_text(GATE)
    suite = parse_suite(SUITE.replace("seeds: 2", "seeds: 3"), "tiny")
    whole = Selection.of(suite, agents=[f"{tmp_path / 'gate.py'}:Gate"])
    selection = Selection(suite, {"Gate": whole.agents["Gate"], "ppo": suite.agents["ppo"]}, whole.tasks, whole.seeds)
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            run_suite(selection, tmp_path / "out", Kept(), executor=RayRuns(cluster.address))
        except BaseException as error:
            failures.append(error)

    thread = Thread(target=work)
    thread.start()
    wait_until(lambda: failures or len(lines(tmp_path / "begun")) == 2)  # one on each raylet
    assert not failures
    pids = [int(line.partition(":")[2]) for line in lines(tmp_path / "begun")]
    cluster.remove_node(second, allow_graceful=False)
    wait_until(lambda: not all(map(runs, pids)))
    (tmp_path / "go").touch()
    thread.join()
    assert not failures
    results = ResultsFolder(tmp_path / "out").read()
    assert Counter((r["contender"], r["status"]) for r in results) == {("Gate", "done"): 3, ("ppo", "done"): 3}
    written = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert len(written) == 6
    assert sorted(lines(tmp_path / "through")) == ["0", "1", "2"]
    begun = Counter(line.partition(":")[0] for line in lines(tmp_path / "begun"))
    assert sum(begun.values()) == 4, "one was begun again"
    assert max(r["attempts"] for r in results) == 2


def test_no_cluster_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "run", "smoke", "--seeds", "1", "--out", str(tmp_path / "out"), "--ray", "127.0.0.1:1"]) == 2
    assert "no Ray cluster at '127.0.0.1:1'" in capsys.readouterr().err
