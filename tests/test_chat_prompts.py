"""Prompts as messages go through the tokenizer's own chat template, wherever a prompt is encoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_response_text import bytes_hub, random_model
from tiny_models import LetterTokenizer
from tokenizers import processors

from rlhf_gym.agents import PPO, SFT
from rlhf_gym.agents.best_of_n import best_of_n
from rlhf_gym.agents.common.given_pairs import encoded_pairs
from rlhf_gym.envs import TokenEnv, make_sb3_env
from rlhf_gym.errors import ConfigError, ModelError, TaskError
from rlhf_gym.feedback import Judgement, Query
from rlhf_gym.feedback.exchange.transcripts import prompt_of_messages
from rlhf_gym.feedback.preferences import preferences_from
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.model_ends import ModelEnds
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.lm.tokenizer import HubTokenizer, encode_conversation, end_ids, load_tokenizer
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.context import load_reference
from rlhf_gym.reward_model import RewardModel
from rlhf_gym.rewards.builtin.perplexity import Perplexity
from rlhf_gym.tasks.prompt_files import prompts_from_file
from rlhf_gym.tasks.table import table_task

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start|>' + m.role + '<|mid|>\n\n' + m.content | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|mid|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}"
    "{% endif %}{{ '<turn>' + m.role.replace('assistant', 'model') + '\n' + m.content | trim + '<eot>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% else %}{{ raise_exception('Only two roles') }}"
    "{% endif %}{% endfor %}"
)
ASKED = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "3+3?"},
]
SHOWN = {
    CHATML: (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>user\n3+3?<|im_end|>\n<|im_start|>assistant\n"
    ),
    LLAMA3: (
        "<s><|start|>system<|mid|>\n\nBe brief.<|eot|><|start|>user<|mid|>\n\n2+2?<|eot|><|start|>assistant<|mid|>\n\n4<|eot|>"
        "<|start|>user<|mid|>\n\n3+3?<|eot|><|start|>assistant<|mid|>\n\n"
    ),
    GEMMA: "<s><turn>user\nBe brief.\n\n2+2?<eot>\n<turn>model\n4<eot>\n<turn>user\n3+3?<eot>\n<turn>model\n",
    MISTRAL: "<s>[INST] Be brief.\n\n2+2? [/INST] 4<end>[INST] 3+3? [/INST]",
}


def chat_hub(template: str | None = CHATML) -> Any:
    """Bytes with a BOS that every text begins with, as in Llama's and Gemma's families."""
    hub = bytes_hub("<s>", "<|im_start|>", "<|im_end|>", bos_token="<s>", chat_template=template)
    closing = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", hub.convert_tokens_to_ids("<s>"))])
    hub.backend_tokenizer.post_processor = closing
    return hub


@pytest.mark.parametrize("template", SHOWN)
def test_messages_go_through_the_tokenizer_s_own_template(template: str) -> None:
    tokenizer = HubTokenizer(chat_hub(template))
    ids = encode_conversation(tokenizer, "a transcript", ASKED)
    assert tokenizer.decode_special(ids) == SHOWN[template]
    assert ids.count(tokenizer.hub.bos_token_id) == template.count("bos_token")  # never a second one
    assert tokenizer.encode_prompt("3+3?") == tokenizer.encode_messages(ASKED[-1:])


def test_messages_that_a_template_refuses_are_refused_with_its_reason() -> None:
    with pytest.raises(ModelError, match="refuses these messages: Roles must alternate"):
        HubTokenizer(chat_hub(GEMMA)).encode_messages([ASKED[1], ASKED[1]])


def test_parts_that_are_texts_are_text_and_what_cannot_be_a_prompt_is_refused() -> None:
    tokenizer = HubTokenizer(chat_hub())
    whole = [{"role": m["role"], "content": [{"type": "text", "text": t} for t in m["content"]]} for m in ASKED]
    ids = encode_conversation(tokenizer, "a transcript", whole)
    assert tokenizer.decode_special(ids) == SHOWN[CHATML]
    assert prompt_of_messages(whole) == prompt_of_messages(ASKED)
    ((one,), _) = encoded_pairs([(whole, "6")], random_model(chat_hub(), len(chat_hub())), Limits.of(tokenizer))
    assert one.prompt_ids.tolist() == ids
    picture = [{"role": "user", "content": [{"type": "image", "url": "x.png"}]}]
    with pytest.raises(ModelError, match=r"must be a text, or parts that are all texts, .* got \[\{'type': 'image'"):
        encode_conversation(tokenizer, "what is this?", picture)
    with pytest.raises(ConfigError, match=r"data\[0\] must be .* parts that are all texts"):
        SFT.Settings(data=[(picture, "a cat")])
    # A conversation that the assistant has ended is no prompt; its own user's text alone may be one.
    with pytest.raises(ModelError, match=r"expected chat messages that end with the user's .* the assistant's '4'"):
        encode_conversation(tokenizer, prompt_of_messages(ASKED[:3]), ASKED[:3])
    assert encode_conversation(tokenizer, "2+2?", ASKED[:3]) == tokenizer.encode_prompt("2+2?")
    assert encode_conversation(tokenizer, "x", ASKED[:3], "4") == tokenizer.encode_messages(ASKED[:2])


def test_the_template_may_be_left_off_demanded_or_given(tmp_path: Path) -> None:
    text, file = "3+3?", tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}Q: {{ m.content }}{% endfor %} A:", encoding="utf-8")
    hub = chat_hub()
    plain = HubTokenizer(hub, chat_template="off")
    assert plain.encode_prompt(text) == hub.encode(text)
    assert encode_conversation(plain, "\n\nHuman: 3+3?\n\nAssistant:", ASKED) == hub.encode(
        "\n\nHuman: 3+3?\n\nAssistant:"
    )
    assert hub.chat_template == CHATML  # what somebody gave is not changed
    assert plain.decode(HubTokenizer(hub, chat_template=str(file)).encode_prompt(text)) == "Q: 3+3? A:"
    assert HubTokenizer(hub, chat_template="on").is_chat
    with pytest.raises(ModelError, match="'on', but the tokenizer of 'base' has no chat template"):
        HubTokenizer(chat_hub(None), "base", chat_template="on")
    with pytest.raises(ModelError, match=r"must be auto, on, off or a file .* 'of' cannot be read"):
        HubTokenizer(hub, chat_template="of")
    # A saved model keeps the choice.
    model = random_model(HubTokenizer(hub, chat_template="off"), len(hub))
    model.save(tmp_path / "off")
    assert not load_tokenizer(str(tmp_path / "off")).is_chat
    model = random_model(hub, len(hub))
    model.save(tmp_path / "auto")
    assert LanguageModel.load(str(tmp_path / "auto")).tokenizer.is_chat  # type: ignore[attr-defined]
    assert not LanguageModel.load(str(tmp_path / "auto"), chat_template="off").tokenizer.is_chat  # type: ignore[attr-defined]
    reference = load_reference(
        build({"model": {"name": str(tmp_path / "auto"), "chat_template": str(file), "device": "cpu"}})
    )
    assert reference.tokenizer.encode_prompt("x") == hub.encode("Q: x A:", add_special_tokens=False)


def test_a_save_over_another_model_s_folder_leaves_nothing_of_that_one(tmp_path: Path) -> None:
    hub, folder = chat_hub(), tmp_path / "model"
    hub.chat_template = {"default": CHATML, "tool_use": "tools"}
    several = HubTokenizer(hub, ends=ModelEnds(chosen=(hub.convert_tokens_to_ids("<|im_end|>"),)))
    first = random_model(several, len(hub))
    first.save(folder)
    loaded = LanguageModel.load(str(folder))
    assert loaded.tokenizer.is_chat  # type: ignore[attr-defined]
    assert end_ids(loaded.tokenizer) == several.eos_ids  # the tokenizer's ends, in the model's files
    assert len(several.eos_ids) == 2
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")  # a LoRA folder that becomes a whole model's
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    off = random_model(HubTokenizer(hub, chat_template="off"), len(hub))
    off.save(folder)
    again = LanguageModel.load(str(folder))
    assert not again.tokenizer.is_chat  # type: ignore[attr-defined]
    assert end_ids(again.tokenizer) == end_ids(off.tokenizer) == (hub.eos_token_id,)
    assert again.tokenizer.encode_prompt("3+3?") == off.tokenizer.encode_prompt("3+3?")
    assert not list(folder.rglob("*.jinja"))
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine"
    # Into the folder that it was loaded from.
    again.save(folder)
    assert LanguageModel.load(str(folder)).tokenizer.encode_prompt("a") == again.tokenizer.encode_prompt("a")
    # A tokenizer of one's own has no files: those of the other one would be taken for it.
    LanguageModel(off.model, LetterTokenizer(len(hub))).save(folder)
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "notes.txt",
    ]  # fmt: skip


def test_a_checkpoint_of_an_adapter_keeps_the_choice_of_its_base_s_template(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    random_model(chat_hub(), len(chat_hub())).save(tmp_path / "base")
    for setting in ("off", "auto"):
        model = LanguageModel.load(str(tmp_path / "base"), device="cpu", chat_template=setting)
        task = table_task(
            [{"prompt": "3+3?"}], reward=lambda prompts, responses: [0.0] * len(prompts), max_new_tokens=2
        )
        env = make_sb3_env(2, task=task, tokenizer=model.tokenizer)
        PPO("LMPolicy", env, language_model=model, lora={}, device="cpu").save(tmp_path / "agent")
        loaded = PPO.load(tmp_path / "agent", device="cpu").policy.language_model.tokenizer
        assert loaded.encode_prompt("3+3?") == model.tokenizer.encode_prompt("3+3?"), setting


def test_every_prompt_of_a_chat_model_is_its_conversation(tmp_path: Path) -> None:
    rows = [{"prompt": ASKED, "answer": "6"}, {"prompt": ASKED[:2], "answer": "4"}]
    table = tmp_path / "asked.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows * 3), encoding="utf-8")
    task = table_task(
        str(table),
        prompt="prompt",
        reward=lambda prompts, responses: [0.0] * len(prompts),
        held_out=[{"prompt": "unseen"}],
        max_new_tokens=4,
    )
    hub = chat_hub()
    model = random_model(hub, len(hub))
    tokenizer = model.tokenizer
    expected = [hub.encode(SHOWN[CHATML], add_special_tokens=False), tokenizer.encode_messages(ASKED[:2])]  # type: ignore[attr-defined]
    prompt = next(p for p in task.prompts if p.columns["messages"] == ASKED)
    assert "Human: 2+2?" in prompt.text  # what rewards, people and models without a template are shown
    # Environments.
    env = TokenEnv(task, tokenizer)
    observation, _ = env.reset(seed=0)
    assert observation["ids"][: observation["prompt_length"][0]].tolist() in expected
    # A reward model: the response is the assistant's turn; fitted to people's answers, and as a reward.
    reward_model = RewardModel(model)
    whole = [*expected[0], *hub.encode("6", add_special_tokens=False), tokenizer.eos_id]
    assert reward_model.encode(prompt.text, "6", ASKED).tolist() == whole
    query = Query(prompt=prompt.text, responses=("6", "7"), columns=prompt.columns)
    (preference,) = preferences_from(query, Judgement(query_id=query.id, rater="ann", choice=0))
    assert preference.messages == ASKED
    with torch.no_grad():
        raw = float(reward_model.scores([whole])[0])
    assert reward_model([prompt.text], ["6"], messages=[ASKED]) == pytest.approx([raw])
    assert reward_model(
        [prompt.text], ["6"], messages=[[*ASKED, {"role": "assistant", "content": "6"}]]
    ) == pytest.approx([raw])
    # SFT, best-of-n, perplexity.
    ((pair,), _) = encoded_pairs([(ASKED, "6")], model, Limits.of(tokenizer))
    assert (pair.prompt_ids.tolist(), pair.response_ids.tolist()) == (expected[0], whole[len(expected[0]) :])
    generated = best_of_n(
        model, [prompt.text], lambda prompts, responses: [0.0] * len(prompts), 2, Limits.of(tokenizer, 0, 4),
        columns={"messages": [ASKED]}, seed=1,
    )  # fmt: skip
    again = best_of_n(
        model, ["3+3?"], lambda prompts, responses: [0.0] * len(prompts), 2, Limits.of(tokenizer, 0, 4), seed=1
    )
    assert generated[0][0].ids != again[0][0].ids
    perplexity = Perplexity(model)
    assert perplexity([prompt.text], ["6"], [ASKED]) != perplexity([prompt.text], ["6"])
    agent = SFT(
        "LMPolicy",
        make_sb3_env(2, task=task, tokenizer=tokenizer),
        language_model=model,
        data=[(ASKED, "6")],
        batch_size=1,
        n_episodes=2,
    )
    agent.learn(iterations=1)


def test_a_run_s_file_of_prompts_may_hold_messages(tmp_path: Path) -> None:
    rows = [{"prompt": ASKED}, {"prompt": "plain"}]
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked, plain = prompts_from_file(file)
    assert asked.columns["messages"] == ASKED
    assert asked.text.endswith("Human: 3+3?\n\nAssistant:")
    assert (plain.text, dict(plain.columns)) == ("plain", {})
    file.write_text(json.dumps({"messages": ASKED}) + "\n", encoding="utf-8")
    (asked,) = prompts_from_file(file, column="messages")
    assert asked.columns["messages"] == ASKED
    table = tmp_path / "asked.csv"
    table.write_text('prompt\n"' + json.dumps(ASKED).replace('"', '""') + '"\n', encoding="utf-8")
    assert prompts_from_file(table)[0].columns["messages"] == ASKED
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    file.write_text(json.dumps({"prompt": parts}) + "\n", encoding="utf-8")
    (asked,) = prompts_from_file(file)
    assert (asked.text, asked.columns["messages"]) == ("hi", [{"role": "user", "content": "hi"}])
    file.write_text(json.dumps({"prompt": [{"role": "user", "content": 3}]}) + "\n", encoding="utf-8")
    with pytest.raises(
        TaskError, match=r"row 1, column 'prompt': the content of a chat message must be a text.* got 3"
    ):
        prompts_from_file(file)
    file.write_text(json.dumps({"prompt": ASKED[:3]}) + "\n", encoding="utf-8")
    with pytest.raises(TaskError, match="row 1: expected a text or chat messages that end with the user's"):
        prompts_from_file(file)
