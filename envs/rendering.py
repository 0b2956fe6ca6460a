"""Rendering of an episode: as plain text, as coloured text on a terminal, and as a picture that video recorders take.

A token's colour shows its probability under a language model that the user names (``render_model``); without one, the response
takes the colour of its reward once it has ended. Red is low, green is high. Generated text is shown with its control
characters spelled out: a terminal must not obey them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import gymnasium as gym

from rlhf_gym.envs.picture import Colour, Frame, Span, picture
from rlhf_gym.text import visible

if TYPE_CHECKING:
    from rlhf_gym.envs.episodes import Episodes
    from rlhf_gym.lm.language_model import LanguageModel

RENDER_MODES = ("ansi", "human", "rgb_array")
_PROMPT, _RESPONSE = (140, 140, 150), (235, 235, 235)


def check_render_mode(mode: str | None, modes: Sequence[str] = RENDER_MODES) -> None:
    """Refuse an unknown render mode.

    Args:
        mode: as the environment got it; None is always allowed.
        modes: those that the environment has.

    Raises:
        UnsupportedMode: the environment does not have the mode.
    """
    if mode is not None and mode not in modes:
        raise gym.error.UnsupportedMode(f"render_mode {mode!r} is not known; expected one of {', '.join(modes)}")


@dataclass
class Piece:
    """A part of the response, of one or more tokens: a character may take more than one.

    Attributes:
        text: the tokens' text together.
        probability: of the last token, 0 to 1, or None without a model.
    """

    text: str
    probability: float | None = None


@dataclass
class Painter:
    """Gives the colours; keeps what they depend on, the model that gives probabilities and the rewards so far.

    Attributes:
        model: gives tokens' probabilities; a name is loaded when the first episode is rendered.
        low: the lowest reward so far.
        high: the highest reward so far.
        rewards: the reward of each slot's last episode.
    """

    model: LanguageModel | str | None = None
    low: float = float("inf")
    high: float = float("-inf")
    rewards: dict[int, float] = field(default_factory=dict)

    def note(self, slot: int, reward: float) -> None:
        """Note the reward of an episode that has ended.

        Args:
            slot: the slot's number.
            reward: its reward.
        """
        self.low, self.high = min(self.low, reward), max(self.high, reward)
        self.rewards[slot] = reward

    def reward_colour(self, reward: float) -> Colour:
        """The colour of a reward by its place between the lowest and the highest so far; before there are two, 0 and 1."""
        low, high = (self.low, self.high) if self.high > self.low else (0.0, 1.0)
        return scale_colour((reward - low) / (high - low))

    def pieces(self, episodes: Episodes, slot: int) -> list[Piece]:
        """The response so far in pieces, with probabilities if there is a model.

        Args:
            episodes: the episodes of the environment.
            slot: the slot's number.
        """
        start, end = int(episodes.prompt_length[slot]), int(episodes.length[slot])
        ids = episodes.ids[slot, :end].tolist()
        probabilities: Sequence[float | None] = [None] * (end - start)
        if self.model is not None and end > start:
            probabilities = self._probabilities(ids, start)
        return split_pieces(ids[start:], probabilities, lambda some: episodes.text_of(some, ids[:start]))

    def _probabilities(self, ids: list[int], start: int) -> list[float | None]:
        from rlhf_gym.lm.language_model import LanguageModel
        from rlhf_gym.lm.log_probs import response_log_probs
        from rlhf_gym.lm.sampling import Limits, Sampling

        if isinstance(self.model, str):
            self.model = LanguageModel.load(self.model)
        assert self.model is not None
        prompt, response = ids[:start], ids[start:]
        limits = Limits(self.model.tokenizer.eos_id, max_new_tokens=len(response))
        (log_probs,) = response_log_probs(self.model, [prompt], [response], Sampling(), limits)
        return list(log_probs.exp().tolist())

    def colour_of(self, piece: Piece, ended_with: float | None) -> Colour:
        """A piece's colour: by probability if there is one, else by the reward once the episode has ended.

        Args:
            piece: a part of the response.
            ended_with: the reward; None while the episode runs.
        """
        if piece.probability is not None:
            # The square root spreads the low half, where most tokens of a large vocabulary lie.
            return scale_colour(piece.probability**0.5)
        return _RESPONSE if ended_with is None else self.reward_colour(ended_with)


def split_pieces(
    ids: list[int], probabilities: Sequence[float | None], read: Callable[[list[int]], str]
) -> list[Piece]:
    """Cut a text into its tokens; tokens that end inside a character are kept together until it is whole.

    Args:
        ids: token ids of the response.
        probabilities: of each id, or None for each.
        read: gives the text of the first ids; where a stop sequence cuts the text of all, the pieces are cut, too.
    """
    pieces: list[Piece] = []
    done = text = ""
    for i, probability in enumerate(probabilities, start=1):
        text = read(ids[:i])
        unfinished = text.endswith("\N{REPLACEMENT CHARACTER}") and i < len(ids)
        if not unfinished and len(text) > len(done) and text.startswith(done):
            pieces.append(Piece(text[len(done) :], probability))
            done = text
    while pieces and len(done) > len(text):
        piece = pieces.pop()
        done = done[: -len(piece.text)]
        if kept := text[len(done) :]:
            pieces.append(Piece(kept, piece.probability))
            break
    return pieces


def scale_colour(value: float) -> Colour:
    """The colour of a value from 0, red, over 0.5, yellow, to 1, green; values outside are taken to the nearer end."""
    value = min(max(value, 0.0), 1.0)
    red, green = min(1.0, 2 - 2 * value), min(1.0, 2 * value)
    return int(80 + 160 * red), int(80 + 160 * green), 90


def prompt_text(episodes: Episodes, slot: int) -> str:
    """The prompt as the model sees it.

    Args:
        episodes: the episodes of the environment.
        slot: the slot's number.
    """
    return episodes.tokenizer.decode(episodes.ids[slot, : episodes.prompt_length[slot]].tolist())


def as_text(episodes: Episodes, slot: int) -> str:
    """Prompt and response so far in one line (``ansi``).

    Args:
        episodes: the episodes of the environment.
        slot: the slot's number.
    """
    return visible(f"{prompt_text(episodes, slot)} │{episodes.response(slot)}")


def print_rich(episodes: Episodes, slot: int, painter: Painter) -> None:
    """Print prompt, response so far and, at the end, the reward, coloured (``human``).

    Args:
        episodes: the episodes of the environment.
        slot: the slot's number.
        painter: gives the colours.
    """
    from rich.console import Console
    from rich.style import Style
    from rich.text import Text

    def style(colour: Colour) -> Style:
        return Style(color=f"rgb({colour[0]},{colour[1]},{colour[2]})")

    reward = None if episodes.running[slot] else painter.rewards.get(slot)
    line = Text.assemble((visible(prompt_text(episodes, slot)), style(_PROMPT)), " │")
    for piece in painter.pieces(episodes, slot):
        line.append(visible(piece.text), style(painter.colour_of(piece, reward)))
    if reward is not None:
        line.append(f"  [{reward:.3f}]", style(painter.reward_colour(reward)))
    Console().print(line)


def as_frame(episodes: Episodes, slot: int, painter: Painter) -> Frame:
    """Prompt, response and reward as a picture, uint8 ``[240, 640, 3]``; of a long text, its end.

    Args:
        episodes: the episodes of the environment.
        slot: the slot's number.
        painter: gives the colours.
    """
    reward = None if episodes.running[slot] else painter.rewards.get(slot)
    spans: list[Span] = []
    if episodes.length[slot]:
        spans = [(prompt_text(episodes, slot) + " |", _PROMPT)]
        spans += [(p.text, painter.colour_of(p, reward)) for p in painter.pieces(episodes, slot)]
    return picture(spans, _reward_line(reward, painter))


def turn_line(prompt: str, response: str, reward: float | None) -> str:
    """A prompt and a whole response in one line.

    Args:
        prompt: the prompt's text.
        response: the response's text.
        reward: the reward; None while the episode runs.
    """
    return visible(f"{prompt} │{response}") + ("" if reward is None else f"  [{reward:.3f}]")


def turn_frame(prompt: str, response: str, reward: float | None, painter: Painter) -> Frame:
    """A prompt and a whole response as a picture, uint8 ``[240, 640, 3]``, coloured by its reward once there is one.

    Args:
        prompt: the prompt's text.
        response: the response's text.
        reward: the reward; None while the episode runs.
        painter: gives the colours.
    """
    colour = _RESPONSE if reward is None else painter.reward_colour(reward)
    return picture([(prompt + " |", _PROMPT), (response, colour)], _reward_line(reward, painter))


def conversation_frame(messages: Sequence[Mapping[str, str]], reward: float | None, painter: Painter) -> Frame:
    """The end of a conversation as a picture, uint8 ``[240, 640, 3]``.

    Args:
        messages: the conversation.
        reward: the last turn's reward; None before the first turn.
        painter: gives the colours.
    """
    spans = [
        (f"{'' if i == 0 else chr(10)}{m['role']}: {m['content']}", _RESPONSE if m["role"] == "assistant" else _PROMPT)
        for i, m in enumerate(messages)
    ]
    return picture(spans, _reward_line(reward, painter))


def _reward_line(reward: float | None, painter: Painter) -> Span | None:
    return None if reward is None else (f"reward {reward:.3f}", painter.reward_colour(reward))
