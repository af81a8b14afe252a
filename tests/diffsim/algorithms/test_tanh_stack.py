"""Compiled stacks of linear layers and tanh, against torch."""

import copy
import itertools
from types import SimpleNamespace

import pytest
import torch
from same_state import same
from torch import nn

from diffsim.algorithms import kernels
from diffsim.algorithms.costate_critic import CostateCritic, Rows, bounded, sobolev_gradient
from diffsim.algorithms.tanh_stack import Minibatches, Scaling, TanhStack, pulled
from diffsim.policy import MLP, initialised
from solvers.compiler.trace import NativeUnsupportedError
from solvers.native import build

try:
    build._toolchain()
except NativeUnsupportedError:
    pytest.skip("no C++ compiler", allow_module_level=True)

TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-4}
SHAPES = [(), (1,), (5,), (17, 6), (64, 64), (3, 70, 9, 33)]


def random_network(hidden, inputs=3, outputs=1, dtype=torch.float64):
    network = initialised(lambda: MLP(inputs, outputs, hidden), seed=0).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for q in network.parameters():
            q.copy_(torch.randn(q.shape, generator=generator, dtype=dtype) / max(q.shape) ** 0.5)
    return network


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def minibatches(rows, starts, inputs, states, batches=3, dtype=torch.float64):
    """Of some of 200 rows and 150 starts."""
    generator = torch.Generator().manual_seed(9)

    def which(number, count):
        return torch.stack([torch.randperm(number, generator=generator)[:count] for _ in range(batches)])

    def parts(tensor):
        """Three, one of which is empty."""
        return tensor[:60], tensor[60:60], tensor[60:]

    return Minibatches(
        parts(draw(200, inputs, dtype=dtype)),
        parts(3.0 + 5.0 * draw(200, seed=1, dtype=dtype)),
        parts(draw(150, inputs, seed=2, dtype=dtype)),
        parts(3.0 + 5.0 * draw(150, seed=5, dtype=dtype)),
        parts(40.0 * draw(150, states, seed=4, dtype=dtype) * draw(150, 1, seed=6, dtype=dtype).exp()),
        parts(draw(150, inputs, states, seed=3, dtype=dtype)),
        which(200, rows),
        which(150, starts),
    )


def scaling(dtype=torch.float64, mean=1.5, scale=4.0, fitted=True):
    numbers = (mean, scale, -torch.inf, torch.inf, torch.inf, -torch.inf)
    return Scaling(*(torch.tensor(q, dtype=dtype) for q in numbers), 12.0, 0.25, fitted, 0.3, 1.5)


def eager_gradient(network, d, q, batch=0):
    z, targets, starts, costs, costates, jacobians = map(torch.cat, d[:6])
    y = torch.asinh((targets - q.mean) / q.scale)
    slopes = costates / (q.scale * (1 + ((costs - q.mean) / q.scale) ** 2).sqrt()).unsqueeze(-1)
    weights = q.costate_weight * bounded(slopes.norm(dim=1), q.costate_bound) ** 2
    i, j = d.which[batch], d.which_starts[batch]
    return sobolev_gradient(network, z[i], y[i].unsqueeze(-1), starts[j], jacobians[j], slopes[j], weights[j])


def assert_close(found, expected, dtype):
    for ours, theirs in zip(found, expected, strict=True):
        scale = float(theirs.abs().max()) if theirs.numel() else 0.0
        assert torch.allclose(ours, theirs, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype] * max(scale, 1e-2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("hidden", SHAPES)
def test_results_and_their_gradient_are_torchs(hidden, dtype):
    for inputs, outputs, rows in ((3, 1, 1), (19, 5, 67), (70, 2, 130)):
        network = random_network(hidden, inputs, outputs, dtype)
        z, by = draw(rows, inputs, dtype=dtype), draw(rows, outputs, seed=1, dtype=dtype)
        stack = TanhStack.of(network, "native")
        expected = network(z)
        assert_close([stack(z)], [expected.detach()], dtype)
        parameters = list(network.parameters())
        assert_close(stack.pull(z, by), torch.autograd.grad((expected * by).sum(), parameters), dtype)


def test_a_gradient_by_parameters_is_the_same_for_compiled_and_eager_networks():
    network = random_network((6,), inputs=4, outputs=2)
    parameters, z, by = list(network.parameters()), draw(5, 7, 4), draw(2, 7, 5).permute(2, 1, 0)
    expected = torch.autograd.grad((network(z) * by).sum(), parameters)
    for backend in ("native", "eager"):
        assert_close(pulled(network, parameters, z, by, backend), expected, torch.float64)
    # Parameters in another order, or some of them: never the compiled one's list.
    some = [parameters[2], parameters[0]]
    assert_close(pulled(network, some, z, by, "native"), [expected[2], expected[0]], torch.float64)
    assert pulled(torch.nn.Identity(), parameters, z[..., :2], by, "native") == [None] * 4
    with pytest.raises(ValueError, match=r"by_results \[35, 4\] .* returns \[35, 2\]"):
        TanhStack.of(network, "native").pull(z, z)


def test_results_of_any_leading_shape_and_stride():
    network = random_network((6,), inputs=4)
    stack = TanhStack.of(network, "native")
    z = draw(4, 7, 5).permute(2, 1, 0)
    assert torch.allclose(stack(z), network(z), rtol=1e-12)
    assert stack(draw(0, 4)).shape == (0, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("hidden", SHAPES)
@pytest.mark.parametrize(
    ("rows", "starts", "inputs", "states"), [(64, 64, 3, 2), (1, 1, 1, 1), (33, 100, 20, 17), (70, 0, 5, 4)]
)
def test_the_gradient_of_a_minibatch_is_the_eager_one(hidden, rows, starts, inputs, states, dtype):
    network = random_network(hidden, inputs, dtype=dtype)
    data = minibatches(rows, starts, inputs, states, dtype=dtype)
    found = TanhStack.of(network, "native").gradient(data, scaling(dtype))
    assert_close(found, eager_gradient(network, data, scaling(dtype)), dtype)


def test_costates_of_zero_leave_the_others_their_weights():
    """The median is that of the others; where all are zero, nothing is bounded."""
    network, data = random_network((6,), 5), minibatches(8, 100, 5, 4)
    for share in (2, 1):
        costates = [q.clone() for q in data.costates]
        for q in costates:
            q[::share] = 0.0
        given = data._replace(costates=costates)
        found = TanhStack.of(network, "native").gradient(given, scaling())
        assert_close(found, eager_gradient(network, given, scaling()), torch.float64)


@pytest.mark.parametrize("tau", [0.2, 0.7, 1.0])
def test_a_fit_takes_the_steps_of_torchs_adam(tau):
    data = minibatches(33, 40, 5, 4, batches=6)
    ours, theirs = random_network((17, 6), 5), random_network((17, 6), 5)
    results = []
    for network, compiled in ((ours, True), (theirs, False)):
        parameters = list(network.parameters())
        optimizer = torch.optim.Adam(parameters, lr=1e-2, betas=(0.7, 0.95), fused=True)
        target = [q.detach() + 1.0 for q in parameters]
        for _ in range(3):
            if compiled:
                TanhStack.of(network, "native").fit(data, scaling(), optimizer, target, tau)
                continue
            for batch in range(6):
                for q, g in zip(parameters, eager_gradient(network, data, scaling(), batch), strict=True):
                    q.grad = g
                optimizer.step()
            torch._foreach_lerp_(target, [q.detach() for q in parameters], tau)
        results.append((network.state_dict(), optimizer.state_dict(), target))
    (net, adam, target), (net_eager, adam_eager, target_eager) = results
    assert_close(net.values(), net_eager.values(), torch.float64)
    assert_close(target, target_eager, torch.float64)
    assert adam["state"].keys() == adam_eager["state"].keys()
    for k, state in adam["state"].items():
        assert state.keys() == adam_eager["state"][k].keys()
        for name, value in state.items():
            assert value.dtype == adam_eager["state"][k][name].dtype
        assert_close(state.values(), adam_eager["state"][k].values(), torch.float64)


def test_writing_is_seen_by_autograd():
    network = random_network((5,), 5)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    graph = network(draw(3, 5)).square().sum()
    target = [q.detach().clone() for q in network.parameters()]
    TanhStack.of(network, "native").fit(minibatches(4, 4, 5, 4), scaling(), optimizer, target, 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        graph.backward()


def critic_of(backend, hidden=(16, 16), dtype=torch.float64):
    network = initialised(lambda: MLP(3, 1, hidden), seed=0).to(dtype)
    return CostateCritic(network, 1e-2, (0.7, 0.95), 0.2, 0.5, 0.3, 3.0, backend)


def rows(number=40, starts=12, dtype=torch.float64):
    return Rows(
        *(
            draw(number, 3, dtype=dtype),
            draw(number, seed=1, dtype=dtype),
            draw(starts, 3, seed=2, dtype=dtype),
        ),
        *(draw(starts, seed=3, dtype=dtype), 5 * draw(starts, 4, seed=4, dtype=dtype)),
        draw(starts, 3, 4, seed=5, dtype=dtype),
    )


def train(critic, generator, updates, data=None, batch_size=16):
    data = rows(dtype=critic.target.mean.dtype) if data is None else data
    for k in range(updates):
        critic.renormalise(data.targets, data.targets, 0.9)
        critic.fit([data, data], 5, batch_size, 1 - k / 10, generator)


@pytest.mark.parametrize("hidden", [(), (64, 64), (5, 6, 7)])
@pytest.mark.parametrize("starts", [12, 0])
def test_critics_agree_after_several_updates_and_draw_the_same_numbers(hidden, starts):
    critics = [critic_of(backend, hidden) for backend in ("native", "eager")]
    generators = [torch.Generator().manual_seed(3) for _ in critics]
    for critic, generator in zip(critics, generators, strict=True):
        train(critic, generator, 6, rows(starts=starts))
    for network in (lambda c: c.network, lambda c: c.target.network):
        ours, theirs = (network(c).state_dict() for c in critics)
        for name, value in ours.items():
            assert torch.allclose(value, theirs[name], rtol=1e-10, atol=1e-12)
    assert torch.equal(*(g.get_state() for g in generators))
    z = draw(30, 3)
    assert torch.allclose(*(c.values(z) for c in critics), rtol=1e-9)


def windows_of(steps, batch, dtype, ends=False):
    """Arguments of CostateCritic.targets, of simulators whose episodes end or do not."""
    goes_on = (draw(steps, batch, seed=3) > -1.0).to(dtype) if ends else None
    costs, typical = 3.0 * draw(steps, batch, seed=2, dtype=dtype), draw(steps, batch, seed=4) > -0.5
    return draw(steps + 1, batch, 3, seed=1, dtype=dtype), costs, goes_on, typical, 0.9, 0.8


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("steps", "batch", "ends"), [(1, 1, False), (5, 13, True), (16, 70, False)])
def test_targets_and_the_scale_that_follows_them_are_the_eager_ones(steps, batch, ends, dtype):
    critics = [critic_of(backend, dtype=dtype) for backend in ("native", "eager")]
    for k in range(3):
        given = windows_of(steps, batch, dtype, ends)
        if k == 2:
            given[3][:] = False  # no cost is typical: all count
        assert_close(*([c.targets(*given)] for c in critics), dtype)
        ours, theirs = (c.state_dict() for c in critics)
        for name in ("mean", "scale", "low", "high", "least", "largest"):
            assert_close([ours[name]], [theirs[name]], dtype)
        assert ours["fitted"] is theirs["fitted"] is True
        for critic in critics:
            critic.fit([rows(dtype=dtype)], 2, 16, 1.0, torch.Generator().manual_seed(k))


def test_a_target_that_is_not_a_number_gives_no_order():
    critics = [critic_of(backend) for backend in ("native", "eager")]
    given = windows_of(4, 9, torch.float64)
    given[1][2, 3] = torch.nan
    ours, theirs = (c.targets(*given) for c in critics)
    assert torch.equal(ours.isnan(), theirs.isnan())
    for c in critics:
        assert c.target.mean.isnan()
        assert c.target.scale == 1.0


def test_targets_are_written_where_autograd_sees_it():
    critic = critic_of("native")
    z = draw(4, 3).requires_grad_()
    value = critic.values(z).sum()
    critic.targets(*windows_of(4, 9, torch.float64))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_values_are_differentiable_where_that_is_asked_for():
    critic = critic_of("native")
    train(critic, torch.Generator().manual_seed(0), 1)
    z = draw(4, 3).requires_grad_()
    (slope,) = torch.autograd.grad(critic.values(z).sum(), z)
    assert slope.abs().sum() > 0
    assert torch.allclose(critic.values(z.detach()), critic.values(z).detach(), rtol=1e-12)


@pytest.mark.parametrize("first", ["native", "eager"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_resuming_changes_no_bit_and_either_path_continues_the_other(first, dtype):
    straight, stopped, resumed = critic_of("native", dtype=dtype), critic_of(first, dtype=dtype), None
    generator = torch.Generator().manual_seed(0)
    train(straight, generator, 4)
    generator = torch.Generator().manual_seed(0)
    train(stopped, generator, 2)
    resumed = critic_of("native", (16, 16), dtype)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    data = rows(dtype=dtype)
    for k in (2, 3):
        resumed.renormalise(data.targets, data.targets, 0.9)
        resumed.fit([data, data], 5, 16, 1 - k / 10, generator)
    if first == "native":
        assert same(straight.state_dict(), resumed.state_dict())
    else:
        pairs = zip(straight.network.parameters(), resumed.network.parameters(), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs)


def test_threads_change_no_bit():
    states = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            critic = critic_of("native", (64, 64), torch.float32)
            train(critic, torch.Generator().manual_seed(0), 3, batch_size=64)
            states.append(critic.state_dict())
        finally:
            torch.set_num_threads(before)
    assert same(*states)


def test_the_back_end_decides(monkeypatch):
    network = random_network((5,))
    assert TanhStack.of(network, "auto") is not None
    assert TanhStack.of(network, "native") is not None
    assert TanhStack.of(network, "eager") is None
    assert TanhStack.of(network, "inductor") is None
    monkeypatch.setattr(TanhStack, "fit", None)  # would fail if it were called
    train(critic_of("eager"), torch.Generator().manual_seed(0), 1)


class Shifted(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1.0


def with_hook(network):
    network[0].register_forward_hook(lambda module, given, result: result + 1.0)
    return network


def with_own_forward(network):
    network[1].forward = torch.sin
    return network


def parametrized(network):
    nn.utils.parametrizations.orthogonal(network[0])
    return network


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)),
        nn.Sequential(nn.Linear(3, 4), nn.Tanh()),
        nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 1)),
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)),
        nn.Sequential(Shifted(3, 4), nn.Tanh(), nn.Linear(4, 1)),
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(5, 1)),
        nn.Sequential(),
        nn.Linear(3, 1),
        MLP(3, 1).to(torch.bfloat16),
        MLP(3, 1).to("meta"),
        with_hook(MLP(3, 1)),
        with_own_forward(MLP(3, 1)),
        parametrized(MLP(3, 1)),
    ],
)
def test_other_networks_are_left_to_torch(network):
    assert TanhStack.of(network, "native") is None


def test_a_network_that_changes_is_read_anew():
    """Its widths, its dtype and its layers: nothing is kept from an earlier use."""
    network, z = random_network((5, 6)), draw(9, 3)
    assert torch.allclose(TanhStack.of(network, "native")(z), network(z))
    network[2], network[4] = (random_network((), *sizes)[0] for sizes in ((5, 8), (8, 2)))
    assert torch.allclose(TanhStack.of(network, "native")(z), network(z))
    network.float()
    assert torch.allclose(
        TanhStack.of(network, "native")(z.float()), network(z.float()), rtol=1e-4, atol=1e-5
    )
    network[4].register_forward_hook(lambda module, given, result: result + 1.0)
    assert TanhStack.of(network, "native") is None


def test_rows_of_another_kind_are_refused():
    stack = TanhStack.of(random_network((5,)), "native")
    with pytest.raises(ValueError, match=r"the network takes \[N, 3\] of torch.float64"):
        stack(draw(4, 2))
    with pytest.raises(ValueError, match=r"rows \[4, 3\] of torch.float32"):
        stack(draw(4, 3).float())


def test_compiling_is_counted_once(monkeypatch):
    monkeypatch.setattr(kernels, "_seconds", {})
    ticks = itertools.count()
    monkeypatch.setattr(kernels, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    network = random_network((5,))
    for _ in range(3):
        assert TanhStack.of(network, "native") is not None
    assert kernels.compile_seconds() == 1.0


def test_a_compiler_that_fails_is_asked_once_and_torch_computes(monkeypatch, caplog):
    calls = []

    def fails(source):
        calls.append(source)
        raise NativeUnsupportedError("out of memory")

    monkeypatch.setattr(build, "load", fails)
    monkeypatch.setattr(kernels, "_failed", set())
    network = random_network((5,))
    assert TanhStack.of(network, "auto") is None
    assert TanhStack.of(network, "auto") is None
    assert len(calls) == 1
    assert "networks are not compiled, torch computes them: out of memory" in caplog.text
