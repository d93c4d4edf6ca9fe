"""What nbdkit runs: nbdkit_plugin.py, with the compiled twin of the data path if there is one.
Nothing of the engine may be imported before that is settled."""

from __future__ import annotations

from replicator import compiled

compiled.use()

from nbd_plugin.nbdkit_plugin import *  # noqa: E402, F403
from nbd_plugin.nbdkit_plugin import open  # noqa: E402, F401
