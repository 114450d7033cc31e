"""All tests share this: one thread, a model cache for the session, quiet libraries, the tiny model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def pytest_configure() -> None:
    for (
        name,
        value,
    ) in QUIET.items():  # before transformers is imported, and for the processes that tests start
        os.environ.setdefault(name, value)
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Build embedded models for this session, unless TRISTAGE_CACHE says where to keep them."""
    with pytest.MonkeyPatch.context() as patch:
        if "TRISTAGE_CACHE" not in os.environ:
            base = tmp_path_factory.getbasetemp()
            if "PYTEST_XDIST_WORKER" in os.environ:
                base = base.parent  # all workers share it
            patch.setenv("TRISTAGE_CACHE", str(base / "model-cache"))
        yield


@pytest.fixture(scope="session")
def tiny_folder(model_cache: None) -> Path:
    """Folder of the embedded `tiny-random`: 2 layers, hidden size 64, 384 tokens, tied embeddings."""
    from stages.models.demo_models import embedded_model

    return embedded_model("tiny-random")


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="session")
def adapters(tiny_folder: Path, tiny_tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapter folders over `tiny-random` as stages write them: `sft`, and `rm` with a scalar head."""
    from tests.support.roles import new_role, save_role_of, tiny_roles

    root = tmp_path_factory.mktemp("adapters")
    for seed, (name, head) in enumerate({"sft": False, "rm": True}.items()):
        roles = new_role(tiny_roles(), name, seed, head=head)
        save_role_of(roles, name, root / name, tiny_tokenizer)
    return {name: root / name for name in ("sft", "rm")}


@pytest.fixture(scope="session")
def trained_run(model_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of the tiny experiment, all stages finished. Tests only read it."""
    from tests.support.trained_run import train_tiny_run

    base = tmp_path_factory.getbasetemp()
    return train_tiny_run(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@pytest.fixture(autouse=True)
def no_material_checks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests have made-up bases and data. The fixture `material_checks` has them checked."""
    if "material_checks" not in request.fixturenames:
        monkeypatch.setattr("stages.preflight.check_material", lambda config, stage: None)
        from pipeline.planning import stage_checks

        run_preflight = stage_checks.run_preflight

        def run_for_users_code(config, stages, faults, wrong=frozenset(), *, only_feedback=False):
            if not config.users_code(stages):
                return []
            return run_preflight(config, stages, faults, wrong, only_feedback=True)

        monkeypatch.setattr(stage_checks, "run_preflight", run_for_users_code)


@pytest.fixture(autouse=True)
def warm_preflight(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of the checks is forked from one that has imported the libraries, which takes seconds."""
    if "cold_preflight" not in request.fixturenames:
        from pipeline.planning import stage_checks
        from tests.support import warm

        monkeypatch.setattr(stage_checks, "ask_preflight", warm.ask_preflight)


@pytest.fixture
def cold_preflight() -> None:
    """The process of the checks is started as for a user."""


@pytest.fixture
def material_checks() -> None:
    """The checks of `stages.preflight` are made, as for a user."""
