"""The commands of ``python -m robotics_envs.julia``: see which Julia there is, and set one up."""

from __future__ import annotations

from typing import Any

import click

from robotics_envs.julia import installation
from robotics_envs.julia.installation import JuliaError


@click.command()
def status() -> None:
    """Tell what Julia there is, which packages it has, and what is missing.

    Exit code 1 if simulators in Julia cannot run as it stands.
    """
    found = installation.report(installation.find())
    chosen = found.installation
    click.echo(f"Julia {found.version}: {chosen.executable} (named by {chosen.source})")
    click.echo(f"project: {chosen.project}")
    for name, version in found.packages.items():
        click.echo(f"  {name} {version}")
    click.echo(f"threads: {installation.threads()}")
    complaints = found.complaints()
    if complaints:
        raise JuliaError("; ".join(complaints))
    click.echo("simulators in Julia can run, for example julia:Pendulum")


@click.command()
@click.option("--adjoints", is_flag=True, help="SciMLSensitivity too, for simulators with many parameters.")
def setup(adjoints: bool) -> None:
    """Install and precompile what simulators in Julia need; the first time takes minutes.

    Without PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT a Julia is looked for, and downloaded if there is none;
    with them, the packages are installed into that project.
    """
    complaints = installation.report(installation.setup(adjoints)).complaints()
    if complaints:
        raise JuliaError("; ".join(complaints))
    click.echo("set up; simulators in Julia can run, for example julia:Pendulum")


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except JuliaError as error:
            raise click.ClickException(str(error)) from None


main = _Group(
    "julia", {"status": status, "setup": setup}, help="The Julia that simulators named julia:… run in."
)
