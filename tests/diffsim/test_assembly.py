"""What a configuration names is made once, whoever uses it: training, resuming, evaluating, rendering."""

import collections

import pytest
import torch

import diffsim
from diffsim import RunFile
from diffsim.algorithms.full_horizon import FullHorizon, FullHorizonSettings
from diffsim.algorithms.short_window import ShortWindow, ShortWindowSettings
from diffsim.assembly import assemble
from diffsim.cli import main
from diffsim.config import load_config
from diffsim.errors import ConfigError, TrustError
from diffsim.optimizers.first_order import Adam, AdamSettings
from diffsim.runs import run as run_module
from robotics_envs.simulators.pendulum import Pendulum

COUNTS: collections.Counter[str] = collections.Counter()


class CountedSimulator(Pendulum):
    episode_steps = 8

    def __init__(self, **parameters):
        COUNTS["simulator"] += 1
        super().__init__(**parameters)


class CountedWindowSettings(ShortWindowSettings):
    def __init__(self, **values):
        COUNTS["algorithm"] += 1
        super().__init__(**values)


class CountedWindow(ShortWindow):
    Settings = CountedWindowSettings


class CountedAdamSettings(AdamSettings):
    def __init__(self, **values):
        COUNTS["optimizer"] += 1
        super().__init__(**values)


class CountedAdam(Adam):
    Settings = CountedAdamSettings

    def __init__(self, parameters, settings, seed=0):
        COUNTS["optimizers made"] += 1
        super().__init__(parameters, settings, seed)


class CountedNetwork(torch.nn.Linear):
    def __init__(self, inputs, outputs):
        COUNTS["network"] += 1
        super().__init__(inputs, outputs)


def named(cls):
    return f"test_assembly:{cls.__name__}"


COUNTED = {
    "env": named(CountedSimulator),
    "policy": named(CountedNetwork),
    "algorithm": {"name": named(CountedWindow), "batch": 4},
    "optimizer": named(CountedAdam),
    "backend": "eager",
    "evaluation": {"episodes": 2},
}
ONCE = {"simulator": 1, "algorithm": 1, "optimizer": 1, "optimizers made": 1, "network": 1}


@pytest.fixture(autouse=True)
def counts():
    COUNTS.clear()
    return COUNTS


@pytest.fixture
def run(tmp_path):
    file = diffsim.train(out=tmp_path / "run", updates=2, quiet=True, **COUNTED)
    COUNTS.clear()
    return file


def test_training_makes_every_part_once_and_validates_every_section_once(tmp_path):
    diffsim.train(out=tmp_path / "run", updates=2, quiet=True, **COUNTED)
    assert COUNTS == ONCE


def test_the_command_makes_every_part_once(tmp_path):
    assignments = {"policy": COUNTED["policy"], "backend": "eager", "evaluation.episodes": 2}
    assignments |= {"algorithm.name": named(CountedWindow), "algorithm.batch": 4}
    arguments = [
        "train",
        named(CountedSimulator),
        "--out",
        str(tmp_path / "run"),
        "--updates",
        "2",
        "--quiet",
    ]
    arguments += ["--optimizer", named(CountedAdam)]
    for key, value in assignments.items():
        arguments += ["--set", f"{key}={value}"]
    main(arguments, standalone_mode=False)
    assert COUNTS == ONCE


@pytest.mark.parametrize("repeated", [{}, COUNTED], ids=["", "with its settings given again"])
def test_resuming_makes_every_part_once(run, repeated):
    diffsim.train(out=run.folder, resume=True, updates=4, quiet=True, **repeated)
    assert COUNTS == ONCE
    assert len(run.history()["update"]) == 4


def test_evaluating_makes_simulator_and_policy_once_and_nothing_else(run):
    diffsim.evaluate(run, episodes=2)
    assert COUNTS == {"simulator": 1, "network": 1}


def test_loading_a_policy_makes_simulator_and_policy_once_and_nothing_else(run):
    diffsim.load_policy(run)
    assert COUNTS == {"simulator": 1, "network": 1}


def test_rendering_makes_simulator_and_policy_once_and_nothing_else(run, tmp_path):
    diffsim.render(run, out=tmp_path, formats="html", rollouts=1, steps=2, quiet=True)
    assert COUNTS == {"simulator": 1, "network": 1}


def test_rendering_a_simulator_makes_it_once(tmp_path):
    diffsim.render(CountedSimulator, out=tmp_path, formats="html", rollouts=1, steps=2, quiet=True)
    assert COUNTS == {"simulator": 1}


def test_optimizers_inside_of_one_are_validated_once(tmp_path):
    parts = {"first": named(CountedAdam), "then": named(CountedAdam), "at": 0.5}
    optimizer = {"name": "hand_over", **parts}
    diffsim.train(out=tmp_path / "run", updates=4, quiet=True, **{**COUNTED, "optimizer": optimizer})
    assert COUNTS["optimizer"] == 2


def test_why_training_diverged_is_said_without_making_anything_again(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "MAX_DROPPED_IN_A_ROW", 2)
    monkeypatch.setattr(CountedSimulator, "cost", lambda self, x, u, p: x[:, 0] / 0.0)
    with pytest.raises(diffsim.DivergenceError, match=r"smaller optimizer\.lr"):
        diffsim.train(out=tmp_path / "run", updates=4, quiet=True, **COUNTED)
    assert COUNTS == ONCE


def test_parts_of_an_assembly_belong_together():
    assembly = assemble(load_config({"env": "pendulum", "optimizer": {"lr": 0.25}}))
    algorithm = assembly.algorithm
    assert algorithm.env is assembly.env
    assert algorithm.policy is assembly.policy
    assert algorithm.optimizer is assembly.optimizer
    assert algorithm.settings is assembly.algorithm_settings
    assert algorithm.optimizer.settings.lr == assembly.config.optimizer.options["lr"] == 0.25
    assert assembly.config.algorithm.options["window"] == 8
    with pytest.raises(AttributeError):
        assembly.given = load_config({"env": "pendulum"})


def test_a_part_is_made_when_it_is_asked_for():
    assembly = assemble(load_config({"env": "pendulum", "algorithm": {"windw": 3}, "optimizer": "admm"}))
    assert assembly.policy(torch.zeros(1, 3)).shape == (1, 1)
    with pytest.raises(ConfigError, match=r"algorithm\.windw"):
        assembly.algorithm.step()
    with pytest.raises(ConfigError, match="admm"):
        assembly.optimizer.state_dict()


class FourArguments(FullHorizon):
    """An algorithm as version 0.1 had them."""

    def __init__(self, env, policy, config, settings):
        super().__init__(env, policy, config, settings)
        self.mine = True


def test_an_algorithm_with_the_old_constructor_works_with_a_warning():
    config = load_config(
        {"env": "pendulum", "algorithm": {"name": named(FourArguments), "batch": 2, "horizon": 3}}
    )
    with pytest.warns(DeprecationWarning, match="FourArguments: an algorithm is given its optimizer"):
        algorithm = assemble(config).algorithm
    assert algorithm.mine
    assert algorithm.step().env_steps == 6


class AnyArguments(FullHorizon):
    Settings = FullHorizonSettings

    def __init__(self, *parts):
        super().__init__(*parts)


def test_an_algorithm_may_pass_its_arguments_on():
    assembly = assemble(load_config({"env": "pendulum", "algorithm": named(AnyArguments)}))
    assert assembly.algorithm.optimizer is assembly.optimizer


def test_nothing_of_a_strangers_run_is_executed_before_consent(run, tmp_path, monkeypatch):
    """Not even to compare the settings that are given with those of the run."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "somebody else"))
    with pytest.raises(TrustError):
        diffsim.train(COUNTED["env"], out=run.folder, resume=True, seed=0, quiet=True)
    assert not COUNTS


def test_options_in_another_spelling_are_no_change(run):
    given = {"optimizer": {"lr": "5e-3", "betas": [0.7, 0.95]}, "algorithm": {"batch": 4.0}, "seed": 0.0}
    diffsim.train(out=run.folder, resume=True, updates=3, quiet=True, **given)
    assert len(RunFile(run.folder).history()["update"]) == 3


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"env": {"g": 3.0}}, r"env\.g is 10\.0 in the run, 3\.0 was given"),
        ({"algorithm": {"window": 7}}, r"algorithm\.window is 4 in the run, 7 was given"),
        (
            {"algorithm": "full_horizon"},
            r"algorithm\.name is 'test_assembly:CountedWindow' in the run, 'full",
        ),
        ({"optimizer": {"lr": 1.0}}, r"optimizer\.lr is 0\.005 in the run, 1\.0 was given"),
        ({"seed": 4}, "seed is 0 in the run, 4 was given"),
        ({"algorithm": {"windw": 3}}, r"unknown key 'algorithm\.windw'; did you mean 'algorithm\.window'"),
    ],
)
def test_a_changed_setting_is_refused(run, given, told):
    with pytest.raises(ConfigError, match=told):
        diffsim.train(out=run.folder, resume=True, quiet=True, **given)
