"""The configuration of a run as frozen dataclasses: each field with its type, default, bounds and help.

The sections ``agent`` and ``reward_model`` hold here what the loop itself needs to know; the settings of the agent and of the
fit come from their own dataclasses (:mod:`~rlhf_gym.loop.sections`). :func:`rlhf_gym.loop.config_file.build` makes and checks
a :class:`Config`. Nothing heavy is imported here: ``rlhf-gym --help`` reads this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf_gym.errors import ConfigError


def setting(
    default: Any,
    help: str,  # noqa: A002 - the word of argparse and of the documentation
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """Declare a field with its help and its bounds.

    Args:
        default: the field's default; a dictionary is copied for each instance.
        help: one line for ``--help`` and the documentation.
        least: lower bound, inclusive; None sets none, here and below.
        above: lower bound, exclusive.
        most: upper bound, inclusive.
        below: upper bound, exclusive.
    """
    metadata = {"help": help, "at_least": least, "above": above, "at_most": most, "below": below}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Section:
    """Base of the sections."""


@dataclass(frozen=True)
class TaskConfig(Section):
    """What the language model is asked to do."""

    name: str = setting("sentiment", "built-in task, or module:function of a factory of your own")
    options: dict[str, Any] = setting(  # noqa: RUF009 - it is a field, with a factory
        {}, "the task's own options, e.g. {dataset: gsm8k} for hub (see docs/tasks.md)"
    )
    prompts: str | None = setting(
        None, "file of prompts instead of the task's own: .txt, .jsonl, .json, .csv, .parquet"
    )
    prompt_column: str = setting("prompt", "the column that holds the prompt, in tables")
    held_out: str | None = setting(None, "file of prompts to evaluate on, never trained on")
    held_out_fraction: float = setting(
        0.2, "share of `prompts` kept for evaluation where there is no `held_out`", above=0, below=1
    )
    reward: str | None = setting(
        None,
        "the gold reward, behind the simulated rater and in the evaluation: built-in name, path/file.py:function, "
        "module:function or a YAML file; null takes the task's own",
    )
    on_error: Literal["raise", "skip"] = setting(
        "raise",
        "where the gold reward fails on a sample: raise ends the run, skip leaves the sample out and counts it (a YAML reward "
        "can say more: see docs/rewards.md)",
    )
    time_limit: float | None = setting(
        None, "most seconds for one call of the gold reward, of each part of a combination by itself; null sets no limit",
        above=0,
    )  # fmt: skip
    max_new_tokens: int | None = setting(None, "longest response, in tokens; null takes the task's own", least=1)
    min_new_tokens: int | None = setting(
        None, "EOS is not allowed before this many tokens; null takes the task's own", least=0
    )
    stop: tuple[str, ...] | None = setting(None, "texts that end a response; null takes the task's own")


@dataclass(frozen=True)
class ModelConfig(Section):
    """The language model that is trained; a frozen copy of it is the reference."""

    name: str = setting("embedded", "embedded, a folder, folder:file.gguf, or a name on the Hugging Face hub")
    device: str = setting("auto", "cpu, cuda, ... or auto: a GPU where there is one")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "type of the weights")
    revision: str | None = setting(None, "commit, tag or branch on the hub")
    trust_remote_code: bool = setting(False, "let the model's repository run its own Python code on this machine")
    allow_pickle: bool = setting(False, "take weights from pytorch_model.bin, a pickle, where there are no safetensors")
    lora: dict[str, Any] = setting(  # noqa: RUF009 - it is a field, with a factory
        {},
        "learn an adapter in the place of all weights, e.g. {rank: 8, alpha: 16, targets: [c_attn]}; empty: all weights. It "
        "wants a learning rate some ten times as high (extra lora)",
    )


@dataclass(frozen=True)
class SamplingConfig(Section):
    """How responses are written: candidates, rollouts and the evaluation's samples alike."""

    prompts: int = setting(256, "prompts that raters are asked about, each round", least=1)
    candidates: int = setting(4, "responses written to each of them", least=2)
    temperature: float = setting(1.0, "divides the logits", above=0)
    top_k: int = setting(0, "keep the k most probable tokens; 0 keeps all", least=0)
    top_p: float = setting(1.0, "keep the most probable tokens of this total mass; 1 keeps all", above=0, most=1)
    batch_size: int = setting(64, "responses decoded at once", least=1)


@dataclass(frozen=True)
class RaterConfig(Section):
    """Who compares the candidates."""

    name: str = setting(
        "simulated",
        "simulated (a Boltzmann-rational rater by the gold reward), a preset of it (oracle, hh_like, alpacafarm, "
        "bpref_stoc, ...), web (people in a browser: section people), terminal (you, here), judge:URL or judge:MODEL@URL (a "
        "chat model), or module:name or path/file.py:name of your own: a function (prompt, a, b) that returns 0, 1 or None "
        "(docs/raters.md), or a factory (reward=, seed=) of a rater",
    )
    query_type: Literal["ranking", "pair", "best", "rating", "thumbs", "edit"] = setting(
        "ranking", "ranking: order all candidates of a prompt; best: name the best of them; rating: a number for each; pair: "
        "the better of two, candidates taken two by two; thumbs: each candidate alone, good or not; edit: each candidate "
        "alone, accepted or corrected",
    )  # fmt: skip
    beta: float | None = setting(
        None, "rationality: P(a before b) = sigmoid(beta (gold(a) - gold(b))); null takes the preset's own (1)", least=0
    )
    error_rate: float | None = setting(None, "share of answers given blindly; null takes the preset's", least=0, most=1)
    tie_threshold: float | None = setting(
        None, "gold differences below this are called a tie; null takes the preset's", least=0
    )
    skip_rate: float | None = setting(None, "share of queries declined; null takes the preset's", least=0, most=1)
    length_bias: float | None = setting(None, "gold added for each word of a response; null takes the preset's")
    position_bias: float | None = setting(None, "gold added to the response shown first; null takes the preset's")
    rubric: str | None = setting(None, "judge: what to judge by, or the .md or .txt file that says it")
    template: str | None = setting(None, "judge: the .j2 file of a question about two responses")
    cache: str | None = setting(None, "judge: file that remembers replies from run to run")
    batch_size: int = setting(32, "queries judged at once; each batch of judgements is stored before the next", least=1)


@dataclass(frozen=True)
class PeopleConfig(Section):
    """The rating page, where people answer (docs/people.md)."""

    host: str = setting("127.0.0.1", "address the page listens on; this one is for this machine only")
    port: int = setting(8722, "port the page listens on; 0 takes a free one", least=0, most=65535)
    url: str = setting("", "public address, where a TLS proxy stands in front: https://...")
    overlap: int = setting(1, "people who answer each query", least=1)
    lease: float = setting(
        300.0, "seconds for which a question is kept for the rater who was shown it; a later answer counts all the same",
        above=0,
    )  # fmt: skip
    quota: float = setting(
        1.0, "share of a round's queries that must be answered before the loop goes on; answers that come later count in "
        "the next round", above=0, most=1,
    )  # fmt: skip
    refit: int | None = setting(
        None, "while the policy is trained, fit the reward model anew whenever so many more answers have come; null: once a "
        "round", least=1,
    )  # fmt: skip
    share: float = setting(
        0.0, "share of the queries that people answer where rater.name is someone else; with rater.name web it is all",
        least=0, most=1,
    )  # fmt: skip
    warm_up: int = setting(0, "with rater.name web: so many rounds are answered by the simulated rater first", least=0)
    title: str = setting("Which response is better?", "stands on every page")
    guidelines: str | None = setting(None, "Markdown file of guidelines; null takes the standard ones")
    text: Literal["plain", "markdown"] = setting("plain", "how responses are shown: as they stand, or as Markdown")
    attributes: tuple[str, ...] = setting(
        ("overall",),
        "with rater.query_type rating: what people rate, e.g. [helpful, harmless, honest]; the mean is fitted",
    )
    check_questions: str | None = setting(
        None, "JSON Lines file of queries whose answer is known, for practice and check_share"
    )
    practice: int = setting(
        0, "practice questions of the file `check_questions` before a rater's first real one", least=0
    )
    check_share: float = setting(
        0.0,
        "share of a rater's questions that come from the file `check_questions`, to see how careful they are",
        least=0,
        below=1,
    )
    repeat_share: float = setting(
        0.0, "share of a rater's questions that repeat an earlier one, to see whether they agree with themselves",
        least=0, below=1,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig(Section):
    """The network fitted to the preferences: the proxy that the policy is trained against."""

    enabled: bool = setting(True, "false: no raters, the agent trains against the task's reward directly")
    settings: Mapping[str, Any]
    """Every setting of the fit (:class:`~rlhf_gym.reward_model.FitConfig`), by name: the other keys of the section."""


@dataclass(frozen=True, kw_only=True)
class AgentConfig(Section):
    """The algorithm that trains the policy against the reward: the loop's own keys, then the agent's settings."""

    name: str = setting(
        "ppo",
        "ppo, nlpo, trpo, a2c, grpo, gspo, rloo, reinforce, reinforce_plus_plus, online_dpo, raft, sft, or module:Class "
        "or path/file.py:Class of your own",
    )
    iterations: int = setting(40, "iterations each round: collect, then learn", least=1)
    n_envs: int | None = setting(None, "environments, i.e. responses decoded at once; null is n_episodes", least=1)
    value_start: Literal["policy", "reward_model"] = setting(
        "policy", "whose trunk a separate value network starts from: the policy's, or the round's reward model's"
    )
    target_column: str = setting("target", "the prompts' column that holds the response to learn")
    checkpoint_every: int = setting(5, "iterations between checkpoints: what a kill can cost", least=1)
    settings: Mapping[str, Any]
    """Every setting of the agent that a run sets, by name: the other keys of the section."""

    @property
    def environments(self) -> int:
        """The number of environments, which is the number of responses generated at once."""
        return self.n_envs or int(self.settings["n_episodes"])


@dataclass(frozen=True)
class EvaluationConfig(Section):
    """Tuned model against the reference on prompts never trained on."""

    prompts: int = setting(200, "held-out prompts, each answered once by both", least=1)


@dataclass(frozen=True)
class LogConfig(Section):
    """Where metrics go, besides metrics.csv."""

    to: tuple[Literal["wandb", "tensorboard"], ...] = setting((), "further loggers: wandb, tensorboard")
    wandb_project: str = setting("rlhf-gym", "project in Weights & Biases")
    wandb_mode: Literal["offline", "online"] = setting("offline", "offline writes into the run directory only")
    completions: int = setting(4, "sample completions to show and keep, token by token; 0: none", least=0)
    completions_every: int = setting(10, "iterations between them; the first and the last are always kept", least=1)


@dataclass(frozen=True)
class RunConfig(Section):
    """The run as a whole."""

    rounds: int = setting(1, "rounds of the loop; round 2 samples from the policy that round 1 tuned", least=1)
    seed: int = setting(0, "of everything random: the same seed gives the same metrics on CPU", least=0, below=2**63)
    threads: int | None = setting(
        None, "CPU threads, null leaves it to PyTorch; floats round alike only with the same number", least=1
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole configuration of a run.

    Raises:
        ConfigError: settings that contradict one another, by name and before any work starts.
    """

    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    rater: RaterConfig = field(default_factory=RaterConfig)
    people: PeopleConfig = field(default_factory=PeopleConfig)
    reward_model: RewardModelConfig
    agent: AgentConfig
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    log: LogConfig = field(default_factory=LogConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        settings, n_envs = self.agent.settings, self.agent.environments
        if settings["n_episodes"] % n_envs:
            raise ConfigError(
                f"agent.n_episodes ({settings['n_episodes']}) must be a multiple of agent.n_envs ({n_envs})"
            )
        if self.agent.value_start == "reward_model":
            if not self.reward_model.enabled:
                raise ConfigError(
                    "agent.value_start reward_model needs a reward model, and reward_model.enabled is false: give policy"
                )
            if self.model.lora:
                raise ConfigError("agent.value_start reward_model does not go with model.lora: leave one of them out")
            if settings.get("value_network", "separate") != "separate":
                raise ConfigError(
                    "agent.value_start reward_model needs a value network of its own: give agent.value_network separate"
                )
        if self.people.refit is not None and self.rater.name != "web" and not self.people.share:
            raise ConfigError(
                f"people.refit ({self.people.refit}) waits for people's answers, and nobody is asked: give --rater web, or a "
                "people.share"
            )
        if (self.people.practice or self.people.check_share) and self.people.check_questions is None:
            raise ConfigError(
                "people.practice and people.check_share need people.check_questions, a file of queries with answers"
            )
        if self.rater.query_type in ("thumbs", "edit") and self.rater.name == "web" and self.people.warm_up:
            raise ConfigError(
                f"people.warm_up ({self.people.warm_up}) is answered by the simulated rater, who answers no "
                f"{self.rater.query_type} queries (rater.query_type); set people.warm_up=0, or another query type"
            )
        if self.rater.query_type == "pair" and self.sampling.candidates % 2:
            raise ConfigError(
                f"rater.query_type 'pair' takes candidates two by two: sampling.candidates must be even, got "
                f"{self.sampling.candidates}"
            )
        longest, least = self.task.max_new_tokens, self.task.min_new_tokens
        if longest is not None and least is not None and least > longest:
            raise ConfigError(f"task.min_new_tokens ({least}) must be at most task.max_new_tokens ({longest})")

    @property
    def asks_people(self) -> bool:
        """True if people answer queries on a rating page."""
        return self.reward_model.enabled and (self.rater.name == "web" or self.people.share > 0)


SECTIONS: dict[str, type[Section]] = {
    "task": TaskConfig, "model": ModelConfig, "sampling": SamplingConfig, "rater": RaterConfig, "people": PeopleConfig,
    "reward_model": RewardModelConfig, "agent": AgentConfig, "evaluation": EvaluationConfig, "log": LogConfig,
    "run": RunConfig,
}  # fmt: skip
"""The sections by name, in the order they are written."""
