"""The contenders that ``diffsim compare`` knows by name.  Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diffsim.comparison.contenders import zoo
from diffsim.comparison.records import Contender
from diffsim.errors import ConfigError
from lazy_registry.registry import unknown

WHITE_BOX, STABLE_BASELINES = "white_box", "stable_baselines"
OURS = "ours"
ENDLESS = 10**6
"""Updates of methods whose settings do not depend on the length of the run: the budget ends them."""

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A contender: which module trains, with what on which task, and what is said of it."""

    trainer: str
    settings: Callable[[str], Settings]
    """Of a task: settings of a run, or of Stable-Baselines3 as :mod:`.stable_baselines` reads them."""
    about: Contender
    source: Callable[[str], str] = lambda task: ""
    """Where the settings for a task come from; as ``about.source`` where that is empty."""
    space: str | None = None
    """The search space that ``--tune`` draws its settings from; see :mod:`diffsim.comparison.tuning`."""


def _same(settings: Settings) -> Callable[[str], Settings]:
    return lambda task: settings


# -- training through the simulator, and gradient-free search on the same policy ------------------------

_DEFAULTS_TUNED = (
    "defaults fixed before the comparison; chosen by hand while looking at some of this project's simulators, "
    "mostly with seeds 0 and 1, without a count of trials"
)


def white_box(settings: Settings, kind: str, description: str, space: str | None = None) -> Entry:
    """A contender that this package trains."""
    about = Contender(
        kind,
        description,
        source="this package",
        tuned_by="the developers of this package, who also made this comparison",
        tuning_effort=_DEFAULTS_TUNED,
    )
    return Entry(WHITE_BOX, _same(settings), about, space=space)


def _gradient_free(optimizer: str, **options: Any) -> Settings:
    return {
        "algorithm": {"name": "full_horizon", "batch": 16},
        "optimizer": {"name": optimizer, **options},
        "updates": ENDLESS,
    }


_WHITE: Mapping[str, Entry] = {
    OURS: white_box({}, "reference", "value_gradient with Adam, untouched defaults", OURS),
    "ours_task_starts": white_box(
        {"algorithm": {"name": "value_gradient", "fresh": 0.0, "resets": 1.0}},
        "ablation",
        "the default, but all windows start from the task's initial states or continue earlier ones",
    ),
    "short_window": white_box(
        {"algorithm": "short_window"}, "white box", "short_window (SHAC) with its defaults"
    ),
    "full_horizon": white_box(
        {"algorithm": "full_horizon"},
        "white box",
        "backpropagation through whole episodes, with its defaults",
    ),
    "cma_es": white_box(
        _gradient_free("cma_es", popsize=64),
        "gradient-free",
        "CMA-ES on our policy, 64 candidates, 16 whole episodes each",
        "cma_es",
    ),
    "pgpe": white_box(
        _gradient_free("pgpe"),
        "gradient-free",
        "PGPE on our policy, 16 whole episodes a candidate",
        "pgpe",
    ),
}


# -- Stable-Baselines3 ---------------------------------------------------------------------------------

_MEASURED = "this project: first guesses, tried on pendulum and cartpole_swingup with 1 to 7 seeds"
_PENDULUM_WIDE = {
    "n_envs": 64,
    "n_steps": 50,
    "batch_size": 800,
    "n_epochs": 10,
    "learning_rate": 3e-3,
    "gamma": 0.9,
    "use_sde": True,
}
_PPO_WIDE = {
    "n_envs": 64,
    "n_steps": 64,
    "batch_size": 1024,
    "n_epochs": 10,
    "learning_rate": 1e-3,
    "gamma": 0.99,
    "use_sde": True,
}


def ppo_wide(task: str) -> Settings:
    """PPO with many environments: as tried on the pendulum and the cart-pole; elsewhere with normalised rewards too."""
    if task == "pendulum":
        return {"algorithm": "ppo", **_PENDULUM_WIDE}
    return {"algorithm": "ppo", **_PPO_WIDE, "normalize": task != "cartpole_swingup"}


def ppo_ours(task: str) -> Settings:
    """The wide PPO with what ours has apart from its gradient: network, standardised observations, Adam."""
    return {
        **ppo_wide(task),
        "normalize": {"norm_obs": False},
        "standardise": True,
        "learning_rate": "budget_5e-3",
        "policy_kwargs": {
            "activation_fn": "Tanh",
            "net_arch": {"pi": [64, 64], "vf": [64, 64]},
            "optimizer_kwargs": {"betas": [0.7, 0.95], "eps": 1e-8},
        },
    }


def _wide_off_policy(algorithm: str) -> Callable[[str], Settings]:
    wide = {
        "algorithm": algorithm,
        "n_envs": 64,
        "gradient_steps": 8,
        "train_freq": 1,
        "learning_rate": 1e-3,
        "policy_kwargs": {"net_arch": [64, 64]},
    }
    if algorithm == "td3":
        wide |= {"noise_type": "normal", "noise_std": 0.1}
    gammas = {"pendulum": 0.9}
    return lambda task: {**wide, "gamma": gammas.get(task, 0.99), "normalize": task != "pendulum"}


def _of_the_zoo(algorithm: str) -> Entry:
    about = Contender(
        "black box",
        f"{algorithm.upper()} as the RL Zoo has it for the task, or for the nearest",
        source=zoo.SOURCE,
        tuned_by="the RL Zoo",
        tuning_effort="not stated for all entries; most were tuned for 1e5 to 2e6 steps",
    )
    return Entry(
        STABLE_BASELINES,
        lambda task: {"algorithm": algorithm, **zoo.entry(algorithm, task).settings},
        about,
        lambda task: zoo.entry(algorithm, task).source,
        algorithm,
    )


def _wide(settings: Callable[[str], Settings], kind: str, description: str) -> Entry:
    about = Contender(
        kind,
        description,
        source=_MEASURED,
        tuned_by="the developers of this package, who also made this comparison",
        tuning_effort="a few trials by hand; --tune searches with as many trials as for ours",
    )
    return Entry(STABLE_BASELINES, settings, about)


_BLACK: Mapping[str, Entry] = {
    **{name: _of_the_zoo(name) for name in zoo.ENTRIES},
    "ppo_wide": _wide(ppo_wide, "black box", "PPO with 64 environments and large batches"),
    "ppo_ours": _wide(
        ppo_ours, "ablation", "the wide PPO with our network, standardised observations and Adam's settings"
    ),
    "ppo_state_box": _wide(
        lambda task: {**ppo_wide(task), "starts": "state_box"},
        "ablation",
        "the wide PPO, whose episodes start anywhere in the state box, as ours may",
    ),
    **{
        f"{name}_wide": _wide(
            _wide_off_policy(name),
            "black box",
            f"{name.upper()} with 64 environments, 8 gradient steps a step",
        )
        for name in ("sac", "td3", "tqc", "crossq")
    },
}

CONTENDERS: Mapping[str, Entry] = {**_WHITE, **_BLACK}


def contender(name: str) -> Entry:
    """The contender of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in CONTENDERS:
        raise ConfigError(unknown("contender", name, CONTENDERS))
    return CONTENDERS[name]


def ours_with(settings: Settings) -> Entry:
    """The default with other settings on top, as a contender of its own."""
    kind = Contender(
        "white box",
        "the default with " + ", ".join(f"{key}={value}" for key, value in flat(settings).items()),
        source="the command line",
        tuned_by="whoever started the comparison",
    )
    return Entry(WHITE_BOX, _same(settings), kind)


def flat(settings: Settings, above: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{above}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def changed(settings: Settings, changes: Settings) -> dict[str, Any]:
    """``settings`` with ``changes`` laid over them, section by section; of Stable-Baselines3's, too."""
    result = dict(settings)
    for key, value in changes.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = changed(before, value)
        result[key] = value
    return result
