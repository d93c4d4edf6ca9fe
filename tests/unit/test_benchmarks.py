"""The benchmark's arithmetic and texts, on made-up numbers; nothing is measured here."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from benchmarks import report
from benchmarks.contestants import CONTESTANTS
from benchmarks.results import Results
from benchmarks.scenarios import NUMBERS
from benchmarks.targets import TARGETS
from benchmarks.workloads import WORKLOADS, Result

QEMU_SLOW, QEMU_FAST = [one.key for one in CONTESTANTS if one.family == "qemu"][:2]
WRITES = "randwrite-4k-d32"


def result(iops: float) -> Result:
    return Result(iops=iops, mib=iops / 256, p50_us=100.0, p99_us=200.0, cpu_us=10.0)


def made_up(rates: dict[str, list[float]], numbers: dict[str, float] | None = None) -> Results:
    """Rates of 4 KiB random writes at depth 32, one per round."""
    results = Results(
        machine={"cpu": "a processor", "versions": {"fio": "3.33"}},
        settings={"rounds": 3, "seconds": 1.0, "directory": "/a", "disk_directory": "/b"},
        workloads=[one for one in WORKLOADS if one.key == WRITES],
        contestants=[one for one in CONTESTANTS if one.key in rates],
    )
    for contestant, found in rates.items():
        for rate in found:
            results.add(WRITES, contestant, result(rate))
    results.add_numbers(numbers or {})
    return results


def test_a_ratio_is_taken_within_each_round_so_that_a_slow_round_does_not_tilt_it() -> None:
    results = made_up({"native-C": [1000, 100, 1100], "one-copy": [500, 50, 500]})
    assert results.ratio(WRITES, "native-C", "one-copy") == 2


def test_qemus_best_is_its_fastest_configuration_by_the_median() -> None:
    results = made_up({QEMU_SLOW: [10, 10, 900], QEMU_FAST: [100, 100, 100]})
    assert results.best(WRITES, "qemu") == QEMU_FAST


def test_a_target_without_a_measurement_is_neither_reached_nor_missed() -> None:
    results = made_up({"native-C": [1000]})
    assert {one.reached(results) for one in TARGETS} == {None}


@pytest.mark.parametrize(("rate", "reached"), [(250, True), (249, False)])
def test_a_target_is_reached_at_its_goal(rate: float, reached: bool) -> None:
    results = made_up({"native-C": [rate], QEMU_FAST: [100]})
    (target,) = (one for one in TARGETS if one.value(results) is not None)
    assert target.goal == 2.5
    assert target.reached(results) is reached


def test_times_and_memory_are_reached_from_below() -> None:
    (target,) = (one for one in TARGETS if "failover" in one.title)
    assert target.reached(made_up({}, {"failover_s": 0.9})) is True
    assert target.reached(made_up({}, {"failover_s": 1.1})) is False


def test_the_page_has_every_number_and_what_is_missing() -> None:
    results = made_up({"native-C": [1234], QEMU_FAST: [617]}, {"resync_mib_s": 345.0})
    results.missing["qemu mirror"] = "to install: apt-get install something"
    page = report.page(results)
    for text in ("1,234", "345", "apt-get install something", "| 2 ", "not reached", "a processor"):
        assert text in page, text


def test_the_picture_is_an_svg_with_a_bar_for_each_ratio() -> None:
    results = made_up({"native-C": [300], QEMU_FAST: [100], "one-copy": [600]})
    root = ElementTree.fromstring(report.picture(results))
    assert root.tag.endswith("svg")
    widths = [float(one.attrib["width"]) for one in root.iter() if one.tag.endswith("rect")]
    assert len(widths) == 2
    assert widths[0] > widths[1] > 0, "three times is farther from one than half"


def test_the_document_describes_itself_and_is_json() -> None:
    document = json.loads(json.dumps(made_up({"native-C": [1.5]}, {"failover_s": 1}).document()))
    assert document["schema"] == 1
    assert document["fio"][WRITES]["native-C"] == [
        {"iops": 1.5, "mib": 1.5 / 256, "p50_us": 100.0, "p99_us": 200.0, "cpu_us": 10.0}
    ]
    assert document["numbers"]["failover_s"] == {"unit": "s", "rounds": [1]}
    for field in document:
        assert f"`{field}`" in report.PAGE, f"docs/benchmarks.md does not describe {field}"


def test_keys_are_unique_and_every_target_can_be_measured() -> None:
    for keys in ([one.key for one in CONTESTANTS], [one.key for one in WORKLOADS]):
        assert len(keys) == len(set(keys))
    everything = made_up({})
    for workload in WORKLOADS:
        for contestant in CONTESTANTS:
            everything.add(workload.key, contestant.key, result(1))
    everything.contestants = list(CONTESTANTS)
    everything.add_numbers(dict.fromkeys(NUMBERS, 1.0))
    assert [one.title for one in TARGETS if one.value(everything) is None] == []
