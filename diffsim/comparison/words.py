"""Sentences of a report: verdicts, amounts and limits of what the data say."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffsim.comparison.figures import short, short3
from diffsim.comparison.records import Comparison, Task
from diffsim.comparison.statistics import Estimate
from diffsim.comparison.verdicts import LOST, MISSING, MIXED, UNDECIDED, WON, Pair, Verdicts

AXIS_WORDS = {
    "environment_steps": "environment steps",
    "cpu_seconds": "CPU seconds",
    "wall_seconds": "wall seconds",
    "gradient_evaluations": "gradient evaluations",
}
OUTCOME_WORDS = {
    WON: "won",
    LOST: "lost",
    MIXED: "mixed",
    UNDECIDED: "undecided",
    MISSING: "too few runs",
}
_SIGNS = {"=": "", ">=": "at least ", "<=": "at most ", "~": "about "}


def amount(value: float, axis: str) -> str:
    """``60 CPU seconds``."""
    return f"{short(value) if math.isfinite(value) else 'unknown'} {AXIS_WORDS[axis]}"


def probability(value: Estimate) -> str:
    """``0.93 [0.85, 0.98]``."""
    if math.isnan(value.low):
        return f"{value.value:.2f}"
    return f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"


def interval(value: Estimate) -> str:
    """`` [0.85, 0.98]``, or nothing."""
    return "" if math.isnan(value.low) else f" [{short3(value.low)}, {short3(value.high)}]"


def times_as_much(pair: Pair, axis: str) -> str:
    """``it takes at least 3.2 [2.1, 4.9] times as many CPU seconds to the threshold``."""
    value = pair.ratio.value
    if math.isnan(value):
        return "neither reaches the threshold in half of its runs"
    if math.isinf(value):
        return f"half of its runs do not reach the threshold, the ratio is above {short3(pair.ratio.low)}"
    if value == 0:
        return (
            "half of its runs reach the threshold and half of the reference's do not, so it takes less than "
            f"{short3(pair.ratio.high)} times as many {AXIS_WORDS[axis]}"
        )
    times = f"{_SIGNS[pair.sign]}{short3(value)}{interval(pair.ratio)}"
    return f"it takes {times} times as many {AXIS_WORDS[axis]} to the threshold"


def ratio_cell(pair: Pair) -> str:
    """The ratio in a table."""
    value = pair.ratio.value
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return f"> {short3(pair.ratio.low)}× (not reached)"
    if value == 0:
        return f"< {short3(pair.ratio.high)}× (reference: not reached)"
    sign = {"=": "", ">=": "≥ ", "<=": "≤ ", "~": "≈ "}[pair.sign]
    return f"{sign}{short3(value)}×{interval(pair.ratio)}"


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def verdict(found: Verdicts, comparison: Comparison, task: str | None = None) -> str:
    """One sentence: who won, against whom."""
    pairs = found.overall if task is None else found.tasks[task]
    by: dict[str, list[str]] = {}
    for name in found.opponents:
        outcome = pairs[name].outcome if name in pairs else MISSING
        by.setdefault(outcome, []).append(name)
    ours = found.reference
    over = f" over {len(found.tasks)} tasks" if task is None and len(found.tasks) > 1 else ""
    total = len(found.opponents)
    if not total:
        return f"No opponent to compare {ours} with."
    if len(by.get(MISSING, ())) == total:
        return "No verdict yet: too few runs have come to their end."
    if len(by.get(WON, ())) == total:
        text = f"{ours} won against {'every opponent' if total > 1 else by[WON][0]}{over}"
    elif LOST in by:
        kinds = {comparison.contenders[name].kind for name in by[LOST]}
        who = "The black box won" if kinds & {"black box", "imported"} else "The gradient-free search won"
        text = f"{who}: {listed(by[LOST])} beat {ours}{over}"
    elif MIXED in by:
        text = f"Mixed{over}: {ours} and {listed(by[MIXED])} each won one of score and time"
    else:
        text = f"Undecided{over}: the runs do not separate {ours} from {listed(by.get(UNDECIDED, []))}"
    rest = [
        f"{word} {listed(by[kind])}"
        for kind, word in (
            (WON, "it won against"),
            (MIXED, "mixed against"),
            (UNDECIDED, "undecided against"),
        )
        if kind in by and not (kind == WON and len(by[WON]) == total) and listed(by[kind]) not in text
    ]
    if MISSING in by:
        rest.append(f"too few runs of {listed(by[MISSING])}")
    rest = [part.replace("it won", f"{ours} won") for part in rest]
    return "; ".join([text, *rest]) + "."


def strongest(found: Verdicts, task: str | None = None) -> str:
    """The opponents that came nearest, by score and by time, with their intervals."""
    pairs = found.overall if task is None else found.tasks[task]
    known = {name: pairs[name] for name in found.opponents if name in pairs}
    if not known:
        return ""
    where = f"at {amount(found.ends[task], found.rules.axis)}" if task else "at the budget"
    by_score = min(known, key=lambda name: known[name].probability.value)
    p = known[by_score].probability
    sentences = [
        f"Strongest opponent by score {where}: {by_score}; a run of {found.reference} scores higher with "
        f"probability {probability(p)}."
    ]
    timed = {name: pair for name, pair in known.items() if not math.isnan(pair.ratio.value)}
    if timed:
        by_time = min(timed, key=lambda name: timed[name].ratio.value)
        sentences.append(f"Strongest by time: {by_time}; {times_as_much(timed[by_time], found.rules.axis)}.")
    return " ".join(sentences)


def threshold(task: Task) -> str:
    """What counts as reaching it."""
    if task.threshold is None:
        return "no threshold is set"
    what = "score" if task.threshold.measure == "score" else "share of starts that succeed"
    return f"{what} ≥ {short(task.threshold.value)} ({task.threshold.source})"


def limits(task: Task) -> str:
    """How scores are normalised."""
    if task.limits is None:
        return "no limits are known: the task does not enter pooled scores"
    found = task.limits
    return f"0 = {short3(found.zero)} (middle actions), 1 = {short3(found.one)} (best known); {found.source}"
