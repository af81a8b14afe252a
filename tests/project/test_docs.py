"""What the documentation states about names and defaults is what the code has."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from diffsim.algorithms import ALGORITHMS
from diffsim.assembly import assemble
from diffsim.config import RunConfig, load_config
from diffsim.config import tomllib as toml
from diffsim.optimizers import OPTIMIZERS
from diffsim.optimizers.first_order import FirstOrderSettings
from diffsim.optimizers.options import options
from diffsim.runs.runfile import COLUMNS
from robotics_envs import ENVIRONMENTS, make_env
from solvers import SOLVERS, make_solver

ROOT = Path(__file__).parents[2]
ALGORITHM_PAGE = (ROOT / "docs" / "algorithms.md").read_text()
RUN_PAGE = (ROOT / "docs" / "runs.md").read_text()


def test_every_option_of_the_default_algorithm_is_documented_with_its_default():
    (table,) = re.findall(r"^\| option \| default \|.*?\n\n", ALGORITHM_PAGE, re.M | re.S)
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table, re.M))
    fields = ALGORITHMS.load("value_gradient").Settings.model_fields
    assert rows.keys() == fields.keys()
    for name, field in fields.items():
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        assert rows[name].strip() == str(default), name


def test_the_documented_configuration_is_the_default_one():
    (text,) = re.findall(r"```toml\n(.*?)```", RUN_PAGE, re.S)
    values = toml.loads(text)
    documented = load_config(values)
    given = {name for name, q in RunConfig.model_fields.items() if q.default is not None}
    assert values.keys() == given
    # What is not given by default has a comment in its place.
    assert all(f"# {name} = " in text for name in RunConfig.model_fields.keys() - given)
    assert documented.policy.options.pop("hidden") == [64, 64]
    default = load_config({"env": "pendulum"})
    assert (
        assemble(documented.model_copy(update={"policy": default.policy})).config == assemble(default).config
    )


def test_every_column_of_the_history_is_documented():
    for column in COLUMNS:
        assert f"`{column}`" in RUN_PAGE


def test_every_solver_is_documented_with_its_order_and_adjoints():
    page = (ROOT / "docs" / "solvers.md").read_text()
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (\d+ \| \w+ \| [\w, ]+) \|", page, re.M))
    stated = {}
    for name in SOLVERS:
        solver = make_solver(name)
        adaptive = "yes" if solver.adaptive else "no"
        stated[name] = f"{solver.order} | {adaptive} | {', '.join(solver.adjoints)}"
    assert rows == stated


def test_the_solvers_examples_run():
    first, *own = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "solvers.md").read_text(), re.S)
    names: dict = {}
    exec(first, names)
    assert names["solution"].xs.shape == (3, 2, 2)
    assert len(own) == 2
    for code in own:
        exec(code, {})


def test_the_rollouts_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "rollouts.md").read_text(), re.S)
    names: dict = {}
    exec(code, names)
    assert names["trajectory"].states.shape == (51, 64, 17)
    assert all(q.grad is not None and q.grad.any() for q in names["policy"].parameters())


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_simulator_has_a_page_with_its_constants(name):
    page = (ROOT / "docs" / "environments.md").read_text()
    (target,) = re.findall(rf"^\| \[`{name}`\]\(([^)]+)\)", page, re.M)
    text = (ROOT / "docs" / target).read_text()
    rows = {
        row[0]: row[1:] for row in re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]*) \| ([^|]+) \|", text, re.M)
    }
    for parameter in make_env(name).constants.values():
        value, _, source = (cell.strip() for cell in rows[parameter.name])
        assert float(value) == parameter.value, parameter.name
        assert source, parameter.name
    for section in ("Equations", "Constants", "Task", "Checked against", "Training"):
        assert f"## {section}" in text, section
    assert re.search(rf"!\[[^]]+\]\({name}\.gif\)", text)


def test_the_environments_examples_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT)
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "environments.md").read_text(), re.S):
        names: dict = {}
        exec(code, names)
    assert names["envs"].num_envs == 1024


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


GPU = "gpu.py --table benchmarks/results/gpu_h200.json"
ENDS = "defaults.py --table --out benchmarks/results/episodes_that_end.json"
ROLLOUTS = "rollouts.py --table benchmarks/results/rollouts.json"
TWINS = "defaults.py --table --times --out benchmarks/results/gymnasium_tasks.json"


@pytest.mark.parametrize(
    ("page", "mark", "command"),
    [
        ("algorithms", "defaults", "defaults.py --table"),
        ("algorithms", "ablations", "ablations.py --table"),
        ("algorithms", "halves", "ablations.py --halves"),
        (
            "algorithms",
            "few_steps",
            "defaults.py --table --variant few_steps --out benchmarks/results/few_steps.json",
        ),
        *(
            ("algorithms", mark, f"{ENDS} --variant '{variant}'")
            for mark, variant in (("ends_old", "moved by them"), ("ends_new", "not moved by them"))
        ),
        ("gpu", "cuda_resources", "cuda_resources.py --table benchmarks/results/cuda_resources.json"),
        ("gpu", "gpu_speed", f"{GPU} --only speed"),
        ("gpu", "gpu_crossing", f"{GPU} --only crossing"),
        ("gpu", "gpu_seeds", f"{GPU} --only seeds"),
        (
            "performance",
            "time_to_threshold",
            "time_to_threshold.py --table benchmarks/results/time_to_threshold.json",
        ),
        *(
            ("rollouts", f"rollouts_{mark}", f"{ROLLOUTS} --only '{section}'")
            for mark, section in (
                ("speed", "speed"),
                ("threads", "threads"),
                ("memory", "memory"),
                ("start", "start"),
                ("linear", "linear"),
                ("states", "state size"),
            )
        ),
        ("../README", "rollouts", f"{ROLLOUTS} --front-page"),
        ("performance", "training", "training.py --table benchmarks/results/training.json"),
        (
            "performance",
            "back_end_choice",
            "back_end_choice.py --table benchmarks/results/back_end_choice.json",
        ),
        ("robots", "robot_peers", "robot_peers.py --table benchmarks/results/robot_peers.json"),
        ("robots", "robots", "robots.py --table benchmarks/results/robots.json"),
        ("robots", "cheetah", f"{TWINS} --variant '4,000 updates'"),
        ("robots", "cheetah_longer", f"{TWINS} --variant '5,500 updates'"),
        ("robots", "hoppers", f"{TWINS} --variant '1,200 updates'"),
        ("robots", "ant", f"{TWINS} --variant '3,000 updates'"),
    ],
    ids=lambda text: text.partition(" ")[0],
)
def test_tables_are_the_measured_ones(page, mark, command):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    (stated,) = re.findall(rf"<!-- {mark} -->\n(.*?)\n<!-- -->", text, re.S)
    script, *options = shlex.split(command)
    printed = subprocess.run(
        [sys.executable, f"benchmarks/{script}", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.strip() == stated.strip()


def test_the_table_of_the_default_names_all_simulators():
    (stated,) = re.findall(r"<!-- defaults -->\n(.*?)\n<!-- -->", ALGORITHM_PAGE, re.S)
    measured = [row.split("`")[1] for row in stated.splitlines()[2:]]
    (rest,) = re.findall(r"^Not measured yet: (.+)\.$", ALGORITHM_PAGE, re.M) or [""]
    missing = re.findall(r"`(\w+)`", rest)
    assert sorted(measured + missing) == sorted(ENVIRONMENTS)
    assert measured == [name for name in ENVIRONMENTS if name in measured]


OPTIMIZER_PAGE = (ROOT / "docs" / "optimizers.md").read_text()


def test_every_optimizer_is_documented_with_its_options_and_their_source():
    (table,) = re.findall(r"<!-- defaults -->\n(.*?)\n<!-- -->", OPTIMIZER_PAGE, re.S)
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]{4,} \|", table, re.M))
    common = set(FirstOrderSettings.model_fields) - {"lr", "max_grad_norm"}
    assert list(rows) == list(OPTIMIZERS)
    for name in OPTIMIZERS:
        stated = [
            f"`{option.name}` {option.default}"
            for option in options(name)
            if option.name not in common and (option.name, option.default) != ("max_grad_norm", None)
        ]
        assert rows[name] == ", ".join(stated)
    for option in common:
        assert f"`{option}` {FirstOrderSettings.model_fields[option].default}" in OPTIMIZER_PAGE


def test_the_table_of_all_optimizers_is_the_measured_one():
    (stated,) = re.findall(r"<!-- optimizers -->\n(.*?)\n<!-- -->", OPTIMIZER_PAGE, re.S)
    printed = subprocess.run(
        [sys.executable, "benchmarks/optimizers.py", "--table", "--out", "benchmarks/results/optimizers.json"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert printed.stdout.strip() == stated


def test_the_optimizers_examples_run():
    first, second = re.findall(r"```python\n(.*?)```", OPTIMIZER_PAGE, re.S)
    exec(first, {})
    names: dict = {}
    exec(second, names)
    assert names["x"].tolist() == pytest.approx([1.0, 1.0], abs=1e-4)
    (text,) = re.findall(r"```toml\n(.*?)```", OPTIMIZER_PAGE, re.S)
    assert (
        assemble(load_config({"env": "pendulum", **toml.loads(text)})).config.optimizer.options["at"] == 0.2
    )
