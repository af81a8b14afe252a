"""Which GPU a run is given, with an environment and an nvidia-smi that are made up."""

import os
import subprocess
from types import SimpleNamespace

import pytest
import torch
from suite_folders import write_suite

from diffsim.assembly import device_named
from diffsim.errors import ConfigError
from diffsim.suites import local
from diffsim.suites.gpus import Places, needs_gpu, visible_gpus
from diffsim.suites.plan import resolve
from diffsim.suites.suite_file import read_suite

LISTING = """\
GPU 0: NVIDIA H100 (UUID: GPU-aaaa)
  MIG 1g.10gb     Device  0: (UUID: MIG-1111)
  MIG 1g.10gb     Device  1: (UUID: MIG-2222)
GPU 1: NVIDIA H100 (UUID: GPU-bbbb)
"""


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ("0,2", ["0", "2"]),
        ("MIG-1111, GPU-bbbb", ["MIG-1111", "GPU-bbbb"]),
        ("", []),
        ("-1", []),
        ("1,-1,2", ["1"]),
    ],
)
def test_the_environment_says_which_are_visible(monkeypatch, chosen, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_gpus() == names


def test_else_nvidia_smi_does_with_instances_in_place_of_the_gpu_they_are_parts_of(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    answer = SimpleNamespace(returncode=0, stdout=LISTING)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    assert visible_gpus() == ["MIG-1111", "MIG-2222", "GPU-bbbb"]
    answer.returncode = 9
    assert visible_gpus() == []

    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    assert visible_gpus() == []


@pytest.mark.parametrize(
    ("device", "there", "needs"),
    [
        ("cpu", ["0"], False),
        ("cuda", [], True),
        ("cuda:1", ["0"], False),
        ("auto", [], False),
        ("auto", ["0"], True),
    ],
)
def test_which_runs_are_given_one(device, there, needs):
    assert needs_gpu({"device": device}, there) is needs


def test_places_are_given_evenly():
    places = Places(["0", "1"], 2)
    taken = []
    while (name := places.free()) is not None:
        places.take(name)
        taken.append(name)
    assert sorted(taken) == ["0", "0", "1", "1"]
    assert taken[0] != taken[1]
    places.give("1")
    assert places.free() == "1"
    assert Places([], 1).free() is None


def test_the_device_auto_is_what_there_is(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_named("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_named("auto") == device_named("cuda") == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device_named("auto") == torch.device("cuda:1")
    assert device_named("cuda:0") == torch.device("cuda:0")


class Recorded(local.Process):
    """A process of which the driver's tests see with what it was started; it ends when ``ended`` says so."""

    started: list["Recorded"]

    def __init__(self, plan, run, trust, cpus=(), gpu=None):
        super().__init__(run, plan.folder(run))
        self.cpus, self.gpu, self.ended = cpus, gpu, False
        self.started.append(self)

    def poll(self):
        return 70 if self.ended else None

    def ask_to_stop(self):
        self.ended = True


@pytest.fixture
def plan_on(tmp_path, monkeypatch):
    Recorded.started = []
    monkeypatch.setattr(local, "_Fresh", Recorded)
    monkeypatch.setattr(local.time, "sleep", lambda _: [setattr(p, "ended", True) for p in Recorded.started])

    def make(devices, options=""):
        matrix = "".join(f'{{device = "{device}", label = "{device}"}}, ' for device in devices)
        write_suite(
            tmp_path, f"[matrix]\noverrides = [{matrix}]\nseed = [0, 1]\n[local]\nworkers = 8\n{options}"
        )
        monkeypatch.setattr("diffsim.assembly.Assembly.device", torch.device("cpu"))
        plan = resolve(read_suite(tmp_path / "suite.toml", str(tmp_path / "out")))
        plan.folder(plan.runs[0]).mkdir(parents=True)
        plan.save()
        return plan

    return make


def test_at_most_so_many_runs_are_on_a_gpu_at_a_time(plan_on, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1111,MIG-2222")
    plan = plan_on(["cuda", "auto"], "runs_per_gpu = 1\n")
    together, step = [], local.Driver._step

    def watched(self, workers, stop):
        step(self, workers, stop)
        together.append(sorted(process.gpu for process in self._running.values() if process.gpu))

    monkeypatch.setattr(local.Driver, "_step", watched)
    local.Driver(plan, 0, say=lambda _: None).drive(list(plan.runs))
    assert sorted(process.gpu for process in Recorded.started) == ["MIG-1111"] * 2 + ["MIG-2222"] * 2
    assert max(together, key=len) == ["MIG-1111", "MIG-2222"]


def test_a_run_that_waits_for_a_gpu_holds_up_no_other(plan_on, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    plan = plan_on(["cuda", "cuda:5"])
    local.Driver(plan, 0, say=lambda _: None).drive(list(plan.runs))
    # The second run on any GPU comes last; those that have chosen for themselves keep the environment.
    assert [process.gpu for process in Recorded.started] == ["0", None, None, "0"]


def test_a_run_that_needs_a_gpu_is_refused_where_there_is_none(plan_on, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    plan = plan_on(["cuda"])
    with pytest.raises(ConfigError, match='device = "auto" takes the CPU'):
        local.Driver(plan, 0, say=lambda _: None).drive(list(plan.runs))
    assert not Recorded.started


def test_pinned_runs_have_cpus_of_their_own(plan_on, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6, 7})
    plan = plan_on(["cuda", "auto"], "pin = true\n")
    local.Driver(plan, 0, say=lambda _: None).drive(list(plan.runs))
    assert [process.cpus for process in Recorded.started] == [(3,), (5,), (6,), (7,)]


def test_a_forked_run_is_bound_to_its_cpus_and_has_the_gpu_it_was_given(tmp_path, monkeypatch):
    write_suite(tmp_path, "[matrix]\nseed = 0\n")
    plan = resolve(read_suite(tmp_path / "suite.toml", str(tmp_path / "out")))
    run = plan.runs[0]
    plan.folder(run).mkdir(parents=True)
    seen = tmp_path / "seen"
    monkeypatch.setattr(local, "work", lambda *_: seen.write_text(str(os.sched_getaffinity(0))) and 0)
    cpu = min(os.sched_getaffinity(0))
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    process = local._Forked(plan, run, False, lock, (cpu,))
    process._process.join(60)
    os.close(lock)
    assert process.poll() == 0
    assert seen.read_text() == str({cpu})


def test_a_fresh_process_sees_its_gpu_only(tmp_path, monkeypatch):
    started = {}
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: started.update(options))
    write_suite(tmp_path, "[matrix]\nseed = 0\n")
    plan = resolve(read_suite(tmp_path / "suite.toml", str(tmp_path / "out")))
    local._Fresh(plan, plan.runs[0], False, (), "MIG-1111")
    assert started["env"]["CUDA_VISIBLE_DEVICES"] == "MIG-1111"
    assert started["env"]["OMP_NUM_THREADS"] == "1"
