"""The metrics of a measurement, in the order of tables; every task's own metrics come as ``metric_NAME`` besides."""

METRICS = (
    "n_prompts", "reward", "reward_se", "win_rate", "kl", "kl_se", "proxy", "gap", "perplexity", "distinct_2", "length",
    "ended",
)  # fmt: skip
