# SPDX-License-Identifier: Apache-2.0
"""What a model family states about itself: hyper-parameters, tensor table, forward program.

Canonical names and row order are GGUF's (`blk.0.attn_q.weight`, rows paired for adjacent rope where the family's GGUF
has them so). `Source` expressions say how each canonical tensor comes from a Hugging Face checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from lilliput.architectures.program import Activation, Program, RopeFrequencies
from lilliput.architectures.sources import Source
from lilliput.records import Role

# JSON-like values of a Hugging Face config.json and of GGUF metadata.
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

# Norms before attention and before the ffn; both of these read the stream as it was; norms after each sum.
Residual = Literal["sequential", "parallel", "norm_after"]


# How an encoder's hidden states become one vector: their mean, or the first token's.
Pooling = Literal["mean", "cls"]
# What a model is for, and so how it is run and measured.
Task = Literal[
    "next_token", "embedding", "classification", "sequence_to_sequence", "masked_token", "tagging", "spans"
]  # fmt: skip
# What an encoder's head tells: a class of the text (vectors without labels), a tag of each token, where an answer
# starts and ends, or the token behind each mask.
EncoderHead = Literal["text", "tags", "spans", "masked"]
# Of models without rotary positions.
NO_ROPE = RopeFrequencies(1.0, 0)


@dataclass(frozen=True, slots=True)
class EncoderTraits:
    """What only models have whose tokens see each other in both directions.

    segments: rows of the segment embedding, 0 for none.
    has_pooler: before the classes are told apart, the first token goes through a dense layer and pooler_activation.
    is_normalized: sentence vectors have length 1.  labels: names of the classes, empty without such a head.
    head: what the labels are told of.
    """

    segments: int = 0
    activation: Activation = "gelu"
    pooling: Pooling = "mean"
    is_normalized: bool = False
    has_pooler: bool = False
    pooler_activation: Activation = "tanh"
    labels: tuple[str, ...] = ()
    head: EncoderHead = "text"


@dataclass(frozen=True, slots=True)
class DecoderTraits:
    """What only an encoder-decoder has; the ModelConfig's own sizes are the encoder's.

    end_token_ids: an answer ends with one of them.  forced_*: what its second and last token must be, or None.
    banned_token_ids: never part of an answer.
    activation, is_gated: of the ffn in both halves.  embedding_scale: factor on tokens' vectors.  output_scale: on
    hidden states before the head.  relative_*: of T5's positions, 0 buckets for other families; UMT5 has a table of
    biases in every block, T5 one in the first.
    """

    layers: int
    heads: int
    ffn_size: int
    start_token_id: int
    end_token_ids: tuple[int, ...]
    forced_first_token_id: int | None = None
    forced_last_token_id: int | None = None
    banned_token_ids: tuple[int, ...] = ()
    activation: Activation = "gelu"
    is_gated: bool = False
    embedding_scale: float = 1.0
    output_scale: float = 1.0
    relative_buckets: int = 0
    relative_max_distance: int = 128
    relative_in_every_block: bool = False


@dataclass(frozen=True, slots=True)
class ListedTensor:
    """A tensor of an architecture that is not known here. assumed: what it was taken for, and why, for the user."""

    name: str
    shape: tuple[int, ...]
    role: Role
    assumed: str


@dataclass(frozen=True, slots=True)
class UnknownTraits:
    """What is known of an architecture that has no family: its name, and a list of tensors in place of a table.

    model_type: of config.json.
    """

    model_type: str
    tensors: tuple[ListedTensor, ...]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Hyper-parameters, whatever container they came from. Sizes in elements, positions in tokens.

    family: GGUF's `general.architecture`; Mistral's is "llama".
    tied: the output head shares the token embedding's tensor.
    attention_bias, output_bias, ffn_bias: biases on q/k/v, on the attention output, on the linears of the ffn.
    head_bias: on the output head.  embedding_size: of the token embedding, None where it is hidden_size.
    experts, used_experts: of each ffn, and of each token; 0 where the ffn is one.  normalizes_experts: the shares of a
    token's experts sum to 1.
    attention_scale: factor on scores, None for 1 / sqrt(head_dim).  *_softcap: c tanh(x / c), or None.
    embedding_scale, branch_scale: factors on tokens' vectors, and on what attention and ffn add to the stream.
    """

    family: str
    vocab_size: int
    context_length: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    norm_epsilon: float
    rope: RopeFrequencies
    tied: bool
    attention_bias: bool = False
    output_bias: bool = False
    ffn_bias: bool = False
    head_bias: bool = False
    activation: Activation = "silu"
    residual: Residual = "sequential"
    embedding_size: int | None = None
    has_output_norm: bool = True
    experts: int = 0
    used_experts: int = 0
    normalizes_experts: bool = True
    attention_scale: float | None = None
    # Scores of layer n are divided by n + 1 as well (GPT-2's scale_attn_by_inverse_layer_idx).
    divides_scores_by_layer: bool = False
    embedding_scale: float = 1.0
    branch_scale: float = 1.0
    # Of the logits.
    logit_divisor: float = 1.0
    attention_softcap: float | None = None
    output_softcap: float | None = None
    sliding_window: int | None = None
    # Layers that have the sliding window; None means all of them.
    windowed_layers: tuple[int, ...] | None = None
    # Layers that rotate q and k; None means all of them.
    rope_layers: tuple[int, ...] | None = None
    # The llama3 rope scaling that `rope_freqs.weight` is computed from; None where a container brought the tensor.
    rope_llama3: Mapping[str, float] | None = None
    # Frequencies of layers with a sliding window; None means the same as of the others.
    window_rope: RopeFrequencies | None = None
    encoder: EncoderTraits | None = None
    decoder: DecoderTraits | None = None
    unknown: UnknownTraits | None = None
    # Tensors beside the model that predict further tokens; kept, never run.
    prediction_heads: tuple[ListedTensor, ...] = ()

    @property
    def task(self) -> Task:
        """What the model is for."""
        if self.decoder is not None:
            return "sequence_to_sequence"
        if self.encoder is None:
            return "next_token"
        if self.encoder.head == "text":
            return "classification" if self.encoder.labels else "embedding"
        tasks: dict[EncoderHead, Task] = {"tags": "tagging", "spans": "spans", "masked": "masked_token"}
        return tasks[self.encoder.head]

    def is_windowed(self, layer: int) -> bool:
        """Whether attention of this layer has the sliding window."""
        return self.sliding_window is not None and (self.windowed_layers is None or layer in self.windowed_layers)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One row of a family's tensor table.

    shape: [out, in] or [n].  input_group: linears that read the same input share this key (one Hessian, one imatrix).
    runtime_group: tensors that fusing runtimes need in one format.  tied_to: canonical name whose bytes it shares.
    optional: may be absent from a checkpoint (rope_freqs).
    assumed: of an unknown architecture, what the tensor was taken for and why.
    """

    name: str
    source: Source
    shape: tuple[int, ...]
    role: Role
    input_group: str | None = None
    runtime_group: str | None = None
    tied_to: str | None = None
    optional: bool = False
    assumed: str = ""


class Architecture(Protocol):
    """One model family. Implementations are modules with these functions; see `llama.py`.

    family: GGUF's `general.architecture`.  huggingface_types: values of `model_type` in config.json.
    """

    family: str
    huggingface_types: tuple[str, ...]

    def config_from_huggingface(self, config: Mapping[str, Json]) -> ModelConfig:
        """Read config.json. Raises UnsupportedModelError naming the field that has no equivalent here."""

    def config_from_gguf(self, metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
        """Read `<family>.*` metadata. Raises UnsupportedModelError.

        shapes: canonical name -> [out, in] of each tensor in the file: presence of `output.weight`, biases and
        `rope_freqs.weight` says what no key does.
        """

    def gguf_metadata(self, config: ModelConfig) -> dict[str, Json]:
        """The `<family>.*` keys that llama.cpp reads for this family."""

    def tensor_table(self, config: ModelConfig) -> tuple[TensorEntry, ...]:
        """Every tensor, in file order. An entry with `tied_to` has no bytes of its own in any container."""

    def program(self, config: ModelConfig) -> Program:
        """The forward pass; an encoder-decoder's decoder."""


@runtime_checkable
class EncoderDecoder(Protocol):
    """What the module of an encoder-decoder has beside an Architecture's functions."""

    def encoder_program(self, config: ModelConfig) -> Program:
        """The forward pass over the text, which ends in the shared states that the decoder's program reads."""
