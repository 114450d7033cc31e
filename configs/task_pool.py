"""A labelled task in YAML: its columns and options, and the templates that word a row as an instruction.

FLAN (Wei et al. 2021) and T0 (Sanh et al. 2021) train on such tasks. `task_file.py` reads the YAML.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated, Any, Literal

from jinja2 import Environment, TemplateSyntaxError, meta, nodes
from jinja2.defaults import DEFAULT_NAMESPACE
from pydantic import BeforeValidator, Field, model_validator

from configs.sections.values import Count, Fraction, PlainNumber, Section, Text

MOST_LETTERS = 20_000  # of a template
MOST_OPTIONS = 100
ANSWER, OPTIONS = "answer", "options"  # what templates may show beside the columns of a row
CUES = {"zh": {"cue": "请一步一步地思考。", "conclusion": "所以答案是："}}  # for languages other than English
JINJA = Environment()  # reads names only; `template_worker` renders
del JINJA.filters["random"]
BUILT_IN = frozenset(DEFAULT_NAMESPACE) - {"lipsum"}  # functions that every template knows, such as range


def label_name(label: Any) -> str | None:
    """A label as text, so that 1, "1" and 1.0 are one label; None if it can be no label."""
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label) if isinstance(label, (int, float, str)) else None


def _options(value: Any) -> Any:
    """Options as text. Refuses what YAML takes for something else: `yes` is true there."""
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    if not isinstance(value, (dict, list, tuple)):
        raise ValueError(f"{value!r:.40} is no list of texts, no mapping of labels to texts, and no column")
    texts = list(value.values()) if isinstance(value, dict) else list(value)
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{text!r:.40} is no text; put quotes around it, as in 'yes'")
        if not text.strip():
            raise ValueError("an option is empty; write its text")
    if not 2 <= len(set(texts)) <= MOST_OPTIONS:
        raise ValueError(f"{len(set(texts))} different texts; name from 2 to {MOST_OPTIONS}")
    if isinstance(value, dict):
        return {_label(key): text for key, text in value.items()}
    for number, text in enumerate(texts):
        if text.isdecimal() and int(text) != number and int(text) < len(texts):
            raise ValueError(
                f"is the label {text} the option {text!r}, or {texts[int(text)]!r}, as labels count from 0? "
                "Write each label with its text: {label: text}"
            )
    return value


def _label(value: Any) -> str:
    name = label_name(value)
    if name is None:
        raise ValueError(f"{value!r:.40} can be no label; labels are numbers or texts")
    return name


@lru_cache(maxsize=4096)  # it is asked for every row
def variables_of(template: str) -> frozenset[str]:
    """The names that a Jinja template reads from outside.

    Raises:
        ValueError: it is no Jinja template.
    """
    try:
        tree = JINJA.parse(template)
        # Jinja computes what is constant when it looks at a template: 9 ** 9 ** 9 would never end.
        for constant in tree.find_all(nodes.Const):
            constant.value = "" if isinstance(constant.value, str) else 0
        return frozenset(meta.find_undeclared_variables(tree)) - BUILT_IN
    except TemplateSyntaxError as error:
        reason = (error.message or "").removesuffix(".")
        raise ValueError(f"line {error.lineno}: not Jinja: {reason:.150}; correct it") from None
    except RecursionError:
        raise ValueError("nested too deeply; write a simpler template") from None


def _template(text: str) -> str:
    variables_of(text)
    if not text.strip():
        raise ValueError("a template is empty; write its text")
    return text


Jinja = Annotated[str, Field(max_length=MOST_LETTERS)]
Label = Annotated[str, BeforeValidator(_label)]
Options = Annotated[str | tuple[str, ...] | dict[str, str] | None, BeforeValidator(_options)]


class Template(Section):
    """One wording of a task."""

    name: Text = Field(description="of the template, in previews and figures")
    prompt: Jinja = Field(
        description="Jinja; it sees the columns of the row, `options` and, if inverted, `answer`"
    )
    completion: Jinja = Field("{{ answer }}", description="Jinja of what is learned; it sees `answer`, too")
    inverted: bool = Field(False, description="asks for the input, given the answer (Wei et al. 2021)")

    @model_validator(mode="after")
    def _is_jinja(self) -> Template:
        for key, text in (("prompt", self.prompt), ("completion", self.completion)):
            try:
                _template(text)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
        return self


class FewShot(Section):
    """Other rows, with their answers, in front of a prompt (Brown et al. 2020)."""

    k: Annotated[int, Field(ge=0, le=64), PlainNumber] = Field(
        description="rows in front of a prompt, from the training part; 0 for none"
    )
    separator: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        "\n\n", description="text between two of them"
    )
    share: Fraction = Field(1.0, description="share of the rows that have them; the others have none")


class ChainOfThought(Section):
    """The reason before the answer (Wei et al. 2022), for rows that have one."""

    column: Text = Field("rationale", description="the column that holds the reason")
    cue: str = Field(
        "Think step by step.", description="stands below the prompt; Chinese if `language` is zh"
    )
    conclusion: str = Field(
        "So the answer is: ", description="between the reason and the answer; Chinese if `language` is zh"
    )
    share: Fraction = Field(0.5, description="share of the rows with a reason that show it")


class TaskSource(Section):
    """Where the rows of a task are; each key is as in a source of `data`, which may give it, too."""

    path: Text = Field(description="as in data.sft; a relative path starts in the folder of this file")
    name: Text | None = Field(None, description="as in data.sft")
    split: Text | None = Field(None, description="as in data.sft")
    revision: Text | None = Field(None, description="as in data.sft")
    limit: Count | None = Field(None, description="as in data.sft")
    ignore_columns: tuple[Text, ...] = Field((), description="as in data.sft")
    columns: dict[Text, Text] = Field({}, description="for each name in the templates, the row's own name")


class Task(Section):
    """A labelled task, complete: with all that it takes over from the pool that it extends."""

    name: Text = Field(description="of the task; its key in the file")
    extends: Text | None = Field(None, description="a shipped pool, whose keys hold unless given here")
    language: Text | None = Field(None, description="of the templates, such as en or zh")
    source: TaskSource | None = Field(None, description="where its rows are")
    label: Text = Field("label", description="the column that holds the answer, or its label")
    options: Options = Field(
        None,
        description="the answers to choose from: texts, which labels count from 0 (not of digits: is 1 the "
        "first or the second of 1, 2, 3?); `label: text`; or the name of the column with the texts of a row",
    )
    ignore_labels: tuple[Label, ...] = Field((), description="labels whose rows are left out, such as -1")
    optional: tuple[Text, ...] = Field((), description="columns that a row may lack; they are then empty")
    templates: tuple[Template, ...] = Field((), description="its wordings, of which each row gets one")
    few_shot: FewShot = FewShot(k=0)
    chain_of_thought: ChainOfThought | None = Field(None, description="shows the reasons that rows have")
    held_out: Literal["all"] | None = Field(
        None, description="`all`: no stage may train on the task; `tristage evaluate --tasks` measures it"
    )
    example: dict[str, Any] | None = Field(None, description="a row, for people and for tests")

    @property
    def choices(self) -> tuple[str, ...]:
        """The different options, in order; () if there are none, or if each row has its own."""
        if isinstance(self.options, str) or self.options is None:
            return ()
        texts = self.options.values() if isinstance(self.options, dict) else self.options
        return tuple(dict.fromkeys(texts))

    @property
    def answers(self) -> frozenset[str]:
        """The names under which templates read the answer."""
        reason = {self.chain_of_thought.column} if self.chain_of_thought else set()
        return frozenset({ANSWER, self.label} | reason)

    @property
    def columns(self) -> frozenset[str]:
        """The columns that a row must have, or may lack if they are `optional`."""
        texts = [text for each in self.templates for text in (each.prompt, each.completion)]
        read = set().union(*map(variables_of, texts)) - {ANSWER}
        if self.options is not None:
            read -= {OPTIONS}
        own = {self.options} if isinstance(self.options, str) else set()
        return frozenset(read | own | {self.label})

    @property
    def inputs(self) -> frozenset[str]:
        """The columns that tell rows apart: those that a prompt shows which does not show the answer."""
        shown = [variables_of(each.prompt) for each in self.templates if not each.inverted]
        return frozenset(set().union(*shown) - {OPTIONS} - self.answers)

    @model_validator(mode="before")
    @classmethod
    def _cues_of_language(cls, values: Any) -> Any:
        """The cues that `chain_of_thought` does not give, in the language of the templates."""
        if not isinstance(values, dict) or not isinstance(thought := values.get("chain_of_thought"), dict):
            return values
        language = re.split("[-_]", str(values.get("language")).lower())[0]
        return {**values, "chain_of_thought": {**CUES.get(language, {}), **thought}}

    @model_validator(mode="after")
    def _has_wordings(self) -> Task:
        if not any(not each.inverted for each in self.templates):
            raise ValueError(
                "templates: none asks for the answer; write one, or name a shipped pool in extends"
            )
        for key, values in (
            ("name", [each.name for each in self.templates]),
            ("wording", [" ".join(each.prompt.split()) for each in self.templates]),
        ):
            if twice := [value for value in values if values.count(value) > 1]:
                raise ValueError(f"templates: two have the {key} {twice[0]!r:.60}; change one of them")
        if self.options is not None and self.label == OPTIONS:
            raise ValueError(
                "label: templates read the texts to choose from as `options`; name another column"
            )
        return self

    @model_validator(mode="after")
    def _templates_ask_one_thing(self) -> Task:
        for number, each in enumerate(self.templates):
            if fault := self._fault(each):
                raise ValueError(f"templates[{number}] ({each.name}): {fault}")
        return self

    def _fault(self, template: Template) -> str | None:
        """What a template gives away, or does not teach."""
        shown, learned = variables_of(template.prompt), variables_of(template.completion)
        if template.inverted:
            if not learned & self.inputs:
                return (
                    "inverted, but its completion has no column of the input; write one, such as {{ text }}"
                )
            return None if shown else "its prompt shows nothing of the row; write {{ answer }} into it"
        if given_away := shown & self.answers:
            return (
                f"its prompt shows the answer ({min(given_away)}); leave it out, or set inverted: true if "
                "the template asks for the input"
            )
        if not shown - {OPTIONS}:
            return "its prompt shows nothing of the row; write a column into it, such as {{ text }}"
        if not learned & {ANSWER, self.label}:
            return "its completion has no answer; write {{ answer }} into it"
        return None
