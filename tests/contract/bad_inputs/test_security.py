"""No file from others is executed, and no secret of the environment is written to a file."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.storage.files import stays_inside
from pipeline.state.manifest import read_manifest
from tests.contract.bad_inputs.entry import files
from tests.contract.bad_inputs.model_damage import Plant

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("configs", "data", "stages", "pipeline", "launch")
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {
    *("torch.load", "torch.jit.load", "numpy.load", "np.load", "yaml.load", "yaml.unsafe_load"),
    *("os.system", "eval", "exec"),
}
SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_planted0secret0that0nobody0may0see",
    "OPENAI_API_KEY": "sk-planted-secret-that-nobody-may-see",
}


def syntax_nodes() -> Iterator[tuple[str, ast.AST]]:
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                yield f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", node


def test_our_code_neither_unpickles_nor_trusts() -> None:
    violations = []
    for location, node in syntax_nodes():
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            violations += [location for name in names if name.split(".")[0] in UNPICKLERS]
        if isinstance(node, ast.Call):
            violations += [location] if ast.unparse(node.func) in FORBIDDEN_CALLS else []
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                is_trusting = (keyword.arg, value) in {
                    ("trust_remote_code", "True"),
                    ("weights_only", "False"),
                }
                violations += [location] if is_trusting or (keyword.arg, value) == ("shell", "True") else []
    assert violations == []


def test_our_code_prints_through_the_one_door() -> None:
    """`say` and SafeConsole redact secrets and show control characters."""
    doors = (
        *("pipeline/processes/streams.py", "pipeline/terminal/console.py", "stages/models/demo_models.py"),
        "data/batches/template_worker.py",  # whose standard output is a pipe
    )
    printing = [
        place
        for place, node in syntax_nodes()
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "Console", "sys.stdout.write")
    ]
    assert [place for place in printing if not place.startswith(doors)] == []


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        *((name, True) for name in ("a", "a/b.json", ".hidden", "a..b", "./a")),
        *((name, False) for name in ("", ".", "..", "../a", "a/../../b", "/a", "//a", "a/..", "a\0b")),
    ],
)
def test_stays_inside(name, inside):
    assert stays_inside(name) == inside


def run_sft(run: Path, *extra_overrides: str) -> subprocess.CompletedProcess[str]:
    """Run three steps of the tiny experiment's first stage, with secrets in its environment."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= SECRETS | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, ROOT / "launch/run_stage.py", "--stage", "sft"]
    command += ["--config", ROOT / "configs/tiny.yaml", "--run-dir", run]
    overrides = ["sft.max_steps=3", "sft.save_steps=1", "tracking.wandb=offline", *extra_overrides]
    return subprocess.run(
        [*map(str, command), *overrides],
        cwd=run.parent, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> tuple[Path, str]:
    run = tmp_path_factory.mktemp("secret") / "run"
    result = run_sft(run)
    assert result.returncode == 0, result.stderr
    return run, result.stdout + result.stderr


def test_no_secret_is_written_down(finished_run):
    run, output = finished_run
    contents = files(run)
    assert any("wandb" in name for name in contents) and "sft/logs/rank0.log" in contents
    for secret in SECRETS.values():
        assert [name for name, content in contents.items() if secret.encode() in content] == []
        assert secret not in output


def test_resuming_executes_nothing_and_passes_over_what_is_damaged(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run[0], run)
    shutil.rmtree(run / "sft/adapter")
    steps = sorted((run / "sft/checkpoints").iterdir())
    (steps[-1] / "tensors.safetensors").write_bytes(pickle.dumps(Plant(tmp_path / "EXECUTED")))
    for folder in (run / "sft", *steps):
        for name in ("tensors.pt", "optimizer.bin", "adapter_model.bin", "state.pkl"):
            (folder / name).write_bytes(pickle.dumps(Plant(tmp_path / "EXECUTED")))
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (run / "sft" / name).open("a") as stream:
            stream.write('{"step": 3, "hal')
    manifest = read_manifest(run / "sft/manifest.json")
    assert manifest is not None
    manifest.model_copy(update={"status": "running", "output": None}).write(run / "sft/manifest.json")
    result = run_sft(run)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"skipped the checkpoint {steps[-1]}" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    assert not (tmp_path / "EXECUTED").exists()
    rows = [json.loads(line) for line in (run / "sft/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
