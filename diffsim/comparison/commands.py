"""``diffsim compare``. Imports wait inside the commands."""

from __future__ import annotations

import click

_AGAINST = "ppo,ppo_wide,sac,cma_es"


@click.command()
@click.argument("simulators", nargs=-1)
@click.option(
    "--against", default=_AGAINST, show_default=True, help="Contenders, with commas; --list names them."
)
@click.option(
    "--ours",
    multiple=True,
    metavar="[NAME:]KEY=VALUE,...",
    help="Other settings of our own as a further contender, such as long:updates=1200; repeatable.",
)
@click.option("--seeds", default="10", show_default=True, help="How many, or 10..19, or a list with commas.")
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    default=("60s",),
    show_default=True,
    metavar="[NAME:]AMOUNT",
    help="CPU seconds as 60s or environment steps as 100000steps; of one contender as sac:20000steps; repeatable.",
)
@click.option("--out", default="runs/comparison", show_default=True, help="Folder of the comparison.")
@click.option("--workers", type=click.IntRange(1), help="Runs at a time on this machine, or on Ray.")
@click.option(
    "--on",
    type=click.Choice(["local", "slurm", "ray"]),
    default="local",
    show_default=True,
    help="Where runs run.",
)
@click.option(
    "--tune",
    "trials",
    type=click.IntRange(1),
    metavar="TRIALS",
    help="First search settings for ours and every other, TRIALS each, and add the best as NAME_tuned.",
)
@click.option(
    "--tuning-seeds",
    default="1000..1001",
    show_default=True,
    help="Seeds of --tune, none of them of --seeds.",
)
@click.option("--log", default="", metavar="csv,tensorboard", help="Also write the curve of each run so.")
@click.option("--retry-failed", is_flag=True, help="Also run again what crashed.")
@click.option("--dry-run", is_flag=True, help="Check everything, print what would start, start nothing.")
@click.option("--list", "listing", is_flag=True, help="List the contenders and stop.")
@click.pass_context
def compare(
    ctx: click.Context,
    simulators: tuple[str, ...],
    against: str,
    ours: tuple[str, ...],
    seeds: str,
    budgets: tuple[str, ...],
    out: str,
    workers: int | None,
    on: str,
    trials: int | None,
    tuning_seeds: str,
    log: str,
    retry_failed: bool,
    dry_run: bool,
    listing: bool,
) -> None:
    """Train through SIMULATORS and against them: ours and black-box contenders, at equal budgets.

    What is finished is not run again: the same command goes on with a comparison that was stopped. Further simulators,
    contenders and seeds in the same folder add to it. diffsim report makes a page of it.
    """
    from diffsim.comparison.compare import request

    if listing:
        click.echo(_list())
        return
    asked = request(simulators, _names(against), ours, seeds, budgets, _names(log))
    from diffsim.comparison.driving import Session
    from diffsim.values import folder

    session = Session(folder(out), asked, on, workers, retry_failed)
    if trials is not None:
        session.tune_first(trials, tuning_seeds)
    if dry_run:
        click.echo(session.would_start())
    elif not session.run():
        ctx.exit(1)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _list() -> str:
    from diffsim.comparison.contenders.catalogue import CONTENDERS

    lines = [f"{name:17s} {one.about.kind:13s} {one.about.description}" for name, one in CONTENDERS.items()]
    return "\n".join(lines)
