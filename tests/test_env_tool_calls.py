"""What a call looks like, what a calculator and a search say, and what a sandbox lets code do."""

from __future__ import annotations

import doctest
import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import LONG

import rlhf_gym.envs.tools.calculator
import rlhf_gym.envs.tools.call_format
import rlhf_gym.tasks.calculation
from rlhf_gym.envs.tools import (
    CallFormat,
    MalformedCall,
    PythonSandbox,
    Tool,
    ToolCall,
    ToolError,
    as_tools,
    calculate,
    python_tool,
    sandbox,
    search_tool,
)
from rlhf_gym.envs.tools.tool import run_tool
from rlhf_gym.errors import ConfigError, TaskError
from rlhf_gym.tasks import load_task

NO_SANDBOX = sandbox.no_sandbox()
needs_sandbox = pytest.mark.skipif(bool(NO_SANDBOX), reason=NO_SANDBOX or "there is one")


def shout(text: str, times: int = 1, loud: bool = False) -> str:
    """Says a text again.

    More than the policy is told.
    """
    return (text.upper() if loud else text) * times


TOOLS = as_tools(["calculator", shout])


@pytest.mark.parametrize(
    "module", [rlhf_gym.envs.tools.calculator, rlhf_gym.envs.tools.call_format, rlhf_gym.tasks.calculation]
)
def test_examples_in_the_docstrings(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("xml", "I add. <calculator> 2+3 </calculator> so", ToolCall("calculator", {"expression": "2+3"})),
        ("xml", '<shout times="2">hey</shout>', ToolCall("shout", {"text": "hey", "times": "2"})),
        ("xml", "<b>5</b> < 6", None),
        ("xml", "<calculator>1</calculator><shout>a</shout>", ToolCall("calculator", {"expression": "1"}, more=True)),
        ("json", '{"name": "shout", "arguments": {"text": "a}", "times": 2}}', ToolCall("shout", {"text": "a}", "times": 2})),
        ("json", '<tool_call>\n{"name": "shout", "arguments": {"text": ""}}\n</tool_call>', ToolCall("shout", {"text": ""})),
        ("json", '{"answer": 5} and {x}', None),
        ("code", "So:\n```calculator\n1 +\n2\n```\nis", ToolCall("calculator", {"expression": "1 +\n2"})),
        ("code", "```python\nprint(1)\n```", None),
        ("code", "5", None),
        ("xml", "", None),
    ],
)  # fmt: skip
def test_calls_and_answers_are_told_apart(kind: Any, text: str, expected: ToolCall | None) -> None:
    assert CallFormat(kind, TOOLS).parse(text) == expected


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("xml", "<calculator>2+3", r"The call of calculator has no end\. Expected: <calculator>12 \* \(3 \+ 4\)</calculator>"),
        ("xml", "<shout times=2>a</shout>", 'attributes of <shout> cannot be read: times=2. Expected name="value"'),
        ("xml", '<shout text="b">a</shout>', "stands between the tags"),
        ("code", "```calculator\n2+3", "has no end"),
        ("json", '{"name": "shout", "arguments": {"text": "a"}', r"not valid JSON \(.*Expected: \{\"name\""),
        ("json", '{"name": "sing", "arguments": {}}', "no tool 'sing'. The tools are: calculator, shout"),
        ("json", '{"name": 3}', "needs a name and an object of arguments"),
        ("json", '{"arguments": []}', "needs a name and an object of arguments"),
        ("json", "<tool_call>shout", "holds no JSON object"),
        ("json", '{"name": ' + "[" * 30_000, "longer than"),
        ("json", '{"name": ' + "[" * 19_000, "not valid JSON"),
        ("xml", f"<shout>{'a' * 20_001}</shout>", "longer than 20,000 characters"),
    ],
)  # fmt: skip
def test_malformed_calls_say_what_was_expected(kind: Any, text: str, message: str) -> None:
    found = CallFormat(kind, TOOLS).parse(text)
    assert isinstance(found, MalformedCall)
    with pytest.raises(ToolError, match=message):
        raise ToolError(found.message)


PIECES = [
    "<calculator>",
    "</calculator>",
    "```calculator\n",
    "\n```",
    '{"name": ',
    '"shout"',
    ', "arguments": {',
    "}",
    "[",
    "1+",
]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join))
def test_nothing_that_a_policy_writes_is_an_error(text: str) -> None:
    for kind in ("xml", "json", "code"):
        calls = CallFormat(kind, TOOLS)  # type: ignore[arg-type]
        call = calls.parse(text)
        if isinstance(call, ToolCall):
            with suppress(ToolError):
                run_tool(calls.tools[call.tool], call.arguments)
    with suppress(ToolError):
        calculate(text)


def test_what_a_call_is_written_is_read_again() -> None:
    for kind in ("xml", "json", "code"):
        calls = CallFormat(kind, TOOLS)  # type: ignore[arg-type]
        assert calls.parse(calls.write("shout", 'a "b"')) == ToolCall("shout", {"text": 'a "b"'})
        assert calls.example() in calls.instructions()
        assert (
            "shout(text: text, times: whole number, optional, loud: true or false, optional): Says a text again."
            in (calls.instructions())
        )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"text": "a", "times": "2", "loud": "true"}, "AA"),
        ({"text": 5}, "5"),
        ({"text": "a", "times": 1.5}, "'times' of shout must be whole number, got 1.5"),
        ({"text": "a", "times": "9" * 40}, "must be whole number"),
        ({"text": "a", "loud": "yes"}, "'loud' of shout must be true or false"),
        ({"times": 2}, r"shout needs the argument 'text'. Expected shout\(text: text"),
        ({"text": "a", "volume": 2}, "shout has no argument 'volume'"),
        ({"text": None}, "'text' of shout must be text, got None"),
    ],
)
def test_arguments_take_the_tools_types(arguments: dict[str, Any], expected: str) -> None:
    tool = TOOLS[1]
    if expected == "AA" or expected == "5":
        assert run_tool(tool, arguments) == expected
    else:
        with pytest.raises(ToolError, match=expected):
            run_tool(tool, arguments)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2**100", str(2**100)), ("-2**2", "-4"), ("2^-2", "0.25"), ("7//2 + 7%4", "6"), ("0.1+0.2", "0.3"),
        ("-1/8", "-0.125"), ("3 \u00d7 4 \u00f7 6 \u2212 1", "1"), ("min(3, 2, 5) * max(1, 2)", "4"),
        ("abs(-2) - round(2.6)", "-1"),
        ("1/10**600", "1E-600"), ("2**0.5", "1.41421356237"), ("8 - 3 - 2", "3"), ("2**3**2", "512"), ("2(3)", "(3|'\\(')"),
    ],
)  # fmt: skip
def test_the_calculator_is_exact(expression: str, value: str) -> None:
    if expression == "2(3)":
        with pytest.raises(ToolError, match=value):
            calculate(expression)
    else:
        assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("1/0", "Division by zero"), ("0**-1", "Division by zero"), ("5 % 0", "Division by zero"), ("9**9**9", "too large"),
        ("10**300**2", "too large"), ("*".join(["9**600"] * 9), "too large"), ("(" * 60, "more than 40 deep"),
        ("-" * 60 + "1", "more than 40 deep"), ("1" * 401, "at most 400"), ("__import__('os')", "Cannot read"),
        ("", "too early"),
        ("1 2", "'2' is not expected"), ("x", "'x' is not expected"), ("sqrt(-1)", "square root"),
        ("sqrt(1, 2)", "takes 1 value"),
        ("(-8)**0.5", "no power"), ("0x10", "Cannot read|not expected"), ("1e9", "'e' is not expected"),
    ],
)  # fmt: skip
def test_the_calculator_refuses_in_words(expression: str, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        calculate(expression)


def test_a_search_finds_passages_by_their_words(tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    (tmp_path / "rivers.md").write_text("# Rivers\n\nThe Danube flows through Vienna.\n\n" + "The Nile is long. " * 60)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "cities.txt").write_text("Paris lies on the Seine.")
    (tmp_path / "secret.key").write_text("Danube Danube")
    (tmp_path / "away.txt").symlink_to("/etc/passwd")
    tool = search_tool(tmp_path, count=2)
    found = run_tool(tool, {"query": "which river flows through vienna"})
    assert found.startswith("[1] rivers.md: # Rivers The Danube flows through Vienna.")
    assert "secret" not in found
    assert run_tool(tool, {"query": "seine", "count": "1"}) == "[1] sub/cities.txt: Paris lies on the Seine."
    assert run_tool(tool, {"query": "zebra"}) == "Nothing found."
    assert run_tool(tool, {"query": "root"}) == "Nothing found."  # the link leads out of the folder
    for wrong, message in (({"query": "the ?!"}, "no word"), ({"query": "a", "count": 99}, "must be in 1..20")):
        with pytest.raises(ToolError, match=message):
            run_tool(tool, wrong)
    assert run_tool(pickle.loads(pickle.dumps(tool)), {"query": "seine"}) == run_tool(tool, {"query": "seine"})
    assert run_tool(search_tool(["a fox", "a dog"]), {"query": "dog"}) == "[1] document 2: a dog"
    for documents, message in (
        ("nowhere", "no folder or file"),
        ([""], "no text to search"),
        ([3], "document 1 is int"),
    ):
        with pytest.raises(ConfigError, match=message):
            search_tool(documents)  # type: ignore[arg-type]


@needs_sandbox
def test_code_in_the_sandbox_prints_and_computes() -> None:
    tool = pickle.loads(pickle.dumps(python_tool()))
    assert run_tool(tool, {"code": "import math\nprint(math.comb(5, 2))\nmath.pi"}) == "10\n3.141592653589793"
    assert run_tool(tool, {"code": "x = 1"}) == "[nothing was printed]"
    assert "ZeroDivisionError" in run_tool(tool, {"code": "1/0"})
    assert "SyntaxError" in run_tool(tool, {"code": "def f(:"})
    assert run_tool(tool, {"code": "import sys; sys.exit(3)"}) == "[the code ended with status 3 and printed nothing]"
    assert run_tool(tool, {"code": "#" * 20_001}) == "The code has 20001 characters; at most 20000 are allowed."


@needs_sandbox
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import socket; socket.create_connection(('1.1.1.1', 53), 1)", "Network is unreachable"),
        ("import socket; s = socket.socket(); s.connect(('127.0.0.1', 1))", "refused|unreachable"),
        ("open('/etc/passwd').read()", "No such file"),
        (f"import os; os.listdir({str(Path(__file__).parent)!r})", "No such file|Permission denied"),
        ("open('/x', 'w')", "Read-only file system|Permission denied"),
        ("open('/dev/x', 'w')", "Read-only file system|Permission denied"),
        ("open('/tmp/x', 'wb').write(bytes(9 << 20))", "File too large"),
        ("for i in range(9): open(f'/tmp/{i}', 'wb').write(bytes(1 << 20))", "No space left"),
        ("bytearray(1 << 30)", "MemoryError"),
        ("import os\nfor i in range(9):\n if not os.fork(): import time; time.sleep(9)", "temporarily unavailable"),
        ("import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1))", "not allowed to raise"),
        ("import os; os.setuid(0)", "Operation not permitted|Invalid argument"),
        ("import os; print(sorted(set(os.environ) - {'PWD', 'LC_CTYPE'}))", r"^\[\]$"),
        ("import os; os.kill(os.getppid(), 9) or print(os.getpid() < 9)", "^True$|not permitted"),
        ("import numpy", "No module named"),
        ("while True: pass", r"^\[stopped after 1 seconds\]$"),
        ("import os, time\nos.setsid() if not os.fork() else 0\nprint('on', flush=True); time.sleep(99)", "stopped after 1"),
        ("while True: print('x' * 999)", "more than 500 characters were printed"),
        ("import os; os.close(1); os.close(2)", "printed nothing|nothing was printed"),
    ],
)  # fmt: skip
def test_what_code_must_not_do(code: str, expected: str) -> None:
    # Where it is not the time that ends the code, starting Python may take as long as it takes on a busy machine.
    found = PythonSandbox(seconds=1 if "stopped" in expected else LONG, output_characters=500).run(code)
    with pytest.raises(ToolError, match=expected):
        raise ToolError(found)
    assert len(found) < 600


@needs_sandbox
def test_what_the_code_has_started_ends_with_it() -> None:
    memory_mb = 300 + os.getpid() % 600  # known by its limit among the sandboxes of other tests that run at once
    code = "import os, time\nfor i in range(3):\n  if not os.fork(): os.setsid(); time.sleep(99)\nprint('started')"
    assert PythonSandbox(seconds=LONG, memory_mb=memory_mb).run(code) == "started"
    commands = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            commands.append((process / "cmdline").read_bytes().split(b"\0"))
    assert not [command for command in commands if str(memory_mb << 20).encode() in command]


def test_without_a_sandbox_code_is_refused_unless_one_insists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    sandbox.no_sandbox.cache_clear()
    try:
        with pytest.raises(TaskError, match=r"is not run here: there is no Bubblewrap .*unsafe_without_sandbox=True"):
            as_tools("python")
        insisted = PythonSandbox(seconds=LONG, unsafe_without_sandbox=True)
        hurried = PythonSandbox(seconds=1, unsafe_without_sandbox=True)
        assert insisted.run("import os; print(1, 'HOME' in os.environ)") == "1 False"
        assert hurried.run("while True: pass") == "[stopped after 1 seconds]"
        assert "MemoryError" in insisted.run("bytearray(1 << 30)")
    finally:
        monkeypatch.undo()
        sandbox.no_sandbox.cache_clear()


def no_docstring(text: str) -> str:
    return text


def many(*texts: str) -> str:
    """Takes several."""
    return texts[0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([], "no tools were given"),
        ("calculater", "no tool 'calculater'.*calculator"),
        (["calculator", "calculator"], "two tools have the name 'calculator'"),
        ({"calculator": {"size": 3}}, "options that it does not take"),
        ({"calculator": 3}, "must be a mapping"),
        ({"a": {}, "b": {}}, "has one key"),
        ([3], "3 is no tool"),
        (no_docstring, "needs a name and a docstring"),
        (many, r"takes \*texts"),
        ({"calculator": {"name": "My Tool"}}, "a tool's name must be"),
        ({"python": {"seconds": 0}}, "seconds must be a number above 0"),
        ({"python": {"memory_mb": 1}}, "memory_mb must be a whole number of at least 64"),
    ],
)
def test_what_is_no_tool_is_refused(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_tools(spec)


def test_a_tool_of_ones_own_by_place_and_by_hand() -> None:
    assert as_tools("test_env_tool_calls:shout")[0].name == "shout"
    assert [tool.name for tool in as_tools([{"calculator": {"name": "c"}}, shout])] == ["c", "shout"]
    broken = Tool("broken", "fails", lambda text: 1 / 0)
    with pytest.raises(TaskError, match="the tool 'broken' failed: ZeroDivisionError"):
        run_tool(broken, {"text": "a"})
    with pytest.raises(TaskError, match="returned list; expected a text"):
        run_tool(Tool("odd", "gives a list", lambda text: [text]), {"text": "a"})  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigError, match="has the type 'list'"):
        Tool("odd", "takes a list", shout, {"text": list})


def test_the_calculation_task_has_right_answers_and_held_out_prompts() -> None:
    task = load_task("calculation", terms=4, num_prompts=200)
    prompts = [*task.prompts, *task.held_out]
    assert len(prompts) == 200
    assert 20 < len(task.held_out) < 50
    assert not {p.text for p in task.prompts} & {p.text for p in task.held_out}
    for prompt in prompts:
        assert prompt.text == f"What is {prompt.columns['expression']}?"
        assert calculate(prompt.columns["expression"]) == prompt.columns["answer"]
    for options in ({"digits": 0}, {"terms": 1}, {"operators": "/"}, {"num_prompts": 0}):
        with pytest.raises(TaskError, match="must be"):
            load_task("calculation", **options)


def test_bubblewrap_is_there_in_ci() -> None:
    if os.environ.get("CI") and os.geteuid() == 0:
        assert shutil.which("bwrap"), "`.ci/run` installs it"
