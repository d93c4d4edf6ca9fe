"""drbd.conf: read, checked, and seen from one node.

`load(path)` gives a Config; `Config.view(resource, node)` the typed picture one daemon works with;
`replicator.config.settings.to_settings(view)` what its engine is told.
"""

from replicator.config.config import Config
from replicator.config.loader import load
from replicator.config.model import (
    Address,
    DiskOptions,
    MetaDisk,
    NetOptions,
    NodeView,
    ReplicatorOptions,
    ResourceOptions,
    StartupOptions,
    VolumeView,
    Where,
)
from replicator.config.resolve import ResourceConfig

__all__ = [
    "Address",
    "Config",
    "DiskOptions",
    "MetaDisk",
    "NetOptions",
    "NodeView",
    "ReplicatorOptions",
    "ResourceConfig",
    "ResourceOptions",
    "StartupOptions",
    "VolumeView",
    "Where",
    "load",
]
