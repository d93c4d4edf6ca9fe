"""All tests. REPLICATOR_TEST_ENGINE=compiled runs those in this process with the compiled twin of the
data path; without it they get the Python modules, which they may patch. Daemons choose for themselves.
"""

import os

from replicator import compiled

if os.environ.get("REPLICATOR_TEST_ENGINE") == "compiled":
    twin = compiled.use()
    if twin.directory is None:
        raise RuntimeError(f"REPLICATOR_TEST_ENGINE=compiled, but the engine is {twin}")
