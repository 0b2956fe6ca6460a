"""Code of the user's own by its place: from Python, and from the console script in a process and folder of its own."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import save_tiny_model, tiny_settings

import rlhf_gym.objects
from rlhf_gym.errors import ConfigError, TaskError
from rlhf_gym.objects import load_object, place_in_code
from rlhf_gym.tasks import load_task

SCRIPT = Path(sys.executable).parent / "rlhf-gym"
CODE = {
    "my_words": "WANTED = 'e'\n",
    "my_task": """
        from rlhf_gym.tasks import Task
        from rlhf_gym.tasks.samples import Prompt

        def my_task(*, num_prompts=40):
            prompts = [Prompt(f"this film {n}") for n in range(num_prompts)]
            return Task(name="mine", prompts=prompts[::2], held_out=prompts[1::2], reward=length, max_new_tokens=6)

        def length(prompts, responses):
            return [float(len(r)) for r in responses]

        number = 3
        """,
    "my_reward": """
        import my_words  # the file beside it

        def score(prompts, responses):
            return [float(r.count(my_words.WANTED)) for r in responses]
        """,
    "my_rater": """
        import my_words
        from rlhf_gym.raters import SimulatedRater

        def make(*, reward, seed):
            return SimulatedRater(reward, seed=seed, name=f"mine-{my_words.WANTED}")
        """,
    "my_agent": """
        import my_words
        from rlhf_gym.agents import PPO

        class Mine(PPO):
            pass
        """,
    "broken": "x = 1\ny = x / 0\n",
    "lacking": "import no_such_library\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for name, code in CODE.items():
        (scratch / f"{name}.py").write_text(textwrap.dedent(code))
    yield scratch
    for name in CODE:  # another test's files of these names are other modules
        sys.modules.pop(name, None)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    return subprocess.run(
        [SCRIPT, *arguments], cwd=folder, capture_output=True, text=True, timeout=200, env=environment
    )


@pytest.mark.slow
@pytest.mark.parametrize("place", ["{0}:{1}", "./{0}.py:{1}"])
def test_a_run_takes_a_task_a_rater_and_an_agent_of_ones_own(folder: Path, tmp_path: Path, place: str) -> None:
    model = save_tiny_model(tmp_path / "model")
    own: dict[str, Any] = {
        "task": {"name": place.format("my_task", "my_task")},
        "rater": {"name": place.format("my_rater", "make")},
        "agent": {"name": place.format("my_agent", "Mine"), "iterations": 1},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(tiny_settings(model, **own)))
    done = run(folder, "run", "--config", "c.yaml", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["{0}:{1}", "{0}.py:{1}"])
def test_check_reward_takes_a_reward_and_a_task_of_ones_own(folder: Path, tmp_path: Path, place: str) -> None:
    model = save_tiny_model(tmp_path / "model")
    task = place.format("my_task", "my_task")
    done = run(
        folder, "check-reward", place.format("my_reward", "score"), "--task", task, "--model", str(model), "-n", "4"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "task.name=./my_task.py:my_tsk"], "task './my_task.py:my_tsk': there is no 'my_tsk' in ./my_task.py; did "
         "you mean 'my_task'?"),
        (["--set", "task.name=my_tsk:my_task"], "task 'my_tsk:my_task': there is no module 'my_tsk' installed or in"),
        (["--reward", "broken:f"], "reward 'broken:f' cannot be imported: ZeroDivisionError: division by zero [broken.py, "
         "line 2]"),
        (["--rater", "my_rate.py:make"], "rater 'my_rate.py:make': there is no file 'my_rate.py'"),
        (["--set", "agent.name=./lacking.py:A"], "No module named 'no_such_library' [lacking.py, line 1]"),
    ],
)  # fmt: skip
def test_the_console_script_says_what_is_wrong_in_one_message(folder: Path, arguments: list[str], message: str) -> None:
    done = run(folder, "run", "--quick", "--out", "out", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr


def test_files_are_named_in_every_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    places = ["my_task.py", "./my_task.py", f"{folder}/my_task.py", "~/my_task.py", "../scratch/my_task.py"]
    found = [load_object(f"{place}:my_task", kind="task") for place in places]
    assert all(one is found[0] for one in found)  # one file is one module: its classes are the same, and pickle
    assert pickle.loads(pickle.dumps(found[0])) is found[0]
    assert load_object("my_agent.py:Mine.learn")


def test_importing_leaves_the_path_with_the_folder_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user's function imports when it is called is found; nothing of the user's shadows anything from then on."""
    monkeypatch.setattr("sys.path", list(sys.path))
    before = list(sys.path)
    (folder / "late.py").write_text("def f():\n    import beside_late\n    return beside_late.x\n")
    (folder / "beside_late.py").write_text("x = 3\n")
    assert load_object(f"{folder}/late.py:f")() == 3
    assert sys.path == [*before, str(folder)]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("my_task.py", "names a file but no task in it; write my_task.py:NAME"),
        ("my_task.py:", "expected path/to/file.py:name or module:name"),
        (":f", "expected path/to/file.py:name or module:name"),
        ("my_task.py:not a name", "expected path/to/file.py:name or module:name"),
        ("./my_task:my_task", "'./my_task' is not the name of a module; of a file, write its .py, too"),
        ("my_taks.py:my_task", "there is no file 'my_taks.py' (in {folder}); did you mean 'my_task.py'?"),
        ("no/where.py:f", "there is no file 'no/where.py' (nor a folder {folder}/no)"),
        ("my_tasks:f", "there is no module 'my_tasks' installed or in {folder}; did you mean 'my_task'?"),
        ("my_task:number", "is of type int, expected a function, a class or a callable object"),
        ("math:tao", "there is no 'tao' in math; did you mean 'tau'?"),
        (
            "lacking:f",
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_library' [lacking.py, line 1]",
        ),
    ],
)
def test_each_failure_has_its_message(folder: Path, monkeypatch: pytest.MonkeyPatch, place: str, message: str) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(TaskError, match=re.escape(message.replace("{folder}", str(folder)))):
        load_object(place, kind="task", error=TaskError)
    with pytest.raises(ConfigError):
        load_object(place)
    assert load_object("my_task:number", call=False) == 3


def raised_in(*files: str | Path) -> BaseException:
    """An error raised in the last of some files, each of which calls the next."""
    inner: Any = None
    for file in reversed(files):
        space: dict[str, Any] = {"inner": inner}
        exec(compile("def f():\n    return inner() if inner else 1 / 0\n", str(file), "exec"), space)
        inner = space["f"]
    with pytest.raises(ZeroDivisionError) as error:
        inner()
    # Without this test's own frame, which is code of a user of the package, too.
    return error.value.with_traceback(error.tb.tb_next)


def test_an_errors_place_is_the_last_line_of_the_users_own_code() -> None:
    package = Path(rlhf_gym.objects.__file__).parent
    library = Path(sysconfig.get_paths()["stdlib"])
    mine = "/home/me/mine.py"
    for inside in (package / "text.py", package.parent / "envs" / "masks.py", package.parent / "agents" / "ppo.py"):
        assert place_in_code(raised_in(mine, inside)) == " [mine.py, line 2]"
    assert place_in_code(raised_in(mine, library / "json" / "decoder.py")) == " [mine.py, line 2]"
    assert place_in_code(raised_in(mine, f"{library}_of_mine/beside.py")) == " [beside.py, line 2]"
    assert place_in_code(raised_in(package / "text.py")) == ""


def test_a_factory_that_fails_or_makes_something_else_is_named_with_its_line(folder: Path) -> None:
    (folder / "bad.py").write_text("def fails():\n    return [][0]\n\n\ndef gives(n=1):\n    return n\n")
    with pytest.raises(TaskError, match=re.escape("IndexError: list index out of range [bad.py, line 2]")):
        load_task(f"{folder}/bad.py:fails")
    with pytest.raises(TaskError, match="gave an object of type int, expected a"):
        load_task(f"{folder}/bad.py:gives")
    with pytest.raises(TaskError, match="unexpected keyword argument 'm'"):
        load_task(f"{folder}/bad.py:gives", m=2)
