"""Split brains played out: every after-sb policy of drbd.conf 8.4, what it gives up and what it keeps.

In each scenario the link breaks while alice is Primary (the *older* one), both nodes then write
different blocks, and meet again with the roles that the row names. What is expected comes from the
table, not from the engine: a victim, whose changes must be gone and the survivor's be on both
disks; or nobody, and then both copies must be what they were, and both nodes stand alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from protocol.states import Conn, Disk, Role
from replicator.engine.settings import NetSettings
from tests.simulation.pair import Node, Pair

BLOCK = 4096
BOBS = 1 << 20
"""Where bob writes; alice writes from 0."""

ALICE, BOB, NOBODY, EITHER = "alice", "bob", "nobody", "either"


@dataclass(frozen=True)
class Scene:
    """alice_writes, bob_writes: blocks that each changed alone. primaries: when they meet again.
    late: neither was Primary when the link broke. in_use: the devices of Primaries are open."""

    alice_writes: int = 3
    bob_writes: int = 5
    primaries: tuple[str, ...] = ()
    late: bool = False
    in_use: bool = False


def policies(zero: str, one: str = "disconnect", two: str = "disconnect", **more: object):
    return NetSettings(after_sb_0pri=zero, after_sb_1pri=one, after_sb_2pri=two, **more)  # type: ignore[arg-type]


def up_with(alice: NetSettings, bob: NetSettings) -> Pair:
    """A pair in sync whose nodes may be configured differently."""
    pair = Pair(net=alice)
    pair.alice.up()
    pair.net = bob
    pair.bob.up()
    pair.run_until(lambda: pair.alice.is_(Conn.Connected) and pair.bob.is_(Conn.Connected))
    pair.alice.primary(force=True)
    pair.settle()
    return pair


def write_blocks(node: Node, start: int, count: int) -> None:
    for number in range(count):
        node.write(start + number * BLOCK, node.name.encode()[:1] * BLOCK)
    node.flush()


def split(pair: Pair, scene: Scene) -> None:
    """Both go on alone; then the link is whole again."""
    if scene.late:
        pair.alice.secondary()
    pair.run(1)
    pair.network.cut = {ALICE, BOB}
    pair.network.break_all()
    pair.run(0.1)
    if scene.late:
        pair.alice.primary()
    pair.bob.primary()
    write_blocks(pair.alice, 0, scene.alice_writes)
    write_blocks(pair.bob, BOBS, scene.bob_writes)
    for node in (pair.alice, pair.bob):
        if node.name not in scene.primaries:
            node.secondary()
        elif scene.in_use:
            node.volume().open(writable=True)
    pair.network.cut = set()


def meet(pair: Pair, scene: Scene, victim: str) -> None:
    """Let them meet, and check the outcome."""
    split(pair, scene)
    before = {node.name: node.data() for node in (pair.alice, pair.bob)}
    nodes = (pair.alice, pair.bob)
    if victim == NOBODY:
        pair.run_until(lambda: all(node.is_(Conn.StandAlone) for node in nodes))
        pair.run(30)
        assert {node.name: node.data() for node in nodes} == before, "both copies are kept"
        assert all(node.is_(Conn.StandAlone, Disk.UpToDate) for node in nodes)
        assert all("split-brain" in node.handlers.calls for node in nodes)
        for node in nodes:
            wanted = Role.Primary if node.name in scene.primaries else Role.Secondary
            assert node.is_(role=wanted), "nobody loses a role to a split brain that stays"
        return
    pair.settle()
    survivors = [n for n in nodes if victim in (n.name, EITHER)]
    survivors = [pair.bob if n is pair.alice else pair.alice for n in survivors]
    assert pair.alice.data() == pair.bob.data()
    assert pair.alice.data() in [before[node.name] for node in survivors]
    assert all("initial-split-brain" in node.handlers.calls for node in nodes)
    assert all("split-brain" not in node.handlers.calls for node in nodes)


# No node is Primary


@pytest.mark.parametrize(
    ("policy", "scene", "victim"),
    [
        ("disconnect", Scene(), NOBODY),
        ("disconnect", Scene(alice_writes=0), NOBODY),
        ("discard-younger-primary", Scene(), BOB),
        ("discard-younger-primary", Scene(alice_writes=0), BOB),
        ("discard-younger-primary", Scene(late=True), ALICE),
        ("discard-younger-primary", Scene(alice_writes=9, late=True), BOB),
        ("discard-older-primary", Scene(), ALICE),
        ("discard-older-primary", Scene(bob_writes=0), ALICE),
        ("discard-older-primary", Scene(alice_writes=9, late=True), BOB),
        ("discard-zero-changes", Scene(), NOBODY),
        ("discard-zero-changes", Scene(alice_writes=0), ALICE),
        ("discard-zero-changes", Scene(bob_writes=0), BOB),
        ("discard-zero-changes", Scene(alice_writes=0, bob_writes=0), EITHER),
        ("discard-least-changes", Scene(), ALICE),
        ("discard-least-changes", Scene(alice_writes=9), BOB),
        ("discard-least-changes", Scene(alice_writes=5), EITHER),
    ],
)
def test_no_primary(policy: str, scene: Scene, victim: str) -> None:
    net = policies(policy)
    meet(up_with(net, net), scene, victim)


@pytest.mark.parametrize(
    ("alices", "bobs", "victim"),
    [("discard-local", "discard-remote", ALICE), ("discard-remote", "discard-local", BOB)],
)
def test_a_victim_that_is_named_is_the_same_on_both_nodes(
    alices: str, bobs: str, victim: str
) -> None:
    meet(up_with(policies(alices), policies(bobs)), Scene(), victim)


# One node is Primary


@pytest.mark.parametrize(
    ("policy", "zero", "primary", "victim"),
    [
        ("disconnect", "discard-least-changes", ALICE, NOBODY),
        ("disconnect", "discard-least-changes", BOB, NOBODY),
        ("consensus", "disconnect", ALICE, NOBODY),
        ("consensus", "discard-younger-primary", ALICE, BOB),
        ("consensus", "discard-younger-primary", BOB, NOBODY),
        ("consensus", "discard-least-changes", BOB, ALICE),
        ("consensus", "discard-least-changes", ALICE, NOBODY),
        ("discard-secondary", "disconnect", ALICE, BOB),
        ("discard-secondary", "disconnect", BOB, ALICE),
        ("discard-secondary", "discard-younger-primary", BOB, ALICE),
        ("violently-as0p", "disconnect", ALICE, NOBODY),
        ("violently-as0p", "discard-least-changes", BOB, ALICE),
        ("call-pri-lost-after-sb", "disconnect", ALICE, NOBODY),
        ("call-pri-lost-after-sb", "discard-least-changes", BOB, ALICE),
        ("call-pri-lost-after-sb", "discard-younger-primary", BOB, BOB),
        ("call-pri-lost-after-sb", "discard-older-primary", ALICE, ALICE),
    ],
)
def test_one_primary(policy: str, zero: str, primary: str, victim: str) -> None:
    net = policies(zero, policy)
    pair = up_with(net, net)
    meet(pair, Scene(primaries=(primary,)), victim)
    if victim == primary:
        assert getattr(pair, primary).is_(role=Role.Secondary), "it gave its role up first"


@pytest.mark.parametrize("primary", [ALICE, BOB])
def test_a_primary_in_use_is_not_overwritten_but_calls_pri_lost_after_sb(primary: str) -> None:
    zero = "discard-older-primary" if primary == ALICE else "discard-younger-primary"
    net = policies(zero, "call-pri-lost-after-sb")
    pair = up_with(net, net)
    split(pair, Scene(primaries=(primary,), in_use=True))
    before = {node.name: node.data() for node in (pair.alice, pair.bob)}
    node = getattr(pair, primary)
    pair.run_until(lambda: node.is_(Conn.StandAlone))
    pair.run(30)
    assert "pri-lost-after-sb" in node.handlers.calls
    assert node.is_(role=Role.Primary, disk=Disk.UpToDate)
    assert {one.name: one.data() for one in (pair.alice, pair.bob)} == before


# A Primary would have to be the target (rr-conflict)


@pytest.mark.parametrize(
    ("rr_conflict", "handlers", "overwritten"),
    [
        ("disconnect", [], False),
        ("call-pri-lost", ["pri-lost"], False),
        ("violently", [], True),
    ],
)
def test_rr_conflict_says_what_happens_to_a_primary_that_would_be_the_target(
    rr_conflict: str, handlers: list[str], overwritten: bool
) -> None:
    """violently-as0p chooses the Primary; whether that may be done to it is another question."""
    net = policies("discard-younger-primary", "violently-as0p", rr_conflict=rr_conflict)
    pair = up_with(net, net)
    split(pair, Scene(primaries=(BOB,), in_use=True))
    before = {node.name: node.data() for node in (pair.alice, pair.bob)}
    if overwritten:
        pair.settle()
        assert pair.bob.data() == pair.alice.data() == before[ALICE]
        assert pair.bob.is_(role=Role.Primary)
    else:
        pair.run_until(lambda: pair.bob.is_(Conn.StandAlone))
        pair.run(30)
        assert {node.name: node.data() for node in (pair.alice, pair.bob)} == before
        assert pair.bob.is_(role=Role.Primary, disk=Disk.UpToDate)
    assert [call for call in pair.bob.handlers.calls if call == "pri-lost"] == handlers


# Both nodes are Primary


@pytest.mark.parametrize(
    ("policy", "zero", "in_use", "victim"),
    [
        ("disconnect", "discard-least-changes", False, NOBODY),
        ("call-pri-lost-after-sb", "disconnect", False, NOBODY),
        ("call-pri-lost-after-sb", "discard-least-changes", False, ALICE),
        ("call-pri-lost-after-sb", "discard-younger-primary", False, BOB),
    ],
)
def test_two_primaries(policy: str, zero: str, in_use: bool, victim: str) -> None:
    net = policies(zero, two=policy)
    pair = up_with(net, net)
    meet(pair, Scene(primaries=(ALICE, BOB), in_use=in_use), victim)
    if victim != NOBODY:
        assert getattr(pair, victim).is_(role=Role.Secondary)


@pytest.mark.parametrize("policy", ["call-pri-lost-after-sb", "violently-as0p"])
@pytest.mark.parametrize("rr_conflict", ["disconnect", "call-pri-lost", "violently"])
def test_two_primaries_in_use_are_never_overwritten(policy: str, rr_conflict: str) -> None:
    """Not even violently: only one of two nodes may be Primary, and neither can step back."""
    net = policies("discard-younger-primary", two=policy, rr_conflict=rr_conflict)
    pair = up_with(net, net)
    split(pair, Scene(primaries=(ALICE, BOB), in_use=True))
    nodes = (pair.alice, pair.bob)
    before = {node.name: node.data() for node in nodes}
    pair.run_until(lambda: any(node.is_(Conn.StandAlone) for node in nodes))
    pair.run(30)
    assert {node.name: node.data() for node in nodes} == before
    assert all(node.is_(role=Role.Primary, disk=Disk.UpToDate) for node in nodes)
    assert not any(node.is_(Conn.Connected) for node in nodes)


# Settings that differ between the nodes


@pytest.mark.parametrize(
    ("option", "alices", "bobs"),
    [
        ("after_sb_0pri", "disconnect", "discard-zero-changes"),
        ("after_sb_0pri", "discard-local", "discard-local"),
        ("after_sb_0pri", "discard-remote", "discard-remote"),
        ("after_sb_0pri", "discard-younger-primary", "discard-older-primary"),
        ("after_sb_1pri", "consensus", "discard-secondary"),
        ("after_sb_2pri", "disconnect", "call-pri-lost-after-sb"),
    ],
)
def test_nodes_that_would_decide_differently_refuse_to_connect(
    option: str, alices: str, bobs: str
) -> None:
    pair = up_with(NetSettings(), NetSettings())
    split(pair, Scene())
    pair.alice.kill()
    pair.bob.kill()
    before = {node.name: node.data() for node in (pair.alice, pair.bob)}
    pair.net = replace(NetSettings(), **{option: alices})
    pair.alice.up()
    pair.net = replace(NetSettings(), **{option: bobs})
    pair.bob.up()
    nodes = (pair.alice, pair.bob)
    pair.run_until(lambda: all(node.is_(Conn.StandAlone) for node in nodes))
    name = option.replace("_", "-")
    assert any(f"{name} differs" in node.r.last_error for node in nodes)
    assert {node.name: node.data() for node in nodes} == before


@pytest.mark.parametrize("violent", [ALICE, BOB])
def test_rr_conflict_is_each_nodes_own_business(violent: str) -> None:
    """It is not compared: only the node that would be overwritten has a say."""
    own = policies("discard-younger-primary", "violently-as0p", rr_conflict="violently")
    other = policies("discard-younger-primary", "violently-as0p")
    pair = up_with(own, other) if violent == ALICE else up_with(other, own)
    split(pair, Scene(primaries=(BOB,), in_use=True))
    before = pair.bob.data()
    if violent == BOB:
        pair.settle()
        assert pair.alice.data() == pair.bob.data() != before
    else:
        pair.run_until(lambda: pair.bob.is_(Conn.StandAlone))
        pair.run(30)
        assert pair.bob.data() == before


# By hand


@pytest.mark.parametrize("victim", [ALICE, BOB])
def test_discard_my_data_gives_up_the_changes_of_the_node_that_says_so(victim: str) -> None:
    net = policies("disconnect")
    pair = up_with(net, net)
    meet(pair, Scene(), NOBODY)
    loser = getattr(pair, victim)
    survivor = pair.bob if victim == ALICE else pair.alice
    kept = survivor.data()
    loser.connect(discard_my_data=True)
    survivor.connect()
    pair.settle()
    assert pair.alice.data() == pair.bob.data() == kept


def test_discard_my_data_on_both_nodes_discards_nothing() -> None:
    net = policies("disconnect")
    pair = up_with(net, net)
    meet(pair, Scene(), NOBODY)
    before = {node.name: node.data() for node in (pair.alice, pair.bob)}
    pair.alice.connect(discard_my_data=True)
    pair.bob.connect(discard_my_data=True)
    pair.run(30)
    assert {node.name: node.data() for node in (pair.alice, pair.bob)} == before
    assert not pair.alice.is_(Conn.Connected)


def test_every_policy_of_drbd_conf_is_played() -> None:
    from replicator.config.option_table import SECTIONS

    words = {"after-sb-0pri": set(), "after-sb-1pri": set(), "after-sb-2pri": set()}
    rows = {
        "after-sb-0pri": test_no_primary,
        "after-sb-1pri": test_one_primary,
        "after-sb-2pri": test_two_primaries,
    }
    for option, test in rows.items():
        words[option] = {row[0] for row in test.pytestmark[0].args[1]}
    words["after-sb-0pri"] |= {"discard-local", "discard-remote"}
    words["after-sb-2pri"] |= {"violently-as0p"}
    for option, played in words.items():
        assert played == set(SECTIONS["net"][option].choices), option


@pytest.mark.parametrize("policy", ["discard-secondary", "violently-as0p", "disconnect"])
def test_no_policy_gives_up_the_copy_that_a_primary_without_disk_works_on(policy):
    """alice's own disk has changed alone, too; she works on bob's copy when it comes back."""
    pair = up_with(*[policies("discard-younger-primary", policy)] * 2)
    split(pair, Scene())
    alice, bob = pair.alice, pair.bob
    alice.do(lambda done: alice.r.detach(0, False, done))
    for node in (alice, bob):
        if not node.is_(Conn.StandAlone):
            node.disconnect()
        # alice would not be promoted without what her disk has, if she did not give that up.
        node.connect(discard_my_data=node is alice)
    pair.run_until(lambda: alice.is_(Conn.Connected, Disk.Diskless, Disk.UpToDate))
    alice.primary()
    alice.write(2 * BOBS, b"u" * BLOCK)
    alice.flush()
    alice.do(lambda done: alice.attach(0, done))
    pair.run(5)
    assert alice.is_(Conn.Connected, Disk.Diskless, Disk.UpToDate)
    assert alice.read(2 * BOBS, BLOCK) == b"u" * BLOCK
    assert bob.data()[2 * BOBS : 2 * BOBS + BLOCK] == b"u" * BLOCK
    assert bob.is_(Conn.Connected, Disk.UpToDate)
