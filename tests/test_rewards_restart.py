"""A reward service that is killed in the middle of training and started again costs no step and changes no weight."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from held_port import held_port
from ppo_setups import LIMIT, NUM_ENVS, assert_same_weights, small_ppo, weights
from tiny_models import LetterTokenizer
from toy_tasks import count_a, letter_task

from rlhf_gym.envs import make_sb3_env
from rlhf_gym.rewards.service.remote import RemoteReward

SERVED = "def count_a(prompts, responses):\n    return [float(r.count('a')) for r in responses]\n"


@pytest.fixture
def port() -> Iterator[int]:
    with held_port() as held:
        yield held


def test_training_goes_on_where_it_was(tmp_path: Path, port: int) -> None:
    (tmp_path / "served.py").write_text(SERVED)
    command = [
        sys.executable,
        "-m",
        "rlhf_gym",
        "serve-reward",
        f"{tmp_path}/served.py:count_a",
        "--port",
        str(port),
    ]
    servers: list[subprocess.Popen[str]] = []

    def start() -> None:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        assert server.stdout.readline().startswith("serving reward")
        servers.append(server)

    remote = RemoteReward(f"http://127.0.0.1:{port}/score", patience=600)
    calls: list[int] = []
    restarts: list[threading.Thread] = []

    def far(prompts: list[str], responses: list[str]) -> list[float]:
        calls.append(len(responses))
        if len(calls) == 3:
            servers[-1].send_signal(signal.SIGKILL)
            servers[-1].wait()
            restarts.append(threading.Thread(target=start))
            restarts[0].start()  # takes seconds; the request is sent meanwhile, and again until somebody answers
        return remote(prompts, responses)

    def trained(reward: Any) -> Any:
        task = letter_task(reward, limit=LIMIT)
        agent = small_ppo(make_sb3_env(NUM_ENVS, task=task, tokenizer=LetterTokenizer(), seed=0))
        agent.learn(6 * NUM_ENVS * LIMIT)
        return agent

    try:
        start()
        disturbed = trained(far)
    finally:
        for thread in restarts:
            thread.join()
        for server in servers:
            server.kill()
            server.wait()
    assert len(servers) == 2
    assert servers[0].returncode == -signal.SIGKILL
    quiet = trained(count_a)
    assert disturbed.num_timesteps == quiet.num_timesteps
    assert disturbed.iteration == quiet.iteration == len(calls)
    assert_same_weights(weights(disturbed), weights(quiet))
