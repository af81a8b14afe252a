"""A suite's file: its cells, what is wrong with it, and the identity of its runs."""

import re

import pytest
from suite_folders import ROOT

from diffsim.errors import ConfigError
from diffsim.suites.plan import read_plan, resolve
from diffsim.suites.suite_file import read_suite


def plan_of(folder, text, name="suite.toml"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return resolve(read_suite(folder / name, str(folder / "out")))


SMALL = '[base]\nbackend = "eager"\npolicy.hidden = [4]\n'


def test_the_matrix_is_every_combination(tmp_path):
    plan = plan_of(
        tmp_path,
        SMALL
        + """
[matrix]
env = ["pendulum", "crane"]
algorithm = ["value_gradient", {name = "full_horizon", batch = 8}]
optimizer = ["adam", {name = "sgd", lr = 0.5}]
seed = "3..5"
overrides = [{label = "small", "policy.hidden" = [2]}, {updates = 7, algorithm = {batch = 16}}]
""",
    )
    assert len(plan.runs) == 2 * 2 * 2 * 3 * 2
    assert len({run.folder for run in plan.runs}) == len(plan.runs)
    configs = [run.config for run in plan.runs]
    assert {c["seed"] for c in configs} == {3, 4, 5}
    assert {c["optimizer"].get("lr") for c in configs if c["optimizer"]["name"] == "sgd"} == {0.5}
    assert {tuple(c["policy"]["hidden"]) for c in configs} == {(2,), (4,)}
    assert {(c["updates"], c["algorithm"]["batch"]) for c in configs if c["policy"]["hidden"] == [4]} == {
        (7, 16)
    }
    names = [run.folder.rpartition("-")[0] for run in plan.runs]
    assert "crane-full_horizon-batch=8-sgd-lr=0.5-small-s4" in names
    assert "pendulum-value_gradient-adam-updates=7-batch=16-s3" in names


def test_excludes_includes_and_budgets(tmp_path):
    plan = plan_of(
        tmp_path,
        SMALL
        + """
[matrix]
env = ["pendulum", "crane", "glider"]
optimizer = ["adam", "sgd"]
seed = [0, 1]
[[exclude]]
env = "crane"
optimizer = "sgd"
[[exclude]]
env = ["glider"]
seed = 1
[[include]]
env = "tug"
optimizer.lr = 0.02
seed = 9
[[budget]]
updates = 50
[[budget]]
when = {env = ["crane", "tug"]}
updates = 20
stop = {env_steps = 1000}
""",
    )
    found = {
        (c["env"]["name"], c["optimizer"]["name"], c["seed"]): c for c in (run.config for run in plan.runs)
    }
    assert set(found) == {
        *(("pendulum", o, s) for o in ("adam", "sgd") for s in (0, 1)),
        ("crane", "adam", 0), ("crane", "adam", 1), ("glider", "adam", 0), ("glider", "sgd", 0), ("tug", "adam", 9),
    }  # fmt: skip
    for (env, _, _), config in found.items():
        assert config["updates"] == (20 if env in ("crane", "tug") else 50)
        assert config["stop"]["env_steps"] == (1000 if env in ("crane", "tug") else None)
    assert found["tug", "adam", 9]["optimizer"]["lr"] == 0.02


def test_a_file_may_name_single_runs_only(tmp_path):
    plan = plan_of(tmp_path, SMALL + '[[include]]\nenv = "pendulum"\n[[include]]\nenv = "crane"\n')
    assert [run.config["env"]["name"] for run in plan.runs] == ["pendulum", "crane"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[matrx]\nenv = 1\n", "unknown key 'matrx'; did you mean 'matrix'?"),
        ('[matrix]\nenvs = ["pendulum"]\n', "unknown key 'matrix.envs'; did you mean 'matrix.env'?"),
        ('[matrix]\noptimizer = ["adam"]\n', "names no simulator"),
        ('[matrix]\nenv = "pendulum"\nseed = [-1]\n', "matrix.seed"),
        ('[matrix]\nenv = "pendulum"\nseed = "5..2"\n', "matrix.seed"),
        ('[matrix]\nenv = []\n', "matrix.env"),
        ('[matrix]\nenv = "pendulum"\n[[exclude]]\nenv = "pendulm"\n', "exclude {'env': 'pendulm'} fits no run"),
        ('[matrix]\nenv = "pendulum"\n[[budget]]\nwhen = {seed = 4}\nupdates = 2\n', "budget {'seed': 4} fits no"),
        ('[matrix]\nenv = "pendulum"\n[local]\nworkers = 0\n', "local.workers"),
        ("matrix = [", "not valid TOML"),
    ],
)  # fmt: skip
def test_mistakes_in_the_file_are_one_clear_line(tmp_path, text, complaint):
    (tmp_path / "suite.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_suite(tmp_path / "suite.toml")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_runs_that_cannot_be_are_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        plan_of(
            tmp_path,
            SMALL
            + """
[matrix]
env = ["pendulum", "pendulm", {name = "pendulum", mass = 1}]
optimizer = ["adam", {name = "sgd", learning_rate = 0.1}]
seed = [0, 1]
[[include]]
env = "pendulum"
policy = {name = "mlp", hidden = [-1]}
""",
        )
    text = str(caught.value)
    assert text.startswith("11 of 13 runs cannot start, so none was started:")
    assert "  pendulm-adam, seeds 0, 1: unknown environment 'pendulm'; did you mean 'pendulum'?" in text
    assert "  pendulum-sgd-learning_rate=0.1, seeds 0, 1: unknown key 'optimizer.learning_rate'" in text
    assert "pendulum-mass=1-adam" in text
    assert "hidden" in text.splitlines()[-1]


def test_the_same_settings_are_one_run_however_they_are_written(tmp_path):
    plan = plan_of(
        tmp_path,
        SMALL + '[matrix]\nenv = "pendulum"\noptimizer = ["adam", "Adam", {name = "adam", lr = 0.002}]\n'
        '[[include]]\nenv = {name = "pendulum", g = 10.0}\n',
    )  # fmt: skip
    lr = {run.config["optimizer"]["lr"] for run in plan.runs}
    assert len(plan.runs) == len(lr)


USERS = """
from shared_part import factor
from robotics_envs.simulators.pendulum import Pendulum
class Mine(Pendulum):
    def cost(self, x, u, p):
        return factor * super().cost(x, u, p)
"""


def test_identity_is_the_texts_of_the_users_files_not_where_they_lie(tmp_path):
    def identities(folder, env=USERS, part="factor = 2.0\n"):
        folder.mkdir(exist_ok=True)
        (folder / "mine.py").write_text(env)
        (folder / "shared_part.py").write_text(part)
        return [
            r.identity
            for r in plan_of(folder, SMALL + '[matrix]\nenv = "mine.py:Mine"\nseed = [0, 1]\n').runs
        ]

    first = identities(tmp_path / "a")
    assert len(set(first)) == 2
    assert identities(tmp_path / "b") == first
    assert not set(identities(tmp_path / "c", env=USERS + "# changed\n")) & set(first)
    assert not set(identities(tmp_path / "d", part="factor = 3.0\n")) & set(first)  # a file that it imports
    assert identities(tmp_path / "a") == first


def test_options_of_the_base_are_for_every_class_of_the_matrix(tmp_path):
    plan = plan_of(
        tmp_path,
        SMALL
        + 'optimizer.lr = 0.5\n[matrix]\nenv = "pendulum"\noptimizer = ["sgd", {name = "adam", lr = 0.25}]\n',
    )
    assert [run.config["optimizer"]["lr"] for run in plan.runs] == [0.5, 0.25]


def test_the_example_and_the_files_of_the_page_are_suites(tmp_path):
    example = resolve(read_suite(ROOT / "examples" / "suite.toml", str(tmp_path / "out")))
    assert len(example.runs) == 2 * 2 * 3 - 3 + 1
    first, *sections = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "suites.md").read_text(), re.S)
    assert len(plan_of(tmp_path / "page", "".join((first, *sections))).runs) == 10
    assert [re.match(r"\[(\w+)", s)[1] for s in sections[:2]] == ["slurm", "ray"]


def test_the_seed_of_the_base_counts_where_the_matrix_has_none(tmp_path):
    text = 'seed = 5\nenv = "pendulum"\n[matrix]\n'
    assert [run.seed for run in plan_of(tmp_path, SMALL + text).runs] == [5]
    assert [run.seed for run in plan_of(tmp_path, SMALL + text + "seed = [1, 2]\n").runs] == [1, 2]


def test_rules_may_be_nested_and_entries_of_the_matrix_may_have_options_only(tmp_path):
    plan = plan_of(
        tmp_path,
        SMALL + 'env = "pendulum"\n[matrix]\nenv = [{g = 9.0}, {g = 3.7}]\n'
        'optimizer = ["sgd", {name = "sgd", lr = 0.5}]\n'
        "[[exclude]]\noptimizer.lr = 0.5\nenv.g = [3.7]\n",
    )  # fmt: skip
    names = [run.folder.rpartition("-")[0] for run in plan.runs]
    assert names == ["g=9.0-sgd-s0", "g=9.0-sgd-lr=0.5-s0", "g=3.7-sgd-s0"]
    assert [run.config["env"]["g"] for run in plan.runs] == [9.0, 9.0, 3.7]


def test_identity_changes_with_any_setting(tmp_path):
    def identity(extra="", head=""):
        return plan_of(tmp_path, head + SMALL + extra + '[matrix]\nenv = "pendulum"\n').runs[0].identity

    texts = [
        "",
        "updates = 5\n",
        "dtype = 'float64'\n",
        "env.g = 9.0\n",
        "optimizer.lr = 0.5\n",
        "threads = 2\n",
    ]
    assert len({identity(text) for text in texts}) == len(texts)
    assert identity(head="name = 'other'\n") == identity()


def test_a_plan_is_read_back_as_it_was_saved(tmp_path):
    plan = plan_of(
        tmp_path, SMALL + '[matrix]\nenv = ["pendulum", "crane"]\nseed = "0..2"\n[local]\nretries = 7\n'
    )
    plan.root.mkdir()
    plan.save()
    assert read_plan(plan.root) == plan


def test_other_words_in_the_file_move_no_run(tmp_path):
    one = plan_of(tmp_path, SMALL + '[matrix]\nenv = "pendulum"\noptimizer = "adam"\n')
    for run in one.runs:
        one.folder(run).mkdir(parents=True)
    other = plan_of(tmp_path, SMALL + '[matrix]\nenv = "pendulum"\n')
    assert [run.folder for run in other.runs] == [run.folder for run in one.runs]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[matrix]\nseed = "4..0"\n', 'a range such as "0..2", the smaller number first'),
        ('[matrix]\nseed = "0,1"\n', "must be a list such as [0, 1, 2]"),
        ('[matrix]\nseed = "0..1000000000"\n', "a range of 1,000,000,001 seeds; the most is 100,000"),
        (
            "[matrix]\nseed = [0, 1]\noverrides = [{seed = 3}]\n",
            "overrides sets seed = 3, as matrix.seed does",
        ),
        ('[matrix]\noptimizer = ["adam"]\noverrides = [{optimizer = "sgd"}]\n', "as matrix.optimizer does"),
        ("[[budget]]\nlr = 3\n", "unknown key 'budget.0.lr'; known: budget.0.stop"),
        ("[matrix]\nseed = [0]\n[[exclude]]\nseed = 0\n", "the rules of exclude leave no run"),
    ],
)
def test_mistakes_are_named(tmp_path, text, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        plan_of(tmp_path, SMALL + 'env = "pendulum"\n' + text)


@pytest.mark.parametrize("name", ["..", "a/b", "."])
def test_a_name_is_no_path(tmp_path, name):
    with pytest.raises(ConfigError, match="must be the name of a folder"):
        plan_of(tmp_path, f'name = "{name}"\n' + SMALL)


def test_rules_take_ranges_of_seeds(tmp_path):
    plan = plan_of(
        tmp_path,
        SMALL
        + 'env = "pendulum"\n[matrix]\nseed = "0..5"\n[[exclude]]\nseed = "1..3"\n'
        + '[[include]]\nenv = "crane"\nseed = "7..8"\n[[budget]]\nwhen = {seed = "4..8"}\nupdates = 3\n',
    )
    found = [(run.config["env"]["name"], run.seed, run.config["updates"] == 3) for run in plan.runs]
    assert found == [
        ("pendulum", 0, False),
        ("pendulum", 4, True),
        ("pendulum", 5, True),
        ("crane", 7, True),
        ("crane", 8, True),
    ]
