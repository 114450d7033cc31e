"""What the stages of a run read, as far as it matters later: the form of prompts, data, the chat template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from configs.errors import UserError
from configs.schema import Experiment, Stage
from data.batches.tokenize import is_chat
from data.examples import StageData, StageRows, kind_of, ranked_by_people
from data.sources.formats import Kind
from data.sources.loading import first_rows
from data.sources.messages import Text
from data.sources.reading import is_local
from data.storage.files import read_json_lines
from pipeline.processes.streams import say
from pipeline.state.manifest import Manifest, source_hashes
from pipeline.state.run_directory import RunDirectory
from stages.feedback.rankings import FILE

Manifests = Mapping[Stage, Manifest]
TELLING: tuple[Stage, ...] = (
    "ppo",
    "sft",
    "rm",
)  # stages whose prompts are those of the policies, best first
CHAT_KEY = "data.chat_template"
TEMPLATE = "chat_template.jinja"  # beside an adapter: that of its training


def prompts_are_chats(run: RunDirectory, config: Experiment, manifests: Manifests) -> bool:
    """Whether the prompts of a run are conversations. If not, they are texts to continue.

    The stages say so. Of a run of an earlier version, its rows tell. If there are none here, a line tells
    what is assumed.
    """
    if config.data.chat:
        return True
    said = [manifests[stage].chat for stage in TELLING if stage in manifests]
    if known := [chat for chat in said if chat is not None]:
        return known[0]
    for prompt in _prompts(run, config):
        return is_chat(prompt, config.data)
    say(
        f"note: {run.path} does not tell whether its prompts are conversations, and its data is not here. "
        "They are taken for texts to continue, without the chat template.",
        error=True,
    )
    return False


def _prompts(run: RunDirectory, config: Experiment) -> Iterator[Text]:
    """The first prompt of what the run collected, and of each source on this machine that can be read."""
    collected = run.stage("rm") / FILE
    if collected.is_file():
        yield from (row["prompt"] for row in read_json_lines(collected, ["prompt"])[:1])
    for stage in TELLING:
        for source in filter(is_local, config.data.sources(stage)):
            try:
                yield from (row["prompt"] for row in first_rows(source, kind_of(config, stage), 1))
            except (UserError, OSError):  # it has moved or changed; another one may tell
                continue


def rows_of(
    run: RunDirectory, config: Experiment, manifests: Manifests, stage: Stage, kind: Kind
) -> StageRows:
    """The rows of a stage, split again. Lines tell what is left out, and if the data is not what it was.

    Raises:
        UserError: the data is not where the configuration says, or a row cannot be read.
    """
    if stage in manifests:
        hashes = source_hashes(config, stage)
        rows = {key: digest for key, digest in hashes.items() if key.startswith("data.") and key != CHAT_KEY}
        for change in manifests[stage].changed_sources(rows):
            _tell(f"note: stage {stage}: {change}. Prompts that it trained on may now count as held out.")
    return StageData(config, stage, _tell, ranked=ranked_by_people(config, stage, run.path)).rows(kind)


def _tell(line: str) -> None:
    say(line, error=True)


def with_own_template(run: RunDirectory, config: Experiment, stage: Stage) -> Experiment:
    """The experiment with the chat template that `stage` was trained with, which lies beside its adapter.

    The file that it was read from may have changed since, or be gone.
    """
    own = run.adapter(stage) / TEMPLATE
    if config.data.chat_template is None or not own.is_file():
        return config
    return config.model_copy(
        update={"data": config.data.model_copy(update={"chat_template": str(own.absolute())})}
    )
