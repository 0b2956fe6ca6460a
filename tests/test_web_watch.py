"""`rlhf-gym watch`: a run's page follows the run, whatever state that is in, keeps the reader's place, and writes nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_run import HOSTILE, build_run
from starlette.testclient import TestClient
from tiny_run import save_tiny_model, tiny_settings
from waiting import LONG, wait_until

from rlhf_gym.cli.main import main
from rlhf_gym.errors import RlhfGymError
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.iteration_times import IterationTimes, read_times
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.report.run_data import read_run
from rlhf_gym.loop.report.run_state import look, state_of
from rlhf_gym.loop.rounds import run_loop
from rlhf_gym.loop.run_directory import RunDirectory, is_locked, locked
from rlhf_gym.web.server import Address, PageServer
from rlhf_gym.web.watch import LivePage, create_watch_app, watching

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def word_of(run_dir: Path) -> tuple[str, str]:
    found = state_of(read_run(run_dir), look(run_dir))
    return found.word, found.words


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def finish(run_dir: Path, *stages: str) -> None:
    for folder in run_dir.glob("round-*"):
        (folder / "stages.json").write_text(json.dumps({stage: {"seconds": 1} for stage in stages}))


def add_iteration(run_dir: Path, more: str = "\n") -> None:
    """Another row of the table of metrics, as the last one; whole only with the line end."""
    table = run_dir / "metrics.csv"
    last = table.read_text().splitlines()[-1]
    with table.open("a") as file:
        file.write(last + more)


def add_columns(run_dir: Path, names: dict[str, float]) -> None:
    table = run_dir / "metrics.csv"
    head, *rows = table.read_text().splitlines()
    values = ",".join(map(str, names.values()))
    table.write_text("\n".join([f"{head},{','.join(names)}", *(f"{row},{values}" for row in rows), ""]))


def test_it_says_how_a_run_stands(tmp_path: Path) -> None:
    assert word_of(tmp_path / "later")[0] == "Waiting"
    run_dir = build_run(tmp_path / "run", stage="agent", rounds=1, iterations=9)
    finish(run_dir, "sample", "label", "fit")
    with locked(run_dir / ".lock", run_dir):
        assert word_of(run_dir) == ("Running", "It is at round 1 of 2, stage train, 9 iterations done.")
    assert word_of(run_dir)[0] == "Stopped"
    assert "killed" in word_of(run_dir)[1]
    (run_dir / "stopped.json").write_text(json.dumps({"why": "no room"}))
    assert "Why: no room." in word_of(run_dir)[1]
    (run_dir / "stopped.json").unlink()
    (run_dir / "round-2").mkdir()
    finish(run_dir, "sample", "label", "fit", "train", "evaluate")
    assert word_of(run_dir) == ("Finished", "All rounds are done.")


def test_looking_at_a_lock_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".lock"
    assert is_locked(path) is False
    assert not path.exists()
    with locked(path, tmp_path):
        assert is_locked(path) is True
    with path.open("rb") as file:
        fcntl = pytest.importorskip("fcntl")
        fcntl.flock(file.fileno(), fcntl.LOCK_SH)
        # Whoever looks lets go at once: within the first pause.
        monkeypatch.setattr(
            "rlhf_gym.loop.run_directory.time.sleep", lambda _: fcntl.flock(file.fileno(), fcntl.LOCK_UN)
        )
        with locked(path, tmp_path):
            pass


def test_the_page_is_made_only_when_something_changed_and_writes_nothing(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    page = LivePage(run_dir)
    client = TestClient(create_watch_app(page, hosts=("testserver",)))  # type: ignore[arg-type]
    assert "Nothing has been written yet" in client.get("/").text
    assert not run_dir.exists()
    build_run(run_dir, stage="agent", rounds=1, iterations=5)
    before, first = contents(run_dir), client.get("/version").text
    words = client.get("/").text
    assert f'data-version="{first}"' in words
    assert client.get("/").text == words
    assert client.get("/version").text == first
    assert page.made == 2
    assert contents(run_dir) == before
    add_iteration(run_dir, "")  # half of a line
    assert "<tr><td>6</td>" not in client.get("/").text
    with (run_dir / "metrics.csv").open("a") as file:
        file.write("\n")
    assert "<tr><td>6</td>" in client.get("/").text
    assert client.get("/version").text != first
    (run_dir / "round-1" / "reward_models.jsonl").write_text('{"iteration": 1}\n{"itera')
    assert "could not be read" not in client.get("/").text
    for path in ("/", "/version", "/nothing"):
        reply = client.get(path)
        assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"
    assert client.get("/nothing").status_code == 404
    assert client.get("/", headers={"host": "evil.example"}).status_code == 421
    assert client.post("/").status_code == 405


def test_workers_engines_and_speed_are_shown(tmp_path: Path) -> None:
    run_dir = build_run(tmp_path / "run", stage="agent", rounds=1, iterations=2)
    add_columns(run_dir, {"ray/staleness": 0.5, "ray/worker_0_tokens_per_second": 41.5, "ray/worker_11_tokens_per_second": 7,
                          "engine/resent": 2})  # fmt: skip
    times = IterationTimes(run_dir / "times.jsonl")
    for iteration in (1, 2):
        times.add(
            (1, iteration),
            {"time/tokens_per_second": 321.5, "time/learning_seconds": 2, "objective/kl": 1, "time/fps": 3},
        )
    run = read_run(run_dir)
    assert run.series("tokens_per_second") == [321.5, 321.5]
    assert [metric.key for metric in run.work] == ["ray/staleness", "engine/resent"]
    assert run.workers == {0: {"tokens_per_second": [41.5] * 2}, 11: {"tokens_per_second": [7.0] * 2}}
    html = LivePage(run_dir).html()
    for words in ("ray/staleness", "engine/resent", "worker 11", "tokens per second, mean", "Speed", "41.5"):
        assert words in html
    with times.path.open("a") as file:
        file.write('{"round": 1, "iter')
    times.keep_until((1, 1))
    assert read_times(times.path.read_text()) == [
        {"round": 1, "iteration": 1, "tokens_per_second": 321.5, "learning_seconds": 2.0}
    ]


def test_a_run_that_fails_says_why_and_one_that_goes_on_forgets_it(tmp_path: Path) -> None:
    """A real run: the reward fails in training, is mended, and the run ends."""
    sick = tmp_path / "sick"
    sick.touch()
    (tmp_path / "mine.py").write_text(
        "import pathlib\n\ndef length(prompts, responses):\n"
        f"    if pathlib.Path({str(sick)!r}).exists():\n"
        "        raise ValueError('the scale at http://me:hunter2@there is broken')\n"
        "    return [float(len(r)) for r in responses]\n"
    )
    settings = tiny_settings(
        save_tiny_model(tmp_path / "model"), task={"reward": f"{tmp_path / 'mine.py'}:length"},
        reward_model={"enabled": False}, agent={"iterations": 2}, evaluation={"prompts": 4, "judge": "none"},
    )  # fmt: skip
    out, config = tmp_path / "run", build(settings)
    with pytest.raises(RlhfGymError, match="the scale at"):
        run_loop(config, out, progress=Progress(quiet=True))
    word, words = word_of(out)
    assert word == "Stopped"
    assert "round 1 of 1, stage train, 0 of 2 iterations done" in words
    assert "the scale at http://there is broken" in words
    assert "hunter2" not in RunDirectory(out).stopped_file.read_text()
    sick.unlink()
    run_loop(config, out, resume=True, progress=Progress(quiet=True))
    assert not RunDirectory(out).stopped_file.exists()
    assert word_of(out)[0] == "Finished"
    rows = read_times((out / "times.jsonl").read_text())
    assert [(row["round"], row["iteration"]) for row in rows] == [(1, 1), (1, 2)]
    assert all(row["tokens_per_second"] > 0 and row["learning_seconds"] > 0 for row in rows)
    before = contents(out)
    assert "Speed" in LivePage(out).html()
    assert contents(out) == before


def test_the_command_serves_and_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").touch()
    assert main(["watch", str(tmp_path / "notes.txt")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert main(["watch", str(tmp_path)]) == 2
    assert "holds no run (it holds 'notes.txt'" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["watch", str(tmp_path / "run"), "--port", port]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"rlhf-gym: cannot listen on 127.0.0.1:{port}: ")
        assert said.count("\n") == 1
    monkeypatch.setattr(PageServer, "wait", lambda _: signal.raise_signal(signal.SIGINT))
    assert main(["watch", str(tmp_path / "run"), "--port", "0"]) == 130
    assert f"watching {tmp_path / 'run'} at http://127.0.0.1:" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    # Chromium's sandbox refuses to run as root, which is who tests in a container.
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


def until(page: Any, met: str) -> None:
    """Wait until an expression is true; the page looks for news at once, as it does when its tab comes to the front."""

    def looks() -> object:
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        return page.evaluate(met)

    wait_until(looks, met)


def test_in_a_browser_it_follows_the_run_and_keeps_the_readers_place(browser: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    context = browser.new_context(viewport={"width": 1280, "height": 700})
    context.set_default_timeout(1000 * LONG)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with watching(run_dir, Address(port=0)) as server:
        page.goto(server.url)
        assert page.title() == "Waiting · run · RLHF run"
        build_run(run_dir, rounds=1, iterations=12)
        with locked(run_dir / ".lock", run_dir):
            until(page, "document.title.startsWith('Running')")
            page.get_by_text("The numbers behind the curves").click()
            page.get_by_label("Show all 96 rows").check()
            page.get_by_role("button", name="Gold gain").click()
            gains = "[...document.querySelectorAll('.pairs tbody td:nth-child(6)')].map((cell) => Number(cell.dataset.value))"
            page.evaluate("document.querySelector('#frontier h2').scrollIntoView()")
            top = "document.querySelector('#frontier h2').getBoundingClientRect().top"
            height, stood = page.evaluate("document.documentElement.scrollHeight"), page.evaluate(top)
            page.evaluate("document.querySelector('#pairs').marked = true")
            add_columns(run_dir, {"ray/staleness": 0.5, "ray/worker_0_tokens_per_second": 40})
            add_iteration(run_dir)
            until(page, "document.querySelectorAll('#curves details tbody tr').length === 13")
            assert page.evaluate("document.documentElement.scrollHeight") > height + 100  # charts came in above
            assert abs(page.evaluate(top) - stood) < 2
            assert page.evaluate("document.querySelector('#curves details').open")
            assert page.evaluate(
                "document.querySelector('#pairs').marked"
            )  # nothing in it has changed: it was left alone
            assert page.evaluate(gains) == sorted(page.evaluate(gains), reverse=True)
            found = json.loads((run_dir / "evaluation.json").read_text())
            found["pairs"][0]["after"] = HOSTILE[0]
            (run_dir / "evaluation.json").write_text(json.dumps(found))
            until(page, "!document.querySelector('#pairs').marked")
            assert page.get_by_label("Show all 96 rows").is_checked()
            assert page.evaluate(gains) == sorted(page.evaluate(gains), reverse=True)
            page.locator("#curves .hit").first.hover()
            assert page.locator(".tip").inner_text().startswith("Iteration 1, round 1")
            if folder := os.environ.get("WATCH_SCREENSHOT"):
                page.screenshot(path=folder, full_page=True)
        until(page, "document.title.startsWith('Stopped')")
        assert page.locator("#state .problem").first.inner_text().startswith("Stopped. No process works on this run")
        assert said == []
        assert {url.removeprefix(server.url) for url in asked if not url.startswith("data:")} == {"/", "/version"}
        port = server.address.port
    until(page, "document.querySelector('#lost')")
    with PageServer(create_watch_app(LivePage(run_dir)), Address(port=port)):
        until(page, "!document.querySelector('#lost')")
    context.close()
