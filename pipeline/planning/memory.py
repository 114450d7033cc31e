"""How many bytes the parts of a stage take: functions of sizes, without config, files or devices.

H is the hidden size, b the bytes of a number in the compute dtype (4 in fp32, 2 in bf16). A part is an upper
bound on what is alive at once, without what an allocator adds.
"""

from __future__ import annotations

from dataclasses import dataclass

from stages.models.freed_memory import LARGEST_MMAP_THRESHOLD

FP32, INT64 = 4, 8
NF4_BLOCK, NF4_OUTER_BLOCK = 64, 256  # QLoRA, section 3: block sizes of double quantization
SPARE = 32  # tokens for which the cache of `stages.sampling.decoding_batch` allocates memory ahead
TILE, CPU_TILE, TILE_TOKENS = 8_192, 1_024, 4_096  # of logits, see `stages.models.token_statistics`


@dataclass(frozen=True)
class Linear:
    """A linear layer by the last part of its name, with the widths of its input and output."""

    name: str
    inputs: int
    outputs: int

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True)
class BaseShape:
    """The sizes of a decoder-only transformer that decide on memory.

    Attributes:
        layers, hidden, heads, vocabulary: as in config.json.
        query, key_value: widths of all query heads, and of all key heads, together.
        intermediate: width of the MLP.
        gated: the MLP multiplies two projections, as in Llama.
        linears: the linear layers of one transformer layer. Quantization packs them, and LoRA adapts them.
        plain: parameters that stay in the compute dtype: embeddings, LM head, norms, biases.
        tied: the LM head is the embeddings.
        stored: bytes of the weights' files.
    """

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    query: int
    key_value: int
    intermediate: int
    gated: bool
    linears: tuple[Linear, ...]
    plain: int
    tied: bool
    stored: int

    @property
    def packable(self) -> int:
        """Parameters of all linear layers but the LM head."""
        return self.layers * sum(linear.weights for linear in self.linears)

    @property
    def parameters(self) -> int:
        return self.packable + self.plain

    @property
    def head(self) -> int:
        """Parameters of the LM head."""
        return self.vocabulary * self.hidden


@dataclass(frozen=True)
class Precision:
    """How a base is held: its quantization, and b."""

    quantization: str
    compute: int


def base_bytes(shape: BaseShape, precision: Precision) -> int:
    """The base: packed linear layers, and everything else in the compute dtype."""
    per_weight = {
        # Half a byte, an 8-bit scale for each block, and an fp32 scale for each block of scales.
        "nf4": 0.5 + 1 / NF4_BLOCK + FP32 / (NF4_BLOCK * NF4_OUTER_BLOCK),
        "int8": 1 + FP32 / shape.hidden,  # a scale for each row
        "none": float(precision.compute),
    }[precision.quantization]
    return round(shape.packable * per_weight) + shape.plain * precision.compute


def loading_bytes(shape: BaseShape, precision: Precision) -> int:
    """What loading takes beside the base: the mapped files, and one weight before it is packed."""
    largest = max(linear.weights for linear in shape.linears)
    return shape.stored + 3 * largest * FP32 * (precision.quantization != "none")


def adapter_parameters(
    shape: BaseShape, rank: int, targets: tuple[str, ...] | None, *, dora: bool = False
) -> int:
    """Parameters of one adapter: r * (in + out) for each adapted layer; None adapts all linear layers.

    DoRA has one more for each output.
    """
    adapted = [linear for linear in shape.linears if targets is None or linear.name in targets]
    of_each = (rank * (linear.inputs + linear.outputs) + dora * linear.outputs for linear in adapted)
    return shape.layers * sum(of_each)


def optimizer_bytes(trained: int, zero_stage: int, ranks: int) -> int:
    """Gradients and Adam's two moments of `trained` fp32 parameters; ZeRO adds a copy, and shards."""
    if zero_stage == 0:
        return 3 * FP32 * trained
    gradients = FP32 * trained // (ranks if zero_stage > 1 else 1)
    return gradients + 3 * FP32 * trained // ranks + (FP32 * trained if zero_stage < 3 else 0)


def saved_by_layer(shape: BaseShape, compute: int, rank: int) -> int:
    """Bytes for each token that one layer keeps for its backward (batches with padding, so with a mask).

    The inputs of both norms in fp32. What LoRA's A multiplies: the outputs of both norms and of attention,
    and the MLP's product. Queries, repeated keys and values, and the output of attention. The gate, its
    activation, and the other projection. A's outputs.
    """
    norms = 2 * shape.hidden * FP32
    adapted_inputs = 2 * shape.hidden + shape.query + shape.intermediate
    attention = 4 * shape.query
    mlp = (3 if shape.gated else 1) * shape.intermediate
    return norms + (adapted_inputs + attention + mlp + len(shape.linears) * rank) * compute


def layer_bytes(shape: BaseShape, compute: int, rank: int, batch: tuple[int, int]) -> int:
    """What one layer keeps for its backward of a batch: sequences, and tokens of each."""
    sequences, length = batch
    mask = sequences * length**2 * compute
    return sequences * length * saved_by_layer(shape, compute, rank) + mask


def activation_bytes(
    shape: BaseShape, compute: int, rank: int, batch: tuple[int, int], checkpointing: bool
) -> int:
    """What a forward keeps for backward, and what backward needs at its start.

    Args:
        batch: sequences, and tokens of each.
    """
    sequences, length = batch
    tokens = sequences * length
    layer = layer_bytes(shape, compute, rank, batch)
    kept = shape.layers * (tokens * shape.hidden * compute if checkpointing else layer)
    return kept + (layer if checkpointing else 0) + working_bytes(shape, compute, tokens)


def working_bytes(shape: BaseShape, compute: int, tokens: int) -> int:
    """The tensors of one layer in a pass without gradients, or the gradients in one layer of a backward.

    The largest weight is there twice in the compute dtype: dequantized, and in the order of a kernel.
    """
    widths = (3 if shape.gated else 2) * shape.intermediate + 2 * shape.hidden
    return tokens * widths * compute + 2 * max(linear.weights for linear in shape.linears) * compute


def logit_bytes(shape: BaseShape, compute: int, tokens: int, *, tiled: bool, gpu: bool) -> int:
    """Logits of `tokens`, forward and backward: a tile of them, or four fp32 copies of all."""
    if not tiled:
        return 4 * FP32 * tokens * shape.vocabulary
    tile = min(tokens, TILE_TOKENS) * min(TILE if gpu else CPU_TILE, shape.vocabulary) * compute
    return tile + 2 * FP32 * tokens * shape.hidden  # the gradient of the hidden states


def cache_bytes(shape: BaseShape, compute: int, sequences: int, length: int) -> int:
    """Keys and values of running sequences. One layer is there twice while it grows."""
    layer = 2 * sequences * (length + SPARE) * shape.key_value * compute
    return (shape.layers + 1) * layer


def sampling_bytes(shape: BaseShape, compute: int, sequences: int, prompt: int) -> int:
    """A prefill without gradients, and the logits of one step in three copies, fp32."""
    return working_bytes(shape, compute, sequences * prompt) + 3 * FP32 * sequences * shape.vocabulary


def merged_bytes(shape: BaseShape, precision: Precision, *, packs: bool) -> int:
    """The copy that samples: linear layers in the compute dtype, packed for a CPU along with the LM head."""
    return (shape.packable + (shape.head if packs else 0)) * precision.compute


def merged_on_the_heap(shape: BaseShape, compute: int) -> int:
    """The merged linear layers that glibc puts on its heap. Larger ones are returned once they are freed."""
    sizes = (linear.weights * compute for linear in shape.linears)
    return shape.layers * sum(size for size in sizes if size < LARGEST_MMAP_THRESHOLD)


def merging_bytes(shape: BaseShape, compute: int, *, packs: bool) -> int:
    """The largest weight while it is merged: its sum with B A in fp32, and a copy. An fp32 head is read."""
    largest = 2 * FP32 * max(linear.weights for linear in shape.linears)
    return max(largest, (FP32 + compute) * shape.head if packs and compute < FP32 else 0)
