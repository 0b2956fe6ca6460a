"""The RLHF loop: sample, ask raters, fit a reward model, train the policy, evaluate; round after round.

:mod:`~rlhf_gym.loop.config` says everything that can be set, :func:`rlhf_gym.loop.rounds.run_loop` runs it.
"""
