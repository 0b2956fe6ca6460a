"""Settings that contradict one another, refused before any work starts."""

from __future__ import annotations

from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.agent_catalogue import find_agent, needs_more_than_settings
from rlhf_gym.loop.config import AgentConfig, Config, EvaluationConfig, PeopleConfig
from rlhf_gym.loop.questions import labels_of_rounds


def check_config(config: Config) -> None:
    """Refuse settings that contradict one another.

    Raises:
        ConfigError: names both settings, and says what to change.
    """
    _check_agent(config.agent)
    _check_value_start(config)
    _check_quantization(config)
    _check_ensemble(config)
    _check_teacher(config.agent)
    _check_evaluation(config.evaluation)
    _check_fresh_labels(config)
    if config.agent.tokens is not None and config.run.rounds > 1:
        raise ConfigError(
            f"agent.tokens ({config.agent.tokens}) is the budget of a single round, and run.rounds is "
            f"{config.run.rounds}: give agent.iterations, which counts in each round, or run.rounds=1"
        )
    _check_people(config.people, asked=config.rater.name == "web" or config.people.share > 0)
    if config.people.refit is not None and config.agent.settings.get("ray") is not None:
        raise ConfigError(
            f"people.refit ({config.people.refit}) replaces the reward while the policy is trained, which workers on Ray "
            f"(agent.ray={config.agent.settings['ray']}) would not see: leave one of them out"
        )
    query_type, candidates = config.rater.query_type, config.sampling.candidates
    if query_type in ("thumbs", "edit") and config.rater.name == "web" and config.people.warm_up:
        raise ConfigError(
            f"people.warm_up ({config.people.warm_up}) is answered by the simulated rater, who answers no {query_type} queries "
            "(rater.query_type): set people.warm_up=0, or another query type"
        )
    if query_type == "pair" and candidates % 2:
        raise ConfigError(
            f"rater.query_type pair takes candidates two by two: sampling.candidates must be even, got {candidates}"
        )
    _check_labels(config)
    if config.task.difficulty_every is not None and config.task.prompt_order != "difficulty":
        raise ConfigError(
            f"task.difficulty_every ({config.task.difficulty_every}) goes with task.prompt_order difficulty, not "
            f"{config.task.prompt_order}: leave it out, or give that order"
        )
    longest, shortest = config.task.max_new_tokens, config.task.min_new_tokens
    if longest is not None and shortest is not None and shortest > longest:
        raise ConfigError(f"task.min_new_tokens ({shortest}) must be at most task.max_new_tokens ({longest})")


def _check_agent(agent: AgentConfig) -> None:
    cls, episodes, n_envs = find_agent(agent.name), agent.settings["n_episodes"], agent.environments
    size = agent.settings.get("group_size", cls.group_size)
    if n_envs % size:
        raise ConfigError(
            f"{cls.__name__} puts {size} environments in a group (agent.group_size), which must divide their number ({n_envs}; "
            "agent.n_envs, or agent.n_episodes where that is null)"
        )
    if not needs_more_than_settings(
        cls
    ):  # what an agent needs beyond settings comes from the task, which is loaded later
        try:
            cls.Settings.of(agent.settings, cls.__name__)
        except ConfigError as error:
            raise ConfigError(f"agent {agent.name}: {error}") from None
    if episodes % n_envs:
        raise ConfigError(f"agent.n_episodes ({episodes}) must be a multiple of agent.n_envs ({n_envs})")


def _check_ensemble(config: Config) -> None:
    settings = config.reward_model
    if settings.members > 1 and not settings.enabled:
        raise ConfigError(
            f"reward_model.members ({settings.members}) are fitted, and reward_model.enabled is false: leave one out"
        )
    by_variance = [name for name in config.evaluation.stop_above if name == "ensemble_variance"]
    if by_variance and settings.members == 1:
        raise ConfigError(
            "evaluation.stop_above ensemble_variance is the variance among reward models, and there is one: give "
            "reward_model.members, e.g. 4"
        )


def _check_value_start(config: Config) -> None:
    if config.agent.value_start != "reward_model":
        return
    if not config.reward_model.enabled:
        raise ConfigError(
            "agent.value_start reward_model needs a reward model, and reward_model.enabled is false: give policy"
        )
    if config.reward_model.settings["layers"] is not None:
        raise ConfigError(
            "agent.value_start reward_model needs the whole trunk: leave agent.value_start or reward_model.layers out"
        )
    if config.model.lora:
        raise ConfigError("agent.value_start reward_model does not go with model.lora: leave one of them out")
    if config.agent.settings.get("value_network", "separate") != "separate":
        raise ConfigError(
            "agent.value_start reward_model needs a value network of its own: give agent.value_network separate"
        )


def _check_quantization(config: Config) -> None:
    if config.model.quantization is None:
        return
    if not config.model.lora:
        raise ConfigError(
            f"model.quantization {config.model.quantization} freezes the model's weights, and nothing would learn: give "
            "model.lora, e.g. {rank: 8}, an adapter on them"
        )
    if config.reward_model.enabled and config.reward_model.settings["trunk_layers"] not in (None, 0):
        raise ConfigError(
            f"model.quantization {config.model.quantization} freezes the reward model's trunk, too, which is a copy of the "
            "model: give reward_model.trunk_layers 0 (null takes that here), or leave model.quantization out"
        )


def _check_teacher(agent: AgentConfig) -> None:
    if agent.teacher is not None and not agent.settings["kl_coef"]:
        raise ConfigError(
            f"agent.teacher ({agent.teacher!r}) is learned from through the KL penalty, and agent.kl_coef is 0: give "
            "agent.kl_coef, the weight of the KL from the teacher against the reward"
        )


def _check_labels(config: Config) -> None:
    rater, rounds = config.rater, config.run.rounds
    if rater.labels is None:
        if given := [
            f"rater.{name}" for name in ("select", "schedule") if getattr(rater, name) not in ("random", "constant")
        ]:
            raise ConfigError(
                f"{' and '.join(given)} choose among the queries that the candidates make, and all of them are asked: give "
                "rater.labels, the number to ask in all rounds"
            )
        return
    size = {"pair": 2, "thumbs": 1, "edit": 1}.get(rater.query_type, config.sampling.candidates)
    most = config.sampling.prompts * config.sampling.candidates // size
    if rater.labels < rounds:
        raise ConfigError(f"rater.labels ({rater.labels}) must be at least run.rounds ({rounds}): one query a round")
    if (first := max(labels_of_rounds(rater.labels, rounds, rater.schedule))) > most:
        raise ConfigError(
            f"rater.labels ({rater.labels}) puts {first} queries into one round, and its candidates make {most}: give more "
            "sampling.prompts, or fewer labels"
        )
    if rater.select in ("disagreement", "margin", "entropy", "information") and rater.query_type in ("thumbs", "edit"):
        raise ConfigError(
            f"rater.select {rater.select} compares responses, and a {rater.query_type} query has one: give random, k_center or "
            "fresh"
        )


def _check_evaluation(evaluation: EvaluationConfig) -> None:
    if evaluation.every is not None:
        return
    given = {
        "final best": evaluation.final == "best",
        "stop_at": evaluation.stop_at is not None,
        "patience": evaluation.patience,
        "stop_above": evaluation.stop_above,
        "fresh_labels": evaluation.fresh_labels,
    }
    if needing := [f"evaluation.{name}" for name, is_given in given.items() if is_given]:
        raise ConfigError(
            f"{' and '.join(needing)} need an evaluation during training: give evaluation.every, in iterations"
        )


def _check_fresh_labels(config: Config) -> None:
    evaluation = config.evaluation
    by_labels = [name for name in evaluation.stop_above if name.startswith("label_")]
    if by_labels and not evaluation.fresh_labels:
        raise ConfigError(
            f"evaluation.stop_above {by_labels[0]} compares the proxy with fresh labels, and none are asked: give "
            "evaluation.fresh_labels, e.g. 32"
        )
    if not evaluation.fresh_labels:
        return
    if evaluation.fresh_labels > evaluation.validation_prompts:
        raise ConfigError(
            f"evaluation.fresh_labels ({evaluation.fresh_labels}) are about validation prompts, and there are "
            f"{evaluation.validation_prompts} (evaluation.validation_prompts): give more of those, or fewer labels"
        )
    if not config.reward_model.enabled:
        raise ConfigError(
            "evaluation.fresh_labels compares the reward model with the rater, and reward_model.enabled is false: leave it out"
        )
    if config.rater.name in ("web", "terminal"):
        raise ConfigError(
            f"evaluation.fresh_labels needs a rater who answers at once while training waits, not {config.rater.name}: take a "
            "judge, a function or a simulated rater, or leave it out; people.refit learns from people meanwhile"
        )


def _check_people(people: PeopleConfig, *, asked: bool) -> None:
    if people.refit is not None and not asked:
        raise ConfigError(
            f"people.refit ({people.refit}) waits for people's answers, and nobody is asked: give --rater web, or a "
            "people.share"
        )
    if (people.practice or people.check_share) and people.check_questions is None:
        raise ConfigError(
            "people.practice and people.check_share need people.check_questions, a file of queries with answers"
        )
