"""Language models: tokens to hidden states, and hidden states to logits only where they are needed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_gym.errors import ModelError
from rlhf_gym.lm.action_values import FILE, ActionValues
from rlhf_gym.lm.attention import use_own_attention
from rlhf_gym.lm.loading import (
    context_length,
    find,
    has_windows,
    is_encoder_decoder,
    load_options,
    load_weights,
    one_thread_loads,
    pick_device,
    refuse_adapter,
)
from rlhf_gym.lm.model_ends import ends_of_model, save_ends
from rlhf_gym.lm.networks import (
    attention_mask as network_mask,
)
from rlhf_gym.lm.networks import (
    cache_argument,
    check_causal,
    check_encoder_decoder,
    constants,
    decoder_start,
    fuse_gelu,
    layers_are_checkpointed,
    logits_by_forward,
    mute_padding_warning,
    run_decoder,
    run_encoder,
    trunk_of,
)
from rlhf_gym.lm.older_files import remove_other_tokenizers, remove_weights
from rlhf_gym.lm.precision import use_fast_float32
from rlhf_gym.lm.quantization import in_four_bits, quantization_of, quantized_options, save_whole
from rlhf_gym.lm.sequences import SequenceBatch, pad_right, split_responses
from rlhf_gym.lm.shared_prompts import shared_states, sharing_works, wide_sharing_works
from rlhf_gym.lm.tokenizer import (
    AnyTokenizer,
    HubTokenizer,
    Tokenizer,
    end_ids,
    fit_tokenizer,
    load_tokenizer,
    wrap_tokenizer,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Adapter(Protocol):
    """Settings of an adapter, trainable weights on top of a frozen base: a :class:`~rlhf_gym.lm.lora.Lora`."""

    def settings(self) -> dict[str, Any]:
        """The settings as JSON values."""
        ...

    def merged_weights(self, network: nn.Module) -> dict[str, Tensor]:
        """All weights of an adapted network under the base's names, each change added to its layer.

        Every weight keeps the base's shape: ``[out, in]`` for a linear layer.
        """
        ...


class LanguageModel:
    """Any Hugging Face causal language model, with its tokenizer.

    Encoder-decoder models are :class:`Seq2SeqModel`, which :meth:`load` returns for those.

    Dropout is off and stays off: with it, log-probabilities change from call to call, and a policy's first ratio is not 1.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer, ours or a transformers one. Where it does not know the model's number of logits and the ids
            that end its responses, the model has a copy that does, as its attribute ``tokenizer``.
        name: the name it was loaded from.
        chat_template: for a transformers tokenizer: ``"auto"``, ``"on"``, ``"off"`` or a file, as for :meth:`load`.

    Attributes:
        context_length: most tokens (prompt and response) that the model has positions for. Layers that look back through a
            window do so in decoding as in learning.
        windows: True where some layers look back through a window, or within chunks.
        vocab_size: number of logits ``V``.
        hidden_size: width ``D`` of the last hidden states.
        extension_works: True where rows read several tokens on behind what is cached, likewise.
        sharing_works: True where responses attend to a prompt that was run once; None before the first pass has checked.
        wide_sharing_works: True where that holds in batches of more columns than the context has; None before it was checked.
        slots_work: True where cached rows (:class:`~rlhf_gym.lm.cache.SlotCache`) give this model's own hidden states; None
            before the first decoder has checked.
        product_dtype: the dtype that products of matrices are rounded to (:mod:`rlhf_gym.lm.precision`); None is the
            weights' own.
        adapter: the LoRA adapter (:func:`~rlhf_gym.lm.lora.adapted`), whose weights alone are trained; or None.
        base: the model without its adapter, on the same tensors; None for a model without an adapter.
        action_values: Q heads whose values are added to the logits (an agent of ILQL makes them); None for none.

    Raises:
        ModelError: the model is not causal, or its logits are not a function of its last hidden states, or its
            tokenizer has ids for EOS or padding that the model has no logits for.
    """

    encoder_decoder: ClassVar[bool] = False

    def __init__(
        self, model: PreTrainedModel, tokenizer: AnyTokenizer, name: str = "", *, chat_template: str = "auto"
    ) -> None:
        # Here, so that a model computes the same whatever was made before it in its process.
        use_fast_float32()
        use_own_attention()
        name = name or model.config.name_or_path or type(model).__name__
        if hasattr(model, "peft_config"):
            raise ModelError(
                f"{name!r} has an adapter of peft on it: rlhf_gym.lm.lora.from_peft(model, tokenizer, name) takes it"
            )
        model.train(False)
        self.model = model
        self.name = name
        if not isinstance(tokenizer, Tokenizer):
            tokenizer = wrap_tokenizer(tokenizer, name, chat_template=chat_template)
        elif chat_template != "auto":
            raise ModelError(
                "chat_template is for a transformers tokenizer; make this one with the template that it should use"
            )
        self.tokenizer: Tokenizer = tokenizer
        self.slots_work: bool | None = None
        self.extension_works: bool | None = None
        self.sharing_works: bool | None = None
        self.wide_sharing_works: bool | None = None
        self.product_dtype: torch.dtype | None = None
        self.adapter: Adapter | None = None
        self.base: LanguageModel | None = None
        self.action_values: ActionValues | None = None
        config = model.config.get_text_config()
        self.context_length, self.windows = context_length(config), has_windows(config)
        for parameter in constants(model):  # from_pretrained forgets that they are frozen
            parameter.requires_grad_(False)
        fuse_gelu(model)
        mute_padding_warning(model)
        try:
            self.vocab_size, self.hidden_size = self._check_model()
        except ModelError:
            raise
        except Exception as error:  # a family that wants other arguments, or gives other outputs
            raise ModelError(
                f"{name!r} ({type(model).__name__}) cannot be run on ids alone: {type(error).__name__}: {error}; "
                "use another model family"
            ) from error
        for what, token in (("EOS", tokenizer.eos_id), ("padding", tokenizer.pad_id)):
            if token >= self.vocab_size:
                raise ModelError(
                    f"the tokenizer of {name!r} uses id {token} for {what}, but the model has {self.vocab_size} "
                    f"logits: tokenizer and model do not belong together"
                )
        self.tokenizer = fit_tokenizer(tokenizer, self.vocab_size, ends_of_model(model.config, model.generation_config))

    @classmethod
    def load(
        cls,
        name_or_path: str = "embedded",
        *,
        device: str = "auto",
        dtype: str = "float32",
        quantization: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        tokenizer: AnyTokenizer | None = None,
        chat_template: str = "auto",
    ) -> LanguageModel:
        """Load a model and its tokenizer.

        Args:
            name_or_path: ``"embedded"``, a folder, ``folder:file.gguf``, or a name on the Hugging Face hub.
            device: ``"cpu"``, ``"cuda"``, ..., or ``"auto"``: a GPU where there is one.
            dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
            quantization: ``"nf4"``: linear layers in 4 bits, frozen, for an adapter to learn on
                (:mod:`rlhf_gym.lm.quantization`). None takes the weights as they are stored.
            revision: commit, tag or branch on the hub.
            trust_remote_code: let the hub's repository run its own Python code here. Off unless you trust it.
            allow_pickle: take weights from ``pytorch_model.bin`` where there are no safetensors. A pickle can run code
                when it is opened: off unless you trust where it comes from.
            tokenizer: use this one, ours or a transformers one, instead of the model's own.
            chat_template: ``"auto"``: prompts go through the tokenizer's chat template where it has one. ``"on"``: it must
                have one. ``"off"``: prompts are plain text, and :meth:`save` leaves the template out. Else a file with a
                template in Jinja.

        Raises:
            ModelError: nothing by that name can be loaded, it is not a causal language model, or some of its weights
                are missing.
            ConfigError: quantization's library is not installed.
        """
        if dtype not in DTYPES:
            raise ModelError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
        place = pick_device(device)
        source = find(name_or_path, revision=revision)
        refuse_adapter(source)
        if tokenizer is None:
            tokenizer = load_tokenizer(
                name_or_path, revision=revision, trust_remote_code=trust_remote_code, chat_template=chat_template
            )
        elif not isinstance(tokenizer, Tokenizer):
            tokenizer = wrap_tokenizer(tokenizer, name_or_path, chat_template=chat_template)
        options = load_options(source, revision, trust_remote_code) | {"dtype": DTYPES[dtype]}
        encoder_decoder = is_encoder_decoder(source, options)
        if quantization is not None:
            options |= quantized_options(quantization, DTYPES[dtype], place)
        model = load_weights(source, options, allow_pickle, auto=AutoModelForSeq2SeqLM if encoder_decoder else None)
        torch.nn.Module.to(model, place)
        loaded = (Seq2SeqModel if encoder_decoder else cls)(model, tokenizer, name_or_path)
        loaded.action_values = ActionValues.load(source.location, loaded.hidden_size, loaded.vocab_size, loaded.device)
        return loaded

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        device: torch.device = self.model.device
        return device

    def running(self) -> AbstractContextManager[object]:
        """The context in which the network runs: it rounds products to :attr:`product_dtype`."""
        if self.product_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.product_dtype)

    def decoding_copy(self) -> LanguageModel:
        """The model for decoding: itself, or on the same tensors with the weights of products rounded once.

        Autocast would round every weight again for every token; the results are the same. The copy does not follow later
        changes of the weights.
        """
        if self.product_dtype is None:
            return self
        other = copy.copy(self)
        shared = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        other.model = copy.deepcopy(self.model, shared)
        for layer in other.model.modules():
            # A new parameter, as the old one may be tied to embeddings, which are not rounded.
            if isinstance(layer, nn.Linear | Conv1D) and not in_four_bits(layer):
                layer.weight = nn.Parameter(layer.weight.detach().to(self.product_dtype), requires_grad=False)
        return other

    @property
    def quantization(self) -> str | None:
        """The kind of numbers that linear layers are in (``"nf4"``), where an adapter alone can learn; None for whole ones."""
        return quantization_of(self.model)

    @property
    def trunk(self) -> nn.Module:
        """The model without its head."""
        return trunk_of(self.model)

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
            attention_mask: None for plain causal attention (right padding needs no more), or bool ``[B, K]``, True at each
                row's own tokens, which stand on the right; the last ``T`` columns are those of ``ids``.
            position_ids: int64 ``[B, T]``; None counts from 0.
            cache: a transformers ``Cache`` to read from and append to.

        Returns:
            ``[B, T, D]`` in the model's dtype.
        """
        given: dict[str, Any] = {"input_ids": ids, "use_cache": cache is not None}
        # Only what is given: some families have no position ids, others no cache of keys and values.
        if attention_mask is not None:
            eager = self.model.config._attn_implementation == "eager"
            given["attention_mask"] = network_mask(attention_mask, ids.shape[1], self.model, self.windows, added=eager)
        if position_ids is not None:
            given["position_ids"] = position_ids
        if cache is not None:
            given[cache_argument(type(self.trunk).forward)] = cache
        with self.running():
            hidden = self.trunk(**given).last_hidden_state
        assert isinstance(hidden, Tensor)
        return hidden

    @property
    def shares_prompts(self) -> bool:
        """True where a prompt is run once for all its responses in a batch (:mod:`~rlhf_gym.lm.shared_prompts`)."""
        # A layer that is computed anew would add its keys and values to the cache again.
        if layers_are_checkpointed(self.model):
            return False
        if self.sharing_works is None:
            self.sharing_works = sharing_works(self)
        return self.sharing_works

    def shares(self, batch: SequenceBatch) -> bool:
        """True where a pass runs each different prompt of this batch once."""
        if batch.shared is None or not self.shares_prompts:
            return False
        # The longest prompt's columns and the longest response's may be more than any one row has.
        if batch.shared.ids.shape[1] + batch.responses.shape[1] <= self.context_length:
            return True
        if self.wide_sharing_works is None:
            self.wide_sharing_works = wide_sharing_works(self)
        return self.wide_sharing_works

    def response_states(self, batch: SequenceBatch) -> Tensor:
        """Hidden states that predict the response tokens, flattened to ``[N, D]`` in the order of ``response_mask``."""
        return shared_states(self, batch) if self.shares(batch) else self.states_of_rows(batch)

    def states_of_rows(self, batch: SequenceBatch) -> Tensor:
        """Hidden states ``[N, D]`` as :meth:`response_states` gives them, from a pass over whole rows, equal prompts or not."""
        hidden = self.hidden(batch.ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids)
        return hidden[batch.where[0], batch.predicted_from[batch.where]]

    def last_states(self, rows: Sequence[Sequence[int]], num_generated: Sequence[int] | None = None) -> Tensor:
        """Hidden state of each row's last token, which predicts the next one; computed without a cache, differentiable.

        Args:
            rows: ids of each row, at least one each.
            num_generated: number of each row's last ids that are its response; a causal model does not need it.

        Returns:
            ``[len(rows), D]``.
        """
        return _at_last(self.hidden(pad_right(rows, self.tokenizer.pad_id).to(self.device)), rows)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` in float32 from last hidden states ``[..., D]``, with what :attr:`action_values` add."""
        logits = self._own_logits(hidden)
        return logits if self.action_values is None else logits + self.action_values(hidden)

    def with_action_values(self, values: ActionValues | None) -> LanguageModel:
        """The model, on the same tensors, with these action values; None for the model without any."""
        other = copy.copy(self)
        other.action_values = values
        return other

    def _own_logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` in float32 from last hidden states ``[..., D]``.

        The output layer alone for most families. Families that do more (scale, soft cap, a further layer) go through
        the model's own forward, with a trunk that returns ``hidden``: exact, at a little more overhead a call.
        """
        logits: Tensor | None
        with self.running():
            if self._head_is_plain:
                assert self.head is not None
                logits = self.head(hidden)
            else:
                logits = logits_by_forward(self.model, hidden)
        assert logits is not None
        return logits.float()

    def _check_model(self) -> tuple[int, int]:
        """Check that the model is causal; returns the number of logits and the width of the hidden states."""
        vocab_size, width, self._head_is_plain = check_causal(self.model, self.name, self.hidden, self.context_length)
        return vocab_size, width

    def frozen_copy(self) -> LanguageModel:
        """A deep copy that takes no gradients: the reference that the KL is measured from.

        Of an adapted model the adapter alone is copied; the base's tensors, which never change, are shared.
        """
        other = copy.copy(self)
        shared = () if self.base is None else (*self.base.model.parameters(), *self.base.model.buffers())
        other.model = copy.deepcopy(self.model, {id(tensor): tensor for tensor in shared}).requires_grad_(False)
        if self.action_values is not None:
            other.action_values = copy.deepcopy(self.action_values).requires_grad_(False)
        return other

    def unfreeze(self) -> None:
        """Let all weights take gradients but those that are computed and never learned, which no file of the model may hold."""
        self.model.requires_grad_(True)
        for parameter in constants(self.model):
            parameter.requires_grad_(False)

    def prompt_room(self, response_length: int) -> int:
        """Most tokens of a prompt with a response of so many tokens; below 1 where there is no room for such a response."""
        return self.context_length - response_length

    def response_room(self, prompt_length: int) -> int:
        """Most tokens of a response to a prompt of so many tokens."""
        return self.context_length - prompt_length

    def check_fits(self, prompt_length: int, max_new_tokens: int) -> None:
        """Refuse a prompt and a response that do not fit in the context together.

        Args:
            prompt_length: tokens of the prompt.
            max_new_tokens: most tokens of the response.

        Raises:
            ModelError: they do not fit.
        """
        if prompt_length + max_new_tokens > self.context_length:
            room = self.context_length - max_new_tokens
            advice = f"shorten the prompt to at most {room} tokens, or allow" if room > 0 else "allow"
            raise ModelError(
                f"a prompt of {prompt_length} tokens and a response of up to {max_new_tokens} do not fit in the "
                f"{self.context_length} tokens of {self.name!r}: {advice} shorter responses"
            )

    def save(self, path: Path | str) -> None:
        """Write weights (safetensors), configuration and tokenizer to a folder that :meth:`load` reads.

        An adapter is merged into the weights: the folder holds an ordinary model, also where the base is in 4 bits
        (:func:`~rlhf_gym.lm.lora.save_adapter` writes the adapter alone). A tokenizer that is not Hugging Face's is left out.
        Action values stand in a file of their own, which transformers does not read. The generation configuration names all
        ids that end this model's responses. Of a model that was in the folder before, no weights, no adapter, no tokenizer
        and no chat template stay.

        Args:
            path: the folder; created if it is missing.
        """
        path = Path(path)
        with one_thread_loads():
            remove_weights(path)
            if self.base is None or self.adapter is None:
                self.model.save_pretrained(path)
            elif self.base.quantization is not None:
                save_whole(self.base.model, self.adapter.merged_weights(self.model), path)
            else:
                self.base.model.save_pretrained(path, state_dict=self.adapter.merged_weights(self.model))
            save_ends(self.model, end_ids(self.tokenizer), path)
            written = self.tokenizer.hub.save_pretrained(path) if isinstance(self.tokenizer, HubTokenizer) else ()
        remove_other_tokenizers(path, written)
        if self.action_values is not None:
            self.action_values.save(path)
        else:  # those of a model that was here before are not this one's
            (path / FILE).unlink(missing_ok=True)


class Seq2SeqModel(LanguageModel):
    """An encoder-decoder model (T5, BART) with the methods of a language model.

    The prompt goes to the encoder, once; the decoder generates the response. To agents and environments it is a language model
    like others: a row of ids is a prompt and its response. Where the tokenizer ends texts with EOS, the encoder reads one after
    each prompt, as in such models' training. That EOS is no part of a prompt's ids here.

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
        """The decoder's input before the first token of a response."""
        start = decoder_start(self.model)
        assert start is not None  # checked when the model was made
        return start

    @property
    def num_decoder_layers(self) -> int:
        """Layers of the decoder."""
        config: Any = self.model.config.get_text_config()
        names = ("num_decoder_layers", "decoder_layers", "num_layers", "num_hidden_layers")
        return next(int(number) for name in names if (number := getattr(config, name, None)))

    @property
    def shares_prompts(self) -> bool:
        """True: the encoder runs every different prompt of a batch once."""
        return True

    def hidden(self, ids: Tensor, **_: Any) -> Tensor:
        """Refuse: there is no one sequence of prompt and response.

        Args:
            ids: int64 ``[B, T]``; not used.
            _: further arguments of :meth:`LanguageModel.hidden`; not used.

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
        ids = pad_right(texts, self.tokenizer.pad_id).to(self.device)
        lengths = torch.tensor([len(text) for text in texts], device=self.device)
        seen = torch.arange(ids.shape[1], device=self.device) < lengths[:, None]
        with self.running():
            states = run_encoder(self.model, ids, seen)
        index = torch.tensor(where, device=self.device)
        return states[index], seen[index]

    def decode(
        self,
        ids: Tensor,
        states: Tensor,
        seen: Tensor,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Last hidden states of the decoder; see :func:`rlhf_gym.lm.networks.run_decoder`.

        Args:
            ids: int64 ``[B, T]``, the start token, then the response.
            states: the encoder's, ``[B, S, D]``.
            seen: bool ``[B, S]``, True at the prompt's tokens.
            attention_mask: None for plain causal attention, or bool ``[B, K]``, True at each row's own tokens.
            position_ids: int64 ``[B, T]``, of decoders that take them; None counts from 0.
            cache: a transformers ``EncoderDecoderCache``.

        Returns:
            ``[B, T, D]``.
        """
        with self.running():
            return run_decoder(
                self.model,
                ids,
                states,
                seen,
                windows=self.windows,
                real=attention_mask,
                position_ids=position_ids,
                cache=cache,
            )

    def response_states(self, batch: SequenceBatch) -> Tensor:
        """Hidden states ``[N, D]`` that predict the response tokens. See :meth:`LanguageModel.response_states`."""
        prompts = batch.prompts()
        start = batch.responses.new_full((len(prompts), 1), self.start_id)
        read = torch.cat([start, batch.responses[:, :-1]], dim=1)
        return self.decode(read, *self.encode(prompts))[batch.where]

    def last_states(self, rows: Sequence[Sequence[int]], num_generated: Sequence[int] | None = None) -> Tensor:
        """The decoder's hidden state at each row's last token. See :meth:`LanguageModel.last_states`.

        Args:
            rows: ids of each row: its prompt, then its response.
            num_generated: number of each row's last ids that are its response; None is 0 for every row.

        Returns:
            ``[len(rows), D]``.
        """
        prompts, responses = split_responses(rows, num_generated)
        return self.last_decoded([[self.start_id, *response] for response in responses], *self.encode(prompts))

    def last_decoded(self, rows: Sequence[Sequence[int]], states: Tensor, seen: Tensor) -> Tensor:
        """The decoder's hidden state at the last id of each row, computed without a cache.

        Args:
            rows: ids of each row that the decoder reads: the start token, then the response.
            states: the encoder's, ``[len(rows), S, D]``.
            seen: bool ``[len(rows), S]``, True at the prompt's tokens.

        Returns:
            ``[len(rows), D]``.
        """
        hidden = self.decode(pad_right(rows, self.tokenizer.pad_id).to(self.device), states, seen)
        return _at_last(hidden, rows)

    def _own_logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` in float32 from the decoder's last hidden states ``[..., D]``."""
        logits = self._scaled_logits(hidden, self._scale)
        assert logits is not None
        return logits

    def _scaled_logits(self, hidden: Tensor, scale: float | None) -> Tensor | None:
        """Logits by the output layer; by the whole network's forward, where the scale is None and that is possible."""
        if scale is None:
            try:
                with self.running():
                    exact = logits_by_forward(self.model, hidden)
            except Exception:  # a family whose forward wants more from its decoder
                return None
            return None if exact is None else exact.float()
        head: Any = self.head
        if head is None:
            return None
        with self.running():
            logits: Tensor = head(hidden * scale)
        bias = getattr(self.model, "final_logits_bias", None)
        return (logits if bias is None else logits + bias).float()

    def prompt_room(self, response_length: int) -> int:
        """Most tokens of a prompt: the encoder's. See :meth:`LanguageModel.prompt_room`."""
        return self.context_length - len(self._closing) if response_length <= self.context_length else 0

    def response_room(self, prompt_length: int) -> int:
        """Most tokens of a response: the decoder's, whatever the prompt."""
        return self.context_length

    def check_fits(self, prompt_length: int, max_new_tokens: int) -> None:
        """Refuse a prompt that the encoder has no room for, or a response that the decoder has none for.

        Args:
            prompt_length: tokens of the prompt.
            max_new_tokens: most tokens of the response.

        Raises:
            ModelError: one of them does not fit.
        """
        eos = len(self._closing)
        if prompt_length + eos > self.context_length:
            raise ModelError(
                f"a prompt of {prompt_length} tokens{' and EOS' * eos} does not fit in the {self.context_length} tokens of the "
                f"encoder of {self.name!r}: shorten it to at most {self.context_length - eos} tokens"
            )
        if max_new_tokens > self.context_length:
            raise ModelError(
                f"a response of {max_new_tokens} tokens does not fit in the {self.context_length} tokens of the decoder of "
                f"{self.name!r}: allow at most {self.context_length}"
            )

    def _check_model(self) -> tuple[int, int]:
        hub = self.tokenizer.hub if isinstance(self.tokenizer, HubTokenizer) else None
        closes = hub is not None and list(hub.encode("a"))[-1:] == [self.tokenizer.eos_id]
        self._closing = [self.tokenizer.eos_id] if closes else []
        vocab_size, width, self._scale = check_encoder_decoder(self.model, self.name, self._scaled_logits, self.decode)
        return vocab_size, width


def _at_last(hidden: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
    """States ``[n, D]`` of each row's last id, from states ``[n, T, D]`` of rows that are padded on the right."""
    last = torch.tensor([len(row) - 1 for row in rows], device=hidden.device)
    return hidden[torch.arange(len(rows), device=hidden.device), last]
