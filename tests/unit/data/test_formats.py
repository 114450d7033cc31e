"""Conversion of every accepted row format, and every fault of a row."""

import json

import pytest

from configs.errors import UserError
from configs.schema import Source
from data.sources.formats import load_rows, normalise
from data.sources.reading import BadRow, UnusableRow
from tests.support.turns import assistant, user


def system(text):
    return {"role": "system", "content": text}


SKY, BLUE, GREEN = user("What color is the sky?"), assistant("Blue."), assistant("Green.")
HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Bye?\n\nAssistant: Bye, and\n\ntake care.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Bye?\n\nAssistant: Go.",
}
HH_PROMPT = [user("Hi"), assistant("Hello."), user("Bye?")]


@pytest.mark.parametrize(
    ("example", "prompt", "completion"),
    [
        ({"prompt": "The sky is", "completion": " blue."}, "The sky is", " blue."),
        ({"prompt": [SKY], "completion": [BLUE]}, [SKY], [BLUE]),
        ({"prompt": "Sky?", "completion": [BLUE]}, [user("Sky?")], [BLUE]),
        ({"messages": [system("Short."), SKY, BLUE]}, [system("Short."), SKY], [BLUE]),
        ({"messages": [SKY, GREEN, user("Sure?"), BLUE]}, [SKY, GREEN, user("Sure?")], [BLUE]),
        ({"instruction": "Add.", "input": "1, 2", "output": "3"}, "Add.\n1, 2", "3"),
        ({"instruction": "Add.", "input": "", "output": "3"}, "Add.", "3"),
        ({"instruction": "Add.", "input": None, "output": "3", "history": [["Hi", "Yes?"]], "system": "S"},
         [system("S"), user("Hi"), assistant("Yes?"), user("Add.")], [assistant("3")]),
        ({"conversations": [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue."}]},
         [user("Sky?")], [BLUE]),
        ({"conversations": [{"role": "user", "content": "Sky?"}, BLUE]}, [user("Sky?")], [BLUE]),
        ({"messages": [system(""), SKY, BLUE]}, [SKY], [BLUE]),
        ({"prompt": "Sky?", "completion": "Blue.", "messages": None}, "Sky?", "Blue."),
    ],
)  # fmt: skip
def test_demonstrations(example, prompt, completion):
    assert normalise(example, "demonstrations") == {"prompt": prompt, "completion": completion}
    assert normalise(example, "prompts") == {"prompt": prompt}


@pytest.mark.parametrize(
    ("example", "prompt", "completions"),
    [
        ({"prompt": "Sky is", "chosen": " blue.", "rejected": " green."}, "Sky is", [" blue.", " green."]),
        ({"chosen": "Sky is blue.", "rejected": "Sky is green."}, "Sky is", [" blue.", " green."]),
        ({"prompt": [SKY], "chosen": [BLUE], "rejected": [GREEN]}, [SKY], [[BLUE], [GREEN]]),
        ({"chosen": [SKY, BLUE], "rejected": [SKY, GREEN]}, [SKY], [[BLUE], [GREEN]]),
        # A copy of the prompt as text beside whole conversations (UltraFeedback), and beside answers alone
        ({"prompt": SKY["content"], "chosen": [SKY, BLUE], "rejected": [SKY, GREEN], "messages": [SKY, BLUE]},
         [SKY], [[BLUE], [GREEN]]),
        ({"prompt": SKY["content"], "chosen": [BLUE], "rejected": [GREEN]}, [SKY], [[BLUE], [GREEN]]),
        (HH, HH_PROMPT, [[assistant("Bye, and\n\ntake care.")], [assistant("Go.")]]),
        ({"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Yes", "rejected": " No"},
         [user("Hi")], [[assistant(" Yes")], [assistant(" No")]]),
        ({"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Sky?"}],
          "chosen": {"from": "gpt", "value": "Blue."}, "rejected": {"from": "gpt", "value": "Green."}},
         [system("S"), user("Sky?")], [[BLUE], [GREEN]]),
        ({"instruction": "Sky?", "input": "", "chosen": "B", "rejected": "G"}, "Sky?", ["B", "G"]),
        ({"prompt": "p", "completions": ["a", "b", "c"]}, "p", ["a", "b", "c"]),
        ({"prompt": [SKY], "completions": [[BLUE], "Green."]}, [SKY], [[BLUE], [GREEN]]),
    ],
)  # fmt: skip
def test_rankings(example, prompt, completions):
    expected = {"prompt": prompt, "completions": completions, "ranks": list(range(len(completions)))}
    assert normalise(example, "rankings") == expected
    assert normalise(example, "demonstrations") == {"prompt": prompt, "completion": completions[0]}
    assert normalise(example, "prompts") == {"prompt": prompt}


@pytest.mark.parametrize(
    ("ranking", "ranks"),
    [
        ({"ranks": [0, 1, 1, 2]}, [0, 1, 1, 2]),
        ({"ranks": [1, 2, 2, 5]}, [0, 1, 1, 2]),
        ({"scores": [4.5, 4.5, 3, 1.0]}, [0, 0, 1, 2]),
        ({"ranks": [0, 0, 0, 1], "scores": [1, 2, 3, 4]}, [0, 0, 0, 1]),
    ],
)
def test_equal_ranks_or_scores_are_ties(ranking, ranks):
    row = normalise({"prompt": "p", "completions": ["a", "b", "c", "d"], **ranking}, "rankings")
    assert row["ranks"] == ranks


def test_prompts_need_no_completion():
    assert normalise({"prompt": "Hi"}, "prompts") == {"prompt": "Hi"}
    assert normalise({"prompt": [SKY]}, "prompts") == {"prompt": [SKY]}
    assert normalise({"messages": [SKY]}, "prompts") == {"prompt": [SKY]}
    assert normalise({"prompt": "\n\nHuman: Hi\n\nAssistant:"}, "prompts") == {"prompt": [user("Hi")]}


def test_consecutive_turns_of_one_speaker_in_a_transcript_are_joined():
    text = "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c\n\nHuman: d\n\nAssistant: "
    row = normalise({"chosen": text + "e", "rejected": text + "f"}, "rankings")
    assert row["prompt"] == [user("a"), assistant("b\n\nc"), user("d")]
    assert row["completions"] == [[assistant("e")], [assistant("f")]]


K = {"prompt": "p", "completions": ["a", "b", "c"]}
ALWAYS_AN_ERROR = [
    ({"text": "hello"}, "demonstrations", "no known format has these keys: `text`"),
    ({}, "prompts", "no known format has these keys: none"),
    ({"prompt": "p"}, "demonstrations", "the keys `prompt` hold no completion"),
    ({"prompt": "p", "completion": "c"}, "rankings", "hold no completions to rank"),
    ({"prompt": "p", "completions": ["a"]}, "rankings", "at least two, not 1"),
    ({"completions": ["a", "b"]}, "rankings", "and the row must have a `prompt`"),
    ({"prompt": "p", "completions": "ab"}, "rankings", "must be a list"),
    ({**K, "ranks": [0, 1]}, "rankings", "`ranks` has 2 entries for 3 completions"),
    ({**K, "ranks": [0, 2, 1]}, "rankings", "`ranks` must ascend, 0 for the best"),
    ({**K, "ranks": ["a", "b", "c"]}, "rankings", "must be a list of numbers"),
    ({**K, "ranks": [False, True, True]}, "rankings", "must be a list of numbers"),
    ({**K, "scores": [1, 2, 3]}, "rankings", "`scores` must descend"),
    ({**K, "scores": [float("nan"), 2, 1]}, "rankings", "must be a list of numbers"),
    ({"prompt": 3, "completion": "c"}, "demonstrations", "must be text or a list of messages, not 3"),
    ({"prompt": [], "completion": "c"}, "demonstrations", "must be text or a list of messages, not []"),
    ({"prompt": ["Hi"], "completion": "c"}, "demonstrations", "'Hi' is not a message"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "prompts", "role 'robot'; known roles: system, user"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "prompts", "role ['user']"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "prompts", "content` must be text"),
    ({"messages": [SKY, {**BLUE, "tool_calls": [{}]}]}, "demonstrations", "tool calls"),
    ({"messages": "Hi"}, "demonstrations", "`messages` must be a list of messages"),
    ({"instruction": "i", "instances": []}, "demonstrations", "`instruction` without `output`"),
    ({"instruction": "i", "output": "o", "history": ["x"]}, "demonstrations", "[question, answer]"),
    ({"chosen": "a b", "rejected": [SKY, BLUE]}, "rankings", "both be text or both be messages"),
    ({"prompt": "\ud83d", "completion": "c"}, "demonstrations", "half of a surrogate pair"),
]  # fmt: skip
NOTHING_TO_LEARN = [
    ({"prompt": " ", "completion": "c"}, "demonstrations", "the prompt is empty"),
    ({"prompt": "p", "completion": "\n"}, "demonstrations", "a completion is empty"),
    ({"messages": [SKY]}, "demonstrations", "does not end with an assistant turn"),
    ({"messages": [BLUE, GREEN]}, "demonstrations", "roles out of order (assistant)"),
    ({"messages": [SKY, SKY, BLUE]}, "demonstrations", "roles out of order (user, user)"),
    ({"messages": [SKY, system("x"), BLUE]}, "demonstrations", "roles out of order (user, system)"),
    ({"messages": [system("x"), BLUE]}, "demonstrations", "the prompt is empty"),
    ({"messages": [SKY, assistant(""), SKY, BLUE]}, "demonstrations", "a message of the prompt is empty"),
    ({"prompt": [SKY, BLUE]}, "prompts", "roles out of order (user, assistant)"),
    ({"prompt": [SKY], "completion": [BLUE, SKY, BLUE]}, "demonstrations", "must be one assistant turn"),
    ({"prompt": "p", "chosen": "same", "rejected": "same"}, "rankings", "`chosen` equals `rejected`"),
    ({"chosen": "the same", "rejected": "the same"}, "rankings", "`chosen` equals `rejected`"),
    ({"chosen": [SKY, BLUE], "rejected": [SKY, BLUE]}, "rankings", "`chosen` equals `rejected`"),
    ({"chosen": [SKY, BLUE], "rejected": [user("Else?"), BLUE]}, "rankings", "a shared prompt, not user"),
    ({"chosen": [SKY, BLUE], "rejected": [SKY]}, "rankings", "does not end with an assistant turn"),
    ({"chosen": "Yes.", "rejected": "No."}, "rankings", "share no prompt"),
    ({"chosen": "", "rejected": "No."}, "rankings", "is empty"),
    ({**K, "ranks": [0, 0, 0]}, "rankings", "all completions tie"),
    ({"prompt": "p", "chosen": "", "rejected": "No."}, "rankings", "a completion is empty"),
]  # fmt: skip


@pytest.mark.parametrize(("example", "kind", "fault"), ALWAYS_AN_ERROR + NOTHING_TO_LEARN)
def test_fault(example, kind, fault):
    with pytest.raises(BadRow) as caught:
        normalise(example, kind)
    assert fault in str(caught.value)
    assert isinstance(caught.value, UnusableRow) == ((example, kind, fault) in NOTHING_TO_LEARN)


# Loading: how bad rows are handled


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(path=str(path))


def demonstration(number):
    return {"prompt": f"p{number}", "completion": f"c{number}"}


def refuse(message):
    raise AssertionError(f"nothing to note, but: {message}")


def test_rows_have_their_place(tmp_path):
    source = write(tmp_path / "a.jsonl", [demonstration(1), demonstration(2)])
    assert load_rows(source, "demonstrations", refuse) == [
        {"prompt": "p1", "completion": "c1", "where": f"{tmp_path}/a.jsonl, line 1"},
        {"prompt": "p2", "completion": "c2", "where": f"{tmp_path}/a.jsonl, line 2"},
    ]


def test_an_error_shows_five_bad_rows_and_the_remedy(tmp_path):
    source = write(tmp_path / "a.jsonl", [demonstration(1), *[{"prompt": "p"}] * 7])
    with pytest.raises(UserError) as caught:
        load_rows(source, "demonstrations", refuse)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path}/a.jsonl: 7 of 8 rows cannot serve as demonstrations."
    assert lines[1:6] == [f"  line {line}: the keys `prompt` hold no completion" for line in range(2, 7)]
    assert lines[6] == "  and 2 more"
    assert "Correct or remove them. Accepted as demonstrations: `prompt` and `completion`" in lines[7]


def test_one_unusable_row_in_a_hundred_is_left_out_and_reported(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": ""}, *map(demonstration, range(99))])
    notes: list[str] = []
    assert len(load_rows(source, "demonstrations", notes.append)) == 99
    assert notes == [f"{tmp_path}/a.jsonl: left out 1 of 100 rows.\n  line 1: a completion is empty"]


def test_one_unusable_row_in_fifty_is_an_error(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": ""}, *map(demonstration, range(49))])
    with pytest.raises(UserError, match=r"1 of 50 rows cannot serve.*\n  line 1: a completion is empty"):
        load_rows(source, "demonstrations", refuse)


def test_one_unreadable_row_in_a_thousand_is_an_error(tmp_path):
    source = write(tmp_path / "a.jsonl", [*map(demonstration, range(999)), {"prompt": "p"}])
    with pytest.raises(UserError, match=r"1 of 1000 rows cannot serve.*\n  line 1000: the keys"):
        load_rows(source, "demonstrations", refuse)


def test_an_unusable_row_of_rankings_may_still_be_a_prompt(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "same", "rejected": "same"}])
    assert [row["prompt"] for row in load_rows(source, "prompts", refuse)] == ["p"]
    with pytest.raises(UserError, match="`chosen` equals `rejected`"):
        load_rows(source, "rankings", refuse)
