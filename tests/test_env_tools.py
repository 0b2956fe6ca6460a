"""The environment with tools: what follows a call, what is scored, what a vector of them does, and masks that force calls."""

from __future__ import annotations

import threading
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from tiny_models import LetterTokenizer
from toy_tasks import count_a, letter_task
from waiting import LONG

from rlhf_gym.envs import ConversationEnv, ConversationVectorEnv, TokenVectorEnv, ToolEnv, ToolVectorEnv
from rlhf_gym.envs.tools import CallFormat, ToolCall, ToolError, as_tools
from rlhf_gym.errors import ConfigError, TaskError
from rlhf_gym.lm.tokenizer import load_tokenizer
from rlhf_gym.tasks import Task, load_task
from rlhf_gym.tasks.samples import Prompt


def twice(text: str) -> str:
    """Says a text twice."""
    if text == "no":
        raise ToolError("not that one")
    if text == "break":
        raise ConnectionError("gone")
    return text * 2


def tools(**options: Any) -> ToolEnv:
    return ToolEnv(letter_task(limit=32), tools=twice, template="continuation", instructions=False, **options)


def test_an_episode_by_hand() -> None:
    env = tools(max_turns=4)
    prompt, info = env.reset(seed=3)
    assert info == {"messages": [{"role": "user", "content": prompt}]}
    observation, reward, terminated, truncated, info = env.step("<twice>ba</twice>")
    assert (observation, reward, terminated, truncated) == (f"{prompt}<twice>ba</twice>\nbaba", 0.0, False, False)
    assert (info["tool"], info["calls"], info["answered"], info["reward_terms"]) == ("twice", 1, False, {})
    _, reward, terminated, _, info = env.step("<twice>ba")
    assert info["messages"][-1]["role"] == "tool"
    assert info["messages"][-1]["content"] == "error: The call of twice has no end. Expected: <twice>...</twice>"
    _, _, terminated, _, info = env.step('<twice much="1">no</twice>')
    assert info["messages"][-1]["content"].startswith("error: twice has no argument 'much'. Expected twice(text: text)")
    assert (info["calls"], info["failed_calls"], info["malformed_calls"], terminated) == (2, 1, 1, False)
    observation, reward, terminated, truncated, info = env.step("aaa")
    assert (reward, terminated, truncated) == (3.0, True, False)
    assert (info["ended_by"], info["answered"], info["reward_terms"]) == ("answer", True, {"count_a": 3.0})
    with pytest.raises(gym.error.ResetNeeded, match="has ended"):
        env.step("a")
    env.reset()
    assert env.step("<twice>no</twice>")[4]["messages"][-1]["content"] == "error: not that one"
    assert env.record.calls == 1  # counted from the episode's beginning


def test_the_last_turn_executes_nothing_and_is_no_answer() -> None:
    env = tools(max_turns=1)
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step("<twice>aaa</twice>")
    assert (reward, terminated, info["ended_by"], info["calls"]) == (0.0, True, "max_turns", 0)
    assert info["messages"][-1]["role"] == "assistant"
    assert info["reward_terms"] == {"count_a": 0.0}


def test_rewards_by_the_turn_know_the_calls() -> None:
    seen: list[dict[str, Any]] = []

    def reward(prompts: list[str], responses: list[str], **columns: list[Any]) -> list[float]:
        seen.append({"response": responses[0], **columns})
        return [float(columns["answered"][0]) - 0.5 * columns["malformed_calls"][0]]

    env = tools(reward=reward, reward_at="turn")
    env.reset(seed=0)
    assert [env.step(text)[1] for text in ("<twice>a</twice>", "<twice>", "a")] == [0.0, -0.5, 0.5]
    assert [(one["turn"], one["calls"], one["answered"], one["number"]) for one in seen] == [
        ([turn], [1], [turn == 3], [env.prompt.columns["number"]]) for turn in (1, 2, 3)
    ]
    assert seen[-1]["messages"][0][-1] == {"role": "assistant", "content": "a"}


def test_long_results_are_cut_and_second_calls_are_named() -> None:
    env = tools(max_result=4)
    env.reset(seed=0)
    info = env.step("<twice>abcd</twice><twice>a</twice>")[4]
    assert info["messages"][-1]["content"] == (
        "abcd [cut: 8 characters]\n[only the first call of a message is executed]"
    )
    small = tools(max_context=30)
    small.reset(seed=0)
    _, reward, terminated, _, info = small.step("<twice>abcdefgh</twice>")
    assert (reward, terminated, info["ended_by"]) == (0.0, True, "room")


def test_a_tool_that_fails_by_itself_leaves_the_episode_as_it_was() -> None:
    env = tools()
    env.reset(seed=0)
    with pytest.raises(TaskError, match="the tool 'twice' failed: ConnectionError: gone"):
        env.step("<twice>break</twice>")
    assert (env.turn, env.record.calls) == (0, 0)
    assert env.step("a")[1] == 1.0


def test_instructions_are_the_system_message() -> None:
    prompts = [Prompt("x", {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "x"}]})]
    env = ToolEnv(Task("t", prompts, reward=count_a), tools=twice)
    info = env.reset(seed=0)[1]
    assert info["messages"][0]["content"].startswith("Be kind.\n\nYou may use tools.")
    assert "- twice(text: text): Says a text twice." in info["messages"][0]["content"]
    own = ToolEnv(letter_task(), tools=twice, instructions="Use <twice>.")
    assert own.reset(seed=0)[1]["messages"][0] == {"role": "system", "content": "Use <twice>."}


def test_wrong_arguments_are_refused() -> None:
    refuse = "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    strict = "{% for m in messages %}" + refuse + "{{ m.content }}{% endfor %}"
    with pytest.raises(
        ConfigError, match=r"cannot show a tool's result in the role 'tool': .*no tools.*result_role='user'"
    ):
        ToolEnv(letter_task(), tools=twice, template=strict)
    ToolEnv(letter_task(), tools=twice, template=strict, result_role="user")
    with pytest.raises(ConfigError, match="call_format must be one of json, xml, code"):
        tools(call_format="yaml")
    with pytest.raises(ConfigError, match="max_result must be"):
        tools(max_result=0)
    with pytest.raises(ConfigError, match="result_role must be"):
        tools(result_role="system")


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_the_calculator_task_is_solved_by_its_reference(kind: Any) -> None:
    env = gym.make("rlhf_gym/Calculator-v0", format=kind, call_format="json").unwrapped
    assert isinstance(env, ToolEnv)
    tokenizer = load_tokenizer("embedded")
    for seed in range(5):
        env.reset(seed=seed)
        for _ in range(2):
            last = env.messages[-1]
            text = (
                last["content"]
                if last["role"] == "tool"
                else env.calls.write("calculator", env.prompt.columns["expression"])
            )
            _, reward, terminated, _, info = env.step(text if kind == "text" else np.array(tokenizer.encode(text)))
            assert info["response"] == text
        assert (reward, terminated) == (1.0, True)


@pytest.mark.parametrize("mode", ["next_step", "same_step", "disabled"])
def test_a_vector_does_what_single_environments_do(mode: str) -> None:
    single = [tools(max_turns=3) for _ in range(3)]
    vector = ToolVectorEnv(
        3,
        letter_task(limit=32),
        tools=twice,
        template="continuation",
        instructions=False,
        max_turns=3,
        autoreset_mode=mode,
    )
    observations, infos = vector.reset(seed=[4, 5, 6])
    assert observations == tuple(env.reset(seed=s)[0] for env, s in zip(single, (4, 5, 6), strict=True))
    assert [m[0]["content"] for m in infos["messages"]] == [env.prompt.text for env in single]
    script = [
        ["aa", "<twice>b</twice>", "<twice>"],
        ["a", "<twice>no</twice>", "ab"],
        ["a", "a", "aaa"],
        ["", "a", "a"],
    ]
    over = [False] * 3
    for actions in script:
        if mode == "disabled" and any(over):
            vector.reset(options={"reset_mask": np.array(over)})
            for i in np.flatnonzero(over):
                single[i].reset()
            over = [False] * 3
        found = vector.step(actions)
        for i, env in enumerate(single):
            if mode == "next_step" and over[i]:
                assert found[0][i] == env.reset()[0]
                assert (found[1][i], found[2][i]) == (0.0, False)
                over[i] = False
                continue
            observation, reward, over[i], _, info = env.step(actions[i])
            assert (found[1][i], found[2][i]) == (reward, over[i])
            if mode == "same_step" and over[i]:
                assert found[4]["final_obs"][i] == observation
                assert found[4]["final_info"]["ended_by"][i] == info["ended_by"]
                observation, over[i] = env.reset()[0], False
            else:
                assert found[4]["malformed_calls"][i] == info["malformed_calls"]
            assert found[0][i] == observation
    with pytest.raises(gym.error.InvalidAction, match="expected 3 messages, one a slot; got 2"):
        vector.step(["a", "a"])
    with pytest.raises(ValueError, match="got 2 seeds for 3 environments"):
        vector.reset(seed=[1, 2])


def test_slow_users_and_tools_of_all_slots_work_at_the_same_time() -> None:
    together = threading.Barrier(4)
    scored: list[int] = []

    def user(messages: list[dict[str, str]], rng: np.random.Generator) -> str:
        together.wait(LONG)  # passes only when all four wait here at once
        return f"b{rng.integers(9)}"

    def reward(prompts: list[str], responses: list[str]) -> list[float]:
        scored.append(len(prompts))
        return count_a(prompts, responses)

    vector = ConversationVectorEnv(4, letter_task(reward), user=user, max_turns=2, max_episode_steps=2)
    vector.reset(seed=1)
    first = vector.step(["a"] * 4)[4]["messages"]
    assert scored == [4]
    vector.reset(seed=1)
    assert vector.step(["a"] * 4)[4]["messages"].tolist() == first.tolist()  # whichever thread came first
    _, _, terminations, truncations, _ = vector.step(["a"] * 4)
    assert terminations.all()
    assert truncations.all()
    alone = ConversationEnv(letter_task(), user=lambda messages, rng: f"b{rng.integers(9)}")
    alone.reset(seed=1)
    assert alone.step("a")[4]["messages"] == first[0]


def test_an_error_in_one_slot_leaves_every_slot_as_it_was() -> None:
    vector = ToolVectorEnv(2, letter_task(limit=32), tools=twice, instructions=False)
    vector.reset(seed=0)
    with pytest.raises(TaskError, match="ConnectionError: gone"):
        vector.step(["a", "<twice>break</twice>"])
    assert [env.turn for env in vector.envs] == [0, 0]
    assert vector.step(["a", "aa"])[1].tolist() == [1.0, 2.0]


def test_a_limit_of_steps_truncates() -> None:
    env = gym.make_vec("rlhf_gym/Calculator-v0", num_envs=2, vector_kwargs={}, max_episode_steps=1)
    env.reset(seed=0)
    _, _, terminations, truncations, infos = env.step(["<calculator>1+1</calculator>", "2"])
    assert (terminations.tolist(), truncations.tolist()) == ([False, True], [True, True])
    assert infos["ended_by"].tolist() == [None, "answer"]


@pytest.mark.parametrize("kind", ["xml", "json", "code"])
def test_masks_force_a_well_formed_call(kind: Any) -> None:
    pytest.importorskip("outlines_core")
    calls = CallFormat(kind, as_tools(["calculator", twice]))

    class Ascii(LetterTokenizer):
        """A character a token, printable ASCII and the line feed."""

        name = "ascii"

        def __init__(self) -> None:
            super().__init__(2 + 96)

        def encode(self, text: str) -> list[int]:
            return [2 + (95 if c == "\n" else ord(c) - 32) for c in text]

        def decode(self, ids: Any) -> str:
            return "".join("\n" if i == 97 else chr(i + 30) for i in ids if i > 1)

    task = Task("calls", [Prompt("go")], reward=count_a, max_new_tokens=70)
    env = TokenVectorEnv(8, task, Ascii(), mask={"pattern": calls.pattern(answer="0|1")})
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    written: list[str] = []
    while len(written) < 32:
        masks = env.action_masks()
        *_, infos = env.step(np.array([rng.choice(np.flatnonzero(mask)) for mask in masks]))
        written += [text for text in infos.get("response", ()) if text is not None]
    found = [calls.parse(text) for text in written]
    assert {type(call) for call in found} == {ToolCall, type(None)}
    assert {call.tool for call in found if isinstance(call, ToolCall)} == {"calculator", "twice"}
    assert all(text.isdigit() for text, call in zip(written, found, strict=True) if call is None)


def test_names_that_gymnasium_knows() -> None:
    env = gym.make_vec("rlhf_gym/Calculator-v0", num_envs=2)
    assert isinstance(env.unwrapped, ToolVectorEnv)
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert isinstance(gym.make_vec("rlhf_gym/SentimentConversation-v0", num_envs=2).unwrapped, ConversationVectorEnv)
    assert load_task("calculation").tokenizer is None
