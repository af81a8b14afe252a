"""Finding, reporting and setting up Julia, and what happens where there is none. Starts no Julia."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from juliapkg.state import STATE

from diffsim.cli import main
from diffsim.config import RunConfig, load_config
from lazy_registry.registry import UnknownNameError
from robotics_envs import ENVIRONMENTS, julia_sources, make_env
from robotics_envs.julia import SIMULATORS, installation, runtime
from robotics_envs.julia.installation import Installation, JuliaError, Report, find

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WAYS_OUT = ("python -m robotics_envs.julia setup", "PYTHON_JULIACALL_EXE=", "PYTHON_JULIACALL_PROJECT=")


@pytest.fixture
def no_julia(monkeypatch, tmp_path):
    """A machine where nothing is set up, in a process where nothing was started."""
    for name in ("PYTHON_JULIACALL_EXE", "PYTHON_JULIACALL_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(STATE, "project", str(tmp_path / "julia_env"))
    monkeypatch.setattr(runtime, "_runtime", None)
    monkeypatch.delitem(sys.modules, "juliacall", raising=False)
    from robotics_envs.julia import env

    env._julia_env.cache_clear()


def package() -> dict:
    return tomllib.loads((julia_sources() / "Project.toml").read_text())


def test_without_a_julia_there_is_one_error_with_two_ways_out(no_julia):
    for call in (find, lambda: make_env("julia:Pendulum"), runtime.start):
        with pytest.raises(JuliaError) as error:
            call()
        assert all(way in str(error.value) for way in WAYS_OUT)
    assert make_env("pendulum").name == "pendulum"


def test_the_command_line_says_it_in_one_line(no_julia, tmp_path):
    for args in (["julia", "status"], ["train", "julia:Pendulum", "--out", str(tmp_path / "run")]):
        result = CliRunner().invoke(main, args)
        assert result.exit_code in (1, 2)
        assert result.output.removeprefix("loading\n").count("\n") == 1
        assert all(way in result.output for way in WAYS_OUT)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("set_up", "complaint"),
    [
        ({"EXE": "julia"}, "PYTHON_JULIACALL_EXE is set but PYTHON_JULIACALL_PROJECT is not"),
        ({"PROJECT": "/"}, "PYTHON_JULIACALL_PROJECT is set but PYTHON_JULIACALL_EXE is not"),
        ({"EXE": "/no/julia", "PROJECT": "/"}, "'/no/julia' is no executable file"),
        ({"EXE": sys.executable, "PROJECT": "/no/project"}, "'/no/project' is no folder; create it"),
    ],
)
def test_half_an_installation_is_refused(no_julia, monkeypatch, set_up, complaint):
    for name, value in set_up.items():
        monkeypatch.setenv(f"PYTHON_JULIACALL_{name}", value)
    with pytest.raises(JuliaError, match=complaint):
        find()


def test_an_existing_julia_is_taken_as_it_is(no_julia, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", sys.executable)
    monkeypatch.setenv("PYTHON_JULIACALL_PROJECT", str(tmp_path))
    assert find() == Installation(sys.executable, str(tmp_path), "PYTHON_JULIACALL_EXE")


def report(**changes) -> Report:
    packages = {"DiffSimEnvs": "0.1.0", "PythonCall": "0.9.30", "ForwardDiff": "1.0.0"}
    entries = {
        "installation": Installation("/bin/julia", "/project", "juliapkg"),
        "version": "1.10.8",
        "source": str(julia_sources()),
        "precompiled": True,
        "packages": packages,
    }
    return Report(**(entries | changes))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, None),
        ({"version": "1.9.4"}, "Julia 1.9.4 is too old: 1.10 or newer"),
        ({"version": "1.11.0-rc1"}, None),
        (
            {"packages": {"PythonCall": "0.9.30"}},
            "the project lacks DiffSimEnvs: run python -m",
        ),
        ({"packages": {}}, "the project lacks DiffSimEnvs and PythonCall"),
        ({"source": "/elsewhere"}, "takes DiffSimEnvs from /elsewhere, not from"),
        ({"precompiled": False}, "not precompiled"),
    ],
)
def test_status_names_what_is_missing(monkeypatch, changes, complaint):
    monkeypatch.setattr(installation, "find", lambda: None)
    monkeypatch.setattr(installation, "report", lambda found: report(**changes))
    result = CliRunner().invoke(main, ["julia", "status"])
    assert "/bin/julia (named by juliapkg)" in result.output
    assert "threads: " in result.output
    if complaint is None:
        assert result.exit_code == 0
        assert "simulators in Julia can run" in result.output
    else:
        assert result.exit_code == 1
        assert complaint in result.output


def test_status_reads_what_julia_prints(monkeypatch):
    printed = "1.10.8\n/sources\ntrue\nDiffSimEnvs 0.1.0\nSciMLBase 3.32.0\n"
    monkeypatch.setattr(installation, "run", lambda found, script: printed)
    found = installation.report(Installation("julia", "project", "juliapkg"))
    assert (found.version, found.source, found.precompiled) == ("1.10.8", "/sources", True)
    assert found.packages == {"DiffSimEnvs": "0.1.0", "SciMLBase": "3.32.0"}


def test_a_julia_that_fails_is_quoted(tmp_path):
    broken = tmp_path / "julia"
    broken.write_text("#!/bin/sh\necho 'no such package' >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(JuliaError, match=r"failed with exit code 3: no such package"):
        installation.run(Installation(str(broken), str(tmp_path), "test"), "1")


def test_setup_gives_an_existing_project_the_packages(no_julia, monkeypatch, tmp_path):
    ran = []
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", sys.executable)
    monkeypatch.setenv("PYTHON_JULIACALL_PROJECT", str(tmp_path))
    monkeypatch.setattr(installation, "run", lambda found, script, capture: ran.append(script))
    installation.setup()
    installation.setup(adjoints=True)
    from importlib.metadata import version

    for script in ran:
        assert str(julia_sources()) in script
        assert f'version = "{version("juliacall")}"' in script
        assert script.index("Pkg.develop") < script.index("Pkg.precompile")
    assert ["SciMLSensitivity" in script for script in ran] == [False, True]


def test_the_requirements_for_juliapkg_are_the_packages_own():
    asked = json.loads((julia_sources().parent / "juliapkg.json").read_text())
    own = package()
    assert asked["julia"] == own["compat"]["julia"]
    assert list(asked["packages"]) == [own["name"]]
    entry = asked["packages"][own["name"]]
    assert entry["uuid"] == own["uuid"]
    assert (julia_sources().parent / entry["path"]).resolve() == julia_sources()


def test_every_dependency_of_the_package_is_bounded():
    own = package()
    needed = {*own["deps"], *own["weakdeps"], *own["extras"], "julia"}
    assert set(own["compat"]) == needed
    assert ("SciMLSensitivity", own["weakdeps"]["SciMLSensitivity"]) == installation.ADJOINTS


def test_the_simulators_that_are_listed_are_those_of_the_package():
    assert set(SIMULATORS) == {
        line.split("{")[0].removeprefix("struct ")
        for path in (julia_sources() / "src" / "simulators").glob("*.jl")
        for line in path.read_text().splitlines()
        if line.startswith("struct ")
    }
    listed = CliRunner().invoke(main, ["envs"]).output
    assert all(f"julia:{name}" in listed for name in SIMULATORS)


def test_a_name_without_a_simulator_is_refused():
    with pytest.raises(UnknownNameError, match=r"names no simulator: 'julia:Pendulum'"):
        ENVIRONMENTS.load("julia:")


def test_a_run_finds_a_julia_file_from_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config({"env": "julia:my_env.jl:MyEnv"})
    assert config.env.name == f"julia:{tmp_path}/my_env.jl:MyEnv"
    assert RunConfig.model_validate_json(config.to_json()) == config
    assert load_config({"env": "julia:Pendulum"}).env.name == "julia:Pendulum"


def test_importing_starts_no_julia():
    code = (
        "import sys, diffsim.runs.run, robotics_envs.julia.env\n"
        "print(sorted({'juliacall', 'juliapkg'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_signals_left_to_python_are_refused(no_julia, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", sys.executable)
    monkeypatch.setenv("PYTHON_JULIACALL_PROJECT", str(tmp_path))
    monkeypatch.setenv("PYTHON_JULIACALL_HANDLE_SIGNALS", "no")
    with pytest.raises(JuliaError, match="HANDLE_SIGNALS has to be yes or unset"):
        runtime.start()


# What another package does first: juliacall reads its own options, and only its start of Julia is left out.
EARLIER = """
import os, sys
for name in [n for n in os.environ if n.startswith(("PYTHON_JULIACALL_", "JULIA_"))]:
    del os.environ[name]
os.environ["PYTHON_JULIACALL_INIT"] = "no"
import juliacall
del os.environ["PYTHON_JULIACALL_INIT"]
os.environ.update(PYTHON_JULIACALL_EXE=sys.executable, PYTHON_JULIACALL_PROJECT=os.sep)
def started(**options):
    os.environ.update({"PYTHON_JULIACALL_" + name.upper(): value for name, value in options.items()})
    juliacall.CONFIG["inited"] = True
    juliacall.init()
    juliacall.CONFIG["lib"] = None
    for name in options:
        del os.environ["PYTHON_JULIACALL_" + name.upper()]
from robotics_envs.julia import JuliaError, runtime
def said(threads=None):
    try:
        return runtime.start(threads).threads
    except JuliaError as error:
        return str(error)
runtime._leave_julia = lambda library: None
"""


def after_an_earlier_juliacall(code: str, *options: str) -> str:
    command = [sys.executable, *options, "-W", "always", "-c", EARLIER + code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_a_juliacall_that_started_without_signals_is_refused():
    for options in ("", "handle_signals='no'"):
        out = after_an_earlier_juliacall(f"started({options}); print(said())")
        assert "without Julia's signal handling" in out
        assert "imported before Julia's first environment: call robotics_envs.julia.start() before" in out
    option = ("-X", "juliacall-handle-signals=no")
    out = after_an_earlier_juliacall("started(handle_signals='yes'); print(said())", *option)
    assert "without Julia's signal handling" in out


def test_a_juliacall_that_started_no_julia_is_refused():
    assert "unset PYTHON_JULIACALL_INIT" in after_an_earlier_juliacall("print(said())")


def test_the_julia_that_an_earlier_juliacall_started_is_named(tmp_path):
    out = after_an_earlier_juliacall(
        f"started(handle_signals='yes', project={str(tmp_path)!r})\n"
        "runtime._load = lambda library: {'error': 'Package DiffSimEnvs not found'}\n"
        "print(said())"
    )
    assert f"{sys.executable} with the project {tmp_path} does not load DiffSimEnvs" in out


@pytest.mark.parametrize(
    ("asked", "variable", "warned"),
    [("3", "", True), ("1", "", False), ("None", "", False), ("3", "PYTHON_JULIACALL_THREADS", False)],
)
def test_threads_that_an_earlier_juliacall_settled_are_said(asked, variable, warned):
    out = after_an_earlier_juliacall(
        "started(handle_signals='yes')\n"
        "found = {'threads': 1, 'versions': {}, 'addresses': [0] * len(runtime._SIGNATURES)}\n"
        "runtime._load = lambda library: found\n"
        f"if {variable!r}: os.environ[{variable!r}] = '1'\n"
        f"print(said({asked}))"
    )
    assert out.splitlines()[0] == "1"
    assert ("threads = 1 was settled then: for 3, call robotics_envs.julia.start(3)" in out) == warned


def test_a_julia_that_runs_python_is_left_as_it_is():
    config = {"inited": True, "opt_handle_signals": None, "exepath": None, "project": None}
    assert runtime._settings_of(config, True) is None


def test_a_number_of_threads_below_one_is_refused(no_julia):
    with pytest.raises(JuliaError, match="at least one thread, got 0"):
        runtime.start(0)


def test_julia_is_not_started_from_another_thread(no_julia):
    from concurrent.futures import ThreadPoolExecutor

    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(JuliaError, match="only be started from the main thread"),
    ):
        pool.submit(runtime.start).result()


def test_a_process_that_forked_before_julia_was_started_may_start_it(no_julia):
    pid = os.fork()
    if pid == 0:
        os._exit(int(runtime._forked))
    assert os.waitpid(pid, 0)[1] == 0
