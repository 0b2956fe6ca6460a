"""Environments that answer late: others are decoded meanwhile, and no episode depends on who answers first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ppo_setups import collected
from talking import Letters, Script, letters_talk, talker
from tiny_models import family, tiny_language_model, tiny_seq2seq
from waiting import LONG

from rlhf_gym.agents import PPO, RLOO
from rlhf_gym.envs import ConversationEnv, ToolEnv
from rlhf_gym.envs.side_by_side import Beside
from rlhf_gym.envs.tools import Tool
from rlhf_gym.lm.decoding import CachedDecoder

MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": tiny_language_model,
    "window": lambda: family(
        "Mistral", vocab_size=28, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=6,
    ),
    "t5": tiny_seq2seq,
}  # fmt: skip


class Waits:
    """Makes environments, of which the first answers only once the others have answered so many times."""

    def __init__(self, answers: int) -> None:
        self.made, self.answers, self.enough = 0, 0, answers
        self.happened = threading.Condition()

    def __call__(self) -> Letters:
        self.made += 1
        return self.late() if self.made == 1 else self.counting()

    def late(self) -> Letters:
        waits = self

        class Late(Letters):
            def step(self, action: str) -> Any:
                with waits.happened:
                    assert waits.happened.wait_for(lambda: waits.answers >= waits.enough, LONG)
                return super().step(action)

        return Late()

    def counting(self) -> Letters:
        waits = self

        class Counting(Letters):
            def step(self, action: str) -> Any:
                found = super().step(action)
                with waits.happened:
                    waits.answers += 1
                    waits.happened.notify_all()
                return found

        return Counting()


def same_episodes(one: Any, other: Any) -> None:
    for a, b in zip(one.rollout.episodes, other.rollout.episodes, strict=True):
        assert (a.prompt_ids, a.response_ids, a.turns, a.rewards) == (b.prompt_ids, b.response_ids, b.turns, b.rewards)
        assert (a.end, a.ended, a.info) == (b.end, b.ended, b.info)
    for name in ("log_probs", "values", "bootstrap"):
        torch.testing.assert_close(getattr(one.rollout, name), getattr(other.rollout, name), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "answers", "options"),
    [
        ("gpt2", 3, {}),  # its row is held
        ("gpt2", 25, {}),  # and released: the others write more than the context
        ("gpt2", 6, {"on_overflow": "drop_oldest", "max_context": 17}),
        ("window", 3, {}),
        ("t5", 3, {}),
    ],
    ids=str,
)
def test_a_late_answer_holds_nobody_up_and_changes_nothing(kind: str, answers: int, options: dict[str, Any]) -> None:
    def agent(env: Any, slow: bool) -> Any:
        talk = letters_talk(4, env=env, slow=slow, min_new_tokens=1, max_turns=40, **options)
        kinds: dict[str, Any] = {"language_model": MODELS[kind](), "n_episodes": 16, "batch_size": 8}
        return talker(RLOO, talk, group_size=2, **kinds) if kind == "t5" else talker(PPO, talk, **kinds)

    slow, quick = agent(Waits(answers), True), agent(Letters, False)
    collected(slow)
    collected(quick)
    same_episodes(slow, quick)


def test_rows_are_held_while_others_go_on_and_released_before_they_cost_too_much() -> None:
    model = tiny_language_model()
    decoder = CachedDecoder(model)
    tokens = torch.randint(1, 28, (3, 60), generator=torch.Generator().manual_seed(0)).tolist()
    decoder.start([0, 1, 2], [row[:4] for row in tokens])
    held = 0
    for place in range(4, 50):
        decoder.append([1, 2], torch.tensor([tokens[1][place], tokens[2][place]]), held=[0])
        if held == place - 4 and 0 in decoder._row_of:
            held += 1
            copy = decoder.cache.lengths.tolist()
            assert copy[decoder._row_of[0]] == 4
        if place == 20:  # read on, with what is held and without
            found = decoder.extend([0, 1], [tokens[0][:7], [*tokens[1][:21], 5]])
            plain = [model.hidden(torch.tensor([row]))[0, -1] for row in (tokens[0][:7], [*tokens[1][:21], 5])]
            torch.testing.assert_close(found, torch.stack(plain), atol=2e-5, rtol=1e-4)
            break
    assert held == 17
    decoder.append([1, 2], torch.tensor([3, 4]))
    assert 0 not in decoder._row_of
    found = decoder.extend([0, 1], [tokens[0][:9], [*tokens[1][:21], 5, 3, 6]])
    plain = [model.hidden(torch.tensor([row]))[0, -1] for row in (tokens[0][:9], [*tokens[1][:21], 5, 3, 6])]
    torch.testing.assert_close(found, torch.stack(plain), atol=2e-5, rtol=1e-4)


def test_those_asked_at_the_same_token_answer_at_the_same_time() -> None:
    meeting = threading.Barrier(4, timeout=LONG)

    class Meets(Script):
        """Answers only once all four are asked."""

        slow = True

        def step(self, action: str) -> Any:
            meeting.wait()
            return super().step(action)

    slow, quick = (
        talker(PPO, letters_talk(4, env=env, min_new_tokens=4), n_episodes=8, batch_size=8) for env in (Meets, Script)
    )
    assert (slow.env.slow, quick.env.slow) == (True, False)
    collected(slow)
    collected(quick)
    same_episodes(slow, quick)


def test_an_error_of_a_late_answer_is_raised_and_the_next_episodes_begin_anew() -> None:
    class Fails(Letters):
        slow, fails = True, True

        def step(self, action: str) -> Any:
            if self.fails and len(self.heard) == 1:
                raise ConnectionError("the service is gone")
            return super().step(action)

    agent = talker(PPO, letters_talk(4, env=Fails), n_episodes=8, batch_size=8)
    with pytest.raises(ConnectionError, match="the service is gone"):
        agent.learn(1)
    Fails.fails = False
    agent.learn(1)
    assert len(agent.rollout.episodes) == 8


def test_an_episode_begins_once_the_answer_that_was_left_behind_is_there() -> None:
    asked, go_on, order = threading.Event(), threading.Event(), []

    class Slow(Script):
        def reset(self, **options: Any) -> Any:
            order.append("reset")
            return super().reset(**options)

        def step(self, action: str) -> Any:
            asked.set()
            assert go_on.wait(LONG)
            order.append("answer")
            return super().step(action)

    talk = letters_talk(1, env=Slow).talks[0]
    talk.begin(seed=0)
    answering = threading.Thread(target=lambda: talk.answer([3, 0]))
    answering.start()
    assert asked.wait(LONG)
    beginning = threading.Thread(target=lambda: talk.begin(seed=1))
    beginning.start()
    go_on.set()
    answering.join(LONG)
    beginning.join(LONG)
    assert order == ["reset", "answer", "reset"]
    assert [m["content"] for m in talk.messages] == ["x"]


def test_work_beside_is_taken_in_the_order_of_slots_with_the_first_error() -> None:
    for threads in (False, True):
        with Beside[str](threads) as beside:
            for slot in (3, 1, 2):
                beside.ask(slot, lambda slot=slot: f"of {slot}")  # type: ignore[misc]
            found: dict[int, str] = {}
            while beside.asked:
                found |= beside.take(wait=True)
            assert found == {slot: f"of {slot}" for slot in (1, 2, 3)}
            assert beside.take(wait=True) == {}


def test_environments_say_that_they_are_slow() -> None:
    def asks(messages: Any, rng: Any) -> str:
        return "why"

    options: dict[str, Any] = {"max_new_tokens": 3}
    assert not letters_talk(1, env=lambda: ConversationEnv("sentiment", user=asks), **options).slow
    asks.slow = True  # type: ignore[attr-defined]
    assert letters_talk(1, env=lambda: ConversationEnv("sentiment", user=asks), **options).slow
    assert letters_talk(1, env=lambda: ConversationEnv("sentiment", user="chat:http://localhost:1/v1"), **options).slow
    assert not letters_talk(1, env=lambda: ToolEnv("calculation"), template="transcript", **options).slow
    tool = Tool("wait", "Waits.", lambda: "done", slow=True)
    assert letters_talk(1, env=lambda: ToolEnv("calculation", tools=[tool]), template="transcript", **options).slow
