"""Which tokens of a conversation SFT learns, if it has several assistant turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data.sources.messages import Message

Render = Callable[[list[Message], bool], list[int]]  # messages, and whether the generation prompt follows


class NotAPrefix(ValueError):
    """The template renders the beginning of a conversation differently alone and within the whole."""

    def __init__(self, alone: list[int], whole: list[int]) -> None:
        super().__init__("the beginning of a conversation is rendered differently alone")
        self.alone, self.whole = alone, whole


def learned_turns(
    render: Render, messages: list[Message], turns: Sequence[int], end: int
) -> tuple[list[int], list[int], list[bool]]:
    """Split a conversation before its first learned turn.

    A learned turn begins after its generation prompt. It ends with its end-of-turn token, if the template has
    one, else with the template's last token before the next message. An end-of-turn token is added to the
    last turn if the template has none.

    Args:
        turns: positions of the learned assistant turns, ascending. The last message is one of them.
        end: the end-of-turn token.

    Returns:
        Token ids of the prompt and of the rest, and for each token of the rest whether it is learned.

    Raises:
        NotAPrefix: the tokens of a turn are unknown, because the template rewrites earlier messages.
    """
    whole = render(messages, False)
    spans = [_span(render, messages, whole, turn, end) for turn in turns]
    if whole[spans[-1][1] - 1] != end:
        whole = [*whole, end]
        spans[-1] = spans[-1][0], len(whole)
    first, stop = spans[0][0], spans[-1][1]
    learned = [any(begin <= position < finish for begin, finish in spans) for position in range(first, stop)]
    return whole[:first], whole[first:stop], learned


def _span(render: Render, messages: list[Message], whole: list[int], turn: int, end: int) -> tuple[int, int]:
    """Where the answer of `turn` begins and ends in the tokens of the whole conversation."""
    prompt = render(messages[:turn], True)
    begin = len(prompt)
    if whole[:begin] != prompt:
        raise NotAPrefix(prompt, whole)
    alone = render(messages[: turn + 1], False)
    if alone[-1] == end and whole[: len(alone)] != alone:
        alone = alone[:-1]  # the template ends a whole conversation with that token, not each turn (Phi-3)
    if whole[: len(alone)] == alone:
        answer = alone[begin:]
        return begin, begin + (len(answer) - answer[::-1].index(end) if end in answer else len(answer))
    # The template renders the last turn differently (Qwen3 adds an empty thought). The end still tells.
    following = whole[begin : len(render(messages[: turn + 2], True))]
    if end not in alone[begin:] or end not in following:
        raise NotAPrefix(alone, whole)
    return begin, begin + following.index(end) + 1
