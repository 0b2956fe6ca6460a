"""Encoder-decoder models (T5, BART): the prompt goes to the encoder, once; the decoder writes the response.

To agents and environments they are language models like others: a row of ids is a prompt and what was written to it. Only where
hidden states come from differs, so that is all that stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rlhf_gym.errors import ModelError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.loading import cache_argument
from rlhf_gym.lm.sequences import SequenceBatch
from rlhf_gym.lm.tokenizer import HubTokenizer


class Seq2SeqModel(LanguageModel):
    """An encoder-decoder model with the methods of a language model. :meth:`LanguageModel.load` makes one where it finds one.

    The encoder reads a prompt as such models were trained to: closed by EOS where the tokenizer closes texts so. That EOS
    is no part of a prompt's ids here.

    Raises:
        ModelError: as for other language models; or the model does not say what its decoder starts with.
    """

    encoder_decoder: ClassVar[bool] = True

    @property
    def trunk(self) -> nn.Module:
        """Encoder and decoder, without the output layer."""
        network: Any = self.model
        return nn.ModuleList([network.get_encoder(), network.get_decoder()])

    @property
    def start_id(self) -> int:
        """What the decoder reads before the first token of a response."""
        return int(self.model.config.decoder_start_token_id)

    @property
    def num_decoder_layers(self) -> int:
        """Layers of the decoder."""
        config: Any = self.model.config
        return int(
            getattr(config, "num_decoder_layers", None) or getattr(config, "decoder_layers", None) or config.num_layers
        )

    def hidden(self, ids: Tensor, **_: Any) -> Tensor:
        """Not for these models: there is no one sequence of prompt and response.

        Raises:
            ModelError: always.
        """
        raise ModelError(f"{self.name!r} is an encoder-decoder model; this needs a causal language model")

    def encode(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Run prompts through the encoder; equal ones, as the members of a group have, once.

        Args:
            prompts: ids of each, ``n`` of them.

        Returns:
            States ``[n, S, D]``, and bool ``[n, S]``, True at tokens.
        """
        rows: dict[tuple[int, ...], int] = {}
        where = [rows.setdefault(tuple(prompt), len(rows)) for prompt in prompts]
        texts = [[*row, *self._closing] for row in rows]
        width = max(map(len, texts))
        ids = torch.full((len(texts), width), self.tokenizer.pad_id, dtype=torch.long)
        seen = torch.zeros(ids.shape, dtype=torch.bool)
        for i, text in enumerate(texts):
            ids[i, : len(text)], seen[i, : len(text)] = torch.tensor(text), True
        ids, seen = ids.to(self.device), seen.to(self.device)
        network: Any = self.model
        states = network.get_encoder()(input_ids=ids, attention_mask=seen.long()).last_hidden_state
        index = torch.tensor(where, device=self.device)
        return states[index], seen[index]

    def decode(
        self, ids: Tensor, states: Tensor, seen: Tensor, *, mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """Last hidden states of the decoder.

        Args:
            ids: int64 ``[B, T]``, what it reads: the start token, then what was written.
            states: the encoder's, ``[B, S, D]``.
            seen: bool ``[B, S]``.
            mask: None for plain causal attention, or bool ``[B, 1, T, K]``, True where a query may look at a key.
            cache: a transformers ``EncoderDecoderCache``.

        Returns:
            ``[B, T, D]``.
        """
        given: dict[str, Any] = {
            "input_ids": ids,
            "encoder_hidden_states": states,
            "encoder_attention_mask": seen.long(),
        }
        if mask is not None:
            # Added to the scores, as relative positions are: a bool mask would be taken for numbers.
            low = torch.finfo(self.model.dtype).min
            given["attention_mask"] = torch.zeros_like(mask, dtype=self.model.dtype).masked_fill(~mask, low)
        model: Any = self.model
        decoder = model.get_decoder()
        given[cache_argument(type(decoder).forward)] = cache
        out = decoder(**given, use_cache=cache is not None)
        hidden = out.last_hidden_state
        assert isinstance(hidden, Tensor)
        return hidden

    def response_states(self, batch: SequenceBatch) -> Tensor:
        """See :meth:`LanguageModel.response_states`."""
        prompts = prompts_of(batch)
        start = batch.responses.new_full((len(prompts), 1), self.start_id)
        read = torch.cat([start, batch.responses[:, :-1]], dim=1)
        return self.decode(read, *self.encode(prompts))[batch.response_mask]

    def last_states(self, rows: Sequence[Sequence[int]], written: Sequence[int]) -> Tensor:
        """See :meth:`LanguageModel.last_states`."""
        prompts = [row[: len(row) - n] for row, n in zip(rows, written, strict=True)]
        read = torch.full((len(rows), max(written) + 1), self.tokenizer.pad_id, dtype=torch.long)
        for i, (row, n) in enumerate(zip(rows, written, strict=True)):
            read[i, : n + 1] = torch.tensor([self.start_id, *row[len(row) - n :]])
        hidden = self.decode(read.to(self.device), *self.encode(prompts))
        return hidden[torch.arange(len(rows), device=hidden.device), torch.tensor(written, device=hidden.device)]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` in float32 from the decoder's last hidden states ``[..., D]``."""
        head = self.head
        assert head is not None
        logits = head(hidden * self._scale)
        bias = getattr(self.model, "final_logits_bias", None)
        if bias is not None:
            logits = logits + bias
        assert isinstance(logits, Tensor)
        return logits.float()

    def check_fits(self, prompt_length: int, max_new_tokens: int) -> None:
        """Raise :class:`ModelError` unless the encoder has room for such a prompt, and the decoder for such a response."""
        for what, length in (("prompt", prompt_length), ("response", max_new_tokens)):
            if length > self.context_length:
                raise ModelError(
                    f"a {what} of {length} tokens does not fit in the {self.context_length} of {self.name!r}"
                )

    @torch.no_grad()
    def _check_model(self) -> tuple[int, int]:
        """Look at a few tokens' logits: does the decoder see only what was written, and how do logits follow from states?"""
        family = type(self.model).__name__
        if getattr(self.model.config, "decoder_start_token_id", None) is None:
            raise ModelError(
                f"{self.name!r} ({family}) does not say what its decoder starts with (decoder_start_token_id)"
            )
        hub = self.tokenizer.hub if isinstance(self.tokenizer, HubTokenizer) else None
        closes = hub is not None and list(hub.encode("a"))[-1:] == [self.tokenizer.eos_id]
        self._closing = [self.tokenizer.eos_id] if closes else []
        embeddings: Any = self.model.get_input_embeddings()
        words = int(embeddings.weight.shape[0])
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(words, (1, 8), generator=generator).to(self.device)
        states, seen = self.encode([ids[0].tolist()])
        whole = self.model(encoder_outputs=(states,), attention_mask=seen.long(), decoder_input_ids=ids).logits.float()
        hidden = self.decode(ids, states, seen)
        near = (1e-4 if self.model.dtype == torch.float32 else 5e-2) * max(1.0, float(whole.abs().max()))
        if not torch.isfinite(whole).all():
            raise ModelError(f"the logits of {self.name!r} ({family}) are not finite: its weights are broken")
        if not torch.allclose(self.decode(ids[:, :4], states, seen), hidden[:, :4], rtol=0, atol=near):
            raise ModelError(f"the decoder of {self.name!r} ({family}) is not causal: it looks at later tokens")
        for self._scale in (1.0, hidden.shape[-1] ** -0.5):  # T5 scales where it ties embeddings
            if torch.allclose(self.logits(hidden), whole, rtol=0, atol=near):
                return int(whole.shape[-1]), int(hidden.shape[-1])
        raise ModelError(
            f"the logits of {self.name!r} ({family}) do not follow from its decoder's states in a known way"
        )


def prompts_of(batch: SequenceBatch) -> list[list[int]]:
    """The prompts of packed sequences, whichever side they are padded on."""
    ends = batch.predicted_from[:, 0] + 1
    starts = torch.zeros_like(ends)
    if batch.position_ids is not None:  # padded on the left: a prompt begins where positions do
        starts = ends - 1 - batch.position_ids.gather(1, batch.predicted_from[:, :1]).squeeze(1)
    return [ids[a:b] for ids, a, b in zip(batch.ids.tolist(), starts.tolist(), ends.tolist(), strict=True)]
