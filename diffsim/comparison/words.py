"""Sentences of a report: verdicts, amounts and limits of what the data say."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffsim.comparison.figures import short, short3
from diffsim.comparison.records import Comparison, Task
from diffsim.comparison.statistics import Estimate
from diffsim.comparison.verdicts import LOST, MISSING, MIXED, UNDECIDED, WON, Pair, Verdicts
from diffsim.values import counted

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
        least = f", the ratio is above {short3(pair.ratio.low)}" if pair.ratio.low > 0 else ""
        return f"half of its runs do not reach the threshold{least}"
    if value == 0:
        less = f", so it takes less than {short3(pair.ratio.high)} times as many {AXIS_WORDS[axis]}"
        bounded = pair.ratio.high < math.inf
        return f"half of its runs reach the threshold and half of the reference's do not{less * bounded}"
    times = f"{_SIGNS[pair.sign]}{short3(value)}{interval(pair.ratio)}"
    return f"it takes {times} times as many {AXIS_WORDS[axis]} to the threshold"


def ratio_cell(pair: Pair) -> str:
    """The ratio in a table."""
    value = pair.ratio.value
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return f"> {short3(pair.ratio.low)}× (not reached)" if pair.ratio.low > 0 else "not reached"
    if value == 0:
        bound = f"< {short3(pair.ratio.high)}× (" if pair.ratio.high < math.inf else ""
        return f"{bound}reference: not reached{')' * bool(bound)}"
    sign = {"=": "", ">=": "≥ ", "<=": "≤ ", "~": "≈ "}[pair.sign]
    return f"{sign}{short3(value)}×{interval(pair.ratio)}"


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def verdict(found: Verdicts, comparison: Comparison, task: str | None = None) -> str:
    """One sentence: who won, against whom."""
    pairs = found.overall if task is None else found.tasks[task]
    by: dict[str, list[str]] = {}
    against = found.against(task)
    for name in against:
        outcome = pairs[name].outcome if name in pairs else MISSING
        by.setdefault(outcome, []).append(name)
    ours = found.reference
    over = _over(found) if task is None else ""
    total = len(against)
    if not total:
        where = "" if task is None else " on this task"
        if len(comparison.contenders) > 1:
            return f"No verdict{where}: {ours} is compared with other settings, and with no opponent."
        return f"No opponent to compare {ours} with{where}."
    if len(by.get(MISSING, ())) == total:
        return "No verdict yet: too few runs have come to their end."
    judged = total - len(by.get(MISSING, ()))
    if len(by.get(WON, ())) == judged:
        every = total > 1 and judged == total
        text = f"{ours} won against {'every opponent' if every else listed(by[WON])}{over}"
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
        if kind in by and not (kind == WON and len(by[WON]) == judged) and listed(by[kind]) not in text
    ]
    if MISSING in by:
        rest.append(f"no verdict yet against {listed(by[MISSING])}: too few runs")
    rest = [part.replace("it won", f"{ours} won") for part in rest]
    return "; ".join([text, *rest]) + "."


def _over(found: Verdicts) -> str:
    """`` over 6 tasks``, `` over 3 to 6 tasks``; nothing where there is one task."""
    sizes = sorted({len(found.pooled(name)) for name in found.against() if name in found.overall})
    if len(found.tasks) < 2 or not sizes:
        return ""
    least, most = sizes[0], sizes[-1]
    return f" over {counted(least, 'task')}" if least == most else f" over {least} to {most} tasks"


def pooling(found: Verdicts) -> str:
    """Which opponents are compared on fewer tasks than there are, and on which; empty if none is."""
    total = len(found.tasks)
    parts = [
        f"{name} on {len(tasks)} of {total} ({', '.join(tasks)})"
        for name in found.against()
        if 0 < len(tasks := found.pooled(name)) < total
    ]
    if not parts:
        return ""
    return f"Over tasks, only those are pooled that both sides have runs of: {'; '.join(parts)}."


def not_compared(found: Verdicts, task: str) -> str:
    """The opponents that are left out on a task, and why; empty if none is."""
    by: dict[str, list[str]] = {}
    for name in found.opponents:
        if reason := found.left_out.get((task, name)):
            by.setdefault(reason, []).append(name)
    along = f"not measured along {AXIS_WORDS[found.rules.axis]}"
    reasons = {"not run": "not run on this task", "not measured": along}
    return " ".join(f"{listed(names)}: {reasons[reason]}." for reason, names in by.items())


def strongest(found: Verdicts, task: str | None = None) -> str:
    """The opponents that came nearest, by score and by time, with their intervals."""
    pairs = found.overall if task is None else found.tasks[task]
    known = {n: pairs[n] for n in found.opponents if n in pairs and pairs[n].outcome != MISSING}
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
