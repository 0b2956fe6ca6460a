"""Everything that can be set about a run, as frozen dataclasses: each field with its type, default, bounds and help.

Nothing heavy is imported here: ``rlhf-gym --help`` reads this file. Files, overrides and messages are in
:mod:`~rlhf_gym.loop.config_file`.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
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
    """A field with its help and its bounds (``least`` and ``most`` inclusive, ``above`` and ``below`` exclusive)."""
    metadata = {"help": help, "least": least, "above": above, "most": most, "below": below}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Section:
    """What every section shares: its numbers lie within their fields' bounds."""

    def __post_init__(self) -> None:
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            bound = f.metadata
            wrong = (
                value != value
                or (bound["least"] is not None and value < bound["least"])
                or (bound["above"] is not None and value <= bound["above"])
                or (bound["most"] is not None and value > bound["most"])
                or (bound["below"] is not None and value >= bound["below"])
            )
            if wrong:
                raise ConfigError(f"{section_name(type(self))}.{f.name} must be {bounds(bound)}, got {value}")


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


@dataclass(frozen=True)
class RewardModelConfig(Section):
    """The network fitted to the preferences: the proxy that the policy is trained against."""

    enabled: bool = setting(True, "false: no raters, PPO trains against the task's reward directly")
    epochs: int = setting(1, "passes over the preferences; the best one is kept", least=1)
    batch_size: int = setting(32, "preferences a step", least=1)
    learning_rate: float = setting(
        1e-3, "AdamW's, at its peak; large models want less: 1e-5 from 100M parameters on", above=0
    )
    weight_decay: float = setting(0.01, "decoupled weight decay", least=0)
    label_smoothing: float = setting(0.0, "chance that a judgement is the wrong way round", least=0, below=0.5)
    max_grad_norm: float = setting(1.0, "largest norm of the gradient", above=0)
    validation_fraction: float = setting(0.2, "share of the prompts held out to judge the fit", above=0, below=1)


@dataclass(frozen=True)
class AgentConfig(Section):
    """The algorithm that trains the policy against the reward. Where null is the default, the agent's own holds."""

    name: str = setting(
        "ppo",
        "ppo, nlpo, trpo, a2c, grpo, gspo, rloo, reinforce, reinforce_plus_plus, online_dpo, raft, or module:Class "
        "or path/file.py:Class of your own",
    )
    iterations: int = setting(40, "iterations each round: collect, then learn", least=1)
    n_episodes: int = setting(64, "responses an iteration", least=1)
    n_envs: int | None = setting(None, "environments, i.e. responses decoded at once; null is n_episodes", least=1)
    group_size: int | None = setting(None, "responses to each prompt, for agents that compare them", least=1)
    n_epochs: int | None = setting(None, "passes over an iteration's responses", least=1)
    batch_size: int | None = setting(None, "responses a minibatch", least=1)
    tokens_per_batch: int = setting(4096, "padded tokens a forward pass; changes memory and speed only", least=1)
    learning_rate: float | None = setting(
        None, "Adam's, at the start of a round; large models want less: 1e-6 to 1e-5 from 100M parameters on", above=0
    )
    lr_schedule: Literal["linear", "constant"] = setting("linear", "linear: falls to 0 at the round's end")
    kl_coef: float | None = setting(None, "price of a nat of KL to the reference, in units of the reward", least=0)
    kl_target: float | None = setting(None, "wanted nats per response: kl_coef adapts; null keeps it fixed", above=0)
    kl_horizon: int | None = setting(None, "responses over which kl_coef adapts", least=1)
    kl_estimator: Literal["k1", "k2", "k3"] | None = setting(
        None, "estimator of the KL per token (see rlhf_gym.agents.common.kl)"
    )
    kl_limit: float | None = setting(
        None, "nats per response beyond which the last good weights come back; null: no limit", above=0
    )
    on_kl_limit: Literal["stop", "back_off"] | None = setting(
        None, "beyond kl_limit: stop the round's training (the default), or halve the learning rate and go on"
    )
    kl_in: Literal["reward", "loss"] | None = setting(None, "take the KL off the reward, or differentiate it")
    gamma: float | None = setting(None, "discount per token", least=0, most=1)
    gae_lambda: float | None = setting(None, "lambda of generalised advantage estimation", least=0, most=1)
    baseline: Literal["none", "running", "batch"] | None = setting(None, "what REINFORCE takes off its returns")
    scale_rewards: Literal["group", "batch", "none"] | None = setting(
        None, "the deviation that GRPO divides by (none: Dr. GRPO)"
    )
    dynamic_sampling: bool | None = setting(None, "GRPO: do not learn from groups whose rewards are all the same")
    max_resamples: int | None = setting(
        None,
        "GRPO with dynamic_sampling: write as many responses again, so often at most, until enough are left",
        least=0,
    )
    overlong_buffer: int | None = setting(None, "charge for the last so many tokens before the length limit", least=1)
    clip_range: float | None = setting(None, "the ratio is clipped this far around 1", above=0)
    clip_range_high: float | None = setting(None, "the clip upwards, where it is to be wider", above=0)
    clip_range_vf: float | None = setting(None, "the value is clipped this far around the old one; 0: off", least=0)
    mask_top_p: float | None = setting(None, "NLPO: mass of the lagging policy that may be written", above=0, most=1)
    mask_refresh: int | None = setting(None, "NLPO: iterations that its policy lags behind at most", least=1)
    max_kl: float | None = setting(None, "TRPO: how far an iteration may move the policy, nats a token", above=0)
    beta: float | None = setting(None, "online DPO's pull to the reference", above=0)
    loss: Literal["dpo", "ipo"] | None = setting(None, "online DPO's loss of a pair")
    aggregation: Literal["token", "sequence", "constant"] | None = setting(None, "how tokens' losses are averaged")
    vf_coef: float | None = setting(None, "weight of the value loss", least=0)
    ent_coef: float | None = setting(None, "weight of the entropy bonus", least=0)
    max_grad_norm: float | None = setting(None, "largest norm of the gradient", above=0)
    target_kl: float | None = setting(
        None, "stop an iteration's learning once old and new policy are 1.5 times this apart; null: off", above=0
    )
    whiten_rewards: bool | None = setting(None, "scale rewards to deviation 1")
    missing_eos_penalty: float | None = setting(
        None, "taken off the score of a response that did not end by itself; null takes nothing", least=0
    )
    value_network: Literal["shared", "separate"] | None = setting(None, "read values off the policy's trunk or a copy")
    value_start: Literal["policy", "reward_model"] | None = setting(
        None,
        "whose trunk a separate value network starts from: the policy's (the default), or the round's reward model's",
    )
    checkpoint_every: int = setting(5, "iterations between checkpoints: what a kill can cost", least=1)


@dataclass(frozen=True)
class EvaluationConfig(Section):
    """Tuned model against the reference on prompts never trained on."""

    prompts: int = setting(200, "held-out prompts, each answered once by both", least=1)


@dataclass(frozen=True)
class LogConfig(Section):
    """Where figures go, besides metrics.csv."""

    to: tuple[Literal["wandb", "tensorboard"], ...] = setting((), "further loggers: wandb, tensorboard")
    wandb_project: str = setting("rlhf-gym", "project in Weights & Biases")
    wandb_mode: Literal["offline", "online"] = setting("offline", "offline writes into the run directory only")
    completions: int = setting(4, "sample completions to show and keep, token by token; 0: none", least=0)
    completions_every: int = setting(10, "iterations between them; the first and the last are always kept", least=1)


@dataclass(frozen=True)
class RunConfig(Section):
    """The run as a whole."""

    rounds: int = setting(1, "rounds of the loop; round 2 samples from the policy that round 1 tuned", least=1)
    seed: int = setting(0, "of everything random: the same seed gives the same figures on CPU", least=0, below=2**63)
    threads: int | None = setting(
        None, "CPU threads, null leaves it to PyTorch; floats round alike only with the same number", least=1
    )


@dataclass(frozen=True)
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
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    log: LogConfig = field(default_factory=LogConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        agent, n_envs = self.agent, self.agent.n_envs or self.agent.n_episodes
        if agent.n_episodes % n_envs:
            raise ConfigError(f"agent.n_episodes ({agent.n_episodes}) must be a multiple of agent.n_envs ({n_envs})")
        if agent.batch_size is not None and agent.batch_size > agent.n_episodes:
            raise ConfigError(
                f"agent.batch_size ({agent.batch_size}) must be at most agent.n_episodes ({agent.n_episodes})"
            )
        if agent.group_size is not None and n_envs % agent.group_size:
            raise ConfigError(
                f"agent.group_size ({agent.group_size}) must divide the number of environments ({n_envs}; agent.n_envs)"
            )
        if agent.kl_target is not None and agent.kl_coef == 0:
            raise ConfigError("agent.kl_target needs an agent.kl_coef above 0: it is multiplied, and 0 stays 0")
        if agent.on_kl_limit is not None and agent.kl_limit is None:
            raise ConfigError(f"agent.on_kl_limit ({agent.on_kl_limit}) needs an agent.kl_limit, in nats per response")
        if agent.value_start == "reward_model" and not self.reward_model.enabled:
            raise ConfigError(
                "agent.value_start reward_model needs a reward model, and reward_model.enabled is false: give policy, or null"
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
    f.name: f.default_factory  # type: ignore[misc]
    for f in fields(Config)
    if f.default_factory is not MISSING
}
"""The sections by name, in the order they are written."""


def section_name(cls: type) -> str:
    """The key that a section stands under."""
    return next(name for name, section in SECTIONS.items() if section is cls)


def bounds(metadata: Any) -> str:
    """A field's bounds in words; empty where it has none.

    >>> bounds({"least": 0, "above": None, "most": None, "below": 1})
    'at least 0 and below 1'
    """
    words = {"least": "at least", "above": "above", "most": "at most", "below": "below"}
    return " and ".join(f"{words[k]} {metadata[k]}" for k in words if metadata.get(k) is not None)
