"""The configuration of a run as frozen dataclasses: each field with its type, default, bounds and help.

The sections ``agent`` and ``reward_model`` hold the loop's own settings; those of the agent and of the fit come from their own
dataclasses (:mod:`~rlhf_gym.loop.sections`). :func:`rlhf_gym.loop.config_file.build` makes and checks a :class:`Config`.
Nothing heavy is imported here: ``rlhf-gym --help`` reads this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf_gym.ranges import setting


@dataclass(frozen=True)
class TaskConfig:
    """The task: prompts, gold reward, length limits."""

    name: str = setting(
        "sentiment",
        "a built-in task (docs/tasks.md), path/file.py:function or module:function that makes one of your own, or data: the "
        "prompts of agent.data, without a reward of their own",
    )
    options: dict[str, Any] = setting(  # noqa: RUF009 - it is a field, with a factory
        {}, "options of the task, e.g. {dataset: gsm8k} for the task hub (docs/tasks.md)"
    )
    prompts: str | None = setting(
        None, "file of prompts that replaces the task's own: .txt, .jsonl, .json, .csv or .parquet"
    )
    prompt_column: str = setting("prompt", "column of that file that holds the prompt (a .txt file has no columns)")
    held_out: str | None = setting(
        None, "file of prompts for the evaluation, which should not be among those to train on"
    )
    held_out_fraction: float = setting(
        0.2, "share of the file `prompts` that is held out for the evaluation, if `held_out` is null", above=0, below=1
    )
    reward: str | None = setting(
        None,
        "gold reward: what the simulated rater prefers by, and what the evaluation measures. A built-in name, "
        "path/file.py:function, module:function, a reward model's folder, http(s)://..., judge:URL or a YAML file "
        "(docs/rewards.md); null takes the task's own",
    )
    on_error: Literal["raise", "skip"] = setting(
        "raise",
        "if the gold reward fails on a sample: raise ends the run, skip leaves the sample out and counts it (docs/rewards.md)",
    )
    time_limit: float | None = setting(
        None,
        "longest call of the gold reward, in seconds; in a combination, of each reward; null sets no limit",
        above=0,
    )
    prompt_order: Literal["random", "epochs", "success_rate", "advantage", "age", "difficulty"] = setting(
        "epochs",
        "the order of prompts in training: in epochs all of them come, in random order, before one comes again; random draws "
        "them with replacement; success_rate draws those most often that about half of the responses solve (rewards from 0 to "
        "1), advantage those with the largest advantages, age those that have not come for long; difficulty begins with the "
        "easiest, by their column difficulty, and goes on to the next once the hardest so far is solved (rewards from 0 to 1)",
    )
    difficulty_every: int | None = setting(
        None,
        "with prompt_order difficulty: iterations after which the next difficulty joins; null waits until the hardest one so "
        "far is solved",
        at_least=1,
    )
    max_new_tokens: int | None = setting(
        None, "longest response, in tokens; null takes the task's own limit", at_least=1
    )
    min_new_tokens: int | None = setting(
        None, "shortest response, in tokens: EOS is not sampled before; null takes the task's own limit", at_least=0
    )
    stop: tuple[str, ...] | None = setting(None, "texts that end a response; null takes the task's own")
    on_too_long: Literal["refuse", "skip", "truncate"] = setting(
        "refuse",
        "if prompts are too long for the model's context: refuse ends the run before any work, skip leaves them out, truncate "
        "cuts their beginning (of conversations the oldest turns); they are counted",
    )


@dataclass(frozen=True)
class ModelConfig:
    """The language model to train; a frozen copy of it is the reference."""

    name: str = setting(
        "embedded", "embedded (comes with the package), a folder, folder:file.gguf, or a name on the Hugging Face hub"
    )
    device: str = setting("auto", "cpu, cuda, cuda:1, mps, ...; auto takes a GPU if there is one")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "number format of the weights")
    quantization: Literal["nf4"] | None = setting(
        None,
        "nf4 keeps the weights of linear layers in 4 bits, frozen, for an adapter (`lora`) to learn on (QLoRA); null keeps "
        "them as they are. Needs pip install 'rlhf-gym[quantized]'",
    )
    revision: str | None = setting(None, "commit, tag or branch on the hub; null takes the hub's default")
    chat_template: str = setting(
        "auto",
        "prompts go through the tokenizer's chat template: auto, where it has one; on, it must have one; off, never (a base "
        "model that ships one); or a file with a template in Jinja",
    )
    trust_remote_code: bool = setting(False, "allow the model's repository to run its own Python code on this machine")
    allow_pickle: bool = setting(
        False,
        "allow weights from pytorch_model.bin if there are no safetensors; such a file can run code when it is opened",
    )
    lora: dict[str, Any] = setting(  # noqa: RUF009 - it is a field, with a factory
        {},
        "train a LoRA adapter instead of all weights, e.g. {rank: 8, alpha: 16, targets: [c_attn]}; empty trains all weights. "
        "Needs pip install 'rlhf-gym[lora]', and a learning rate about ten times as high",
    )


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are generated: candidates, rollouts and the evaluation's responses alike."""

    prompts: int = setting(256, "prompts that raters are asked about, in each round", at_least=1)
    candidates: int = setting(4, "responses to each of these prompts", at_least=2)
    temperature: float = setting(1.0, "the logits are divided by it", above=0)
    top_k: int = setting(0, "sample from the k most probable tokens; 0 samples from all", at_least=0)
    top_p: float = setting(
        1.0, "sample from the most probable tokens that have this probability together; 1 samples from all",
        above=0, at_most=1,
    )  # fmt: skip
    batch_size: int = setting(
        64, "candidates, or responses of the evaluation, generated at once; for rollouts see agent.n_envs", at_least=1
    )


@dataclass(frozen=True)
class RaterConfig:
    """Who compares the candidates (docs/raters.md)."""

    name: str = setting(
        "simulated",
        "simulated (Boltzmann-rational, prefers by the gold reward), a preset of it (oracle, hh_like, alpacafarm, bpref_stoc, "
        "...), web (people in a browser: section people), terminal (you, in this terminal), judge:URL or judge:MODEL@URL (a "
        "chat model), fitted:FILE (a simulated rater fitted to answers by `rlhf-gym fit-rater`), or path/file.py:name or "
        "module:name of your own: a function (prompt, a, b) that returns 0, 1 or None, "
        "or a factory (reward=, seed=) of a rater",
    )
    query_type: Literal["ranking", "pair", "best", "rating", "thumbs", "edit"] = setting(
        "ranking", "the question. ranking: order all candidates of a prompt; best: choose the best of them; rating: give each "
        "a number; pair: choose the better of two, candidates two by two; thumbs: is this candidate good; edit: accept this "
        "candidate or correct it",
    )  # fmt: skip
    labels: int | None = setting(
        None,
        "queries that are put to raters, in all rounds together, out of those that the candidates make; null puts all of them",
        at_least=1,
    )
    schedule: Literal["constant", "inverse", "hyperbolic"] = setting(
        "constant",
        "division of `labels` among rounds t = 0, 1, ..., T - 1: constant; inverse, as 1 / (1 + t); hyperbolic, as T / (T + t)",
    )
    select: Literal["random", "disagreement", "margin", "entropy", "information", "k_center", "fresh"] = setting(
        "random",
        "with `labels`: which queries, for people and simulated raters alike. disagreement, margin, entropy, information: what "
        "an ensemble of heads, fitted to the answers so far, disagrees about, finds closest, is least certain of, or would "
        "learn most from; k_center: those least like others on the frozen model's features; fresh: those whose responses the "
        "last round's training has made likelier (docs/raters.md)",
    )
    beta: float | None = setting(
        None,
        "simulated raters: rationality per unit of the gold reward, P(a over b) = sigmoid(beta (gold(a) - gold(b))); null "
        "takes the preset's (1 for simulated)",
        at_least=0,
    )
    error_rate: float | None = setting(
        None, "simulated raters: share of answers given at random; null takes the preset's", at_least=0, at_most=1
    )
    tie_threshold: float | None = setting(
        None, "simulated raters: a smaller difference in gold reward is a tie; null takes the preset's", at_least=0
    )
    skip_rate: float | None = setting(
        None, "simulated raters: share of queries skipped; null takes the preset's", at_least=0, at_most=1
    )
    length_bias: float | None = setting(
        None, "simulated raters: gold reward added for each word of a response; null takes the preset's"
    )
    position_bias: float | None = setting(
        None, "simulated raters: gold reward added to the response shown first; null takes the preset's"
    )
    lapse_rate: float | None = setting(
        None, "simulated raters: share of answers that take what is shown first, unread; null takes the preset's",
        at_least=0, at_most=1,
    )  # fmt: skip
    fatigue: float | None = setting(
        None,
        "simulated raters: added to error_rate for every 100 queries of the round; null takes the preset's",
        at_least=0,
    )
    intransitivity: float | None = setting(
        None,
        "simulated raters: gold reward by which responses beat one another in circles (a over b over c over a), as rock, paper "
        "and scissors; null takes the preset's",
        at_least=0,
    )
    population: int = setting(
        1, "simulated raters: number of raters who share the queries, as NAME/01, NAME/02, ...; see tastes and beta_spread",
        at_least=1,
    )  # fmt: skip
    overlap: int = setting(
        1, "simulated raters: raters of the population who answer each query, so that their agreement can be measured",
        at_least=1,
    )  # fmt: skip
    tastes: dict[str, float] = setting(  # noqa: RUF009 - it is a field, with a factory
        {},
        "with `population`: what raters differ about, e.g. {length: 0.5, my.py:politeness: 1}: a reward's name as --reward "
        "takes it, and the standard deviation over raters of its weight; 1 makes it matter as much as the gold reward. Some "
        "like it, others dislike it; on average the population prefers by the gold reward",
    )
    beta_spread: float = setting(
        0.0,
        "with `population`: standard deviation over raters of the logarithm of beta; 0 makes all as rational",
        at_least=0,
    )
    unit: Literal["reward", "standard_deviation"] = setting(
        "reward",
        "simulated raters: the unit of beta, tie_threshold, intransitivity and the biases. reward: the gold reward's own; "
        "standard_deviation: that of the gold reward over the reference's candidates, so that the rater stays as rational when "
        "the reward's scale changes",
    )
    rubric: str | None = setting(
        None, "judges: the criteria, as a text or as a .md or .txt file; null takes the built-in ones"
    )
    template: str | None = setting(
        None, "judges: .j2 file of the question about two responses; null takes the built-in one"
    )
    cache: str | None = setting(
        None, "judges: file of replies, so that a later run does not ask for them again; null keeps none"
    )
    batch_size: int = setting(
        32, "queries put to the rater at once; their judgements are stored before the next batch", at_least=1
    )


@dataclass(frozen=True)
class PeopleConfig:
    """The rating page, on which people answer queries (docs/people.md)."""

    host: str = setting("127.0.0.1", "address to listen on; 127.0.0.1 can be reached from this machine only")
    port: int = setting(8722, "port to listen on; 0 takes a free one", at_least=0, at_most=65535)
    url: str = setting("", "public address (https://...), if a TLS proxy stands in front of the page; else empty")
    overlap: int = setting(1, "people who answer each query", at_least=1)
    lease: float = setting(
        300.0, "seconds for which a query is reserved for the rater who sees it; a later answer still counts", above=0
    )
    quota: float = setting(
        1.0, "share of a round's queries that people must answer before the loop goes on; later answers count from the next "
        "fit on", above=0, at_most=1,
    )  # fmt: skip
    refit: int | None = setting(
        None, "fit the reward model again, while the policy is trained, after this many new answers; null fits it once a round",
        at_least=1,
    )  # fmt: skip
    share: float = setting(
        0.0, "share of the queries that people answer if rater.name is not web; that rater answers the others",
        at_least=0, at_most=1,
    )  # fmt: skip
    warm_up: int = setting(
        0, "with rater.name web: the simulated rater answers in this many rounds first, then people do", at_least=0
    )
    title: str = setting("Which response is better?", "title of every page")
    guidelines: str | None = setting(None, "Markdown file of guidelines for raters; null takes the built-in ones")
    text: Literal["plain", "markdown"] = setting("plain", "show responses as plain text, or render their Markdown")
    attributes: tuple[str, ...] = setting(
        ("overall",),
        "with rater.query_type rating: what people rate, e.g. [helpful, harmless, honest]; the reward model is fitted to the "
        "mean",
    )
    check_questions: str | None = setting(
        None, "JSON Lines file of check questions (queries with known answers), for `practice` and `check_share`"
    )
    practice: int = setting(0, "practice questions, from `check_questions`, before a rater's first query", at_least=0)
    check_share: float = setting(
        0.0, "share of a rater's questions that are check questions, which measure accuracy", at_least=0, below=1
    )
    repeat_share: float = setting(
        0.0, "share of a rater's questions that repeat an earlier one, which measures consistency", at_least=0, below=1
    )


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """The reward model, fitted to preferences: the proxy that the policy is trained against."""

    enabled: bool = setting(
        True, "true asks raters and fits a reward model; false asks nobody and trains against the gold reward"
    )
    shuffle_labels: bool = setting(
        False,
        "a control: fit to shuffled labels (each preference turned round at random, ratings exchanged), so that the reward "
        "model knows nothing; what such a run wins, no label has taught",
    )
    members: int = setting(
        1,
        "reward models in an ensemble (Coste et al. 2023: 4 or 5): the first is fitted to all training prompts, each other one "
        "to a resample of them; each scores by a pass of its own. Their variance is the metric ensemble_variance",
        at_least=1,
    )
    combine: Literal["mean", "minimum", "mean_minus_variance"] = setting(
        "mean_minus_variance",
        "with `members`: the proxy is their mean, their minimum, or their mean less `variance_weight` times their variance",
    )
    variance_weight: float = setting(1.0, "with `combine` mean_minus_variance: weight of the variance", at_least=0)
    settings: Mapping[str, Any]
    """Every setting of the fit (:class:`~rlhf_gym.reward_model.FitConfig`), by name: the other keys of the section."""


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """The agent that trains the policy: the loop's own settings, then those of the algorithm (docs/algorithms.md)."""

    name: str = setting(
        "ppo",
        "ppo, nlpo, trpo, a2c, grpo, gspo, rloo, remax, reinforce, reinforce_plus_plus, online_dpo, raft, es, "
        "preference_optimization, ilql, sft, or path/file.py:Class or module:Class of your own",
    )
    preset: str | None = setting(
        None,
        "named settings of the agent, e.g. dapo of grpo (docs/algorithms.md lists them); settings that are given win",
    )
    iterations: int = setting(
        40, "iterations in each round; an iteration is one rollout and the learning from it", at_least=1
    )
    tokens: int | None = setting(
        None,
        "with one round: the budget of generated tokens, in the place of `iterations`; training ends with the iteration that "
        "reaches it, and schedules follow the tokens",
        at_least=1,
    )
    n_envs: int | None = setting(
        None, "environments, i.e. responses generated at once; it divides n_episodes; null takes n_episodes", at_least=1
    )
    value_start: Literal["policy", "reward_model"] = setting(
        "policy", "weights that a separate value network starts from: the policy's, or the round's reward model's"
    )
    teacher: str | None = setting(
        None,
        "on-policy distillation: the model, as in model.name, that the agent's KL penalty is measured from in the place of the "
        "model that training starts from. kl_coef weighs it against the reward; take kl_in loss. The evaluation still reports "
        "the KL from model.name; null has no teacher",
    )
    target_column: str = setting("target", "column of the prompts that holds the response to learn")
    data: str | None = setting(
        None,
        "what to learn from: a run's directory, a feedback store, or a file of preferences, examples or rewarded responses "
        "(docs/stages.md); null takes `target_column` of the task's prompts",
    )
    data_format: str = setting("auto", "exchange format of the file `data` (docs/people.md); auto finds it")
    data_columns: dict[str, str] = setting(  # noqa: RUF009 - it is a field, with a factory
        {},
        "columns of the file `data` that have other names than their format's, e.g. {prompt: question, chosen: better}",
    )
    checkpoint_every: int = setting(
        5,
        "iterations from one checkpoint to the next; a kill costs at most the iterations since the last one",
        at_least=1,
    )
    settings: Mapping[str, Any]
    """Every setting of the agent that a run sets, by name: the other keys of the section."""

    @property
    def environments(self) -> int:
        """The number of environments, which is the number of responses generated at once."""
        return self.n_envs or int(self.settings["n_episodes"])

    def is_done(self, iteration: int, tokens: int) -> bool:
        """True once a round's training has used its iterations, or its tokens where they are what counts.

        Args:
            iteration: iterations of the round so far.
            tokens: tokens generated so far.
        """
        return iteration >= self.iterations if self.tokens is None else tokens >= self.tokens


@dataclass(frozen=True)
class EvaluationConfig:
    """The evaluation: the tuned model against the reference, on held-out prompts; and while the policy is trained."""

    prompts: int = setting(200, "most held-out prompts to use; both models answer each of them once", at_least=1)
    judge: str | None = setting(
        None,
        "a second reward, independent of the gold one, by which the evaluation reports a win rate, too: anything that "
        "task.reward takes, or none; null takes the task's own judge, if it has one and the gold reward is the task's own",
    )
    best_of: int = setting(
        8,
        "responses of the reference to each of at most 64 held-out prompts, of which best-of-n is measured as a baseline; 0 "
        "measures none",
        at_least=0,
    )
    every: int | None = setting(
        None,
        "iterations from one evaluation during training to the next, on validation prompts, which are neither trained on nor "
        "held out; null evaluates at the end only",
        at_least=1,
    )
    validation_prompts: int = setting(
        64,
        "with `every`: validation prompts, taken from those to train on (at most half of them); of a task that is a "
        "conversation, conversations",
        at_least=1,
    )
    metric: str = setting(
        "gold",
        "with `every`: what makes a policy the best: gold, proxy, or another of the metrics validation/... that is better the "
        "higher it is",
    )
    final: Literal["last", "best"] = setting(
        "last",
        "the policy that a round ends with: that of its last iteration, or with `every` that of the best evaluation",
    )
    stop_at: float | None = setting(
        None, "with `every`: a round's training ends once `metric` has reached this; null sets no goal"
    )
    stop_above: dict[str, float] = setting(  # noqa: RUF009 - it is a field, with a factory
        {},
        "with `every`: a round's training ends once one of these metrics validation/... exceeds its value, e.g. {kl: 20, "
        "label_gap_low: 0.1}: against over-optimisation (docs/reward-models.md)",
    )
    fresh_labels: int = setting(
        0,
        "with `every`: pairs of the policy's and the reference's response to validation prompts that each evaluation puts to "
        "the rater; validation/label_gap is the win rate by the proxy minus that by the rater, label_gap_low the lower end of "
        "its one-sided 95% interval. They are not learned from. 0 asks nothing",
        at_least=0,
    )
    patience: int | None = setting(
        None,
        "with `every`: a round's training ends after so many evaluations in a row without a better one; null never ends it",
        at_least=1,
    )


@dataclass(frozen=True)
class LogConfig:
    """Logging, in addition to metrics.csv."""

    to: tuple[Literal["wandb", "tensorboard"], ...] = setting((), "further loggers: wandb, tensorboard")
    wandb_project: str = setting("rlhf-gym", "project in Weights & Biases")
    wandb_mode: Literal["offline", "online"] = setting(
        "offline", "offline writes to the run's directory only; online sends everything to Weights & Biases"
    )
    completions: int = setting(
        4, "sample completions to print, and to store token by token, each time; 0 turns them off", at_least=0
    )
    completions_every: int = setting(
        10, "iterations between sample completions; the first and the last iteration always have some", at_least=1
    )


@dataclass(frozen=True)
class RunConfig:
    """The run as a whole."""

    rounds: int = setting(
        1, "rounds of the loop; each begins with the policy that the round before has tuned", at_least=1
    )
    seed: int = setting(
        0, "seed of everything random; the same seed gives the same metrics on CPU", at_least=0, below=2**63
    )
    threads: int | None = setting(
        None,
        "CPU threads; null leaves it to PyTorch. Metrics are exactly the same only with the same number",
        at_least=1,
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole configuration of a run; :func:`rlhf_gym.loop.config_file.build` makes and checks one."""

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

    @property
    def asks_people(self) -> bool:
        """True if people answer queries on a rating page."""
        return self.reward_model.enabled and (self.rater.name == "web" or self.people.share > 0)


SECTIONS: dict[str, type[Any]] = {
    "task": TaskConfig, "model": ModelConfig, "sampling": SamplingConfig, "rater": RaterConfig, "people": PeopleConfig,
    "reward_model": RewardModelConfig, "agent": AgentConfig, "evaluation": EvaluationConfig, "log": LogConfig,
    "run": RunConfig,
}  # fmt: skip
"""The sections by name, in the order they are written."""
