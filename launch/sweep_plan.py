"""`tristage sweep --plan`: what each run of a sweep would do, without starting anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from configs.schema import Experiment, Stage
from launch.sweep import SHARED, Run
from pipeline.planning.plan import StagePlan, plan_stage
from pipeline.planning.request import Request
from pipeline.state.run_directory import RunDirectory


def plan_runs(
    request: Request, shared: Sequence[StagePlan], runs: Sequence[Run], configs: Sequence[Experiment]
) -> list[StagePlan]:
    """The decision about PPO in each run.

    Args:
        request: that of the sweep.
        shared: the plans of the shared stages.
        configs: the experiment of each run.

    Raises:
        UserError: a manifest cannot be read.
    """
    pending = frozenset(plan.stage for plan in shared if plan.stage in SHARED and plan.action != "skip")
    return [
        _plan_run(replace(request, config=config, run=RunDirectory(run.path)), pending)
        for run, config in zip(runs, configs, strict=True)
    ]


def _plan_run(request: Request, pending: frozenset[Stage]) -> StagePlan:
    if not request.run.stage("ppo").exists():  # nor do the links to the shared stages, perhaps
        return StagePlan("ppo", "run", "has not run yet")
    return plan_stage(request, "ppo", locked=request.run.is_locked("ppo"), pending=pending)
