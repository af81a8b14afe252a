"""``diffsim report``: a comparison as one HTML page, the same as Markdown and CSV, and figures for papers.

Everything is made from the records.  The page loads nothing; text from records is escaped by Jinja2.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from diffsim._version import __version__
from diffsim.comparison import facts
from diffsim.comparison.from_suite import comparison_in
from diffsim.comparison.logs import logs_of
from diffsim.comparison.records import AXES, Comparison
from diffsim.comparison.scores import Rules, axes_known
from diffsim.comparison.tables import AxisView, Table, contender_views
from diffsim.comparison.verdicts import what_would_change
from diffsim.comparison.views import AxisViews
from diffsim.comparison.words import AXIS_WORDS
from diffsim.errors import ConfigError
from diffsim.runs.whole_files import write_whole
from diffsim.values import folder as absolute
from diffsim.values import shown
from lazy_registry.installation import install_command

TEMPLATES = "diffsim.comparison.templates"


def report(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    rules: Rules | None = None,
    figures: bool = True,
) -> list[Path]:
    """Write the report of the comparison in ``folder``.

    Args:
        folder: of the comparison, see :func:`diffsim.comparison.records.read_comparison`, or of a suite of trainings.
        out: where to write; ``report`` in the comparison's folder if not given.
        rules: how records are read; the axis of the verdict is the first of the budget if not given.
        figures: whether figures for papers are drawn, which takes most of the time.

    Returns:
        The files: ``report.html``, ``report.md``, the CSV tables in ``tables``, and, with matplotlib, SVG and PDF in
        ``figures``.

    Raises:
        RunFileError: no comparison there.
        ConfigError: Jinja2 is missing, or a file cannot be written.
    """
    root = absolute(folder)
    target = root / "report" if out is None else absolute(out)
    environment = _jinja()
    comparison = comparison_in(root)
    _make(target)  # before the work, not after it
    page = content(comparison, rules)
    drawn = _paper(comparison, page["axes"], target / "figures") if figures else []
    page |= {"figures": [path.relative_to(target).as_posix() for path in drawn]}
    tables = dict(_csv_tables(comparison, page))
    page |= {"csv": [f"tables/{name}.csv" for name in tables], "logs": logs_of(root, target)}
    written = [
        _write(target / "report.html", environment.get_template("report.html.j2").render(page)),
        _write(target / "report.md", environment.get_template("report.md.j2").render(page)),
        *(_write(target / "tables" / f"{name}.csv", text) for name, text in tables.items()),
    ]
    return [*written, *drawn]


def content(comparison: Comparison, rules: Rules | None = None) -> dict[str, Any]:
    """Everything that the templates show."""
    known = axes_known(comparison)
    first = rules or Rules(axis=known[0] if known else AXES[0])
    order = sorted(known, key=lambda axis: axis != first.axis) or [first.axis]
    axes = [AxisViews(comparison, first.but(axis=axis)).view() for axis in order]
    contenders = contender_views(comparison)
    settings = [facts.settings_table(comparison, c) for c in contenders]
    return {
        "version": __version__,
        "title": comparison.title,
        "axes": axes,
        "axis_words": AXIS_WORDS,
        "contenders": contenders,
        "missing": facts.missing(comparison),
        "plan": facts.plan_facts(comparison),
        "matrix": facts.matrix_table(comparison),
        "runs": facts.runs_table(comparison),
        "failures": facts.failures_table(comparison),
        "overheads": facts.overheads_table(comparison),
        "interest": facts.interest_table(comparison),
        "certainty": facts.certainty(comparison),
        "changes": facts.changes_table(what_would_change(comparison, first)),
        "settings": [table for table in settings if table is not None],
        "provenance": facts.provenance_table(comparison),
    }


def _jinja() -> Any:
    try:
        import jinja2
    except ModuleNotFoundError:
        raise ConfigError(f"reports need Jinja2: {install_command('report')}") from None
    import markupsafe

    def load(name: str) -> str:
        return resources.files(TEMPLATES).joinpath(name).read_text("utf-8")

    def escaped(name: str | None) -> bool:
        return name is not None and name.endswith(".html.j2")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(load),
        autoescape=escaped,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Own SVG, CSS and JavaScript: the texts inside of the SVG are escaped where it is made.
    environment.globals["own"] = markupsafe.Markup
    environment.globals["file"] = load
    environment.filters["cell"] = markdown_cell
    return environment


def markdown_cell(text: str) -> str:
    """Text such that Markdown shows it literally, also inside of a table."""
    flat = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>|#~&])", r"\\\1", flat)


def _csv_tables(comparison: Comparison, page: dict[str, Any]) -> Iterable[tuple[str, str]]:
    yield "curves", _csv(facts.curve_rows(comparison.records))
    single = ("matrix", "runs", "failures", "overheads", "interest", "changes", "provenance")
    tables: list[Table] = [page[name] for name in single if page[name] is not None]
    for axis in page["axes"]:
        tables += [*axis.tables, *(figure.table for figure in axis.figures)]
        per_task = [task.tables[0] for task in axis.tasks]
        if per_task:
            rows = [row for table in per_task for row in table.numbers or ()]
            yield f"tasks_{axis.key}", _csv([per_task[0].columns, *rows])
    for table in tables:
        whole = (table.head, table.rows) if table.numbers is None else (table.columns, table.numbers)
        yield _file_name(table.name), _csv([whole[0], *whole[1]])


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    # A NaN is the only value that is not equal to itself.
    writer.writerows(["" if v != v else v for v in row] for row in rows)
    return text.getvalue()


def _paper(comparison: Comparison, axes: Sequence[AxisView], folder: Path) -> list[Path]:
    """Figures for papers; none where matplotlib is not installed."""
    from diffsim.comparison import paper

    if not paper.available():
        return []
    return paper.write(comparison, [axis.key for axis in axes], folder)


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.=-]+", "_", name)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {shown(folder)}: {error.strerror or error}") from None


def _write(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    except OSError as error:
        raise ConfigError(f"cannot write {shown(path)}: {error.strerror or error}") from None
    return path
