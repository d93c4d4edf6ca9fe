"""nbdkit's plugin script with a pretend engine behind it: the front end tested by itself.

Run by nbdkit in place of nbd_plugin/nbdkit_script.py; takes over the functions of nbdkit_plugin.py
unchanged.
"""

from __future__ import annotations

# nbdkit calls what it finds here by name: all of the plugin's functions, and the one that a star leaves
# to Python's own of that name (F401, F403).
from nbd_plugin.nbdkit_plugin import *  # noqa: F403
from nbd_plugin.nbdkit_plugin import open  # noqa: F401
from tests.integration import pretend_resource

pretend_resource.install()
