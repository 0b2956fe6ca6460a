"""`rlhf-gym check-reward` and `serve-reward`: what they print, how they end, what they refuse."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_gym.cli.main import main
from rlhf_gym.rewards.service.remote import RemoteReward
from rlhf_gym.rewards.spec import BUILT_IN, TOKEN_VARIABLE, load_reward

REWARD = "def shortness(prompts, responses):\n    return [-len(r) for r in responses]\n"


@pytest.fixture
def reward(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(REWARD)
    return f"{tmp_path}/mine.py:shortness"


def test_the_built_in_ones_are_listed_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(BUILT_IN)
    assert all(len(line.split()) > 4 for line in lines)
    assert not any("``" in line or ":class:" in line for line in lines)
    for name in BUILT_IN:
        assert main(["rewards", name]) == 0
        *_, example = capsys.readouterr().out.splitlines()
        given = yaml.safe_load(example)
        assert given.pop("reward") == name
        if name in ("length", "repetition", "vader", "rouge"):
            assert load_reward(name, **given).name == name  # the defaults as they stand there  # type: ignore[union-attr]
    assert main(["rewards", "regex"]) == 2
    assert "did you mean 'format'?" in capsys.readouterr().err


def test_a_mapping_as_the_reward(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-reward", "{reward: length, unit: characters, name: letters}", "--samples", "4"]) == 0
    assert "reward letters: 4 samples" in capsys.readouterr().out


def test_a_reward_is_tried_out(reward: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-reward", reward, "--samples", "8"]) == 0
    out, err = capsys.readouterr()
    assert "reward shortness: 8 samples" in out
    assert "look at this before training: 'empty' beats 100% of honest samples" in out
    assert "8 responses of embedded to prompts of task sentiment" in err


def test_a_tasks_own_reward_is_tried_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-reward", "--task", "words", "--samples", "4"]) == 0
    assert "reward coverage: 4 samples" in capsys.readouterr().out
    assert main(["check-reward"]) == 2
    assert "give a reward, or --task NAME" in capsys.readouterr().err


def test_a_reward_that_hangs_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text("import time\n\ndef hangs(prompts, responses):\n    time.sleep(600)\n")
    command = [
        sys.executable,
        "-m",
        "rlhf_gym",
        "check-reward",
        f"{tmp_path}/hangs.py:hangs",
        "--samples",
        "4",
    ]
    ran = subprocess.run([*command, "--time-limit", "0.5"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert "sample 0, prompt" in ran.stderr
    assert "reward 'hangs' did not return within 0.5 seconds for a batch of 1" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "Warning" not in ran.stderr  # what a library will be called with some day is no user's business


def test_strict_says_it_with_the_exit_code(reward: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-reward", reward, "--samples", "8", "--strict"]) == 1
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check-reward", "nonsense"], "there is no reward 'nonsense'"),
        (["check-reward", "sentiment", "--samples", "1"], "--samples must be at least 2, got 1"),
        (["check-reward", "sentiment", "--seed", "-1"], "--seed must be at least 0, got -1"),
        (["check-reward", "sentiment", "--time-limit", "0"], "a time limit must be above 0 seconds, got 0.0"),
        (["rate"], "say what to serve"),
        (["rate", "--serve", "x", "invite", "--store", "x"], "--serve does not go with invite"),
        (["check-reward", "sentiment", "--task", "poems"], "there is no task 'poems'"),
        (["check-reward", "sentiment", "--prompts", "none.txt"], "there is no file 'none.txt'"),
        (["serve-reward", "sentiment", "--port", "99999"], "cannot listen on 127.0.0.1:99999"),
        (["serve-reward", "sentiment", "--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_reward_is_served_to_another_process_until_interrupted(reward: str) -> None:
    environment = {**os.environ, TOKEN_VARIABLE: "secret"}
    command = [sys.executable, "-m", "rlhf_gym", "serve-reward", reward, "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert "serving reward 'shortness' at http://127.0.0.1:" in line
        assert "secret" not in line
        url = line.split(" at ")[1].split(",")[0]
        remote = RemoteReward(url, headers={"Authorization": "Bearer secret"})
        assert remote(["p", "p"], ["four", ""]) == [-4.0, 0.0]
        body: dict[str, Any] = {"query": ["abc"]}  # the convention of other trainers: prompt and response in one text
        request = urllib.request.Request(
            url, json.dumps(body).encode(), {"Authorization": "Bearer secret", "Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["rewards"] == [-3.0]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(urllib.request.Request(url, b"{}"))
        server.send_signal(signal.SIGINT)
        assert server.wait() == 130
        assert server.stderr is not None
        assert "Traceback" not in server.stderr.read()
