"""All that `tristage plan`, `run` and `sweep` refuse of a request, told at once before anything starts."""

from __future__ import annotations

from collections.abc import Sequence

from configs.load import ExperimentError
from configs.schema import Experiment, Stage
from launch.arguments import RequestOptions
from launch.deepspeed_command import Launch
from launch.stage_sequence import check_start
from pipeline.planning.faults import Faults
from pipeline.planning.plan import StagePlan
from pipeline.planning.request import Request
from pipeline.planning.stage_checks import check_all
from pipeline.state.manifest import read_manifest
from pipeline.state.run_directory import RunDirectory
from pipeline.tracking.wandb_sink import check_mode
from stages.distributed.environment import check_accelerator


def read_request(options: RequestOptions, stages: Sequence[Stage]) -> tuple[Request, Faults]:
    """The request that `options` make, and what is wrong with the environment of its stages.

    Raises:
        UserError: the configuration is wrong. The message also has each fault of the environment, and of
            files, data and functions that the wrong keys do not touch.
    """
    faults = Faults()
    try:
        request = options.request("tristage")
    except ExperimentError as error:
        faults.add("configuration", str(error))
        _check_environment(faults)
        _check_rest(options, stages, error, faults)
        faults.refuse()
        raise
    _check_environment(faults)
    return request, faults


def check_runnable(config: Experiment, plans: Sequence[StagePlan], launch: Launch, faults: Faults) -> None:
    """Add to `faults` why a stage is blocked, and all that this machine cannot run, read or call."""
    world = check_start(config, plans, launch, faults)
    check_all(config, plans, world, faults)


def _check_environment(faults: Faults) -> None:
    """Check the variables that the stages will read."""
    with faults.of("environment"):
        check_mode()
    with faults.of("environment"):
        check_accelerator()


def _check_rest(
    options: RequestOptions, stages: Sequence[Stage], error: ExperimentError, faults: Faults
) -> None:
    """Check what a wrong experiment still says about the stages that have not finished.

    Which of them would run, and on how many ranks, is not known before the experiment is right.
    """
    if error.rest is None:
        return
    run = RunDirectory(options.run_path(error.rest.name))
    manifests = {stage: read_manifest(run.manifest(stage)) for stage in stages}
    unfinished = [
        StagePlan(stage, "run", "")
        for stage, manifest in manifests.items()
        if manifest is None or manifest.status != "finished"
    ]
    check_all(error.rest, unfinished, 1, faults, error.wrong)
