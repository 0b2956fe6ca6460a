"""The built-in rewards, one idea a file; `rlhf-gym rewards` lists them."""
