"""The state that a decoder keeps of its rows: cached keys and values where they fit the model, else the tokens alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlhf_gym.errors import ModelError
from rlhf_gym.lm.cache import SlotCache
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.networks import equal_but_for_rounding

log = logging.getLogger(__name__)


class RecomputedRows:
    """Rows of tokens with the methods of :class:`~rlhf_gym.lm.cache.SlotCache`, for families that it does not fit.

    Positions of some families are bound to where a token is stored (ALiBi), others keep a state instead of keys and values
    (Mamba). Here every step runs the whole sequences again, padded on the right, which all causal models agree on: the cost of
    a response grows with the square of its length.

    Args:
        model: the language model.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._rows: list[list[int]] = []  # the ids that the model (of an encoder-decoder model, the decoder) reads

    @property
    def num_rows(self) -> int:
        """Rows held, free ones among them."""
        return len(self._rows)

    def write(
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], num_generated: Sequence[int] | None = None
    ) -> Tensor:
        """Put prompts in these rows and run them; as :meth:`SlotCache.write <rlhf_gym.lm.cache.SlotCache.write>`.

        Args:
            rows: a row for each prompt.
            prompts: ids of each prompt, at least one each.
            num_generated: number of each prompt's last ids that the model generated itself; a causal model does not need it.

        Returns:
            ``[len(prompts), D]``, the hidden state of each prompt's last token.
        """
        self._store(rows, prompts)
        return self._last_states(rows)

    def extend(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        """Read on in these rows; as :meth:`SlotCache.extend <rlhf_gym.lm.cache.SlotCache.extend>`.

        Args:
            rows: rows that are read.
            ids: all ids of each of them.

        Returns:
            ``[len(rows), D]``, the hidden state of each row's last token.
        """
        self._store(rows, ids)
        return self._last_states(rows)

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, which take the numbers 0, 1, ... in the order given."""
        self._rows = [self._rows[row] for row in rows]

    def drop_columns(self, rows: Sequence[int]) -> None:
        """Do nothing: no columns are stored."""

    def append(self, tokens: Tensor, live: Tensor | None = None) -> Tensor:
        """Feed one token to every row that is not free.

        Args:
            tokens: int64 ``[rows]``.
            live: int64 ``[rows]``, 0 at free rows; None where there are none.

        Returns:
            ``[rows, D]``, the hidden state of each row's last token.
        """
        grows = [1] * self.num_rows if live is None else live.tolist()
        for row, token, on in zip(self._rows, tokens.tolist(), grows, strict=True):
            if on:
                row.append(token)
        return self._last_states(range(self.num_rows))

    def _store(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        self._rows += [[] for _ in range(max(rows) + 1 - self.num_rows)]
        for row, content in zip(rows, ids, strict=True):
            self._rows[row] = list(content)

    def _last_states(self, rows: Sequence[int]) -> Tensor:
        """Hidden states ``[len(rows), D]`` of the last tokens of these rows."""
        return self.model.last_states([self._rows[row] for row in rows])


def decoding_state(model: LanguageModel) -> SlotCache | RecomputedRows:
    """An empty state that fits a causal model: with a cache where cached rows give the model's own hidden states."""
    return SlotCache(model) if slots_work(model, lambda: _slot_states(model)) else RecomputedRows(model)


def slots_work(model: LanguageModel, decode: Callable[[], tuple[Tensor, Tensor]]) -> bool:
    """True where cached rows that are padded and start over give the model's own hidden states; checked once a model.

    They do not for families that bind positions to where a token is stored, or keep no keys and values.

    Args:
        model: the model, which keeps the answer.
        decode: gives the hidden states ``[rows, D]`` of cached rows and those of plain passes over the same tokens.
    """
    if model.slots_work is None:
        try:
            with torch.no_grad():
                cached, plain = decode()
            model.slots_work = equal_but_for_rounding(cached, plain, model.product_dtype or model.model.dtype)
            reason = "its hidden states differ"
        except Exception as error:  # any error that a family raises when it is given masks, positions or a cache
            model.slots_work, reason = False, f"{type(error).__name__}: {error}"
        if not model.slots_work:
            family = type(model.model).__name__
            log.warning("%s (%s) decodes without a cache, which is slow: %s", model.name, family, reason)
    return model.slots_work


def extension_works(model: LanguageModel) -> bool:
    """True where rows that read several tokens behind what is cached give the model's own hidden states; checked once a model.

    Args:
        model: a causal model, which keeps the answer.
    """
    if model.extension_works is None:
        try:
            with torch.no_grad():
                cached, plain = _extended_states(model)
            model.extension_works = equal_but_for_rounding(cached, plain, model.product_dtype or model.model.dtype)
        except Exception:  # any error that a family raises when it is given several tokens and a cache
            log.debug("%s cannot read on", model.name, exc_info=True)
            model.extension_works = False
        if not model.extension_works:
            log.warning("%s reads conversations anew at every turn: it cannot read on behind its cache", model.name)
    return model.extension_works


def _extended_states(model: LanguageModel) -> tuple[Tensor, Tensor]:
    """Read on in two rows of three, with a cache and by plain passes."""
    ids = torch.randint(model.vocab_size, (17,), generator=torch.Generator().manual_seed(1)).tolist()
    rows = [ids[:8], ids[8:10], ids[10:]]
    cache = SlotCache(model)
    cache.write([0, 1, 2], [rows[0][:5], rows[1][:1], rows[2][:4]])
    cache.append(torch.tensor([rows[0][5], rows[1][1], rows[2][4]], device=model.device))
    extended = cache.extend([0, 2], [rows[0], rows[2][:6]])
    last = cache.append(torch.tensor([ids[0], ids[1], rows[2][6]], device=model.device))
    tables = ([rows[0], rows[2][:6]], [[*rows[0], ids[0]], [*rows[1], ids[1]], rows[2]])
    plain = [model.hidden(torch.tensor([row], device=model.device))[0, -1] for table in tables for row in table]
    return torch.cat([extended, last]), torch.stack(plain)


def _slot_states(model: LanguageModel) -> tuple[Tensor, Tensor]:
    """Decode two rows, of which the second starts over, with a cache and by plain passes.

    Raises:
        ModelError: the family binds numbers to where a token is stored in a way that a few tokens do not show.
    """
    config = model.model.config.get_text_config()
    if getattr(config, "attn_temperature_tuning", False) and model.context_length > config.floor_scale:  # Llama 4
        raise ModelError(
            f"from {config.floor_scale} tokens on, its attention's temperature follows the column of a token"
        )
    a, b, c, d, e = torch.randint(model.vocab_size, (5,), generator=torch.Generator().manual_seed(0)).tolist()

    def tokens(*ids: int) -> Tensor:
        return torch.tensor(ids, device=model.device)

    cache = SlotCache(model)
    cache.write([0, 1], [[a, b, c], [d]])
    cache.append(tokens(d, e))
    cache.write([1], [[b, a]])
    cached = cache.append(tokens(e, c))
    plain = [model.hidden(tokens(*row)[None])[0, -1] for row in ([a, b, c, d, e], [b, a, c])]
    return cached, torch.stack(plain)
