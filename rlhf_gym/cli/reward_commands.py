"""The commands about rewards: list them, check one before training, serve one to other machines."""

from __future__ import annotations

import argparse
import os
import sys

from rlhf_gym.cli.quiet import quiet_libraries
from rlhf_gym.errors import ConfigError
from rlhf_gym.rewards.spec import TOKEN_VARIABLE


def rewards(options: argparse.Namespace) -> None:
    """`rlhf-gym rewards`: list the built-in rewards, or describe one."""
    from rlhf_gym.rewards.spec import described, listing

    print(listing() if options.name is None else described(options.name))


def check_reward(options: argparse.Namespace) -> int:
    """`rlhf-gym check-reward`: check a reward, or a task's own, and print what was found.

    Returns:
        The exit code: 1 with ``--strict`` if there is something to look at, else 0.

    Raises:
        ConfigError: neither a reward nor a task, fewer than two samples, or a negative seed.
    """
    if options.reward is None and options.task is None:
        raise ConfigError("give a reward, or --task NAME to check the task's own reward")
    if options.samples < 2:
        raise ConfigError(f"--samples must be at least 2, got {options.samples}")
    if options.seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {options.seed}")
    quiet_libraries()
    from rlhf_gym.loop.config import ModelConfig, TaskConfig
    from rlhf_gym.loop.run_task import gold_of, task_of
    from rlhf_gym.rewards.check import check_reward
    from rlhf_gym.tasks.samples import columns_of

    config = TaskConfig(
        name=options.task or TaskConfig().name,
        prompts=options.prompts,
        reward=options.reward,
        time_limit=options.time_limit,
    )
    task = task_of(config)
    reward = gold_of(config, task)
    prompts = [task.prompts[i % len(task.prompts)] for i in range(options.samples)]
    texts = [prompt.text for prompt in prompts]

    from rlhf_gym.lm.decoding import generate
    from rlhf_gym.lm.language_model import LanguageModel
    from rlhf_gym.lm.sampling import Limits, Sampling
    from rlhf_gym.lm.tokenizer import encode_response
    from rlhf_gym.tasks.prompt_ids import prompt_ids

    model = LanguageModel.load(options.model, device=ModelConfig().device, chat_template=options.chat_template)
    tokenizer = model.tokenizer
    limits = Limits.of(tokenizer, task.min_new_tokens, task.max_new_tokens)
    ids = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    responses = generate(model, ids, limits, sampling=Sampling(), stop=task.stop, seed=options.seed)
    print(f"honest samples: {len(texts)} responses of {model.name} to prompts of task {task.name}", file=sys.stderr)
    report = check_reward(
        reward, texts, [response.text for response in responses], columns_of(prompts),
        encode=lambda text: [*encode_response(tokenizer, text), tokenizer.eos_id],
    )  # fmt: skip
    print(report.as_text())
    for trouble in report.troubles:
        print(f"look at this before training: {trouble}")
    return 1 if report.troubles and options.strict else 0


def serve_reward(options: argparse.Namespace) -> None:
    """`rlhf-gym serve-reward`: serve a reward over HTTP until Ctrl-C.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    quiet_libraries()
    from rlhf_gym.rewards.base import reward_name
    from rlhf_gym.rewards.service.serve import RewardServer
    from rlhf_gym.rewards.spec import load_reward

    reward = load_reward(options.reward)
    token = os.environ.get(TOKEN_VARIABLE) or None
    try:
        server = RewardServer(reward, host=options.host, port=options.port, token=token)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen on {options.host}:{options.port}: {getattr(error, 'strerror', None) or error}; give another "
            "--host or --port (0 takes a free port)"
        ) from error
    guarded = "with a token" if token else f"without a token (set {TOKEN_VARIABLE} to ask for one)"
    print(f"serving reward {reward_name(reward)!r} at {server.url}, {guarded}; Ctrl-C ends it", flush=True)
    if options.host not in ("127.0.0.1", "localhost", "::1"):
        print("other machines can reach it, and plain HTTP hides nothing: put a TLS proxy in front", flush=True)
    server.serve_forever()
