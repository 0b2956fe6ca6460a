"""Conversations: turns with a scripted user and with a language model, what is paid when, and what the policy is shown."""

from __future__ import annotations

import doctest
import pickle
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from chat_server import chat_server
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from tiny_models import LetterTokenizer, tiny_language_model
from toy_tasks import count_a, letter_task

import rlhf_gym  # noqa: F401
from rlhf_gym.embedded import EMBEDDED_LM
from rlhf_gym.envs import ConversationEnv, TurnEnv
from rlhf_gym.envs.conversation_users import as_user
from rlhf_gym.errors import ConfigError, ModelError, RewardError, TaskError
from rlhf_gym.judge.client import JudgeError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.tokenizer import HubTokenizer, load_tokenizer
from rlhf_gym.rewards.on_error import on_error
from rlhf_gym.tasks import Task, chat
from rlhf_gym.tasks.chat import render_messages
from rlhf_gym.tasks.samples import Prompt
from rlhf_gym.tasks.users import ModelUser, ScriptedUser

EOS, PAD, A, B = 0, 1, 2, 3
CONTINUE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def talk(user: Any = ("b", "c"), **options: Any) -> ConversationEnv:
    return ConversationEnv(letter_task(), LetterTokenizer(), user=user, **options)


def replies(messages: list[dict[str, str]], rng: np.random.Generator) -> str | None:
    """Says how many words it was told, and leaves at nothing."""
    return "x" * len(messages[-1]["content"]) or None


def test_examples_in_the_docstrings() -> None:
    result = doctest.testmod(chat)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("kind", ["text", "tokens"])
@pytest.mark.parametrize("reward_at", ["turn", "end"])
def test_passes_the_checker_without_a_warning(kind: str, reward_at: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("rlhf_gym/SentimentConversation-v0", format=kind, reward_at=reward_at).unwrapped)
    spec = gym.spec("rlhf_gym/SentimentConversation-v0")
    assert EnvSpec.from_json(spec.to_json()) == spec


def test_a_conversation_by_hand_paid_by_the_turn() -> None:
    env = talk(template="continuation")
    observation, info = env.reset(seed=3)
    prompt = env.prompt.text
    assert observation == prompt
    assert info == {"messages": [{"role": "user", "content": prompt}]}
    observation, reward, terminated, truncated, info = env.step("aab")
    assert (observation, reward, terminated, truncated) == (f"{prompt}aab\nb", 2.0, False, False)
    assert (info["response"], info["turn"], info["reward_terms"]) == ("aab", 1, {"count_a": 2.0})
    assert "ended_by" not in info
    observation, reward, terminated, _, info = env.step("a")
    assert (observation, reward, terminated) == (f"{prompt}aab\nba\nc", 1.0, False)
    observation, reward, terminated, _, info = env.step("")
    assert (observation, reward, terminated) == (f"{prompt}aab\nba\nc", 0.0, True)
    assert info["ended_by"] == "max_turns"
    assert [m["content"] for m in info["messages"]] == [prompt, "aab", "b", "a", "c", ""]
    with pytest.raises(gym.error.ResetNeeded, match="has ended"):
        env.step("a")


def test_paid_at_the_end_all_answers_are_scored_together() -> None:
    seen: list[dict[str, Any]] = []

    def reward(prompts: list[str], responses: list[str], **columns: list[Any]) -> list[float]:
        seen.append({"prompts": prompts, "responses": responses, **columns})
        return count_a(prompts, responses)

    env = talk(reward_at="end", reward=reward, user=["b"])
    env.reset(seed=3)
    assert env.step("aab")[1:3] == (0.0, False)
    _, total, terminated, _, info = env.step("a")
    assert (total, terminated, info["ended_by"]) == (3.0, True, "user")
    assert len(seen) == 1
    assert (seen[0]["prompts"], seen[0]["responses"], seen[0]["turn"]) == ([env.prompt.text], ["aab\na"], [2])
    assert seen[0]["messages"] == [info["messages"]]
    assert seen[0]["number"] == [env.prompt.columns["number"]]


def test_paid_by_the_turn_the_prompt_is_what_the_user_said_last() -> None:
    seen: list[tuple[str, str, int]] = []

    def reward(prompts: list[str], responses: list[str], messages: list[Any], turn: list[int]) -> list[float]:
        seen.append((prompts[0], responses[0], turn[0]))
        assert messages[0][-1] == {"role": "assistant", "content": responses[0]}
        return [0.0]

    env = talk(reward=reward)
    env.reset(seed=3)
    for answer in ("x", "y", "z"):
        env.step(answer)
    assert seen == [(env.prompt.text, "x", 1), ("b", "y", 2), ("c", "z", 3)]


def test_one_turn_is_the_turn_level() -> None:
    one = ConversationEnv("sentiment", user=["no more"], max_turns=1, template="continuation")
    turn = TurnEnv("sentiment")
    for seed in range(5):
        assert one.reset(seed=seed)[0] == turn.reset(seed=seed)[0]
        a, b = one.step(" is a joy."), turn.step(" is a joy.")
        assert a[:4] == b[:4]
        assert a[4]["reward_terms"] == b[4]["reward_terms"]


def test_tokens_are_the_shown_text_and_answers_end_at_eos() -> None:
    env = talk(format="tokens", template=CONTINUE)
    observation, _ = env.reset(seed=3)
    tokenizer = LetterTokenizer()
    shown = tokenizer.encode(env.prompt.text)
    assert observation["ids"][: observation["length"][0]].tolist() == shown
    observation, reward, *_ = env.step(np.array([A, B, A, EOS, A, A]))
    assert reward == 2.0
    shown += [A, B, A, *tokenizer.encode("b")]
    assert observation["ids"][: observation["length"][0]].tolist() == shown
    assert set(observation["ids"][len(shown) :].tolist()) == {PAD}
    assert env.step([A])[1] == 1.0
    with pytest.raises(gym.error.InvalidAction, match="28 is not a token id"):
        env.step([28])


def test_a_conversation_that_outgrows_its_room_ends_and_is_paid() -> None:
    env = talk(user=["b" * 40], template=CONTINUE, max_context=30)
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step("aa")
    assert (reward, terminated, truncated, info["ended_by"]) == (2.0, True, False, "room")
    assert observation == env.prompt.text + "aa"
    with pytest.raises(TaskError, match="takes 6 characters, more than max_context=5"):
        talk(template=CONTINUE, max_context=5)


def test_a_user_or_a_reward_that_fails_leaves_the_conversation_as_it_was() -> None:
    failing = {"user": True, "reward": True}

    def user(messages: list[dict[str, str]], rng: np.random.Generator) -> str:
        if failing.pop("user", False):
            raise ConnectionError("no user")
        return "b"

    def reward(prompts: list[str], responses: list[str]) -> list[float]:
        if failing.pop("reward", False):
            raise ConnectionError("no reward")
        return count_a(prompts, responses)

    env = talk(user=user, reward=reward)
    env.reset(seed=3)
    with pytest.raises(ConnectionError, match="no user"):
        env.step("a")
    with pytest.raises(RewardError, match="no reward"):
        env.step("ab")
    _, total, _, _, info = env.step("aab")
    assert (total, info["turn"]) == (2.0, 1)
    assert [m["content"] for m in info["messages"]] == [env.prompt.text, "aab", "b"]


def test_a_reward_may_leave_an_answer_out() -> None:
    def reward(prompts: list[str], responses: list[str]) -> list[float]:
        raise ConnectionError("no reward")

    env = talk(reward=on_error(reward, "skip"))
    env.reset(seed=3)
    with pytest.warns(UserWarning, match="leaving such samples out"):
        _, _, terminated, _, info = env.step("a")
    assert not terminated
    assert info["reward_skipped"] == "reward"


def test_lines_of_each_prompt_and_messages_before_it() -> None:
    history = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "aaaa"},
        {"role": "user", "content": "v"},
    ]
    prompts = [Prompt("v", {"user_lines": ["w"], "messages": history})]
    env = ConversationEnv(Task("t", prompts, reward=count_a), reward_at="end", template=CONTINUE)
    assert env.reset(seed=0)[0] == "uaaaav"
    assert env.step("a")[0] == "uaaaavaw"
    _, reward, terminated, _, info = env.step("ba")
    assert (reward, terminated, info["ended_by"]) == (2.0, True, "user")


def test_the_same_seed_gives_the_same_conversation() -> None:
    def run(env: Any) -> list[Any]:
        out = [env.reset(seed=7)[0]]
        done = False
        while not done:
            observation, reward, done, *_ = env.step("aa")
            out += [observation, reward]
        return out

    env = gym.make("rlhf_gym/SentimentConversation-v0").unwrapped
    first = run(env)
    assert run(env) == first
    assert run(pickle.loads(pickle.dumps(env))) == first
    assert first[2:] != first[:-2]


def test_random_lines_are_said_once_each() -> None:
    user = ScriptedUser(["x", "y"], order="random")
    rng = np.random.default_rng(0)
    said = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]
    lines = []
    while (line := user(said, rng)) is not None:
        lines.append(line)
        said += [{"role": "user", "content": line}, {"role": "assistant", "content": "r"}]
    assert sorted(lines) == ["x", "y"]


def test_a_language_model_as_the_user() -> None:
    model = LanguageModel.load("embedded")
    user = ModelUser(model, max_new_tokens=6, template="continuation", persona="a film lover speaks.\n")
    env = ConversationEnv("sentiment", user=user, max_turns=2, template="continuation")

    def reply(seed: int) -> str:
        env.reset(seed=seed)
        return str(env.step(" is a joy.")[4]["messages"][-1]["content"])

    assert reply(1) == reply(1)
    assert len({reply(seed) for seed in range(4)}) > 1
    ids, stop = user._prompt([{"role": "user", "content": "it"}, {"role": "assistant", "content": " is."}])
    assert model.tokenizer.decode(ids) == "a film lover speaks.\nit is.\n"
    assert stop == ("\n",)


def test_a_model_user_sees_the_end_of_what_it_cannot_see_whole() -> None:
    model = tiny_language_model(context=16)
    model.tokenizer.encode_prompt = lambda text: [A] * 40  # type: ignore[method-assign]
    said = ModelUser(model, max_new_tokens=4)([{"role": "assistant", "content": "x"}], np.random.default_rng(0))
    assert said is None or len(said) <= 4


def chat_tokenizer() -> HubTokenizer:
    tokenizer = load_tokenizer("embedded")
    tokenizer.hub.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
        "{% if messages[0].content == 'refuse' %}{{ raise_exception('no') }}{% endif %}"
    )
    return HubTokenizer(tokenizer.hub, str(EMBEDDED_LM))


def test_a_chat_model_is_shown_its_own_template() -> None:
    tokenizer = chat_tokenizer()
    env = ConversationEnv("sentiment", tokenizer, user=["why?"], format="tokens")
    observation, _ = env.reset(seed=0)
    text = f"[user]{env.prompt.text}[assistant]"
    assert observation["ids"][: observation["length"][0]].tolist() == tokenizer.encode_prompt(env.prompt.text)
    assert tokenizer.decode(observation["ids"][: observation["length"][0]]) == text
    observation, *_ = env.step(np.array(tokenizer.encode(" is fine.")))
    shown = tokenizer.decode(observation["ids"][: observation["length"][0]])
    assert shown == text + " is fine.[user]why?[assistant]"
    user = ModelUser(persona="kind")
    user.model = LanguageModel(LanguageModel.load("embedded").model, tokenizer, "chat")
    ids, _ = user._prompt(env.messages[:2])
    swapped = f"[system]kind[user]Please begin.[assistant]{env.prompt.text}[user] is fine.[assistant]"
    assert tokenizer.decode(ids) == swapped
    with pytest.raises(ModelError, match="refuses these messages: no"):
        tokenizer.encode_messages([{"role": "user", "content": "refuse"}])
    with pytest.raises(ModelError, match="has no chat template"):
        load_tokenizer("embedded").encode_messages([])


def test_users_by_function_list_mapping_and_name() -> None:
    said = [{"role": "assistant", "content": "abc"}]
    rng = np.random.default_rng(0)
    assert as_user(replies)(said, rng) == "xxx"
    assert as_user("test_env_conversation:replies")(said, rng) == "xxx"
    assert as_user(["first"])(said, rng) == "first"
    assert as_user({"lines": ["first"]})(said, rng) == "first"
    assert isinstance(as_user({"model": "embedded", "max_new_tokens": 3}), ModelUser)


def test_users_by_their_short_names(tmp_path: Path) -> None:
    said = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "abc"},
    ]
    rng = np.random.default_rng(0)
    (tmp_path / "lines.yaml").write_text("- why?\n- and?\n")
    (tmp_path / "any.json").write_text('{"lines": ["so?"], "order": "random"}')
    assert as_user(f"scripted:{tmp_path}/lines.yaml")(said, rng) == "why?"
    assert as_user(f"scripted:{tmp_path}/any.json")(said, rng) == "so?"
    model = as_user("lm:embedded")
    assert isinstance(model, ModelUser)
    assert model.model == "embedded"
    answers = iter(["go on", "well then [end] of it", " [end]", 401])
    with chat_server(lambda request: next(answers)) as server:
        user = as_user(f"chat:{server.url}")
        assert [user(said, rng), user(said, rng), user(said, rng)] == ["go on", "well then", None]
        with pytest.raises(JudgeError, match="refused with status 401"):
            user(said, rng)
        named = as_user({"chat": f"{server.url}#other", "persona": "You are a child.", "temperature": 0.5})
        answers = iter(["hm"])
        assert named(said, rng) == "hm"
    asked = server.requests
    assert [m["role"] for m in asked[0]["messages"]] == ["system", "user", "assistant", "user"]
    assert [m["content"] for m in asked[0]["messages"][1:]] == ["Please begin.", "u", "abc"]
    assert asked[0]["seed"] != asked[1]["seed"]
    assert (asked[-1]["model"], asked[-1]["temperature"], asked[-1]["messages"][0]["content"]) == (
        "other",
        0.5,
        "You are a child.",
    )


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ([], "needs a list of lines"),
        ([3], "needs a list of lines"),
        ("nowhere:user", "user 'nowhere:user': there is no module 'nowhere'"),
        ("alice", "no user 'alice'; expected scripted:FILE, lm:MODEL, chat:URL, web"),
        ("scripted:nowhere.yaml", "lines in nowhere.yaml cannot be read"),
        ("chat:localhost", "http:// or https:// address"),
        ({"chat": "http://localhost:1", "max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"words": []}, "needs 'lines', 'model', 'chat' or 'web', got 'words'"),
        ({"lines": ["a"], "size": 3}, "size"),
        ({"lines": ["a"], "order": "best"}, "'given' or 'random', got 'best'"),
        ({"model": "embedded", "template": "chat"}, "template must be one of continuation, lines, transcript"),
        ({"model": "embedded", "max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ],
)
def test_what_is_no_user_is_refused(user: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_user(user)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(TaskError, match="prompt 0 of task 'letters' has no list of texts in its column 'user_lines'"):
        talk(user=None)
    with pytest.raises(ConfigError, match="reward_at must be 'turn' or 'end'"):
        talk(reward_at="never")
    with pytest.raises(ConfigError, match="format must be"):
        talk(format="words")
    with pytest.raises(ConfigError, match="max_turns must be at least 1"):
        talk(max_turns=0)
    with pytest.raises(ConfigError, match="there is no template 'chatty'"):
        talk(template="chatty")
    with pytest.raises(ConfigError, match="cannot render these messages"):
        talk(template="{{ nothing.there }}")
    env = talk(user=lambda messages, rng: 3)
    with pytest.raises(gym.error.ResetNeeded, match="no episode was started"):
        env.step("a")
    env.reset(seed=0)
    with pytest.raises(TaskError, match=r"the user said 3 \(int\)"):
        env.step("a")


def test_what_is_rendered(capsys: pytest.CaptureFixture[str]) -> None:
    env = talk(render_mode="ansi")
    assert env.render() is None
    env.reset(seed=0)
    env.step("aa")
    prompt = env.prompt.text
    assert env.render() == f"user: {prompt}\nassistant: aa\nuser: b"
    human = talk(render_mode="human")
    human.reset(seed=0)
    human.step("aa")
    assert capsys.readouterr().out == f"user: {prompt}\nassistant: aa\nuser: b\n"


def test_transcripts_are_those_of_the_feedback_formats() -> None:
    from rlhf_gym.feedback.exchange.transcripts import transcript

    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "v"},
    ]
    assert render_messages(messages) == transcript(messages)
