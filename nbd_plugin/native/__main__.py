"""`python -m nbd_plugin.native key=value...`: the daemon of daemon.py, with the compiled twin of the
data path if there is one. Nothing of the engine may be imported before that is settled."""

from __future__ import annotations

import sys

from replicator import compiled

if __name__ == "__main__":
    compiled.use()
    from nbd_plugin.native.daemon import main

    sys.exit(main())
