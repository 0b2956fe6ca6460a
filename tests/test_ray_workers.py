"""Rollout workers on Ray: what one process learns, whoever dies; and responses of older weights, within bounds."""

from __future__ import annotations

import csv
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from socket import socket
from threading import Lock
from typing import Any

import pytest
import torch
import yaml
from ppo_setups import Rows, letters_env, small_agent, weights
from stable_baselines3.common.logger import Logger
from tiny_models import LetterTokenizer
from tiny_run import command, save_tiny_model, tiny_settings
from toy_tasks import count_a, letter_task
from waiting import LONG, wait_until

from rlhf_gym.agents import GRPO, PPO, TRPO
from rlhf_gym.agents.common import share_queue
from rlhf_gym.agents.common.callbacks import IterationCallback
from rlhf_gym.agents.common.ray_packing import packed, unpacked
from rlhf_gym.agents.common.rollout import Episode
from rlhf_gym.agents.common.share_queue import MOST_ATTEMPTS, Drawn, Share, ShareQueue, cut
from rlhf_gym.cli.main import main
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.errors import ConfigError, RewardError, WorkerError
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.rounds import run_loop
from rlhf_gym.objects import load_object
from rlhf_gym.rewards import RunningStandardise
from rlhf_gym.rewards.spec import load_reward
from rlhf_gym.tasks.samples import Prompt

# A reward in a file of the user's. The file `plan` beside it has a process killed by the next call on a worker: `worker` the
# caller, a number the process of that id, once the run has as many rows.
TASTE = """
import os
import signal
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE / "run" / "metrics.csv"

def taste(prompts, responses):
    plan = HERE / "plan"
    try:
        text = plan.read_text()
        if text == "worker":
            plan.unlink()
    except FileNotFoundError:  # there is no plan, or another worker has carried it out
        text = ""
    if text == "fail":
        raise ValueError("no taste today")
    if text == "worker":
        os.kill(os.getpid(), signal.SIGKILL)
    elif text and TABLE.exists() and TABLE.read_bytes().count(b"\\n") > 5:
        plan.unlink()
        os.kill(int(text), signal.SIGKILL)
    return [response.count("a") + len(response) / 10 for response in responses]
"""
STALE = {"max_staleness": 1, "old_log_probs": "recompute", "importance_sampling": "token_truncate"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two raylets with a CPU each."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # other tests run beside this one
        patch.setenv("RAY_raylet_start_wait_time_s", "240")  # on a busy machine
        from ray.cluster_utils import Cluster

        small = {"num_cpus": 1, "object_store_memory": 2**27}
        found = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
        found.second = found.add_node(**small)
        yield found
        ray.shutdown()
        found.shutdown()


def env_of(folder: Path) -> Any:
    (folder / "taste.py").write_text(TASTE)
    task = letter_task(load_object(f"{folder}/taste.py:taste"), limit=8)
    prompts = [Prompt(one + other) for one in "abcdefghij" for other in "abcdefghij"]
    return make_sb3_env(16, task=replace(task, prompts=prompts), tokenizer=LetterTokenizer(), prompt_order="epochs")


class Watch(IterationCallback):
    """Keeps every rollout's episodes; after an iteration it does what was asked for."""

    def __init__(self, *then: Any) -> None:
        super().__init__()
        self.episodes: list[Episode] = []
        self.then = dict(enumerate(then, 1))

    def on_iteration_end(self, agent: Any) -> bool:
        self.episodes += agent.rollout.episodes
        self.then.get(agent.iteration, lambda agent: None)(agent)
        return True

    @property
    def responses(self) -> list[Any]:
        return [(e.prompt_ids, e.response_ids, e.rewards, e.ended) for e in self.episodes]


def learned(agent: Any, iterations: int, watch: Watch) -> list[dict[str, float]]:
    rows = Rows()
    agent.set_logger(Logger(None, [rows]))
    agent.learn(iterations=iterations, callback=watch, reset_num_timesteps=False)
    agent.close()
    return rows.rows


def hired(agent: Any) -> int:
    return len(agent.rollout_workers._pool._hired)


@pytest.mark.slow
def test_workers_do_what_one_process_does_whoever_dies(cluster: Any, tmp_path: Path) -> None:
    """A worker is killed, and then a whole machine with another one."""
    options: dict[str, Any] = {"n_episodes": 32, "learning_rate": 1e-2}
    one, two, alone = small_agent(PPO, env_of(tmp_path), **options), Watch(), Watch()
    expected = learned(one, 4, alone)

    def kill_a_worker(agent: Any) -> None:
        wait_until(lambda: hired(agent) == 2, "both workers")
        (tmp_path / "plan").write_text("worker")

    def remove_a_machine(agent: Any) -> None:
        assert not (tmp_path / "plan").exists()
        wait_until(lambda: hired(agent) == 2, "another worker in its place")
        cluster.remove_node(cluster.second, allow_graceful=False)

    agent = small_agent(PPO, env_of(tmp_path), ray=cluster.address, ray_workers=2, **options)
    two.then = {1: kill_a_worker, 2: remove_a_machine}
    rows = learned(agent, 4, two)
    assert two.responses == alone.responses
    assert sum(row["ray/restarts"] for row in rows) == 2
    assert {row["ray/max_staleness"] for row in rows} == {row["ray/dropped_episodes"] for row in rows} == {0.0}
    assert all(0 <= row[f"ray/{who}_idle_share"] <= 1 for row in rows for who in ("learner", "worker"))
    assert sum(row[f"ray/worker_{place}_tokens_per_second"] for row in rows for place in (0, 1)) > 0
    for mine, theirs in zip(expected, rows, strict=True):
        for name, number in mine.items():
            if not name.startswith("time/"):
                # Of some 450 tokens one may be clipped on one side only, by rounding.
                near = 5e-3 if "clipfrac" in name else 2e-4
                assert theirs[name] == pytest.approx(number, abs=near, rel=2e-3, nan_ok=True), name
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(agent)[name], weight, atol=1e-5, rtol=1e-4, msg=name)
    with pytest.raises(ConfigError, match=r"9 workers of 1 CPUs each do not fit into the cluster"):
        small_agent(PPO, ray=cluster.address, ray_workers=9).learn(1)


@pytest.mark.slow
def test_stale_responses_are_bounded_and_each_prompt_is_learned_once(cluster: Any, tmp_path: Path) -> None:
    """Across a checkpoint, too, with other workers after it."""
    options: dict[str, Any] = {"n_episodes": 16, "group_size": 4, "learning_rate": 1e-2}
    alone = Watch()
    learned(small_agent(GRPO, env_of(tmp_path), **options), 5, alone)
    stale = {"ray": cluster.address, "ray_workers": 2, "ray_cpus": 0.5, **STALE}
    watch, rest = Watch(), Watch()
    agent = small_agent(GRPO, env_of(tmp_path), **stale, **options)
    watch.then[2] = lambda agent: agent.save(tmp_path / "two")
    rows = learned(agent, 2, watch)
    resumed = GRPO.load(tmp_path / "two", env=env_of(tmp_path), ray_workers=1)
    held: list[Any] = []

    def go_on_badly(agent: Any) -> None:
        """From here on the reward fails."""
        held.extend(agent.rollout_workers.state()["episodes"])
        (tmp_path / "plan").write_text("fail")

    more = Rows()
    rest.then[4] = go_on_badly
    resumed.set_logger(Logger(None, [more]))
    with pytest.raises(RewardError, match=r"worker 0 on Ray: .*no taste today"):
        resumed.learn(iterations=7, callback=rest, reset_num_timesteps=False)
    resumed.close()
    rows += more.rows[:2]
    prompts = Counter(tuple(e.prompt_ids) for e in [*watch.episodes, *rest.episodes[:32]])
    table = resumed.env.env.episodes.prompts
    prompts += Counter(tuple(table.one(prompt)) for _, prompt in held)
    assert prompts == Counter(tuple(e.prompt_ids) for e in alone.episodes)
    assert len(held) == 16
    assert [row["ray/max_staleness"] for row in rows] == [0, 1, 0, 1]
    assert [row["ray/stale_episodes"] for row in rows] == [0, 16, 0, 16]
    assert rows[1]["mismatch/effective_sample_size"] < 0.9999
    with pytest.warns(UserWarning, match="16 episodes that workers on Ray had under way"):
        GRPO.load(tmp_path / "two", env=env_of(tmp_path), ray=None, max_staleness=0)


@pytest.mark.slow
def test_a_run_whose_learner_is_killed_goes_on(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny_model(tmp_path / "model")
    (tmp_path / "taste.py").write_text(TASTE)
    settings = tiny_settings(
        model, agent={"iterations": 6, "checkpoint_every": 2}, task={"reward": f"{tmp_path}/taste.py:taste"}
    )
    config, out = tmp_path / "c.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(settings))
    whole = run_loop(build(settings), tmp_path / "whole", progress=Progress(quiet=True))
    arguments = ["run", "--config", str(config), "--out", str(out), "--resume", "--ray", cluster.address]
    with subprocess.Popen(
        command(*arguments, "--ray-workers", "1"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as run:
        (tmp_path / "plan").write_text(str(run.pid))
        said, _ = run.communicate(timeout=LONG)
    assert run.returncode == -9, said.decode()
    assert main([*arguments, "--ray-workers", "2", "--set", "agent.ray_cpus=0.5"]) == 0, capsys.readouterr().err
    tables = [list(csv.DictReader((path / "metrics.csv").open())) for path in (whole.path, out)]
    for mine, theirs in zip(*tables, strict=True):
        for name, number in mine.items():
            near = 0.05 if "clipfrac" in name else 1e-3  # one of some 40 tokens, as above
            assert float(theirs[name] or "nan") == pytest.approx(
                float(number or "nan"), abs=near, rel=1e-2, nan_ok=True
            ), name
    assert all(float(row["ray/workers"]) >= 1 for row in tables[1])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (PPO, {"ray": "auto", "engine": "vllm:http://127.0.0.1:9"}, "engine='vllm:http://127.0.0.1:9' cannot be given, too"),
        (PPO, {"ray": "auto", "collect": "step"}, "leave collect='step' out"),
        (PPO, {"max_staleness": 1}, "give ray="),
        (PPO, {"ray": "auto", "max_staleness": 1}, "give old_log_probs='recompute' and importance_sampling"),
        (TRPO, {"ray": "auto", "max_staleness": 1}, "this agent has none"),
        (PPO, {"ray": "auto", "adaptive": True}, "learns from the scores of all responses"),
        (PPO, {"ray": "auto", "limited": True}, "must be stepped"),
        (PPO, {"ray": "127.0.0.1:1"}, "no Ray cluster at '127.0.0.1:1'"),
    ],
)  # fmt: skip
def test_what_workers_cannot_do_is_refused(
    kind: Any, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    env = letters_env(4)
    if options.pop("adaptive", False):
        env = make_sb3_env(4, task=letter_task(RunningStandardise(count_a)), tokenizer=LetterTokenizer())
    if options.pop("limited", False):
        env = make_sb3_env(4, task=letter_task(), tokenizer=LetterTokenizer(), max_episode_steps=5)
    with pytest.raises(ConfigError, match=re.escape(message)):
        small_agent(kind, env, batch_size=4, **options).learn(1)


def test_what_belongs_to_a_process_is_not_sent_and_locks_are_new() -> None:
    ray = pytest.importorskip("ray")
    lock = Lock()
    with lock:
        cached = unpacked(packed([load_reward({"reward": "length", "cache": 9}), lock], ray), "cpu")
    assert not cached[1].locked()
    assert list(cached[0](["p"], ["four"])) == [1.0]  # a word
    with socket() as connection, pytest.raises(ConfigError, match=r"cannot be sent to workers on Ray \(TypeError"):
        packed([connection], ray)


def drawn(share: Share, version: int) -> Drawn:
    return Drawn([Episode([number], [1], [0.0], [0.0], [0.0], True) for number in share.numbers], version, 0.0)


def begun(queue: ShareQueue) -> Share:
    share = queue.next()
    assert share is not None
    return share


def test_shares_are_whole_groups_and_come_back_where_they_are_lost_or_too_old() -> None:
    shares = cut(range(12), range(100, 112), 2, 4)
    assert [len(share.numbers) for share in shares] == [2, 4, 2, 4]
    assert [number for share in shares for number in share.numbers] == list(range(12))
    assert len(cut(range(4), range(4), 2, 9)) == 2
    queue = ShareQueue(2)
    queue.put(shares)
    first, second, third = (begun(queue) for _ in range(3))
    queue.finish(third, drawn(third, 1))
    queue.give_back(first, "its machine burned")
    assert queue.next() == first
    queue.finish(second, drawn(second, 0))
    asked = []

    def work() -> None:
        """What was drawn with version 0 is too old."""
        asked.append(queue.depth())
        while queue.depth()[1] < 4:
            share = begun(queue)
            queue.finish(share, drawn(share, 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(share_queue, "_LOOK_UP", 0.0)
        taken = queue.take(4, 1, work)
    assert [episode.prompt_ids[0] for episode in taken] == [2, 3, 6, 7]
    assert queue.dropped == 4
    assert queue.outstanding() == [(n, 100 + n) for n in (0, 1, 4, 5, 8, 9, 10, 11)]
    for _ in range(MOST_ATTEMPTS):
        queue.give_back(begun(queue), "out of memory")
    with pytest.raises(WorkerError, match=r"have cost 5 workers on Ray in a row, the last one by: out of memory"):
        queue.take(8, 0, lambda: None)
    queue.close()
    assert queue.next() is None
