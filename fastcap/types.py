"""The values that travel between rooms, and the one protocol that joins decoding to a decoder.

Shape legend, used in every docstring: B batch of images, K captions (or length candidates) an image, H W
pixel or patch grid, N patches, L caption positions, D width, V vocabulary, E experts, S state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:  # captioning with an exported model goes through here and needs no torch
    import torch
    from torch import Tensor

# What backbones expect their pixels (0 to 1) to be standardised with: ImageNet's RGB mean and deviation.
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


class Encoded(NamedTuple):
    """Images, as everything behind the backbone takes them.

    Attributes:
        memory: Image memory, which captions are decoded from. (B, N, D)
        seen: What concepts and phrases are named from: mean and maximum over patches of the memory (B, 2 D), or of the
            channels that only judge captions (B, 2 J); None in training while these do not learn.
    """

    memory: Tensor
    seen: Tensor | None


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
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            image_ids=self.image_ids.to(device, non_blocking=non_blocking),
            tokens=self.tokens.to(device, non_blocking=non_blocking),
            lengths=self.lengths.to(device, non_blocking=non_blocking),
            features=None if self.features is None else self.features.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> CaptionBatch:
        """Return the batch with its tensors in page-locked memory (called by the DataLoader)."""
        return replace(
            self,
            images=self.images.pin_memory(),
            image_ids=self.image_ids.pin_memory(),
            tokens=self.tokens.pin_memory(),
            lengths=self.lengths.pin_memory(),
            features=None if self.features is None else self.features.pin_memory(),
        )


@dataclass
class DecoderOutput:
    """What a decoder says of a batch of masked captions.

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
        num_passes: Decoder passes that were run.
        drafted_lengths: Content tokens before repeats were collapsed, as the steps have them. (B,)
        steps: Every step of the chosen candidate, when recording was asked for.
        expert_weights: Weight of each expert for each image, where the decoder has experts. (B, E)
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor
    num_passes: int
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
    """Captions drawn by chance, to be rewarded.

    Attributes:
        tokens: Content token ids as they would be shown, PAD beyond each length. (B * K, L)
        lengths: Content tokens of each. (B * K,)
        log_probability: Of each decision on a word, zero where there was none. (B * K, L')
        decided: True where a word was decided on. (B * K, L')
        length_log_probability: Of each caption's length, where lengths are decided beforehand. (B * K,)
    """

    tokens: Tensor
    lengths: Tensor
    log_probability: Tensor
    decided: Tensor
    length_log_probability: Tensor | None = None


# Keys and values of the tokens so far, each (B * K, heads, L, d).
Past: TypeAlias = "tuple[Tensor, Tensor]"


# Captions (B, K, L) and their lengths (B, K) to a score of each, (B, K).
CaptionScore: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"

# Gives the probability that the image's people name each word's concept, (B, V).
Likely: TypeAlias = "Callable[[], Tensor]"

# Neighbouring word ids of K captions an image, twice (B * K, ...), both broadcast together, to the probability that the
# image's people write them together.
PhraseProbability: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"


@dataclass(frozen=True)
class Judges:
    """What images have to say of their captions, asked for where its weight is above zero.

    Attributes:
        naming: How many concepts of each caption are expected to be named rightly.
        likely: Which words' concepts people would name.
        phrases: Which neighbouring words people would write together.
    """

    naming: CaptionScore | None = None
    likely: Likely | None = None
    phrases: PhraseProbability | None = None


class CausalDecoder(Protocol):
    """What writing word after word asks of a decoder."""

    max_length: int

    def prepare(self, memory: Tensor) -> Any:
        """As in ``Denoiser``."""

    def predict(self, tokens: Tensor, cache: Any, past: list[Past] | None) -> tuple[Tensor, list[Past]]:
        """Score what follows each token, given those before; returns (B * K, L, V) and what to pass next time."""


class Denoiser(Protocol):
    """What refinement asks of a decoder: image-only work once, then any number of passes."""

    def prepare(self, memory: Tensor) -> Any:
        """Compute everything that depends on the image alone. memory: (B, N, D).

        What it returns is opaque to refinement, except that an attribute ``expert_weights`` (B, E), where there is
        one, is handed on in the result.
        """

    def denoise(self, tokens: Tensor, pad: Tensor | None, cache: Any) -> Tensor:
        """Score every position of ``tokens`` (B * K, L), K rows an image; returns (B * K, L, V).

        ``pad`` is True at padding (B * K, L), None where all captions are equally long.
        """


class CaptionRecords(Protocol):
    """One split of a data set, images decoded on request.

    ``load_image`` returns RGB uint8 pixels already at the size asked for, (size, size, 3) as a numpy array, and
    raises ``fastcap.data.DataError`` naming the file when it cannot.
    """

    name: str
    image_ids: Sequence[int]
    captions: Sequence[Sequence[str]]

    def load_image(self, index: int, size: int) -> Any:
        """Decode image ``index`` (position, not id) at ``size`` pixels square."""

    def fingerprint(self) -> str:
        """A string that changes whenever the pixels would; keys the pixel cache."""
