"""What overrides mean for a run that is there: obeyed, or refused, never passed over."""

from __future__ import annotations

from collections.abc import Sequence

from configs.errors import UserError
from configs.identity import different_values
from configs.load import load_experiment
from launch.arguments import ExperimentOptions
from pipeline.processes.streams import say
from pipeline.state.run_directory import RunDirectory

SAMPLING = tuple(f"ppo.rollout.{key}" for key in ("max_new_tokens", "temperature", "top_k", "top_p"))


def given_run(options: ExperimentOptions, command: str, obeyed: Sequence[str] = ()) -> RunDirectory:
    """The run that the command line names, after a check of its overrides.

    A YAML only names the run: its settings are those with which it was trained. If the YAML says something
    else, a line tells so.

    Args:
        command: as the user typed it, such as `tristage serve`.
        obeyed: the settings, or sections of settings, that the command takes as overrides.

    Raises:
        UserError: the configuration is wrong, or an override would change what the command leaves as it was.
    """
    run = RunDirectory(options.run_directory())
    if not run.config_file.is_file():  # no run, or a sweep, whose runs have one each
        if options.config or options.overrides:
            options.experiment()
        return run
    check_words(options.overrides, run, command, obeyed)
    if options.config:
        _tell_of_file(options, run)
    return run


def check_words(
    overrides: Sequence[str], run: RunDirectory, command: str, obeyed: Sequence[str] = ()
) -> None:
    """Raise UserError if an override sets what is not obeyed to another value than that of the run."""
    if not (overrides and run.config_file.is_file()):
        return
    trained, wanted = load_experiment(run.config_file), load_experiment(run.config_file, overrides)
    changes = different_values(trained, wanted)
    for key, (was, new) in changes.items():
        if not any(f"{key}.".startswith(f"{prefix}.") for prefix in obeyed):
            only = f"takes only overrides of {', '.join(obeyed)}" if obeyed else "leaves it as it is"
            raise UserError(
                f"{key}={new!s:.100}: {run.path} was trained with {was!s:.100}, and {command} {only}. "
                "Leave the override out, or train with it: tristage run."
            )


def _tell_of_file(options: ExperimentOptions, run: RunDirectory) -> None:
    named, _ = options.experiment()
    trained = load_experiment(run.config_file, options.overrides)
    if changes := different_values(trained, named):
        some = ", ".join(list(changes)[:3]) + (", ..." if len(changes) > 3 else "")
        say(
            f"note: {options.file} is not what {run.path} was trained with ({some}); the run's own "
            "settings are used",
            error=True,
        )
