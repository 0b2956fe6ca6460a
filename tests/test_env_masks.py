"""Action masks: what they allow, that they never lead into a corner, and that every form of the environment has them."""

from __future__ import annotations

import copy
import itertools
import pickle
import re
import sys
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ppo_setups import small_ppo
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_models import LetterTokenizer, tiny_language_model
from toy_tasks import letter_task

from rlhf_gym.envs import TokenEnv, TokenVectorEnv, make_sb3_env
from rlhf_gym.envs.grammar import drops_first_space, token_bytes, words_pattern
from rlhf_gym.envs.masks import TokenMask, refuse_empty
from rlhf_gym.envs.token_rules import WAIT
from rlhf_gym.errors import ConfigError, TaskError
from rlhf_gym.lm.tokenizer import HubTokenizer, Tokenizer, load_tokenizer
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import Prompt

EOS, PAD, A, B, C = range(5)


def single(mask: Any, **task: Any) -> TokenEnv:
    env = TokenEnv(letter_task(**task), LetterTokenizer(), mask=mask)
    env.reset(seed=0)
    return env


def allowed(env: TokenEnv) -> list[int]:
    return np.flatnonzero(env.action_masks()).tolist()


def walk(env: TokenVectorEnv, steps: int) -> list[tuple[str, int]]:
    """Random allowed tokens in same-step mode: the responses that ended, with their lengths."""
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    out = []
    for _ in range(steps):
        actions = np.array([rng.choice(np.flatnonzero(row)) for row in env.action_masks()])
        _, _, terminations, _, infos = env.step(actions)
        final = infos.get("final_info", {})
        out += [(final["response"][i], int(final["response_length"][i])) for i in np.flatnonzero(terminations)]
    return out


def test_banned_tokens_by_id_and_by_text() -> None:
    env = single({"suppress_tokens": [B, "c"]})
    assert np.flatnonzero(~env.action_masks()).tolist() == [PAD, B, C]


def test_a_grammar_by_hand() -> None:
    env = single({"pattern": "a(b|c)*"}, limit=3)
    assert allowed(env) == [A]
    env.step(A)
    assert allowed(env) == [EOS, B, C]
    env.step(C)
    assert allowed(env) == [EOS, B, C]
    assert env.step(EOS)[4]["response"] == "ac"


def test_length_limits_are_worked_into_the_grammar() -> None:
    env = single({"pattern": "(aa)+|b"}, limit=5, minimum=2)
    assert allowed(env) == [A]  # "b" would have to end before two tokens are written
    for expected in ([A], [EOS, A], [A], [EOS]):  # "aaaaa" would match at the limit only with a sixth "a"
        env.step(A)
        assert allowed(env) == expected


def test_a_match_may_end_at_the_limit_without_eos() -> None:
    env = single({"pattern": "a{3}"}, limit=3)
    for _ in range(2):
        assert allowed(env) == [A]
        env.step(A)
    _, _, terminated, _, info = env.step(A)
    assert (terminated, info["response"], info["ended"]) == (True, "aaa", False)


def test_banned_tokens_are_out_of_the_grammar_too() -> None:
    env = single({"pattern": "[ab]c|bb", "suppress_tokens": ["c"]})
    assert allowed(env) == [B]


def test_words() -> None:
    assert words_pattern(["a.b", "a b", "c-d"]) == r" ?(a\.b|a b|c\-d)( (a\.b|a b|c\-d))*"
    task = Task("words", [Prompt("say ")], reward=lambda prompts, responses: [0.0] * len(prompts), max_new_tokens=6)
    words = ["good", "very", "film", "it's"]
    env = TokenVectorEnv(16, task, load_tokenizer("embedded"), mask={"words": words}, autoreset_mode="same_step")
    responses = walk(env, 40)
    assert len(responses) > 50
    assert all(set(text.strip().split(" ")) <= set(words) for text, _ in responses)


PATTERNS = ("^a*$", "(ab|c)+", "[a-c]{2,4}", "a?b?c?", "(a|bb|ccc)*", "b(a(c|b))?", "[^a-b]+", "(aa)+|b", "", ".*c")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PATTERNS), st.integers(1, 5), st.integers(0, 4), st.sets(st.sampled_from([EOS, B])))
def test_masks_allow_what_can_be_completed_and_nothing_else(
    pattern: str, limit: int, minimum: int, suppress_tokens: set[int]
) -> None:
    """Against all texts there are: over three letters, up to the limit."""
    minimum = min(minimum, limit)
    letters = "ac" if B in suppress_tokens else "abc"
    texts = ["".join(t) for n in range(limit + 1) for t in itertools.product(letters, repeat=n)]
    shortest = limit if EOS in suppress_tokens else minimum
    whole = {t for t in texts if len(t) >= shortest and re.fullmatch(pattern, t)}
    prefixes = {t[:n] for t in whole for n in range(len(t) + 1)}
    task = replace(letter_task(limit=limit, minimum=minimum), prompts=[Prompt("abc")])
    mask = {"pattern": pattern, "suppress_tokens": sorted(suppress_tokens)}
    if not whole:
        with pytest.raises(TaskError, match=r"can match|allows nothing"):
            TokenEnv(task, LetterTokenizer(5), mask=mask)
        return
    env = TokenEnv(task, LetterTokenizer(5), mask=mask)
    for text in prefixes:
        if len(text) == limit:
            continue
        env.reset(seed=0)
        for letter in text:
            env.step("abc".index(letter) + A)
        expected = [A + i for i, letter in enumerate("abc") if text + letter in prefixes]
        may_end = text in whole and len(text) >= minimum and EOS not in suppress_tokens
        assert allowed(env) == [EOS] * may_end + expected


def test_whoever_keeps_to_the_mask_matches() -> None:
    mask = {"pattern": "(aa|b(c|d)+)+", "strict": True}
    env = TokenVectorEnv(4, letter_task(limit=7), LetterTokenizer(), mask=mask, autoreset_mode="same_step")
    responses = walk(env, 100)
    assert len(responses) > 50
    assert all(re.fullmatch("(aa|b(c|d)+)+", text) for text, _ in responses)


@pytest.mark.parametrize("pattern", [r" ?(very )*(good|bad)( film)?[.!]", "[0-9]{3}-[0-9]{4}", "é+|ü", ".{1,9}"])
def test_real_tokens_that_span_the_pattern(pattern: str) -> None:
    task = Task("t", [Prompt("x")], reward=lambda prompts, responses: [0.0] * len(prompts), max_new_tokens=9)
    env = TokenVectorEnv(
        16, task, load_tokenizer("embedded"), mask={"pattern": pattern, "strict": True}, autoreset_mode="same_step"
    )
    responses = walk(env, 40)
    assert len(responses) > 30
    assert all(re.fullmatch(pattern, text) for text, _ in responses)


def sentencepiece_tokenizer() -> HubTokenizer:
    """Llama's kind: a mark for the space, bytes for what is no piece, the first space lost in decoding."""
    from tokenizers import Tokenizer as Rust
    from tokenizers import decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        "a",
        "b",
        "go",
        "o",
        "d",
        "▁go",
        "▁good",
        "od",
    ]
    rust = Rust(models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>"))
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    rust.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    hub = PreTrainedTokenizerFast(tokenizer_object=rust, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    return HubTokenizer(hub, "sentencepiece")


def test_sentencepiece_tokens_and_bytes() -> None:
    tokenizer = sentencepiece_tokenizer()
    texts = token_bytes(tokenizer)
    vocabulary = tokenizer.hub.get_vocab()
    assert texts[vocabulary["▁good"]] == b" good"
    assert texts[vocabulary["<0xC3>"]] == b"\xc3"
    assert texts[vocabulary["</s>"]] == b""
    assert drops_first_space(tokenizer, texts)
    task = Task("t", [Prompt("a")], reward=lambda prompts, responses: [0.0] * len(prompts), max_new_tokens=6)
    env = TokenVectorEnv(
        16, task, tokenizer, mask={"pattern": "good( good|é)?", "strict": True}, autoreset_mode="same_step"
    )
    responses = {text for text, _ in walk(env, 60)}
    assert responses == {"good", "good good", "goodé"}


def test_byte_level_tokens_say_what_decoding_says() -> None:
    tokenizer = load_tokenizer("embedded")
    texts = token_bytes(tokenizer)
    assert not drops_first_space(tokenizer, texts)
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = rng.integers(0, tokenizer.vocab_size, 12).tolist()
        assert b"".join(texts[i] for i in ids).decode(errors="replace") == tokenizer.decode(ids)


def test_after_a_token_outside_the_grammar_only_eos_is_left() -> None:
    env = single({"pattern": "ab"})
    env.step(B)
    assert allowed(env) == [EOS]
    env.step(A)
    assert allowed(env) == [EOS]


def test_a_response_that_is_lost_may_end_before_its_minimum_length() -> None:
    env = single({"pattern": "aaa", "in_info": True}, minimum=3)
    *_, info = env.step(B)
    assert np.flatnonzero(info["action_mask"]).tolist() == allowed(env) == [EOS]
    free = single({"pattern": "a{6}", "suppress_tokens": [EOS]})
    free.step(B)
    assert np.flatnonzero(~free.action_masks()).tolist() == [EOS, PAD]


def test_strict_refuses_a_token_outside_the_mask_and_writes_nothing() -> None:
    env = single({"pattern": "ab", "strict": True})
    before = env.episodes.observe()
    with pytest.raises(gym.error.InvalidAction, match=r"action 3 in slot 0 is not allowed by the mask"):
        env.step(B)
    assert all(np.array_equal(before[k], v) for k, v in env.episodes.observe().items())
    env.step(A)


def test_masks_in_info_are_what_sampling_takes() -> None:
    env = TokenEnv(letter_task(limit=3), LetterTokenizer(), mask={"pattern": "a(b|c)*", "in_info": True})
    _, info = env.reset(seed=0)
    env.action_space.seed(0)
    assert info["action_mask"].dtype == np.int8
    assert env.action_space.sample(mask=info["action_mask"]) == A
    _, _, _, _, info = env.step(A)
    assert np.array_equal(info["action_mask"], env.action_masks())
    *_, info = env.step(EOS)
    assert info["response"] == "a"
    assert np.flatnonzero(info["action_mask"] == 0).tolist() == [PAD]  # nothing runs: the unrestricted row


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_masks_of_the_vector_environment_are_those_of_single_ones(mode: str) -> None:
    mask = {"pattern": "a(b|c)*d?", "in_info": True}
    task = letter_task(limit=4, minimum=1)
    vector = TokenVectorEnv(3, task, LetterTokenizer(), mask=mask, autoreset_mode=mode)
    singles = [TokenEnv(task, LetterTokenizer(), mask=mask) for _ in range(3)]
    _, infos = vector.reset(seed=[5, 6, 7])
    rows = [env.reset(seed=s)[1]["action_mask"] for env, s in zip(singles, [5, 6, 7], strict=True)]
    ended = [False] * 3
    rng = np.random.default_rng(1)
    for _ in range(40):
        assert infos["_action_mask"].all()
        assert np.array_equal(infos["action_mask"], np.stack(rows))
        assert np.array_equal(vector.action_masks(), np.stack(rows).astype(bool))
        actions = np.array([rng.choice(np.flatnonzero(row)) for row in rows])
        infos = vector.step(actions)[-1]
        for i, env in enumerate(singles):
            if mode == "next_step" and ended[i]:
                rows[i], ended[i] = env.reset()[1]["action_mask"], False
                continue
            _, _, ended[i], _, info = env.step(int(actions[i]))
            rows[i] = info["action_mask"]
            if mode == "same_step" and ended[i]:
                assert np.array_equal(infos["final_info"]["action_mask"][i], rows[i])
                rows[i] = env.reset()[1]["action_mask"]
    vector.action_space.seed(0)
    sampled = vector.action_space.sample(mask=tuple(vector.action_masks().astype(np.int8)))
    assert vector.action_masks()[np.arange(3), sampled].all()


def test_both_sb3_forms_hand_masks_to_maskable_algorithms() -> None:
    from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported

    def make() -> gym.Env[Any, Any]:
        return gym.make("rlhf_gym/Copy-v0", mask={"pattern": "[a-d]{2}"})

    for env in (make_sb3_env(3, task="copy", mask={"pattern": "[a-d]{2}"}), DummyVecEnv([make] * 3)):
        env.reset()
        assert is_masking_supported(env)
        assert get_action_masks(env).tolist() == [[False, False, True, True, True, True, False]] * 3
        assert len(env.get_attr("action_masks")) == 3


def test_our_ppo_collects_by_stepping_and_keeps_to_a_grammar() -> None:
    mask = {"pattern": "(ab|c)+", "strict": True}
    env = make_sb3_env(4, task=letter_task(limit=6), tokenizer=LetterTokenizer(), mask=mask, seed=0)
    assert not env.append_only
    agent = small_ppo(env, n_episodes=8)
    agent.learn(40)
    texts = [LetterTokenizer().decode(episode.response_ids) for episode in agent.rollout.episodes]
    assert len(texts) == 8
    assert all(re.fullmatch("(ab|c)+", text) for text in texts)


def test_a_restored_environment_goes_on_where_the_grammar_was() -> None:
    options: dict[str, Any] = {
        "task": letter_task(), "tokenizer": LetterTokenizer(), "mask": {"pattern": "abc|bca|cab"}, "seed": 3,
    }  # fmt: skip
    env, other = make_sb3_env(3, **options), make_sb3_env(3, **options)
    env.reset()
    env.step(np.array([A, B, C]))
    other.restore(env.state())
    assert [np.flatnonzero(m).tolist() for m in other.env_method("action_masks")] == [[B], [C], [A]]


def test_pickles_and_copies_keep_the_grammars_state() -> None:
    env = single({"pattern": "abc"})
    env.step(A)
    assert allowed(pickle.loads(pickle.dumps(env))) == allowed(copy.deepcopy(env)) == [B]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_top_k_is_the_models_own(kind: Any) -> None:
    model = tiny_language_model(kind, scale=3.0)
    mask = TokenMask(suppress_tokens=["z"], top_k=3, model=model)
    env = TokenVectorEnv(3, letter_task(limit=5), LetterTokenizer(), mask=mask, autoreset_mode="same_step")
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(14):
        masks = env.action_masks()
        assert np.array_equal(masks, env.action_masks())  # asking twice changes nothing
        assert masks.sum(axis=1).tolist() == [3, 3, 3]
        for slot in range(3):
            ids = torch.tensor(env.episodes.ids[slot, : env.episodes.length[slot]])[None]
            with torch.no_grad():
                logits = model.logits(model.hidden(ids)[0, -1])
            logits[[PAD, 27]] = -torch.inf
            assert set(np.flatnonzero(masks[slot])) == set(logits.topk(3).indices.tolist())
        env.step(np.array([rng.choice(np.flatnonzero(row)) for row in masks]))


def test_top_k_of_slots_that_wait() -> None:
    model = tiny_language_model(scale=3.0)
    options: dict[str, Any] = {"task": letter_task(), "tokenizer": LetterTokenizer(), "seed": 1}
    env = make_sb3_env(2, mask=TokenMask(top_k=4, model=model), **options)
    env.reset()
    for actions in ([A, WAIT], [B, WAIT], [WAIT, C], [A, B]):
        before = np.stack(env.env_method("action_masks"))
        env.step(np.array(actions))
        after = np.stack(env.env_method("action_masks"))
        fresh = TokenVectorEnv(2, letter_task(), LetterTokenizer(), mask=TokenMask(top_k=4, model=model))
        for name in ("ids", "length", "prompt_length", "running"):
            getattr(fresh.episodes, name)[...] = getattr(env.env.episodes, name)
        assert np.array_equal(after, fresh.action_masks())
        assert all(np.array_equal(before[i], after[i]) for i in (0, 1) if actions[i] == WAIT)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ({"suppress_tokens": list(range(28))}, TaskError, "allows nothing: all 28 tokens are suppressed"),
        ({"suppress_tokens": [99]}, ConfigError, r"suppressed token 99 is not an id; expected 0\.\.27"),
        ({"suppress_tokens": [2.5]}, ConfigError, "suppressed token 2.5 is not an id"),
        ({"suppress_tokens": ["ab"]}, ConfigError, "'ab' is 2 in 'letters'"),
        ({"pattern": 3}, ConfigError, "pattern must be a regular expression as a text, got 3"),
        ({"suppress_tokens": "ab"}, ConfigError, "are lists"),
        ({"pattern": "a", "words": ["b"]}, ConfigError, "a pattern or words, not both"),
        ({"pattern": "(a"}, TaskError, "cannot make a token mask of the pattern '\\(a'"),
        (
            {"pattern": "a{9}"},
            TaskError,
            "no response of task 'letters' can match 'a{9}': .*at most 6 tokens".replace("{9}", r"\{9\}"),
        ),
        ({"words": [""]}, ConfigError, "at least one character"),
        ({"top_k": 3}, ConfigError, "top_k and model go together"),
        ({"top_k": -1, "model": "embedded"}, ConfigError, "0 .off. or more, got -1"),
        ({"patern": "a"}, ConfigError, "no option 'patern'; expected some of suppress_tokens, pattern"),
        ("a", ConfigError, "got str"),
    ],
)
def test_bad_masks_are_refused(mask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TokenEnv(letter_task(), LetterTokenizer(), mask=mask)


def test_a_minimum_length_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(TaskError, match="every token but EOS is suppressed, and EOS is not allowed before 2 tokens"):
        TokenEnv(letter_task(minimum=2), LetterTokenizer(), mask={"suppress_tokens": list(range(1, 28))})


def test_a_pattern_of_letters_that_no_token_has_is_refused() -> None:
    with pytest.raises(TaskError, match="no response of task 'letters' can match 'X'"):
        TokenEnv(letter_task(), LetterTokenizer(), mask={"pattern": "X"})


def test_a_model_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(TaskError, match="has 30 tokens, the environment's tokenizer 'letters' has 28"):
        TokenEnv(letter_task(), LetterTokenizer(), mask=TokenMask(top_k=2, model=tiny_language_model(vocab_size=30)))


def test_an_empty_row_is_named() -> None:
    masks = np.ones((3, 5), dtype=np.bool_)
    assert refuse_empty(masks) is masks
    masks[1] = False
    with pytest.raises(TaskError, match="slot 1 allows no token"):
        refuse_empty(masks)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "outlines_core", None)
    with pytest.raises(TaskError, match=r"rlhf-gym\[grammar\]"):
        TokenEnv(letter_task(), LetterTokenizer(), mask={"pattern": "a"})


def test_specs_with_masks_survive_json() -> None:
    env = gym.make("rlhf_gym/Copy-v0", mask={"pattern": "[a-d]{2}", "suppress_tokens": ["b"]})
    assert env.spec is not None
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    for e in (env, again):
        e.reset(seed=0)
    assert np.array_equal(env.get_wrapper_attr("action_masks")(), again.get_wrapper_attr("action_masks")())


def test_tokenizers_of_ones_own_are_decoded_id_by_id() -> None:
    tokenizer: Tokenizer = LetterTokenizer(5)
    assert token_bytes(tokenizer) == [b"", b"", b"a", b"b", b"c"]
