"""A sweep: its runs, and the stages that they share."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.identity import stage_hash
from configs.load import dump_experiment, load_experiment
from configs.schema import Experiment
from launch import commands
from launch import sweep as sweeping
from launch.arguments import DEFAULT_CONFIG as DEMO
from launch.commands import main
from launch.deepspeed_command import Launch
from launch.sweep import link_shared, run_sweep, runs_of, seeds_of, split_axes
from launch.worker_pool import WorkerPool
from pipeline.planning.plan import StagePlan
from pipeline.planning.request import Request
from pipeline.state.results import sweep_runs
from pipeline.state.run_directory import RunDirectory
from tests.contract.bad_inputs.entry import tristage
from tests.support.finished_run import Run as MadeUp

TINY = DEMO.with_name("tiny.yaml")


def test_values_after_commas_are_runs_and_lists_are_not() -> None:
    fixed, axes = split_axes(
        ["ppo.kl_coef=0,0.05", "sft.epochs=2", "ppo.rewards=[{source: rm}, {source: 'a:b'}]", "ppo.lam=1,0.9"]
    )
    assert fixed == ["sft.epochs=2", "ppo.rewards=[{source: rm}, {source: 'a:b'}]"]
    assert axes == [["ppo.kl_coef=0", "ppo.kl_coef=0.05"], ["ppo.lam=1", "ppo.lam=0.9"]]
    with pytest.raises(UserError, match=r"rm\.epochs: a sweep shares"):
        split_axes(["rm.epochs=1,2"])


def test_a_resolved_experiment_loads_again_whatever_best_is_left_to(tmp_path: Path) -> None:
    """`best` samples as PPO does by default, so PPO's short limits also apply to it."""
    config = load_experiment(DEMO)
    file = tmp_path / "config.yaml"
    file.write_text(dump_experiment(config))
    assert load_experiment(file) == config
    assert stage_hash(config, "best") != stage_hash(
        load_experiment(DEMO, ["ppo.rollout.max_new_tokens=9"]), "best"
    )


def test_every_combination_has_every_seed(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, [["ppo.kl_coef=0", "ppo.kl_coef=0.05"], ["ppo.lam=1"]], [0, 1])
    assert [(run.setting, run.seed) for run in runs] == [
        ("kl_coef=0 lam=1", 0), ("kl_coef=0 lam=1", 1), ("kl_coef=0.05 lam=1", 0), ("kl_coef=0.05 lam=1", 1),
    ]  # fmt: skip
    assert runs[3].overrides == ("ppo.kl_coef=0.05", "ppo.lam=1", "ppo.seed=1")
    assert runs[3].path == tmp_path / "sweep" / "kl_coef=0.05-lam=1-seed=1"
    assert len({run.path for run in runs}) == 4


def refused(tmp_path: Path, *words: str) -> str:
    """The message of a `tristage sweep` that starts nothing."""
    status, _, err = tristage("sweep", "--config", TINY, "--run-dir", tmp_path / "run", *words)
    assert status == 2 and not (tmp_path / "run").exists()
    assert err.count("\n") == 1
    return err


def test_seeds_are_those_that_are_given() -> None:
    assert seeds_of(["ppo.lam=1"], None) == (["ppo.lam=1"], [0, 1, 2, 3])
    assert seeds_of([], 2) == ([], [0, 1])
    assert seeds_of(["ppo.seed=5,6", "ppo.lam=1,0"], None) == (["ppo.lam=1,0"], [5, 6])
    assert seeds_of(["ppo.seed=[7, 3]"], None) == ([], [7, 3])
    assert seeds_of(["ppo.seed=9"], None) == ([], [9])


@pytest.mark.parametrize("value", ["5,5", "5,05", "5,", "", "a,b", "-1,2", "1.5", "1e3", "9" * 5000, "²"])
def test_seeds_that_are_none_are_refused(value: str, tmp_path: Path) -> None:
    assert "ppo.seed: " in refused(tmp_path, f"ppo.seed={value}")


def test_seeds_are_named_in_one_way(tmp_path: Path) -> None:
    assert "both name the seeds" in refused(tmp_path, "--seeds", "2", "ppo.seed=5,6")


@pytest.mark.parametrize("values", ["0.05,0.05", "0.05,5e-2", "0,0.0", "0.05, 0.05"])
def test_values_that_are_equal_are_refused(values: str, tmp_path: Path) -> None:
    assert "have equal values. Give each value once" in refused(tmp_path, f"ppo.kl_coef={values}")


@pytest.mark.parametrize("words", [["ppo.lam=1,"], ["ppo.lam=,1"], ["ppo.lam=1,0", "ppo.lam=0.9,0.8"]])
def test_lists_that_are_incomplete_or_given_twice_are_refused(words: list[str], tmp_path: Path) -> None:
    assert "Write ppo.lam=VALUE,VALUE" in refused(tmp_path, *words)


@pytest.mark.parametrize("words", [["--seeds", "100000"], ["--seeds", "300", "ppo.lam=1,0"]])
def test_too_many_runs_are_refused_at_once(words: list[str], tmp_path: Path) -> None:
    begin = time.monotonic()
    assert "are more than 500 runs" in refused(tmp_path, *words)
    assert time.monotonic() - begin < 5


def test_names_of_runs_are_names_of_experiments(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, [["ppo.judge=my:fn", "ppo.judge=warmth"]], [0])
    assert [run.name for run in runs] == ["judge_my_fn-seed_0", "judge_warmth-seed_0"]
    with pytest.raises(UserError, match="too long for the name of a run"):
        runs_of(tmp_path, [[f"ppo.judge={'m' * 250}:f", "ppo.judge=warmth"]], [0])


def test_a_path_is_one_folder_which_the_report_finds(tmp_path: Path) -> None:
    axis = ["ppo.from=runs/a/ppo/adapter", "ppo.from=../b c/ppo/adapter"]
    runs = runs_of(tmp_path, [axis], [0])
    assert [run.path.name for run in runs] == [
        "from=runs_a_ppo_adapter-seed=0", "from=.._b c_ppo_adapter-seed=0",
    ]  # fmt: skip
    assert [run.setting for run in runs] == ["from=runs/a/ppo/adapter", "from=../b c/ppo/adapter"]
    for run in runs:
        run.path.mkdir(parents=True)
        MadeUp(run.path).stage("ppo").write_evaluation()
    assert sorted(sweep_runs(tmp_path)) == sorted(run.path for run in runs)


def test_two_values_that_would_have_one_folder_are_refused(tmp_path: Path) -> None:
    err = refused(tmp_path, "ppo.from=runs/a/b,runs/a_b")
    assert "from=runs/a/b and from=runs/a_b would have one folder: from=runs_a_b-seed=0" in err


def test_a_run_has_no_link_to_a_stage_that_the_root_lacks(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    link_shared(tmp_path, tmp_path / "sweep" / "seed=0")
    assert sorted(path.name for path in (tmp_path / "sweep" / "seed=0").iterdir()) == ["sft"]


def test_runs_stand_on_the_shared_stages(tmp_path: Path) -> None:
    for stage in ("sft", "rm"):
        (tmp_path / "run" / stage).mkdir(parents=True)
        (tmp_path / "run" / stage / "manifest.json").write_text(stage)
    run = tmp_path / "run" / "sweep" / "seed=0"
    link_shared(tmp_path / "run", run)
    link_shared(tmp_path / "run", run)  # a resumed sweep
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert (moved / "sweep" / "seed=0" / "rm" / "manifest.json").read_text() == "rm"


STAND_IN = """
import os, signal, sys, time
from pathlib import Path
path, fate = Path(sys.argv[1]), sys.argv[2]
if fate == "waits":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    Path(path, "waits").touch()
    time.sleep(60)
elif fate == "meets":  # ends once its neighbour is there, too
    Path(path, "met").touch()
    while not Path(path.with_name("seed=1"), "met").exists():
        time.sleep(0.01)
elif fate == "follows":  # ends well after the first run
    while not Path(path.with_name("seed=0"), "ended").exists():
        time.sleep(0.01)
    time.sleep(2)
print(os.environ.get("CUDA_VISIBLE_DEVICES", "-"), os.environ.get("OMP_NUM_THREADS", "-"), flush=True)
Path(path, "ended").touch()
sys.exit(int(fate) if fate.isdigit() else 0)
"""


def sweep_of(
    root: Path, fates: list[str], monkeypatch: pytest.MonkeyPatch, pool: WorkerPool, shared: int = 0
) -> tuple[int, list[bool]]:
    """Sweep with a stub for each run; returns the status, and which of the runs ended by themselves."""
    monkeypatch.setattr(sweeping, "run_all", lambda _request, _launch, _plans: shared)
    runs = runs_of(root, [], range(len(fates)))
    commands = [
        [sys.executable, "-c", STAND_IN, str(run.path), fate] for run, fate in zip(runs, fates, strict=True)
    ]
    request = Request(load_experiment(TINY), RunDirectory(root), "")
    status = run_sweep((request, Launch(Path(), []), []), list(zip(runs, commands, strict=True)), pool)
    return status, [(run.path / "ended").exists() for run in runs]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_fails_does_not_end_the_others(
    jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sweep_of(tmp_path, ["0", "5", "0"], monkeypatch, WorkerPool(jobs)) == (5, [True, True, True])


def test_nothing_trains_without_the_shared_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep_of(tmp_path, ["0", "0"], monkeypatch, WorkerPool(), shared=7) == (7, [False, False])


def test_a_run_that_is_interrupted_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep_of(tmp_path, ["143", "0"], monkeypatch, WorkerPool()) == (143, [True, False])


def test_a_signal_reaches_every_run_and_no_other_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        while len(list(tmp_path.glob("sweep/*/waits"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    begin = time.monotonic()
    assert sweep_of(tmp_path, ["waits", "waits", "0"], monkeypatch, WorkerPool(2)) == (
        143,
        [False, False, False],
    )
    assert time.monotonic() - begin < 50  # the runs got the signal and did not sleep to their end


@pytest.mark.parametrize(("jobs", "trained"), [(1, [True, False, False]), (2, [True, True, False])])
def test_what_needs_mending_is_not_met_again_by_the_next(
    jobs: int, trained: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sweep_of(tmp_path, ["2", "follows" if jobs > 1 else "0", "0"], monkeypatch, WorkerPool(jobs)) == (
        2,
        trained,
    )


def test_no_run_outlives_a_sweep_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = WorkerPool(2)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "seed=1").write_text("in the way")
    with pytest.raises(UserError, match=r"seed=1: cannot be written: File exists"):
        sweep_of(tmp_path, ["waits", "0"], monkeypatch, pool)
    ((_, process),) = pool.busy.values()
    assert process.poll() is not None


@pytest.fixture
def logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[WorkerPool, list[str]], list[list[str]]]:
    """logs(pool, fates) returns the devices and the number of threads of each run of a sweep."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 16)

    def run_and_read_logs(pool: WorkerPool, fates: list[str]) -> list[list[str]]:
        assert sweep_of(tmp_path, fates, monkeypatch, pool) == (0, [True] * len(fates))
        files = [tmp_path / f"sweep/seed={seed}/run.log" for seed in range(len(fates))]
        return [file.read_text().split() for file in files]

    return run_and_read_logs


def test_runs_at_a_time_share_the_devices(logs: Callable[[WorkerPool, list[str]], list[list[str]]]) -> None:
    """Four of five devices, two per run. The third run gets the devices of the run that ends first."""
    first, second, third = logs(WorkerPool(2, ["0", "1", "4", "5", "6"]), ["meets", "meets", "0"])
    assert [first, second] == [["0,1", "-"], ["4,5", "-"]] and third in (first, second)


def test_more_runs_than_devices_meet_on_them(
    logs: Callable[[WorkerPool, list[str]], list[list[str]]],
) -> None:
    assert logs(WorkerPool(3, ["0", "1"]), ["meets", "meets", "0"]) == [["0", "-"], ["1", "-"], ["0", "-"]]


def test_runs_at_a_time_share_the_cores(logs: Callable[[WorkerPool, list[str]], list[list[str]]]) -> None:
    assert logs(WorkerPool(2, ranks=2), ["0", "0"]) == [["-", "4"]] * 2


@pytest.mark.parametrize("status", [0, 7])
def test_the_command_starts_every_run_and_reports(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`status` is the exit status of the shared stages. If they fail, there is no report."""
    shared: list[sweeping.Job] = []
    started: list[tuple[sweeping.Run, list[str]]] = []

    def run_sweep(root: sweeping.Job, runs: list[tuple[sweeping.Run, list[str]]], pool: WorkerPool) -> int:
        shared.append(root)
        assert pool.free == [0, 1, 2, 3], "more places than runs would only make shares small"
        for run, command in [] if status else runs:
            started.append((run, command))
            run.path.mkdir(parents=True)
            MadeUp(run.path).stage("ppo").write_evaluation()
        return status

    monkeypatch.setattr("launch.commands.run_sweep", run_sweep)
    arguments = ["--config", str(TINY), "--run-dir", str(tmp_path / "run"), "--seeds", "2", "sft.epochs=2"]
    arguments += ["--jobs", "9", "--num-accelerators", "1", "--force"]
    monkeypatch.setattr("sys.argv", ["tristage", "sweep", *arguments, "ppo.kl_coef=0,0.05"])
    assert main() == status
    output = capsys.readouterr()
    if status:
        assert len(shared) == 1 and "no run of a sweep" not in output.err
        return
    assert "report: " in output.out and (tmp_path / "run/sweep/report/index.html").is_file()
    root = shared[0][0].config
    assert root.sft.epochs == 2
    configs = []
    for run, command in started:
        assert command[:4] == [sys.executable, "-P", "-m", "launch.cli"]
        options = command[4:]
        assert options[:5] == ["run", "--from", "ppo", "--force", "--num-accelerators=1"]
        assert options[options.index("--run-dir") + 1] == str(run.path)
        overrides = options[options.index("--run-dir") + 2 :]
        configs.append(load_experiment(Path(options[options.index("--config") + 1]), overrides))
    coefficients_and_seeds = [(config.ppo.kl_coef, config.ppo.seed) for config in configs]
    assert coefficients_and_seeds == [(0.0, 0), (0.0, 1), (0.05, 0), (0.05, 1)]
    assert len({run.path for run, _ in started}) == len({config.name for config in configs}) == 4
    assert {config.tracking.group for config in configs} == {root.name}
    assert all(stage_hash(config, "rm") == stage_hash(root, "rm") for config in configs)


WITHOUT_RM = ["ppo.critic=shared", "ppo.rewards=[{source: 'theirs:score'}]"]


@pytest.mark.parametrize(
    ("words", "shared"),
    [
        ([], ["sft", "rm", "best"]),
        (WITHOUT_RM, ["sft"]),
        ([WITHOUT_RM[1], "ppo.critic=shared,adapter"], ["sft", "rm", "best"]),
    ],
)
def test_a_reward_model_is_shared_if_a_run_needs_one(
    words: list[str], shared: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def run_sweep(root: sweeping.Job, _runs: object, _pool: WorkerPool) -> int:
        trained.extend(plan.stage for plan in root[2])
        return 1

    monkeypatch.setattr(commands, "run_sweep", run_sweep)
    monkeypatch.setattr(commands, "check_all", lambda *_: [])
    assert tristage("sweep", "--config", TINY, "--run-dir", tmp_path / "run", *words)[0] == 1
    assert trained == shared


def test_every_setting_is_checked_once_before_anything_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[tuple[float, list[str]]] = []

    def check_all(config: Experiment, plans: list[StagePlan], *_: object) -> list[str]:
        checked.append((config.ppo.kl_coef, [plan.stage for plan in plans]))
        return []

    monkeypatch.setattr(commands, "check_all", check_all)
    monkeypatch.setattr(commands, "run_sweep", lambda *_: 1)
    own = load_experiment(TINY).ppo.kl_coef
    words = ["--seeds", "2", f"ppo.kl_coef={own},0.3,0.4"]
    assert tristage("sweep", "--config", TINY, "--run-dir", tmp_path / "run", *words)[0] == 1
    assert checked == [(own, ["sft", "rm", "best", "ppo"]), (0.3, ["ppo"]), (0.4, ["ppo"])]


def test_a_fault_of_one_setting_is_told_before_anything_trains(tmp_path: Path) -> None:
    err = refused(tmp_path, "--seeds", "1", "ppo.judge=warmth,nowhere:score")
    assert "ppo.judge: " in err and "nowhere" in err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--hostfile", "machines"], "--jobs: runs at a time share one machine"),
        (["--num-accelerators", "3"], "--num-accelerators: 3, but of 2 runs at a time each has 2"),
        (["ppo.batch_size=3", "ppo.minibatches=1"], "ppo.batch_size: 3 cannot be shared equally by 2 ranks"),
    ],
)
def test_what_runs_at_a_time_cannot_have_is_told_before_anything_starts(
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(commands, "visible_devices", lambda: ["0", "1", "2", "3"])
    monkeypatch.setattr(sweeping, "run_all", pytest.fail)
    run_dir = ["--config", str(TINY), "--run-dir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["tristage", "sweep", "--jobs", "2", *run_dir, *arguments])
    assert main() == 2
    assert reason in capsys.readouterr().err
