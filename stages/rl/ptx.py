"""PPO-ptx: demonstrations mixed into PPO's updates (Ouyang et al. 2022, section 3.5, equation 2)."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from configs.schema import Ppo
from data.batches import tokenize
from data.batches.sampler import global_batch, micro_batches, seed_from
from data.batches.tokenize import Demonstration
from data.examples import read_examples
from stages.context import Context
from stages.maths.losses import masked_mean, nll_loss
from stages.maths.statistics import Mean
from stages.training.engine import Engine
from stages.training.likelihood import completion_logprobs, completion_tokens, sequence_length


def make_ptx(context: Context, engine: Engine, tokenizer: PreTrainedTokenizerBase) -> Ptx | None:
    """PPO-ptx over the training demonstrations of the SFT stage; None if `ptx_coef` is 0."""
    ppo = context.config.ppo
    if not ppo.ptx_coef:
        return None
    examples = read_examples(context.data("sft"), "demonstrations", tokenize.demonstrations, tokenizer)
    return Ptx(engine, ppo, examples.train, tokenizer.pad_token_id, context.seed)


class Ptx:
    """Keeps the policy able to do what it was fine-tuned on while PPO pulls it elsewhere.

    Attributes:
        length: mean tokens of a demonstration.
    """

    def __init__(
        self, engine: Engine, ppo: Ppo, demonstrations: Sequence[Demonstration], pad_id: int, seed: int
    ) -> None:
        self.engine, self.coef, self.pad_id = engine, ppo.ptx_coef, pad_id
        self.demonstrations = demonstrations
        self.size = ppo.ptx_batch_size or ppo.batch_size // ppo.minibatches
        self.micro_batch_size, self.seed = ppo.micro_batch_size, seed_from(seed, "ptx")
        self.length = sum(map(sequence_length, demonstrations)) / len(demonstrations)
        self._tokens = 0

    def backward(self) -> Mean:
        """Add the gradient of `ptx_coef` times the loss on a batch; returns this rank's part of that loss.

        The batch is a function of the seed and of the optimizer steps done.
        """
        picks = global_batch(len(self.demonstrations), self.size, self.seed, self.engine.counters.steps)
        batch = [self.demonstrations[i] for i in picks]
        self._tokens += sum(map(sequence_length, batch))
        tokens, nll = sum(map(completion_tokens, batch)), Mean(0.0, 0.0)
        for micro in micro_batches(self.engine.ranks.share(batch), self.micro_batch_size):
            nll += self._backward(micro, tokens)
        return nll

    def take_tokens(self) -> int:
        """Tokens of the demonstrations that all ranks have learned since the last call."""
        tokens, self._tokens = self._tokens, 0
        return tokens

    def _backward(self, micro: Sequence[Demonstration], tokens: int) -> Mean:
        logprobs, _, mask = completion_logprobs(self.engine, micro, self.pad_id, self.engine.ranks.device)
        self.engine.backward(self.coef * nll_loss(logprobs, mask, tokens))
        return masked_mean(-logprobs, mask)
