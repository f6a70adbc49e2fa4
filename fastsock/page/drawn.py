"""Which of many runs are drawn over each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fastsock.page.charts import MOST_RUNS
from fastsock.page.run import Run, cut


def drawn_of(runs: Sequence[Run]) -> list[Run]:
    """The runs that one picture has room for: the first ones of each group, evenly."""
    groups: Counter[str] = Counter()
    places = []
    for at, run in enumerate(runs):
        places.append((groups[run.group], at))
        groups[run.group] += 1
    return [runs[at] for at in sorted(at for _, at in sorted(places)[:MOST_RUNS])]


def which_are_drawn(runs: Sequence[Run], drawn: Sequence[Run]) -> str:
    if drawn == list(runs[: len(drawn)]):
        return f"The first {len(drawn)} runs are drawn and told below."
    every, some = (Counter(run.group for run in each) for each in (runs, drawn))
    told = ", ".join(f"{number} of {every[group]} {cut(group)}" for group, number in some.items())
    return f"The first runs of each are drawn and told below: {told}."
