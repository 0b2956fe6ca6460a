"""Process reward models: a network that judges every step of a response."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.lm.chat_template import messages_before, render_chat
from rlhf_gym.rewards.builtin.steps import Steps, Whole

NAME = "process_reward_model"


def process_reward_model(model: str | Path, *, split: str = "\n", whole: Whole = "minimum", **options: Any) -> Steps:
    r"""A process reward model, each step paid at its end; a response is worth its worst step (or see ``whole``).

    Args:
        model: its folder, or its name on the Hugging Face hub.
        split: the text that separates the policy's steps, or ``"sentence"``.
        whole: what a response is worth in all: ``"minimum"``, ``"mean"``, ``"last"`` or ``"sum"``; see :class:`Steps`.
        options: of :class:`ProcessModel`: ``mark``, ``after``, ``good``, ``bad``, ``label``, ``output``, ``read``, ...

    Raises:
        ConfigError, ModelError: as :class:`ProcessModel` and :class:`Steps`.
    """
    return Steps(ProcessModel(model, **options), split=split, whole=whole)


class ProcessModel:
    r"""Judges steps by the output at each step's own mark, in one pass over prompt and response.

    Two kinds. A token classifier (TRL's ``PRMTrainer`` makes them, with the mark ``"\n"``): the probability of a label. A
    causal language model that says ``good`` or ``bad`` after the mark (Math-Shepherd, Wang et al. 2024: mark ``"ки"``): the
    probability of ``good`` against ``bad``. The model reads the prompt (by its chat template, where it has one), then each
    step, the mark, and ``after``. Weights come from safetensors; no code from the hub is run.

    Args:
        model: a folder, or a name on the Hugging Face hub.
        mark: the text behind each step that the model judges it at; the output is read at its last token.
        after: a text between a mark and the next step.
        good: of a causal model: the token of a right step.
        bad: of a causal model: the token of a wrong step.
        label: of a token classifier: the label of a right step, by name or number; None: the last one.
        output: ``"probability"``, 0 to 1; ``"logit"``: its log-odds (of a classifier with one output, that output).
        read: how the prompt is given: ``"chat"``, ``"plain"``, or ``"auto"``: chat where there is a template.
        tokens_per_batch: most padded tokens of one forward pass; changes memory and speed, not the values.
        revision: commit, tag or branch on the hub.
        device: ``"cpu"``, ``"cuda"``, ..., or ``"auto"``.
        dtype: the weights' dtype.

    Raises:
        ConfigError: a setting that does not exist; a mark, ``good`` or ``bad`` that the tokenizer has no token for; an unknown
            label.
        ModelError: the model cannot be loaded.
    """

    name = NAME

    def __init__(
        self,
        model: str | Path,
        *,
        mark: str = "\n",
        after: str = "",
        good: str = "+",
        bad: str = "-",
        label: str | int | None = None,
        output: Literal["probability", "logit"] = "probability",
        read: Literal["auto", "chat", "plain"] = "auto",
        tokens_per_batch: int = 8192,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "float32",
    ) -> None:
        outputs, reads = ("probability", "logit"), ("auto", "chat", "plain")
        for what, value, allowed in (("output", output, outputs), ("read", read, reads)):
            if value not in allowed:
                raise ConfigError(f"{NAME}: {what} must be one of {', '.join(allowed)}, got {value!r}")
        self.model, self.output, self.tokens_per_batch = str(model), output, tokens_per_batch
        self._network, self._tokenizer, self.context_length = self._load(revision, device, dtype)
        if read == "chat" and not self._tokenizer.chat_template:
            raise ConfigError(f"{NAME}: {self.model!r} has no chat template; expected read='plain' or 'auto'")
        self._chat = read != "plain" and bool(self._tokenizer.chat_template)
        self._mark, self._after = self._ids(mark), self._ids(after)
        if not self._mark:
            raise ConfigError(
                f"{NAME}: the mark {mark!r} has no tokens; expected the text that {self.model!r} judges steps at"
            )
        config = self._network.config
        self._classifies = self._network.__class__.__name__.endswith("ForTokenClassification")
        if self._classifies:
            self._places = [_label(config, label, self.model)]
        else:
            self._places = [self._single(good, "good"), self._single(bad, "bad")]
        self._warned = False

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], steps: Sequence[Sequence[str]], messages: Any = None
    ) -> list[list[float]]:
        """Judge every step.

        Args:
            prompts: ``n`` prompts.
            responses: ``n`` responses.
            steps: for each of them, its steps' texts.
            messages: prompts that are conversations; None for texts.

        Raises:
            RewardError: a response exceeds the model's context.
        """
        import torch

        from rlhf_gym.lm.sequences import batches_by_length, pad_right

        told = [None] * len(prompts) if messages is None else messages
        encoded = [self._encode(*one) for one in zip(prompts, responses, steps, told, strict=True)]
        out: list[list[float]] = [[] for _ in encoded]
        for chosen in batches_by_length([len(ids) for ids, _ in encoded], self.tokens_per_batch):
            rows = [i for i in chosen if encoded[i][1]]
            if not rows:
                continue
            ids = pad_right([encoded[i][0] for i in rows], 0).to(self._network.device)
            lengths = torch.tensor([len(encoded[i][0]) for i in rows], device=ids.device)
            mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
            with torch.no_grad():
                logits = self._network(input_ids=ids, attention_mask=mask.long()).logits  # [n, T, outputs]
            for row, i in enumerate(rows):
                out[i] = self._values(logits[row, encoded[i][1]].double()).cpu().tolist()
        return out

    def _values(self, logits: Any) -> Any:
        """From the outputs at the marks, ``[steps, outputs]``, to a value each."""
        if self._classifies:
            place, others = self._places[0], [k for k in range(logits.shape[1]) if k != self._places[0]]
            odds = logits[:, place] - logits[:, others].logsumexp(1) if others else logits[:, place]
        else:
            odds = logits[:, self._places[0]] - logits[:, self._places[1]]
        return odds if self.output == "logit" else odds.sigmoid()

    def _encode(self, prompt: str, response: str, steps: Sequence[str], messages: Any) -> tuple[list[int], list[int]]:
        """The ids that the model reads, and the places of the marks' last ones among them."""
        if self._chat:
            asked = messages_before(messages, response, text=prompt) or [{"role": "user", "content": prompt}]
            head = self._ids(render_chat(self._tokenizer, asked, add_generation_prompt=True))
        else:
            head = list(self._tokenizer(prompt, verbose=False)["input_ids"])
        body: list[int] = []
        places = []
        for number, step in enumerate(steps):
            body += [*(self._after if number else ()), *self._ids(step), *self._mark]
            places.append(len(body) - 1)
        room = self.context_length - len(body)
        if room < 0:
            raise RewardError(
                f"reward {NAME!r}: a response of {len(body)} tokens exceeds the model's context of {self.context_length}; "
                "take a shorter length limit"
            )
        if len(head) > room:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"reward {NAME!r}: prompt and response of {len(head) + len(body)} tokens exceed the context of "
                    f"{self.context_length}; the prompt's beginning is cut (this is said once)",
                    stacklevel=2,
                )
            head = head[len(head) - room :]
        return [*head, *body], [len(head) + place for place in places]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []

    def _single(self, text: str, what: str) -> int:
        ids = self._ids(text)
        if len(ids) != 1 or ids[0] == self._tokenizer.unk_token_id:
            raise ConfigError(f"{NAME}: {what} must be a single token of {self.model!r}, got {text!r}")
        return ids[0]

    def _load(self, revision: str | None, device: str, dtype: str) -> tuple[Any, Any, int]:
        from rlhf_gym.lm.loading import find, load_weights, one_thread_loads, pick_device, shown_length

        source = find(self.model, revision=revision)
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
        with one_thread_loads():
            from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

            try:
                tokenizer = AutoTokenizer.from_pretrained(source.location, **options)
                config = AutoConfig.from_pretrained(source.location, **options)
            except Exception as error:  # transformers raises a dozen kinds
                raise source.cannot_load("tokenizer and configuration", error) from error
        classifies = any(kind.endswith("ForTokenClassification") for kind in config.architectures or ())
        network: Any = load_weights(
            source, {**options, "dtype": dtype}, allow_pickle=False,
            auto=AutoModelForTokenClassification if classifies else AutoModelForCausalLM, what="process reward model",
        )  # fmt: skip
        seen = shown_length(network.config, tokenizer)
        return network.eval().requires_grad_(False).to(pick_device(device)), tokenizer, seen


def _label(config: Any, label: str | int | None, model: str) -> int:
    """The number of a token classifier's output for a right step."""
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    if label is None:
        return len(names) - 1
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(names):
        return label
    if isinstance(label, str) and label in names:
        return names.index(label)
    raise ConfigError(
        f"{NAME}: {model!r} has the labels {', '.join(names)}; expected label to be one of them or a number in "
        f"0..{len(names) - 1}, got {label!r}"
    )
