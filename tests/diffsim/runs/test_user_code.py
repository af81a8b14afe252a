"""Mistakes in a user's file are answered by one line with file, line and the names that exist."""

import re

import pytest
from click.testing import CliRunner

from diffsim.cli import main
from robotics_envs import check_env
from robotics_envs.conformance import ConformanceError
from robotics_envs.user_code import UserCodeError, construct_env, describe_failure

FILE = """
import torch
from robotics_envs.base import Box, Env, Parameter
from solvers import make_solver


class Mine(Env):
    name = "mine"
    state_names = ["angle", "rate"]
    observation_names = ["angle", "rate"]
    parameters = [Parameter("length", 1.0, "m", low=0.0), Parameter("g", 9.81, "m/s²")]
    action_box = Box.symmetric(1.0)
    start_box = state_box = Box.symmetric(1.0, 1.0)
    dt, episode_steps = 0.1, 10
    solver = make_solver("rk4")
    weight = 2.0

    def dynamics(self, t, x, u, p):
        return torch.stack((x[..., 1], u[..., 0] - p["g"] * torch.sin(x[..., 0]) / p["length"]), -1)

    def cost(self, x, u, p):
        return x[..., 0] ** 2
"""

CASES = {
    "key": (
        """
    def cost(self, x, u, p):
        return p["lenght"] * x[..., 0] ** 2""",
        r"my_env\.py:26, in cost: p has no 'lenght'; did you mean 'length'\? known: g, length",
    ),
    "key of another dict": (
        """
    def observe(self, x):
        gains = {"first": 1.0, "second": 2.0}
        return x * gains["frist"]""",
        r"my_env\.py:27, in observe: gains has no 'frist'; did you mean 'first'\? known: first, second",
    ),
    "attribute": (
        """
    def cost(self, x, u, p):
        return self.wieght * x[..., 0] ** 2""",
        r"my_env\.py:26, in cost: Changed has no attribute 'wieght'; did you mean 'weight'\? known: .*weight",
    ),
    "name": (
        """
    def observe(self, x):
        return troch.cat([x])""",
        r"my_env\.py:26, in observe: the name 'troch' is not defined; did you mean 'torch'\?",
    ),
    "shapes inside": (
        """
    def cost(self, x, u, p):
        return (x @ torch.ones(3, 3, dtype=x.dtype)).sum(-1)""",
        r"my_env\.py:26, in cost: RuntimeError: .*5x2 and 3x3",
    ),
    "shape returned": (
        """
    def cost(self, x, u, p):
        return x[..., :1]""",
        r"cost returned the shape \[5, 1\], needed \[B\] = \[5\] \(.*my_env\.py:25\)",
    ),
    "observation returned": (
        """
    def observe(self, x):
        return x[..., :1]""",
        r"observe has 1 components, the names 2 \(angle, rate\) \(.*my_env\.py:25\)",
    ),
    "constructor": (
        """
    def __init__(self, mass):
        super().__init__()""",
        r"my_env\.py:25, in Changed\(mass\): called with \(\): .*missing 1 required positional argument: 'mass'",
    ),
    "inside the constructor": (
        """
    def __init__(self, **given):
        super().__init__(**given)
        self.mass = given["mass"]""",
        r"my_env\.py:27, in __init__: given has no 'mass'; known: \(none\)",
    ),
    "parameter of the constructor": (
        """
    def __init__(self):
        super().__init__(lenght=2.0)""",
        r"my_env\.py:26, in __init__: unknown parameter of mine 'lenght'; did you mean 'length'\?",
    ),
}


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    method, message = CASES[request.param]
    path = tmp_path / "my_env.py"
    path.write_text(f"{FILE.lstrip()}\n\nclass Changed(Mine):{method}\n")
    return f"{path}:Changed", message


def test_check_env_answers_in_one_line(case):
    name, message = case
    with pytest.raises(ConformanceError) as caught:
        check_env(name)
    text = str(caught.value)
    assert re.search(message, text)
    assert len(text.splitlines()) <= 6
    assert "Traceback" not in text


def test_the_command_prints_the_same(case):
    name, message = case
    done = CliRunner(catch_exceptions=False).invoke(main, ["check", name])
    assert done.exit_code != 0
    text = done.output + str(done.exception or "")
    assert re.search(message, text)


def test_a_file_without_a_mistake_passes(tmp_path):
    path = tmp_path / "my_env.py"
    path.write_text(FILE)
    check_env(f"{path}:Mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nclass Mine(:\n", r"my_env\.py:2: SyntaxError"),
        ("import nowhere_at_all\n", r"my_env\.py:1, in <module>: ModuleNotFoundError: .*nowhere_at_all"),
        ("a = 1\nb = aa\n", r"my_env\.py:2, in <module>: the name 'aa' is not defined"),
    ],
)
def test_a_file_that_cannot_be_loaded(tmp_path, text, message):
    path = tmp_path / "my_env.py"
    path.write_text(text)
    with pytest.raises(UserCodeError, match=message):
        construct_env(f"{path}:Mine")


def test_mistakes_that_are_not_the_users_code_keep_their_class():
    with pytest.raises(ValueError, match="unknown parameter of pendulum 'mass'; known: g, l, m"):
        construct_env("pendulum", mass=1.0)
    with pytest.raises(ValueError, match="unknown environment 'pendlum'; did you mean 'pendulum'"):
        construct_env("pendlum")
    with pytest.raises(ValueError, match="outside its range"):
        construct_env("pendulum", m=-1.0)
    with pytest.raises(TypeError, match="a simulator is a name, a subclass"):
        construct_env(dict)


def test_an_error_without_users_code_has_no_line():
    with pytest.raises(RuntimeError) as caught:
        raise_in_torch()
    assert "in raise_in_torch: RuntimeError" in describe_failure(caught.value)
    assert describe_failure(ValueError("never raised")) is None


def raise_in_torch():
    import torch

    torch.ones(2, 3) @ torch.ones(2, 3)
