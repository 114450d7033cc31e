"""What a judge's reply says: which of two answers is better, or the order of several.

A verdict taken the wrong way round costs more than one that is lost: what is not clear is unreadable.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain
from string import ascii_uppercase as LETTERS
from typing import Any

from configs.unique_keys import unique_keys

THOUGHT, THOUGHT_END = "<think>", "</think>"  # around what a model thinks aloud
DECORATION = re.compile(r"[*`\"]|\b(?:answer|response|option|assistant)\b", re.IGNORECASE)
LETTER = re.compile(r"\b[AB]\b")
IN_BRACKETS = re.compile(r"\[\[\s*([ABC])\s*\]\]")  # verdicts of Zheng et al. 2023; C is a tie
TIE = re.compile(r"\btie\b|\bequally good\b|\[\[C\]\]", re.IGNORECASE)
CHAIN = re.compile(r"\b[A-Z](?:\s*[>=]\s*[A-Z])+\b")
LIST = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]")
FIRST_CHAIN, FIRST_LIST = re.compile(rf"\W*({CHAIN.pattern})"), re.compile(rf"\s*({LIST.pattern})")
OBJECT = re.compile(r"\{[^{}]*\}")
VERDICT_KEYS = frozenset(
    f"{kind}{noun}"
    for kind in ("", "final ", "better ", "best ", "preferred ")
    for noun in ("verdict", "winner", "answer", "response", "choice", "preference", "decision", "judgment")
) | {"better", "best", "preferred"}
ORDER_KEYS = frozenset({"ranking", "order", "best to worst"})

# Sentences. One goes on after a colon, and in a bracket on the next line.
JOINED = re.compile(r"(?<=[:>=])[ \t]*\n\s*|\n[ \t]*\n?[ \t]*(?=[(>=])")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n")
LOSING = re.compile(
    r"\b(?:worse|worst|wrong|incorrect|weaker|weakest|inferior|least|lowest|loss|los(?:e|es|er|ers|ing|t)|"
    r"(?:reject|eliminat|discard|dismiss|exclud)\w*)\b",
    re.IGNORECASE,
)
NEGATIVE = re.compile(
    rf"{LOSING.pattern}|n['’]t\b|\b(?:not|cannot|no|nor|neither|never|none|hardly|less|lower|second|runner|weak|"
    r"bad|badly|poor|poorly|false|invalid|unhelpful|harmful|opposite|"
    r"(?:fail|lack|avoid|remov|drop|inaccura|dislike|mistake|error)\w*)\b",
    re.IGNORECASE,
)
UNSURE = re.compile(r"\?|\b(?:if|unless|whether|thought|may|might|could)\b", re.IGNORECASE)
REVISED = re.compile(
    r"(?:no|not|but|however|rather|instead|never|hmm+|oh|sorry|scratch|on second|on reflection)\b|"
    r".*\b(?:wait|actually|correction|reconsider\w*)\b",
    re.IGNORECASE,
)
BEST_TO_WORST = re.compile(r"\bbest[- ]to[- ](?:the )?worst\b", re.IGNORECASE)
REVERSED = re.compile(
    r"\b(?:worst|worse|least|lowest)\b[^.\n>]{0,40}?\b(?:first|to)\b|\bbest (?:\w+ )?last\b|"
    r"\b(?:ascending|increasing|reversed?)\b",
    re.IGNORECASE,
)

# Verdicts, in a sentence without decoration.
COMPARED = re.compile(r" (?:than|over|to|beats) [AB]\b")  # "A is better than B" is about A
REASON = re.compile(r",? (?:because|since)\b")
FAVOURED = re.compile(r"\b(?:better|best|prefer\w*|choose|pick|winner|wins|verdict|go with)\b", re.IGNORECASE)
INTRO = r"(?:(?i:so|thus|hence|therefore|overall|finally|i (?:think|believe)|in my (?:view|opinion))[ ,:]+)*"
ENDS = r"(?=$|[,;.]| [–—-] | (?:as|for|by|due|here|overall)\b)"
BETTER = r"(?i:better|best|preferred|superior|winner|winning)"
NOUN = r"(?i:verdict|choice|preference|decision|judge?ment|pick|selection|conclusion|result)"
BARE = re.compile(rf"{INTRO}([AB])")
DEFENDED = re.compile(r"([AB]): (?=[AB] \w)")  # "B: answer A is rude"; "A: short" may be about A alone
ANNOUNCED = re.compile(
    rf"{INTRO}(?:"
    rf"([AB]) (?:wins|(?:is|was) (?:(?:the|clearly|much|far|slightly|definitely) )*{BETTER}(?: one)?){ENDS}|"
    rf"(?i:i|we) (?:would |clearly )*(?:prefer|choose|pick|select|favou?r|go with|vote for) ([AB]){ENDS}|"
    rf"(?:(?i:the|my|final|which|one|is) )*(?:{BETTER}(?: (?:{NOUN}|one))?|{NOUN}|(?i:final|the(?= is)))"
    rf"(?: (?:is|was)|:| (?:is|was):) ?:? ?([AB]){ENDS})"
)
# A letter that stands as the name of an answer.
LABEL = re.compile(
    r"(?:^|[.!?;,:|/]\s)[^\w\n]{0,8}([AB])(?=\s?[.:)\],;]|[^\w\n]{0,8}$)|(?<!\()\b([AB])\s?[:)]", re.MULTILINE
)


def read_pair(reply: str, cut: bool = False) -> float | None:
    """1 if the reply prefers A, 0 if it prefers B, 1/2 for a tie; None if it is unreadable.

    It is readable if it has a form of `read_ranking`, is an object of JSON with one of `VERDICT_KEYS`, says
    that both tie, or begins or ends with a verdict: a letter alone, or a sentence such as "A is better", "I
    prefer A" or "Verdict: A". A sentence with a negative word is no verdict, nor is one of two that differ.

    Args:
        cut: the reply ran out of tokens. Only a letter or an order at its beginning is sure.
    """
    text = _said(reply)
    sentences = [_plain(sentence) for sentence in _sentences(text)]
    sentences = [sentence for sentence in sentences if sentence]
    verdicts = [_verdict(sentence) for sentence in sentences]
    if order := read_ranking(reply, 2, cut):
        best = {letter for letter, rank in zip("AB", order, strict=True) if rank == 0}
        agreed = best.issuperset(filter(None, verdicts))
        return _value("".join(sorted(best))) if agreed else None
    if REVERSED.search(text) or len(set(IN_BRACKETS.findall(text))) > 1:
        return None
    if not cut and (listed := OBJECT.findall(text)):
        return _value(_in_object(listed, OBJECT.sub("", text)))
    return _value(_stated(text, sentences, verdicts, cut))


def _value(verdict: str | None) -> float | None:
    return {"A": 1.0, "B": 0.0, "AB": 0.5}.get(verdict or "")


def _stated(text: str, sentences: list[str], verdicts: list[str | None], cut: bool) -> str | None:
    """The letter that the sentences prefer, AB for a tie; None if they are not clear."""
    named, labels = set(LETTER.findall(text)), _labels(DECORATION.sub("", text))
    tied = [sentence for sentence in _sentences(text) if TIE.search(sentence)]
    if tied and not cut:
        return None if named or any(map(NEGATIVE.search, tied)) else "AB"
    if len(labels) > 1:  # a list of both: a letter alone is a part of it
        verdicts = [
            None if BARE.fullmatch(each) else said for each, said in zip(sentences, verdicts, strict=True)
        ]
    if cut:
        first = sentences[0] if sentences else ""
        alone = BARE.fullmatch(first) and _plain(text.lstrip().partition("\n")[0]) == first
        verdicts = verdicts[:1] if alone else []
    found = {verdict for verdict in verdicts if verdict}
    if len(found) != 1:
        return None
    (letter,) = found
    other = "B" if letter == "A" else "A"
    place, last = verdicts.index(letter), verdicts[-1] == letter and not cut
    if not last and (other in labels or (place > 0 and other in named)):
        return None
    later = [] if last else sentences[place + 1 :]
    return None if _contradicted(other, sentences, later) else letter


def _contradicted(other: str, sentences: list[str], later: list[str]) -> bool:
    """Whether a sentence speaks against the preferred letter, or a later one for the other."""

    def about_other(sentence: str) -> bool:
        return other in LETTER.findall(COMPARED.sub("", sentence))

    def against(sentence: str) -> bool:
        if about_other(sentence):
            return FAVOURED.search(sentence) is not None and not NEGATIVE.search(sentence)
        return bool(NEGATIVE.search(sentence) and LETTER.search(sentence))

    return (
        any(LOSING.search(each) and not about_other(each) for each in sentences)
        or any(map(REVISED.match, later))
        or any(map(against, later))
    )


def _verdict(sentence: str) -> str | None:
    """The letter that a sentence prefers; None if it is no verdict."""
    if NEGATIVE.search(sentence) or UNSURE.search(sentence):
        return None
    if (defended := DEFENDED.match(sentence)) and not FAVOURED.search(sentence):
        letters = LETTER.findall(sentence)
        return defended[1] if letters[0] != letters[1] and len(_labels(sentence)) == 1 else None
    said = COMPARED.sub("", REASON.split(sentence)[0]).rstrip(" .,:")
    if len(set(LETTER.findall(said))) != 1:
        return None
    found = BARE.fullmatch(said) or ANNOUNCED.match(said)
    return next(filter(None, found.groups()), None) if found else None


def _labels(text: str) -> set[str]:
    return set(filter(None, chain.from_iterable(LABEL.findall(text))))


def _in_object(listed: list[str], around: str) -> str | None:
    """The verdict in the only object of a reply."""
    values = _object(listed[0]) if len(listed) == 1 and not LETTER.search(around) else {}
    said = {key: _plain(value) for key, value in values.items() if isinstance(value, str)}
    letters = {key: "AB" if value.lower() == "tie" else value for key, value in said.items()}
    found = {value for value in letters.values() if value in ("A", "B", "AB")}
    known = all(key in VERDICT_KEYS for key, value in letters.items() if value in found)
    return found.pop() if known and len(found) == 1 and not NEGATIVE.search(around) else None


def _object(text: str) -> dict[str, Any]:
    """The values of an object of JSON by key, in small letters with blanks; {} if it is none."""
    try:
        values: dict[str, Any] = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError):
        return {}
    return {key.lower().strip(): value for key, value in values.items()}


def read_ranking(reply: str, count: int, cut: bool = False) -> list[int] | None:
    """The rank of each of the first `count` letters, 0 for the best; None if the reply is unreadable.

    It is readable if it has an order of exactly these letters, and no other such order: `B > A = C`, or a
    list of JSON, `["B", ["A", "C"]]`, best first, where an inner list ties. An order in a sentence with a
    negative word does not count, and one "worst first" makes the reply unreadable.

    Args:
        cut: the reply ran out of tokens. Only an order at its beginning is sure.
    """
    text = _said(reply)
    if REVERSED.search(text):
        return None
    if cut:
        first = FIRST_CHAIN.match(DECORATION.sub("", text)) or FIRST_LIST.match(text)
        text = first[1] if first else ""
    found = {tuple(order) for groups in _groups(text) if (order := _ranks(groups, count))}
    return list(found.pop()) if len(found) == 1 else None


def _said(reply: str) -> str:
    """What follows the thought; nothing if the thought was cut off."""
    thought, _, said = reply.rpartition(THOUGHT_END)
    said = "" if not thought and THOUGHT in said else said
    return BEST_TO_WORST.sub("", said.replace("_", " "))


def _sentences(text: str) -> list[str]:
    """The sentences of a text. A list, an order or an object is within one."""
    for form in (LIST, OBJECT):
        text = form.sub(lambda found: found[0].replace("\n", " "), text)
    return SENTENCE_END.split(JOINED.sub(" ", text))


def _plain(sentence: str) -> str:
    """A sentence without decoration, brackets, and signs at its ends."""
    words = " ".join(re.sub(r"[\[\](){}]", "", DECORATION.sub("", sentence)).split())
    return re.sub(r"^\W+", "", words).replace(" :", ":").rstrip(" .:,;!'’”")


def _groups(text: str) -> Iterator[list[list[str]]]:
    """Each order in a text: groups of letters, best first."""
    for sentence in _sentences(text):
        values = [_object(each) for each in OBJECT.findall(sentence)]
        named = [value for each in values for key, value in each.items() if key in ORDER_KEYS]
        yield from ([_group(item) for item in value] for value in named if isinstance(value, list))
        if NEGATIVE.search(sentence) or UNSURE.search(sentence):
            continue
        for order in CHAIN.findall(DECORATION.sub("", sentence)):
            yield [re.findall("[A-Z]", group) for group in order.split(">")]
        for listed in LIST.findall(sentence):
            try:
                items: list[Any] = json.loads(listed)
            except ValueError:
                continue
            yield [_group(item) for item in items]


def _group(item: Any) -> list[Any]:
    return item if isinstance(item, list) else [item]


def _ranks(groups: list[list[Any]], count: int) -> list[int]:
    """The rank of each letter; empty if the groups do not hold each of the letters once."""
    ranks = {letter: rank for rank, group in enumerate(groups) for letter in group if isinstance(letter, str)}
    whole = sum(map(len, groups)) == count and set(ranks) == set(LETTERS[:count]) and all(groups)
    return [ranks[letter] for letter in LETTERS[:count]] if whole else []
