"""The split: no prompt on two sides or in two stages, whatever the order of the rows."""

import pytest

from configs.errors import UserError
from configs.schema import Data, Shares, Source
from data.sources.split import prompt_key, stage_interval, stage_split


def data(held_out=0.25, shares=None, paths=("a", "b", "c")):
    sft, rm, ppo = (Source(path=path, held_out=held_out) for path in paths)
    return Data(sft=sft, rm=rm, ppo=ppo, shares=shares or Shares())


def interval(data, stage):
    return stage_interval(data, stage, data.sources(stage)[0])


def rows(count, copies=1):
    return [{"prompt": f"prompt {number}", "copy": copy} for copy in range(copies) for number in range(count)]


def prompts(rows):
    return {row["prompt"] for row in rows}


@pytest.mark.parametrize(
    ("held_out", "expected"), [(0.25, 10), (0.01, 1), (0.49, 20), (3, 3), (39, 39), (0, 0)]
)
def test_held_out_is_a_share_or_a_number_of_prompts(held_out, expected):
    train, held_out_rows = stage_split(data(held_out), "sft", rows(40), seed=0)[:2]
    assert len(held_out_rows) == expected
    assert len(train) == 40 - expected


def test_all_rows_of_a_prompt_are_on_one_side():
    train, held_out_rows = stage_split(data(), "rm", rows(40, copies=3), seed=0)[:2]
    assert (len(train), len(held_out_rows)) == (90, 30)  # 30 and 10 prompts, three rows each
    assert not prompts(train) & prompts(held_out_rows)


def test_the_side_depends_on_the_seed_and_not_on_the_order():
    forward = stage_split(data(), "sft", rows(40), seed=0)[:2]
    backward = stage_split(data(), "sft", rows(40)[::-1], seed=0)[:2]
    other = stage_split(data(), "sft", rows(40), seed=1)[:2]
    assert [side[::-1] for side in backward] == list(forward)
    assert prompts(forward[1]) != prompts(other[1])


def test_stages_of_one_source_share_its_prompts():
    config = data(paths=("a", "a", "a"))
    parts = {stage: stage_split(config, stage, rows(2000), seed=3)[:2] for stage in ("sft", "rm", "ppo")}
    sizes = {stage: len(train) + len(held_out_rows) for stage, (train, held_out_rows) in parts.items()}
    assert sum(sizes.values()) == 2000
    assert set.union(*(prompts(side) for sides in parts.values() for side in sides)) == prompts(rows(2000))
    # 0.2, 0.4, 0.4 of 2000, within four standard deviations (18 and 22) of a draw by hash
    assert abs(sizes["sft"] - 400) < 72 and abs(sizes["rm"] - 800) < 88 and abs(sizes["ppo"] - 800) < 88


def test_stages_see_each_prompt_on_the_same_side_when_one_lacks_rows():
    """RM may leave out rows that serve PPO as prompts. The split of the other rows must not change."""
    config = data(paths=("a", "a", "a"))
    ppo = stage_split(config, "ppo", rows(200), seed=0)
    rm = stage_split(config, "rm", rows(200)[5:], seed=0)
    assert not (prompts(ppo[0]) | prompts(ppo[1])) & (prompts(rm[0]) | prompts(rm[1]))


@pytest.mark.parametrize(
    ("paths", "shares", "expected"),
    [
        ("abc", (0.2, 0.4, 0.4), [(0, 1), (0, 1), (0, 1)]),
        ("aaa", (0.2, 0.4, 0.4), [(0, 0.2), (0.2, 0.6), (0.6, 1)]),
        ("aaa", (0.1, 0.2, 0.2), [(0, 0.1), (0.1, 0.3), (0.3, 0.5)]),
        ("abb", (0.2, 0.2, 0.6), [(0, 1), (0, 0.25), (0.25, 1)]),
        ("aba", (0.2, 0.4, 0.4), [(0, 1 / 3), (0, 1), (1 / 3, 1)]),
    ],
)
def test_intervals(paths, shares, expected):
    sft, rm, ppo = shares
    config = data(paths=paths, shares=Shares(sft=sft, rm=rm, ppo=ppo))
    intervals = [interval(config, stage) for stage in ("sft", "rm", "ppo")]
    assert [pytest.approx(interval) for interval in intervals] == expected


def test_another_split_of_a_dataset_is_another_source():
    config = Data(
        sft=Source(path="a"), rm=Source(path="a", split="test"), ppo=Source(path="a", revision="v2")
    )
    assert [interval(config, stage) for stage in ("sft", "rm", "ppo")] == [(0, 1)] * 3
    limited = Data(sft=Source(path="a", limit=9), rm=Source(path="a"), ppo=Source(path="b"))
    assert interval(limited, "sft") == (0, pytest.approx(1 / 3))


def test_a_stage_without_a_share_is_an_error():
    config = data(paths="aab", shares=Shares(sft=0, rm=0.5, ppo=0.5))
    with pytest.raises(UserError, match=r"data.shares.sft is 0.*same source as data.rm"):
        stage_split(config, "sft", rows(9), seed=0)


@pytest.mark.parametrize("held_out", [40, 99])
def test_nothing_left_to_train_on_is_an_error(held_out):
    with pytest.raises(
        UserError, match=rf"data\.rm: .* b \(train\) has 40 prompts, and held_out takes {held_out}"
    ):
        stage_split(data(held_out), "rm", rows(40, copies=2), seed=0)


def test_prompt_key():
    user = {"role": "user", "content": "Hello  there\n"}
    assert prompt_key("Hello there") == prompt_key([user]) == "Hello there"
    assert prompt_key("hello there") != prompt_key("Hello there")
    system = {"role": "system", "content": "Be  brief."}
    assert prompt_key([system, user]) == '[["system", "Be brief."], ["user", "Hello there"]]'


def test_texts_without_a_prompt_are_split_by_their_text():
    texts = [{"prompt": "", "completion": f"text {number}"} for number in range(40)]
    train, held_out_rows = stage_split(data(), "sft", [*texts, texts[0]], seed=0)[:2]
    assert len({row["completion"] for row in held_out_rows}) == 10
    assert not {row["completion"] for row in train} & {row["completion"] for row in held_out_rows}
