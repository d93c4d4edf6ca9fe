"""The built-in NBD server with a pretend engine behind it; run in place of nbd_plugin.native."""

from __future__ import annotations

import sys

from nbd_plugin.native.daemon import NativeFrontEnd
from replicator.runtime import daemon
from tests.integration import pretend_resource

pretend_resource.install()
sys.exit(daemon.main(sys.argv[1:], NativeFrontEnd))
