"""A pretend world for tests of the command line: two resources, daemons and devices as plain values.

Rules: it decides nothing that a test wants to find out; it answers, refuses as told, and keeps the
order of what it was asked to do in `done`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

from replicator.cli.world import World
from replicator.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from replicator.errors import DaemonError, ReplicatorError, UsageError

NODE = "alice"


class Result(NamedTuple):
    """How a command line ended and what it printed."""

    code: int
    out: str
    err: str


Run = Callable[[str], Result]


def volume_snapshot(number: int = 0, minor: int = 0, **changes: Any) -> VolumeSnapshot:
    """Connected, Secondary, all UpToDate unless told otherwise."""
    fields: dict[str, Any] = {
        "cs": "Connected",
        "role": "Secondary",
        "peer_role": "Secondary",
        "disk": "UpToDate",
        "peer_disk": "UpToDate",
    } | changes
    return VolumeSnapshot(number, minor, f"/dev/drbd{minor}", "/dev/sda7", 2048, **fields)


def resource_snapshot(name: str = "r0", *volumes: VolumeSnapshot, **changes: Any) -> Any:
    own = list(volumes) or [volume_snapshot()]
    fields: dict[str, Any] = {"cstate": own[0].cs, "protocol": "C"} | changes
    return ResourceSnapshot(name, NODE, "bob", volumes=own, **fields)


def volume_view(number: int, minor: int, kind: str = "internal", index: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        number=number,
        minor=minor,
        device=f"/dev/drbd{minor}",
        disk=f"/dev/sda{minor + 7}",
        meta_disk=SimpleNamespace(
            kind=kind, path="" if kind == "internal" else "/dev/md", index=index
        ),
    )


def node_view(name: str, *volumes: SimpleNamespace) -> SimpleNamespace:
    return SimpleNamespace(
        resource=name,
        node=NODE,
        peer="bob",
        address=SimpleNamespace(family="ipv4", host="127.0.0.1", port=7789),
        volumes=list(volumes),
        startup=SimpleNamespace(
            wfc_timeout=0, degr_wfc_timeout=0, outdated_wfc_timeout=0, wait_after_sb=False
        ),
    )


class PretendConfig:
    """r0 with one volume; pair with two, the second with external metadata."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.broken: dict[str, str] = {}
        self.found = {
            "r0": node_view("r0", volume_view(0, 0)),
            "pair": node_view("pair", volume_view(0, 1), volume_view(3, 4, "indexed", 2)),
        }

    def view(self, resource: str, node: str) -> Any:
        if resource not in self.found:
            raise UsageError(f"'{resource}' not defined in your config (for this host).")
        return self.found[resource]

    def views(self, node: str) -> list[Any]:
        return list(self.found.values())

    def unusable(self, node: str) -> dict[str, str]:
        return self.broken

    def dump(self, resource: str | None = None) -> str:
        return f"# text of {resource or 'everything'}\n"


Answer = Callable[[dict[str, Any]], Any]


@dataclass
class PretendWorld(World):
    """up: daemons that run; refuse: step -> error to raise; waited: seconds spent on hanging daemons."""

    config: PretendConfig = field(default_factory=PretendConfig)
    up: dict[str, ResourceSnapshot] = field(default_factory=dict)
    hanging: set[str] = field(default_factory=set)
    waited: float = 0.0
    written: dict[str, ResourceSnapshot] = field(default_factory=dict)
    attached: set[str] = field(default_factory=set)
    users: dict[str, list[str]] = field(default_factory=dict)
    refuse: dict[str, BaseException] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    no_device: str = ""
    clock: float = 100.0
    on_sleep: Callable[[], None] = lambda: None
    files: set[str] = field(default_factory=set)

    def _step(self, name: str) -> None:
        if name in self.refuse:
            raise self.refuse[name]
        self.done.append(name)

    def file_exists(self, path: str) -> bool:
        return path in self.files

    def node_name(self) -> str:
        return NODE

    def now(self) -> float:
        return self.clock

    def sleep(self, seconds: float) -> None:
        assert seconds > 0, "a wait of nothing is a busy loop"
        self.clock += seconds
        self.on_sleep()

    def load_config(self, path: str) -> Any:
        self.loaded = path
        return self.config

    def run_dir(self, option: str | None) -> str:
        return option or "/run/replicator"

    def daemon_pid(self, run_dir: str, resource: str) -> int | None:
        return 42 if resource in self.up or resource in self.hanging else None

    def last_snapshot(self, run_dir: str, resource: str) -> ResourceSnapshot | None:
        return self.written.get(resource)

    def call(
        self, run_dir: str, resource: str, command: str, arguments: dict[str, Any], timeout: float
    ) -> Any:
        assert 0 < timeout < 3600, "every question has a time limit"
        if resource in self.hanging:
            self.waited += timeout
            raise DaemonError(f"{resource}: no answer within {timeout:g} s")
        if command == "status":
            return self.up[resource].to_dict()
        if command == "ping":
            return {}
        words = [f"{name}={value}" for name, value in arguments.items()]
        self._step(" ".join([command, resource, *words]))
        if command == "down":
            del self.up[resource]
        return None

    def start_daemon(self, view: Any, config_path: str, node: str, run_dir: str) -> None:
        self._step(f"start {view.resource}")
        self.up[view.resource] = resource_snapshot(view.resource)

    def wait_daemon_ended(self, run_dir: str, resource: str, force: bool) -> None:
        self._step(f"wait end {resource} force={force}")
        self.up.pop(resource, None)
        self.hanging.discard(resource)

    def clean_run_dir(self, run_dir: str, resource: str) -> None:
        self._step(f"clean {resource}")

    def attach_device(self, view: Any, volume: int, run_dir: str) -> str:
        self._step(f"attach device {view.resource}/{volume}")
        if not self.no_device:
            self.attached.add(f"{view.resource}/{volume}")
        return self.no_device

    def detach_device(self, view: Any, volume: int, run_dir: str) -> bool:
        label = f"{view.resource}/{volume}"
        if label not in self.attached:
            return False
        self._step(f"detach device {label}")
        self.attached.remove(label)
        return True

    def device_users(self, view: Any, volume: int, run_dir: str) -> list[str]:
        return self.users.get(f"{view.resource}/{volume}", [])


def refusal(error: ReplicatorError, *steps: str) -> dict[str, BaseException]:
    return dict.fromkeys(steps, error)
