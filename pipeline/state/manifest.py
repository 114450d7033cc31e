"""The manifest of a stage, its inputs and results: `RUN/<stage>/manifest.json`."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from configs.errors import UserError
from configs.judge_file import judge_digest
from configs.regular_file import read_regular_file
from configs.schema import Base, Experiment, Stage
from configs.task_file import task_digest
from data.storage.files import sha256, stays_inside, write_text
from data.storage.folder_digest import folder_digest
from data.storage.records import record_faults
from data.storage.source_digest import source_digest

NEWER = ("chat", "compute_dtype")  # fields that earlier manifests, and so their SHA-256, lack
Status = Literal["running", "finished", "failed", "interrupted"]
# Libraries that a run's numbers depend on. NumPy draws the noise of samples.
LIBRARIES = (
    "tristage",
    "torch",
    "numpy",
    "transformers",
    "peft",
    "deepspeed",
    "bitsandbytes",
    "datasets",
    "wandb",
)


class _Record(BaseModel):
    # JSON has no NaN: it is written as the string "NaN", which reads back as the float.
    # Unknown keys are refused: a flipped bit in the name of an optional key would otherwise hide.
    model_config = ConfigDict(ser_json_inf_nan="strings", extra="forbid")


def _inside(name: str) -> str:
    if not stays_inside(name):
        raise ValueError(f"{name!r:.60} is outside the folder")
    return name


Inside = Annotated[str, AfterValidator(_inside)]  # people share manifests; they must not point elsewhere


class Fingerprint(_Record):
    """The content of a folder: SHA-256 of each file by relative path, and one digest over all of them."""

    sha256: str
    files: dict[Inside, str]


class Record(_Record):
    """Length and hash of a file that a stage wrote line by line; see `data.storage.records`."""

    bytes: int
    sha256: str


class Input(_Record):
    """The adapter of a stage upstream: its path relative to the run directory, and its content's digest."""

    path: Inside
    sha256: str


class BaseModelId(_Record):
    """Identity of a base. It must be the same in all stages that an adapter passes through."""

    model: str
    revision: str | None = None
    quantization: str

    @classmethod
    def of(cls, base: Base) -> BaseModelId:
        return cls(model=base.model, revision=base.revision, quantization=base.quantization)

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.model}{revision} ({self.quantization})"


class Process(_Record):
    """Rank 0 of the job that runs, or last ran, the stage."""

    pid: int
    host: str

    @classmethod
    def this(cls) -> Process:
        return cls(pid=os.getpid(), host=socket.gethostname())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Manifest(_Record):
    """One stage of one run.

    `wall_seconds` adds up all attempts; a killed one counts up to its last checkpoint. `started` is the start
    of the first attempt, `attempt_started` that of the latest.
    """

    format: Literal[1] = 1
    stage: Stage
    status: Status
    config_hash: str
    config: dict[str, Any] = Field(description="the resolved experiment, so that a change can be named")
    base: BaseModelId
    base_digest: str | None = Field(None, description="the base's commit on the hub, or its files' SHA-256")
    chat: bool | None = Field(None, description="whether its prompts are conversations, by the first of them")
    compute_dtype: str | None = Field(None, description="of the base's activations, such as bfloat16")
    inputs: dict[Stage, Input] = {}
    sources: dict[str, str] = Field({}, description="SHA-256 of each local file the stage reads, by key")
    output: Fingerprint | None = None
    records: dict[Inside, Record] = Field({}, description="metrics.jsonl and the stage's other *.jsonl")
    metrics: dict[str, float] = {}
    wall_seconds: float = Field(0.0, ge=0, allow_inf_nan=False)
    world_size: int = 1
    versions: dict[str, str] = {}
    run_id: str = Field("", description="shared by all attempts, by checkpoints and by W&B")
    process: Process | None = None
    started: datetime
    attempt_started: datetime
    finished: datetime | None = None
    error: str | None = None
    sha256: str = Field("", description="of all other fields, so that a flipped bit shows")

    @property
    def given_adapters(self) -> dict[str, str]:
        """Key and digest of the adapter that the stage started from, if there is one in `STAGE.from`."""
        return {key: digest for key, digest in self.sources.items() if key.endswith(".from")}

    def changed_sources(self, present: Mapping[str, str]) -> list[str]:
        """A line for each file that the stage read and whose digest is another one now."""
        return [
            f"{key}: the file's content is not what it was"
            for key, digest in self.sources.items()
            if present.get(key, digest) != digest
        ]

    def write(self, path: Path) -> None:
        """Write atomically: a reader sees the old manifest or the new one."""
        write_text(path, self.sealed().model_dump_json(indent=2) + "\n")

    def sealed(self) -> Manifest:
        """A copy with the SHA-256 of all other fields."""
        return self.model_copy(update={"sha256": self._digest()})

    def fault(self, path: Path) -> str | None:
        """Why this manifest, read from `path`, is not what the stage wrote there; None if it is."""
        if self.sha256 != self._digest():
            return "its SHA-256 is not the one that it states"
        return None if self.stage == path.parent.name else f"it is that of a stage {self.stage}"

    def record_faults(self, folder: Path) -> list[str]:
        """One line per file in the stage's `folder` that is not what the stage recorded."""
        return record_faults(folder, {name: record.model_dump() for name, record in self.records.items()})

    def _digest(self) -> str:
        absent = {name for name in NEWER if getattr(self, name) is None}
        return hashlib.sha256(self.model_dump_json(exclude={"sha256", *absent}).encode()).hexdigest()


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in `path`; None if there is none.

    Raises:
        UserError: the file is there but is not a manifest.
    """
    try:
        manifest = Manifest.model_validate_json(read_regular_file(path))
        fault = manifest.fault(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}. Fix that, or choose another --run-dir."
        ) from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the file"
        fault = f"{where:.100}: {problem['msg']:.200}"
    if fault:
        raise UserError(
            f"{path}: not a readable manifest ({fault}). Restore the file, or move the folder {path.parent} "
            "away (the stage then runs from the start)."
        )
    return manifest


def output_digests(manifests: Mapping[Stage, Manifest | None]) -> dict[str, str]:
    """SHA-256 of the output of each stage that has one."""
    return {stage: one.output.sha256 for stage, one in manifests.items() if one and one.output}


def owner_of(manifest: Manifest | None) -> str:
    """The process that runs a stage, as a message names it."""
    return str(manifest.process) if manifest and manifest.process else "another process"


def source_hashes(
    config: Experiment, stage: Stage, digest_of: Callable[[Path], str | None] = source_digest
) -> dict[str, str]:
    """SHA-256 of the local files and folders that `stage` reads, by configuration key.

    A missing file is left out: the stage itself reports it.

    Args:
        digest_of: the digest of a source, if several stages that read it share one.
    """
    read = config.data_behind(stage)
    parts = [part for each in read for part in config.data.parts(each)]
    paths: dict[str, str | None] = {f"{part.key}.path": part.source.path for part in parts}
    paths["data.chat_template"] = config.data.chat_template
    paths[f"{stage}.from"] = config.starts.get(stage)
    if "rm" in read:
        paths |= {f"rm.rankings.earlier[{i}]": path for i, path in enumerate(config.rm.rankings.earlier)}
    digests = {key: digest_of(Path(path)) for key, path in paths.items() if path}
    digests |= {key: judge_digest(Path(path)) for key, path in config.judge_files([stage]).items()}
    tasks = {f"{part.key}.task": part.source.task for part in parts}
    digests |= {key: task_digest(task) for key, task in tasks.items() if task}
    digests |= {f"{base.key}.model": folder_digest(Path(base.model)) for base in config.bases(stage)}
    return {key: digest for key, digest in digests.items() if digest}


def fingerprint(folder: Path) -> Fingerprint:
    """Hash every file below `folder`, hidden ones aside."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in paths}
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return Fingerprint(sha256=digest, files=files)


def damage(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """One line per file that differs from `expected` (SHA-256 by relative path). More files are no damage."""
    problems = []
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif sha256(path) != digest:
            problems.append(f"{path} is not the file that the stage wrote (its SHA-256 differs)")
    return problems


def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that a result may depend on."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
