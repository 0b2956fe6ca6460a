"""Wrappers around token environments: smaller action spaces, plain observations, rewards for every token."""
