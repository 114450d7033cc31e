"""Weights & Biases: one group per experiment, one run per stage, adapters as artifacts with their lineage."""

from __future__ import annotations

import logging
import netrc
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from configs.errors import UserError
from configs.schema import UPSTREAM, Experiment, Stage
from data.storage.files import read_json_lines
from pipeline.state.manifest import Manifest

logger = logging.getLogger("tristage.wandb")

Mode = Literal["online", "offline"]
MODES: dict[str, Mode | Literal["disabled"]] = {
    "online": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
DEFAULT_HOST = "api.wandb.ai"  # the name that `wandb login` wrote to netrc for long
INIT_TIMEOUT_SECONDS = 60
FINISH_TIMEOUT_SECONDS = 120
SECONDS_PER_TABLE = 600.0
ROWS_PER_TABLE = 1000  # each table holds all of its rows anew


def make_wandb_sink(config: Experiment, manifest: Manifest, folder: Path) -> WandbSink | None:
    """The sink for one stage; None where W&B is disabled.

    Raises:
        UserError: WANDB_MODE is not a mode.
    """
    with _temporary_files_in(folder / "wandb" / "tmp"):
        mode = wandb_mode(config)
        if mode == "disabled":
            return None
        _keep_inside(folder)
        return WandbSink.start(config, manifest, folder, mode)


def wandb_mode(config: Experiment) -> Mode | Literal["disabled"]:
    """`online`, `offline` or `disabled`: WANDB_MODE, else the configuration; `auto` looks for a key."""
    if _is_disabled():
        return "disabled"
    check_mode()
    if wanted := os.environ.get("WANDB_MODE"):
        return MODES[wanted]
    if config.tracking.wandb != "auto":
        return config.tracking.wandb
    return "online" if _has_key() else "offline"


def check_mode() -> None:
    """Raise UserError where WANDB_MODE is set, and not to a mode."""
    wanted = os.environ.get("WANDB_MODE")
    if wanted and wanted not in MODES and not _is_disabled():
        raise UserError(f"WANDB_MODE={wanted:.40}: unknown; use one of {', '.join(MODES)}, or unset it.")


def _is_disabled() -> bool:
    return os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1")


def _has_key() -> bool:
    """Whether W&B knows an account, from the environment, its settings or netrc.

    Not by `wandb.login`, which calls the server, and without a network keeps the process from ending.
    """
    import wandb

    settings = wandb.setup().settings
    if settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        hosts = netrc.netrc(str(file)).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return bool({urlsplit(str(settings.base_url)).netloc, DEFAULT_HOST} & set(hosts))


def _keep_inside(folder: Path) -> None:
    """Have what W&B stages for upload lie in the run's folder, not in the user's home."""
    for name, part in {"WANDB_DATA_DIR": "data", "WANDB_CACHE_DIR": "cache"}.items():
        os.environ.setdefault(name, str(folder / "wandb" / part))


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Within, temporary files are made in `folder`, emptied of what a killed process left there.

    W&B makes two folders when it is imported, and removes them when the process ends by itself.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
        for each in (folder, folder.parent):
            with suppress(OSError):  # they are in use
                each.rmdir()


class WandbSink:
    """One W&B run. Metrics carry their step as `trainer/step`: W&B drops steps that go backwards.

    Tracking must not end training: the first error of W&B is logged, and the rest goes to files alone.
    """

    def __init__(self, run: Any, config: Experiment, folder: Path) -> None:
        self._run: Any | None = run
        self._config = config
        self._samples = folder / "samples.jsonl"
        self._table_due = time.monotonic() + SECONDS_PER_TABLE

    @classmethod
    def start(cls, config: Experiment, manifest: Manifest, folder: Path, mode: Mode) -> WandbSink:
        """Begin or resume the stage's run; falls back to offline where the server cannot be reached."""
        import wandb

        tracking = config.tracking
        settings = wandb.Settings(
            console="off",
            silent=True,
            init_timeout=INIT_TIMEOUT_SECONDS,
            finish_timeout=FINISH_TIMEOUT_SECONDS,
            disable_git=True,
            save_code=False,
        )

        def begin(mode: Mode) -> Any:
            return wandb.init(
                mode=mode,
                id=manifest.run_id or None,
                resume="allow",
                project=tracking.project,
                entity=tracking.entity,
                group=tracking.group or config.name,
                job_type=manifest.stage,
                name=f"{config.name}-{manifest.stage}",
                tags=tracking.tags,
                config={**config.model_dump(mode="json"), "inputs": _lineage(manifest)},
                dir=str(folder),
                settings=settings,
                allow_val_change=True,
            )

        try:
            run = begin(mode)
        except (wandb.Error, OSError) as error:
            logger.warning("W&B could not be started (%s); logging offline in %s", error, folder / "wandb")
            wandb.teardown()  # its service would say that the run's id is in use
            run = begin("offline")
        run.define_metric("trainer/step")
        run.define_metric("*", step_metric="trainer/step")
        sink = cls(run, config, folder)
        sink._guard(lambda run: sink._link_inputs(run, manifest))
        return sink

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._guard(lambda run: run.log({"trainer/step": step, **metrics}))

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show them in the table now and then; the file sink, which comes first, has written them."""
        if time.monotonic() >= self._table_due:
            self._guard(self._log_samples)
            self._table_due = time.monotonic() + SECONDS_PER_TABLE

    def rewind(self, step: int) -> None:
        """Nothing: a resumed run's later points are drawn over, as `trainer/step` is a metric."""

    def finish(self, manifest: Manifest, output: Path) -> None:
        """Add the result, and what the stage leaves for others."""

        def add(run: Any) -> None:
            run.summary.update({f"final/{name}": value for name, value in manifest.metrics.items()})
            if self._config.tracking.artifacts:
                self._log_output(run, manifest, output)

        self._guard(add)

    def close(self, exit_code: int) -> None:
        self._guard(self._log_samples)
        self._guard(lambda run: run.finish(exit_code=exit_code))
        self._run = None
        _end_service(exit_code)

    def _log_samples(self, run: Any) -> None:
        """The stage's latest samples as one table, those of earlier attempts among them."""
        import wandb

        rows = read_json_lines(self._samples, growing=True) if self._samples.exists() else []
        rows = rows[-ROWS_PER_TABLE:]
        if rows:
            columns = list(dict.fromkeys(name for row in rows for name in row))
            data = [[row.get(name) for name in columns] for row in rows]
            run.log({"samples": wandb.Table(columns=[*columns], data=data)})

    def _log_output(self, run: Any, manifest: Manifest, output: Path) -> None:
        import wandb

        assert manifest.output is not None
        metadata = {"sha256": manifest.output.sha256, "inputs": _lineage(manifest), **manifest.metrics}
        artifact = wandb.Artifact(
            _artifact_name(self._config, manifest.stage),
            type="dataset" if manifest.stage == "best" else "model",
            metadata=metadata,
        )
        artifact.add_dir(str(output))
        run.log_artifact(artifact, aliases=["latest", _alias(manifest.output.sha256)])

    def _link_inputs(self, run: Any, manifest: Manifest) -> None:
        """Draw the lineage to the adapters that this stage reads; offline, the configuration holds it."""
        if run.offline or not self._config.tracking.artifacts:
            return
        import wandb

        for stage in UPSTREAM[manifest.stage]:
            name = f"{_artifact_name(self._config, stage)}:{_alias(manifest.inputs[stage].sha256)}"
            try:
                run.use_artifact(name)
            except (wandb.Error, ValueError) as error:  # trained offline, or under another project
                logger.info("W&B has no artifact %s to link to (%s)", name, error)

    def _guard(self, action: Callable[[Any], object]) -> None:
        """Do something with the run; if W&B fails, in whatever way, say so once and go on without it."""
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # of a service that may be gone; the files hold everything
            logger.warning("W&B failed (%s); from here on only files are written", error)
            self._run = None


def _end_service(exit_code: int) -> None:
    """End W&B's process now, and not when Python ends: a launcher that is stopped kills it before that."""
    import wandb

    try:
        wandb.teardown(exit_code)
    except Exception as error:  # it is gone
        logger.info("W&B's process could not be ended (%s)", error)


def _artifact_name(config: Experiment, stage: Stage) -> str:
    return f"{config.name}-{stage}-{'demonstrations' if stage == 'best' else 'adapter'}"


def _alias(digest: str) -> str:
    """An alias by content, so that a stage links to the very adapter that it read."""
    return f"sha256-{digest[:16]}"


def _lineage(manifest: Manifest) -> dict[str, dict[str, str]]:
    return {stage: used.model_dump() for stage, used in manifest.inputs.items()}
