"""Commands as a user types them, in separate processes: exit codes, messages, and what must not start."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from launch.deepspeed_command import free_port
from tests.contract.bad_inputs import entry
from tests.support.pipeline_runs import write_stage

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "configs/tiny.yaml")


def tristage(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def run_stage(
    *arguments: str, cwd: Path = ROOT, launcher: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [*(launcher or (sys.executable,)), str(ROOT / "launch/run_stage.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_plan_shows_everything_and_starts_nothing(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = ("--config", TINY, "--run-dir", str(run_dir), "sft.learning_rate=0.00077", "--show-config")
    result = tristage("plan", *arguments)
    assert result.returncode == 0, result.stderr
    for expected in ("sft  run", "rm   run", "ppo  run", "per optimizer step", "learning_rate: 0.00077"):
        assert expected in result.stdout
    assert not run_dir.exists()


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.stem)
@pytest.mark.usefixtures("material_checks")
def test_every_shipped_experiment_can_be_planned(file: Path, tmp_path: Path) -> None:
    status, stdout, stderr = entry.tristage("plan", "--config", file, "--run-dir", tmp_path / "run")
    assert status == 0, stdout + stderr
    for expected in ("sft  run", "rm   run", "ppo  run"):
        assert expected in stdout


def test_plan_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from launch import commands\n"
        f"sys.argv = ['tristage', 'plan', '--config', {TINY!r}, '--run-dir', {str(tmp_path)!r}]\n"
        "status = commands.main()\n"
        "assert not {'torch', 'transformers', 'datasets', 'wandb'} & set(sys.modules)\n"
        "sys.exit(status)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_plan_says_what_does_not_divide(tmp_path: Path) -> None:
    result = tristage("plan", "--config", TINY, "--run-dir", str(tmp_path), "--num-accelerators", "3")
    assert result.returncode == 2
    assert "sft.batch_size: 8 cannot be shared equally by 3 ranks" in result.stderr


def test_plan_from_another_folder_and_with_arguments_in_any_order(tmp_path: Path) -> None:
    result = tristage(
        *("plan", "seed=5", "--run-dir", "here", "--until", "sft", "--config", TINY, "rm.epochs=2"),
        "--show-config",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert str(tmp_path / "here") in result.stdout
    assert "seed: 5" in result.stdout
    assert "rm   run" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "No such command 'fly'; see `tristage --help`"),
        (
            ["plan", "--from", "dpo"],
            "'dpo' is not one of 'sft', 'rm', 'ppo'; see `tristage plan --help`",
        ),
        (["plan", "--config", TINY, "--from", "ppo", "--until", "sft"], "no stage lies between"),
        (["plan", "--config", TINY, "ppo.kl_coeff=1"], "kl_coef"),
        (["plan", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["run", "--config", TINY, "--num-accelerators", "0"], "greater than or equal to 1"),
        (["status", "--jobs", "8"], "No such option: --jobs; see `tristage status --help`"),
        (["status", "--force"], "No such option: --force"),
        (["report", "--from", "rm"], "No such option: --from"),
        (["run", "--seeds", "2"], "No such option: --seeds"),
    ],
)
def test_users_mistakes_are_status_2_without_a_traceback(arguments: list[str], message: str) -> None:
    result = tristage(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr


GROUPS = {
    "run": ["Experiment", "Finished and interrupted stages", "Machine", "Stages"],
    "sweep": ["Experiment", "Finished and interrupted stages", "Machine", "Sweep"],
    "plan": ["Experiment", "Finished and interrupted stages", "Machine", "Stages"],
    "status": ["Experiment"],
    "report": ["Experiment"],
    "serve": ["Experiment", "Server"],
    "chat": ["Experiment", "Chat"],
}


@pytest.mark.parametrize("name", GROUPS)
def test_help_of_a_subcommand_has_one_line_groups_and_an_example(name: str) -> None:
    result = tristage(name, "--help")
    assert result.returncode == 0, result.stderr
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    assert lines[0].startswith(f"Usage: tristage {name} ")
    panels = [line.split()[1:-1] for line in lines if line.startswith("╭")]
    titles = [" ".join(word for word in panel if "─" not in word) for panel in panels]
    assert titles == ["Arguments", "Options", *GROUPS[name]]
    example = next(
        number for number, line in enumerate(lines) if line.startswith(f"Example: tristage {name}")
    )
    assert not any(line.startswith(("╭", "│")) for line in lines[example:]), "the example comes last"


def test_version_is_the_installed_one() -> None:
    result = tristage("--version")
    assert (result.returncode, result.stdout) == (0, f"tristage {version('tristage')}\n")


def test_completion_is_offered() -> None:
    result = tristage("--help")
    assert "--install-completion" in result.stdout and "Shell completion: " in result.stdout


def test_run_stops_before_starting_if_upstream_is_missing(tmp_path: Path) -> None:
    result = tristage("run", "--config", TINY, "--run-dir", str(tmp_path), "--from", "rm")
    assert result.returncode == 2
    assert "stage rm: needs stage sft" in result.stderr
    assert f"tristage run --from sft --until sft --config {TINY} --run-dir {tmp_path}" in result.stderr


def test_status_needs_no_configuration(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft")
    result = tristage("status", "--run-dir", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "finished" in result.stdout and "not run" in result.stdout


def test_unknown_stage_is_status_2() -> None:
    result = run_stage("--stage", "dpo")
    assert result.returncode == 2
    assert "'dpo' is not one of 'sft', 'rm', 'ppo', 'best'" in result.stderr


def test_stage_without_upstream_names_the_command(tmp_path: Path) -> None:
    result = run_stage("--stage", "ppo", "--config", TINY, "--run-dir", str(tmp_path / "run"))
    assert result.returncode == 2
    assert "stage ppo: needs stage sft" in result.stderr
    assert "Run it first: python launch/run_stage.py --stage sft" in result.stderr


def test_stage_runs_from_any_folder_and_is_then_skipped(tmp_path: Path) -> None:
    arguments = ("--stage", "sft", "--config", TINY, "--run-dir", "run", "sft.max_steps=1")
    first = run_stage(*arguments, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    script = ROOT / "launch/run_stage.py"  # a suggestion works where it is made
    assert f"next: python {script} --stage rm --config {TINY} --run-dir run" in first.stdout
    assert (tmp_path / "run/sft/manifest.json").exists()
    assert (tmp_path / "run/sft/adapter/adapter_config.json").exists()
    assert (tmp_path / "run/sft/logs/rank0.log").read_text()
    second = run_stage(*arguments, cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert "finished with this configuration" in second.stdout


@pytest.mark.distributed
@pytest.mark.slow
def test_deepspeed_with_two_ranks_is_quiet_and_skips_too(tmp_path: Path) -> None:
    launcher = (
        str(Path(sys.executable).parent / "deepspeed"),
        "--num_accelerators",
        "2",
        "--master_port",
        str(free_port()),
    )
    arguments = ("--stage", "sft", "--config", TINY, "--run-dir", str(tmp_path / "run"), "sft.max_steps=1")
    first = run_stage(*arguments, launcher=launcher)
    assert first.returncode == 0, first.stderr
    stage_lines = [
        line for line in first.stdout.splitlines() if not line.startswith("[20")
    ]  # not the launcher's
    assert "next: deepspeed launch/run_stage.py --stage rm" in first.stdout
    for noise in ("Warning", "gemm_4bit_forward", "Loading weights", "Setting accelerator"):
        assert noise not in "\n".join(stage_lines) + first.stderr
    assert first.stdout.count("stage sft finished") == 1
    assert (tmp_path / "run/sft/logs/rank1.log").exists()
    second = run_stage(*arguments, launcher=launcher)
    assert second.returncode == 0, second.stderr
    assert "finished with this configuration" in second.stdout
