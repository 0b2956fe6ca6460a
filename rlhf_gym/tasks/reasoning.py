"""reasoning-gym's generators as tasks: a hundred kinds of questions with verifiers. ``pip install rlhf-gym[reasoning]``."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from rlhf_gym.errors import TaskError
from rlhf_gym.tasks.base import Task, whole_number
from rlhf_gym.tasks.samples import Prompt
from rlhf_gym.text import nearest


def reasoning_task(
    generator: str = "chain_sum",
    *,
    config: Mapping[str, Any] | None = None,
    difficulty: int | None = None,
    easiest: int | None = None,
    template: str = "{question}",
    tag: str | None = None,
    max_new_tokens: int = 128,
    num_prompts: int = 500,
    num_held_out: int = 100,
    seed: int = 0,
) -> Task:
    """Answer questions that a generator of reasoning-gym makes.

    Args:
        generator: its name, e.g. ``"chain_sum"``, ``"letter_counting"``, ``"sudoku"``.
        config: the generator's options, e.g. ``{"max_terms": 3}``; for ``"composite"``, a mixture of generators,
            ``{"datasets": [{"name": "chain_sum", "weight": 1, "config": {}}, ...]}``.
        difficulty: a level of the generator's own curriculum, from 1, which is its easiest; it sets those of the options that
            the curriculum knows. None: the options alone.
        easiest: questions of every difficulty from this one to ``difficulty``, in equal parts; a curriculum
            (``prompt_order="difficulty"``) begins with the easiest. None: of ``difficulty`` alone.
        template: the prompt, made of the ``question``.
        tag: the answer is what the response has between ``<tag>`` and ``</tag>``, the last time; None takes the whole response.
        max_new_tokens: the length limit.
        num_prompts: questions to train on; a generator that has fewer gives all it has.
        num_held_out: questions for evaluation; they depend on neither ``seed`` nor ``num_prompts``.
        seed: of the questions that are trained on.

    Raises:
        TaskError: reasoning-gym is not installed, it has no such generator, it refuses the options, or the generator has no
            such difficulty.
    """
    whole_number("num_prompts", num_prompts, 1)
    whole_number("num_held_out", num_held_out, 0)
    if "{question}" not in template:
        raise TaskError(f"the template {template!r} does not hold {{question}}")
    if easiest is not None and difficulty is None:
        raise TaskError(f"easiest ({easiest}) needs a difficulty, up to which questions are made: give both")
    levels = _levels(generator, dict(config or {}), difficulty, easiest)
    # A generator makes question i from seed + i: seeds that are not drawn apart would share questions.
    held_out = _prompts(generator, levels, template, num_held_out, [0, 1]) if num_held_out else []
    kept = {prompt.text for prompt in held_out}
    drawn = _prompts(generator, levels, template, num_prompts, [seed, 0])
    train = [p for p in drawn if p.text not in kept]
    if not train:  # a generator of a handful of questions: all of them are trained on
        train, held_out = drawn, []
    reward = ReasoningScore(generator, levels[-1][1], tag)
    return Task(
        name=generator,
        prompts=train,
        held_out=held_out,
        reward=reward,
        max_new_tokens=max_new_tokens,
        metrics={"solved": reward.solved},
    )


class ReasoningScore:
    """The score of a response by the generator's own verifier, 0 to 1; a response that it cannot read gets 0.

    Some verifiers give a little for any answer of the right kind; see each generator's documentation.

    Args:
        generator: the generator's name.
        config: its options.
        tag: see :func:`reasoning_task`.
    """

    def __init__(self, generator: str, config: Mapping[str, Any] | None = None, tag: str | None = None) -> None:
        self.name = generator
        self.generator, self.config, self.tag = generator, dict(config or {}), tag
        self._verify: Callable[..., float] | None = None

    def __call__(self, prompts: list[str], responses: list[str], entry: list[dict[str, Any]]) -> list[float]:
        """Score a batch; ``entry`` is the column with reasoning-gym's own entries."""
        if self._verify is None:
            self._verify = _generator(self.generator, self.config, size=1, seed=0).score_answer
        return [self._one(response, e) for response, e in zip(responses, entry, strict=True)]

    def solved(self, prompts: list[str], responses: list[str], entry: list[dict[str, Any]]) -> list[float]:
        """1 where the verifier gives full marks, else 0.

        Args:
            prompts: the prompts' texts.
            responses: the responses' texts.
            entry: the column with reasoning-gym's own entries.
        """
        return [float(value >= 1) for value in self(prompts, responses, entry)]

    def _one(self, response: str, entry: dict[str, Any]) -> float:
        assert self._verify is not None
        answer: str | None = response.strip()
        if self.tag is not None:
            found = re.findall(rf"<{re.escape(self.tag)}>(.*?)</{re.escape(self.tag)}>", response, re.DOTALL)
            answer = found[-1].strip() if found else None
        if not answer:
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries that parse answers
            try:
                return float(self._verify(answer, entry))
            except Exception:  # some verifiers stumble over text that is no answer: then it is none
                return 0.0

    def __getstate__(self) -> dict[str, Any]:
        # Generators may hold what cannot be pickled; this one is built again.
        return {**self.__dict__, "_verify": None}


Level = tuple[int | None, dict[str, Any]]
"""A difficulty, where questions have several, and the generator's options for it."""


def _levels(generator: str, options: dict[str, Any], difficulty: int | None, easiest: int | None) -> list[Level]:
    if difficulty is None:
        return [(None, options)]
    _generator(generator, options, size=1, seed=0)  # refuses an unknown name, and options, in its own words
    factory = import_module("reasoning_gym.factory")
    if generator not in factory.CURRICULA:
        raise TaskError(
            f"reasoning-gym's generator {generator!r} has no curriculum: leave difficulty out, and give its options"
        )
    curriculum = factory.create_curriculum(generator)
    hardest = max(len(attribute.levels) for attribute in curriculum.attributes.values())
    whole_number(f"difficulty of {generator!r}", difficulty, 1, hardest)
    if easiest is not None:
        whole_number("easiest", easiest, 1, difficulty)
    levels: list[Level] = []
    for level in range(easiest or difficulty, difficulty + 1):
        curriculum.set_global_level(level - 1)
        changed = vars(curriculum.generate_configuration(options))
        levels.append(
            (None if easiest is None else level, {k: v for k, v in changed.items() if k not in ("size", "seed")})
        )
    return levels


def _prompts(generator: str, levels: Sequence[Level], template: str, number: int, entropy: list[int]) -> list[Prompt]:
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)
    made: dict[str, Prompt] = {}
    for place, (level, options) in enumerate(levels):
        share = number // len(levels) + (place < number % len(levels))
        data = _generator(generator, options, size=max(share, 1), seed=seed)
        for i in range(share):
            entry = data[i]
            text = template.replace("{question}", entry["question"])
            columns = {"answer": entry["answer"], "entry": dict(entry)}
            # The same question may come at two difficulties: it is of the easier one.
            made.setdefault(text, Prompt(text, columns if level is None else {**columns, "difficulty": level}))
    return list(made.values())


def _generator(name: str, config: dict[str, Any], *, size: int, seed: int) -> Any:
    try:
        library = import_module("reasoning_gym")
    except ImportError as error:
        raise TaskError(
            f"the task of the generator {name!r} needs reasoning-gym: pip install 'rlhf-gym[reasoning]'"
        ) from error
    known = import_module("reasoning_gym.factory").DATASETS
    if name not in known:
        raise TaskError(
            f"reasoning-gym has no generator {name!r}{nearest(name, known)} It has {len(known)}: {', '.join(sorted(known))}"
        )
    if name == "composite":  # a mixture of generators, which JSON gives as mappings
        spec = import_module("reasoning_gym.composite").DatasetSpec
        parts = config.get("datasets", ())
        config = {**config, "datasets": [spec(**part) if isinstance(part, Mapping) else part for part in parts]}
    try:
        return library.create_dataset(name, **{**config, "size": size, "seed": seed})
    except (TypeError, ValueError, AssertionError) as error:
        raise TaskError(f"reasoning-gym's generator {name!r} refuses the options {config}: {error}") from error
