"""The pools that ship: each template renders, wordings differ, and no prompt gives its answer away."""

import re
from typing import Any

import pytest

from configs.task_file import read_task, shipped_pools
from configs.task_pool import Task, Template
from data.batches import wording
from data.sources.tasks import labelled_row

KINDS = (
    "generation",
    "open_qa",
    "closed_qa",
    "brainstorming",
    "chat",
    "rewriting",
    "summarising",
    "classification",
    "extraction",
    "other",
    "nli",
    "translation",
)
POOLS = sorted(shipped_pools())


def rendered(task: Task, template: Template, **changes: Any) -> tuple[str, str]:
    assert task.example is not None
    labelled = labelled_row({**task.example, **changes}, task)["labelled"]
    jobs = [(template.prompt, labelled), (template.completion, labelled)]
    prompt, completion = wording.render(jobs, ["the example", "the example"])
    return prompt, completion


def test_each_kind_ships_in_english_and_chinese():
    assert set(POOLS) == {name for kind in KINDS for name in (kind, f"{kind}_zh")}
    for name in POOLS:
        assert read_task(name, "k").language == ("zh" if name.endswith("_zh") else "en")


@pytest.mark.parametrize("name", POOLS)
def test_a_pool_has_six_wordings_that_differ_in_more_than_punctuation(name):
    task = read_task(name, "k")
    forward = [each for each in task.templates if not each.inverted]
    assert len(forward) >= 6 and len(task.templates) > len(forward)
    texts = [rendered(task, each)[0] for each in task.templates]
    letters = ["".join(filter(str.isalnum, text.lower())) for text in texts]
    assert len(set(letters)) == len(letters)


@pytest.mark.parametrize("name", POOLS)
def test_each_template_shows_the_whole_input_and_learns_the_answer(name):
    task = read_task(name, "k")
    example = task.example or {}
    row = labelled_row(example, task)["labelled"]
    for each in task.templates:
        prompt, completion = rendered(task, each)
        if each.inverted:
            assert row.answer in prompt and completion in example.values()
            continue
        assert completion == row.answer
        shown = [example[column] for column in task.inputs if not column.endswith("_language")]
        assert all(text in prompt for text in shown), each.name


@pytest.mark.parametrize("name", POOLS)
def test_no_prompt_gives_its_answer_away(name):
    """With options, the prompt is the same whatever the label. Without, the answer is not in it."""
    task = read_task(name, "k")
    row = labelled_row(task.example or {}, task)["labelled"]
    for each in task.templates:
        if each.inverted:
            continue
        prompt, completion = rendered(task, each)
        if task.options is None:
            assert completion not in prompt, each.name
        else:
            labels = row.values["options"] if isinstance(task.options, str) else list(task.options)
            assert {rendered(task, each, **{task.label: label})[0] for label in labels} == {prompt}


@pytest.mark.parametrize("name", POOLS)
def test_a_pools_own_words_are_of_its_language(name):
    """Most Chinese templates have Chinese words, and no English one has."""
    texts = [re.sub(r"\{[{%].*?[%}]\}", "", each.prompt) for each in read_task(name, "k").templates]
    chinese = [bool(re.search("[\u4e00-\u9fff]", text)) for text in texts]
    latin = [bool(re.search("[A-Za-z]", text)) for text in texts]
    assert sum(chinese) >= 5 and not any(latin) if name.endswith("_zh") else not any(chinese)


NLI = {
    "does-it-follow": "Answer yes, maybe or no.",
    "true-as-well": "true as well? Yes, no or maybe?",
    "headings": "imply the hypothesis (yes, no, maybe)?",
    "conclude": "Options: maybe, yes, no.",
    "statement-first": "Say no, yes or maybe.",
    "someone-claims": "Is the claim correct: yes, maybe or no?",
    "能否推出": "请回答是、不一定或否。",
    "也为真": "也为真吗？是、否，还是不一定？",
    "标题": "（是、否、不一定）？",
    "结论": "选项：不一定、是、否。",
    "先看说法": "请答否、是或不一定。",
    "有人说": "他说得对吗：是、不一定，还是否？",
}


@pytest.mark.parametrize("name", ["nli", "nli_zh"])
def test_options_stand_in_a_prompt_as_a_person_would_write_them(name):
    task = read_task(name, "k")
    for each in task.templates:
        assert each.inverted or rendered(task, each)[0].endswith(NLI[each.name])


@pytest.mark.parametrize("name", [name for name in POOLS if read_task(name, "k").choices])
@pytest.mark.parametrize("options", [["right", "wrong"], ["Surely", "Hardly", "never", "Who knows"]])
def test_a_pool_with_other_options_asks_for_these(name, options):
    """What a prompt offers is what is learned, and nothing of the pool's own options is left."""
    pool = read_task(name, "k")
    task = pool.model_copy(update={"options": tuple(options)})
    for each in task.templates:
        if each.inverted:
            continue
        prompt, completion = rendered(task, each, **{task.label: 1})
        assert completion == options[1]
        assert all(option.lower() in prompt.lower() for option in options), each.name
        assert not any(re.search(rf"\b{own}\b", prompt.lower()) for own in pool.choices), each.name


def test_an_optional_column_may_be_missing():
    task = read_task("other", "k")
    without = {key: value for key, value in (task.example or {}).items() if key != "input"}
    for each in task.templates:
        labelled = labelled_row(without, task)["labelled"]
        (text,) = wording.render([(each.prompt, labelled)], ["r"])
        assert "Input" not in text and "\n\n\n" not in text and "Given" not in text


def test_line_breaks_stand_where_the_template_has_them():
    """Jinja's option `trim_blocks` would take those away that follow {% endif %}."""
    task = read_task("other", "k")
    headings = next(each for each in task.templates if each.name == "headings")
    assert rendered(task, headings)[0].splitlines() == [
        "Instruction: Sort the words by their length.",
        "Input: banana, fig, apple",
        "Output:",
    ]
    assert rendered(task, headings, input="")[0].splitlines()[1:] == ["Output:"]
    classification = read_task("classification", "k")
    bullets = next(each for each in classification.templates if each.name == "bullets")
    lines = rendered(classification, bullets)[0].splitlines()
    assert lines[4:] == ["- praise", "- complaint", "- question", "", "Answer:"]
