"""The options that `tristage` and `run_stage.py` share, and how a command line becomes a function call."""

from __future__ import annotations

import dataclasses
import inspect
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from configs.error_messages import node_at, undotted
from configs.errors import UserError, Waiting
from configs.load import load_experiment
from configs.schema import Experiment
from pipeline.planning.request import Request
from pipeline.processes.streams import say
from pipeline.state.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_CONFIG = ROOT / "configs" / "demo.yaml"
EXPERIMENT, FINISHED = "Experiment", "Finished and interrupted stages"  # groups of options in --help

Options = TypeVar("Options")
Function = TypeVar("Function", bound=Callable[[Any], int])


def _given_path(text: str | Path) -> Path:
    """A path from the command line; raises UserError for "", which a shell variable without a value gives."""
    if not str(text):
        raise UserError("--run-dir: '' is empty. Give a folder, or leave the option out.")
    return Path(text)


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions:
    """Which experiment, and which run directory.

    Attributes:
        last_word_counts: of several words that set one key. A sweep refuses them.
    """

    last_word_counts: ClassVar = True

    overrides: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE key=value",
            show_default=False,
            help="the experiment's YAML, and overrides of it, e.g. ppo.kl_coef=0.05",
        ),
    ] = field(default_factory=list)
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="the experiment's YAML, if it is not the first argument (default: configs/demo.yaml)",
            rich_help_panel=EXPERIMENT,
        ),
    ] = None
    run_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=_given_path,
            help="run directory (default: runs/NAME below the current folder)",
            rich_help_panel=EXPERIMENT,
        ),
    ] = None

    def __post_init__(self) -> None:
        """Take the words that are no key=value as `config`. Raises UserError: they name several files."""
        files = [Path(word) for word in self.overrides if not _is_override(word)]
        if not files:
            return
        file, *others = [*([self.config] if self.config else []), *files]
        for other in others:
            if other.absolute() != file.absolute():
                raise UserError(f"{other!s:.200}: the experiment is already {file!s:.200}. Give one YAML.")
        object.__setattr__(self, "config", file)
        object.__setattr__(self, "overrides", list(filter(_is_override, self.overrides)))

    @property
    def file(self) -> Path:
        """The experiment's YAML."""
        return self.config or DEFAULT_CONFIG

    def experiment(self) -> tuple[Experiment, Path]:
        """The experiment and its run directory.

        Raises:
            UserError: the configuration is wrong.
        """
        if self.config and os.path.isdir(self.config):
            raise UserError(
                f"{self.config!s:.200}: a folder, not an experiment's YAML. To name a run directory, write "
                f"--run-dir {self.config!s:.200}."
            )
        config = load_experiment(self.file, self.overrides)
        return config, self.run_path(config.name)

    def run_path(self, name: str) -> Path:
        """The run directory of experiment `name`. Raises UserError: it cannot be written there."""
        return readable(self.run_dir or Path("runs", name))

    def run_directory(self) -> Path:
        """The run directory. If `--run-dir` names it, the configuration is not read.

        Raises:
            UserError: the configuration is wrong.
        """
        return readable(self.run_dir) if self.run_dir else self.experiment()[1]

    def experiment_of_run(self) -> tuple[Experiment, RunDirectory]:
        """The experiment that the command line names, and its run; if it names only a run, that run's.

        Raises:
            UserError: the configuration is wrong.
        """
        run = RunDirectory(self.run_directory())
        if self.config is None and run.config_file.is_file():
            return load_experiment(run.config_file, self.overrides), run
        return self.experiment()[0], run

    def arguments(self) -> list[str]:
        """These options as words of a command line."""
        config = ["--config", str(self.config)] if self.config else []
        run_dir = ["--run-dir", str(self.run_dir)] if self.run_dir else []
        return [*config, *run_dir, *self.overrides]


def check_installed(extra: str, *modules: str) -> None:
    """Raise UserError if a module of an extra is missing. The command has the extra's name."""
    if missing := [name for name in modules if not find_spec(name)]:
        raise UserError(
            f"tristage {extra} needs {' and '.join(missing)}. In the clone: pip install -c constraints.txt "
            f"-e '.[{extra}]'"
        )


def _is_override(word: str) -> bool:
    """Whether a word is `key=value`, or a known key whose value was forgotten; else it is a file."""
    key, equals, _ = word.partition("=")
    if os.path.isfile(word) or "/" in key:  # the folders of a sweep have = in their names
        return False
    return bool(equals) or node_at(undotted(key)) is not None


def readable(run_dir: Path) -> Path:
    """The absolute path of a run directory.

    Raises:
        UserError: it is not UTF-8, or links to itself, or a file is in the place of a folder.
    """
    try:
        path = run_dir.resolve()
        str(path).encode()
        nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    except UnicodeEncodeError:
        raise UserError(
            f"--run-dir: {run_dir}: this name is not UTF-8, or the locale is not, and libraries cannot "
            "write there. Set LC_ALL=C.UTF-8, or give another --run-dir."
        ) from None
    except (OSError, RuntimeError) as error:  # a loop of links, a name that is too long
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"--run-dir: {run_dir!s:.100}: {reason:.100}. Give another --run-dir.") from None
    if not nearest.is_dir():
        raise UserError(f"--run-dir: {run_dir!s:.100}: {nearest!s:.200} is a file. Name a folder.")
    return path


@dataclass(frozen=True, kw_only=True)
class RequestOptions(ExperimentOptions):
    """Which experiment, and whether finished or interrupted stages start again."""

    force: Annotated[
        bool, typer.Option("--force", help="run finished stages again", rich_help_panel=FINISHED)
    ] = False
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="start interrupted stages from step 0", rich_help_panel=FINISHED),
    ] = False

    def request(self, caller: str) -> Request:
        """The request that these options make.

        Args:
            caller: the program whose commands are suggested to the user; see `Request`.

        Raises:
            UserError: the configuration is wrong.
        """
        config, run_dir = self.experiment()
        return Request(
            config, RunDirectory(run_dir), shlex.join(self.arguments()), self.force, self.fresh, caller
        )

    def switches(self) -> list[str]:
        """`--force` and `--fresh`, as far as they are set."""
        return [*(["--force"] if self.force else []), *(["--fresh"] if self.fresh else [])]


class Command(TyperCommand):
    """A command whose errors name its own `--help`, in which flags have no type."""

    def get_params(self, ctx: Any) -> list[Any]:
        return without_types_of_flags(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            raise typer.TyperException(_one_line(error, ctx.command_path)) from None


class Commands(TyperGroup):
    """A group of commands. Without one, it prints its help."""

    def get_params(self, ctx: Any) -> list[Any]:
        return without_types_of_flags(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])


def without_types_of_flags(params: list[Any]) -> list[Any]:
    """Parameters of a command, of which flags and lists of words have no type in `--help`."""
    for param in params:
        if param.param_type_name == "argument" and param.nargs != 1:
            param.display_type_rich = lambda ctx: None
        if param.param_type_name == "option" and param.is_flag:
            param.metavar = ""
    return params


def command(app: typer.Typer, example: str, group: str | None = None) -> Callable[[Function], Function]:
    """Register a function of one dataclass as a command. The dataclass's fields are the command's options.

    The function's docstring is the first line of `--help`, and `example` the last one. `group` is its
    place in the list of commands.
    """

    def register(function: Function) -> Function:
        options: type[Any] = get_type_hints(function)["options"]

        @wraps(function)
        def parsed(**values: Any) -> int:
            if issubclass(options, ExperimentOptions) and options.last_word_counts:
                _tell_of_repeated(values["overrides"])
            return function(options(**values))

        parsed.__signature__ = _signature(options)  # type: ignore[attr-defined]
        parsed.__annotations__ = {}
        epilog = f"Example: {example}"
        app.command(function.__name__, cls=Command, epilog=epilog, rich_help_panel=group)(parsed)
        return function

    return register


def _tell_of_repeated(overrides: Sequence[str]) -> None:
    """Print a line for each override whose key a later one sets again."""
    keys = [word.partition("=")[0].strip() for word in overrides]
    for place, key in enumerate(keys):
        again = [later for later in keys[place + 1 :] if f"{key}.".startswith(f"{later}.")]
        if again and overrides[place] not in overrides[place + 1 :]:
            say(f"note: the first {key:.100} has no effect: {again[-1]:.100} is set after it", error=True)


def _signature(options: type[Any]) -> inspect.Signature:
    """A keyword parameter for each field of a dataclass, as typer reads it."""
    hints = get_type_hints(options, include_extras=True)
    parameters = []
    for option in dataclasses.fields(options):
        default = option.default
        if option.default_factory is not dataclasses.MISSING:
            default = option.default_factory()
        if default is dataclasses.MISSING:
            default = inspect.Parameter.empty
        kind, annotation = inspect.Parameter.KEYWORD_ONLY, hints[option.name]
        parameters.append(inspect.Parameter(option.name, kind, default=default, annotation=annotation))
    return inspect.Signature(parameters)


def exit_status(app: typer.Typer, program: str) -> int:
    """Run the command line of this process.

    Returns:
        The command's own exit status, or 2 with a message on stderr if the user must fix something.
    """
    try:
        status: int | None = app(prog_name=program, standalone_mode=False)
    except Waiting as error:
        say(str(error))
        return error.exit_code
    except UserError as error:
        say(f"error: {error}", error=True)
        return 2
    except typer.TyperException as error:
        say(f"error: {_one_line(error, program)}", error=True)
        return 2
    return status or 0


def _one_line(error: typer.TyperException, program: str) -> str:
    """The message in one line, and the command whose help has more."""
    message = " ".join(error.format_message().split()).replace("Value error, ", "").rstrip(".")
    return message if message.endswith("--help`") else f"{message}; see `{program} --help`"
