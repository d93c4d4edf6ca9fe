"""What one run has measured: kept per round, summed up by medians, and as a JSON document.

Rules: ratios are taken within a round, whose measurements were made side by side, and then the
median over the rounds; a machine that slows down in between does not tilt them.
`SCHEMA` is raised when a field changes its meaning; docs/benchmarks.md describes the document.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from statistics import median

from benchmarks.contestants import Contestant
from benchmarks.scenarios import NUMBERS, Numbers
from benchmarks.workloads import Result, Workload

SCHEMA = 1


@dataclass
class Results:
    """fio: workload -> contestant -> a Result per round; numbers: of the scenarios, one per round.
    missing: why something was not measured."""

    machine: dict[str, object]
    settings: dict[str, object]
    workloads: list[Workload] = field(default_factory=list)
    contestants: list[Contestant] = field(default_factory=list)
    fio: dict[str, dict[str, list[Result]]] = field(default_factory=dict)
    numbers: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, workload: str, contestant: str, result: Result) -> None:
        self.fio.setdefault(workload, {}).setdefault(contestant, []).append(result)

    def add_numbers(self, numbers: Numbers) -> None:
        for name, value in numbers.items():
            self.numbers.setdefault(name, []).append(value)

    def median(self, workload: str, contestant: str, measure: str) -> float | None:
        """Of a field of Result over the rounds; None if it was not measured."""
        found = self.fio.get(workload, {}).get(contestant)
        return median(getattr(one, measure) for one in found) if found else None

    def best(self, workload: str, family: str) -> str | None:
        """The contestant of the family with the highest rate."""
        rates = {
            one.key: rate
            for one in self.contestants
            if one.family == family and (rate := self.median(workload, one.key, "iops")) is not None
        }
        return max(rates, key=lambda key: rates[key]) if rates else None

    def ratio(self, workload: str, contestant: str, other: str | None) -> float | None:
        """Median over the rounds of how many times `other`'s rate `contestant` reached."""
        found = self.fio.get(workload, {})
        if other is None or contestant not in found or other not in found:
            return None
        return _ratio([one.iops for one in found[contestant]], [one.iops for one in found[other]])

    def number(self, name: str) -> float | None:
        found = self.numbers.get(name)
        return median(found) if found else None

    def number_ratio(self, name: str, other: str) -> float | None:
        return _ratio(self.numbers.get(name, []), self.numbers.get(other, []))

    def document(self) -> dict[str, object]:
        """The JSON object."""
        return {
            "schema": SCHEMA,
            "machine": self.machine,
            "settings": self.settings,
            "contestants": {one.key: one.title for one in self.contestants},
            "workloads": {one.key: one.title for one in self.workloads},
            "fio": {
                workload: {key: [asdict(one) for one in rounds] for key, rounds in found.items()}
                for workload, found in self.fio.items()
            },
            "numbers": {
                name: {"unit": NUMBERS[name][1], "rounds": rounds}
                for name, rounds in self.numbers.items()
            },
            "missing": self.missing,
        }


def _ratio(ours: Iterable[float], theirs: Iterable[float]) -> float | None:
    ratios = [one / other for one, other in zip(ours, theirs, strict=False) if other]
    return median(ratios) if ratios else None
