"""What nbdkit runs: nbdkit_plugin.py, with the compiled twin of the data path if there is one.
Nothing of the engine may be imported before that is settled."""

from __future__ import annotations

from replicator import compiled

compiled.use()

# Only now (E402). nbdkit calls what it finds here by name: all of the plugin's functions, and the one
# that a star leaves to Python's own of that name (F401, F403).
from nbd_plugin.nbdkit_plugin import *  # noqa: E402, F403
from nbd_plugin.nbdkit_plugin import open  # noqa: E402, F401
