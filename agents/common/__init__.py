"""The parts that all agents share: training loop, collection, policy, advantages, losses, settings, checkpoints."""
