"""The policies and the reward model of a run, loaded to answer people."""

from __future__ import annotations

from collections.abc import Sequence

from apps.trained_run import LoadedPolicies, TrainedRun, chosen_adapters, load_policies, this_process
from pipeline.processes.logs import hide_loading
from pipeline.processes.streams import say


def load(run: TrainedRun, policies: Sequence[str], *, score: bool) -> LoadedPolicies:
    """Load policies by name; with `score`, the reward model, too, if the run has one.

    Raises:
        UserError: a policy is not there, is damaged, or does not fit.
    """
    adapters = chosen_adapters(run, policies, reward=score and "rm" in run.manifests)
    hide_loading()
    say(
        f"loading {', '.join(adapters.policies)}{' and the reward model' if adapters.reward else ''}",
        error=True,
    )
    return load_policies(run, adapters, this_process())
