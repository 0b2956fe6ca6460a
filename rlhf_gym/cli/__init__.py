"""The command line, `rlhf-gym`: options in `parser`, commands in `commands`, errors and exit codes in `main`."""
