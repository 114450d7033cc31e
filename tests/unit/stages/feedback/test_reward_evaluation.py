"""What the report on a reward model is told of the held-out rankings."""

from data.batches.tokenize import Ranking
from stages.feedback.reward_evaluation import scored_rankings
from stages.maths.preferences import prompt_numbers


def test_conversations_that_end_alike_are_different_prompts(tiny_tokenizer):
    def conversation(first: str) -> Ranking:
        turns = [("user", first), ("assistant", "Yes."), ("user", "And then?")]
        prompt = [{"role": role, "content": text} for role, text in turns]
        return Ranking(prompt, [5], [[6], [7]], [0, 1])

    rankings = [conversation("Is it far?"), conversation("Is it near?"), conversation("Is it far?")]
    scored = scored_rankings(rankings, rankings, [[1.0, 0.0]] * 3, [[-1.0, -2.0]] * 3, tiny_tokenizer)
    assert {one.prompt for one in scored} == {"And then?"}
    assert prompt_numbers(scored) == [0, 1, 0]
