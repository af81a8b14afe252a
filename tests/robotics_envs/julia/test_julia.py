"""Simulators in Julia through the bridge, where there is a Julia: against torch, and under all that may go wrong."""

import copy
import logging
import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import diffsim
from diffsim.errors import ConfigError
from diffsim.rollouts import Rollout
from diffsim.runs.runfile import RunFile
from robotics_envs import check_env, make_env
from robotics_envs.julia import SIMULATORS, JuliaError, installation, start
from solvers.methods.runge_kutta import Tsit5

ROOT = Path(__file__).parents[3]
VAN_DER_POL = ROOT / "examples" / "van_der_pol.jl"

try:
    REPORT, MISSING = installation.report(installation.find()), ""
    MISSING = "; ".join(REPORT.complaints())
except JuliaError as error:
    REPORT, MISSING = None, str(error)

pytestmark = [pytest.mark.julia, pytest.mark.skipif(bool(MISSING), reason=f"no Julia: {MISSING}")]
needs_adjoints = pytest.mark.skipif(
    REPORT is None or "SciMLSensitivity" not in REPORT.packages,
    reason="no SciMLSensitivity: python -m robotics_envs.julia setup --adjoints",
)


def sample(env, count=5, dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x, u = env.state_box.sample(count, rng, dtype), env.action_box.sample(count, rng, dtype)
    if env.name == "julia:Trebuchet":
        x[:, 0] = x[:, 0].round()
    return x, u, env.params(x)


def relative(a, b):
    """The largest difference, by the largest number."""
    return float((a - b).detach().abs().max() / b.detach().abs().max().clamp_min(1e-12))


# Agreement with torch


def ten_seconds(env):
    """The state after 10 s under given actions, the costs, and gradients by initial states, actions and parameters."""
    steps, rng = round(10 / env.dt), torch.Generator().manual_seed(3)
    x = (0.3 * env.state_box.sample(6, rng, torch.float64)).requires_grad_()
    phase = torch.arange(steps, dtype=torch.float64) * env.dt
    u = 0.3 * torch.sin(phase[:, None, None] + torch.rand(1, 6, 1, generator=rng, dtype=torch.float64))
    u.requires_grad_()
    p = {name: value.requires_grad_() for name, value in env.params(x).items()}
    trajectory = Rollout(env, backend="eager")(x, steps, p, controls=u)
    assert trajectory.states is not None
    loss = trajectory.last.square().sum() + trajectory.costs.sum()
    return trajectory.states, trajectory.costs, torch.autograd.grad(loss, [x, u, *p.values()])


@pytest.mark.parametrize(
    ("ours", "twin", "solver"),
    [
        ("julia:Pendulum", "pendulum", None),
        ("julia:CartpoleSwingup", "cartpole_swingup", Tsit5()),
    ],
)
def test_twins_agree_after_ten_seconds_in_state_and_gradient(ours, twin, solver):
    reference = make_env(twin)
    if solver is not None:
        reference.solver = solver  # the tableau that Julia's twin has
    states, costs, gradients = ten_seconds(make_env(ours))
    states_there, costs_there, gradients_there = ten_seconds(reference)
    assert relative(states, states_there) < 1e-9
    assert relative(costs, costs_there) < 1e-9
    for mine, theirs in zip(gradients, gradients_there, strict=True):
        assert relative(mine, theirs) < 1e-9


def test_a_pendulum_by_tsit5_agrees_with_torchs_tsit5(tmp_path):
    """Same tableau, same step, no clamp: as a user's own file, with the dynamics of the package's."""
    file = tmp_path / "swing.jl"
    file.write_text(
        """
        import DiffSimEnvs: Simulator, Pendulum, Fixed, Tsit5, describe, dynamics!, cost, observe, scheme

        struct Swing{T} <: Simulator
            g::T
            m::T
            l::T
        end
        rod(p::Swing) = Pendulum(p.g, p.m, p.l)
        describe(::Type{<:Swing}) = describe(Pendulum)
        dynamics!(dx, x, u, p::Swing, t) = dynamics!(dx, x, u, rod(p), t)
        cost(x, u, p::Swing) = cost(x, u, rod(p))
        observe(x, p::Swing) = observe(x, rod(p))
        scheme(::Swing) = Fixed(Tsit5(); steps = 2)
        """
    )
    reference = make_env("pendulum")
    reference.solver, reference.substeps = Tsit5(), 2
    for mine, theirs in zip(
        ten_seconds(make_env(f"julia:{file}:Swing")), ten_seconds(reference), strict=True
    ):
        for a, b in zip(mine, theirs, strict=True):
            assert relative(a, b) < 1e-9


@pytest.mark.parametrize("name", ["Pendulum", "CartpoleSwingup", "Reactor", "Trebuchet"])
def test_dynamics_cost_and_observation_are_those_of_the_simulator_in_torch(name):
    ours = make_env(f"julia:{name}")
    twin = make_env({"CartpoleSwingup": "cartpole_swingup"}.get(name, name.lower()))
    for field in ("state_names", "observation_names", "angle_names", "action_box", "start_box", "state_box"):
        assert getattr(ours, field) == getattr(twin, field)
    for field in ("dt", "episode_steps", "cost_of_reached_state", "gym_id"):
        assert getattr(ours, field) == getattr(twin, field)
    assert {n: (c.value, c.low, c.high) for n, c in ours.constants.items()} == {
        n: (c.value, c.low, c.high) for n, c in twin.constants.items()
    }
    x, u, p = sample(ours, 200)
    p = {n: 1.05 * v for n, v in p.items()}
    assert relative(ours.dynamics(0.0, x, u, p), twin.dynamics(0.0, x, u, p)) < 1e-12
    assert relative(ours.cost(x, u, p), twin.cost(x, u, p)) < 1e-12
    assert relative(ours.observe(x), twin.observe(x)) < 1e-12
    assert torch.equal(ours.done(x), twin.done(x))


def test_the_reactor_agrees_with_torchs_at_many_more_steps():
    ours, twin = make_env("julia:Reactor"), make_env("reactor")
    twin.substeps = 256
    x, u, p = sample(ours, 20)
    assert relative(ours.step(x, u, p)[0], twin.step(x, u, p)[0]) < 1e-6


def test_a_throw_agrees_with_torchs_in_landing_and_gradient():
    ours, twin = make_env("julia:Trebuchet"), make_env("trebuchet")
    twin.substeps = 16
    landings = []
    for env in (ours, twin):
        x = env.start_box.sample(4, torch.Generator().manual_seed(1), torch.float64)
        u = torch.tensor([[0.4, 20.0]], dtype=torch.float64).expand(4, 2).clone().requires_grad_()
        p = env.params(x)
        for _ in range(150):
            x, _ = env.step(x, u, p)
        assert (x[:, 6] == 0).all()  # on the ground
        landings.append((x[:, 5], torch.autograd.grad(x[:, 5].sum(), u)[0]))
    (where, by_u), (where_there, by_u_there) = landings
    assert relative(where, where_there) < 1e-7
    assert relative(by_u, by_u_there) < 1e-6


# Derivatives


@pytest.mark.parametrize("name", ["Pendulum", "CartpoleSwingup", "ThreeBody"])
def test_gradcheck_through_the_bridge(name):
    env = make_env(f"julia:{name}")
    x, u, p = sample(env, 3)
    u = 0.9 * u
    names, values = list(p), [v.clone().requires_grad_() for v in p.values()]

    def step(x, u, *values):
        return env.step(x, u, dict(zip(names, values, strict=True)))

    assert torch.autograd.gradcheck(step, (x.requires_grad_(), u.requires_grad_(), *values), atol=1e-5)
    assert torch.autograd.gradcheck(env.observe, (x,), atol=1e-6)
    by_rollout = [v.expand(3).clone().requires_grad_() for v in p.values()]
    assert torch.autograd.gradcheck(step, (x, u, *by_rollout), atol=1e-5)


@needs_adjoints
def test_an_adjoint_agrees_with_dual_numbers_on_the_stiff_reactor():
    env = make_env("julia:Reactor")
    x, u, p = sample(env, 8)
    gradients = {}
    for env.sensitivity in ("forward", "adjoint"):
        inputs = [x.clone().requires_grad_(), u.clone().requires_grad_()]
        values = {n: v.clone().requires_grad_() for n, v in p.items()}
        following, cost = env.step(*inputs, values)
        scale = torch.tensor([1.0, 350.0, 350.0], dtype=torch.float64)
        loss = (following / scale).square().sum() + cost.sum()
        gradients[env.sensitivity] = torch.autograd.grad(loss, [*inputs, *values.values()])
    # Of parameters, by their logarithms: their sizes differ by 14 orders.
    sizes = [torch.tensor([1.0, 350.0, 350.0]), torch.tensor(350.0), *p.values()]
    forward, adjoint = (
        torch.cat([(g * s).flatten() for g, s in zip(gradients[how], sizes, strict=True)])
        for how in gradients
    )
    assert relative(adjoint, forward) < 1e-7


def test_only_what_is_asked_for_is_differentiated():
    env = make_env("julia:CartpoleSwingup")
    x, u, p = sample(env)
    assert not env.step(x, u, p)[0].requires_grad
    following, _ = env.step(x.requires_grad_(), u, p)
    (by_x,) = torch.autograd.grad(following.sum(), x)
    q = {n: v.clone().requires_grad_() for n, v in p.items()}
    all_of_it = torch.autograd.grad(env.step(x, u, q)[0].sum(), [x, *q.values()])
    assert torch.allclose(by_x, all_of_it[0], rtol=1e-13)
    with torch.no_grad():
        assert not env.step(x, u, q)[0].requires_grad


def test_an_unknown_sensitivity_is_refused():
    env = make_env("julia:Pendulum")
    env.sensitivity = "reverse"
    with pytest.raises(ValueError, match="'reverse' is neither 'forward' nor 'adjoint'"):
        env.step(*sample(env))


def test_there_are_no_second_derivatives():
    env = make_env("julia:Pendulum")
    x, u, p = sample(env)
    following, _ = env.step(x.requires_grad_(), u, p)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(following.sum(), x, create_graph=True)


# The contract of an environment


@pytest.mark.parametrize("name", [n for n in SIMULATORS if n not in ("Reactor", "Trebuchet")])
def test_the_contract_holds(name):
    check_env(make_env(f"julia:{name}"))


def bits(name, order=None):
    """All numbers of an interval of 200 rollouts and its gradient, simulated in an order of theirs."""
    env = make_env(f"julia:{name}")
    x, u, p = sample(env, 200)
    order = torch.arange(200) if order is None else order
    back = order.argsort()
    x, u = x[order].requires_grad_(), u[order].requires_grad_()
    p = {key: value.expand(200).clone().requires_grad_() for key, value in p.items()}
    following, cost = env.step(x, u, p)
    gradients = torch.autograd.grad(following.sum() + cost.sum(), [x, u, *p.values()])
    with torch.no_grad():
        values = env.step(x, u, p)
    return [v.detach()[back] for v in (following, cost, *gradients, *values)]


def same(a, b):
    """Whether lists of tensors hold the same numbers, NaN being one."""
    return all(torch.equal(v.nan_to_num(-7.0), w.nan_to_num(-7.0)) for v, w in zip(a, b, strict=True))


@pytest.mark.parametrize("name", SIMULATORS)
def test_a_rollout_does_not_depend_on_those_before_it(name):
    expected = bits(name)
    for seed in range(3):
        order = torch.randperm(200, generator=torch.Generator().manual_seed(seed))
        assert same(bits(name, order), expected)


def test_bits_do_not_depend_on_the_number_of_threads(tmp_path):
    code = f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_julia import SIMULATORS, bits, start
assert start(int(sys.argv[1])).threads == int(sys.argv[1])
for name in SIMULATORS:
    bits(name)  # the first call is not divided among threads: nothing is known of its duration
torch.save([bits(name) for name in SIMULATORS], sys.argv[2])
"""
    env = {k: v for k, v in os.environ.items() if k != "PYTHON_JULIACALL_THREADS"}
    found = []
    for threads in (1, 2, 4):
        file = tmp_path / f"{threads}.pt"
        command = [sys.executable, "-c", code, str(threads), str(file)]
        subprocess.run(command, check=True, env=env, cwd=ROOT)
        found.append(torch.load(file))
    for other in found[1:]:
        assert all(same(a, b) for a, b in zip(other, found[0], strict=True))


@pytest.mark.parametrize("name", SIMULATORS)
def test_float32_in_float32_out_and_the_same_numbers(name):
    env = make_env(f"julia:{name}")
    x, u, p = sample(env, dtype=torch.float32)
    x.requires_grad_()
    following, cost = env.step(x, u, p)
    (gradient,) = torch.autograd.grad(following.sum() + cost.sum(), x)
    assert following.dtype == cost.dtype == gradient.dtype == torch.float32
    wide = x.detach().double().requires_grad_()
    there, cost_there = env.step(wide, u.double(), {n: v.double() for n, v in p.items()})
    assert torch.equal(following, there.float())
    (gradient_there,) = torch.autograd.grad(there.sum() + cost_there.sum(), wide)
    assert torch.equal(gradient, gradient_there.float())


def test_arrays_that_are_not_contiguous_and_empty_batches():
    env = make_env("julia:CartpoleSwingup")
    x, u, p = sample(env, 10)
    strided, columns = x[::2], x.T.contiguous().T[:5]
    assert not strided.is_contiguous()
    assert not columns.is_contiguous()
    assert torch.equal(env.step(strided, u[::2], p)[0], env.step(x, u, p)[0][::2])
    assert torch.equal(env.step(columns, u[:5], p)[0], env.step(x, u, p)[0][:5])
    following, cost = env.step(x[:0].requires_grad_(), u[:0], p)
    assert (following.shape, cost.shape) == ((0, 4), (0,))
    assert torch.autograd.grad(following.sum(), u[:0].requires_grad_(), allow_unused=True) == (None,)


def test_parameters_that_change_in_place_are_seen():
    env = make_env("julia:Pendulum")
    x, u, p = sample(env)
    before = env.step(x, u, p)[0]
    p["g"].mul_(2)
    assert not torch.equal(env.step(x, u, p)[0], before)
    p["g"].div_(2)
    assert torch.equal(env.step(x, u, p)[0], before)
    assert not torch.equal(env.step(x, u, make_env("julia:Pendulum", g=5.0).params(x))[0], before)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda x, u, p: (x.half(), u.half(), p), "float32 or float64, the states are torch.float16"),
        (lambda x, u, p: (x, u.float(), p), "actions torch.float32"),
        (lambda x, u, p: (x, u, {n: v.float() for n, v in p.items()}), "parameters torch.float32"),
        (lambda x, u, p: (x[:, :1], u, p), r"states \[5, 1\].*needed"),
        (lambda x, u, p: (x, u[:3], p), r"actions \[3, 1\].*needed"),
        (lambda x, u, p: (x, u, {"g": p["g"]}), "missing or unknown parameters: l, m"),
    ],
)
def test_wrong_inputs_are_named(change, complaint):
    env = make_env("julia:Pendulum")
    x, u, p = change(*sample(env))
    with pytest.raises((TypeError, ValueError), match=complaint):
        env._ask(0, x, u, p)


def test_a_tensor_on_another_device_is_told_what_to_do():
    env = make_env("julia:Pendulum")
    # Torch without CUDA lets one imagine tensors there, but compute nothing with them.
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, u = torch.empty(3, 2, device="cuda"), torch.empty(3, 1, device="cuda")
    with pytest.raises(
        JuliaError, match=r"simulates on the CPU, the states are on cuda:0: train with device=cpu"
    ):
        env.step(x, u, {})


def test_what_the_solver_cannot_simulate_is_nan_and_said_once(caplog):
    env = make_env("julia:ThreeBody")
    x, u, p = sample(env)
    x[1] = math.nan
    x.requires_grad_()
    with caplog.at_level(logging.WARNING, logger="diffsim"):
        following, cost = env.step(x, u, p)
        env.step(x, u, p)
    assert following[1].isnan().all()
    assert cost[1].isnan()
    good = [0, 2, 3, 4]
    assert following[good].isfinite().all()
    (gradient,) = torch.autograd.grad(following.sum(), x)
    assert gradient[1].isnan().all()
    assert gradient[good].isfinite().all()
    (record,) = caplog.records
    assert "failed for 1 of 5 rollouts" in record.getMessage()


def test_starting_states_come_from_the_generator_alone():
    env = make_env("julia:CartpoleSwingup")
    draw = lambda seed: env.reset(2000, torch.Generator().manual_seed(seed), torch.float64)
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.allclose(draw(3).mean(0), torch.tensor([0, math.pi, 0, 0], dtype=torch.float64), atol=1e-3)
    assert torch.allclose(draw(3).std(0), torch.full((4,), 0.01, dtype=torch.float64), rtol=0.1)


# One's own file


def test_ones_own_file_trains_evaluates_and_resumes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = {"updates": 6, "evaluation": {"episodes": 4, "every": 3}, "checkpoint_every": 2}
    settings = {"algorithm": {"batch": 32, "window": 4}, **short}
    run = diffsim.train(f"julia:{VAN_DER_POL}:VanDerPol", out="run", quiet=True, **settings)
    history = run.history()
    assert history["env_steps"][-1] == 6 * 32 * 4
    assert np.isfinite(history["loss"]).all()
    assert diffsim.evaluate("run", episodes=3).returns.shape == (3,)
    command = ["train", "--out", "again", f"julia:{os.path.relpath(VAN_DER_POL)}:VanDerPol", "--quiet"]
    for key, value in {
        "updates": 6,
        "algorithm.batch": 32,
        "algorithm.window": 4,
        "evaluation.episodes": 4,
    }.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run([sys.executable, "-m", "diffsim", *command, "--set", "evaluation.every=3"], check=True)
    # Not bit for bit: this process has other things loaded than that of the command.
    assert np.allclose(RunFile("again").history()["loss"], history["loss"], rtol=1e-5)


def step_once(name):
    env = make_env(name)
    return env.step(*sample(env))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("dx[1] = x[2]", "dx[1] = x[2", r"(?s)ParseError.*my_env.jl"),
        (
            "dx[1] = x[2]",
            "dx[1] = speed(x)",
            r"UndefVarError: `speed` not defined.*my_env.jl:25, in dynamics!",
        ),
        ("x[1]^2 + 0.1", "x[3]^2 + 0.1", r"BoundsError.*my_env.jl:29, in cost"),
        ("Parameter(:mu", "Parameter(:nu", r"parameters are \[:nu, :strength\]"),
    ],
)
def test_errors_in_julia_come_with_message_and_line(tmp_path, old, new, complaint):
    file = tmp_path / "my_env.jl"
    text = VAN_DER_POL.read_text()
    assert text.count(old) >= 1
    file.write_text(text.replace(old, new))
    with pytest.raises(JuliaError, match=complaint):
        step_once(f"julia:{file}:VanDerPol")
    with pytest.raises(ConfigError) as error:
        diffsim.train(f"julia:{file}:VanDerPol", out=tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value)


# Threads, processes, signals


def test_calls_from_other_threads_give_the_same():
    env = make_env("julia:Reactor")
    x, u, p = sample(env, 16)
    expected = env.step(x, u, p)[0]
    results, errors = [], []

    def work():
        try:
            for _ in range(10):
                y = x.clone().requires_grad_()
                following, cost = env.step(y, u, p)
                (following.sum() + cost.sum()).backward()
                results.append((env.step(x, u, p)[0], y.grad))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors
    assert len(results) == 40
    assert all(torch.equal(following, expected) for following, _ in results)
    assert all(torch.equal(gradient, results[0][1]) for _, gradient in results)


def test_simulating_lets_other_threads_run():
    env = make_env("julia:Reactor")
    x, u, p = sample(env, 4000)
    env.step(x[:2], u[:2], p)
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    begun = time.perf_counter()
    env.step(x.requires_grad_(), u, p)
    ended = time.perf_counter()
    stop.set()
    thread.join()
    # Under the GIL there would be none at all between the first and the last moment.
    assert sum(begun < t < ended for t in ticks) > 10


def test_environments_can_be_copied_and_sent_to_other_processes():
    env = make_env("julia:Pendulum", g=3.7)
    x, u, p = sample(env)
    expected = env.step(x, u, p)[0]
    for again in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert again.constants["g"].value == 3.7
        assert torch.equal(again.step(x, u, p)[0], expected)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert torch.equal(pool.apply(_one_step, (env, x, u)), expected)


def _one_step(env, x, u):
    return env.step(x, u, env.params(x))[0]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_told_what_to_do():
    env = make_env("julia:Pendulum")
    x, u, p = sample(env)
    env.step(x, u, p)
    with (
        multiprocessing.get_context("fork").Pool(1) as pool,
        pytest.raises(JuliaError, match="start method 'spawn'"),
    ):
        pool.apply(_one_step, (env, x, u))
    loader = torch.utils.data.DataLoader(_Steps(env, x, u), batch_size=None, num_workers=1)
    with pytest.raises(JuliaError, match="multiprocessing_context='spawn'"):
        next(iter(loader))
    loader = torch.utils.data.DataLoader(
        _Steps(env, x, u), batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )
    assert torch.equal(next(iter(loader)), env.step(x, u, p)[0])


class _Steps(torch.utils.data.Dataset):
    def __init__(self, *arguments):
        self.arguments = arguments

    def __len__(self):
        return 1

    def __getitem__(self, index):
        if index:
            raise IndexError
        return _one_step(*self.arguments)


@pytest.mark.parametrize("order", ["import torch, juliacall", "import juliacall, torch"])
def test_either_import_order(order):
    code = f"""
import os, warnings
os.environ["PYTHON_JULIACALL_HANDLE_SIGNALS"] = "yes"
warnings.simplefilter("ignore")
{order}
from robotics_envs import make_env
env = make_env("julia:Pendulum")
x = torch.zeros(300, 2, requires_grad=True)
env.step(x, torch.ones(300, 1), env.params(x))[0].sum().backward()
print(x.grad[0, 0].item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(1 + 0.05**2 * 15 + 0.05 * 15, rel=1e-6)
    assert done.stderr == ""


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_ctrl_c_leaves_a_checkpoint_that_resumes_bit_for_bit(tmp_path, threads):
    command = [
        *(sys.executable, "-m", "diffsim", "train", "julia:CartpoleSwingup", "--threads", str(threads)),
        *("--updates", "60", "--set", "algorithm.batch=64", "--set", "evaluation.every=0"),
        *("--set", "evaluation.episodes=1", "--set", "checkpoint_every=10"),
    ]
    env = {k: v for k, v in os.environ.items() if k != "PYTHON_JULIACALL_THREADS"}
    subprocess.run([*command, "--out", tmp_path / "whole", "--quiet"], check=True, env=env)
    process = subprocess.Popen(
        [*command, "--out", tmp_path / "cut"], stderr=subprocess.PIPE, text=True, env=env
    )
    file = tmp_path / "cut" / "run.h5"
    deadline = time.monotonic() + 120
    while not (file.exists() and len(RunFile(tmp_path / "cut").history()["update"])):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped after update" in said
    done = RunFile(tmp_path / "cut").history()["update"][-1]
    assert 10 <= done < 60
    subprocess.run(
        [sys.executable, "-m", "diffsim", "train", "--out", tmp_path / "cut", "--resume", "--quiet"],
        check=True,
        env=env,
    )
    whole, cut = (RunFile(tmp_path / name).history() for name in ("whole", "cut"))
    for column in ("loss", "grad_norm"):
        assert np.array_equal(whole[column], cut[column])


def test_ctrl_c_in_a_script_is_a_keyboard_interrupt():
    code = """
import os, signal, threading, torch
from robotics_envs import make_env
from robotics_envs.julia import start
assert start(2).threads == 2
env = make_env("julia:Reactor")
x = env.reset(512, torch.Generator())
u, p = torch.full((512, 1), 300.0), env.params(x)
threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    while True:
        env.step(x, u, p)
except KeyboardInterrupt:
    print("interrupted", env.step(x, u, p)[0].isfinite().all().item())
"""
    env = {k: v for k, v in os.environ.items() if k != "PYTHON_JULIACALL_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout == "interrupted True\n"


# Rollouts


def test_rollouts_take_one_pass_and_say_what_they_cannot(caplog):
    env = make_env("julia:Pendulum")
    rollout = Rollout(env, torch.nn.Linear(3, 1).double(), backend="native")
    x = sample(env)[0].requires_grad_()
    with caplog.at_level(logging.WARNING, logger="diffsim"):
        rollout(x, 5).costs.sum().backward()
    assert x.grad.isfinite().all()
    assert [r.getMessage() for r in caplog.records] == [
        "backend 'native' cannot compile julia:Pendulum, which is not computed in torch: eager"
    ]
    caplog.clear()
    Rollout(env, torch.nn.Linear(3, 1).double(), expected_steps=10**9)(x, 5).costs.sum().backward()
    assert not caplog.records


def stepwise(env, x, controls, p):
    states, costs = [x], []
    for u in controls:
        following, cost = env.step(states[-1], u, p)
        states.append(following)
        costs.append(cost)
    return torch.stack(states), torch.stack(costs)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "per rollout"])
@pytest.mark.parametrize("name", ["Pendulum", "CartpoleSwingup", "Reactor"])
def test_a_window_of_given_actions_is_its_intervals(name, own, monkeypatch):
    env, rng = make_env(f"julia:{name}"), torch.Generator().manual_seed(1)
    x = env.start_box.sample(5, rng, torch.float64).requires_grad_()
    u = torch.stack([env.action_box.sample(5, rng, torch.float64) for _ in range(7)]).requires_grad_()
    p = {key: (v.expand(5).clone() if own else v).requires_grad_() for key, v in env.params(x).items()}
    inputs = [x, u, *p.values()]
    states, costs = stepwise(env, x, u, p)
    loss = lambda states, costs: (states * (1 + states.detach().sin())).sum() + costs.square().sum()
    expected = torch.autograd.grad(loss(states, costs), inputs)
    rollout = Rollout(env)
    rollout(x, 7, p, controls=u)  # the first call looks at a step
    with monkeypatch.context() as patch:
        patch.setattr(type(env), "step", None)
        made = rollout(x, 7, p, controls=u)
    assert torch.equal(made.states, states)
    assert torch.equal(made.costs, costs)
    assert torch.equal(made.last, states[-1])
    for a, b in zip(torch.autograd.grad(loss(made.states, made.costs), inputs), expected, strict=True):
        assert relative(a, b) < 1e-10
    with torch.no_grad():
        plain = Rollout(env)(x, 7, p, controls=u, keep_states=False)
    assert plain.states is None
    assert relative(plain.last, made.last) < 1e-7
    assert relative(plain.costs, made.costs) < 1e-7


def test_a_window_whose_gradient_is_cut_goes_interval_by_interval():
    env, rng = make_env("julia:Pendulum"), torch.Generator().manual_seed(1)
    x = env.start_box.sample(5, rng, torch.float64).requires_grad_()
    u = torch.rand(6, 5, 1, generator=rng, dtype=torch.float64).requires_grad_()
    whole = Rollout(env)(x, 6, controls=u)
    cut = Rollout(env)(x, 6, controls=u, truncate=2)
    assert torch.equal(cut.states, whole.states)
    (gradient,) = torch.autograd.grad(cut.last.sum(), x, allow_unused=True)
    assert gradient is None or not gradient.any()
    assert torch.autograd.grad(whole.last.sum(), x)[0].any()
    x = x.detach().clone()
    x[1] = math.nan
    marked = Rollout(env, on_failure="mark")(x.requires_grad_(), 6, controls=u)
    assert marked.ok.tolist() == [True, False, True, True, True]
    (gradient,) = torch.autograd.grad(marked.costs[:, marked.ok].sum(), x)
    assert gradient.isfinite().all()


def test_a_population_is_its_members():
    env = make_env("julia:Pendulum")
    policy = torch.nn.Linear(3, 1).double()
    rng = torch.Generator().manual_seed(0)
    stacked = {
        n: torch.randn(4, *q.shape, generator=rng, dtype=torch.float64) for n, q in policy.named_parameters()
    }
    x = sample(env)[0]
    costs = Rollout(env, policy).population(stacked, x, 20)
    for k in range(4):
        member = torch.func.functional_call
        own = Rollout(env, _With(policy, {n: v[k] for n, v in stacked.items()}, member))(x, 20).costs.sum(0)
        assert torch.allclose(own, costs[k], rtol=1e-12)


class _With(torch.nn.Module):
    def __init__(self, policy, values, call):
        super().__init__()
        self.parts = (policy, values, call)

    def forward(self, observation):
        policy, values, call = self.parts
        return call(policy, values, observation)


def test_starting_again_changes_nothing():
    first = start()
    assert start(7) is first
