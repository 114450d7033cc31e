"""Arguments that every command shares: which experiment, where it runs, what is overridden."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from configs.load import load_experiment
from configs.schema import Experiment

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_CONFIG = ROOT / "configs" / "demo.yaml"


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config`, `--run-dir` and `key=value` overrides."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="experiment (default: configs/demo.yaml of the repository)",
    )
    parser.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="where it runs (default: runs/NAME of the repository)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as ppo.kl_coef=0.05")


def experiment(arguments: argparse.Namespace) -> tuple[Experiment, Path]:
    """The experiment and its run directory.

    Raises:
        UserError: the configuration is wrong.
    """
    config = load_experiment(arguments.config or DEFAULT_CONFIG, arguments.overrides)
    return config, arguments.run_dir.resolve() if arguments.run_dir else ROOT / "runs" / config.name


def run_directory(arguments: argparse.Namespace) -> Path:
    """The run directory alone: where it is given, the configuration is not read.

    Raises:
        UserError: the configuration is wrong.
    """
    given: Path | None = arguments.run_dir
    return given.resolve() if given else experiment(arguments)[1]


def words(arguments: argparse.Namespace) -> list[str]:
    """The shared arguments, to be passed on to another command."""
    given: list[str] = []
    if arguments.config:
        given += ["--config", str(arguments.config)]
    if arguments.run_dir:
        given += ["--run-dir", str(arguments.run_dir)]
    return given + arguments.overrides


def repeat(arguments: argparse.Namespace) -> str:
    """The shared arguments as a shell reads them."""
    return shlex.join(words(arguments))
