"""Conversion of every accepted row format, and every fault of a row."""

import pytest

from data.sources.bad_rows import BadRow, LeftOut, UnusableRow
from data.sources.normalise import normalise
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
        ({"messages": [{"role": "developer", "content": "Brief."}, SKY, BLUE]},
         [system("Brief."), SKY], [BLUE]),
        ({"instruction": "Add.", "input": "1, 2", "output": "3"}, "Add.\n1, 2", "3"),
        ({"instruction": "Add.", "input": "", "output": "3"}, "Add.", "3"),
        ({"instruction": "Add.", "context": "1, 2", "response": "3", "category": "sums"}, "Add.\n1, 2", "3"),
        ({"prompt": "Add.", "input": "1, 2", "completion": "3"}, "Add.\n1, 2", "3"),
        ({"question": "1 + 2?", "answer": "3"}, "1 + 2?", "3"),
        ({"conversations": [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue."}]},
         [user("Sky?")], [BLUE]),
        ({"conversations": [{"role": "user", "content": "Sky?"}, BLUE]}, [user("Sky?")], [BLUE]),
        ({"messages": [system(""), SKY, BLUE]}, [SKY], [BLUE]),
        ({"prompt": "Sky?", "completion": "Blue.", "messages": None}, "Sky?", "Blue."),
        # A copy of both in one text (Alpaca)
        ({"instruction": "Add.", "input": "1, 2", "output": "3", "text": "Do:\nAdd.\n\nInput: 1,  2\n\n3"},
         "Add.\n1, 2", "3"),
        ({"prompt": [SKY], "completion": [BLUE], "text": f"{SKY['content']} Blue."}, [SKY], [BLUE]),
        # Keys without a value
        ({"prompt": "Sky?", "completion": "Blue.", "history": [], "label": "", "system": [], "input": {},
          "text": "", "rating": [], "messages": []}, "Sky?", "Blue."),
        ({"messages": [SKY, BLUE], "system": [], "label": {}, "prompt": ""}, [SKY], [BLUE]),
        # `system` opens the conversation
        ({"system": "S", "prompt": "Sky?", "completion": "Blue."}, [system("S"), user("Sky?")], [BLUE]),
        ({"system": "S", "conversations": [{"from": "human", "value": "Sky?"}, BLUE]},
         [system("S"), user("Sky?")], [BLUE]),
        ({"system": "S", "messages": [system("S"), SKY, BLUE]}, [system("S"), SKY], [BLUE]),
        ({"system_prompt": "S", "messages": [SKY, BLUE], "system": None}, [system("S"), SKY], [BLUE]),
        ({"system": " ", "messages": [SKY, BLUE]}, [SKY], [BLUE]),
        ({"prompt": [system("S"), SKY], "messages": [SKY, BLUE]}, [system("S"), SKY], [BLUE]),
        ({"prompt": [system("S"), SKY], "messages": [system(" S"), SKY, BLUE]}, [system(" S"), SKY], [BLUE]),
        ({"prompt": [SKY], "messages": [system("S"), SKY, BLUE]}, [system("S"), SKY], [BLUE]),
        # The name of the speaker is no part of an answer beside a transcript
        ({"prompt": "\n\nHuman: Hi", "completion": "\n\nAssistant: Hello."},
         [user("Hi")], [assistant("Hello.")]),
        ({"prompt": "\n\nHuman: Hi\n\nAssistant:", "completion": "Assistant:Hello."},
         [user("Hi")], [assistant("Hello.")]),
        ({"prompt": "Hi", "completion": "Assistant: Hello."}, "Hi", "Assistant: Hello."),
        # A copy of the prompt beside the conversation (UltraChat, no_robots), and where a row is from
        ({"prompt": SKY["content"], "prompt_id": "7f", "messages": [SKY, BLUE], "category": "QA"},
         [SKY], [BLUE]),
        # Rated answers (KTO)
        ({"prompt": "Sky?", "completion": "Blue.", "label": True}, "Sky?", "Blue."),
        ({"prompt": "Sky?", "completion": "Blue.", "label": 1}, "Sky?", "Blue."),
        ({"prompt": "Sky?", "completion": "Blue.", "label": "Desirable"}, "Sky?", "Blue."),
        ({"prompt": "Sky?", "completion": "Blue.", "label": "1.0"}, "Sky?", "Blue."),
        ({"messages": [SKY, BLUE], "kto_tag": True}, [SKY], [BLUE]),
        # OpenAI's weights, and keys that say nothing
        ({"messages": [SKY, {**BLUE, "weight": 1}], "tools": []}, [SKY], [BLUE]),
        ({"messages": [{**SKY, "weight": 0.0}, {**BLUE, "weight": 1.0, "tool_calls": None}]}, [SKY], [BLUE]),
    ],
)  # fmt: skip
def test_demonstrations(example, prompt, completion):
    assert normalise(example, "demonstrations") == {"prompt": prompt, "completion": completion}
    assert normalise(example, "prompts") == {"prompt": prompt}


ANSWERED = [SKY, GREEN, user("Sure?"), BLUE]


@pytest.mark.parametrize(
    ("example", "prompt", "completion", "learned"),
    [
        ({"messages": ANSWERED}, ANSWERED[:3], [BLUE], [1]),
        ({"system": "S", "conversations": ANSWERED}, [system("S"), *ANSWERED[:3]], [BLUE], [2]),
        ({"instruction": "Add.", "output": "3", "history": [["Hi", "Yes?"]], "system": "S"},
         [system("S"), user("Hi"), assistant("Yes?"), user("Add.")], [assistant("3")], [2]),
        ({"messages": [SKY, {**GREEN, "weight": 0}, user("Sure?"), BLUE]}, ANSWERED[:3], [BLUE], None),
        # What follows the last learned turn has no influence.
        ({"messages": [SKY, GREEN, user("Sure?"), {**BLUE, "weight": 0}]}, [SKY], [GREEN], None),
        # The person who writes `completion` or `chosen` says what is learned.
        ({"prompt": ANSWERED[:3], "completion": [BLUE]}, ANSWERED[:3], [BLUE], None),
        ({"chosen": ANSWERED, "rejected": [*ANSWERED[:3], GREEN]}, ANSWERED[:3], [BLUE], None),
    ],
)  # fmt: skip
def test_earlier_turns_that_are_learned(example, prompt, completion, learned):
    row = normalise(example, "demonstrations")
    assert row.pop("learned", None) == learned
    assert row == {"prompt": prompt, "completion": completion}
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
        ({"prompt": [system("S"), SKY], "chosen": [SKY, BLUE], "rejected": [SKY, GREEN]},
         [system("S"), SKY], [[BLUE], [GREEN]]),
        ({"prompt": "Sky?", "input": "Why?", "chosen": [BLUE], "rejected": [GREEN]},
         [user("Sky?\nWhy?")], [[BLUE], [GREEN]]),
        (HH, HH_PROMPT, [[assistant("Bye, and\n\ntake care.")], [assistant("Go.")]]),
        ({"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Yes", "rejected": " No"},
         [user("Hi")], [[assistant("Yes")], [assistant("No")]]),
        ({"prompt": "\n\nHuman: Hi", "chosen": "\n\nAssistant: Yes", "rejected": "\n\nAssistant: No"},
         [user("Hi")], [[assistant("Yes")], [assistant("No")]]),
        ({"messages": "\n\nHuman: Hi", "completions": ["Assistant: Yes", "\n\nAssistant: No"]},
         [user("Hi")], [[assistant("Yes")], [assistant("No")]]),
        ({"prompt": "Human: Hi\n\nAssistant:", "completions": [" Yes", " No"]},
         [user("Hi")], [[assistant("Yes")], [assistant("No")]]),
        ({key: text.strip() for key, text in HH.items()},
         HH_PROMPT, [[assistant("Bye, and\n\ntake care.")], [assistant("Go.")]]),
        # Texts part between words, and Chinese between letters
        ({"chosen": "Sky is blue.", "rejected": "Sky is black."}, "Sky is", [" blue.", " black."]),
        ({"chosen": "Sky is blue.", "rejected": "Sky is blue"}, "Sky is", [" blue.", " blue"]),
        ({"chosen": "Sky?\nBlue", "rejected": "Sky?\nBlack"}, "Sky?\n", ["Blue", "Black"]),
        ({"chosen": "Sky: (1.5", "rejected": "Sky: (1.7"}, "Sky:", [" (1.5", " (1.7"]),
        ({"chosen": "天是蓝的", "rejected": "天是绿的"}, "天是", ["蓝的", "绿的"]),
        ({"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Sky?"}],
          "chosen": {"from": "gpt", "value": "Blue."}, "rejected": {"from": "gpt", "value": "Green."}},
         [system("S"), user("Sky?")], [[BLUE], [GREEN]]),
        ({"instruction": "Sky?", "input": "", "chosen": "B", "rejected": "G"}, "Sky?", ["B", "G"]),
        # Whole conversations with their scores and a copy of the prompt (UltraFeedback, dpo-mix, orpo-mix)
        ({"prompt": SKY["content"], "prompt_id": "7f", "chosen": [SKY, BLUE], "rejected": [SKY, GREEN],
          "messages": [SKY, BLUE], "score_chosen": 8.5, "score_rejected": 7},
         [SKY], [[BLUE], [GREEN]]),
        ({"dataset": "d", "chosen": [SKY, BLUE], "rejected": [SKY, GREEN], "chosen_rating": 5.0,
          "rejected_rating": None}, [SKY], [[BLUE], [GREEN]]),
        ({"source": "s", "prompt": "Sky?", "question": "Sky?", "chosen": [user("Sky?"), BLUE],
          "rejected": [user("Sky?"), GREEN]}, [user("Sky?")], [[BLUE], [GREEN]]),
        ({"system": "S", "question": "Sky?", "chosen": "Blue.", "rejected": "Green."},
         [system("S"), user("Sky?")], [[BLUE], [GREEN]]),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "scores": [2, 1]}, "p", ["a", "b"]),
        ({"prompt": "p", "completions": ["a", "b", "c"]}, "p", ["a", "b", "c"]),
        ({"prompt": "p", "completions": ["a", "b"], "scores": [], "ranks": "", "history": []},
         "p", ["a", "b"]),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "history": "", "score_chosen": "", "messages": []},
         "p", ["a", "b"]),
        ({"prompt": [SKY], "completions": [[BLUE], "Green."]}, [SKY], [[BLUE], [GREEN]]),
    ],
)  # fmt: skip
def test_rankings(example, prompt, completions):
    expected = {"prompt": prompt, "completions": completions, "ranks": list(range(len(completions)))}
    row = normalise(example, "rankings")
    row.pop("scores", None)
    assert row == expected
    assert normalise(example, "demonstrations") == {"prompt": prompt, "completion": completions[0]}
    assert normalise(example, "prompts") == {"prompt": prompt}


@pytest.mark.parametrize(
    ("given", "best_first", "ranks"),
    [
        ({}, "abcd", [0, 1, 2, 3]),
        ({"ranks": [0, 1, 1, 2]}, "abcd", [0, 1, 1, 2]),
        ({"ranks": [1, 2, 2, 5]}, "abcd", [0, 1, 1, 2]),
        ({"rank": [4, 3, 2, 1]}, "dcba", [0, 1, 2, 3]),
        ({"ranking": [2, 1, 4, 3]}, "badc", [0, 1, 2, 3]),
        ({"scores": [4.5, 4.5, 3, 1.0]}, "abcd", [0, 0, 1, 2]),
        ({"scores": [1, 2, 3, 10**400]}, "dcba", [0, 1, 2, 3]),
        ({"ratings": [1, 5, 5, 2]}, "bcda", [0, 0, 1, 2]),
        ({"rating": [1, 5, 3, 2]}, "bcda", [0, 1, 2, 3]),
        # Ranks and scores that agree: the ranks say which tie.
        ({"ranks": [1, 2, 3, 4], "scores": [4, 3, 3, 1]}, "abcd", [0, 1, 2, 3]),
        ({"ranks": [0, 0, 0, 1], "scores": [4, 3, 2, 1]}, "abcd", [0, 0, 0, 1]),
    ],
)
def test_ranks_and_scores_order_the_answers(given, best_first, ranks):
    example = {"prompt": "p", "completions": ["a", "b", "c", "d"], **given}
    expected = {"prompt": "p", "completions": list(best_first), "ranks": ranks}
    row = normalise(example, "rankings")
    row.pop("scores", None)
    assert row == expected
    assert normalise(example, "demonstrations") == {"prompt": "p", "completion": best_first[0]}


@pytest.mark.parametrize(
    ("given", "scores"),
    [
        ({"completions": ["a", "b", "c"], "scores": [1, 9.5, 4]}, [9.5, 4.0, 1.0]),
        ({"completions": ["a", "b", "c"], "ranks": [3, 1, 2], "scores": [1, 9, 9]}, [9.0, 9.0, 1.0]),
        ({"completions": ["a", "b"], "scores": [10**400, 1]}, None),
        ({"completions": ["a", "b"], "ranks": [2, 1]}, None),
        ({"chosen": "a", "rejected": "b", "score_chosen": 8, "score_rejected": 7.5}, [8.0, 7.5]),
        ({"chosen": "a", "rejected": "b", "scores": [2, 1]}, [2.0, 1.0]),
        ({"chosen": "a", "rejected": "b", "score_chosen": 8}, None),
    ],
)
def test_scores_stay_with_their_answers_best_first(given, scores):
    assert normalise({"prompt": "p", **given}, "rankings").get("scores") == scores


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


D, R, P = "demonstrations", "rankings", "prompts"
K = {"prompt": "p", "completions": ["a", "b", "c"]}
ALWAYS_AN_ERROR = [
    ({"body": "hello"}, D, "no known format has these keys: `body`"),
    ({}, P, "no known format has these keys: none"),
    ({"prompt": "p"}, D, "the keys `prompt` hold no completion"),
    ({"prompt": "p", "completion": "c"}, R, "hold no completions to rank"),
    ({"prompt": "p", "completions": ["a"]}, R, "at least two, not 1"),
    ({"completions": ["a", "b"]}, R, "and the row must have a `prompt`"),
    ({"prompt": "p", "completions": "ab"}, R, "must be a list"),
    ({**K, "ranks": [0, 1]}, R, "`ranks` has 2 entries for 3 completions"),
    ({**K, "ranks": [0, 1, 2], "scores": [1, 2, 3]}, R, "`ranks`, `scores` contradict each other"),
    ({**K, "ranking": [0, 1, 2], "ratings": [9, 5, 6]}, D, "`ranking`, `ratings` contradict"),
    ({**K, "score": 3}, R, "`score` must be a list of numbers, not 3"),
    ({**K, "ranks": ["a", "b", "c"]}, R, "must be a list of numbers"),
    ({**K, "ranks": [False, True, True]}, R, "must be a list of numbers"),
    ({**K, "scores": [float("nan"), 2, 1]}, R, "must be a list of numbers"),
    ({"prompt": 3, "completion": "c"}, D, "must be text or a list of messages, not 3"),
    ({"prompt": [], "completion": "c"}, D, "must be text or a list of messages, not []"),
    ({"prompt": ["Hi"], "completion": "c"}, D, "'Hi' is not a message"),
    ({"messages": [{"role": "robot", "content": "x"}]}, P, "role 'robot'; known roles: system, developer"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, P, "role ['user']"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, P,
     "`messages[].content` has a part of type 'image': images, sound and video are not supported; leave"),
    ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "completion": "c"}, D,
     "`prompt[].content` is a list of parts; write their texts as one text"),
    ({"messages": [{"role": "user", "content": ["a"]}]}, P, "content` must be text, not ['a']"),
    *(({"messages": [SKY, {"role": role, "content": "{}"}]}, P,
       f"role '{role}': tool calls are not supported; leave such rows out, or write the call")
      for role in ("tool", "function", "observation")),
    ({"messages": [SKY, {**BLUE, "tool_calls": [{}]}]}, D, "tool calls"),
    ({"messages": "Hi"}, D, "`messages` must be a list of messages"),
    ({"instruction": "i", "instances": []}, D, "the keys `instruction` hold no completion"),
    ({"instruction": "i", "output": "o", "history": ["x"]}, D, "[question, answer]"),
    ({"chosen": "a b", "rejected": [SKY, BLUE]}, R, "both be text or both be messages"),
    ({"prompt": "\ud83d", "completion": "c"}, D, "half of a surrogate pair"),
    # Keys that a format has no use for, and keys that contradict each other
    ({"prompt": "p", "completion": "c", "foo": 1}, D,
     "the key `foo` has no place in a demonstration (`prompt`, `completion`); rename or remove it"),
    ({"prompt": "p", "foo": 1, "bar": 2}, P, "the keys `foo`, `bar` have no place in a prompt"),
    ({"prompt": "p", "foo": 1}, P,
     "name it in `ignore_columns` of this source, or read it as another key by `columns`"),
    ({"prompt": "p", "completion": "c", "score": 0.1}, D, "the key `score` has no place"),
    ({"prompt": "p", "completion": "c", "chosen": "d"}, D, "the key `chosen` has no place"),
    ({"prompt": "p", "completion": "c", "completions": ["d", "e"]}, R, "the key `completion` has no place"),
    ({"prompt": "p", "chosen": "c", "rejected": "r", "completion": "c"}, R, "the key `completion` has no"),
    ({"prompt": "p", "completion": "c", "text": "p d"}, D, "`text` says something else than prompt and"),
    ({"prompt": "p", "input": "i", "completion": "c", "text": "p c"}, D, "`text` says something else"),
    ({"input": "i", "chosen": "c", "rejected": "cr"}, R, "`input` needs a `prompt` that is text"),
    ({"prompt": [SKY], "input": "i", "completion": "c"}, D, "`input` needs a `prompt` that is text"),
    ({"question": "p", "prompt": "q", "completion": "c"}, P, "`question` and `prompt` say different things"),
    ({"prompt": "Else?", "messages": [SKY, BLUE]}, D, "`prompt` says something else than"),
    ({"prompt": "Else?", "chosen": [SKY, BLUE], "rejected": [SKY, GREEN]}, R, "`prompt` says something else"),
    ({"prompt": "S", "messages": [SKY, BLUE]}, D, "`prompt` says something else than"),
    ({"prompt": "What color", "chosen": [SKY, BLUE], "rejected": [SKY, GREEN]}, R, "`prompt` says something"),
    ({"prompt": [SKY, system("S")], "messages": [SKY, BLUE]}, D, "`prompt` says something else than"),
    ({"prompt": [system("S"), SKY], "messages": [system("T"), SKY, BLUE]}, D,
     "the system message of `prompt` is not the system message that opens the conversation; rename or"),
    ({"prompt": [system("S"), SKY], "chosen": [system("T"), SKY, BLUE],
      "rejected": [system("T"), SKY, GREEN]}, R, "the system message of `prompt` is not the system message"),
    ({"prompt": [system("S"), SKY], "chosen": [SKY, BLUE], "rejected": [SKY, GREEN], "system": "T"}, R,
     "`system` is not the system message"),
    ({"prompt": [SKY], "chosen": [BLUE], "rejected": [GREEN], "messages": [SKY, assistant("Red.")]}, R,
     "`messages` says something else"),
    ({"system": "S", "messages": [system("T"), SKY, BLUE]}, D, "`system` is not the system message"),
    ({"prompt": "p", "chosen": "c", "rejected": "r", "score_chosen": 1, "score_rejected": 2}, R,
     "`score_chosen` says that `rejected` is better than `chosen`"),
    ({"prompt": "p", "chosen": "c", "rejected": "r", "chosen-rating": 1, "rejected-rating": 2}, D,
     "`chosen-rating` says that `rejected` is better"),
    ({"prompt": "p", "chosen": "c", "rejected": "r", "ranks": [2, 1]}, R, "`ranks` says that `rejected`"),
    ({"prompt": "p", "chosen": "c", "rejected": "r", "score_chosen": "a"}, R, "must be a number, not 'a'"),
    ({"prompt": "p", "chosen": "c", "rejected": "r", "margin": 2}, R,
     "`margin`: a margin of two answers is not read; give the score of each (`score_chosen` and"),
    ({"prompt": "p", "completion": "c", "label": "sports"}, D, "`label` must rate the answer"),
    ({"prompt": "p", "completion": "c", "label": 3}, D, "`label` must rate the answer"),
    ({"prompt": "p", "completion": "c", "label": "1.5"}, D, "`label` must rate the answer"),
    ({"prompt": "p", "completion": "c", "label": "1."}, D, "`label` must rate the answer"),
    ({"prompt": "p", "completion": "c", "label": True}, R, "`label` rates one answer (unpaired"),
    ({"messages": [SKY, BLUE], "kto_tag": 0}, R, "`kto_tag` rates one answer (unpaired"),
    ({"prompt": "p", "chosen": "c", "rejected": "r", "label": 1}, R, "`label` rates one answer, which this"),
    ({"messages": [SKY, BLUE], "tools": [{"name": "f"}]}, D, "tool calls are not supported"),
    ({"messages": [SKY, BLUE], "images": ["a.png"]}, D, "images, sound and video are not supported"),
    ({"messages": [SKY, {**BLUE, "reasoning_content": "Air."}]}, D, "reasoning beside the answer"),
    ({"messages": [SKY, {**BLUE, "foo": 1}]}, D, "`foo` has no place in a message of `messages`"),
    ({"messages": [SKY, {**BLUE, "from": "human"}]}, D, "`from` has no place in a message"),
    ({"messages": [SKY, {**BLUE, "weight": 0.5}]}, D, "weight` must be 0 or 1, not 0.5"),
    ({"messages": [{**SKY, "weight": 1}, BLUE]}, D, "only assistant messages are learned"),
]  # fmt: skip
NOTHING_TO_LEARN = [
    ({"prompt": " ", "completion": "c"}, D, "the prompt is empty"),
    ({"prompt": "p", "completion": "\n"}, D, "a completion is empty"),
    ({"prompt": "\n\nHuman: Hi", "completion": "\n\nAssistant:"}, D, "a completion is empty"),
    ({"messages": [SKY]}, D, "does not end with an assistant turn"),
    ({"messages": [BLUE, GREEN]}, D, "roles out of order (assistant)"),
    ({"messages": [SKY, SKY, BLUE]}, D, "roles out of order (user, user)"),
    ({"messages": [SKY, system("x"), BLUE]}, D, "roles out of order (user, system)"),
    ({"messages": [system("x"), BLUE]}, D, "the prompt is empty"),
    ({"messages": [SKY, assistant(""), SKY, BLUE]}, D, "a message of the prompt is empty"),
    ({"prompt": [SKY, BLUE]}, P, "roles out of order (user, assistant)"),
    ({"prompt": [SKY], "completion": [BLUE, SKY, BLUE]}, D, "must be one assistant turn"),
    ({"chosen": [SKY, BLUE], "rejected": [user("Else?"), BLUE]}, R, "a shared prompt, not user"),
    ({"chosen": [SKY, BLUE], "rejected": [SKY]}, R, "does not end with an assistant turn"),
    ({"chosen": "Yes.", "rejected": "No."}, R, "share no prompt"),
    ({"chosen": "Yes", "rejected": "Yesterday"}, R, "share no prompt"),
    ({"prompt": "", "chosen": "a b", "rejected": "a c"}, R, "the prompt is empty"),
    ({"chosen": "", "rejected": "No."}, R, "is empty"),
    ({"prompt": "p", "chosen": "", "rejected": "No."}, R, "a completion is empty"),
    ({"prompt": "\u200b\u3164\x07", "completion": "c"}, D, "the prompt is empty"),
    ({"prompt": "p", "completion": "\u2060\u00ad \ufe0f\u2800"}, D, "a completion is empty"),
    ({"messages": [SKY, assistant("\ufeff")]}, D, "a completion is empty"),
]  # fmt: skip
SAYS_SO_ITSELF = [
    ({"prompt": "p", "chosen": "same", "rejected": "same"}, R, "`chosen` equals `rejected`"),
    ({"chosen": "the same", "rejected": "the same"}, R, "`chosen` equals `rejected`"),
    ({"chosen": [SKY, BLUE], "rejected": [SKY, BLUE]}, R, "`chosen` equals `rejected`"),
    ({"prompt": "p", "chosen": "a b", "rejected": " a\n b "}, R, "differ by more than blanks"),
    ({"prompt": "p", "completions": ["a", "b", "a "]}, R, "differ by more than blanks"),
    ({**K, "ranks": [0, 0, 0]}, R, "all completions tie"),
    ({"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 1}, R, "tie"),
    ({"prompt": "p", "completion": "c", "label": False}, D, "the answer is rated bad (`label`)"),
    ({"prompt": "p", "completion": "c", "label": 0}, D, "the answer is rated bad (`label`)"),
    ({"prompt": "p", "completion": "c", "label": "bad"}, D, "the answer is rated bad (`label`)"),
    ({"prompt": "p", "completion": "c", "label": "0.0"}, D, "the answer is rated bad (`label`)"),
    ({"prompt": "p", "completion": "c", "label": "-1.00"}, D, "the answer is rated bad (`label`)"),
    ({"messages": [SKY, BLUE], "kto_tag": "false"}, D, "the answer is rated bad (`kto_tag`)"),
    ({"messages": [SKY, {**BLUE, "weight": 0}]}, D, "the answer has weight 0"),
]  # fmt: skip


@pytest.mark.parametrize(("example", "kind", "fault"), ALWAYS_AN_ERROR + NOTHING_TO_LEARN + SAYS_SO_ITSELF)
def test_fault(example, kind, fault):
    with pytest.raises(BadRow) as caught:
        normalise(example, kind)
    assert fault in str(caught.value)
    assert isinstance(caught.value, UnusableRow) == ((example, kind, fault) in NOTHING_TO_LEARN)
    assert isinstance(caught.value, LeftOut) == ((example, kind, fault) in SAYS_SO_ITSELF)
