import json

import numpy as np
import pytest

from diffsim.assembly import assemble
from diffsim.config import RunConfig, load_config, merge, parse_assignment, read_toml, validate
from diffsim.errors import ConfigError


def test_defaults_are_complete():
    config = load_config({"env": "pendulum"})
    assert config.env.name == "pendulum"
    assert config.optimizer.name == "adam"
    assert assemble(config).config.optimizer.options["lr"] == 5e-3
    assert config.seed == 0


def test_later_layers_win_key_by_key():
    config = load_config(
        {"env": "pendulum", "optimizer": {"lr": 1.0}}, {"optimizer": {"max_grad_norm": 2.0}, "seed": 4}
    )
    options = config.optimizer.options
    assert (options["lr"], options["max_grad_norm"], config.seed) == (1.0, 2.0, 4)


def test_another_class_starts_without_the_options_of_the_one_before():
    config = load_config({"env": "pendulum", "optimizer": "sgd"})
    assert config.optimizer.options == {}
    changed = {"env": "pendulum", "optimizer": {"lr": 0.5}}
    assert load_config(changed, {"optimizer": "Adam"}).optimizer.options == {"lr": 0.5}


def test_a_configuration_survives_its_json():
    config = load_config({"env": {"name": "pendulum", "g": 3.7}, "algorithm": {"name": "x", "a": [1, 2]}})
    assert validate(RunConfig, json.loads(config.to_json())) == config


def test_a_configuration_cannot_be_changed():
    with pytest.raises(Exception, match="frozen"):
        load_config({"env": "pendulum"}).seed = 1


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"sed": 1}, r"unknown key 'sed'; did you mean 'seed'\? known: .*updates"),
        (
            {"evaluation": {"evry": 1}},
            r"unknown key 'evaluation.evry'; did you mean 'evaluation.every'\?",
        ),
        ({"updates": 0}, "updates = 0: .*greater than or equal to 1"),
        ({"updates": "many"}, "updates = 'many': .*integer"),
        ({"updates": 1.5}, "updates = 1.5: .*integer"),
        ({"seed": -1}, "seed = -1"),
        ({"dtype": "float16"}, "dtype = 'float16': .*'float32' or 'float64'"),
        ({"optimizer": {"max_grad_norm": 0}}, "optimizer.max_grad_norm = 0"),
        ({"optimizer": {"schedule": "cosin"}}, "optimizer.schedule = 'cosin'.*did you mean 'cosine'"),
        ({"evaluation": 3}, "evaluation = 3"),
        ({"env": 3}, "env = 3"),
    ],
)
def test_impossible_settings_are_named(values, complaint):
    with pytest.raises(ConfigError, match=complaint):
        assemble(load_config({"env": "pendulum", **values})).config.to_json()


def test_a_run_needs_an_environment():
    with pytest.raises(ConfigError, match="env is missing; set it"):
        load_config({})


def test_all_mistakes_are_named_at_once():
    with pytest.raises(ConfigError, match=r"updates = 0.*'sed'"):
        load_config({"env": "pendulum", "sed": 1, "updates": 0})


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("seed=3", {"seed": 3}),
        ("algorithm.window = 8", {"algorithm": {"window": 8}}),
        ("optimizer.betas=[0.9, 0.99]", {"optimizer": {"betas": [0.9, 0.99]}}),
        ("env=pendulum", {"env": "pendulum"}),
        ("env='a=b'", {"env": "a=b"}),
        ("policy.activation=relu", {"policy": {"activation": "relu"}}),
        ("x=true", {"x": True}),
        ("x=", {"x": ""}),
    ],
)
def test_assignments(text, values):
    assert parse_assignment(text) == values


@pytest.mark.parametrize("text", ["seed", "=3", ".=3", "a..b=3", ""])
def test_malformed_assignments(text):
    with pytest.raises(ConfigError, match="--set takes KEY=VALUE"):
        parse_assignment(text)


def test_toml_files(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('env = "pendulum"\n[algorithm]\nwindow = 8\n')
    assert read_toml(path) == {"env": "pendulum", "algorithm": {"window": 8}}
    path.write_text("env = \n")
    with pytest.raises(ConfigError, match=r"run.toml is not valid TOML.*line 1"):
        read_toml(path)
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*No such file"):
        read_toml(tmp_path / "missing.toml")


def test_a_nested_section_may_be_named_before_its_options_are_given():
    layers = [
        {"optimizer": "hand_over"},
        {"optimizer": {"first": "cma_es"}},
        {"optimizer": {"first": {"sigma": 0.5}}},
    ]
    options = assemble(load_config({"env": "pendulum"}, *layers)).config.optimizer.options
    assert options["first"]["name"] == "cma_es"
    assert options["first"]["sigma"] == 0.5


def test_merge_does_not_touch_its_layers():
    first = {"optimizer": {"name": "adam", "lr": 1}}
    merge(first, {"optimizer": {"lr": 2}})
    assert first == {"optimizer": {"name": "adam", "lr": 1}}


def test_numpy_numbers_are_what_they_hold():
    config = load_config(
        {
            "env": "pendulum",
            "seed": np.int64(3),
            "optimizer": {"lr": np.float64(0.25), "betas": np.array([0.5, 0.75])},
        }
    )
    assert config.seed == 3
    assert config.optimizer.options == {"lr": 0.25, "betas": [0.5, 0.75]}
    assert json.loads(config.to_json())["optimizer"]["lr"] == 0.25


@pytest.mark.parametrize(
    "setting", [{"seed": True}, {"evaluation": {"every": False}}, {"optimizer": {"max_grad_norm": True}}]
)
def test_truth_values_are_no_numbers(setting):
    with pytest.raises(ConfigError, match="truth value"):
        assemble(load_config({"env": "pendulum", **setting})).config.to_json()
