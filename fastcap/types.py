"""The values that travel between packages, and the protocols of decoders and of data.

Shape legend, used in every docstring: B batch of images, K captions (or length candidates) an image, H W
pixel or patch grid, N patches, L caption positions, D width, V vocabulary, E experts, S state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

if TYPE_CHECKING:  # captioning with an exported model goes through here and needs no torch
    import numpy as np
    import torch
    from torch import Tensor, nn

# What backbones expect their pixels (0 to 1) to be normalized with: ImageNet's RGB mean and deviation.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that no caption may contain. All of them are banned from generation."""

    pad: int
    mask: int
    unk: int
    bos: int
    eos: int

    @property
    def ids(self) -> tuple[int, ...]:
        """Every special id, ascending."""
        return tuple(sorted((self.pad, self.mask, self.unk, self.bos, self.eos)))


@dataclass
class CaptionBatch:
    """A batch of images, with their captions where the split has any.

    Attributes:
        images: Pixels, uint8, RGB. (B, 3, H, W)
        image_ids: Identifiers, unique inside a split, int64. (B,)
        tokens: Content token ids, padded; neither BOS nor EOS. K is zero when there are none. (B, K, L)
        lengths: Content tokens of each caption. (B, K)
        references: Every raw reference caption of each image.
        features: A frozen backbone's features, computed beforehand; ``images`` then hold no pixels, (B, 3, 0, 0).
            (B, H, W, feature_dim)
    """

    images: Tensor
    image_ids: Tensor
    tokens: Tensor
    lengths: Tensor
    references: list[list[str]] = field(default_factory=list)
    features: Tensor | None = None

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> CaptionBatch:
        """Return the batch with its tensors on ``device``."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> CaptionBatch:
        """Return the batch with its tensors in page-locked memory (called by the DataLoader)."""
        return self._changed(lambda tensor: tensor.pin_memory())

    def _changed(self, change: Callable[[Tensor], Tensor]) -> CaptionBatch:
        features = None if self.features is None else change(self.features)
        images, image_ids, tokens, lengths = map(change, (self.images, self.image_ids, self.tokens, self.lengths))
        return CaptionBatch(images, image_ids, tokens, lengths, self.references, features)


@dataclass
class DecoderOutput:
    """A decoder's scores of a batch of captions.

    Attributes:
        logits: Scores of every word at every position. (B * K, L, V)
        aux_loss: Load-balance term, zero where nothing is routed. ()
        expert_weights: Weight of each expert for each image; rows sum to one. (B, E)
    """

    logits: Tensor
    aux_loss: Tensor
    expert_weights: Tensor


@dataclass
class RefinementStep:
    """One refinement step of one caption as plain values: what pictures, pages and JSON show of it.

    Attributes:
        words: The draft after the step, words or pieces of words. (L)
        confidence: Probability of each, 0 to 1. (L)
        remasked: True where the step masked the word again. (L)
    """

    words: list[str]
    confidence: list[float]
    remasked: list[bool]


@dataclass
class StepTensors:
    """One refinement step of a batch.

    Attributes:
        tokens: Draft after the step, before re-masking. (B, L)
        confidence: Probability of each drafted token. (B, L)
        remasked: True where the step masked the token again. (B, L)
    """

    tokens: Tensor
    confidence: Tensor
    remasked: Tensor


@dataclass
class Refinement:
    """Captions that refinement settled on.

    Attributes:
        tokens: Content token ids, PAD beyond each length. (B, L)
        lengths: Content tokens of each caption. (B,)
        scores: Mean log-probability of each caption's tokens. (B,)
        drafted_lengths: Content tokens before repeats were collapsed, as the steps have them. (B,)
        steps: Every step of the chosen candidate, when recording was asked for.
        expert_weights: Weight of each expert for each image, where the decoder has experts. (B, E)
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor
    drafted_lengths: Tensor
    steps: list[StepTensors] = field(default_factory=list)
    expert_weights: Tensor | None = None

    def steps_of(self, row: int, decode: Callable[[list[int]], str]) -> list[RefinementStep]:
        """Spell out the steps of one image.

        Args:
            row: The image's place in the batch.
            decode: Token ids to text.
        """
        length = int(self.drafted_lengths[row])
        return [
            RefinementStep(
                [decode([token]) for token in step.tokens[row, :length].tolist()],
                step.confidence[row, :length].tolist(),
                step.remasked[row, :length].tolist(),
            )
            for step in self.steps
        ]


@dataclass
class Sampled:
    """Captions sampled from the model, to be rewarded.

    Attributes:
        tokens: Content token ids as they would be shown, PAD beyond each length. (B * K, L)
        lengths: Content tokens of each. (B * K,)
        log_probability: Of each decision on a word, zero where there was none. (B * K, L)
        decided: True where a word was decided on. (B * K, L)
        length_log_probability: Of the decision on each caption's length. (B * K,)
    """

    tokens: Tensor
    lengths: Tensor
    log_probability: Tensor
    decided: Tensor
    length_log_probability: Tensor


@dataclass(frozen=True)
class Guidance:
    """What encoded images say of captions' words: how probably people write each concept and phrase of them.

    Attributes:
        probability: Of each concept, then of each phrase; in front a zero for words and pairs that are none.
            (B, 1 + C + P)
        words: Where in it each word's concept stands. (V,)
        phrases: Words a and b of each phrase, as a * V + b, ascending. (P,)
        idf: Inverse document frequency of each. (1 + C + P,)
        content: One for each concept that a caption need not name twice, else zero. (1 + C + P,)
    """

    probability: Tensor
    words: Tensor
    phrases: Tensor
    idf: Tensor
    content: Tensor


@dataclass
class ExpertCache:
    """One expert's share of a batch of images.

    Attributes:
        index: The expert's number.
        rows: Images it was chosen for; None when it serves every image. (B',)
        weight: Its weight for those images. (B', 1, 1)
        prepared: Its cross-attention's image-only values for those images.
    """

    index: int
    rows: Tensor | None
    weight: Tensor
    prepared: tuple[Tensor, ...]


@dataclass
class ImageCache:
    """All that decoding needs of a batch of images, computed once for every pass.

    Attributes:
        expert_weights: Weight of each expert for each image; rows sum to one. (B, E)
        gate_logits: The gate's scores; None where there is nothing to decide. (B, E)
        context: The image as one vector, added to every position. (B, 1, D)
        layers: Each layer's experts with their image-only values.
    """

    expert_weights: Tensor
    gate_logits: Tensor | None
    context: Tensor
    layers: list[list[ExpertCache]]


# Keys and values of the tokens so far, each (B * K, heads, L, d).
Past: TypeAlias = "tuple[Tensor, Tensor]"


class Decoder(Protocol):
    """A caption decoder: image-only work once, then any number of passes over K captions an image.

    Attributes:
        causal: Whether it writes word after word.
        dim: Width D.
        vocab_size: Words V, special tokens included.
        max_length: Longest caption, in tokens.
        num_experts: Experts E of each layer.
        word: The words' embeddings, which also score the vocabulary. (V, D)
        head_bias: Their bias in that. (V,)
    """

    causal: ClassVar[bool]
    dim: int
    vocab_size: int
    max_length: int
    num_experts: int
    word: nn.Embedding
    head_bias: nn.Parameter

    def __call__(self, tokens: Tensor, memory: Tensor, pad: Tensor) -> DecoderOutput:
        """Score captions in training. tokens: (B * K, L), memory: (B, N, D), pad: True at padding (B * K, L)."""

    def prepare(self, memory: Tensor) -> ImageCache:
        """Compute everything that depends on the image alone. memory: (B, N, D)."""


class MaskedDecoder(Decoder, Protocol):
    """A decoder that refinement drives: it scores all positions at once, in view of all others."""

    def denoise(self, tokens: Tensor, pad: Tensor | None, cache: ImageCache) -> Tensor:
        """Score every position of ``tokens`` (B * K, L), K rows an image; returns (B * K, L, V).

        ``pad`` is True at padding (B * K, L), None where all captions are equally long.
        """


class CausalDecoder(Decoder, Protocol):
    """A decoder that writes word after word."""

    def predict(self, tokens: Tensor, cache: ImageCache, past: list[Past] | None) -> tuple[Tensor, list[Past]]:
        """Score what follows each token, given those before; returns (B * K, L, V) and what to pass next time."""


class CaptionRecords(Protocol):
    """One split of a data set, images decoded on request. Data sets inherit what they have nothing to say on.

    ``load_image`` returns RGB uint8 pixels already at the size asked for, (size, size, 3) as a numpy array, and
    raises ``fastcap.data.DataError`` naming the file when it cannot.

    Attributes:
        name: Name of the split.
        image_ids: Ids of the images, each once.
        captions: Captions of each image.
        paths: File of each image; none where images are not files.
        labels: Class of each image; none where they have no classes.
        classes: Names of the classes.
        shares: Parts of the images that an epoch of training shows a share of: whether each image is in one, (N,), and
            the share; none where every epoch shows all images.
        own_ids: Ids that a data set itself uses where they are others, by image id.
        num_skipped: Images of the split that were left out when it was read.
        max_skipped: Share of the split's images that may be left out altogether.
        oracle_captions: Captions that a perfect captioner might give, by image id; none where they are not known.
    """

    name: str
    image_ids: Sequence[int]
    captions: Sequence[Sequence[str]]
    paths: Sequence[Path] = ()
    labels: Sequence[int] = ()
    classes: Sequence[str] = ()
    shares: Sequence[tuple[np.ndarray, float]] = ()
    own_ids: Mapping[int, int] = MappingProxyType({})
    num_skipped: int = 0
    max_skipped: float = 1.0
    oracle_captions: Mapping[int, str] = MappingProxyType({})

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_ids)

    def score(self, captions: Mapping[int, str]) -> dict[str, float]:
        """Compute scores that only this data set knows, of captions by image id."""
        return {}

    def load_image(self, index: int, size: int) -> Any:
        """Decode image ``index`` (position, not id) at ``size`` pixels square."""

    def fingerprint(self) -> str:
        """A string that changes whenever the pixels would; keys the pixel cache."""


class CaptionSource(Protocol):
    """A data set that hands out its splits. Data sets inherit what they have nothing to say on.

    Attributes:
        validation_splits: What training validates on: "val", or each set's own where several are mixed.
        text_weight: How much a caption without an image counts in n-gram tables.
    """

    validation_splits: Sequence[str] = ("val",)
    text_weight: float = 1.0

    def split(self, name: str) -> CaptionRecords:
        """Return one split; raises ``DataError`` naming the choices when there is none of that name."""

    def text_captions(self) -> Sequence[str]:
        """Return captions without images, for the vocabulary and the n-gram tables."""
        return ()
