"""Agents in conversations: whose tokens are learned from, what they are worth, and what the policy reads before each turn."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ppo_setups import assert_same_weights, collected, learn, small_ppo, weights
from stable_baselines3.common.vec_env import VecMonitor
from talking import PLAIN, Script, letters_talk, talker
from test_response_text import bytes_hub, llama_hub
from tiny_models import LetterTokenizer, family, tiny_language_model, tiny_seq2seq
from toy_tasks import count_a

from rlhf_gym.agents import GRPO, PPO, REINFORCE, RLOO
from rlhf_gym.agents.common.advantages import gae
from rlhf_gym.agents.common.forward import micro_batches, pack_episodes, rollout_log_probs
from rlhf_gym.agents.common.minibatch import accumulate_gradient
from rlhf_gym.agents.common.rollout import Episode, Rollout, Turn
from rlhf_gym.agents.common.turn_credit import group_relative_turns, per_turn, turn_rewards
from rlhf_gym.envs import ConversationEnv, TurnEnv, make_conversation_env, make_sb3_env, wrap_text_env
from rlhf_gym.errors import ConfigError, RewardError, TaskError
from rlhf_gym.lm.sequences import response_positions
from rlhf_gym.lm.tokenizer import HubTokenizer
from rlhf_gym.tasks import Conversation, Task
from rlhf_gym.tasks.samples import Prompt
from rlhf_gym.tasks.turn_template import TurnTemplate


def dialogue(rewards: list[float], **options: Any) -> Rollout:
    """Two turns, of two tokens and of one, with values 0.5, 1 and 2."""
    turns = (Turn([5, 6], 2, True), Turn([7], 1))
    logs, values = [-1.0, -1.0, -1.0], [0.5, 1.0, 2.0]
    return Rollout.of([Episode([5, 6], [8, 9, 10], logs, values, rewards, True, turns=turns, **options)])


def test_the_advantages_of_two_turns_by_hand() -> None:
    rollout = dialogue([0.0, 1.0, 3.0])
    given = (rollout.rewards, rollout.values, rollout.mask)
    # Per token: deltas 0 + .5*1 - .5 = 0; 1 + .5*2 - 1 = 1; 3 - 2 = 1; A3 = 1, A2 = 1 + .25*1 = 1.25, A1 = 0 + .25*1.25.
    advantages, returns = gae(*given, gamma=0.5, gae_lambda=0.5)
    assert advantages.tolist() == [[0.3125, 1.25, 1.0]]
    assert returns.tolist() == [[0.8125, 2.25, 3.0]]
    # Per turn: between tokens 1 and 2 nothing is discounted; deltas 1 - .5 = .5; 1 + .5*2 - 1 = 1; 1.
    gamma = gae_lambda = per_turn(rollout, 0.5)
    assert gamma.tolist() == [[1.0, 0.5, 0.5]]
    advantages, _ = gae(*given, gamma=gamma, gae_lambda=gae_lambda)
    assert advantages.tolist() == [[1.75, 1.25, 1.0]]
    # Cut by a limit, with 4 to come: the last delta is 3 + .5*4 - 2 = 3.
    advantages, _ = gae(*given, gamma=gamma, gae_lambda=gae_lambda, bootstrap=torch.tensor([4.0]))
    assert advantages.tolist() == [[2.25, 1.75, 3.0]]
    sums, there = turn_rewards(rollout, rollout.rewards)
    assert (sums.tolist(), there.tolist()) == ([[1.0, 3.0]], [[True, True]])


def test_turns_are_compared_in_their_group_by_hand() -> None:
    one, other = dialogue([0.0, 1.0, 3.0]).episodes[0], dialogue([0.0, 0.0, 0.0]).episodes[0]
    single = replace(
        other, response_ids=[8], log_probs=[-1.0], values=[0.0], rewards=[2.0], turns=(Turn([5, 6], 1, True),)
    )
    rollout = Rollout.of([one, single, other, other])
    # Turns 1, 3 and 2 of the first group: mean 2. Those of the second are equal.
    found = group_relative_turns(rollout, rollout.rewards, 2, "none")
    assert found.tolist() == [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    scaled = group_relative_turns(rollout, rollout.rewards, 2, "group", epsilon=1.0)
    assert scaled[0].tolist() == [0.0, 0.0, 0.5]  # the standard deviation of 1, 3 and 2 is 1


def test_a_trajectory_in_segments() -> None:
    episode = dialogue([0.0, 1.0, 3.0]).episodes[0]
    assert [(s.ids, s.ours) for s in episode.segments] == [([5, 6], False), ([8, 9], True), ([7], False), ([10], True)]
    single = Episode([5, 6], [8], [-1.0], [0.0], [1.0], True)
    assert [(s.ids, s.ours) for s in single.segments] == [([5, 6], False), ([8], True)]


def test_no_gradient_on_tokens_of_others() -> None:
    agent = talker(PPO, vf_coef=0.0)
    collected(agent)
    rollout, model = agent.rollout, agent.policy.language_model
    rows = list(range(len(rollout.episodes)))
    batch = pack_episodes(agent.policy, rollout.episodes)
    states: list[torch.Tensor] = []
    real = model.hidden

    def watched(*args: Any, **options: Any) -> torch.Tensor:
        hidden = real(*args, **options)
        hidden.retain_grad()
        states.append(hidden)
        return hidden

    def loss() -> float:
        agent.policy.optimizer.zero_grad()
        table, _ = accumulate_gradient(
            agent.policy, rollout, rows, agent.losses, agent.coefficient, aggregation="token", tokens_per_batch=10**6,
            entropy=False, where="here",
        )  # fmt: skip
        return table["loss"]

    model.hidden = watched  # the last layer's states, each of which predicts one token
    before = loss()
    order = sorted(range(len(rows)), key=lambda i: -rollout.totals[i])
    grads = states[0].grad
    assert grads is not None
    ours = torch.zeros(grads.shape[:2], dtype=torch.bool)
    places = batch.response_mask.nonzero()
    ours[places[:, 0], batch.predicted_from[places[:, 0], places[:, 1]]] = True
    ours = ours[order]
    assert int((~ours).sum()) > 50
    assert grads[~ours].abs().max() == 0  # exactly
    assert (grads[ours].abs().amax(-1) > 0).float().mean() > 0.9
    # The labels of others' tokens are in no table that a loss reads: only what the policy reads may depend on them.
    labels = set(batch.responses[batch.response_mask].tolist())
    foreign = [token for e in rollout.episodes for s in e.segments if not s.ours for token in s.ids]
    assert labels.isdisjoint(set(foreign) - labels)
    assert len(batch.responses[batch.response_mask]) == sum(rollout.lengths)
    assert loss() == before


def test_one_turn_is_what_agents_learn_from_single_responses() -> None:
    task = Task("one", [Prompt("abc")], reward=count_a, max_new_tokens=6, min_new_tokens=2)
    options = {"n_episodes": 16, "batch_size": 8, "kl_coef": 0.05, "n_epochs": 2}
    plain = small_ppo(make_sb3_env(16, task=task, tokenizer=LetterTokenizer()), **options)
    talk = wrap_text_env(
        lambda: TurnEnv(task),
        16,
        tokenizer=LetterTokenizer(),
        template=PLAIN,
        max_new_tokens=6,
        min_new_tokens=2,
        max_context=9,
    )
    turns = small_ppo(talk, **options)
    rows, same = learn(plain, 400), learn(turns, 400)
    assert_same_weights(weights(plain), weights(turns))
    assert {e.end for e in turns.rollout.episodes} == {"terminated"}
    for row, other in zip(rows, same, strict=True):
        for name in (
            "objective/scores",
            "objective/kl",
            "loss/policy_avg",
            "eos_rate",
            "response_length",
            "ended_rate",
        ):
            assert row[name] == other[name]


FAMILIES = {
    "gpt2": tiny_language_model,
    "llama": lambda: tiny_language_model("llama"),
    "window": lambda: family(
        "Mistral", vocab_size=28, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=6,
    ),
    "bloom": lambda: family("Bloom", vocab_size=28, hidden_size=32, n_layer=2, n_head=4),  # no cache at all
    "t5": tiny_seq2seq,
}  # fmt: skip


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("env", [{}, {"chat": False}, {"on_overflow": "drop_oldest", "max_context": 17}], ids=str)
def test_generation_equals_the_pass_that_learns(kind: str, env: dict[str, Any]) -> None:
    model = FAMILIES[kind]()
    talk = letters_talk(6, min_new_tokens=2, **env)
    agent = talker(RLOO, talk, language_model=model, n_episodes=12, group_size=2, kl_coef=0.0)
    collected(agent)
    rollout = agent.rollout
    if kind != "bloom" and kind != "t5":
        assert model.slots_work is not False
        assert env.get("chat") is False or model.extension_works
    again = rollout_log_probs(agent.policy, model, rollout, 300)
    torch.testing.assert_close(again, rollout.log_probs, atol=2e-5, rtol=1e-4)
    assert sum(len(e.turns) > 1 for e in rollout.episodes) > 4
    positions = response_positions(pack_episodes(agent.policy, rollout.episodes)).tolist()
    assert positions == [place for e in rollout.episodes for turn in e.turns for place in range(turn.length)]
    assert any(not e.row_lengths[1:] for e in rollout.episodes) or env or kind == "t5"
    if env.get("chat") is False or kind == "t5":
        assert all(turn.fresh for e in rollout.episodes for turn in e.turns)
    elif env:
        assert any(turn.fresh for e in rollout.episodes for turn in e.turns[1:])
        assert all(max(e.row_lengths) <= 17 for e in rollout.episodes)


def test_collecting_equals_stepping() -> None:
    agent = talker(PPO, letters_talk(1), n_episodes=4, batch_size=4)
    collected(agent)
    from rlhf_gym.agents.common.collect_turns import episode_seed

    env = letters_talk(1)
    for number, episode in enumerate(agent.rollout.episodes):
        env._seeds = [episode_seed(0, 0, number)]
        observation: Any = env.reset()
        done, place, rewards = False, 0, []
        for turn in episode.turns:
            read = observation["ids"][0, : int(observation["length"][0, 0])].tolist()
            assert read[len(read) - len(turn.context) :] == turn.context
            assert int(observation["prompt_length"][0, 0]) == len(read)
            for token in episode.response_ids[place : place + turn.length]:
                assert not done
                observation, reward, dones, infos = env.step(np.array([token]))
                done = bool(dones[0])
                rewards.append(float(reward[0]))
            place += turn.length
        assert done
        assert rewards == episode.rewards
        assert infos[0]["end"] == episode.end
        assert infos[0]["TimeLimit.truncated"] == (episode.end != "terminated")
        assert infos[0]["episode"]["r"] == episode.score


@pytest.mark.parametrize(
    ("last", "options", "end", "turns"),
    [
        ("terminated", {}, "terminated", 3),
        ("truncated", {}, "truncated", 3),
        ("terminated", {"max_turns": 2}, "turn_limit", 2),
        ("terminated", {"max_context": 11}, "token_limit", 2),
    ],
)
def test_ends_are_told_apart_and_what_was_cut_is_estimated(
    last: str, options: dict[str, Any], end: str, turns: int
) -> None:
    env = letters_talk(4, env=lambda: Script(last=last), min_new_tokens=4, **options)
    agent = talker(PPO, env, n_episodes=4, batch_size=4)
    collected(agent)
    for episode in agent.rollout.episodes:
        assert (episode.end, len(episode.turns), episode.score) == (end, turns, sum(range(1, turns + 1)))
        assert episode.rewards == [r for turn in range(1, turns + 1) for r in (0.0, 0.0, 0.0, float(turn))]
        assert not episode.ended  # each turn was cut at its four tokens
        ids = [token for segment in episode.segments for token in segment.ids]
        if end == "turn_limit":  # the value of the state that the policy would have spoken in
            ids += LetterTokenizer().encode("z")
        expected = 0.0 if end == "terminated" else agent.policy.state_values([ids], [0]).item()
        assert episode.bootstrap == pytest.approx(expected, abs=1e-6)
    rows = learn(agent, 10)
    assert rows[-1]["conversation/turns"] == turns
    assert rows[-1][f"conversation/{end}_share"] == 1.0


def test_a_conversation_longer_than_the_context_is_never_cut_in_silence() -> None:
    refusing = talker(RLOO, letters_talk(4, env=Script, min_new_tokens=4, max_context=11, on_overflow="refuse"))
    with pytest.raises(
        ConfigError, match=r"after 2 turns the conversation takes 11 tokens.*max_context=11.*drop_oldest"
    ):
        refusing.learn(1)
    lines = ("xx", "y", "z", "x", "y")
    talk = letters_talk(
        2, env=lambda: Script(lines), min_new_tokens=3, max_new_tokens=3, max_context=11, on_overflow="drop_oldest"
    )
    agent = talker(RLOO, talk, n_episodes=4, batch_size=4, group_size=2)
    collected(agent)
    encode = LetterTokenizer().encode
    for episode in agent.rollout.episodes:
        said = [episode.response_ids[i : i + 3] for i in range(0, 15, 3)]
        assert [t.fresh for t in episode.turns] == [True, False, True, True, True]
        # The first messages stay, and with them as many of the last turns as fit.
        assert episode.turns[2].context == [*encode("xx"), *said[1], *encode("z")]
        assert episode.turns[4].context == [*encode("xx"), *said[3], *encode("y")]
    with pytest.raises(TaskError, match="first observation takes 60 tokens"):
        talker(RLOO, letters_talk(4, env=lambda: Script(("x" * 60,)))).learn(1)
    with pytest.raises(ConfigError, match="on_overflow must be one of end, drop_oldest, refuse"):
        letters_talk(on_overflow="cut")
    of_a_task = Task("talk", [Prompt("x")], max_new_tokens=3, conversation=Conversation(Script, on_overflow="refuse"))
    assert make_conversation_env(1, task=of_a_task).rules.on_overflow == "refuse"


def test_turns_end_by_eos_stop_sequence_or_limit_and_may_be_empty() -> None:
    env = letters_talk(1, env=lambda: Script(("x", "y", "z", "x")), stop=("bb",), max_new_tokens=3)
    talk, encode = env.talks[0], LetterTokenizer().encode
    talk.begin(seed=0)
    assert talk.ended([0])  # EOS alone: an empty turn
    reply = talk.answer([0])
    assert reply.context == encode("y")
    stopped = encode("abb")
    assert (talk.ended(stopped[:2]), talk.ended(stopped)) == (False, True)
    talk.answer(stopped)
    talk.answer(encode("aaa"))
    last = talk.answer([*encode("a"), 0])
    assert talk.env.unwrapped.told == ["", "a", "aaa", "a"]  # type: ignore[attr-defined]
    assert (last.end, last.context) == ("terminated", [])
    assert talk.messages[-2:] == [{"role": "assistant", "content": "a"}, {"role": "user", "content": ""}]
    with pytest.raises(gym.error.ResetNeeded):
        talk.answer([0])


def test_tokens_may_have_rewards_of_their_own() -> None:
    class Each(Script):
        def step(self, action: str) -> Any:
            line, _, terminated, truncated, info = super().step(action)
            return (
                line,
                7.0,
                terminated,
                truncated,
                info | {"token_rewards": [1.0, 2.0, 0.0, 1.0][: 4 if self.wide else 3]},
            )

        wide = True

    agent = talker(REINFORCE, letters_talk(4, env=Each, min_new_tokens=4), n_episodes=4, batch_size=4)
    collected(agent)
    assert agent.rollout.rewards[0].tolist() == [1.0, 2.0, 0.0, 4.0] * 3  # what is left is on the last
    Each.wide = False
    with pytest.raises(RewardError, match="3 numbers for a turn of 4 tokens"):
        agent.learn(1)


@pytest.mark.parametrize("kind", [PPO, GRPO])
def test_training_goes_on_exactly(kind: Any, tmp_path: Path) -> None:
    options = {"group_size": 4} if kind is GRPO else {}
    whole = talker(kind, **options).learn(iterations=2)
    begun = talker(kind, **options).learn(iterations=1)
    begun.save(tmp_path / "agent")
    resumed = kind.load(tmp_path / "agent", env=letters_talk()).learn(iterations=2, reset_num_timesteps=False)
    assert_same_weights(weights(whole), weights(resumed))
    assert resumed.num_timesteps == whole.num_timesteps


def test_groups_hold_conversations_in_the_same_environment() -> None:
    agent = talker(GRPO, group_size=4, compare="turn")
    collected(agent)
    prompts = [e.prompt_ids for e in agent.rollout.episodes]
    assert all(prompts[i] == prompts[i - i % 4] for i in range(16))
    assert len({tuple(p) for p in prompts}) > 1
    advantages = agent.rollout.advantages[agent.rollout.mask]
    assert advantages.std() > 0
    with pytest.raises(ConfigError, match="dynamic_sampling leaves out groups"):
        talker(GRPO, group_size=4, compare="turn", dynamic_sampling=True)
    with pytest.raises(ConfigError, match="discount_per='turn'"):
        talker(PPO, discount_per="turn", gae_lambda_alpha=0.1)


def test_eos_that_is_also_the_padding_is_learned_from() -> None:
    hub = bytes_hub()
    hub.pad_token = hub.eos_token
    tokenizer = HubTokenizer(hub)
    model = tiny_language_model(vocab_size=tokenizer.vocab_size)
    model.tokenizer = tokenizer
    talk = letters_talk(8, tokenizer=tokenizer, template=PLAIN, min_new_tokens=0)
    agent = talker(PPO, talk, language_model=model)
    with torch.no_grad():  # a policy that says EOS often
        agent.policy.language_model.model.get_output_embeddings().weight[tokenizer.eos_id].mul_(5)
    collected(agent)
    rollout = agent.rollout
    for batch in micro_batches(agent.policy, rollout, list(range(16)), 10**6):
        ids = [token for i in batch.rows for token in rollout.episodes[i].response_ids]
        assert len(ids) == len(batch.log_probs)
        old = torch.cat([rollout.log_probs[i][rollout.mask[i]] for i in batch.rows])
        torch.testing.assert_close(batch.log_probs.detach(), old, atol=1e-5, rtol=1e-4)
    assert tokenizer.pad_id != tokenizer.eos_id


QWEN = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<end>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|h|>' + m.role + '<|/h|>\n\n' + m.content | trim + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|h|>assistant<|/h|>\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Alternate') }}{% endif %}"
    "{{ '<|h|>' + m.role.replace('assistant', 'model') + '\n' + m.content | trim + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|h|>model\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
R1 = (  # takes the reasoning out of earlier turns, and begins one in every turn
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|h|>' + m.content }}{% else %}"
    "{{ '<|/h|>' + m.content.split('</think>')[-1] + '<end>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|/h|><think>\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<end>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}, {"role": "user", "content": "3+3?"}]
TEMPLATES = {
    "qwen": QWEN, "llama3": LLAMA3, "llama2": LLAMA2, "mistral": MISTRAL, "gemma": GEMMA, "zephyr": ZEPHYR, "chatml": CHATML,
    "r1": R1,
}  # fmt: skip


@pytest.mark.parametrize("family_name", TEMPLATES)
def test_each_turn_adds_only_the_new_part_of_the_chat_template(family_name: str) -> None:
    hub = bytes_hub("<s>", "<|im_start|>", "<|h|>", "<|/h|>", bos_token="<s>", chat_template=TEMPLATES[family_name])
    tokenizer = HubTokenizer(hub)
    template = TurnTemplate(tokenizer)
    begun = template.begin(TALK[:1])
    assert begun == tokenizer.encode_messages(TALK[:1])
    before = {"llama2": " ", "mistral": " ", "r1": "why</think>"}.get(family_name, "")
    said = [*tokenizer.encode(before + "4"), tokenizer.eos_id]
    whole = [*begun, *said, *template.go_on(TALK[:1], TALK[2:], said)]
    expected = hub.apply_chat_template(TALK, add_generation_prompt=True, tokenize=False)
    shown = hub.decode(whole).replace("<think>\nwhy</think>", "")
    assert shown == expected.replace("4 <end>", "4<end>")
    # An answer that was cut at its limit gets the end of its turn from the template.
    cut = tokenizer.encode(before + "4")
    assert tokenizer.eos_id in template.go_on(TALK[:1], TALK[2:], cut)
    assert (
        hub.decode([*begun, *cut, *template.go_on(TALK[:1], TALK[2:], cut)]).replace("<think>\nwhy</think>", "")
        == expected
    )
    # A third turn: again only what is new.
    more = [*TALK, {"role": "assistant", "content": "6"}, {"role": "user", "content": "5?"}]
    again = [*tokenizer.encode(before + "6"), tokenizer.eos_id]
    whole += [*again, *template.go_on(TALK, more[4:], again)]
    assert hub.decode(whole).count("2+2?") == 1
    assert hub.decode(whole).endswith(hub.apply_chat_template(more, add_generation_prompt=True, tokenize=False)[-12:])


def test_a_stop_sequence_that_the_template_writes_is_not_written_twice() -> None:
    tokenizer = HubTokenizer(llama_hub())
    template = TurnTemplate(tokenizer, "transcript", stop=("\n\nHuman:",))
    begun = template.begin([{"role": "user", "content": "the film"}])
    said = tokenizer.encode_response(" was good\n\nHuman:")
    ids = [
        *begun,
        *said,
        *template.go_on([{"role": "user", "content": "the film"}], [{"role": "user", "content": "why"}], said),
    ]
    assert tokenizer.decode(ids).strip() == "Human: the film\n\nAssistant: was good\n\nHuman: why\n\nAssistant:"


def test_a_conversation_environment_and_one_whose_text_is_all_there_is() -> None:
    task = Task("talk", [Prompt("abc"), Prompt("d")], reward=count_a, max_new_tokens=3)

    def made() -> ConversationEnv:
        return ConversationEnv(task, user=["ee", "ff"], max_turns=3, template=PLAIN)

    agent = talker(RLOO, letters_talk(4, env=made, max_new_tokens=3), n_episodes=8, group_size=2)
    collected(agent)
    encode = LetterTokenizer().encode
    for episode in agent.rollout.episodes:
        assert [turn.context for turn in episode.turns[1:]] == [encode("ee"), encode("ff")]
        assert episode.info["prompt"] in ("abc", "d")
        assert [m["role"] for m in episode.info["messages"]] == ["user", "assistant"] * 3
        assert episode.score == sum(
            m["content"].count("a") for m in episode.info["messages"] if m["role"] == "assistant"
        )
    whole = talker(RLOO, letters_talk(4, env=made, max_new_tokens=3, chat=False), n_episodes=8, group_size=2)
    collected(whole)
    for episode in whole.rollout.episodes:
        first, second = episode.turns[0], episode.turns[1]
        said = [t for t in episode.response_ids[: first.length] if t > 1]
        assert second.context == [*first.context, *said, *encode("ee")]


def test_what_cannot_be_talked_with_is_refused() -> None:
    with pytest.raises(ConfigError, match="observations of CartPoleEnv are Box"):
        wrap_text_env("CartPole-v1")
    with pytest.raises(ConfigError, match="take wrap_text_env"):
        talker(PPO, TurnEnv(Task("one", [Prompt("abc")], reward=count_a)))
    with pytest.raises(ConfigError, match="VecMonitor is around an environment of conversations"):
        talker(PPO, VecMonitor(letters_talk()))
    with pytest.raises(ConfigError, match="group_size"):
        talker(GRPO, letters_talk(6), group_size=4, n_episodes=6, batch_size=6)
    with pytest.raises(ConfigError, match="max_context"):
        letters_talk(max_context=4)

    class Broken(Script):
        def step(self, action: str) -> Any:
            return "x", float("nan"), False, False, {}

    with pytest.raises(RewardError, match="the reward nan"):
        talker(PPO, letters_talk(env=Broken)).learn(1)


@pytest.mark.parametrize("library", ["gem", "textarena"])
def test_other_libraries_environments_can_be_learned_in(library: str) -> None:
    pytest.importorskip(library)
    from rlhf_gym.envs import GemEnv, TextArenaEnv

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options: dict[str, Any] = {"tokenizer": "embedded", "max_new_tokens": 4, "max_turns": 2, "max_context": 1000}
        if library == "gem":
            talk = wrap_text_env(lambda: GemEnv("game:GuessTheNumber-v0-easy"), 2, **options)
        else:
            talk = wrap_text_env(lambda: TextArenaEnv("GuessTheNumber-v0"), 2, chat=False, **options)
        tokenizer = talk.rules.tokenizer
        model = tiny_language_model(vocab_size=tokenizer.vocab_size, context=1000)
        model.tokenizer = tokenizer
        agent = talker(REINFORCE, talk, language_model=model, n_episodes=2, batch_size=2)
        agent.learn(1)
    for episode in agent.rollout.episodes:
        assert "number" in episode.info["prompt"].lower()
        assert all(a.ours != b.ours for a, b in pairwise(episode.segments))
