"""Our adaptive methods on problems from the literature: global errors in units of the tolerance."""

import pytest
import torch
from published_problems import ARENSTORF, DETEST, PROBLEMS, ROBER, VAN_DER_POL, Problem

from solvers.ivp import solve

ORBITS = [p for p in DETEST if p.name[0] == "D"]
# The orbits have one vector field: a batch, of which every rollout takes its own steps.
GROUPS = [ORBITS, *([p] for p in DETEST if p not in ORBITS)]


def global_errors(problems: list[Problem], solver: str, rtol: float, atol: float) -> list[float]:
    """Of problems with one vector field: the largest errors at the end in units of atol + rtol |solution|."""
    start = torch.tensor([p.x0 for p in problems], dtype=torch.float64)
    times = torch.tensor([0.0, problems[0].t_end], dtype=torch.float64)
    with torch.no_grad():
        end = solve(problems[0].f, start, times, solver=solver, rtol=rtol, atol=atol).xs[-1]
    solution = torch.tensor([p.solution for p in problems], dtype=torch.float64)
    return ((end - solution).abs() / (atol + rtol * solution.abs())).amax(dim=-1).tolist()


def check(
    problems: list[Problem], solver: str, loose: float, tight: float, atol_over_rtol: float = 1.0
) -> None:
    """Both errors are within the problem's bound, and the tight one is a tenth of the loose one at most."""
    errors = [global_errors(problems, solver, rtol, rtol * atol_over_rtol) for rtol in (loose, tight)]
    for problem, at_loose, at_tight in zip(problems, *errors, strict=True):
        assert at_loose <= problem.bound, problem.name
        assert at_tight <= problem.bound, problem.name
        assert at_tight * tight <= at_loose * loose / 10, problem.name


@pytest.mark.parametrize("problems", GROUPS, ids=lambda group: group[0].name)
@pytest.mark.parametrize("solver", ["tsit5", "dopri5"])
def test_detest(problems, solver):
    check(problems, solver, 1e-6, 1e-9)


@pytest.mark.parametrize(
    "problem",
    [
        pytest.param(p, id=p.name, marks=[pytest.mark.slow] * (p.name in ("vdP mu=100", "vdP mu=1000")))
        for p in VAN_DER_POL
    ],
)
def test_van_der_pol(problem):
    if problem.stiff:
        check([problem], "rodas5p", 1e-6, 1e-8)
    else:
        check([problem], "tsit5", 1e-6, 1e-9)


def test_robertson():
    """Its second component is 1e-13 in the end: atol must be below that."""
    check([ROBER], "rodas5p", 1e-6, 1e-8, atol_over_rtol=1e-8)


def test_the_arenstorf_orbit_closes():
    check([ARENSTORF], "tsit5", 1e-9, 1e-10)


def test_times_in_a_list_are_doubles():
    """A period rounded to float32 misses the Arenstorf orbit's end by 1e-4."""
    start = torch.zeros(1, 1, dtype=torch.float64)
    for times in ([0.0, 0.1], (0.0, 0.1)):
        solution = solve(lambda t, x, u, p: torch.ones_like(x), start, times)
        assert float(solution.ts[-1]) == 0.1
        assert float(solution.xs[-1]) == pytest.approx(0.1, rel=1e-14)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_the_data_are_consistent(problem):
    """Solution and slope have the state's shape, batched or not; the amplification explains the bound."""
    assert len(problem.solution) == len(problem.x0)
    x = torch.tensor([problem.x0] * 3, dtype=torch.float64)
    slopes = problem.f(torch.zeros(3, dtype=torch.float64), x, None, None)
    torch.testing.assert_close(slopes[1], problem.f(torch.zeros(()).double(), x[1], None, None))
    assert slopes.shape == x.shape
    assert problem.bound <= 4 * problem.amplification
    assert problem.source


def test_the_closed_forms_agree_with_the_published_end_values():
    """A few of Algorithm 648's, one of every formula."""
    published = {
        "A5": (-7.887826688964196e-1,),
        "B4": (9.826950928005993e-1, 2.198447081694832, 9.129452507276399e-1),
        "D5": (-1.295266250987574, 4.003938963792321e-1, -6.775390924707566e-1, -1.270838154278686e-1),
        "E1": (1.456723600728308e-1, -9.883500195574063e-2),
        "E4": (3.395091444646555e1, 2.767822659672869e-1),
        "E5": (1.411797390542629e1, 2.4),
    }
    solutions = {p.name: p.solution for p in DETEST}
    for name, values in published.items():
        assert solutions[name] == pytest.approx(values, rel=1e-12), name
