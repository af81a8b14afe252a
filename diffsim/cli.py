"""The command line. Heavy imports wait inside the commands, so that ``--help`` answers at once."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from typing import Any

import click

from diffsim._version import __version__
from diffsim.comparison.commands import compare
from diffsim.errors import ConfigError, DiffsimError, Interrupted
from diffsim.suites import commands as suites
from lazy_registry.registry import unknown
from robotics_envs.julia.commands import setup, status
from robotics_envs.julia.installation import JuliaError


class HelpfulCommand(click.Command):
    """Answers an unknown option with the nearest one and the list."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            known = [o for p in self.get_params(ctx) for o in p.opts if o.startswith("--")]
            raise click.UsageError(unknown("option", error.option_name, known), ctx) from None


class HelpfulGroup(click.Group):
    """Answers an unknown command with the nearest one and the list; prints our errors as one line."""

    command_class = HelpfulCommand

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise click.UsageError(unknown("command", args[0], self.commands), ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Interrupted as stop:
            click.echo(str(stop), err=True)
            ctx.exit(128 + stop.signal)
        except (DiffsimError, JuliaError) as error:
            click.echo(f"diffsim: {error}", err=True)
            ctx.exit(2 if isinstance(error, ConfigError) else 1)


class Whole(click.ParamType):
    """A whole number as everywhere else: ``1000`` and ``1e3``."""

    name = "integer"

    def __init__(self, least: int = 0) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from diffsim.values import whole_number

        number = value
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                number = kind(value)
                break
        try:
            return whole_number(param.opts[0] if param else "number", number, self.least)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class Run(click.ParamType):
    """A run's folder or file; ``~`` is the home folder also where the shell left it alone."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return os.path.expanduser(value)


_TRUST = click.option(
    "--trust", is_flag=True, help="Run the code stored in a run of somebody else; refused without."
)
_ENV = click.option("--env", help="Simulator to use instead of the run's, such as a moved my_env.py:MyEnv.")


@click.group(cls=HelpfulGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Train robot policies by backpropagating through white-box simulators.

    Start with: diffsim train pendulum --out runs/pendulum
    """
    # A user's own environment, named module:Class, is looked for where the command runs.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


@main.command()
@click.argument("env", required=False)
@click.option("--out", type=Run(), help="Folder of the run.  [default: runs/ENV]")
@click.option("--config", type=Run(), help="TOML file with settings; options here win over it.")
@click.option("--seed", type=Whole(), help="Seed of everything random.  [default: 0]")
@click.option(
    "--updates",
    type=Whole(1),
    help="Length of the run in updates of the policy.  [default: 600; up to 2,400 until the task is solved]",
)
@click.option("--algorithm", help="How to train: value_gradient (default), short_window or full_horizon.")
@click.option("--optimizer", help="adam (default), lbfgs, cma_es, ...; see: diffsim optimizers.")
@click.option("--device", help="Torch device, such as cpu or cuda:0, or auto.  [default: cpu]")
@click.option("--dtype", help="float32 (default) or float64.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any other setting, such as algorithm.window=8 or env.g=3.7; repeatable.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in --out; --updates lengthens it.")
@click.option("--init", type=Run(), help="Run whose policy this one starts from.")
@click.option(
    "--log", help="Writers of the history beside the run file: csv, tensorboard, or both with a comma."
)
@_TRUST
@click.option(
    "--threads",
    type=Whole(1),
    help="CPU threads.  [default: 1, and for compiled rollouts that take long one for each processor]",
)
@click.option(
    "--processes", type=Whole(1), help="Processes that share each batch; the run needs as many shards."
)
@click.option("--quiet", is_flag=True, help="Print no progress.")
def train(
    env: str | None,
    out: str | None,
    config: str | None,
    assignments: tuple[str, ...],
    resume: bool,
    init: str | None,
    log: str | None,
    trust: bool,
    processes: int | None,
    quiet: bool,
    **flags: Any,
) -> None:
    """Train a policy in ENV, a simulator's name or your own as module:Class."""
    from pathlib import Path

    from diffsim.config import merge, parse_assignment, read_toml
    from diffsim.launcher import launched
    from diffsim.loading import collector_paused
    from diffsim.runs.progress import Progress
    from diffsim.values import shown

    layers = [read_toml(Path(config))] if config else []
    layers.append({key: value for key, value in {"env": env, **flags}.items() if value is not None})
    layers += [parse_assignment(text) for text in assignments]
    writers = log.split(",") if log else ()
    if processes is None and launched()[1] > 1:
        processes = launched()[1]
    with Progress(quiet=quiet or launched()[0] > 0) as progress:
        progress.status("loading")
        with collector_paused():
            from diffsim.runs.run import trained  # which loads torch, for a second and more

        run = trained(
            merge(*layers),
            out,
            resume=resume,
            init=init,
            log=writers,
            trust=trust,
            progress=progress,
            processes=processes,
        )
    if not run.team.writes:
        return
    file = run.file
    history = file.history()
    click.echo(
        f"finished: {history['update'][-1]:,} updates, {history['env_steps'][-1]:,} environment steps, "
        f"{history['gradient_evaluations'][-1]:,} gradient evaluations, "
        f"{history['wall_seconds'][-1]:.1f} s of training, return {history['return'][-1]:.1f}"
    )
    click.echo(f"wrote {shown(file.path)}")
    gym_id = run.assembly.env.gym_id
    drive = f" --gym {gym_id} --episodes 100 --seed 1000" if gym_id else ""
    click.echo(f"next: diffsim evaluate {shlex.quote(shown(file.folder))}{drive}")


@main.command()
@click.argument("run", type=Run())
@click.option(
    "--gym",
    help="Gymnasium environment to drive, such as Pendulum-v1; without it, the run's own simulator.",
)
@click.option("--any-gym", is_flag=True, help="Drive --gym also where it is not the simulator's twin.")
@click.option(
    "--mujoco", is_flag=True, help="Of a robot from a file: the same task with MuJoCo's own steps (mj_step)."
)
@click.option("--episodes", default=100, show_default=True, type=Whole(1))
@click.option(
    "--seed",
    default=1000,
    show_default=True,
    type=Whole(),
    help="Of the first episode; each further one adds 1.",
)
@click.option("--checkpoint", default="best", show_default=True, help="best or last.")
@_ENV
@_TRUST
def evaluate(run: str, **options: Any) -> None:
    """Measure the policy of RUN and append the result to its file."""
    from diffsim.loading import collector_paused

    with collector_paused():
        from diffsim.runs.evaluation import evaluate as run_evaluation

    click.echo(str(run_evaluation(run, **options)))


@main.command()
@click.argument("runs", nargs=-1, required=True, type=Run())
@click.option("--source", is_flag=True, help="Print the stored texts of the author's own files instead.")
def show(runs: tuple[str, ...], source: bool) -> None:
    """Print what the file of a run holds; of several RUNS, a table."""
    from diffsim.runs.show import describe_run, describe_runs, describe_sources

    if source:
        click.echo("\n".join(describe_sources(run) for run in runs))
        return
    click.echo(describe_run(*runs) if len(runs) == 1 else describe_runs(runs))


@main.command()
@click.argument("runs", nargs=-1, required=True, type=Run())
@click.option("--out", type=Run(), help="PNG, PDF or SVG to write.  [default: curves.png in the first run]")
def plot(runs: tuple[str, ...], out: str | None) -> None:
    """Draw the learning curves of RUNS: of one, or the mean and its 95% interval over the seeds of several."""
    from diffsim.runs.curves import default_path
    from diffsim.runs.curves import plot as draw
    from diffsim.values import folder, shown

    target = folder(out) if out else default_path(runs)
    draw(runs, target)
    click.echo(f"wrote {shown(target)}")


@main.command()
@click.argument("run", type=Run())
@click.option(
    "--out", type=click.Path(), help="Folder of the files.  [default: RUN, or here for a simulator]"
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    default=("gif", "html"),
    show_default=True,
    help="gif, html or mp4; repeatable.",
)
@click.option("--rollouts", default=4, show_default=True, type=Whole(), help="How many episodes.")
@click.option("--seed", default=1000, show_default=True, type=Whole(), help="Of the starting states.")
@click.option("--steps", type=Whole(1), help="Control intervals.  [default: an episode]")
@click.option("--checkpoint", default="best", show_default=True, help="best or last.")
@click.option("--actions", help="Of a simulator without a policy: zero (default) or random.")
@click.option("--size", default=480, show_default=True, type=Whole(1), help="Width of GIF and MP4 in pixels.")
@click.option(
    "--speed", type=float, help="Simulated seconds per second.  [default: the simulator's, mostly 1]"
)
@click.option(
    "--overlay/--no-overlay", default=True, help="Whether GIF and MP4 show all rollouts or the first."
)
@click.option("--quiet", is_flag=True, help="Print no progress.")
@_ENV
@_TRUST
def render(run: str, **options: Any) -> None:
    """Animate RUN, or a simulator without a policy: its name, my_env.py:MyEnv or module:Class."""
    from diffsim.rendering.render import render as draw
    from diffsim.values import shown

    for path in draw(run, **options):
        click.echo(f"wrote {shown(path)} ({path.stat().st_size / 1000:,.0f} kB)")


@main.command()
@click.argument("folder", type=Run())
@click.option("--out", type=Run(), help="Folder of the report.  [default: report in FOLDER]")
@click.option(
    "--figures/--no-figures",
    default=True,
    show_default=True,
    help="Draw figures for papers: most of the time.",
)
def report(folder: str, out: str | None, figures: bool) -> None:
    """Write the report of the comparison or suite in FOLDER: an HTML page, Markdown, CSV tables, figures for papers."""
    from diffsim.comparison.report import report as write
    from diffsim.values import shown

    page, *others = write(folder, out, figures=figures)
    click.echo(
        f"wrote {shown(page)} ({page.stat().st_size / 1000:,.0f} kB) and {len(others)} files beside it"
    )
    if figures:
        from diffsim.comparison.paper import available
        from lazy_registry.installation import install_command

        if not available():
            click.echo(f"no figures for papers, which need matplotlib: {install_command('plot')}")


@main.command()
@click.argument("env")
def check(env: str) -> None:
    """Tell what is wrong with the simulator ENV, a name, "my_env.py:MyEnv" or a file that defines one.

    Of a robot, "mjcf:robot.xml", "urdf:robot.urdf" or "gym:Hopper-v5", it prints first how exactly its dynamics is
    MuJoCo's.
    """
    from diffsim.config import load_class
    from diffsim.runs.references import env_section
    from robotics_envs import ENVIRONMENTS
    from robotics_envs.conformance import CHECKS, ConformanceError
    from robotics_envs.environments import ROBOTS, SUITES
    from robotics_envs.user_code import describe_failure

    try:
        made = load_class(ENVIRONMENTS, env_section(env)["name"])
        if env.startswith((*ROBOTS, *SUITES)):
            from robotics_envs.robots import verify

            click.echo(verify(made()))
        _checked(made)
    except ConformanceError as error:
        raise DiffsimError(str(error)) from None
    except DiffsimError:
        raise
    except Exception as error:
        line = describe_failure(error)
        if line is None and not isinstance(error, (TypeError, ValueError)):
            raise
        raise DiffsimError(f"{env} cannot be made: {line or error}") from None
    click.echo(f"{env} keeps the contract ({len(CHECKS)} checks)")


def _checked(made: Any) -> None:
    """``check_env``, on a terminal with a bar: kernels of a large robot compile for a minute, several times."""
    from robotics_envs.conformance import CHECKS, check_env

    if not sys.stderr.isatty():
        check_env(made)
        return
    bar: Any = click.progressbar(
        length=len(CHECKS),
        label="checking",
        item_show_func=lambda name: (name or "").replace("_", " "),
        show_pos=True,
        show_eta=False,
        show_percent=False,
        width=12,
        file=sys.stderr,
    )
    with bar as shown:
        check_env(made, lambda name: shown.update(1, name))


@main.command()
@click.argument("name", required=False)
def envs(name: str | None) -> None:
    """List the simulators, or what simulator NAME is and when an episode of it is a success."""
    import textwrap

    from robotics_envs.environments import ENVIRONMENTS, JULIA
    from robotics_envs.julia import SIMULATORS

    if name is not None:
        from diffsim.runs.references import env_section
        from lazy_registry.registry import UnknownNameError
        from robotics_envs.user_code import UserCodeError, construct_env

        try:
            env = construct_env(env_section(name)["name"])
        except (UnknownNameError, UserCodeError, TypeError, ValueError) as error:
            raise DiffsimError(str(error)) from None
        click.echo(repr(env))
        criterion = env.success_criterion
        lines = (
            ["declares no success"]
            if criterion is None
            else [
                f"a success: {criterion.words}",
                f"solved: from {100 * criterion.share:g}% of the starts",
                f"source: {criterion.source}",
            ]
        )
        for line in lines:
            click.echo(textwrap.fill(line, 96, initial_indent="    ", subsequent_indent="        "))
        return
    for name, path in ENVIRONMENTS.items():
        click.echo(f"{name:22s} {path}")
    for name in SIMULATORS:
        click.echo(f"{JULIA + name:22s} in Julia; see: diffsim julia status")


@main.command()
@click.argument("name", required=False)
def optimizers(name: str | None) -> None:
    """List the optimizers, or the options of optimizer NAME with their defaults."""
    import textwrap

    from diffsim.optimizers import OPTIMIZERS, optimizer_class
    from diffsim.optimizers.first_order import optimizer_classes
    from diffsim.optimizers.options import options

    if name is None:
        for known, path in OPTIMIZERS.items():
            kind = "needs gradients" if optimizer_class(known).needs_gradient else "needs values only"
            kind = "one, then another" if known == "hand_over" else kind
            click.echo(f"{known:22s} {kind:17s} {path}")
        others = sorted(set(optimizer_classes()) - set(OPTIMIZERS))
        click.echo(f"also of torch.optim: {', '.join(others)}; others by their dotted name")
        return
    for option in options(name):
        click.echo(f"optimizer.{option.name} = {option.default}")
        if option.meaning:
            click.echo(textwrap.indent(textwrap.fill(option.meaning, 96), "    "))


main.add_command(compare)


@main.group(cls=HelpfulGroup)
def julia() -> None:
    """The Julia that simulators named julia:… run in."""


julia.add_command(status)
julia.add_command(setup)


@main.group(cls=HelpfulGroup)
def suite() -> None:
    """Many runs from one TOML file, on this machine, Ray or a Slurm cluster; see docs/suites.md."""


for command in (
    suites.run,
    suites.resume,
    suites.status,
    suites.table,
    suites.watch,
    suites.logs,
    suites.cancel,
    suites.prune,
):
    suite.add_command(command)
