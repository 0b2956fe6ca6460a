"""Rewards on other machines: the client, the server, overlapped scoring, and limits on waiting."""
