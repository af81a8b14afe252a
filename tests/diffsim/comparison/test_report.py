"""The report: whole, escaped, the same from the records alone, and usable in a real browser without a network."""

import csv
import dataclasses
import math
import os
import re
import shutil
from urllib.parse import unquote

import numpy as np
import pytest
import synthetic
from click.testing import CliRunner

from diffsim.cli import main
from diffsim.comparison import (
    Comparison,
    Contender,
    Curve,
    Limits,
    Overheads,
    Task,
    Threshold,
    facts,
    paper,
    read_comparison,
    record_path,
    write_comparison,
    write_record,
)
from diffsim.comparison import report as reporting
from diffsim.comparison.figures import nice_ticks, score_range, short, short3, stepped, thinned
from diffsim.comparison.scores import Rules
from diffsim.comparison.task_views import line_sizes
from diffsim.comparison.verdicts import verdicts
from diffsim.suites.plan import Plan, PlannedRun
from diffsim.suites.suite_file import LocalConfig, SlurmConfig

EVIL = "<script>alert(1)</script>"
HOSTILE = f"{EVIL}&\"'|`[x](javascript:alert(1))"
QUICK = Rules(resamples=200)


def small(runs=10, axes=4):
    """Two tasks and a contender, one each of a hostile name; curves that know four axes, or CPU seconds alone."""
    tasks = {
        "pendulum": Task(Threshold(-170.0, "fixed"), Limits(-1280, -150, "made up"), "swing up"),
        HOSTILE: Task(Threshold(0.9, HOSTILE), Limits(0, 1, HOSTILE), HOSTILE),
    }
    contenders = {
        "ours": Contender("reference", "white box", "here", "us", "40 trials"),
        "PPO": Contender("black box", "library", "RL Zoo", "them", "none"),
        HOSTILE: Contender("gradient-free", HOSTILE, HOSTILE, HOSTILE, HOSTILE),
    }
    rng, records = np.random.default_rng(2), []
    for task, about in tasks.items():
        zero, one = about.limits.zero, about.limits.one
        for name, rate in zip(contenders, (0.3, 0.08, 0.05), strict=True):
            for seed in range(runs):
                curve = synthetic.rising(60, one, zero, rate * (1 + 0.2 * rng.random()), 21)
                if axes == 1:
                    curve = Curve.of(curve.score, cpu_seconds=curve.cpu_seconds)
                status = "crashed" if name == HOSTILE and seed == 0 else "finished"
                record = synthetic.run(
                    task, name, seed, Curve.of([]) if status == "crashed" else curve, status,
                    about_task=about, about_contender=contenders[name], budget={"cpu_seconds": 60.0},
                    overheads=Overheads(1.0, 0.5, 3.0), settings={HOSTILE: HOSTILE, "lr": 0.003},
                    error=HOSTILE if status == "crashed" else "",
                )  # fmt: skip
                records.append(record)
    return Comparison(
        tasks, contenders, range(runs), {"cpu_seconds": 60.0}, title=f"Test {HOSTILE}", command=HOSTILE,
        notes=[HOSTILE], records=records,
    )  # fmt: skip


@pytest.fixture
def no_figures(monkeypatch):
    """Figures for papers take most of the time, and one test looks at them."""
    monkeypatch.setattr("diffsim.comparison.paper.available", lambda: False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = synthetic.write(tmp_path_factory.mktemp("whole"), small())
    return folder, reporting.report(folder, rules=QUICK)


def test_the_files(made):
    folder, files = made
    names = {path.relative_to(folder / "report").as_posix() for path in files}
    assert {
        "report.html",
        "report.md",
        "tables/curves.csv",
        "tables/runs.csv",
        "tables/tasks_cpu_seconds.csv",
    } <= names
    for name in ("curves", "times", "profiles", "improvement"):
        assert {f"figures/{name}_cpu_seconds.{form}" for form in ("svg", "pdf")} <= names
    assert (folder / "report" / "report.html").stat().st_size <= 3e6


def test_figures_for_papers_draw_every_seed(made):
    folder, _ = made
    drawn = (folder / "report" / "figures" / "curves_cpu_seconds.svg").read_text()
    known = [r for r in read_comparison(folder).records if r.curve.knows("cpu_seconds")]
    assert drawn.count("stroke-opacity: 0.4") == len(known) > 0
    assert "<image" not in drawn


def test_many_seeds_are_drawn_as_an_image(tmp_path, monkeypatch):
    monkeypatch.setattr("diffsim.comparison.paper._RASTER_FROM", 1)
    synthetic.write(tmp_path, small(2, axes=1))
    paper.write(read_comparison(tmp_path), ["cpu_seconds"], tmp_path / "figures")
    drawn = (tmp_path / "figures" / "curves_cpu_seconds.svg").read_text()
    assert "<image" in drawn
    assert "stroke-opacity: 0.4" not in drawn


def test_every_evaluation_is_in_the_csv(made):
    folder, _ = made
    with open(folder / "report" / "tables" / "curves.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    records = read_comparison(folder).records
    assert len(rows) == sum(len(r.curve) for r in records)
    assert sum(float(row["score"]) for row in rows) == pytest.approx(
        sum(r.curve.score.sum() for r in records)
    )
    with open(folder / "report" / "tables" / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["error"] for row in rows if row["status"] == "crashed"] == [HOSTILE] * 2


def test_the_report_is_made_from_the_records_alone(made, tmp_path, no_figures):
    folder, _ = made
    shutil.copytree(folder / "records", tmp_path / "records")
    reporting.report(tmp_path, tmp_path / "elsewhere", QUICK)
    one = (folder / "report" / "tables" / "tasks_cpu_seconds.csv").read_text()
    other = (tmp_path / "elsewhere" / "tables" / "tasks_cpu_seconds.csv").read_text()
    assert sorted(one.splitlines()) == sorted(other.splitlines())


def test_the_same_records_give_the_same_files(tmp_path):
    synthetic.write(tmp_path, small(2, axes=1))
    first, again = (reporting.report(tmp_path, tmp_path / name, QUICK) for name in ("one", "two"))
    assert len(first) > 10
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_text_of_users_is_escaped(made):
    page = (made[0] / "report" / "report.html").read_text()
    assert EVIL not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert len(re.findall(r"<script", page)) == 1
    text = (made[0] / "report" / "report.md").read_text()
    assert EVIL not in text
    assert not re.search(r"(?<!\\)\]\(javascript", text)


def test_every_figure_is_a_table_too_and_every_run_is_drawn(made):
    page = (made[0] / "report" / "report.html").read_text()
    for figure in re.findall(r"<figure>.*?</figure>", page, re.S):
        assert figure.count("<svg viewBox=") >= 1
        assert "<details><summary>As a table</summary>" in figure
        assert "<tbody>" in figure
    evaluated = sum(len(r.curve) > 0 for r in read_comparison(made[0]).records)
    assert len(re.findall(r'<polyline class="run"', page)) == 4 * evaluated


def test_what_a_sceptic_asks_for_is_there(made):
    page = (made[0] / "report" / "report.html").read_text()
    for words in ("ours won against every opponent", "Conflict of interest", "40 trials", "What would change",
                  "import", "compile", "synthetic experiments", "Newcombe", "Kaplan", "x86_64, 2 cores", "torch",
                  "Every run", "1 crashed", "regret", "optimality gap", "logrank"):  # fmt: skip
        assert words in page, words
    markdown = (made[0] / "report" / "report.md").read_text()
    for words in ("ours won against every opponent", "Conflict of interest", "What would change", "crashed"):
        assert words in markdown, words


def test_a_comparison_that_is_partly_done_says_so(tmp_path, no_figures):
    plan = small(3, axes=1)
    write_comparison(tmp_path, plan)
    reporting.report(tmp_path, rules=QUICK)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "18 of 18 planned runs have no record yet" in page
    assert "No verdict yet" in page
    for record in plan.records[:4]:
        write_record(record_path(tmp_path, *record.key), record)
    half = dataclasses.replace(plan.records[4], status="unfinished")
    write_record(record_path(tmp_path, *half.key), half)
    record_path(tmp_path, *plan.records[5].key).write_bytes(b"half a file")
    reporting.report(tmp_path, rules=QUICK)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "13 of 18 planned runs have no record yet" in page
    assert "Not at their end, and in no statistic: 1 of 5 records" in page
    assert "Cannot be read: 1 file" in page


@pytest.mark.parametrize("drop", ["threshold", "limits", "both"])
def test_tasks_of_which_less_is_known(tmp_path, no_figures, drop):
    plan = small(3, axes=1)
    changes = {
        "threshold": {"threshold": None},
        "limits": {"limits": None},
        "both": {"threshold": None, "limits": None},
    }
    tasks = {name: dataclasses.replace(about, **changes[drop]) for name, about in plan.tasks.items()}
    synthetic.write(tmp_path, dataclasses.replace(plan, tasks=tasks))
    reporting.report(tmp_path, rules=QUICK)
    page = (tmp_path / "report" / "report.html").read_text()
    assert ("no threshold is set" in page) == (drop != "limits")
    assert ("no limits are known" in page) == (drop != "threshold")


def test_the_command(tmp_path, no_figures):
    synthetic.write(
        tmp_path / "c", dataclasses.replace(small(2, axes=1), records=small(2, axes=1).records[:4])
    )
    result = CliRunner().invoke(main, ["report", str(tmp_path / "c"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "report.html" in result.output
    assert (tmp_path / "out" / "report.md").exists()
    result = CliRunner().invoke(main, ["report", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "no comparison in" in result.output


def partial(runs=10):
    """Three tasks; SAC was asked for on one of them, CMA-ES with fewer seeds, PPO is not yet there on the last."""
    rates = {"ours": 0.4, "PPO": 0.05, "SAC": 0.1, "CMA-ES": 0.02}
    kinds = {"ours": "reference", "CMA-ES": "gradient-free"}
    contenders = {name: Contender(kinds.get(name, "black box")) for name in rates}
    tasks = dict.fromkeys(("a", "b", "c"), Task(Threshold(0.9, "fixed"), Limits(0, 1, "made up")))
    seeds_of = {f"{task}/CMA-ES": range(min(runs, 4)) for task in tasks}
    plan = Comparison(
        tasks, contenders, range(runs), {"cpu_seconds": 60.0}, {"b/SAC": "not asked for", "c/SAC": "not asked for"},
        seeds_of,
    )  # fmt: skip
    rng = np.random.default_rng(3)
    records = [
        synthetic.run(
            task, name, seed, synthetic.rising(60, 1, 0, rates[name] * (1 + 0.2 * rng.random()), 21),
            about_task=tasks[task], about_contender=contenders[name], budget={"cpu_seconds": 60.0},
        )
        for task, name, seed in plan.planned() if (task, name) != ("c", "PPO")
    ]  # fmt: skip
    return dataclasses.replace(plan, records=records)


def test_a_comparison_that_was_meant_to_be_partial_says_so(tmp_path, no_figures):
    comparison = partial()
    reporting.report(synthetic.write(tmp_path, comparison), rules=QUICK)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "10 of 82 planned runs have no record yet (c, PPO: 10)" in page
    assert "ours won against every opponent over 1 to 3 tasks" in page
    pooled = "Over tasks, only those are pooled that both sides have runs of: PPO on 2 of 3 (a, b); SAC on 1 of 3 (a)."
    assert pooled in page
    assert "Not run on every task: SAC on 1 of 3 (a)." in page
    assert "Run with fewer than the 10 seeds: CMA-ES 4." in page
    assert "Fewer than 10 on some task: CMA-ES (4)." in page
    assert "SAC: not run on this task." in page
    assert "SAC has 1 of 3" in page
    assert "Left out, having no score on some task: PPO and SAC." in page
    text = (tmp_path / "report" / "report.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| c | ")][:1]
    assert row.split(" | ")[1:] == ["undecided", "too few runs", "not run", row.split(" | ")[4], ""]
    assert "ours won against CMA\\-ES; no verdict yet against PPO" in text.replace("CMA-ES", "CMA\\-ES")
    with open(tmp_path / "report" / "tables" / "improvement_cpu_seconds.csv", newline="") as file:
        assert {row["contender"]: row["tasks"] for row in csv.DictReader(file)} == {
            "PPO": "2", "SAC": "1", "CMA-ES": "3"
        }  # fmt: skip


def test_verdicts_over_tasks_pool_what_both_sides_have(tmp_path, no_figures):
    """The same as of a comparison of these tasks alone."""
    whole = partial()
    found = verdicts(whole, QUICK)
    for name, tasks in {"PPO": ("a", "b"), "SAC": ("a",)}.items():
        alone = dataclasses.replace(
            whole,
            tasks={task: whole.tasks[task] for task in tasks},
            contenders={n: whole.contenders[n] for n in ("ours", name)},
            records=[r for r in whole.records if r.task in tasks and r.contender in ("ours", name)],
        )
        assert verdicts(alone, QUICK).overall[name] == found.overall[name]
        assert found.pooled(name) == list(tasks)


def test_from_records_alone_nothing_is_missing_that_may_never_have_been_planned(tmp_path, no_figures):
    folder = synthetic.write(tmp_path, partial())
    (folder / "comparison.json").unlink()
    reporting.report(folder, rules=QUICK)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "not complete" not in page
    assert "Run with fewer than the 10 seeds: CMA-ES 4." in page
    assert "PPO and SAC: not run on this task." in page


def test_no_probability_stands_beside_no_verdict(tmp_path, no_figures):
    reporting.report(synthetic.write(tmp_path, partial(1)), rules=QUICK)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "No verdict yet: too few runs have come to their end." in page
    assert "scores higher with probability" not in page
    assert "P 1.00" not in page
    assert "Each contender has 1 ended run on a task" in page


def test_very_many_runs_fit_into_the_page():
    """Lines, and tables of runs and failures."""
    for records in (1, 360, 1440, 10_000, 100_000):
        points, stride = line_sizes(4 * records)
        assert 6 <= points <= 60
        assert 4 * records / stride * (110 + 11 * points) <= 2.7e6 or records < 400
        assert (stride == 1) == (records <= 2200)
    failed = [
        synthetic.run("a", "x", seed, Curve.of([]), "crashed", error=f"Traceback\n{'long ' * 900}\nValueError: {seed}")
        for seed in range(1500)
    ]  # fmt: skip
    comparison = Comparison({"a": Task()}, {"x": Contender()}, range(1500), records=failed)
    runs, failures = facts.runs_table(comparison), facts.failures_table(comparison)
    assert len(runs.numbers) == len(failures.numbers) == 1500
    assert runs.rows[-1][:2] == ["…", "500 more in tables/runs.csv"]
    assert failures.rows[-1][:2] == ["…", "1,400 more in tables/failures.csv"]
    assert runs.rows[7][-1] == "ValueError: 7"
    assert sum(len(cell) for table in (runs, failures) for row in table.rows for cell in row) < 5e5


def test_without_matplotlib_the_page_is_made_all_the_same(tmp_path, no_figures):
    synthetic.write(tmp_path, dataclasses.replace(small(2, axes=1), records=small(2, axes=1).records[:4]))
    assert not [path for path in reporting.report(tmp_path, rules=QUICK) if path.suffix == ".pdf"]


def test_logs_of_single_runs_are_linked_where_they_are(tmp_path, no_figures):
    """Relative to the report wherever it is, escaped, and none where there are none."""
    comparison = small(2, axes=1)
    folder = synthetic.write(tmp_path / "c", dataclasses.replace(comparison, records=comparison.records[:4]))
    reporting.report(folder, rules=QUICK)
    assert "Logs of single runs" not in (folder / "report" / "report.html").read_text()
    name = "a b<i>-s0"
    settings = [{"work": "comparison", "task": HOSTILE, "contender": HOSTILE}] * 3
    runs = [PlannedRun(place, "", k, settings[k]) for k, place in enumerate((name, "no files", ".."))]
    Plan(folder, "c", tuple(runs), LocalConfig(), SlurmConfig()).save()
    (folder / "runs" / name / "tensorboard").mkdir(parents=True)
    for file in ("log.txt", "history.csv", "secret"):
        (folder / "runs" / name / file).touch()
    (folder / "log.txt").touch()
    for out, way in ((None, "../runs/"), (tmp_path / "else" / "where", "../../c/runs/")):
        html, markdown = reporting.report(folder, out, rules=QUICK)[:2]
        page = html.read_text()
        quoted = f"{way}a%20b%3Ci%3E-s0"
        found = re.findall(
            r'<a href="([^"]*)">(?:log.txt|history.csv|tensorboard|curve.jsonl|secret)</a>', page
        )
        assert found == [f"{quoted}/{file}" for file in ("log.txt", "history.csv", "tensorboard")]
        assert (html.parent / unquote(found[0])).exists()
        assert EVIL not in page
        assert f"[log.txt]({quoted}/log.txt)" in markdown.read_text()


# -- parts of figures -------------------------------------------------------------------------------------------------


def test_ticks_and_numbers():
    assert nice_ticks(0, 60) == [0, 20, 40, 60]
    assert nice_ticks(-1300, -100) == [-1250, -1000, -750, -500, -250]
    assert nice_ticks(3, 3) == [3]
    assert (short(1_200_000), short(20_000), short(-0.5)) == ("1.2M", "20k", "−0.5")
    assert (short3(0.12345), short3(1234.5), short3(math.nan), short3(-math.inf)) == (
        "0.123",
        "1234",
        "–",
        "−∞",
    )


def test_lines_keep_their_ends_and_steps_do_not_look_ahead():
    x, y = thinned(np.arange(100.0), np.arange(100.0), 7)
    assert (len(x), x[0], x[-1]) == (7, 0, 99)
    x, y = stepped(np.array([0.0, 2, 5]), np.array([1.0, 3, 4]))
    assert list(zip(x, y, strict=True)) == [(0, 1), (2, 1), (2, 3), (5, 3), (5, 4)]


def test_a_first_fall_does_not_flatten_the_figure():
    low, high = score_range([np.array([-7e5, -100.0, -60, -55] + [-50.0] * 30)], [-60.0])
    assert -200 < low < -60
    assert high > -50


# -- a real browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            f"no browser on the PATH: none of {', '.join(names)}"
        )
    from playwright.sync_api import sync_playwright

    quiet = ("background-networking", "component-update", "sync", "gpu", "quic")
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in quiet)]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def view(browser, made):
    """Opens the report from its file; at the end nothing may have been complained about or asked for."""
    contexts, complaints, requests = [], [], []
    uri = (made[0] / "report" / "report.html").as_uri()

    def open_page(width=1200, **options):
        context = browser.new_context(offline=True, viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append("a dialog opened"))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(uri)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert set(requests) == {uri}


AXES = ("cpu_seconds", "environment_steps", "wall_seconds", "gradient_evaluations")


def visible(page, selector):
    return page.evaluate(
        f"[...document.querySelectorAll({selector!r})].filter(e => e.getClientRects().length).length"
    )


@pytest.mark.parametrize("script", [True, False])
def test_the_axis_and_the_contenders_are_switched(view, script):
    """Also without JavaScript."""
    page = view(java_script_enabled=script)
    shown = {axis: page.locator(f".axis-{axis} h2").first for axis in AXES}
    for axis in AXES:
        page.check(f"#axis-{axis}")
        assert [name for name, heading in shown.items() if heading.is_visible()] == [axis]
    runs = page.locator("div.axis-gradient_evaluations polyline.middle:visible")
    before = runs.count()
    page.uncheck("#show-1")
    assert 0 < runs.count() < before
    assert page.locator("label.c1").is_visible()
    page.check("#show-1")
    assert runs.count() == before


def test_the_choice_is_kept_in_the_address(view):
    page = view()
    page.check("#axis-wall_seconds")
    page.uncheck("#show-2")
    assert page.url.endswith("#axis=wall_seconds&hide=2")
    page.reload()
    assert page.is_checked("#axis-wall_seconds")
    assert not page.is_checked("#show-2")
    assert page.is_checked("#show-1")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_400_pixels(view, scheme):
    page = view(400, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    for axis in AXES:
        page.check(f"#axis-{axis}")
        assert page.evaluate("document.documentElement.scrollWidth") == 400


CONTRASTS = """
() => {
  const channel = v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const background = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  document.querySelectorAll('details').forEach(d => d.open = true);
  const bad = [];
  for (const e of document.querySelectorAll('body *')) {
    if (!e.getClientRects().length || ['SCRIPT', 'STYLE', 'title'].includes(e.tagName)) continue;
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const style = getComputedStyle(e);
    const ink = parse(e instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(ink), light(background(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push([e.tagName, e.textContent.trim().slice(0, 40), ratio]);
  }
  return bad;
}
"""
LINES = """
() => {
  const channel = v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const hex = text => [1, 3, 5].map(i => parseInt(text.trim().slice(i, i + 2), 16));
  const root = getComputedStyle(document.documentElement);
  const card = light(hex(root.getPropertyValue('--card')));
  return [0, 1, 2, 3, 4, 5, 6, 7].map(i => {
    const ink = light(hex(root.getPropertyValue('--c' + i)));
    return (Math.max(ink, card) + 0.05) / (Math.min(ink, card) + 0.05);
  });
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(view, scheme):
    page = view(color_scheme=scheme)
    assert page.evaluate(CONTRASTS) == []
    # Lines of contenders: WCAG 2.2, 1.4.11 asks for 3.
    assert min(page.evaluate(LINES)) >= 3
    back = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", back)[:3])) > 384
    assert light == (scheme == "light")


def test_the_keyboard_reaches_every_control_and_the_focus_shows(view):
    page = view()
    seen = []
    for _ in range(400):
        page.keyboard.press("Tab")
        here = page.evaluate(
            "(() => { const e = document.activeElement; const s = getComputedStyle(e); return [e.id || e.tagName,"
            "e === document.body ? 'body' : s.outlineStyle, parseFloat(s.outlineWidth)]; })()"
        )
        if here[1] == "body":
            break
        seen.append(here)
    assert all(style == "solid" and width >= 2 for _, style, width in seen), seen
    names = [name for name, *_ in seen]
    assert names[0] == "A"  # to the result
    assert "axis-cpu_seconds" in names
    assert {"show-0", "show-1", "show-2"} <= set(names)
    assert names.count("SUMMARY") == visible(page, "summary")
    page.focus("#axis-cpu_seconds")
    page.keyboard.press("ArrowRight")
    assert page.is_checked("#axis-environment_steps")
    page.focus("#show-1")
    page.keyboard.press("Space")
    assert not page.is_checked("#show-1")


def test_it_can_be_read_without_javascript(view):
    page = view(java_script_enabled=False)
    assert "ours won against every opponent" in page.locator(".headline:visible").inner_text()
    assert page.locator("figure:visible svg").first.is_visible()
    page.locator("summary:visible").first.click()
    assert page.locator("details[open] table").first.is_visible()


def test_it_prints(view):
    page = view()
    page.emulate_media(media="print")
    assert visible(page, ".controls input") == visible(page, ".controls legend:first-child") - 1 == 0
    assert visible(page, ".controls .swatch") == 3  # the legend of all figures
    assert page.is_visible(".headline")
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert 2 <= pages <= 60
    # What is folded is printed.
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert visible(page, "details table") == visible(page, "details .scroll") > 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
