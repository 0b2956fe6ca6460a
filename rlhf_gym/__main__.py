"""`python -m rlhf_gym`: the command line, also in a checkout that is not installed."""

import sys

from rlhf_gym.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
