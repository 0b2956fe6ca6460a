"""Responses as text: the same however they are cut into tokens, joined to their prompts, ended where a stop sequence is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import LetterTokenizer, tiny_language_model
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_gym.agents import PPO
from rlhf_gym.agents.best_of_n import best_of_n
from rlhf_gym.envs import TokenEnv, TokenVectorEnv, make_sb3_env
from rlhf_gym.errors import ConfigError, ModelError
from rlhf_gym.lm.decoding import generate
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.response_text import ResponseText
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.lm.tokenizer import (
    HubTokenizer,
    decode_all,
    encode_conversation,
    encode_response,
    end_ids,
    joins_plainly,
    load_tokenizer,
    never_drawn,
    wrap_tokenizer,
)
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import Prompt
from rlhf_gym.tasks.turn_template import TurnTemplate

Fast: Any = PreTrainedTokenizerFast


def bytes_hub(*special: str, **options: Any) -> Any:
    """All 256 bytes, each a token, as GPT-2 falls back to for Japanese."""
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>", "<pad>", *special])
    return Fast(tokenizer_object=backend, eos_token="<end>", pad_token="<pad>", **options)


WORDS = ["▁", *"abdefghilmostuwy", "▁the", "▁film", "▁was", "▁goo"]
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *WORDS]


def llama_hub() -> Any:
    """Llama 2's kind: a mark for the space, put before every text and dropped in decoding; bytes for what is no piece."""
    rust = Backend(models.BPE({p: i for i, p in enumerate(PIECES)}, [], byte_fallback=True, unk_token="<unk>"))
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    rust.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Fast(tokenizer_object=rust, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def t5_hub() -> Any:
    """T5's kind: Unigram, with a Metaspace that puts the mark before every text."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((p, -2.0) for p in WORDS)]
    rust = Backend(models.Unigram(pieces, unk_id=2))
    rust.pre_tokenizer, rust.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return Fast(tokenizer_object=rust, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


def words_hub() -> Any:
    """WordPiece: words with spaces between them."""
    names = ["[UNK]", "[PAD]", "[SEP]", "the", "film", "was", "goo", "##d", ".", "a"]
    rust = Backend(models.WordPiece({p: i for i, p in enumerate(names)}, unk_token="[UNK]"))
    rust.pre_tokenizer, rust.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=False)
    return Fast(tokenizer_object=rust, unk_token="[UNK]", pad_token="[PAD]", eos_token="[SEP]")


def first_stop(text: ResponseText, ids: Sequence[int], prompt: Sequence[int] = ()) -> int | None:
    """The number of tokens after which a response is found to be ended."""
    return next((n for n in range(1, len(ids) + 1) if text.stopped(ids[:n], prompt)), None)


@pytest.mark.parametrize("kind", ["bytes", "llama", "byt5"])
@pytest.mark.parametrize("stop", ["人間:終わりました。", "👩‍👩‍👧‍👦👩‍👩‍👧‍👦", "——————", "\n\nUser:", " — the end"])
def test_a_stop_sequence_is_found_whatever_its_tokens(kind: str, stop: str) -> None:
    hub = {"bytes": bytes_hub, "llama": llama_hub, "byt5": ByT5Tokenizer}[kind]()
    tokenizer = HubTokenizer(hub)
    text, start = ResponseText(tokenizer, [stop]), tokenizer.encode_prompt("a")
    for before in ("", "a", "とても良い映画でした。" * 3, "é…" * 9, " the film "):
        ids = encode_response(tokenizer, f"{before}{stop}")
        assert first_stop(text, ids, start) == len(ids)
        assert text.read(ids, start) == (before, True)
        assert first_stop(ResponseText(tokenizer, [stop + "x"]), ids, start) is None


def test_a_stop_sequence_is_found_behind_special_tokens_and_broken_bytes() -> None:
    tokenizer = HubTokenizer(bytes_hub())
    text, stop = ResponseText(tokenizer, ["終。"]), tokenizer.encode("終。")
    broken = tokenizer.encode("終")[:2]
    for between in ([257] * 30, broken * 10):
        ids = [*tokenizer.encode("ab"), *between, *stop]
        assert first_stop(text, ids) == len(ids)
    ids = [*stop[:3], *[257] * 30, *stop[3:]]
    assert first_stop(text, ids) == len(ids)


def test_the_end_of_a_long_response_is_all_that_is_decoded_at_each_token() -> None:
    hub = HubTokenizer(bytes_hub())
    text, sizes = ResponseText(hub, ["終。"]), []
    read = text._read
    text._read = lambda ids: (sizes.append(len(ids)), read(ids))[1]  # type: ignore[func-returns-value]
    ids = hub.encode("とても良い" * 40)
    assert first_stop(text, ids) is None
    assert max(sizes) < 50
    assert len(sizes) < 4 * len(ids)


SPACED: dict[str, Any] = {"llama": llama_hub, "t5": t5_hub, "words": words_hub}


@pytest.mark.parametrize("kind", SPACED)
def test_prompt_and_response_read_as_both_together(kind: str) -> None:
    tokenizer = HubTokenizer(SPACED[kind]())
    assert not joins_plainly(tokenizer)
    prompt = "the film"
    whole = tokenizer.encode_prompt("the film was good")
    start = tokenizer.encode_prompt(prompt)
    assert whole[: len(start)] == start
    ids = whole[len(start) :]
    assert ResponseText(tokenizer).read(ids, start) == (" was good", False)
    # A reward, the batch and the single environment, and decoding read the same.
    paid = lambda prompts, responses: [float(len(r)) for r in responses]  # noqa: E731
    task = Task("t", [Prompt(prompt)], reward=paid, max_new_tokens=len(ids))
    single, vector = TokenEnv(task, tokenizer), TokenVectorEnv(2, task, tokenizer)
    single.reset(seed=0)
    vector.reset(seed=0)
    for token in ids:
        _, reward, done, _, info = single.step(token)
        *_, infos = vector.step(np.array([token, token]))
    assert done
    assert (reward, info["prompt"] + info["response"]) == (9.0, "the film was good")
    assert list(infos["response"]) == [" was good"] * 2
    # What is encoded again, as for reward models and SFT, is the same tokens.
    if kind != "words":  # WordPiece has no tokens for a space
        assert encode_response(tokenizer, " was good") == ids
        for text in (" was", "was good", "s are", "\n was", "d"):
            again = encode_response(tokenizer, text)
            assert kind == "t5" or ResponseText(tokenizer).read(again, start) == (text, False)


def test_a_stop_sequence_that_begins_with_a_space_is_found_at_once() -> None:
    tokenizer = HubTokenizer(llama_hub())
    start, whole = tokenizer.encode_prompt("the film"), tokenizer.encode_prompt("the film was good")
    ids = whole[len(start) :]
    text = ResponseText(tokenizer, [" was"])
    assert first_stop(text, ids, start) == 4
    assert text.read(ids[:4], start) == ("", True)


def test_byte_level_texts_are_joined_already() -> None:
    for tokenizer in (load_tokenizer("embedded"), HubTokenizer(bytes_hub()), HubTokenizer(ByT5Tokenizer())):
        assert joins_plainly(tokenizer)
    assert joins_plainly(tiny_language_model().tokenizer)


def random_model(hub: Any, vocab_size: int, **generation: Any) -> LanguageModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=vocab_size, n_positions=128, n_embd=16, n_layer=1, n_head=2)
    network = GPT2LMHeadModel(config)
    network.generation_config = GenerationConfig(**generation)
    return LanguageModel(network, hub, "tiny")


def test_decoding_and_stepping_end_at_a_stop_sequence_of_many_tokens() -> None:
    # Bytes of "終" only: whatever is drawn, the stop sequence of one character and three tokens comes soon.
    hub = bytes_hub("<|im_end|>")
    a, b, c = hub.encode("終")
    model = random_model(hub, len(hub))
    others = tuple(i for i in range(len(hub)) if i not in (a, b, c, 258))
    task = Task(
        "t", [Prompt("x")], reward=lambda prompts, responses: [float("終終" in r) for r in responses],
        max_new_tokens=120, stop=("終終", "<|im_end|>"),
    )  # fmt: skip
    limits = Limits(256, others, max_new_tokens=120)
    found = generate(model, [hub.encode("x")] * 12, limits, stop=task.stop, seed=1)
    assert {g.ended for g in found} == {True}
    assert any(g.ids[-1] == 258 for g in found)
    assert all("<|" not in g.text for g in found)
    env = TokenVectorEnv(12, task, model.tokenizer, autoreset_mode="next_step")
    env.reset(seed=0)
    texts = {}
    for t in range(max(len(g.ids) for g in found)):
        *_, infos = env.step(np.array([g.ids[min(t, len(g.ids) - 1)] for g in found]))
        for i, g in enumerate(found):
            if t == len(g.ids) - 1:
                texts[i] = (infos["response"][i], bool(infos["ended"][i]))
    assert texts == {i: (g.text, True) for i, g in enumerate(found)}
    best = best_of_n(model, ["x"], lambda prompts, responses: [-len(r) for r in responses], 4, limits, stop=task.stop)
    assert "終終" not in best[0][0].text


def test_a_special_token_may_stand_anywhere_in_a_stop_sequence() -> None:
    tokenizer = HubTokenizer(bytes_hub("<|im_end|>", "<|x|>"))
    ids = [*tokenizer.encode("so"), 259, *tokenizer.encode(" good"), 258, *tokenizer.encode("\nuser")]
    assert tokenizer.decode(ids) == "so good\nuser"
    for stop, length in (("<|im_end|>", 9), ("<|im_end|>\n", 10), ("good<|im_end|>", 9)):
        text = ResponseText(tokenizer, [stop, "never"])
        assert first_stop(text, ids) == length
        assert text.read(ids[:length]) == ("so good" if stop[0] == "<" else "so ", True)
    rows, lengths = np.array([ids, ids]), np.array([9, 4])
    texts, stopped = ResponseText(tokenizer, ["<|im_end|>"]).read_all(rows, lengths, lambda: [[], []])
    assert (texts, stopped.tolist()) == (["so good", "so "], [True, False])


def test_generation_ends_at_each_of_several_ends_as_in_transformers() -> None:
    hub = bytes_hub()
    model = random_model(hub, len(hub) + 6, eos_token_id=[hub.eos_token_id, 100, 101], pad_token_id=257)
    assert model.tokenizer.eos_ids == (256, 100, 101)  # type: ignore[attr-defined]
    limits = Limits.of(model.tokenizer, max_new_tokens=100)
    assert limits.eos_ids == (256, 100, 101)
    assert set(range(258, 264)) < set(limits.suppress_tokens)
    prompts = [[5], [6, 7], [8], [9]]
    sampled = generate(model, prompts * 16, limits, seed=3)
    ends = {g.ids[-1] for g in sampled if g.ended}
    assert {100, 101} <= ends
    assert all(not set(g.ids[:-1]) & {256, 100, 101} for g in sampled)
    assert not {i for g in sampled for i in g.ids} & {*range(257, 264)}
    with torch.no_grad():
        model.model.transformer.wpe.weight.normal_(0, 3)  # type: ignore[operator, union-attr]
    for prompt in prompts:
        (ours,) = generate(model, [prompt], limits, greedy=True)
        given = torch.tensor([prompt])
        suppress = list(limits.suppress_tokens)
        theirs = model.model.generate(given, do_sample=False, max_new_tokens=100, suppress_tokens=suppress)  # type: ignore[operator]
        assert theirs[0, len(prompt) :].tolist() == ours.ids
    early = Limits.of(model.tokenizer, 6, 100)
    assert all(not set(g.ids[:6]) & {256, 100, 101} for g in generate(model, prompts * 8, early, seed=3))


def test_a_padded_embedding_and_several_ends_hold_in_training() -> None:
    hub = bytes_hub()
    model = random_model(hub, len(hub) + 6, eos_token_id=[256, *range(100, 130)], pad_token_id=257)
    task = Task("t", [Prompt("x")], reward=lambda prompts, responses: [0.0] * len(prompts), max_new_tokens=8)
    for collect in ("auto", "step"):
        env = make_sb3_env(4, task=task, tokenizer=model.tokenizer, seed=0)
        agent = PPO(
            "LMPolicy", env, language_model=model, missing_eos_penalty=1.0, collect=collect, seed=0, batch_size=4
        )
        agent.learn(iterations=1)
        assert agent.policy.limits.eos_ids[1:] == tuple(range(100, 130))
    masks = TokenVectorEnv(1, task, model.tokenizer).action_masks()
    assert not masks[0, 257:].any()
    assert masks[0, :257].all()
    other = make_sb3_env(4, task=task, tokenizer=HubTokenizer(hub, vocab_size=264))
    # By its name, which need not lead anywhere, a model in memory has no tokenizer.
    with pytest.raises(ConfigError, match=r"responses with id 256, 'tiny' .*: tokenizer=language_model\.tokenizer"):
        PPO("LMPolicy", other, language_model=model, batch_size=4)


@pytest.mark.parametrize("own", [False, True])
def test_a_model_leaves_the_tokenizer_that_others_hold_as_it_is(own: bool) -> None:
    tokenizer: Any = LetterTokenizer(28) if own else HubTokenizer(bytes_hub())
    task = Task("t", [Prompt("x")], reward=lambda prompts, responses: [0.0] * len(prompts), max_new_tokens=8)
    env = make_sb3_env(2, task=task, tokenizer=tokenizer)
    before = vars(tokenizer).copy()
    size, end = tokenizer.vocab_size, tokenizer.eos_id
    first = random_model(tokenizer, size, eos_token_id=end)
    second = random_model(tokenizer, size, eos_token_id=[end, 20, 21])
    assert vars(tokenizer) == before
    assert end_ids(first.tokenizer) == env.eos_ids == (end,)
    assert end_ids(second.tokenizer) == (end, 20, 21)
    assert env.env.token_rules.more_eos_ids == ()
    PPO("LMPolicy", env, language_model=first, batch_size=2)
    with pytest.raises(
        ConfigError, match=f"the environment ends responses with id {end}, 'tiny' with ids {end}, 20 and 21"
    ):
        PPO("LMPolicy", env, language_model=second, batch_size=2)


def test_ends_that_a_class_has_by_default_are_no_ends_of_another_vocabulary() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 260,
    }
    network = LlamaForCausalLM(LlamaConfig(**sizes))
    assert network.config.eos_token_id == 2
    assert LanguageModel(network, bytes_hub(), "x").tokenizer.eos_ids == (256,)  # type: ignore[attr-defined]


def test_padding_is_none_of_the_ends(tmp_path: Any) -> None:
    # Qwen's kind: the padding token is the base model's end, which the chat model's files list, too.
    hub = bytes_hub()
    model = random_model(hub, 264, eos_token_id=[256, 257])
    assert model.tokenizer.eos_ids == (256, 257)
    assert model.tokenizer.pad_id == 258
    model.save(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert (loaded.eos_ids, loaded.pad_id, loaded.vocab_size) == ((256, 257), 258, 264)
    # A transformers tokenizer alone finds the model's facts beside it.
    from transformers import AutoTokenizer

    alone = wrap_tokenizer(AutoTokenizer.from_pretrained(str(tmp_path)))
    assert isinstance(alone, HubTokenizer)
    assert (alone.eos_ids, alone.pad_id, alone.vocab_size) == ((256, 257), 258, 264)


@pytest.mark.parametrize("hub", [bytes_hub(), ByT5Tokenizer()], ids=["fast", "slow"])
def test_a_transformers_tokenizer_is_taken_wherever_ours_is(hub: Any) -> None:
    size, ours = len(hub), wrap_tokenizer(hub)
    assert Limits.of(hub, max_new_tokens=3) == Limits.of(ours, max_new_tokens=3)
    rows, lengths = np.array([[100, 101, 102]]), np.array([2])
    for one in (hub, ours):
        assert ResponseText(one, ("c",)).read([100, 101, 102])[0] == ours.decode([100, 101, 102]).partition("c")[0]
        assert decode_all(one, rows, lengths) == [ours.decode([100, 101])]
        assert TurnTemplate(one).begin([{"role": "user", "content": "ab"}]) == ours.encode_prompt("ab")
        assert (end_ids(one), never_drawn(one)) == ((ours.eos_id,), never_drawn(ours))
        assert joins_plainly(one) == joins_plainly(ours)
        assert encode_conversation(one, "ab") == ours.encode_prompt("ab")
        assert encode_response(one, "ab") == encode_response(ours, "ab")
    model = random_model(hub, size)
    task = Task("t", [Prompt("ab")], reward=lambda prompts, responses: [0.0] * len(prompts), max_new_tokens=2)
    env = TokenEnv(task, hub)
    assert env.action_space.n == model.vocab_size == size
    env.reset(seed=0)
    for token in hub.encode("cd", add_special_tokens=False):
        *_, info = env.step(token)
    assert info["response"] == "cd"
    agent = PPO("LMPolicy", make_sb3_env(2, task=task, tokenizer=hub), language_model=model, batch_size=2)
    assert agent.policy.limits.eos_id == hub.eos_token_id
    assert TokenEnv(Task("t", [Prompt("ab")], reward=task.reward, tokenizer=hub)).action_space.n == size
    with pytest.raises(ModelError, match="expected a tokenizer"):
        wrap_tokenizer(object())  # type: ignore[arg-type]
