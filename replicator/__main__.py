"""`python -m replicator` is the same as the `replicator` command."""

import sys

from replicator.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
