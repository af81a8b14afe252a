"""Compilers: which is taken, what is said where there is none, and kernels of zig against the eager reference."""

import importlib.util
import logging
import math
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from diffsim.rollouts import Rollout
from examples.cartpole import CartPole
from robotics_envs import make_env
from solvers import solve
from solvers.compiler.trace import NativeUnsupportedError
from solvers.native import adaptive, build

ROOT = Path(__file__).parents[3]
F32, F64 = torch.float32, torch.float64
needs_zig = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed (pip install ziglang)"
)


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    """A machine without g++ and clang++, as seen for the first time in this process; nothing is in the cache."""
    forget()
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("DIFFSIM_CACHE", str(tmp_path / "cache"))
    yield monkeypatch
    forget()


def forget():
    for function in (build._toolchain, build._load, build._say_no_compiler):
        function.cache_clear()
    adaptive._kernels.clear()


def without_zig(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "ziglang" else find(name, *a)
    )


def decay(t, x, u, p):
    return -1.25 * x


def test_what_no_compiler_costs_is_said_once_in_two_short_lines(no_compiler, caplog):
    """By solves and rollouts, of whatever fields and simulators, together: one message."""
    without_zig(no_compiler)
    with caplog.at_level(logging.WARNING):
        for rate in (1.0, 2.0):
            field = lambda t, x, u, p, rate=rate: -rate * x
            end = solve(field, torch.ones(1, 1, dtype=F64), [0.0, 1.0], backend="native").xs[-1]
            assert end.item() == pytest.approx(math.exp(-rate), abs=1e-5)
        for env in (CartPole(), make_env("pendulum")):
            x = env.reset(3, torch.Generator().manual_seed(0), F64)
            controls = torch.zeros(2, 3, len(env.action_box), dtype=F64)
            rollout = Rollout(env, backend="native")
            assert torch.isfinite(rollout(x, 2, controls=controls).costs).all()
    (record,) = caplog.records
    lines = record.getMessage().splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) <= 80
    for part in ("no C++ compiler", "times as long", "apt-get install g++", "pip install ziglang"):
        assert part in record.getMessage()


def test_a_rollout_that_does_not_ask_for_a_compiler_says_nothing(no_compiler, caplog):
    without_zig(no_compiler)
    env = make_env("pendulum")
    x = env.reset(3, torch.Generator().manual_seed(0), F64)
    Rollout(env, backend="eager")(x, 2, controls=torch.zeros(2, 3, 1, dtype=F64))
    solve(decay, torch.ones(1, 1), [0.0, 1.0])
    assert not caplog.records


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def compiler():
    """A compiler of this machine that takes g++'s options."""
    found = build.shutil.which("g++") or build.shutil.which("clang++")
    if found is None:
        pytest.skip("there is no g++ or clang++")
    return found


def test_cxx_is_taken_first_and_may_hold_options(monkeypatch, tmp_path):
    forget()
    log = tmp_path / "log"
    named = script(tmp_path / "my-compiler", f'echo "$@" >> {log}; exec {compiler()} "$@"')
    monkeypatch.setenv("CXX", f"{named} -DMINE=1")
    monkeypatch.setenv("DIFFSIM_CACHE", str(tmp_path / "cache"))
    assert build.load('extern "C" int answer() { return MINE + 41; }').answer() == 42
    assert "-fopenmp" in log.read_text()
    forget()


def loaded_in(count, environment):
    """What each of so many processes prints that load the same kernel at once."""
    program = "from solvers.native import build; print(build.load('extern \"C\" int answer() { return 42; }').answer())"
    running = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    return [process.communicate()[0] for process in running]


def test_processes_that_need_the_same_kernel_compile_it_once(tmp_path):
    log, cache = tmp_path / "log", tmp_path / "cache"
    slow = f'case "$*" in *--version*) ;; *) echo x >> {log}; sleep 1;; esac; exec {compiler()} "$@"'
    environment = {**os.environ, "CXX": script(tmp_path / "slow", slow), "DIFFSIM_CACHE": str(cache)}
    assert loaded_in(4, environment) == ["42\n"] * 4
    assert log.read_text() == "x\n"
    assert [path.suffix for path in cache.iterdir()] == [".so"]
    assert loaded_in(1, environment) == ["42\n"]
    assert log.read_text() == "x\n"


def test_a_lock_that_a_killed_process_left_keeps_nobody_waiting(tmp_path):
    cache = tmp_path / "cache"
    hangs = script(tmp_path / "hangs", f'case "$*" in *--version*) exec {compiler()} "$@";; esac; sleep 60')
    environment = {**os.environ, "CXX": hangs, "DIFFSIM_CACHE": str(cache)}
    program = "from solvers.native import build; build.load('extern \"C\" int answer() { return 42; }')"
    killed = subprocess.Popen([sys.executable, "-c", program], env=environment, start_new_session=True)
    while not list(cache.glob("*/kernel.cpp")):
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert list(cache.glob("*.lock"))
    environment["CXX"] = script(
        tmp_path / "hangs", f'exec {compiler()} "$@"'
    )  # the same compiler to the cache
    assert loaded_in(1, environment) == ["42\n"]


def test_without_locks_every_process_compiles(monkeypatch, tmp_path):
    def refuses(lock, timeout):
        raise NotImplementedError("FileSystem does not appear to support flock")

    forget()
    monkeypatch.setattr(build.FileLock, "acquire", refuses)
    monkeypatch.setenv("DIFFSIM_CACHE", str(tmp_path / "cache"))
    assert build.load('extern "C" int answer() { return 42; }').answer() == 42
    forget()


def test_a_compiler_without_openmp_compiles_for_one_thread(monkeypatch, tmp_path):
    """As Apple's clang, or Debian's without libomp."""
    forget()
    refuses = f'case "$*" in *-fopenmp*) echo "cannot find -lomp" >&2; exit 1;; esac; exec {compiler()} "$@"'
    monkeypatch.setenv("CXX", script(tmp_path / "no-openmp", refuses))
    monkeypatch.setenv("DIFFSIM_CACHE", str(tmp_path / "cache"))
    assert build.load('extern "C" int answer() { return 42; }').answer() == 42
    forget()


def test_a_compiler_that_fails_gives_its_own_message(monkeypatch, tmp_path):
    forget()
    refuses = 'case "$*" in *--version*) echo 1;; *) echo "no licence found" >&2; exit 1;; esac'
    monkeypatch.setenv("CXX", script(tmp_path / "unlicensed", refuses))
    monkeypatch.setenv("DIFFSIM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(NativeUnsupportedError, match="no licence found"):
        build.load('extern "C" int answer() { return 42; }')
    forget()
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(NativeUnsupportedError, match=r"/nowhere/c\+\+ does not run"):
        build.load("")
    forget()


@needs_zig
def test_zig_is_taken_where_nothing_else_is(no_compiler):
    assert isinstance(build._toolchain(), build.Zig)
    assert build._toolchain().command == (sys.executable, "-m", "ziglang")


@needs_zig
def test_zig_that_cxx_names(monkeypatch):
    forget()
    monkeypatch.setenv("CXX", f"{sys.executable} -m ziglang c++")
    assert isinstance(build._toolchain(), build.Zig)
    forget()


@needs_zig
@pytest.mark.parametrize(("dtype", "accuracy"), [(F64, 1e-10), (F32, 1e-4)])
def test_rollouts_by_zig_agree_with_eager(no_compiler, caplog, dtype, accuracy):
    """Values and gradients, at a batch that fills no whole block, on as many threads as torch has."""
    env = CartPole()
    generator = torch.Generator().manual_seed(0)
    x0 = env.reset(37, generator, F64).to(dtype)
    controls = torch.randn(20, 37, len(env.action_box), generator=generator, dtype=F64).to(dtype)
    outcomes = []
    for backend in ("eager", "native"):
        x, u = x0.clone().requires_grad_(), controls.clone().requires_grad_()
        trajectory = Rollout(env, backend=backend)(x, 20, controls=u)
        outcomes.append((trajectory.states, *torch.autograd.grad(trajectory.costs.mean(), (x, u))))
    assert not caplog.records, "fell back to eager"
    for right, got in zip(*outcomes, strict=True):
        assert right.abs().max() > 0
        assert torch.allclose(got, right, rtol=accuracy, atol=accuracy * float(right.detach().abs().max()))


@needs_zig
@pytest.mark.parametrize("isa", ["native", "plain"])
def test_solves_by_zig_agree_with_eager(no_compiler, caplog, isa):
    """With the functions of glibc's vector library, which zig does not link on a machine without a compiler."""

    def field(t, x, u, p):
        a, b = x[..., 0], 1.5 + 0.5 * torch.sin(x[..., 1])
        return torch.stack(
            (torch.tan(0.1 * a) + torch.atan(b) - torch.log(b), b**1.3 - p * torch.exp(-a)), -1
        )

    no_compiler.setenv("DIFFSIM_ISA", isa)
    outcomes = []
    for backend in ("eager", "native"):
        x0 = torch.linspace(-1, 1, 26, dtype=F64).reshape(13, 2).clone().requires_grad_()
        p = torch.tensor(0.7, dtype=F64, requires_grad=True)
        done = solve(
            field, x0, [0.0, 0.5], None, p, backend=backend, rtol=1e-8, atol=1e-8, adjoint="checkpoint"
        )
        outcomes.append((done.xs, *torch.autograd.grad(done.xs.square().sum(), (x0, p))))
    assert not caplog.records, "fell back to eager"
    for right, got in zip(*outcomes, strict=True):
        assert torch.allclose(got, right, rtol=1e-7, atol=1e-8)


@needs_zig
def test_zig_works_in_a_home_that_cannot_be_written(tmp_path):
    """It keeps its own cache beside the kernel, and leaves nothing there."""
    code = "from solvers.native import build; print(build.load('extern \"C\" int answer() { return 42; }').answer())"
    env = {
        "PATH": "", "HOME": "/nowhere", "DIFFSIM_CACHE": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *(p for p in sys.path if p)]),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == "42\n", done.stderr
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]
