"""The process of a TRL trainer: ``python -m rlhf_gym.bench.trl_process SPEC``, started by the contender."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rlhf_gym.bench.cells import Cell
from rlhf_gym.bench.contender import write_whole
from rlhf_gym.bench.loop_contender import run_config
from rlhf_gym.bench.worker import lines_of_parent
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.run_directory import RunDirectory
from rlhf_gym.loop.whole_files import whole_folder
from rlhf_gym.rewards.base import score
from rlhf_gym.tasks.samples import columns_of
from rlhf_gym.tasks.trl_export import ROW, to_trl


class Used:
    """What a trainer has used so far, counted where it asks for rewards."""

    def __init__(self) -> None:
        self.tokens = 0
        self.rewards: list[float] = []
        self.curve: list[list[float | None]] = []
        self.kl: float | None = None

    def point(self) -> None:
        """Add a point to the curve, of the responses since the last one."""
        if self.rewards:
            self.curve.append([self.tokens, sum(self.rewards) / len(self.rewards), self.kl])
            self.rewards = []


def train(spec: dict[str, Any]) -> None:
    """Train with a trainer of TRL, and save the policy with ``outcome.json``.

    Args:
        spec: what :class:`~rlhf_gym.bench.trl_contender.TRLContender` has written.
    """
    import torch
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    torch.set_num_threads(1)
    torch.manual_seed(spec["seed"] % 2**32)
    cell = Cell(**spec["cell"])
    config = run_config(cell, {"name": spec["start"]}, None)
    context = RunContext.of(config, RunDirectory(spec["run"]), Progress(quiet=True))
    task, gold, proxy, used = context.task, context.gold, context.proxy(1), Used()
    export = to_trl(task, reward=proxy)
    optimize = export.reward_funcs[0]
    budget = cell.budget if cell.equal == "tokens" else None

    def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        values = optimize(prompts, completions, **columns)
        used.tokens += sum(len(ids) for ids in columns["completion_ids"])
        if proxy is gold:
            used.rewards += values
        else:
            rows = [task.prompts[int(i)] for i in columns[ROW]]
            texts = [task.cut(completion) for completion in completions]
            used.rewards += score(gold, [row.text for row in rows], texts, columns_of(rows)).values.tolist()
        return values

    def share_left(_step: int) -> float:
        """The learning rate falls linearly over the budget, as that of our agents does."""
        return max(0.0, 1 - (_step / cell.budget if budget is None else used.tokens / cell.budget))

    steps_per_rollout = spec["n_epochs"] * spec["n_episodes"] // spec["batch_size"]

    class Budget(TrainerCallback):
        """Ends training at the budget, once the rollout that reached it is learned from."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "kl" in logs:
                used.kl = float(logs["kl"])

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % steps_per_rollout:
                return
            used.point()
            spent = used.tokens >= cell.budget if budget is not None else state.global_step >= cell.budget
            control.should_training_stop = spent

    tokenizer = AutoTokenizer.from_pretrained(spec["start"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(spec["start"], dtype=torch.float32)
    trainer_kind, config_kind = getattr(trl, f"{spec['trainer']}Trainer"), getattr(trl, f"{spec['trainer']}Config")
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec["learning_rate"], weight_decay=0.0)
    arguments = {
        "output_dir": str(Path(spec["target"]).with_name("trl")), "per_device_train_batch_size": spec["batch_size"],
        "generation_batch_size": spec["n_episodes"], "num_iterations": spec["n_epochs"], "num_generations": spec["group_size"],
        "max_completion_length": task.max_new_tokens, "beta": spec["kl_coef"], "temperature": context.sampling.temperature,
        "generation_kwargs": {"suppress_tokens": list(context.limits.suppress_tokens), "min_new_tokens": task.min_new_tokens},
        "top_p": context.sampling.top_p, "top_k": context.sampling.top_k, "max_steps": 10**7,
        "use_cpu": context.reference.device.type == "cpu", "bf16": False, "report_to": [], "save_strategy": "no",
        "gradient_checkpointing": False, "logging_steps": steps_per_rollout,
        "disable_tqdm": True, "remove_unused_columns": False, "seed": spec["seed"] % 2**31, **spec["config"],
    }  # fmt: skip
    trainer = trainer_kind(
        model=model, args=config_kind(**arguments), processing_class=tokenizer, reward_funcs=reward, callbacks=[Budget()],
        train_dataset=export.train_dataset,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share_left)),
    )  # fmt: skip
    trainer.train()
    used.point()
    outcome = {"tokens": used.tokens, "optimizer_steps": trainer.state.global_step, "curve": used.curve}
    with whole_folder(Path(spec["target"])) as target:
        trainer.model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        write_whole(target / "outcome.json", outcome)


if __name__ == "__main__":
    lines_of_parent()
    train(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
