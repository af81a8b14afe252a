"""Markdown tables of what ``rollouts.py`` has measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

ABSENT = "–"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None, unit: float = 1.0) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return ABSENT
    value /= unit
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def with_range(values: Mapping[str, float], unit: float) -> str:
    low, high = number(values["min"], unit), number(values["max"], unit)
    return f"{number(values['median'], unit)} ({low}–{high})"


def rate(row: Mapping | None) -> str:
    """Millions of steps per second."""
    if row is None:
        return ABSENT
    return "failed" if "failed" in row else with_range(row["steps per second"], 1e6)


def ratios(row: Mapping | None, *names: str) -> str:
    found = [number((row or {}).get(name)) for name in names]
    return ABSENT if set(found) == {ABSENT} else " / ".join(found)


def contestants(cases: Iterable[Mapping]) -> list[str]:
    """In the order in which they first appear."""
    return list(dict.fromkeys(name for case in cases for name in case["contestants"]))


def speed(cases: Mapping[str, Mapping]) -> str:
    envs = dict.fromkeys(case["env"] for case in cases.values())
    return "\n\n".join(speed_of(env, [c for c in cases.values() if c["env"] == env]) for env in envs)


def speed_of(env: str, cases: Sequence[Mapping]) -> str:
    head = [f"{env}, {cases[0]['steps']} intervals"]
    for case in cases:
        head += [f"B = {case['batch']}", "× jax / jax best", "ready in s"]
    lines = []
    for name in contestants(cases):
        line = [name]
        for row in (case["contestants"].get(name) for case in cases):
            ready = number((row or {}).get("compile seconds"))
            line += [rate(row), ratios(row, "over jax", "over jax best"), ready]
        lines.append(line)
    return table(head, lines)


def threads(cases: Mapping[str, Mapping]) -> str:
    head = ["two threads"]
    for case in cases.values():
        head += [f"{case['env']}, B = {case['batch']}", "× one thread", "× jax"]
    lines = []
    for name in contestants(cases.values()):
        line = [name]
        for row in (case["contestants"].get(name) for case in cases.values()):
            line += [rate(row), ratios(row, "over one thread"), ratios(row, "over jax")]
        lines.append(line)
    return table(head, lines)


def population(cases: Mapping[str, Mapping]) -> str:
    lines = []
    for case in cases.values():
        sizes = f"{case['policies']} policies × {case['rollouts']} rollouts × {case['steps']} intervals"
        for name, row in case["contestants"].items():
            lines.append([case["env"], sizes, name, rate(row), ratios(row, "over jax")])
    return table(["", "", "", "million steps per second", "× jax"], lines)


def memory(cases: Mapping[str, Mapping]) -> str:
    first = next(iter(cases.values()))
    megabytes = 1e6
    head = [f"{first['env']}, B = {first['batch']}, {first['steps']} intervals", "peak in MB"]
    lines = []
    for name, case in cases.items():
        peaks = [run["peak"] - run["before"] for run in case["runs"]]
        above = statistics.median(peaks) - case["runs"][0]["states"]
        lines.append([name, number(statistics.median(peaks), megabytes), number(above, megabytes)])
    states = number(first["runs"][0]["states"], megabytes)
    return table([*head, f"… above the states ({states} MB)"], lines)


def start(cases: Mapping[str, Mapping]) -> str:
    head = ["seconds to the first gradient", "empty cache", "tracing", "compiler", "filled cache"]
    lines = []
    for env, case in cases.items():
        cold, warm = case["medians"]["cold"], case["medians"]["warm"]
        seconds = (cold["total"], cold["tracing"], cold["compiler"], warm["total"])
        lines.append([env, *map(number, seconds)])
    return table(head, lines)


def linear(cases: Mapping[str, Mapping]) -> str:
    lines = []
    for case in cases.values():
        for name, varied in case["varied"].items():
            values = ", ".join(varied)
            each = [row["seconds per environment step"]["median"] for row in varied.values()]
            times = ", ".join(number(seconds, 1e-9) for seconds in each)
            lines.append([name, values, times, number(case["exponents"][name])])
    base = ", ".join(f"{name} {value}" for name, value in next(iter(cases.values()))["base"].items())
    return table([f"varied from {base}", "", "ns per environment step", "exponent of the call's time"], lines)


def state_size(cases: Mapping[str, Mapping]) -> str:
    lines = []
    for case in cases.values():
        for n, row in case["sizes"].items():
            seconds = {b: r.get("seconds per interval", {}).get("median") for b, r in row.items()}
            known = None not in seconds.values()
            gain = number(seconds["eager"] / seconds["native"] if known else None)
            ready = number(row["native"].get("compile seconds"))
            lines.append([n, number_of(seconds["native"]), number_of(seconds["eager"]), gain, ready])
        exponents = [number(case["exponents"][b]) for b in ("native", "eager")]
        lines.append(["exponent", *exponents, "", ""])
    return table(["states", "native, ns per interval", "eager", "eager / native", "ready in s"], lines)


def number_of(seconds: float | None) -> str:
    """In nanoseconds."""
    return "failed" if seconds is None else number(seconds, 1e-9)


TABLES = {
    "speed": speed,
    "threads": threads,
    "population": population,
    "memory": memory,
    "start": start,
    "linear": linear,
    "state size": state_size,
}


def section(name: str, cases: Mapping[str, Mapping]) -> str:
    """The Markdown of a section; what failed is named below the table."""
    good = {key: case for key, case in cases.items() if "failed" not in case}
    parts = [f"### {name}", *([TABLES[name](good)] if good else [])]
    parts += [f"{key}: {case['failed']}" for key, case in cases.items() if "failed" in case]
    for key, case in good.items():
        rows = case.get("contestants", {}).items()
        parts += [f"{name}, {key}: {row['failed']}" for name, row in rows if "failed" in row]
    return "\n\n".join(parts)


def front_page(cases: Mapping[str, Mapping]) -> str:
    """The README's table: medians in millions of steps per second, and the ratios to both programs of JAX."""
    titles = {"cartpole": "cart-pole", "quadrotor": "quadrotor", "arm7": "7-joint arm"}
    columns = {
        "native": "diffsim",
        "jax": "JAX",
        "jax best": "JAX best",
        "diffrax": "diffrax",
        "torchdiffeq": "torchdiffeq",
    }
    lines = []
    for case in cases.values():
        rows = case["contestants"]
        rates = [number(rows[k]["steps per second"]["median"], 1e6) if k in rows else "" for k in columns]
        over = " / ".join(f"{rows['native'][k]:.1f}" for k in ("over jax", "over jax best"))
        lines.append([f"{titles[case['env']]}, B = {case['batch']}", *rates, over])
    return table(["", *columns.values(), "× JAX / × best"], lines)


def tables(results: Mapping, only: Sequence[str] = ()) -> str:
    """The Markdown of everything, with the machine below; of sections that are named, their tables alone."""
    if only:
        return "\n\n".join(TABLES[name](results["sections"][name]) for name in only)
    machine = results["machine"]
    versions = ", ".join(
        f"{k.removeprefix('version_')} {machine[k]}" for k in ("version_torch", "version_jax") if k in machine
    )
    about = f"{machine['processor']}, {machine['cores']} cores; {machine['compiler']}; {versions}."
    return "\n\n".join([*(section(k, v) for k, v in results["sections"].items()), about])
