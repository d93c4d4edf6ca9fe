"""All tests. REPLICATOR_TEST_ENGINE=compiled runs those in this process with the compiled twin of the
data path, =simulator with that of the simulator; without it they get the Python modules, which they may
patch. Daemons choose for themselves.
"""

import os

from replicator import compiled

ENGINE = os.environ.get("REPLICATOR_TEST_ENGINE", "")

if ENGINE in ("compiled", "simulator"):
    from tests.simulation.twin import SELECTION

    twin = compiled.use(SELECTION if ENGINE == "simulator" else compiled.DATA_PATH)
    if twin.directory is None:
        raise RuntimeError(f"REPLICATOR_TEST_ENGINE={ENGINE}, but the engine is {twin}")
