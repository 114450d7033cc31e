"""What a stage was made from and what came of it: `RUN/<stage>/manifest.json`."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from configs.errors import UserError
from configs.schema import Base, Experiment, Stage
from data.storage.files import sha256, stays_inside, write_text
from data.storage.folder_digest import folder_digest
from data.storage.records import record_faults

Status = Literal["running", "finished", "failed", "interrupted"]
# What a run's figures come of: NumPy draws the noise of samples.
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
    # NaN, which JSON lacks, is written as the string "NaN", which reads back as the float.
    # No unknown key: a flipped bit in the name of a key that has a default would hide in one.
    model_config = ConfigDict(ser_json_inf_nan="strings", extra="forbid")


def _inside(name: str) -> str:
    if not stays_inside(name):
        raise ValueError(f"{name!r:.60} is outside the folder")
    return name


Inside = Annotated[str, AfterValidator(_inside)]  # manifests are handed around, and must not lead elsewhere


class Fingerprint(_Record):
    """The content of a folder: SHA-256 of each file by relative path, and one digest over all of them."""

    sha256: str
    files: dict[Inside, str]


class Record(_Record):
    """What a stage wrote into a file line by line; see `data.records`."""

    bytes: int
    sha256: str


class Input(_Record):
    """The adapter of a stage upstream: its path relative to the run directory, and its content's digest."""

    path: Inside
    sha256: str


class BaseModelId(_Record):
    """What has to be the same in all stages that an adapter passes through, because it fits one base only."""

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
    """Who runs, or last ran, the stage: its rank 0."""

    pid: int
    host: str

    @classmethod
    def this(cls) -> Process:
        return cls(pid=os.getpid(), host=socket.gethostname())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Manifest(_Record):
    """One stage of one run.

    `wall_seconds` adds up all attempts, an interrupted one as far as its last checkpoint if it was killed.
    `started` is the first attempt's begin, `attempt_started` the latest one's.
    """

    format: Literal[1] = 1
    stage: Stage
    status: Status
    config_hash: str
    config: dict[str, Any] = Field(description="the resolved experiment, so that a change can be named")
    base: BaseModelId
    base_digest: str | None = Field(None, description="the base's commit on the hub, or its files' SHA-256")
    inputs: dict[Stage, Input] = {}
    sources: dict[str, str] = Field({}, description="SHA-256 of each local file the stage reads, by key")
    output: Fingerprint | None = None
    records: dict[Inside, Record] = Field({}, description="metrics.jsonl and the stage's other *.jsonl")
    metrics: dict[str, float] = {}
    wall_seconds: float = Field(0.0, ge=0, allow_inf_nan=False)
    world_size: int = 1
    versions: dict[str, str] = {}
    run_id: str = Field("", description="of all attempts, on W&B too; checkpoints state it")
    process: Process | None = None
    started: datetime
    attempt_started: datetime
    finished: datetime | None = None
    error: str | None = None
    sha256: str = Field("", description="of all the rest, so that a flipped bit is seen")

    def write(self, path: Path) -> None:
        """Write atomically: a reader sees the old manifest or the new one."""
        write_text(path, self.sealed().model_dump_json(indent=2) + "\n")

    def sealed(self) -> Manifest:
        """Itself, with the SHA-256 of all the rest."""
        return self.model_copy(update={"sha256": self._digest()})

    def fault(self, path: Path) -> str | None:
        """What shows that this, read from `path`, is not what the stage wrote there."""
        if self.sha256 != self._digest():
            return "its SHA-256 is not the one that it states"
        return None if self.stage == path.parent.name else f"it is that of a stage {self.stage}"

    def record_faults(self, folder: Path) -> list[str]:
        """A line on each file of the stage's `folder` that is not what the stage recorded there."""
        return record_faults(folder, {name: each.model_dump() for name, each in self.records.items()})

    def _digest(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"sha256"}).encode()).hexdigest()


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in `path`, or None where there is none.

    Raises:
        UserError: the file is there but is not a manifest.
    """
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
        fault = manifest.fault(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}. Mend that, or choose another --run-dir."
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


def owner_of(manifest: Manifest | None) -> str:
    """The process that runs a stage, as a message names it."""
    return str(manifest.process) if manifest and manifest.process else "another process"


def source_hashes(config: Experiment, stage: Stage) -> dict[str, str]:
    """SHA-256 of the local files that `stage` reads, by configuration key.

    A file that is not there is left out: the stage itself will say so.
    """
    files = {
        f"data.{stage}.path": config.data.source(stage).path,
        "data.chat_template": config.data.chat_template,
    }
    hashes = {key: sha256(Path(file)) for key, file in files.items() if file and Path(file).is_file()}
    digests = {f"{base.key}.model": folder_digest(Path(base.model)) for base in config.bases(stage)}
    return hashes | {key: digest for key, digest in digests.items() if digest}


def fingerprint(folder: Path) -> Fingerprint:
    """Hash every file below `folder`, hidden ones aside."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in paths}
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return Fingerprint(sha256=digest, files=files)


def damage(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """What differs from `expected`, SHA-256 by relative path, a line per file; more files are no damage."""
    problems = []
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif sha256(path) != digest:
            problems.append(f"{path} is not the file that the stage wrote (its SHA-256 differs)")
    return problems


def library_versions() -> dict[str, str]:
    """Versions of the libraries that a result may depend on; those not installed are left out."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
