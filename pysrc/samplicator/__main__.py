"""`python -m samplicator`: the `samplicator` command of this very interpreter. Used by the demo and the tests."""

import sys

from samplicator.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
