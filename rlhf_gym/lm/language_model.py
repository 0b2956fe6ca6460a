"""A language model from Hugging Face, as the house uses it: hidden states first, logits only where needed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from rlhf_gym.errors import ModelError
from rlhf_gym.lm.loading import (
    cache_argument,
    context_length,
    expect_model,
    expect_padding,
    fuse_gelu,
    is_encoder_decoder,
    load_weights,
    no_progress_bars,
    pick_device,
)
from rlhf_gym.lm.source import find
from rlhf_gym.lm.tokenizer import HubTokenizer, Tokenizer, load_options, load_tokenizer

if TYPE_CHECKING:
    from rlhf_gym.lm.lora import Lora
    from rlhf_gym.lm.sequences import SequenceBatch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LanguageModel:
    """Any Hugging Face causal language model, with its tokenizer.

    Encoder-decoder models are :class:`~rlhf_gym.lm.seq2seq.Seq2SeqModel`, which :meth:`load` gives for those.

    Dropout is off and stays off: a policy whose log-probabilities change from call to call has no ratio of 1.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer; its ``vocab_size`` is set to the model's number of logits.
        name: the name it was loaded from.

    Attributes:
        context_length: most tokens (prompt and response) that the model can see. Where layers look back through a
            window, the window: within it they see everything, and cached decoding equals the plain forward pass.
        vocab_size: number of logits ``V``.
        hidden_size: width ``D`` of the last hidden states.
        slots_work: whether :class:`~rlhf_gym.lm.cache.SlotCache` gives this model's own numbers; None before the
            first decoder has checked.
        adapter: the LoRA adapter that alone learns (:func:`~rlhf_gym.lm.lora.adapted`), or None.
        base: the model without its adapter, on the same tensors; None for a model without an adapter.

    Raises:
        ModelError: the model is not causal, or its logits are not a function of its last hidden states, or its
            tokenizer has ids for EOS or padding that the model has no logits for.
    """

    encoder_decoder: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, name: str) -> None:
        model.train(False)
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.slots_work: bool | None = None
        self.adapter: Lora | None = None
        self.base: LanguageModel | None = None
        self.context_length = context_length(model.config.get_text_config())
        fuse_gelu(model)
        expect_padding(model)
        self._head_is_plain = True
        self.vocab_size, self.hidden_size = self._check_model()
        for what, token in (("EOS", tokenizer.eos_id), ("padding", tokenizer.pad_id)):
            if token >= self.vocab_size:
                raise ModelError(
                    f"the tokenizer of {name!r} uses id {token} for {what}, but the model has {self.vocab_size} "
                    f"logits: tokenizer and model do not belong together"
                )
        tokenizer.vocab_size = self.vocab_size

    @classmethod
    def load(
        cls,
        name_or_path: str = "embedded",
        *,
        device: str = "auto",
        dtype: str = "float32",
        revision: str | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        tokenizer: Tokenizer | None = None,
    ) -> LanguageModel:
        """Load a model and its tokenizer.

        Args:
            name_or_path: ``"embedded"``, a folder, ``folder:file.gguf``, or a name on the Hugging Face hub.
            device: ``"cpu"``, ``"cuda"``, ..., or ``"auto"``: a GPU where there is one.
            dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
            revision: commit, tag or branch on the hub.
            trust_remote_code: let the hub's repository run its own Python code here. Off unless you trust it.
            allow_pickle: take weights from ``pytorch_model.bin`` where there are no safetensors. A pickle can run code
                when it is opened: off unless you trust where it comes from.
            tokenizer: use this one instead of the model's own.

        Raises:
            ModelError: nothing by that name can be loaded, it is not a causal language model, or some of its weights
                are missing.
        """
        if dtype not in DTYPES:
            raise ModelError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
        place = pick_device(device)
        source = find(name_or_path, revision=revision)
        expect_model(source)
        if tokenizer is None:
            tokenizer = load_tokenizer(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
        options = load_options(source, revision, trust_remote_code) | {"dtype": DTYPES[dtype]}
        if is_encoder_decoder(source, options):
            from rlhf_gym.lm.seq2seq import Seq2SeqModel  # it stands on this module

            model = load_weights(source, options, allow_pickle, auto=AutoModelForSeq2SeqLM)
            torch.nn.Module.to(model, place)
            return Seq2SeqModel(model, tokenizer, name_or_path)
        model = load_weights(source, options, allow_pickle)
        torch.nn.Module.to(model, place)
        return cls(model, tokenizer, name_or_path)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    @property
    def trunk(self) -> nn.Module:
        """The model without its head."""
        trunk = self.model.base_model
        assert isinstance(trunk, nn.Module)
        return trunk

    @property
    def head(self) -> nn.Module | None:
        """The output layer."""
        model: Any = self.model
        head: nn.Module | None = model.get_output_embeddings()
        return head

    def hidden(
        self,
        ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Last hidden states, after the final norm.

        Args:
            ids: int64 ``[B, T]``.
            attention_mask: None for plain causal attention (right padding needs no more), or bool ``[B, 1, T, K]``,
                True where a query may look at a key.
            position_ids: int64 ``[B, T]``; None counts from 0.
            cache: a transformers ``Cache`` to read from and append to.

        Returns:
            ``[B, T, D]`` in the model's dtype.
        """
        given: dict[str, Any] = {"input_ids": ids, "use_cache": cache is not None}
        # Only what is given: some families have no position ids, others no cache of keys and values.
        if attention_mask is not None:
            if self.model.config._attn_implementation == "eager":
                low = torch.finfo(self.model.dtype).min
                added = torch.zeros_like(attention_mask, dtype=self.model.dtype)
                attention_mask = added.masked_fill(~attention_mask, low)
            given["attention_mask"] = attention_mask
        if position_ids is not None:
            given["position_ids"] = position_ids
        if cache is not None:
            given[cache_argument(type(self.trunk).forward)] = cache
        hidden = self.trunk(**given).last_hidden_state
        assert isinstance(hidden, Tensor)
        return hidden

    def response_states(self, batch: SequenceBatch) -> Tensor:
        """Hidden states that predict the response tokens, flattened to ``[N, D]`` in the order of ``response_mask``."""
        hidden = self.hidden(batch.ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids)
        rows, columns = batch.response_mask.nonzero(as_tuple=True)
        return hidden[rows, batch.predicted_from[rows, columns]]

    def last_states(self, rows: Sequence[Sequence[int]], written: Sequence[int]) -> Tensor:
        """Hidden state of each row's last token, uncached: what the next token follows from.

        Args:
            rows: ids of each row, at least one each.
            written: how many of a row's last ids are its response; the same to a causal model.

        Returns:
            ``[len(rows), D]``.
        """
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.tokenizer.pad_id, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        hidden = self.hidden(ids.to(self.device))
        last = torch.tensor([len(row) - 1 for row in rows], device=hidden.device)
        return hidden[torch.arange(len(rows), device=hidden.device), last]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` in float32 from last hidden states ``[..., D]``.

        The output layer alone for most families. Families that do more (scale, soft cap, a further layer) go through
        the model's own forward, with a trunk that answers with ``hidden``: exact, at a little more overhead a call.
        """
        head = self.head if self._head_is_plain else self._logits_by_forward
        assert head is not None
        logits = head(hidden)
        assert isinstance(logits, Tensor)
        return logits.float()

    def _logits_by_forward(self, hidden: Tensor) -> Tensor | None:
        """What the whole model makes of these hidden states; None where its forward does not ask its trunk for them."""
        flat = hidden.reshape(1, -1, hidden.shape[-1])
        ids = torch.zeros(1, flat.shape[1], dtype=torch.long, device=hidden.device)
        with _answering(self.trunk, BaseModelOutputWithPast(last_hidden_state=flat)) as asked:
            logits = self.model(input_ids=ids, use_cache=False).logits
        return logits.reshape(*hidden.shape[:-1], -1) if asked else None

    @torch.no_grad()
    def _check_model(self) -> tuple[int, int]:
        """Look at a few tokens' logits: is the model causal, and how do its logits follow from its hidden states?

        Returns:
            Number of logits, width of the hidden states.
        """
        family = type(self.model).__name__
        generator = torch.Generator().manual_seed(0)
        embeddings: Any = self.model.get_input_embeddings()
        words = int(embeddings.weight.shape[0])
        ids = torch.randint(words, (1, min(8, self.context_length)), generator=generator).to(self.device)
        tolerance = 1e-4 if self.model.dtype == torch.float32 else 5e-2

        def same(a: Tensor | None, b: Tensor) -> bool:
            near = tolerance * max(1.0, float(b.abs().max()))
            return a is not None and a.shape == b.shape and torch.allclose(a.float(), b, rtol=0, atol=near)

        def by_forward(hidden: Tensor) -> Tensor | None:
            try:
                return self._logits_by_forward(hidden)
            except Exception:  # a family whose forward wants more from its trunk
                return None

        whole = self.model(ids).logits.float()
        if not torch.isfinite(whole).all():
            raise ModelError(
                f"the logits of {self.name!r} ({family}) are not finite: its weights are broken, or too large for "
                f"{self.model.dtype}"
            )
        if not same(self.model(ids[:, :4]).logits, whole[:, :4]):
            raise ModelError(f"{self.name!r} ({family}) is not causal: its logits depend on later tokens")
        hidden = self.hidden(ids)
        width = hidden.shape[-1]
        # Small logits would not show a soft cap: hidden states an order of magnitude larger do.
        large = 30 * torch.randn(1, 8, width, generator=generator).to(hidden)
        exact = by_forward(large)
        head = self.head
        self._head_is_plain = (
            head is not None and same(head(hidden), whole) and (exact is None or same(head(large), exact.float()))
        )
        if not self._head_is_plain and not same(by_forward(hidden), whole):
            raise ModelError(
                f"the logits of {self.name!r} ({family}) do not follow from its last hidden states in a way that "
                f"rlhf-gym knows; use another model family, or report this one"
            )
        return int(whole.shape[-1]), int(width)

    def frozen_copy(self) -> LanguageModel:
        """A deep copy that takes no gradients: the reference that KL divergence is measured from.

        Of an adapted model the adapter alone is copied; the base's tensors, which never change, are shared.
        """
        other = copy.copy(self)
        shared = () if self.base is None else (*self.base.model.parameters(), *self.base.model.buffers())
        other.model = copy.deepcopy(self.model, {id(tensor): tensor for tensor in shared}).requires_grad_(False)
        return other

    def check_fits(self, prompt_length: int, max_new_tokens: int) -> None:
        """Raise :class:`ModelError` unless a prompt and a response of these lengths fit in the context."""
        if prompt_length + max_new_tokens > self.context_length:
            room = self.context_length - max_new_tokens
            advice = f"shorten the prompt to at most {room} tokens, or allow" if room > 0 else "allow"
            raise ModelError(
                f"a prompt of {prompt_length} tokens and a response of up to {max_new_tokens} do not fit in the "
                f"{self.context_length} tokens of {self.name!r}: {advice} shorter responses"
            )

    def save(self, path: Path | str) -> None:
        """Write weights (safetensors), configuration and tokenizer to a folder that :meth:`load` reads.

        An adapter is merged into the weights: what is written is an ordinary model
        (:func:`~rlhf_gym.lm.lora.save_adapter` writes the adapter alone).
        """
        with no_progress_bars():
            if self.base is None:
                self.model.save_pretrained(path)
            else:
                from rlhf_gym.lm.lora import merged_weights  # it stands on this module

                self.base.model.save_pretrained(path, state_dict=merged_weights(self))
        if isinstance(self.tokenizer, HubTokenizer):
            self.tokenizer.hub.save_pretrained(path)


@contextmanager
def _answering(module: nn.Module, answer: Any) -> Iterator[list[bool]]:
    """For a while, a module's forward gives this answer; yields a list that is not empty once it was asked."""
    asked: list[bool] = []

    def forward(*_args: Any, **_kwargs: Any) -> Any:
        asked.append(True)
        return answer

    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward  # before the class's method; nn.Module.__call__ finds it
    try:
        yield asked
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own
