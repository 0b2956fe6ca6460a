"""What the agents share: the training loop, collection, the policy, advantages and losses, settings, checkpoints."""
