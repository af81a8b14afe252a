"""Other people's results: what their logs say, and no more."""

import math

import numpy as np
import pytest

from diffsim.comparison import read_csv, read_monitor, read_tensorboard
from diffsim.errors import ConfigError

WHO = {"task": "pendulum", "contender": "theirs"}


def test_a_csv_of_stable_baselines(tmp_path):
    path = tmp_path / "progress.csv"
    path.write_text(
        "time/total_timesteps,eval/mean_reward,time/time_elapsed,train/n_updates\n"
        "1000,-900,1.5,10\n2000,,2.5,20\n3000,-300,4,30\n"
    )
    (record,) = read_csv(path, **WHO, seed=7)
    assert record.key == ("pendulum", "theirs", 7)
    assert record.curve.environment_steps.tolist() == [1000, 3000]
    assert record.curve.score.tolist() == [-900, -300]
    assert record.curve.wall_seconds.tolist() == [1.5, 4]
    assert record.curve.gradient_evaluations.tolist() == [10, 30]
    assert np.isnan(record.curve.cpu_seconds).all()
    assert np.isnan(record.curve.success).all()
    assert record.about_contender.kind == "imported"


def test_a_csv_of_many_runs_with_names_of_its_own(tmp_path):
    path = tmp_path / "all.csv"
    path.write_text("seed,contender,step,reward\n0,a,1,5\n0,a,2,6\n1,a,1,7\n0,b,1,8\n")
    records = read_csv(path, **WHO, columns={"score": "reward", "environment_steps": "step"})
    assert [(r.contender, r.seed, r.curve.score.tolist()) for r in records] == [
        ("a", 0, [5, 6]), ("a", 1, [7]), ("b", 0, [8]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "steps", "scores"),
    [
        ("env_steps,score\n1,5\n2,nan\n3,NaN\n4,6\n", [1, 4], [5, 6]),  # as pandas writes what was not logged
        ("env_steps,score\n1,5\n,6\n3,7\n", [1, 1, 3], [5, 6, 7]),
        ("env_steps,score\n,5\n2,6\n", [math.nan] * 2, [5, 6]),
        ("env_steps,score\n7,\n,6\n", [7], [6]),
        ("env_steps,score\n1,5\n1,6\n1,7\n", [1, 1, 1], [5, 6, 7]),
        ("env_steps;score\n1;5\n", [1], [5]),
        ("env_steps\tscore\n1\t5\n2\t\n", [1], [5]),
        ("\ufeffenv_steps , score \r\n 1 , 5 \r\n", [1], [5]),
        (",env_steps,score\n0,1e3,5\n", [1000], [5]),
    ],
)
def test_csvs_as_other_programs_write_them(tmp_path, text, steps, scores):
    path = tmp_path / "x.csv"
    path.write_text(text, newline="")
    (record,) = read_csv(path, **WHO)
    np.testing.assert_array_equal(record.curve.environment_steps, steps)
    assert record.curve.score.tolist() == scores


def test_truth_values_and_whole_seeds_of_pandas(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("seed,success,score\n0.0,True,1\n0.0,False,2\n3.0,true,1\n")
    found = {record.seed: record.curve.success.tolist() for record in read_csv(path, **WHO)}
    assert found == {0: [1, 0], 3: [1]}


def test_a_log_of_stable_baselines_whose_first_rows_have_no_updates(tmp_path):
    path = tmp_path / "progress.csv"
    path.write_text(
        "time/total_timesteps,eval/mean_reward,time/time_elapsed,train/n_updates\n"
        "500,,1,\n1000,-900,,\n2000,,2.5,20\n3000,-300,,\n"
    )
    (record,) = read_csv(path, **WHO)
    assert record.curve.environment_steps.tolist() == [1000, 3000]
    assert record.curve.wall_seconds.tolist() == [1, 2.5]
    assert np.isnan(record.curve.gradient_evaluations).all()


def test_returns_of_training_episodes_are_called_so(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("timesteps,rollout/ep_rew_mean\n1,2\n")
    (record,) = read_csv(path, **WHO)
    assert not record.protocol.deterministic
    assert "rollout/ep_rew_mean" in record.protocol.judge


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("a,b\n1,2\n", {}, "no column of scores: it has a, b"),
        ("score\nlow\n", {}, "could not convert"),
        ("score,env_steps\n1,5\n2,3\n", {}, "not decreasing"),
        ("score\n1\n", {"columns": {"score": "gain"}}, "'gain'"),
        ("score\n1\n", {"columns": {"colour": "score"}}, "colour"),
        ("", {}, "no column of scores"),
        ("score,score\n1,2\n", {}, "two columns 'score'"),
        ("score\n1\nnan\n", {}, "scores of pendulum, theirs, 0 end with NaN"),
        ("score\nNaN\n", {}, "end with NaN"),
        ("score\n1\ninf\n", {}, "finite"),
        ("score,env_steps\n1,-5\n", {}, "not negative"),
        ("score,success\n1,50\n", {}, r"within \[0, 1\]"),
        ("env_steps,score\n5,\n", {}, "no score in its column"),
        ("seed,score\nfirst,1\n", {}, "seed = 'first'"),
    ],
)
def test_a_csv_that_does_not_fit_says_why(tmp_path, text, options, words):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_csv(path, **WHO, **options)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_csv(tmp_path / "none.csv", **WHO)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from diffsim.runs.log_writers import TensorBoardWriter

    for seed in (3, 5):
        writer = TensorBoardWriter(tmp_path / f"seed_{seed}")
        for update in range(4):
            writer(
                {"update": update, "return": -10.0 + update + seed, "env_steps": 100.0 * update, "loss": 1.0}
            )
        writer.close()
    records = read_tensorboard(tmp_path, **WHO)
    assert [r.seed for r in records] == [3, 5]
    assert records[0].curve.score.tolist() == [-7, -6, -5, -4]
    assert records[0].curve.environment_steps.tolist() == [0, 100, 200, 300]
    assert records[0].curve.wall_seconds[0] == 0
    with pytest.raises(ConfigError, match="no column of scores"):
        read_tensorboard(_only(tmp_path / "other", "loss"), **WHO)
    with pytest.raises(ConfigError, match="no event files"):
        read_tensorboard(tmp_path / "nothing", **WHO)


def _only(folder, tag):
    from diffsim.runs.log_writers import TensorBoardWriter

    writer = TensorBoardWriter(folder)
    writer({"update": 0, tag: 1.0})
    writer.close()
    return folder


def test_monitor_files(tmp_path):
    head = '#{"t_start": 100.0, "env_id": "Pendulum-v1"}\nr,l,t\n'
    (tmp_path / "0.monitor.csv").write_text(head + "1,10,1.0\n3,10,3.0\n")
    (tmp_path / "1.monitor.csv").write_text(head + "2,20,2.0\n")
    (record,) = read_monitor(tmp_path, **WHO, window=2)
    assert record.curve.wall_seconds.tolist() == [1, 2, 3]
    assert record.curve.environment_steps.tolist() == [10, 30, 40]
    assert record.curve.score.tolist() == [1, 1.5, 2.5]
    assert not record.protocol.deterministic
    (tmp_path / "no.monitor.csv").write_text("r,l,t\n1,2,3\n")
    with pytest.raises(ConfigError, match="t_start"):
        read_monitor(tmp_path / "no.monitor.csv", **WHO)
    with pytest.raises(ConfigError, match="no episode"):
        read_monitor([], **WHO)


def test_statistics_of_gymnasium():
    gymnasium = pytest.importorskip("gymnasium")
    env = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("Pendulum-v1", max_episode_steps=5))
    episodes, returns = [], []
    for seed in range(3):
        env.reset(seed=seed)
        total, done = 0.0, False
        while not done:
            _, reward, _, done, info = env.step(np.zeros(1, dtype=np.float32))
            total += float(reward)
        episodes.append(info["episode"])
        returns.append(total)
    env.close()
    (record,) = read_monitor(episodes, **WHO, window=1)
    assert record.curve.score == pytest.approx(returns)
    assert record.curve.environment_steps.tolist() == [5, 10, 15]
    assert (np.diff(record.curve.wall_seconds) >= 0).all()
    assert math.isnan(record.curve.cpu_seconds[0])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("seed,score\n0.5,1\n0.7,2\n", r"theirs\.csv: seed = '0\.5': must be a whole number"),
        ("seed,score\nabc,1\n", r"theirs\.csv: seed = 'abc': must be a whole number"),
        ("seed,score\ninf,1\n", r"theirs\.csv: seed = 'inf': must be a whole number"),
        ("score\n1,2\n", r"theirs\.csv: row 1 has more than the 1 cells of the first line"),
        ("score\n" + "9" * 200_000 + "\n", r"theirs\.csv is no CSV file: field larger"),
        ("score,environment_steps\n,1\n", r"theirs\.csv has no score in its column score"),
        ("score\n", r"theirs\.csv has no score in its column score"),
    ],
)
def test_a_file_that_is_not_understood_is_refused(tmp_path, text, complaint):
    path = tmp_path / "theirs.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_csv(path, task="pendulum", contender="theirs")


def test_spaces_around_names_do_not_hide_a_column(tmp_path):
    path = tmp_path / "theirs.csv"
    path.write_text("score, environment_steps\n1, 10\n2, 20\n")
    (record,) = read_csv(path, task="pendulum", contender="theirs")
    assert record.curve.environment_steps.tolist() == [10.0, 20.0]


def test_a_monitor_that_is_still_written_is_read_to_its_last_whole_line(tmp_path):
    path = tmp_path / "monitor.csv"
    path.write_text('#{"t_start": 5.0}\nr,l,t\n1,10,0.5\n3,10,1.0\n2,2')
    (record,) = read_monitor(path, task="pendulum", contender="theirs")
    assert record.curve.score.tolist() == [1.0, 2.0]
    with pytest.raises(ConfigError, match="window = 0: must be a whole number of at least 1"):
        read_monitor(path, task="pendulum", contender="theirs", window=0)
    with pytest.raises(ConfigError, match=r"episode 0 has no l, t"):
        read_monitor([{"r": 1.0}], task="pendulum", contender="theirs")
