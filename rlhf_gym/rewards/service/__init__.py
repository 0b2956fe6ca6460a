"""Rewards on other machines: the client, the server, and what bounds the waiting for them."""
