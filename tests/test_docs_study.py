"""The study over several machines: the compose file's commands are the CLI's, and its processes work together."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from held_port import held_port
from postgres_server import PostgresServer
from tiny_run import save_tiny_model
from waiting import LONG, wait_until
from web_study import answer

from rlhf_gym.cli.commands import resolve
from rlhf_gym.cli.parser import make_parser
from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.loop.report.run_data import read_run
from rlhf_gym.loop.report.run_state import look, state_of
from rlhf_gym.loop.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "examples" / "study"
COMPOSE = (STUDY / "compose.yaml").read_text(encoding="utf-8")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE)["services"]
PAGE = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
VARIABLES = dict(
    line.split("=", 1) for line in (STUDY / "env.example").read_text().splitlines() if line and line[0] != "#"
)
STORE = "postgresql+psycopg://rlhf@database/rlhf"
OURS = [name for name, service in SERVICES.items() if service.get("command", [""])[0] == "rlhf-gym"]


def filled(text: str) -> str:
    """A text of the compose file with its variables as env.example has them."""
    return re.sub(r"\$\{(\w+)(:[-?][^}]*)?\}", lambda match: VARIABLES[match[1]], text)


def arguments(service: str, changes: Mapping[str, str] | None = None) -> list[str]:
    """A service's command after the program's name, with some of its arguments changed."""
    words = [filled(word) for word in SERVICES[service]["command"][1:]]
    for old in changes or {}:
        assert old in words
    return [(changes or {}).get(word, word) for word in words]


@pytest.mark.parametrize("service", OURS)
def test_its_commands_are_commands(service: str) -> None:
    options = make_parser().parse_args(arguments(service))
    if options.command == "run":
        resolve(options)


def test_nothing_is_left_unsaid() -> None:
    assert {"reward", "page", "watch", "learner", "online"} == set(OURS)
    used = set(re.findall(r"\$\{(\w+)", COMPOSE)) | set(re.findall(r"\{\$(\w+)\}", (STUDY / "Caddyfile").read_text()))
    table = dict(re.findall(r"^\| `([A-Z_]+)` \| (\S+) \|", PAGE, re.MULTILINE))
    assert used == set(VARIABLES) == set(table)
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE))
    assert defaults == {name: value.strip("`") for name, value in table.items() if value != "none"}
    assert defaults == {name: VARIABLES[name] for name in defaults}
    for name, service in SERVICES.items():
        lasts = name not in ("questions", "learner", "online")
        assert ("healthcheck" in service) == lasts, name
        for other, wanted in service.get("depends_on", {}).items():
            healthy = wanted["condition"] == "service_healthy"
            assert healthy == ("healthcheck" in SERVICES[other])
        for word in service.get("command", []):  # secrets stand in variables, not on a command line
            assert not re.search("PASSWORD|TOKEN|KEY", word)
        for volume in service.get("volumes", []):
            place = volume.split(":")[0]
            assert (STUDY / place).exists() if place[0] == "." else place in yaml.safe_load(COMPOSE)["volumes"]
    for line in re.findall(r"^docker compose .*--profile (\w+) up (\w+)", PAGE, re.MULTILINE):
        assert line[0] in SERVICES[line[1]]["profiles"]
    copied = re.findall(r"^COPY (.*) \S+$", (STUDY / "Containerfile").read_text(), re.MULTILINE)
    assert all((ROOT / name).exists() for line in copied for name in line.split())


def healthy(service: str, port: int) -> bool:
    """True if a service's own health check passes, at another port."""
    _, program, *rest = SERVICES[service]["healthcheck"]["test"]
    assert program == "python"
    check = [re.sub(r"(127\.0\.0\.1):\d+", rf"\1:{port}", word) for word in rest]
    return subprocess.run([sys.executable, "-S", *check], capture_output=True).returncode == 0


@contextmanager
def process(log: Path, words: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        started = subprocess.Popen(words, stdout=file, stderr=file, env=environment)
    try:
        yield started
    finally:
        started.terminate()
        started.wait(LONG)


def test_its_processes_work_together(tmp_path: Path, postgres: PostgresServer) -> None:
    url, rlhf_gym = postgres.new_url(), [sys.executable, "-m", "rlhf_gym"]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    environment |= {"PGPASSWORD": VARIABLES["STORE_PASSWORD"], "RLHF_GYM_REWARD_TOKEN": VARIABLES["REWARD_TOKEN"]}
    shutil.copytree(STUDY, tmp_path / "study")
    guidelines = {"/study/guidelines.md": str(tmp_path / "study" / "guidelines.md")}
    ask = arguments("questions", {STORE: url, "/study/ask.py": str(tmp_path / "study" / "ask.py"),
                                  "/study/questions.jsonl": str(tmp_path / "study" / "questions.jsonl")})  # fmt: skip
    asked = subprocess.run([sys.executable, *ask], env=environment, capture_output=True, text=True, timeout=LONG)
    assert asked.stdout == "8 questions in the store\n", asked.stderr
    with ExitStack() as stack:
        reward_port, page_port = stack.enter_context(held_port()), stack.enter_context(held_port())
        reward = arguments("reward", {"0.0.0.0": "127.0.0.1", "8000": str(reward_port), "sentiment": "length"})
        page = arguments("page", {STORE: url, "8722": str(page_port), **guidelines})
        running = {
            name: stack.enter_context(process(tmp_path / f"{name}.log", [*rlhf_gym, *words], environment))
            for name, words in (("reward", reward), ("page", page))
        }
        for name, port in (("reward", reward_port), ("page", page_port)):
            log = tmp_path / f"{name}.log"
            wait_until(lambda n=name, p=port: running[n].poll() is not None or healthy(n, p), name)  # type: ignore[misc]
            assert running[name].poll() is None, log.read_text()
        said, links = tmp_path / "page.log", re.compile(rf"raters: +https://{VARIABLES['PAGE_NAME']}/join/(\S+)\s")
        wait_until(lambda: links.search(said.read_text()), "the page prints its links")  # it answers before it prints
        link = links.search(said.read_text())
        assert link
        # What the proxy says of a request; the cookie is Secure then, so it is sent by hand.
        headers = {"host": VARIABLES["PAGE_NAME"], "x-forwarded-proto": "https"}
        with httpx2.Client(base_url=f"http://127.0.0.1:{page_port}", headers=headers) as rater:
            joined = rater.post("/join", data={"token": link[1]})
            assert "Secure" in joined.headers["set-cookie"]
            rater.headers["cookie"] = joined.headers["set-cookie"].split(";")[0]
            for _ in range(8):
                assert answer(rater, "a2").status_code == 303
        with FeedbackStore(url, read_only=True) as store:
            assert store.count().judgements == 8
        model, out = save_tiny_model(tmp_path / "model"), tmp_path / "learned"
        learner = arguments("learner", {STORE: url, "embedded": str(model), "/runs/learned": str(out),
                                        "http://reward:8000/score": f"http://127.0.0.1:{reward_port}/score"})  # fmt: skip
        learner += shlex.split("--set task.max_new_tokens=4 --set evaluation.judge=none --set run.threads=1")
        done = subprocess.run([*rlhf_gym, *learner], env=environment, capture_output=True, text=True, timeout=LONG)
        assert done.returncode == 0, done.stderr
    assert state_of(read_run(out), look(out)).word == "Finished"
    found = read_run(out)
    assert found.evaluated("gold_after") is not None  # scored by the service
    assert RunDirectory(out).config().agent.settings["loss"] == "dpo"
    for file in out.rglob("*"):  # no secret is written
        assert not file.is_file() or VARIABLES["REWARD_TOKEN"].encode() not in file.read_bytes()
