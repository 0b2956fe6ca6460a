"""The rating page: people answer queries in a browser, and everything they say goes through the feedback store.

The server keeps no state of its own. Queries, judgements, people and leases are rows of the store, so that the page can be
killed at any moment, served by another process the next, and watched from a third.
"""
