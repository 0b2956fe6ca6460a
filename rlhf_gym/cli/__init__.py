"""The command line: `rlhf-gym run`, `config`, `report`, `sample`."""
