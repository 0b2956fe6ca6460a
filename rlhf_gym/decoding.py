"""Cached decoding: one forward pass per generated token gives its hidden state, from which logits and value are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rlhf_gym.language_model import LanguageModel
from rlhf_gym.sampling import Limits, Sampling, behaviour_log_probs, episode_uniforms, sample_tokens
from rlhf_gym.slot_cache import SlotCache


class CachedDecoder:
    """Decodes for numbered slots that start, end and start over at different times.

    Args:
        model: the language model; called without gradients.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.cache = SlotCache(model)
        self._rows: list[int] = []  # the slot of each row of the cache

    @torch.no_grad()
    def start(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """Start (or start over) some slots, each with a prompt; the other slots are not touched.

        Returns:
            ``[len(slots), D]``, the hidden state that predicts each slot's first token.
        """
        self.release(slots)
        hidden = self.cache.add_rows(prompts)
        self._rows += list(slots)
        return hidden

    @torch.no_grad()
    def append(self, slots: Sequence[int], tokens: Tensor) -> Tensor:
        """Feed one token to each of these slots; slots that are not named are let go.

        Args:
            slots: which slots, each started before.
            tokens: int64 ``[len(slots)]``.

        Returns:
            ``[len(slots), D]``, in the order of ``slots``.
        """
        if list(slots) != self._rows:
            place = {slot: row for row, slot in enumerate(self._rows)}
            self.cache.keep_rows(torch.tensor([place[s] for s in slots], device=self.cache.lengths.device))
            self._rows = list(slots)
        return self.cache.append(tokens)

    def release(self, slots: Sequence[int]) -> None:
        """Forget some slots."""
        gone = set(slots)
        keep = [row for row, slot in enumerate(self._rows) if slot not in gone]
        if len(keep) < len(self._rows):
            if keep:
                self.cache.keep_rows(torch.tensor(keep, device=self.cache.lengths.device))
            else:
                self.cache = SlotCache(self.cache.model)
            self._rows = [self._rows[row] for row in keep]


@dataclass(frozen=True)
class Generation:
    """One generated response.

    Attributes:
        ids: response ids, EOS included where it was written.
        log_probs: float32 ``[len(ids)]``, under the distribution each token was drawn from.
        values: float32 ``[len(ids)]``, the value head's output before each token; empty without a value head.
        ended: EOS or a stop sequence ended it, not the length limit.
        text: the response as text, cut before a stop sequence, special tokens left out.
    """

    ids: list[int]
    log_probs: list[float]
    values: list[float]
    ended: bool
    text: str = field(default="")


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
    """Write one response to each prompt.

    The noise of response ``i`` depends on ``seed`` and ``first_episode + i`` (or ``episodes[i]``) alone: other prompts,
    their order and the batch size do not change what is drawn.

    Args:
        model: the language model.
        prompts: ids of each prompt.
        limits: forbidden tokens and the response's length.
        sampling: temperature, top-k, top-p; default plain sampling.
        seed: seed of the noise.
        first_episode: number of the first response, for the noise.
        episodes: number of each response, instead of ``first_episode`` and counting on.
        greedy: take the most probable token instead of drawing one.
        stop: texts that end a response where they appear.
        value_head: maps hidden states ``[n, D]`` to values ``[n]``.
        batch_size: responses decoded at once.
        on_progress: called with the number of responses finished so far.

    Raises:
        ModelError: a prompt and a response do not fit in the model's context.
    """
    sampling = sampling or Sampling()
    numbers = list(episodes) if episodes is not None else list(range(first_episode, first_episode + len(prompts)))
    for prompt in prompts:
        model.check_fits(len(prompt), limits.max_tokens)
    out: list[Generation] = []
    for begin in range(0, len(prompts), batch_size):
        chunk = slice(begin, begin + batch_size)
        noise = np.stack([episode_uniforms(seed, number, limits.max_tokens) for number in numbers[chunk]])
        out += _generate_batch(model, prompts[chunk], limits, sampling, noise, greedy, stop, value_head)
        if on_progress:
            on_progress(len(out))
    return out


def _generate_batch(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    limits: Limits,
    sampling: Sampling,
    noise: np.ndarray,
    greedy: bool,
    stop: Sequence[str],
    value_head: Callable[[Tensor], Tensor] | None,
) -> list[Generation]:
    """Decode until every row has ended. Rows that ended are dropped once a quarter of the batch has."""
    n, device = len(prompts), model.device
    decoder = CachedDecoder(model)
    uniforms = torch.from_numpy(noise).to(device)
    ids = torch.full((n, limits.max_tokens), model.tokenizer.pad_id, dtype=torch.long, device=device)
    log_probs = torch.zeros(n, limits.max_tokens, device=device)
    values = torch.zeros(n, limits.max_tokens, device=device)
    lengths = torch.full((n,), limits.max_tokens, device=device)
    ended = torch.zeros(n, dtype=torch.bool, device=device)
    live = torch.arange(n, device=device)  # the episodes that are still fed to the model, ended ones among them
    hidden = decoder.start(live.tolist(), prompts)
    for step in range(limits.max_tokens):
        position = torch.full((len(live),), step, device=device)
        distribution = behaviour_log_probs(limits.apply(model.logits(hidden), position), sampling)
        tokens = distribution.argmax(-1) if greedy else sample_tokens(distribution, uniforms[live, step])
        ids[live, step] = tokens
        log_probs[live, step] = distribution.gather(-1, tokens[:, None]).squeeze(-1)
        if value_head is not None:
            values[live, step] = value_head(hidden).float()
        stops = tokens == limits.eos_id
        if stop:
            stops |= torch.tensor(_stopped(model, ids[live, : step + 1], stop), device=device)
        newly = live[stops & ~ended[live]]
        ended[newly] = True
        lengths[newly] = step + 1
        if step + 1 == limits.max_tokens or bool(ended.all()):
            break
        alive = ~ended[live]
        if int(alive.sum()) <= 0.75 * len(live):
            live, tokens = live[alive], tokens[alive]
        hidden = decoder.append(live.tolist(), tokens)
    table = zip(ids.tolist(), log_probs.tolist(), values.tolist(), lengths.tolist(), ended.tolist(), strict=True)
    return [
        Generation(
            row[:length], logs[:length], vals[:length] if value_head is not None else [], done,
            cut_at_stop(model.tokenizer.decode(row[:length]), stop),
        )
        for row, logs, vals, length, done in table
    ]  # fmt: skip


def _stopped(model: LanguageModel, ids: Tensor, stop: Sequence[str]) -> list[bool]:
    """Whether each response holds a stop sequence by now."""
    return [any(s in text for s in stop) for text in (model.tokenizer.decode(row) for row in ids.tolist())]


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop sequence in it."""
    places = [place for place in (text.find(s) for s in stop) if place >= 0]
    return text[: min(places)] if places else text
