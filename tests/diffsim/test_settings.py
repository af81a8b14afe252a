"""Options under old names, and the values that are accepted as whole numbers."""

import json
import logging

import h5py
import numpy as np
import pytest
import torch

import diffsim
from diffsim import settings
from diffsim.algorithms.short_window import ShortWindowSettings
from diffsim.assembly import assemble
from diffsim.config import load_config, parse_assignment
from diffsim.errors import ConfigError
from diffsim.optimizers import make_optimizer, optimizer_settings
from diffsim.optimizers.hand_over import HandOverSettings
from diffsim.runs.runfile import RunFile
from diffsim.settings import whole_number

SMALL = {"policy": {"hidden": [4]}, "evaluation": {"episodes": 2}, "quiet": True}


@pytest.fixture(autouse=True)
def warned(monkeypatch):
    """The old names warned about; each test begins as a process does."""
    names = set()
    monkeypatch.setattr(settings, "_warned", names)
    return names


def options(*layers):
    config = assemble(load_config({"env": "pendulum"}, *layers)).config
    return config.algorithm.options, config.optimizer.options


@pytest.mark.parametrize(
    ("layer", "section", "new", "value"),
    [
        ({"algorithm": {"name": "short_window", "discount": 0.5}}, 0, "gamma", 0.5),
        ({"algorithm": {"name": "short_window", "noise": 0.1}}, 0, "noise_std", 0.1),
        ({"algorithm": {"name": "short_window", "critic_averaging": 0.5}}, 0, "tau", 0.5),
        ({"optimizer": {"name": "CMA-ES", "members": 9}}, 1, "popsize", 9),
        ({"optimizer": {"name": "pgpe", "members": 8}}, 1, "popsize", 8),
        ({"optimizer": {"name": "pgpe", "deviation_lr": 0.5}}, 1, "stdev_lr", 0.5),
        ({"optimizer": {"name": "pgpe", "deviation_change": 0.5}}, 1, "stdev_max_change", 0.5),
        ({"optimizer": {"name": "openai_es", "members": 8}}, 1, "popsize", 8),
        ({"optimizer": {"name": "pso", "members": 8}}, 1, "popsize", 8),
        ({"optimizer": {"name": "differential_evolution", "members": 8}}, 1, "popsize", 8),
    ],
)
def test_an_old_name_sets_the_option_and_warns_once(layer, section, new, value, caplog):
    for _ in range(2):
        assert options(layer)[section][new] == value
    (record,) = caplog.records
    name, given = next(iter(layer.items()))
    (old,) = given.keys() - {"name"}
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"{name}.{old} is now called {name}.{new}; the old name works until 0.3"
    assert old not in options(layer)[section]


def test_old_names_work_in_nested_optimizers_whether_or_not_the_layer_names_them(caplog):
    given = {"optimizer": {"name": "hand_over", "first": {"name": "pgpe", "members": 8}}}
    assert options(given)[1]["first"]["popsize"] == 8
    layers = {"optimizer": "hand_over"}, {"optimizer": {"first": "cma_es"}}
    assert options(*layers, {"optimizer": {"first": {"members": 6}}})[1]["first"]["popsize"] == 6
    inner = {"name": "hand_over", "then": {"name": "hand_over", "first": {"name": "cma_es", "members": 7}}}
    assert options({"optimizer": inner})[1]["then"]["first"]["popsize"] == 7
    assert [record.getMessage().split()[0] for record in caplog.records] == [
        "optimizer.first.members",
        "optimizer.then.first.members",
    ]


def test_old_names_work_in_python(caplog):
    parameter = torch.nn.Parameter(torch.zeros(3))
    config = {"name": "cma_es", "members": 7}
    assert make_optimizer([parameter], diffsim.config.Named(**config)).popsize == 7
    assert ShortWindowSettings(discount=0.5).gamma == 0.5
    assert HandOverSettings(first=config).first.options["popsize"] == 7
    assert len(caplog.records) == 3


@pytest.mark.parametrize(
    ("layer", "complaint"),
    [
        (
            {"algorithm": {"name": "short_window", "discount": 0.9, "gamma": 0.9}},
            r"algorithm\.discount is the old name of algorithm\.gamma; both are given",
        ),
        (
            {"optimizer": {"name": "hand_over", "first": {"name": "cma_es", "members": 8, "popsize": 8}}},
            r"optimizer\.first\.members is the old name of optimizer\.first\.popsize",
        ),
    ],
)
def test_both_names_at_once_are_refused(layer, complaint):
    with pytest.raises(ConfigError, match=complaint):
        options(layer)


def test_a_later_layer_replaces_what_an_earlier_one_set_under_the_other_name():
    short = {"name": "short_window"}
    old, new = {"algorithm": {**short, "discount": 0.5}}, {"algorithm": {**short, "gamma": 0.75}}
    assert options(old, new)[0]["gamma"] == 0.75
    assert options(new, old)[0]["gamma"] == 0.5


def test_only_the_class_that_renamed_an_option_knows_its_old_name():
    with pytest.raises(ConfigError, match=r"unknown key 'optimizer\.members'"):
        options({"optimizer": {"name": "adam", "members": 8}})
    with pytest.raises(ConfigError, match=r"unknown key 'algorithm\.discount'"):
        options({"algorithm": {"name": "full_horizon", "discount": 0.9}})


@pytest.mark.parametrize(
    ("algorithm", "optimizer", "old"),
    [
        (
            {"name": "short_window", "batch": 8},
            {"name": "adam"},
            {"algorithm": {"gamma": "discount", "noise_std": "noise", "tau": "critic_averaging"}},
        ),
        (
            {"name": "short_window", "batch": 8},
            {"name": "hand_over", "first": {"name": "cma_es", "popsize": 6}},
            {"first": {"popsize": "members"}},
        ),
    ],
)
def test_a_run_stored_under_old_names_loads_evaluates_and_resumes_silently(
    tmp_path, caplog, algorithm, optimizer, old
):
    def train(out, **more):
        return diffsim.train(out=tmp_path / out, checkpoint_every=1, updates=2, **SMALL, **more)

    given = {"algorithm": algorithm, "optimizer": optimizer}
    straight = train("straight", env="pendulum", **given)
    with h5py.File(train("old", env="pendulum", **given).path, "r+") as file:
        config = json.loads(file.attrs["config"])
        for section, names in old.items():
            values = config["optimizer"][section] if section == "first" else config[section]
            for new, name in names.items():
                values[name] = values.pop(new)
        file.attrs["config"] = json.dumps(config)
    file = RunFile(tmp_path / "old")
    assert file.config() == straight.config()
    diffsim.evaluate(tmp_path / "old", episodes=2)
    train("old", resume=True)
    assert caplog.records == []
    with pytest.raises(
        ConfigError, match=r"a resumed run keeps its configuration.*: algorithm\.gamma is 0\.97"
    ):
        train("old", resume=True, **{"algorithm": {"discount": 0.5}})
    train("old", resume=True, **{"algorithm": {"discount": 0.97}})


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3),
        (np.int64(3), 3),
        (np.uint8(3), 3),
        (1e3, 1000),
        (np.float32(8.0), 8),
        ("1e3", 1000),
        ("12", 12),
        ("9007199254740993", 2**53 + 1),
        (np.array(4), 4),
    ],
)
def test_whole_numbers(value, number):
    assert whole_number(value) == number
    assert type(whole_number(value)) is int
    assert load_config({"env": "pendulum", "updates": value}).updates == number


@pytest.mark.parametrize(
    "value", [1.5, True, np.True_, "x", "1.5", "", None, [3], float("nan"), float("inf"), np.float64(0.5)]
)
def test_other_values_are_not_whole_numbers(value):
    with pytest.raises(ValueError, match="whole number of at least 0"):
        whole_number(value)
    for key in ("updates", "seed"):
        with pytest.raises(ConfigError, match=f"{key} = "):
            load_config({"env": "pendulum", key: value})


@pytest.mark.parametrize("seed", [2**63, 2**64, 10**30, 1e30, -1, np.uint64(2**63)])
def test_a_seed_out_of_range_is_refused_with_the_range(seed):
    with pytest.raises(ConfigError, match=r"seed = .*whole number of at least 0 and below 2\^63"):
        load_config({"env": "pendulum", "seed": seed})


@pytest.mark.parametrize("hidden", [[True, 4], [0], "64,64", 4, [1.5]])
def test_widths_of_the_critic_are_positive_whole_numbers(hidden):
    with pytest.raises(ConfigError, match=r"algorithm\.critic_hidden"):
        options({"algorithm": {"critic_hidden": hidden}})
    assert options({"algorithm": {"critic_hidden": np.array([3, 2])}})[0]["critic_hidden"] == [3, 2]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("policy.hidden=128,128", [128, 128]),
        ("policy.hidden = 128, 64", [128, 64]),
        ("policy.hidden=[128,128]", [128, 128]),
        ("policy.hidden='128,128'", "128,128"),
        ("policy.hidden=a,b", "a,b"),
    ],
)
def test_the_brackets_of_a_list_may_be_left_out(text, value):
    assert parse_assignment(text) == {"policy": {"hidden": value}}


def test_options_say_their_present_names_only():
    assert "members" not in optimizer_settings(diffsim.config.Named(name="cma_es")).model_dump()
