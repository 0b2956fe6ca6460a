"""Sequence classifiers as rewards: the numbers of transformers' own pipeline, whatever the batch, and the end of long texts."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_language_model
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    pipeline,
)

from rlhf_gym.errors import ConfigError, ModelError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import load_adapter
from rlhf_gym.reward_model import RewardModel
from rlhf_gym.rewards import load_reward, score
from rlhf_gym.rewards.builtin.classifier import Classifier, sentiment_classifier, toxicity

WORDS = [chr(97 + i) for i in range(20)]
TEMPLATE = "{% for m in messages %}{{ m.role[0] }} {{ m.content }} q {% endfor %}"
PROMPTS = ["a b", "c", "a b c d e", "f"]
RESPONSES = ["g h i", "j k l m n o", "g", "h h"]


def tokenizer(*, encloses: bool, pad: bool = True, template: str | None = None) -> Any:
    """A word a token; ``encloses``: ``[CLS] text [SEP]``, ``[CLS] one [SEP] two [SEP]``."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "<end>"]
    backend = Backend(models.WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if encloses:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    names: dict[str, Any] = {"cls_token": "[CLS]", "sep_token": "[SEP]"} if encloses else {"eos_token": "<end>"}
    if pad:
        names["pad_token"] = "[PAD]"
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", model_max_length=64, **names)
    made.chat_template = template
    return made


def bert(folder: Path, labels: tuple[str, ...] = ("bad", "fair", "good"), **config: Any) -> Path:
    torch.manual_seed(0)
    network = BertForSequenceClassification(
        BertConfig(
            vocab_size=25, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=24, id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)},
            pad_token_id=0, initializer_range=0.5, **config,
        )
    )  # fmt: skip
    network.save_pretrained(folder)
    tokenizer(encloses=True).save_pretrained(folder)
    return folder


def gpt2(folder: Path, **given: Any) -> Path:
    torch.manual_seed(0)
    network = GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=25, n_positions=32, n_embd=32, n_layer=2, n_head=2, num_labels=1, eos_token_id=4, bos_token_id=4,
            initializer_range=0.5,
        )
    )  # fmt: skip
    network.save_pretrained(folder)
    tokenizer(encloses=False, **given).save_pretrained(folder)
    return folder


def values(reward: Any, prompts: list[str] = PROMPTS, responses: list[str] = RESPONSES) -> list[float]:
    return list(score(reward, prompts, responses).values)


def outputs(given: Any) -> dict[str, float]:
    """What the pipeline gave for one text, by label."""
    rows = given[0] if isinstance(given[0], list) else given
    return {row["label"]: row["score"] for row in rows}


@pytest.mark.parametrize(("output", "function"), [("logit", "none"), ("probability", "softmax")])
def test_agrees_with_transformers_pipeline(tmp_path: Path, output: Any, function: str) -> None:
    folder = bert(tmp_path)
    theirs = pipeline("text-classification", model=str(folder), top_k=None, function_to_apply=function, device="cpu")
    reward = Classifier(folder, head="good", output=output, read="response", device="cpu")
    expected = [outputs(theirs(r))["good"] for r in RESPONSES]
    np.testing.assert_allclose(values(reward), expected, atol=1e-5)
    assert values(Classifier(folder, head=2, output=output, read="response", device="cpu")) == values(reward)


def test_pairs_and_continuations(tmp_path: Path) -> None:
    folder = bert(tmp_path)
    theirs = pipeline("text-classification", model=str(folder), top_k=None, function_to_apply="none", device="cpu")
    pair = [{"text": p, "text_pair": r} for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    expected = [outputs(theirs(x))["bad"] for x in pair]
    np.testing.assert_allclose(values(Classifier(folder, head="bad", read="pair", device="cpu")), expected, atol=1e-5)
    joined = [p + " " + r for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    expected = [outputs(theirs(x))["bad"] for x in joined]
    spaced = values(Classifier(folder, head="bad", device="cpu"), [p + " " for p in PROMPTS])
    np.testing.assert_allclose(spaced, expected, atol=1e-5)


def test_several_labels_at_once_and_a_single_output_are_sigmoids(tmp_path: Path) -> None:
    folder = bert(tmp_path, problem_type="multi_label_classification")
    logit, probability = (
        np.array(values(Classifier(folder, head="fair", output=o, device="cpu")))
        for o in ("logit", "probability")  # type: ignore[arg-type]
    )
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-logit)), atol=1e-6)
    single = Classifier(gpt2(tmp_path / "g"), output="probability", device="cpu")
    assert all(0 < v < 1 for v in values(single))


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("read", ["continuation", "chat"])
def test_batches_change_nothing_in_a_causal_reward_model(tmp_path: Path, pad: bool, read: Any) -> None:
    folder = gpt2(tmp_path, pad=pad, template=TEMPLATE)
    reward = Classifier(folder, read=read, device="cpu")
    single = [values(reward, [p], [r])[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    np.testing.assert_allclose(values(reward), single, atol=1e-5)
    np.testing.assert_allclose(
        values(Classifier(folder, read=read, tokens_per_batch=8, device="cpu")), single, atol=1e-5
    )
    # By hand: the last token's state through the head.
    network, made = reward._network, reward._tokenizer
    text = "a bg h i" if read == "continuation" else "u a b q a g h i q"
    ids = torch.tensor([made(text, add_special_tokens=False)["input_ids"]])
    by_hand = network.score(network.transformer(ids).last_hidden_state)[0, -1, 0].item()
    assert single[0] == pytest.approx(by_hand, abs=1e-5)
    # The template is used by itself where there is one.
    assert (values(Classifier(folder, device="cpu")) == values(reward)) is (read == "chat")


def test_long_texts_lose_their_beginning_and_it_is_said_once(tmp_path: Path) -> None:
    folder = bert(tmp_path)  # sees 24 tokens, [CLS] and [SEP] among them
    reward = Classifier(folder, head=0, device="cpu")
    end = " ".join(["m"] * 10 + ["n"] * 12)
    with pytest.warns(UserWarning, match=r"34 tokens exceeds the 24 that the model is shown; its beginning is cut"):
        long = values(reward, ["a b c d e f g h i j "], [end])
    assert long == pytest.approx(values(reward, [""], [end]), abs=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values(reward, ["a b c d e f g h i j "], [end])
    short = Classifier(folder, head=0, max_tokens=8, device="cpu")
    with pytest.warns(UserWarning, match="exceeds the 8"):
        assert values(short, ["a b c "], ["d e f g h i"]) == pytest.approx(
            values(reward, [""], ["d e f g h i"]), abs=1e-6
        )


@pytest.mark.filterwarnings("ignore:reward .* exceeds")
@pytest.mark.parametrize("lengths", [(9, 4), (2, 12), (8, 8)])
@pytest.mark.parametrize("read", ["chat", "continuation", "pair", "response"])
def test_the_end_of_the_response_and_what_opens_a_text_are_kept(tmp_path: Path, read: Any, lengths: Any) -> None:
    """The last four words of the response are seen however long prompt and response are."""
    prompt, response = " ".join(WORDS[: lengths[0]]) + " ", " ".join(WORDS[-lengths[1] :])
    # <end> opens a text, too, as in GPT-2
    folder = gpt2(tmp_path, template="<end> " + TEMPLATE) if read == "chat" else bert(tmp_path)
    reward = Classifier(folder, head=0, read=read, max_tokens=12, device="cpu")
    reward._tokenizer.bos_token = "<end>" if read == "chat" else None
    encoded = reward._encode(reward._tokenizer, prompt, response)
    seen = reward._tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert len(seen) <= 12
    assert seen[0] == ("<end>" if read == "chat" else "[CLS]")
    assert seen[-5:-1] == WORDS[-4:]  # behind it the template's, or the tokenizer's, own closing
    assert {name: len(row) for name, row in encoded.items()} == dict.fromkeys(encoded, len(seen))


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    folder = bert(tmp_path / "bert")
    with pytest.raises(
        ConfigError, match=r"has the outputs bad, fair, good; expected head to be one of them or a number in 0\.\.2"
    ):
        Classifier(folder, device="cpu")
    with pytest.raises(ConfigError, match="got 'great'"):
        Classifier(folder, head="great", device="cpu")
    with pytest.raises(ConfigError, match="has no chat template"):
        Classifier(folder, head=0, read="chat", device="cpu")
    with pytest.raises(ConfigError, match="output must be one of logit, probability, got 'score'"):
        Classifier(folder, output="score")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="unknown model"):
        Classifier(tmp_path / "absent", device="cpu")
    tiny_language_model().model.save_pretrained(tmp_path / "lm")
    tokenizer(encloses=False).save_pretrained(tmp_path / "lm")
    with pytest.raises(ModelError, match="not a trained sequence classifier"):
        Classifier(tmp_path / "lm", device="cpu")


def test_reward_models_by_their_folder(tmp_path: Path) -> None:
    folder = gpt2(tmp_path / "theirs")
    assert values(load_reward(str(folder), device="cpu")) == values(Classifier(folder, device="cpu"))
    ours = RewardModel(LanguageModel.load("embedded", device="cpu"), seed=1)
    ours.gain = 2.0
    ours.save(tmp_path / "ours")
    loaded = load_reward({"reward": str(tmp_path / "ours"), "device": "cpu"})
    np.testing.assert_allclose(values(loaded), ours(PROMPTS, RESPONSES), atol=1e-5)
    with pytest.raises(ConfigError, match="takes device and dtype"):
        load_reward("reward_model", path=tmp_path / "ours", head=1)
    (tmp_path / "ours" / "reward_model.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ConfigError, match="reward_model"):
        load_reward(str(tmp_path / "ours"))


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Path, Any]:
    """A folder with an adapter of a reward model, as TRL's reward trainer writes it, and the network that it was saved from."""
    peft = pytest.importorskip("peft")
    base = tiny_language_model("llama", vocab_size=25).model
    base.save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    network = LlamaForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1, pad_token_id=0)
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=["q_proj", "down_proj"], modules_to_save=["score"]
    )
    trained = peft.get_peft_model(network, config).eval()
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_()
    trained.save_pretrained(tmp_path / "adapter")
    tokenizer(encloses=False).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", trained


def test_an_adapter_of_a_reward_model_is_merged_into_its_base(
    adapter: tuple[Path, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    folder, trained = adapter
    capfd.readouterr()
    load_reward(str(folder), device="cpu")
    said = capfd.readouterr()
    assert not said.out + said.err  # no table of missing weights: the output layer is the adapter's
    made = tokenizer(encloses=False)
    with torch.no_grad():
        expected = [
            float(trained(**made(p + r, return_tensors="pt")).logits) for p, r in zip(PROMPTS, RESPONSES, strict=True)
        ]
    np.testing.assert_allclose(values(load_reward(str(folder), device="cpu")), expected, rtol=1e-4, atol=1e-5)
    (folder.parent / "base").rename(folder.parent / "elsewhere")
    with pytest.raises(ModelError, match=r"holds an adapter of .*base', which is not there.*give base="):
        Classifier(folder, device="cpu")
    moved = Classifier(folder, base=folder.parent / "elsewhere", device="cpu")
    np.testing.assert_allclose(values(moved), expected, rtol=1e-4, atol=1e-5)


def test_adapters_that_are_no_reward_are_refused_with_what_to_do(adapter: tuple[Path, Any]) -> None:
    folder, _ = adapter
    with pytest.raises(ModelError, match=r"adapter of a sequence classifier.*give it as one.*--reward"):
        LanguageModel.load(str(folder))
    with pytest.raises(ModelError, match=r"adapter of a sequence classifier.*give it as one"):
        load_adapter(tiny_language_model("llama", vocab_size=25), folder)
    file = folder / "adapter_model.safetensors"
    whole = load_file(file)
    head = "base_model.model.score.weight"
    save_file({name: tensor for name, tensor in whole.items() if "down_proj" not in name}, file)
    with pytest.raises(ModelError, match=r"does not fit.*down_proj.*None, expected"):
        Classifier(folder, device="cpu")
    save_file({name: tensor for name, tensor in whole.items() if name != head}, file)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(settings | {"task_type": "CAUSAL_LM", "modules_to_save": None})
    )
    with pytest.raises(ModelError, match="adapter of a language model, without a classifier's output layer"):
        Classifier(folder, device="cpu")
    file.unlink()
    with pytest.raises(ModelError, match=r"without adapter_model\.safetensors"):
        Classifier(folder, device="cpu")
    with pytest.raises(ConfigError, match="is no adapter"):
        Classifier(gpt2(folder.parent / "whole"), base="x", device="cpu")


def test_ensembles_of_reward_models(tmp_path: Path) -> None:
    folder = bert(tmp_path)
    parts = [{"reward": "classifier", "model": str(folder), "head": i, "device": "cpu"} for i in range(3)]
    each = np.array([values(load_reward(part)) for part in parts])
    doubting = {"ensemble": parts, "std_weight": 0.5, "variance_weight": 2}
    expected = each.mean(0) - 0.5 * each.std(0) - 2 * each.var(0)
    np.testing.assert_allclose(values(load_reward(doubting)), expected, atol=1e-5)
    np.testing.assert_allclose(values(load_reward({"minimum": parts})), each.min(0), atol=1e-5)


def test_presets_are_classifiers_of_the_hub_with_a_head(tmp_path: Path) -> None:
    folder = bert(tmp_path, ("toxic", "POSITIVE"))
    for make, output in ((toxicity, "probability"), (sentiment_classifier, "logit")):
        local = make(str(folder), device="cpu")
        assert local.output == output
        assert len(values(local)) == len(PROMPTS)
    with pytest.raises(ModelError, match="unitary/toxic-bert"):  # there is no hub in tests
        toxicity()
    assert load_reward("sentiment_classifier", model=str(folder)).head == "POSITIVE"  # type: ignore[union-attr]
