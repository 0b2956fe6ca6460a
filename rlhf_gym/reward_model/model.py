"""A reward model: a language model's trunk with a scalar head, fitted to preferences and used as a reward."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlhf_gym.errors import ModelError
from rlhf_gym.feedback.exchange.transcripts import read_turns
from rlhf_gym.lm.chat_template import SEVERAL_TURNS, Messages, Opening, prompt_messages
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sequences import batches_by_length, pad_right
from rlhf_gym.lm.tokenizer import AnyTokenizer, HubTokenizer, encode_conversation, encode_response
from rlhf_gym.reward_model.checkpoint import (
    Moments,
    SavedRewardModel,
    check_head,
    check_probe,
    probe_ids,
    read_folder,
    write_folder,
)
from rlhf_gym.reward_model.readout import EncodedText, Readout, first_read, keep_layers, layer_stack, mean_states


class RewardModel:
    """Scores a prompt with a response by one number: a linear head on a hidden state, that of the last real token by default.

    Of a conversation (:class:`~rlhf_gym.lm.chat_template.Opening`) all turns are read, and scored together.

    Every text is closed by EOS, whether or not the policy generated one, and the score is read there (``readout`` says how
    else). As a reward it is
    normalised: gain and bias map the scores of the reference's samples to mean 0 and standard deviation 1, so that the KL
    coefficient keeps its meaning from one reward model to the next (Ziegler et al. 2019, section 2.2).

    Args:
        language_model: its trunk is trained (and cut, where ``readout`` says so) in place, so give it one of its own; its
            language-model head is not used.
        readout: the layers to run, and the tokens to read; default all layers, the last token.
        attributes: names of attributes with their weights: a head for each; the score is their weighted sum. None: one head.
        seed: seed of the head's initial weights: normal with standard deviation ``1 / sqrt(D + 1)`` (Stiennon et al. 2020).

    Attributes:
        head: ``D -> 1`` (``D -> A`` with ``A`` attributes), float32 for every dtype of the trunk. ``D`` is twice the trunk's
            hidden size where the readout's pooling is ``both``.
        attributes: the weight of each attribute; empty with one head. See :meth:`weigh`.
        gain: multiplies raw scores.
        bias: added after that.

    Raises:
        ModelError: the language model has an encoder, or fewer layers than are asked for.
    """

    name = "reward_model"

    def __init__(
        self,
        language_model: LanguageModel,
        *,
        readout: Readout | None = None,
        attributes: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        if language_model.encoder_decoder:
            raise ModelError(f"a reward model needs a causal language model; {language_model.name!r} has an encoder")
        self.language_model = language_model
        self.readout = readout or Readout()
        if self.readout.layers is not None:
            keep_layers(language_model, self.readout.layers)
        width = self.readout.width(language_model.hidden_size)
        generator = torch.Generator().manual_seed(seed)
        self.attributes = dict(attributes or {})
        heads = len(self.attributes) or 1
        self.head = nn.Linear(width, heads)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(heads, width, generator=generator) / (width + 1) ** 0.5)
            self.head.bias.zero_()
        self.head.to(language_model.device)
        self.gain = 1.0
        self.bias = 0.0
        self.moments: Moments | None = None
        self.fitted_prompts: frozenset[str] = frozenset()
        self._dropout = 0.0
        self._warned = False

    def parameters(self) -> list[nn.Parameter]:
        """All weights: the trunk's and the head's."""
        return [*self.language_model.trunk.parameters(), *self.head.parameters()]

    def last_layers(self, number: int) -> list[nn.Module]:
        """The trunk's last ``number`` layers and the modules after them (the final norm); empty for 0.

        Raises:
            ModelError: the trunk has fewer layers, or keeps them in a way that is not known.
        """
        if number == 0:
            return []
        stack_name, stack = layer_stack(self.language_model)
        layers = list(stack)
        if number > len(layers):
            raise ModelError(
                f"cannot train the last {number} layers of {self.language_model.name!r}, which has {len(layers) or 'none'} "
                "that can be trained apart; use trunk_layers=-1 to train it all, or 0 to train the head alone"
            )
        children = dict(self.language_model.trunk.named_children())
        after = list(children)[list(children).index(stack_name) + 1 :]
        norms = [children[name] for name in after if not isinstance(children[name], nn.Embedding)]
        return [*layers[len(layers) - number :], *norms]

    @contextmanager
    def dropout(self, rate: float) -> Iterator[None]:
        """Drop hidden units in the trunk's dropout layers and before the head, inside this block; 0 changes nothing."""
        if rate == 0:
            yield
            return
        trunk = self.language_model.trunk
        layers = [m for m in trunk.modules() if isinstance(m, nn.Dropout)]
        before = [(m, m.p, m.training) for m in layers]
        try:
            self._dropout = rate
            for layer in layers:
                layer.p = rate
                layer.train()
            yield
        finally:
            self._dropout = 0.0
            for layer, p, training in before:
                layer.p = p
                layer.train(training)

    def encode(self, prompt: str, response: str, messages: Messages | None = None) -> EncodedText:
        """Prompt, response and EOS as ids; a conversation's through the chat template, the response as the assistant's turn.

        A response that holds all further turns of a conversation goes through the template with it, once, as messages; without
        a chat template it is read as the transcript that it is.

        Where they exceed the context the beginning is cut, the end of the response never.

        Args:
            prompt: the prompt.
            response: the response, without EOS.
            messages: the prompt as chat messages, where it is a conversation.
        """
        return self._cut(self._whole(prompt, response, messages))

    def _cut(self, ids: EncodedText) -> EncodedText:
        return EncodedText(ids[-self.language_model.context_length :], ids.num_response)

    def encode_all(self, texts: Sequence[tuple[str, str, Messages | None]]) -> tuple[list[EncodedText], list[bool]]:
        """Many texts as :meth:`encode` has them, and which exceeded the context; the first time, a warning counts them.

        Args:
            texts: prompts with their responses, and the prompts as chat messages where they are conversations.
        """
        limit, longest = self.language_model.context_length, 0
        sequences, cut = [], []
        for text in texts:
            ids = self._whole(*text)
            cut.append(len(ids) > limit)
            longest = max(longest, len(ids))
            sequences.append(self._cut(ids))
        if any(cut) and not self._warned:
            self._warned = True
            warnings.warn(
                f"{sum(cut)} of {len(texts)} texts exceed the {limit} tokens that the reward model can see (the longest has "
                f"{longest}): their beginning is cut, the end of the response never (this is said once)",
                stacklevel=3,
            )
        return sequences, cut

    def _whole(self, prompt: str, response: str, messages: Messages | None) -> EncodedText:
        tokenizer = self.language_model.tokenizer
        if isinstance(messages, Opening) and isinstance(tokenizer, HubTokenizer) and tokenizer.is_chat:
            before = tokenizer.encode_messages(messages)
            ids = tokenizer.encode_messages([*messages, *read_turns(response)], add_generation_prompt=False)
            ids += [tokenizer.eos_id] if ids[-1] != tokenizer.eos_id else []
            return EncodedText(ids, len(ids) - len(before))
        asked = encode_conversation(tokenizer, prompt, messages, response)
        answer = [*encode_response(tokenizer, response), tokenizer.eos_id]
        return EncodedText([*asked, *answer], len(answer))

    def states(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """The hidden states that the head reads, in one pass, differentiable.

        Args:
            sequences: ``N`` lists of ids, at least one id each; of :class:`~rlhf_gym.reward_model.readout.EncodedText` the mean
                over the response is known, of other lists it is that over all ids.

        Returns:
            ``[N, D]``.
        """
        model = self.language_model
        if self.readout.pooling == "last":
            return model.last_states(sequences)
        ids = pad_right(sequences, model.tokenizer.pad_id).to(model.device)
        begins = [first_read(sequence, self.readout.pooling) for sequence in sequences]
        ends = [len(sequence) for sequence in sequences]
        hidden = model.hidden(ids)
        means = mean_states(hidden, begins, ends)
        if self.readout.pooling != "both":
            return means
        last = hidden[torch.arange(len(ends), device=hidden.device), torch.tensor(ends, device=hidden.device) - 1]
        return torch.cat([last.float(), means], dim=1)

    def scores(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Raw scores of encoded sequences in one pass, differentiable.

        Args:
            sequences: ``N`` lists of ids, at least one id each.

        Returns:
            float32 ``[N]``.
        """
        return self.read(self.states(sequences))

    def read(self, states: Tensor) -> Tensor:
        """Raw scores from the hidden states that the head reads, differentiable.

        Args:
            states: ``[..., D]``, as :meth:`states` gives them.

        Returns:
            float32 ``[...]``.
        """
        return self.weighed(self.read_heads(states))

    def read_heads(self, states: Tensor) -> Tensor:
        """What each head says of the hidden states, differentiable.

        Args:
            states: ``[..., D]``.

        Returns:
            float32 ``[..., A]``, in the order of ``attributes``; ``[..., 1]`` with one head.
        """
        dropped = nn.functional.dropout(states.to(self.head.weight.dtype), self._dropout, training=self._dropout > 0)
        scores = self.head(dropped)
        assert isinstance(scores, Tensor)
        return scores

    def weighed(self, scores: Tensor) -> Tensor:
        """The weighted sum over the heads.

        Args:
            scores: ``[..., A]`` as :meth:`read_heads` gives them.

        Returns:
            ``[...]``.
        """
        if not self.attributes:
            return scores.squeeze(-1)
        return scores @ torch.tensor(list(self.attributes.values()), dtype=scores.dtype, device=scores.device)

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Change the attributes' weights. A normalised model stays so: the same samples score mean 0 and standard deviation 1.

        Args:
            weights: by attribute; those that are not named count nothing.

        Raises:
            ModelError: the model has one head, or no such attribute; or the weights are all 0 or not finite.
        """
        if unknown := [name for name in weights if name not in self.attributes]:
            there = (
                f"it has {', '.join(self.attributes)}"
                if self.attributes
                else "it has one head (fit with attribute_heads)"
            )
            raise ModelError(f"this reward model has no attribute {', '.join(map(repr, unknown))}: {there}")
        if not any(weights.values()) or not all(map(math.isfinite, weights.values())):
            raise ModelError(f"weights of attributes must be finite numbers, not all 0; got {dict(weights)}")
        weighed = {name: float(weights.get(name, 0.0)) for name in self.attributes}
        if self.moments is not None:
            self._normalise_by(*self.moments.of_sum(weighed.values()))
        self.attributes = weighed

    @torch.no_grad()
    def prefix_scores(self, sequences: Sequence[Sequence[int]], *, tokens_per_batch: int = 8192) -> list[list[float]]:
        """Normalised scores of every prefix of each sequence, in one pass: the head is read at every id.

        Args:
            sequences: ``N`` lists of ids, at least one id each, none longer than the context.
            tokens_per_batch: most padded tokens of one forward pass.

        Returns:
            For each sequence a list as long as it is.

        Raises:
            ModelError: the head reads means over the response, and there is none yet after a prompt.
        """
        if self.readout.pooling in ("response", "both"):
            raise ModelError(
                "this reward model reads means over the response, so it has no score before one begins: for scores token by "
                "token (per_token) fit one with pooling last or mean"
            )
        out: list[list[float]] = [[] for _ in sequences]
        model = self.language_model
        for rows in batches_by_length([len(s) for s in sequences], tokens_per_batch):
            # Padded on the right: under causal attention no token sees padding.
            ids = pad_right([sequences[i] for i in rows], model.tokenizer.pad_id).to(model.device)
            hidden = model.hidden(ids).to(self.head.weight.dtype)  # [n, T, D]
            if self.readout.pooling == "mean":
                hidden = hidden.cumsum(dim=1) / torch.arange(1, ids.shape[1] + 1, device=ids.device)[:, None]
            scores = self.weighed(self.head(hidden))  # [n, T]
            for i, values in zip(rows, (scores.double() * self.gain + self.bias).tolist(), strict=True):
                out[i] = values[: len(sequences[i])]
        return out

    @torch.no_grad()
    def raw(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        messages: Sequence[Messages | None] | None = None,
        *,
        tokens_per_batch: int = 8192,
    ) -> NDArray[np.float64]:
        """Scores before normalisation, in batches of like length.

        Args:
            prompts: ``N`` prompts.
            responses: ``N`` responses.
            messages: the prompts as chat messages, ``N`` of them, None for those that are no conversations.
            tokens_per_batch: most padded tokens of one forward pass; changes memory and speed, not the scores.

        Returns:
            float64 ``[N]``.
        """
        heads = self.raw_heads(prompts, responses, messages, tokens_per_batch=tokens_per_batch)
        return self.weighed(torch.from_numpy(heads)).numpy()

    @torch.no_grad()
    def raw_heads(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        messages: Sequence[Messages | None] | None = None,
        *,
        tokens_per_batch: int = 8192,
    ) -> NDArray[np.float64]:
        """What each head says, before normalisation; see :meth:`raw`.

        Args:
            prompts: ``N`` prompts.
            responses: ``N`` responses.
            messages: the prompts as chat messages, ``N`` of them, None for those that are no conversations.
            tokens_per_batch: most padded tokens of one forward pass.

        Returns:
            float64 ``[N, A]``, in the order of ``attributes``; ``[N, 1]`` with one head.
        """
        told = [None] * len(prompts) if messages is None else messages
        sequences, _ = self.encode_all(list(zip(prompts, responses, told, strict=True)))
        out = np.zeros((len(sequences), self.head.out_features))
        for rows in batches_by_length([len(s) for s in sequences], tokens_per_batch):
            out[rows] = self.read_heads(self.states([sequences[i] for i in rows])).cpu().double().numpy()
        return out

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], /, **columns: Any) -> list[float]:
        """Score samples as a reward does, normalised.

        Args:
            prompts: ``N`` prompts.
            responses: ``N`` responses.
            columns: the samples' other columns, of which a reward model reads ``messages`` (conversations) and
                ``several_turns`` (True where the response holds all further turns).

        Returns:
            ``N`` scores.
        """
        none = [None] * len(prompts)
        messages = [
            prompt_messages({"messages": talk, SEVERAL_TURNS: several})
            for talk, several in zip(columns.get("messages", none), columns.get(SEVERAL_TURNS, none), strict=True)
        ]
        normalised: list[float] = (self.raw(prompts, responses, messages) * self.gain + self.bias).tolist()
        return normalised

    def normalise(
        self, prompts: Sequence[str], responses: Sequence[str], messages: Sequence[Messages | None] | None = None
    ) -> None:
        """Set gain and bias so that these samples (the reference's) score mean 0 and standard deviation 1.

        Args:
            prompts: ``N`` prompts, at least 2.
            responses: a response of the reference to each.
            messages: the prompts as chat messages; see :meth:`raw`.

        Raises:
            ModelError: fewer than two samples, or all score the same.
        """
        self.normalise_to(self.raw_heads(prompts, responses, messages))

    def normalise_to(self, raw: NDArray[np.float64]) -> None:
        """Set gain and bias so that the scores of these samples become mean 0 and standard deviation 1.

        Args:
            raw: float64 ``[N, A]``, what each head says of them, at least 2; with one head ``[N, 1]``.

        Raises:
            ModelError: fewer than two samples, or all score the same.
        """
        if not self.attributes:
            self._normalise_by(*((float(raw.mean()), float(raw.std())) if len(raw) else (0.0, 0.0)), f"{len(raw)} ")
            return
        width = len(self.attributes)
        covariance = np.cov(raw.T, bias=True).reshape(width, width) if len(raw) else np.zeros((width, width))
        moments = Moments(raw.mean(axis=0).tolist() if len(raw) else [0.0] * width, covariance.tolist())
        self._normalise_by(*moments.of_sum(self.attributes.values()), f"{len(raw)} ")
        self.moments = moments

    def _normalise_by(self, mean: float, spread: float, number: str = "") -> None:
        # Relative to the scores' size: float32 noise around one and the same score is no spread.
        if not spread > 1e-6 * max(1.0, abs(mean)):
            raise ModelError(
                f"cannot normalise a reward model on {number}samples whose scores have a standard deviation of {spread:g}: it "
                "needs two or more samples of the reference that differ in score"
            )
        self.gain = 1 / spread
        self.bias = -mean / spread

    def save(self, path: Path | str) -> None:
        """Write a folder that :meth:`load` reads: safetensors and JSON; an interrupted save leaves an older one whole.

        Args:
            path: the folder; replaced if it is there.

        Raises:
            ModelError: it cannot be written; an older one is untouched.
        """
        saved = SavedRewardModel(
            self.language_model, self.head.state_dict(), self.gain, self.bias, self._probe(), self.readout, self.attributes,
            self.moments, self.fitted_prompts,
        )  # fmt: skip
        write_folder(saved, path)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        device: str = "auto",
        dtype: str = "float32",
        tokenizer: AnyTokenizer | None = None,
        attribute_weights: Mapping[str, float] | None = None,
    ) -> RewardModel:
        """Read a folder written by :meth:`save`.

        Args:
            path: the folder.
            device: device of the weights: ``"cpu"``, ``"cuda"``, ..., or ``"auto"``.
            dtype: the trunk's dtype.
            tokenizer: for models whose tokenizer is not Hugging Face's.
            attribute_weights: weights in the place of those that it was saved with, see :meth:`weigh`.

        Raises:
            ModelError: the folder is not a reward model, is of another format, or its files do not belong together; or it
                has no such attributes.
        """
        saved = read_folder(path, device=device, dtype=dtype, tokenizer=tokenizer)
        model = cls(saved.language_model, readout=saved.readout, attributes=saved.attributes)
        check_head(path, saved.head, model.head.state_dict())
        model.head.load_state_dict(saved.head)
        model.gain, model.bias, model.moments = saved.gain, saved.bias, saved.moments
        model.fitted_prompts = saved.fitted_prompts
        check_probe(path, model._probe(), saved.probe, dtype)
        if attribute_weights is not None:
            model.weigh(attribute_weights)
        return model

    @torch.no_grad()
    def _probe(self) -> float:
        """The raw score of a fixed row of ids."""
        return float(self.scores([probe_ids(self.language_model.vocab_size)])[0])
