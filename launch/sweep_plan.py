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


def settings_of(
    root: Experiment, shared: Sequence[StagePlan], configs: Sequence[Experiment], runs: Sequence[StagePlan]
) -> list[tuple[Experiment, list[StagePlan]]]:
    """The root's experiment with the shared stages, and each setting of PPO once, with a run that starts.

    What a run reads and calls depends on no seed. A setting that is the root's own stands beside its stages.

    Args:
        configs, runs: the experiment of each run, and the decision about its PPO.
    """
    found = {_setting(root): (root, list(shared))}
    for config, plan in zip(configs, runs, strict=True):
        if plan.starts:
            _, plans = found.setdefault(_setting(config), (config, []))
            plans += [] if any(one.stage == "ppo" for one in plans) else [plan]
    return list(found.values())


def _setting(config: Experiment) -> str:
    return config.ppo.model_dump_json(exclude={"seed"})


def _plan_run(request: Request, pending: frozenset[Stage]) -> StagePlan:
    if not request.run.stage("ppo").exists():  # nor do the links to the shared stages, perhaps
        return StagePlan("ppo", "run", "has not run yet")
    return plan_stage(request, "ppo", locked=request.run.is_locked("ppo"), pending=pending)
