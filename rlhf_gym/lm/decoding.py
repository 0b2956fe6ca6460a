"""Cached decoding: one forward pass per generated token gives its hidden state, from which logits and value are read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlhf_gym.errors import ModelError
from rlhf_gym.lm.cache import SPARE, SlotCache
from rlhf_gym.lm.decoding_state import RecomputedRows, decoding_state, extension_works
from rlhf_gym.lm.language_model import LanguageModel, Seq2SeqModel
from rlhf_gym.lm.response_text import ResponseText
from rlhf_gym.lm.sampling import Limits, Sampling, behaviour_log_probs, check_drawn, draw, episode_uniforms
from rlhf_gym.lm.seq2seq_cache import seq2seq_decoding_state
from rlhf_gym.lm.sequences import index_on

SHRINK = 0.75  # rows are taken out of the batch when at most this part of them is still read
REFILL = 0.875  # waiting prompts are started when at most this part of the batch is still being generated
# Tokens from one look at which responses have ended to the next, on a device that works ahead of the processor that drives it.
# A look waits for the device; between two, responses that have ended are fed along for nothing.
LOOK = 8


class CachedDecoder:
    """Decodes for numbered slots that start, end and start over at different times.

    Args:
        model: the language model; called without gradients.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.cache = self._empty()
        self._row_of: dict[int, int] = {}  # row of the cache, by slot; rows that no slot has are free
        self._fed: tuple[list[int], Tensor, Tensor] | None = (
            None  # the rows of the last step, their index, 1 at each of them
        )

    def _empty(self) -> SlotCache | RecomputedRows:
        if isinstance(self.model, Seq2SeqModel):
            return seq2seq_decoding_state(self.model)
        return decoding_state(self.model)

    @torch.no_grad()
    def start(
        self, slots: Sequence[int], prompts: Sequence[Sequence[int]], num_generated: Sequence[int] | None = None
    ) -> Tensor:
        """Start (or start over) some slots, each with a prompt; the other slots are not touched.

        Args:
            slots: any numbers, each at most once.
            prompts: ids of each slot's prompt, at least one each.
            num_generated: number of each prompt's last ids that the model generated itself; default none. Only encoder-decoder
                models need it.

        Returns:
            ``[len(slots), D]``, the hidden state that predicts each slot's first token.
        """
        before = {slot: self._row_of.pop(slot) for slot in slots if slot in self._row_of}
        if not self._row_of:
            self.cache, before = self._empty(), {}
        taken = {*self._row_of.values(), *before.values()}
        total = self.cache.num_rows
        free = deque([row for row in range(total) if row not in taken] + list(range(total, total + len(slots))))
        rows = [before[slot] if slot in before else free.popleft() for slot in slots]
        hidden = self.cache.write(rows, prompts, num_generated)
        self._row_of.update(zip(slots, rows, strict=True))
        self.cache.drop_columns(list(self._row_of.values()))
        return hidden

    @torch.no_grad()
    def extend(self, slots: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor:
        """Read on in some slots, several tokens at once; the other slots are not touched.

        What a slot has read stays cached. Encoder-decoder models, and families that cannot read on behind their cache, read the
        whole row anew, and so do slots that were released.

        Args:
            slots: slots that were started before, each at most once.
            rows: all ids of each slot; they begin with those that it has read.

        Returns:
            ``[len(slots), D]``, the hidden state that predicts each slot's next token.
        """
        if isinstance(self.model, Seq2SeqModel) or not extension_works(self.model):
            return self.start(slots, rows)
        if released := [place for place, slot in enumerate(slots) if slot not in self._row_of]:
            there = [place for place in range(len(slots)) if place not in released]
            hidden = self.start([slots[i] for i in released], [rows[i] for i in released])
            if there:
                hidden = torch.cat([hidden, self.extend([slots[i] for i in there], [rows[i] for i in there])])
            return hidden[torch.tensor([*released, *there], device=hidden.device).argsort()]
        hidden = self.cache.extend([self._row_of[slot] for slot in slots], rows)
        self.cache.drop_columns(list(self._row_of.values()))
        return hidden

    @torch.no_grad()
    def append(self, slots: Sequence[int], tokens: Tensor, held: Sequence[int] = ()) -> Tensor:
        """Feed one token to each of these slots; other slots are released, but for those that are held.

        Args:
            slots: slots that were started before.
            tokens: int64 ``[len(slots)]``.
            held: slots that :meth:`extend` will read on in. They are released, too, once what they hold keeps twice the columns
                of the longest row alive.

        Returns:
            ``[len(slots), D]``, in the order of ``slots``.
        """
        held = [slot for slot in held if slot in self._row_of]
        kept = [*slots, *held] if held and self._has_room() else list(slots)
        rows = [self._row_of[slot] for slot in kept]
        if len(rows) <= SHRINK * self.cache.num_rows:
            self.cache.keep(rows)
            rows = list(range(len(rows)))
        elif len(held) > len(kept) - len(slots):
            self.cache.drop_columns(rows)
        self._row_of = dict(zip(kept, rows, strict=True))
        rows = rows[: len(slots)]
        if rows == list(range(self.cache.num_rows)):
            return self.cache.append(tokens)
        if self._fed is None or self._fed[0] != rows or len(self._fed[2]) != self.cache.num_rows:
            index, live = index_on(tokens.device, rows), tokens.new_zeros(self.cache.num_rows)
            live[index] = 1
            self._fed = rows, index, live
        _, index, live = self._fed
        fed = torch.zeros_like(live)
        fed[index] = tokens
        return self.cache.append(fed, live)[index]

    def _has_room(self) -> bool:
        """True while rows may be held that are not fed.

        All rows end at a common cursor, so that what such a row has read falls behind by a column a token.
        """
        if (
            not isinstance(self.cache, SlotCache)
            or isinstance(self.model, Seq2SeqModel)
            or not extension_works(self.model)
        ):
            return False  # nobody reads on behind them
        longest = int(self.cache.lengths.max())
        return self.cache.num_columns < min(2 * longest + SPARE, self.model.context_length)


@dataclass(frozen=True)
class Generation:
    """One generated response.

    Attributes:
        ids: response ids, EOS included where it was generated.
        log_probs: float32 ``[len(ids)]``, under the distribution each token was drawn from.
        values: float32 ``[len(ids)]``, the value head's output before each token; empty without a value head.
        ended: True where EOS or a stop sequence ended it, False at the length limit.
        text: the response as text, cut before a stop sequence, special tokens left out; see
            :class:`~rlhf_gym.lm.response_text.ResponseText`.
        version: of the weights that generated it, where an engine counts them (:mod:`rlhf_gym.lm.engines`).
    """

    ids: list[int]
    log_probs: list[float]
    values: list[float]
    ended: bool
    text: str = ""
    version: int | None = None


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    limits: Limits,
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
    first_episode: int = 0,
    episodes: Sequence[int] | None = None,
    greedy: bool = False,
    stop: Sequence[str] = (),
    value_head: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 64,
    on_progress: Callable[[int], None] | None = None,
) -> list[Generation]:
    """Generate one response to each prompt.

    The noise of response ``i`` depends on ``seed`` and ``first_episode + i`` (or ``episodes[i]``) alone: other prompts,
    their order and the batch size do not change what is drawn. (Logits of differently shaped batches differ by rounding,
    some 1e-6: a draw that lies that close to the border of two tokens may fall on the other side.)

    Args:
        model: the language model.
        prompts: ids of each prompt, at least one each.
        limits: forbidden tokens and the response's length.
        sampling: temperature, top-k, top-p; default plain sampling.
        seed: seed of the noise.
        first_episode: number of the first response, for the noise.
        episodes: number of each response, instead of ``first_episode`` and counting on.
        greedy: take the most probable token instead of drawing one.
        stop: texts that end a response where they appear.
        value_head: maps hidden states ``[n, D]`` to values ``[n]``.
        batch_size: responses decoded at once; as some end, waiting prompts take their places.
        on_progress: called with the number of responses finished so far.

    Raises:
        ModelError: a prompt is empty, holds an id that the model does not have, or does not fit in the model's context
            together with a response; or the model's logits are not finite.
    """
    for i, prompt in enumerate(prompts):
        _check_prompt(model, i, prompt, limits)
    numbers = list(episodes) if episodes is not None else list(range(first_episode, first_episode + len(prompts)))
    if not prompts:
        return []
    noise = np.stack([episode_uniforms(seed, number, limits.max_new_tokens) for number in numbers])
    rounded = model.decoding_copy()
    generator = _Generator(rounded, prompts, limits, sampling or Sampling(), noise, greedy, tuple(stop), value_head)
    model.slots_work = rounded.slots_work  # so that it is checked once
    while generator.num_done < len(prompts):
        generator.refill(batch_size)
        if generator.step() and on_progress:
            on_progress(generator.num_done)
    return generator.generations()


def works_ahead(device: torch.device) -> bool:
    """True for devices that are given work before the last is done, so that a look at a result costs a wait."""
    return device.type != "cpu"


class _Generator:
    """The state of :func:`generate`: tensors ``[n, max_new_tokens + 1]`` over all responses, ``[m]`` over those being decoded.

    What is computed for a response that has ended, until somebody looks, goes to the last column.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
        sampling: Sampling,
        noise: NDArray[np.float64],
        greedy: bool,
        stop: tuple[str, ...],
        value_head: Callable[[Tensor], Tensor] | None,
    ) -> None:
        n, device = len(prompts), model.device
        self.model, self.limits, self.sampling = model, limits, sampling
        self.greedy, self.value_head = greedy, value_head
        self.text = ResponseText(model.tokenizer, stop)
        self.prompts = prompts
        self.waiting = deque(range(n))
        self.num_done = 0
        self.decoder = CachedDecoder(model)
        # Rows that are decoded anew at each token cost too much for nothing, and none may leave the model's context.
        longest = max(map(len, prompts)) + limits.max_new_tokens + LOOK
        ahead = works_ahead(device) and isinstance(self.decoder.cache, SlotCache)
        self.look = LOOK if ahead and longest <= model.context_length else 1
        self.steps = self.unseen = 0  # tokens since prompts were started, and since the last look
        columns = limits.max_new_tokens + 1
        self.uniforms = torch.nn.functional.pad(torch.from_numpy(noise), (0, 1)).to(device)
        self.ids = torch.full((n, columns), model.tokenizer.pad_id, dtype=torch.long, device=device)
        self.log_probs = torch.zeros(n, columns, device=device)
        self.values = torch.zeros(n, columns, device=device)
        self.lengths = torch.zeros(n, dtype=torch.long, device=device)
        self.ended = torch.zeros(n, dtype=torch.bool, device=device)
        self.done = torch.zeros(n, dtype=torch.bool, device=device)
        self.drawn = torch.ones((), dtype=torch.bool, device=device)
        # Responses being generated: their numbers, which are their slots in the decoder.
        self.slots: list[int] = []
        self.live = torch.zeros(0, dtype=torch.long, device=device)
        self.hidden = torch.zeros(0, model.hidden_size, dtype=model.model.dtype, device=device)

    def refill(self, batch_size: int) -> None:
        """Start waiting prompts where responses have ended: several at once, since a forward pass for each costs too much."""
        if self.unseen or not self.waiting or len(self.slots) > REFILL * batch_size:
            return
        fresh = [self.waiting.popleft() for _ in range(min(len(self.waiting), batch_size - len(self.slots)))]
        hidden = self.decoder.start(fresh, [self.prompts[i] for i in fresh])
        self.hidden = torch.cat([self.hidden, hidden])
        self.live = torch.cat([self.live, index_on(self.live.device, fresh)])
        self.slots += fresh
        self.steps = 0

    def step(self) -> bool:
        """Generate one token of every live response; returns True where some were seen to have ended."""
        live, limit = self.live, self.limits.max_new_tokens
        going_on = ~self.done[live]
        position = torch.where(going_on, self.lengths[live], limit)
        early = self.steps < self.limits.min_new_tokens
        logits = self.limits.apply(self.model.logits(self.hidden), position, early)
        distribution = behaviour_log_probs(logits, self.sampling)
        if self.greedy:
            tokens = distribution.argmax(-1)
        else:
            tokens, drawn = draw(distribution, self.uniforms[live, position])
            self.drawn &= drawn.all()
        self.ids[live, position] = tokens
        self.log_probs[live, position] = distribution.gather(-1, tokens[:, None]).squeeze(-1)
        if self.value_head is not None:
            self.values[live, position] = self.value_head(self.hidden).float()
        self.lengths[live] += going_on
        ended = self.limits.ends(tokens) & going_on
        self.ended[live] |= ended
        self.done[live] |= ended | (position + 1 >= limit)
        self.steps, self.unseen = self.steps + 1, self.unseen + 1
        some_ended = False
        if self.unseen >= self.look or self.steps >= limit:
            if self.text.stop:
                self._end_at_stops()
            self.unseen = 0
            *done, all_drawn = torch.cat([self.done[live], self.drawn[None]]).tolist()
            check_drawn(all_drawn)
            some_ended = any(done)
            if some_ended:
                rows = [row for row, over in enumerate(done) if not over]
                index = index_on(live.device, rows)
                self.live, tokens = live[index], tokens[index]
                self.slots = [self.slots[row] for row in rows]
                self.num_done += len(done) - len(rows)
        self.hidden = self.decoder.append(self.slots, tokens) if self.slots else self.hidden[:0]
        return some_ended

    def _end_at_stops(self) -> None:
        """End responses where a stop sequence came since the last look: the processor seeks it, token by token."""
        stopped: dict[int, int] = {}  # tokens up to and with the one that completes it, by the response's number
        table = torch.cat([self.ids[self.live], self.lengths[self.live, None]], dim=1).tolist()
        for number, (*ids, length) in zip(self.slots, table, strict=True):
            ends = range(max(1, length - self.unseen + 1), length + 1)
            if end := next((end for end in ends if self.text.stopped(ids[:end], self.prompts[number])), 0):
                stopped[number] = end
        if stopped:
            ended, ends_at = torch.tensor([[*stopped], [*stopped.values()]]).to(self.live.device, non_blocking=True)
            self.lengths[ended] = ends_at
            self.ended[ended] = self.done[ended] = True

    def generations(self) -> list[Generation]:
        """All responses, in the order of the prompts."""
        tensors = (self.ids, self.log_probs, self.values, self.lengths, self.ended)
        with_values, read = self.value_head is not None, self.text.read
        return [
            Generation(
                ids=ids[:length],
                log_probs=logs[:length],
                values=values[:length] if with_values else [],
                ended=ended,
                text=read(ids[:length], prompt)[0],
            )
            for prompt, ids, logs, values, length, ended in zip(
                self.prompts, *(t.tolist() for t in tensors), strict=True
            )
        ]


def _check_prompt(model: LanguageModel, index: int, prompt: Sequence[int], limits: Limits) -> None:
    if not len(prompt):
        raise ModelError(f"prompt {index} is empty: give it one token to start from, as Tokenizer.encode_prompt does")
    if min(prompt) < 0 or max(prompt) >= model.vocab_size:
        raise ModelError(
            f"prompt {index} holds id {max(prompt) if min(prompt) >= 0 else min(prompt)}, but the ids of {model.name!r} go "
            f"from 0 to {model.vocab_size - 1}: was it encoded by another model's tokenizer?"
        )
    model.check_fits(len(prompt), limits.max_new_tokens)
