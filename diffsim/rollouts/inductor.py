"""``backend="inductor"``: the step and its vector-Jacobian product by TorchInductor, for any module and device.

Both are traced to ATen operations (``make_fx``) and compiled without Dynamo; Python loops over control intervals.
States are kept as ``[n, B]``, so that generated loops run over rollouts.  Every batch size is compiled separately.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffsim.rollouts.inputs import Inputs, UnsupportedError
from diffsim.rollouts.stepwise import Stepwise, at_interval, gradients_of

Function = Callable[..., Any]


def rational_tanh(x: Tensor) -> Tensor:
    """tanh by the rational function of ``solvers/native/vectors.h``; for float32, relative error below 4e-7."""
    x = torch.clamp(x, -9.0, 9.0)
    z = x * x
    p = 1.0 + z * (
        0.13381017744541168
        + z * (0.0034955779556185007 + z * (2.0608913473552093e-05 + z * 1.3354429562184578e-08))
    )
    q = 1.0 + z * (
        0.46714332699775696
        + z * (0.02587694302201271 + z * (0.0003285618149675429 + z * 7.776462780384463e-07))
    )
    return x * p / q


class _Step(nn.Module):
    """A function of tensors and of the parameters of modules."""

    def __init__(self, modules: Sequence[nn.Module], function: Function) -> None:
        super().__init__()
        self.held = nn.ModuleList(modules)
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


class Inductor(Stepwise):
    """Compiled steps, one pair of functions (step and vjp) per batch size."""

    compiled = True
    any_batch = False

    @classmethod
    def prepare(cls, inputs: Inputs, gradient: bool) -> Inductor:
        engine = cls(gradient)
        engine._compiled(inputs)
        return engine

    def __init__(self, gradient: bool) -> None:
        self.gradient = gradient
        self._functions: dict[int, tuple[Function, Function | None]] = {}

    def _compiled(self, inputs: Inputs) -> tuple[Function, Function | None]:
        batch = len(inputs.x0)
        if batch not in self._functions:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # raised inside torch
                    with torch.inference_mode(False), _put_back(inputs.modules):
                        self._functions[batch] = _compile(inputs, self.gradient)
            except Exception as error:  # compiler failures have many classes
                raise UnsupportedError(f"TorchInductor: {type(error).__name__}: {error}") from error
        return self._functions[batch]

    def step(self, inputs: Inputs, t: int, x: Tensor) -> tuple[Tensor, Tensor]:
        following, cost = self._compiled(inputs)[0](x.t(), *_others(inputs, t).values())
        return following.t(), cost

    def pull(self, inputs: Inputs, t: int, x: Tensor, by_next: Tensor, by_cost: Tensor) -> dict[Any, Tensor]:
        function = self._compiled(inputs)[1]
        assert function is not None
        others = _others(inputs, t)
        results = function(by_next.t(), by_cost, x.t(), *others.values())
        names = ["x0", *(name for name, value in others.items() if value.requires_grad)]
        pulled = dict(zip(names, results, strict=True))
        pulled["x0"] = pulled["x0"].t()
        return pulled


@contextlib.contextmanager
def _put_back(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Restores the parameters of modules, which tracing a functional call may replace."""
    own = [(q, dict(q._parameters)) for module in modules for q in module.modules()]
    try:
        yield
    finally:
        for module, parameters in own:
            module._parameters.update(parameters)


def _others(inputs: Inputs, t: int) -> dict[Any, Tensor]:
    """The inputs of a step other than the state, by the names of ``Inputs.named``, in the order of the arguments."""
    others = {k: v for k, v in inputs.named().items() if k not in ("x0", "noise", "controls")}
    timed = {"noise": inputs.noise_at(t), "controls": None if inputs.controls is None else inputs.controls[t]}
    for name, value in timed.items():
        if value is not None:
            given = getattr(inputs, name)
            others[name] = value.detach().requires_grad_(isinstance(given, Tensor) and given.requires_grad)
    return others


def _compile(inputs: Inputs, gradient: bool) -> tuple[Function, Function | None]:
    from torch._inductor import compile as compile_graph
    from torch.fx.experimental.proxy_tensor import make_fx

    others = _others(inputs, 0)
    module = _Step(inputs.modules, lambda *args: None)
    names = {id(q): name for name, q in module.named_parameters()}

    def moved(x: Tensor, tensors: Sequence[Tensor], grad: bool) -> tuple[Inputs, dict[Any, Tensor]]:
        """The inputs of one interval with these tensors, and the parameters by name."""
        given = dict(zip(others, tensors, strict=True))
        wanted = {k: v.detach().requires_grad_(grad and others[k].requires_grad) for k, v in given.items()}
        one = at_interval(inputs, 0, x) if grad else replace(inputs, x0=x)
        return replace(
            one,
            p={k: wanted["p", k] for k in inputs.p},
            **{k: wanted[k].unsqueeze(0) for k in ("noise", "controls") if k in wanted},
        ), wanted

    def run(one: Inputs, wanted: dict[Any, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        module.function = lambda state: Stepwise.step(Stepwise(), one, 0, state)
        parameters = {names[k]: v for k, v in wanted.items() if k in names}
        return torch.func.functional_call(module, parameters, (x,))

    def components(x: Tensor) -> Tensor:
        return torch.stack(x.unbind(-1))  # [n, B], contiguous

    def step(x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            following, cost = run(*moved(x.t(), tensors, False), x.t())
        return components(following), cost

    def vjp(by_next: Tensor, by_cost: Tensor, x: Tensor, *tensors: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            state = x.t().detach().requires_grad_()
            one, wanted = moved(state, tensors, True)
            results = run(one, wanted, state)
            leaves = {"x0": state, **{k: v for k, v in wanted.items() if v.requires_grad}}
            found = gradients_of(leaves, list(results), [by_next.t(), by_cost])
        by = [found.get(k, torch.zeros_like(v)) for k, v in leaves.items()]
        return [components(by[0]), *by[1:]]

    float32 = inputs.x0.dtype == torch.float32
    table = {torch.ops.aten.tanh.default: rational_tanh} if float32 else {}
    x = inputs.x0.detach().t().contiguous()
    # Clones, because the tracer would merge equal tensors.
    tensors = [v.detach().clone(memory_format=torch.contiguous_format) for v in others.values()]
    arguments = [torch.zeros_like(x), torch.zeros_like(x[0]), x, *tensors]
    compiled: list[Function | None] = []
    for function, examples in ((step, arguments[2:]), (vjp, arguments)):
        if function is vjp and not gradient:
            compiled.append(None)
            continue
        graph = make_fx(function, decomposition_table=table)(*examples)
        with torch.no_grad():
            compiled.append(_detached(compile_graph(graph, list(examples))))
    assert compiled[0] is not None
    return compiled[0], compiled[1]


def _detached(function: Function) -> Function:
    def call(*tensors: Tensor) -> Any:
        with torch.no_grad():
            return function(*(q.detach().contiguous() for q in tensors))  # as the examples were

    return call
