"""``diffsim suite``: many runs from one file. Imports wait inside the commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from diffsim.suites.plan import Plan

_FOLDER = click.argument("folder", type=click.Path())
_ON = click.option(
    "--on",
    type=click.Choice(["local", "slurm", "ray"]),
    default="local",
    show_default=True,
    help="Where runs run.",
)
_WORKERS = click.option(
    "--workers", type=click.IntRange(1), help="Runs at a time on this machine, or on Ray."
)
_RETRY = click.option(
    "--retry-failed", is_flag=True, help="Also run again what failed (never what diverged)."
)
_TRUST = click.option("--trust", is_flag=True, help="Resume runs of somebody else that hold code of theirs.")
_DRY = click.option(
    "--dry-run", is_flag=True, help="Check everything, print what would start, start nothing."
)


@click.command()
@click.argument("file", type=click.Path())
@click.option("--out", help="Folder of the suite.  [default: the file's out, or runs/NAME]")
@_ON
@_WORKERS
@_RETRY
@_TRUST
@_DRY
@click.pass_context
def run(ctx: click.Context, file: str, out: str | None, dry_run: bool, **options: Any) -> None:
    """Run the suite in FILE: what is not done yet. A larger suite in the same folder adds to it."""
    from diffsim.suites.suite_file import read_suite

    suite = read_suite(Path(file), out)
    if dry_run:
        from diffsim.suites.local import check_place

        check_place(suite.folder)
        _one_thread()
        from diffsim.suites.plan import resolve

        click.echo(_would_start(resolve(suite), options["on"]))
        return
    from diffsim.suites.local import check_folder, driving

    check_folder(suite.folder, len(suite.cells))
    with driving(suite.folder) as lock:
        _one_thread()
        from diffsim.suites.plan import resolve

        plan = resolve(suite)
        plan.save()
        _drive(ctx, plan, lock, **options)


@click.command()
@_FOLDER
@_ON
@_WORKERS
@_RETRY
@_TRUST
@click.pass_context
def resume(ctx: click.Context, folder: str, **options: Any) -> None:
    """Go on with the suite in FOLDER as it was last started."""
    from diffsim.suites.local import check_folder, driving

    plan = _plan(folder)
    check_folder(plan.root, 1)
    with driving(plan.root) as lock:
        _one_thread()
        _drive(ctx, plan, lock, **options)


@click.command()
@_FOLDER
def status(folder: str) -> None:
    """How many runs of the suite in FOLDER are in which state, and why some failed."""
    from diffsim.suites.tables import status as text

    click.echo(text(_plan(folder)))


@click.command()
@_FOLDER
@click.option("--runs", is_flag=True, help="A line for each run instead of one for each combination.")
def table(folder: str, runs: bool) -> None:
    """Final returns of the suite in FOLDER: median, least and largest over the seeds."""
    from diffsim.suites.tables import table as text

    click.echo(text(_plan(folder), runs))


@click.command()
@_FOLDER
def watch(folder: str) -> None:
    """A live view of the suite in FOLDER, from its files alone; Ctrl-C ends the view only."""
    from diffsim.suites.tables import watch as show

    show(_plan(folder))


@click.command()
@_FOLDER
@click.argument("run", required=False)
def logs(folder: str, run: str | None) -> None:
    """What runs printed: those whose names begin with RUN, or the ends of the logs of failed ones."""
    from diffsim.suites.tables import log_of

    click.echo(log_of(_plan(folder), run))


@click.command()
@_FOLDER
@click.argument("run", required=False)
def cancel(folder: str, run: str | None) -> None:
    """Stop the suite in FOLDER, or the runs whose names begin with RUN, each at a checkpoint."""
    from diffsim.errors import ConfigError, RunFileError
    from diffsim.suites.worker import CANCEL, is_working
    from diffsim.values import counted, pasted

    plan = _plan(folder)
    chosen = [plan.folder(one) for one in plan.runs if run and one.folder.startswith(run)]
    if run and not chosen:
        raise ConfigError(f"no run begins with {run!r}; see: diffsim suite table --runs {folder}")
    try:
        for place in chosen if run else [plan.root]:
            place.mkdir(exist_ok=True)
            (place / CANCEL).touch()
    except OSError as error:
        raise RunFileError(f"cannot write in {plan.root}: {error.strerror or error}") from None
    running = sum(is_working(plan.folder(one)) for one in plan.runs if not run or one.folder.startswith(run))
    what = f"{counted(running, 'run')} asked to stop, at the next update" if running else "no run is running"
    click.echo(f"{what}; what is not done goes on with: diffsim suite resume {pasted(plan.root)}")


@click.command()
@_FOLDER
def prune(folder: str) -> None:
    """Keep of finished runs of the suite in FOLDER the policies and histories; they cannot be lengthened then."""
    from diffsim.errors import ConfigError
    from diffsim.runs.runfile import RunFile
    from diffsim.suites.index import rows

    plan = _plan(folder)
    finished = [RunFile(plan.root / "runs" / row.folder) for row in rows(plan) if row.state == "finished"]
    files = [file for file in finished if file.exists()]
    if finished and not files:
        raise ConfigError(f"{folder} holds a comparison, whose records have nothing to prune")
    before = sum(file.path.stat().st_size for file in files)
    for file in files:
        file.prune()
    after = sum(file.path.stat().st_size for file in files)
    click.echo(f"{len(files)} finished runs: {before / 1e6:,.1f} MB before, {after / 1e6:,.1f} MB now")


def _plan(folder: str) -> Plan:
    from diffsim.suites.plan import read_plan
    from diffsim.values import folder as absolute

    return read_plan(absolute(folder))


def _one_thread() -> None:
    """Before NumPy and torch are loaded: runs are forked from this process, and threads do not survive a fork."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


def _would_start(plan: Plan, on: str) -> str:
    from diffsim.suites.local import to_do

    runs = to_do(plan, False)
    lines = [f"{len(plan.runs)} runs, {len(runs)} to do in {plan.root}", *(f"  {one.folder}" for one in runs)]
    if on == "slurm":
        from diffsim.suites.slurm import job_script

        lines += ["", job_script(plan)]
    return "\n".join(lines)


def _drive(
    ctx: click.Context, plan: Plan, lock: int, on: str, workers: int | None, retry_failed: bool, trust: bool
) -> None:
    from diffsim.suites.index import rows
    from diffsim.suites.local import Driver, set_aside, take_back_cancel, to_do
    from diffsim.suites.tables import status as text

    take_back_cancel(plan)
    todo = to_do(plan, retry_failed)
    if retry_failed:
        set_aside(plan, todo)

    def say(line: str) -> None:
        click.echo(line, err=True)

    if not todo:
        say("every run is at its end")
    elif on == "slurm":
        from diffsim.suites.slurm import drive

        drive(plan, todo, trust, say)
    elif on == "ray":
        from diffsim.suites.ray_tasks import drive as drive_tasks

        drive_tasks(plan, lock, todo, workers, trust, say)
    else:
        import diffsim.runs.run  # noqa: F401  # forked runs find it loaded

        Driver(plan, lock, workers, trust, say).drive(todo)
    click.echo(text(plan))
    if any(row.state != "finished" for row in rows(plan)):
        ctx.exit(1)
