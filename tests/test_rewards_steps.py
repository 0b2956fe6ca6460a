"""Process rewards: steps found in texts, paid at the right tokens, by functions and by process reward models worked by hand."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_setups import assert_same_weights, collected, learn, letters_env, small_agent, weights
from talking import Letters, Script, letters_talk, talker
from tiny_models import LetterTokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForTokenClassification,
)

from rlhf_gym.agents import PPO
from rlhf_gym.envs import ConversationEnv, TurnEnv
from rlhf_gym.envs.talk_scoring import Played, score_conversations
from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.lm.response_text import ResponseText
from rlhf_gym.rewards import load_reward, score, term
from rlhf_gym.rewards.base import as_term
from rlhf_gym.rewards.builtin.process_model import ProcessModel, process_reward_model
from rlhf_gym.rewards.builtin.steps import Steps, find_steps
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import Prompt

WORDS = ["<unk>", "</s>", "q", "a", "b", "c", "\n", "+", "-"]
TASK = Task(
    "letters", [Prompt("x")], max_new_tokens=6, stop=("z",), reward=lambda prompts, responses: [0.0] * len(prompts)
)
UNK, EOS, Q, A, B, C, MARK, GOOD, BAD = range(len(WORDS))


def letters(prompts: list[str], responses: list[str], steps: list[list[str]]) -> list[list[float]]:
    """A step is worth its length."""
    return [[float(len(step)) for step in row] for row in steps]


@pytest.mark.parametrize(
    ("text", "split", "expected"),
    [
        ("", "\n", []),
        (" \n\n ", "\n", []),
        ("a\nb", "\n", [("a", 2, True), ("b", 3, False)]),
        ("a\nb\n", "\n", [("a", 2, True), ("b", 4, True)]),
        ("\n\na\n\n\nb", "\n\n", [("a", 5, True), ("b", 7, False)]),
        (";a;;b", ";", [("a", 3, True), ("b", 5, False)]),
        (
            "Two?! It is 3.5 (yes.) a sentence",
            "sentence",
            [("Two?!", 5, True), ("It is 3.5 (yes.)", 22, True), ("a sentence", 33, False)],
        ),
    ],
)
def test_steps_of_texts(text: str, split: str, expected: list[tuple[str, int, bool]]) -> None:
    assert find_steps(text, split) == expected


WHOLES = pytest.mark.parametrize(
    ("whole", "paid"),
    [
        ("sum", [0.6, 0.2, 0.5]),
        ("mean", [0.2, 0.2 / 3, 0.5 / 3]),
        ("last", [0.6, -0.4, 0.3]),
        ("minimum", [0.6, -0.4, 0.0]),
    ],
)
"""Steps worth 0.6, 0.2 and 0.5."""


@WHOLES
def test_a_step_is_paid_at_the_token_that_completes_its_separator(whole: Any, paid: list[float]) -> None:
    def judged(prompts: list[str], responses: list[str], steps: list[list[str]]) -> list[list[float]]:
        assert steps == [["ab", "c", "d"], []]
        return [[0.6, 0.2, 0.5], []]

    # "ab" and "c" end inside a token that goes on; the last step is open, so EOS pays it.
    text = "ab;c;d"
    columns = {"response_ids": [[1, 2, 3, 4, 0], [0]], "token_ends": [[1, 3, 5, 6, 6], [0]]}
    scored = score(Steps(judged, split=";", whole=whole), ["p", "p"], [text, ""], columns)
    tokens = scored.tokens or ()
    assert tokens[0].tolist() == pytest.approx([0, paid[0], paid[1], 0, paid[2]])
    assert tokens[1].tolist() == [0.0]
    assert scored.values.tolist() == pytest.approx([sum(paid), 0])
    without = score(Steps(judged, split=";", whole=whole), ["p", "p"], [text, ""])  # steps in the place of tokens
    assert without.values.tolist() == pytest.approx([sum(paid), 0])


@WHOLES
def test_steps_of_two_turns_are_paid_in_their_turns_by_hand(whole: Any, paid: list[float]) -> None:
    def judged(
        prompts: list[str], responses: list[str], steps: list[list[str]], messages: Any, conversation: Any, end: Any
    ) -> list[list[float]]:
        assert (steps, conversation, end) == ([["ab", "c"], ["d"]], [0, 0], ["terminated"] * 2)
        assert prompts == ["\n\nHuman: x\n\nAssistant:", "\n\nHuman: x\n\nAssistant: abkc\n\nHuman: y\n\nAssistant:"]
        assert [[m["content"] for m in talk] for talk in messages] == [["x"], ["x", "abkc", "y"]]
        return [[0.6, 0.2], [0.5]]

    reward = as_term(Steps(judged, split="k", whole=whole))
    talk, encode = letters_talk(1, lambda: Script(("x", "y")), max_new_tokens=5).talks[0], LetterTokenizer().encode
    talk.begin()
    talk.answer([*encode("abkc"), 0])
    played = Played.of(talk.answer(encode("dk")).info)
    scored, infos = score_conversations(reward, [played])
    # a b k c EOS, d k: "c" is open, so its turn's EOS pays it; no step reaches from one turn into the next.
    expected = pytest.approx([0, 0, paid[0], 0, paid[1], 0, paid[2]])
    assert infos[0]["token_rewards"].tolist() == expected
    assert scored.values.tolist() == pytest.approx([sum(paid)])
    # In a sum, what is of the whole is paid with the last token.
    both, _ = score_conversations(term(reward) + term(lambda prompts, responses, **kw: [float(len(kw))]), [played])
    assert (both.tokens or ())[0][-1] == pytest.approx(
        paid[2] + 5
    )  # messages, several_turns, turns, environment_reward, end
    # Read from a file, where the tokens are not known, it is worth the same.
    again, _ = score_conversations(reward, [pickle.loads(pickle.dumps(played))])
    assert again.values.tolist() == scored.values.tolist()
    assert type(pickle.loads(pickle.dumps(played.turns[0]["content"]))) is str


@WHOLES
def test_answers_that_are_scored_together_are_paid_in_their_turns(whole: Any, paid: list[float]) -> None:
    def judged(prompts: list[str], responses: list[str], steps: list[list[str]]) -> list[list[float]]:
        assert steps == [["ab", "c", "d"]]
        return [[0.6, 0.2, 0.5]]

    def make() -> ConversationEnv:
        reward = Steps(judged, whole=whole)  # the answers are lines
        return ConversationEnv(TASK, user=["y", "y"], max_turns=3, reward=reward, reward_at="end")

    talk, encode = letters_talk(1, make).talks[0], LetterTokenizer().encode
    talk.begin(seed=0)
    assert talk.answer([*encode("ab"), 0]).rewards == [0, 0, 0]
    assert talk.answer([*encode("c"), 0]).rewards == [0, 0]
    last = talk.answer([*encode("d"), 0])
    assert [*last.earlier, *last.rewards] == pytest.approx([0, 0, paid[0], 0, paid[1], 0, paid[2]])
    assert last.reward == talk.total == pytest.approx(sum(paid))


@pytest.mark.parametrize("kind", ["conversation", "response"])
def test_environments_pay_a_turn_s_steps_at_their_tokens(kind: str) -> None:
    reward = Steps(letters, split="k")
    make = (
        (lambda: ConversationEnv(TASK, user=["y"], max_turns=2, reward=reward))
        if kind == "conversation"
        else (lambda: TurnEnv(TASK, reward=reward))
    )
    talk, encode = letters_talk(1, make, max_new_tokens=6).talks[0], LetterTokenizer().encode
    talk.begin(seed=0)
    first = talk.answer([*encode("abkcz"), 0])  # "z" stops a response of the task's
    assert first.rewards == [0, 0, 2.0, 0, 0, 1.0]
    if kind == "conversation":
        assert talk.answer(encode("dk")).rewards == [0, 1.0]


def test_agents_learn_from_what_each_step_of_a_conversation_is_paid() -> None:
    found = 0
    reward = 2 * term(Steps(letters, split="a"))
    at_the_end = partial(StepsAtTurns, "\n", reward_at="end")  # the answers are lines, and no "a" ends a step
    for env, options, ends in ((Letters, {"reward": reward}, "a"), (StepsAtTurns, {}, "a"), (at_the_end, {}, "\n")):
        rollout = collected(talker(PPO, letters_talk(4, env, **options), n_episodes=8, normalize_advantage=False))
        for row, episode in enumerate(rollout.episodes):
            expected: list[float] = []
            for said in (segment.ids for segment in episode.segments if segment.ours):
                begun, paid = 0, [0.0] * len(said)
                for place, letter in enumerate(LetterTokenizer().decode([t]) for t in said):
                    if letter == ends:
                        paid[place], begun, found = 2.0 * begun, 0, found + bool(begun)
                    begun += letter not in (ends, "")
                paid[-1] += 2.0 * begun
                expected += paid
            assert rollout.rewards[row, : len(expected)].tolist() == pytest.approx(expected)
            assert episode.info["episode"]["r"] == pytest.approx(sum(expected))
    assert found > 1


class StepsAtTurns(ConversationEnv):
    def __init__(self, split: str = "a", **options: Any) -> None:
        reward = 2 * term(Steps(letters, split=split))
        super().__init__(replace(TASK, stop=()), user=["b", "c"], reward=reward, **options)


def test_wrong_functions_and_options_are_named() -> None:
    def short(prompts: list[str], responses: list[str], steps: list[list[str]]) -> list[list[float]]:
        return [[1.0] for _ in steps]

    with pytest.raises(RewardError, match=r"per-step reward 'short' gave values of shape \(1,\), expected \(2,\)"):
        score(Steps(short), ["p"], ["a\nb"])
    with pytest.raises(ConfigError, match="split must be the text between steps"):
        Steps(short, split="")
    with pytest.raises(ConfigError, match="whole must be one of sum, mean, last, minimum, got 'product'"):
        load_reward("steps", function=short, whole="product")


def test_characters_of_several_tokens_count_where_they_are_complete() -> None:
    class Bytes(LetterTokenizer):
        def decode(self, ids: Any) -> str:
            return bytes(ids).decode("utf-8", errors="replace")

    ids = list("é;x".encode())
    assert ResponseText(Bytes()).ends(ids) == [0, 1, 2, 3]
    assert ResponseText(Bytes(), ["x"]).ends(ids) == [0, 1, 2, 2]  # nothing behind a stop sequence is text


@pytest.mark.parametrize("collect", ["auto", "step"])
def test_agents_pay_steps_at_their_tokens_however_they_collect(collect: str) -> None:
    reward = 2 * term(Steps(letters, split="a"))
    rollout = collected(
        small_agent(PPO, letters_env(reward=reward), collect=collect, normalize_advantage=False, kl_coef=0.0, seed=2)
    )
    tokenizer, found = LetterTokenizer(), 0
    for row, episode in enumerate(rollout.episodes):
        length = len(episode.response_ids)
        expected, begun = [0.0] * length, 0
        for t, token in enumerate(episode.response_ids):  # one character a token
            if tokenizer.decode([token]) == "a":
                expected[t] = 2.0 * begun
                begun, found = 0, found + bool(begun)
            elif tokenizer.decode([token]):
                begun += 1
        expected[-1] += 2.0 * begun
        assert rollout.rewards[row, :length].tolist() == pytest.approx(expected)
        assert not rollout.rewards[row, length:].any()
    assert found > 1


def test_both_ways_of_collecting_learn_the_same() -> None:
    agents = [
        small_agent(PPO, letters_env(reward=Steps(letters, split="a")), collect=c, seed=1) for c in ("auto", "step")
    ]
    for agent in agents:
        learn(agent, 300)
    assert_same_weights(weights(agents[0]), weights(agents[1]))


# ------------------------------------------------------------------------------------------------ process reward models


def tokenizer() -> Any:
    backend = Backend(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # one id a character
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="</s>")


def saved(folder: Path, kind: type[Any], head: str, **options: Any) -> Path:
    """A GPT-2 whose layers add nothing: its outputs at a place are its head's on a norm of token and position."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=16, n_embd=8, n_layer=1, n_head=1, bos_token_id=EOS, eos_token_id=EOS,
        pad_token_id=EOS, tie_word_embeddings=False, **options,
    )  # fmt: skip
    model = kind(config)
    with torch.no_grad():
        block = model.transformer.h[0]
        for layer in (block.attn.c_proj, block.mlp.c_proj):
            layer.weight.zero_()
            layer.bias.zero_()
        getattr(model, head).weight.normal_()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def outputs(model: Any, head: str, place: int, token: int) -> list[float]:
    """By hand: the head on the normalised sum of a token's and a position's embeddings."""
    with torch.no_grad():
        x = model.transformer.wte.weight[token] + model.transformer.wpe.weight[place]
        x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)  # the norm's weights are 1 and 0
        layer = getattr(model, head)
        return (x @ layer.weight.T + (0 if layer.bias is None else layer.bias)).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("batch", [8192, 1])
def test_a_token_classifier_is_read_at_the_marks(tmp_path: Path, batch: int) -> None:
    folder = saved(tmp_path, GPT2ForTokenClassification, "classifier", num_labels=2)
    model = GPT2ForTokenClassification.from_pretrained(folder)
    prm = ProcessModel(folder, tokens_per_batch=batch)
    # "qa" + "b\n" + "cc\n": marks at 3 and 6. "q" + "a\n": 2. And a response without steps.
    found = prm(["qa", "q", "q"], ["b\ncc", "a", ""], [["b", "cc"], ["a"], []])

    def probability(place: int) -> float:
        wrong, right = outputs(model, "classifier", place, MARK)
        return 1 / (1 + math.exp(wrong - right))

    assert [*found[0], *found[1]] == pytest.approx([probability(3), probability(6), probability(2)], abs=1e-5)
    assert found[2] == []
    logit = ProcessModel(folder, output="logit", label=0)(["q"], ["a"], [["a"]])[0][0]
    assert logit == pytest.approx(-math.log(probability(2) / (1 - probability(2))), abs=1e-4)


def test_a_causal_model_says_good_or_bad_after_the_mark_and_is_paid_there(tmp_path: Path) -> None:
    folder = saved(tmp_path, GPT2LMHeadModel, "lm_head")
    model = GPT2LMHeadModel.from_pretrained(folder)
    prm = load_reward("process_reward_model", model=str(folder), mark="c", after="\n", whole="last")
    # "q" + "ac\n" + "bc": marks at 2 and 5.
    said = [outputs(model, "lm_head", place, C) for place in (2, 5)]
    first, second = (1 / (1 + math.exp(row[BAD] - row[GOOD])) for row in said)
    columns = {"response_ids": [[A, MARK, B, EOS]], "token_ends": [[1, 2, 3, 3]]}
    scored = score(prm, ["q"], ["a\nb"], columns)
    assert (scored.tokens or ())[0].tolist() == pytest.approx([0, first, 0, second - first], abs=1e-5)
    assert scored.values.tolist() == pytest.approx([second], abs=1e-5)


def test_a_process_reward_model_reads_the_others_turns_and_judges_the_policy_s(tmp_path: Path) -> None:
    folder = saved(tmp_path, GPT2ForTokenClassification, "classifier", num_labels=2)
    hub = tokenizer()
    hub.chat_template = "{% for m in messages %}q{{ m.content }}{% endfor %}{% if add_generation_prompt %}b{% endif %}"
    hub.save_pretrained(folder)
    model = GPT2ForTokenClassification.from_pretrained(folder)
    turns = [
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "a\nc"},
    ]
    played = Played([{"role": "user", "content": "a"}], turns, 0.0, "terminated")
    scored, _ = score_conversations(as_term(process_reward_model(folder)), [played])
    # "qab" + "c\n", then "qaqcqbb" + "a\nc\n": marks at 4, 8 and 10.
    said = [outputs(model, "classifier", place, MARK) for place in (4, 8, 10)]
    values = [1 / (1 + math.exp(wrong - right)) for wrong, right in said]
    worst = [min(values[: n + 1]) for n in range(3)]
    assert (scored.tokens or ())[0].tolist() == pytest.approx(
        [worst[0], worst[1] - worst[0], worst[2] - worst[1]], abs=1e-5
    )
    assert scored.values.tolist() == pytest.approx([min(values)], abs=1e-5)


def test_prompts_lose_their_beginning_and_too_long_responses_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, GPT2ForTokenClassification, "classifier", num_labels=2)
    prm = ProcessModel(folder)
    with pytest.warns(UserWarning, match="the prompt's beginning is cut"):
        cut = prm(["a" * 30 + "qqqqqqqqqqqqqq"], ["b"], [["b"]])
    assert cut[0] == pytest.approx(prm(["q" * 14], ["b"], [["b"]])[0])
    with pytest.raises(RewardError, match="a response of 21 tokens exceeds the model's context of 16"):
        prm(["q"], ["b" * 20], [["b" * 20]])
    with pytest.raises(
        ConfigError, match=r"labels LABEL_0, LABEL_1; expected label to be one of them or a number in 0\.\.1"
    ):
        ProcessModel(folder, label="right")
    with pytest.raises(ConfigError, match="has no chat template"):
        ProcessModel(folder, read="chat")
    with pytest.raises(ConfigError, match="the mark '' has no tokens"):
        ProcessModel(folder, mark="")


def test_a_prompt_fills_the_context_of_a_network_whose_positions_begin_behind_its_padding(tmp_path: Path) -> None:
    config = RobertaConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=12, pad_token_id=EOS, num_labels=2,
    )  # fmt: skip
    RobertaForTokenClassification(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    prm = ProcessModel(tmp_path)
    with pytest.warns(UserWarning, match=r"exceed the context of 10; the prompt's beginning is cut"):
        found = prm(["q" * 30], ["b"], [["b"]])
    assert found[0] == pytest.approx(prm(["q" * 8], ["b"], [["b"]])[0])


def test_a_chat_template_writes_the_prompt_once_and_wrong_tokens_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, GPT2LMHeadModel, "lm_head")
    with pytest.raises(ConfigError, match=r"good must be a single token of .*, got 'ab'"):
        process_reward_model(folder, good="ab")
    plain = ProcessModel(folder)(["qab"], ["c"], [["c"]])
    hub = tokenizer()
    hub.chat_template = "{% for m in messages %}q{{ m.content }}{% endfor %}{% if add_generation_prompt %}b{% endif %}"
    hub.save_pretrained(folder)
    assert ProcessModel(folder)(["a"], ["c"], [["c"]])[0] == pytest.approx(plain[0])
    assert ProcessModel(folder, read="plain")(["a"], ["c"], [["c"]])[0] != pytest.approx(plain[0])
