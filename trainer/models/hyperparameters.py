"""The hyper-parameters of every autoencoder, one dataclass each.

Defaults are the reference form. Bounds of a field stand in its annotation,
which :mod:`pipeline.config` enforces before a run starts; rules that join
fields stand in ``__post_init__`` and name the field that breaks them.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Len, Lt, MultipleOf

Units = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]
Activation = Literal["relu", "linear", "sigmoid", "tanh", "silu"]
Output = Literal["sigmoid", "linear"]
Loss = Literal["bce", "mse"]

_PIXELS = 28 * 28


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Base of every model's hyper-parameters.

    Attributes:
      overcomplete: Whether a code larger than the image makes sense, as it does
        for a model that has to undo a corruption.
    """

    overcomplete: ClassVar[bool] = False

    @property
    def code_size(self) -> int:
        """Floats in a code; a field where it can be chosen."""
        raise NotImplementedError

    @property
    def disabled(self) -> frozenset[str]:
        """Abilities of the reference form that these hyper-parameters switch off."""
        return frozenset()

    def __post_init__(self) -> None:
        if self.code_size > _PIXELS and not self.overcomplete:
            raise ValueError(
                f"code_size: a code of {self.code_size} floats is larger than the image "
                f"({_PIXELS} pixels), so the model could copy it"
            )
        _check_output(getattr(self, "output", "sigmoid"), getattr(self, "loss", "bce"))


def _check_output(output: str, loss: str) -> None:
    if output == "linear" and loss == "bce":
        raise ValueError("loss: bce needs output=sigmoid, a linear output leaves [0, 1]")


@dataclasses.dataclass(frozen=True)
class DenseHyperparameters(Hyperparameters):
    """784-hidden-code-hidden reversed-784.

    Attributes:
      code_size: Floats in a code.
      hidden: Widths between image and code; the decoder mirrors them.
      activation: Of the hidden layers.
      code_activation: Of the code.
      output: A sigmoid, or linear and clipped to [0, 1] when serving.
      loss: Binary cross-entropy or mean squared error.
    """

    code_size: Units = 32
    hidden: tuple[Units, ...] = ()
    activation: Activation = "relu"
    code_activation: Activation = "relu"
    output: Output = "sigmoid"
    loss: Loss = "bce"

    @property
    def mirrored(self) -> tuple[int, ...]:
        """Widths between code and image."""
        return self.hidden[::-1]


@dataclasses.dataclass(frozen=True)
class SimpleHyperparameters(DenseHyperparameters):
    """784-32-784 (003)."""


@dataclasses.dataclass(frozen=True)
class SparseHyperparameters(DenseHyperparameters):
    """784-32-784 with an L1 penalty (003).

    Attributes:
      l1: Weight of the code's absolute sum, per image, against BCE per pixel.
    """

    l1: NonNegative = 1e-4


@dataclasses.dataclass(frozen=True)
class DeepHyperparameters(DenseHyperparameters):
    """784-128-64-32 and back (003)."""

    hidden: tuple[Units, ...] = (128, 64)


@dataclasses.dataclass(frozen=True)
class SequentialHyperparameters(DenseHyperparameters):
    """784-256-128-784: whatever the encoder, the decoder is one layer (000)."""

    code_size: Units = 128
    hidden: tuple[Units, ...] = (256,)

    @property
    def mirrored(self) -> tuple[int, ...]:
        """None: the code is the decoder's only hidden layer."""
        return ()


@dataclasses.dataclass(frozen=True)
class FullyConnectedHyperparameters(DenseHyperparameters):
    """784-64-32-16 and back, MSE (001)."""

    code_size: Units = 16
    hidden: tuple[Units, ...] = (64, 32)
    loss: Loss = "mse"


@dataclasses.dataclass(frozen=True)
class Mlp2dHyperparameters(DenseHyperparameters):
    """784-1000-1000-2 and back, MSE: a code that can be drawn on paper (002)."""

    code_size: Units = 2
    hidden: tuple[Units, ...] = (1000, 1000)
    code_activation: Activation = "linear"
    loss: Loss = "mse"


@dataclasses.dataclass(frozen=True)
class LowLevelHyperparameters(Hyperparameters):
    """784-128-784 from plain variables (000).

    Attributes:
      code_size: Floats in a code.
      initial_stddev: Deviation of normal initial weights; 0 means Glorot's
        uniform. The tutorial's 1 saturates.
    """

    code_size: Units = 128
    initial_stddev: NonNegative = 0.0


@dataclasses.dataclass(frozen=True)
class ConvHyperparameters(Hyperparameters):
    """Three stages of convolution and pooling; the code is 4 x 4 x the last (003).

    Attributes:
      filters: Of the three encoder stages; the decoder mirrors them.
      output: A sigmoid, or linear and clipped to [0, 1] when serving.
      loss: Binary cross-entropy or mean squared error.
    """

    filters: Annotated[tuple[Units, ...], Len(3, 3)] = (16, 8, 8)
    output: Output = "sigmoid"
    loss: Loss = "bce"

    @property
    def code_size(self) -> int:
        """Floats in a code: 4 x 4 x filters."""
        return 16 * self.filters[-1]


@dataclasses.dataclass(frozen=True)
class ConvMseHyperparameters(ConvHyperparameters):
    """The convolutional model with MSE (001)."""

    output: Output = "linear"
    loss: Loss = "mse"


@dataclasses.dataclass(frozen=True)
class ConvDenoisingHyperparameters(ConvHyperparameters):
    """The convolutional model on noisy images (001).

    Attributes:
      noise: Deviation of the normal noise added to each pixel before clipping.
    """

    overcomplete: ClassVar[bool] = True

    noise: NonNegative = 0.5


@dataclasses.dataclass(frozen=True)
class DenoisingHyperparameters(ConvDenoisingHyperparameters):
    """Two stages of 32 filters; the code is 7 x 7 x 32, more than the image (003)."""

    filters: Annotated[tuple[Units, ...], Len(2, 2)] = (32, 32)

    @property
    def code_size(self) -> int:
        """Floats in a code: 7 x 7 x filters."""
        return 49 * self.filters[-1]


@dataclasses.dataclass(frozen=True)
class ConvVaeHyperparameters(ConvHyperparameters):
    """The convolutional model with linear heads for mean and log variance (001).

    Attributes:
      beta: Weight of the KL term; 1 is the variational bound.
    """

    beta: NonNegative = 1.0


@dataclasses.dataclass(frozen=True)
class VaeHyperparameters(Hyperparameters):
    """784-64-2 and back (003).

    Attributes:
      code_size: Floats in a code.
      hidden: Widths between image and code; the decoder mirrors them.
      beta: Weight of the KL term; 1 is the variational bound.
    """

    code_size: Units = 2
    hidden: tuple[Units, ...] = (64,)
    beta: NonNegative = 1.0


@dataclasses.dataclass(frozen=True)
class AaeHyperparameters(Hyperparameters):
    """784-1000-1000-2 and back, with a discriminator of the code (002).

    Attributes:
      code_size: Floats in a code.
      hidden: Widths between image and code; decoder and discriminator mirror them.
      prior_stddev: Deviation of the normal prior that codes are matched to.
      adversarial_weight: Of the generator's loss against BCE summed over pixels.
      discriminator_learning_rate: Of the discriminator's own Adam.
    """

    code_size: Units = 2
    hidden: tuple[Units, ...] = (1000, 1000)
    prior_stddev: Positive = 2.0
    adversarial_weight: NonNegative = 10.0
    discriminator_learning_rate: Positive = 1e-3


@dataclasses.dataclass(frozen=True)
class SupervisedAaeHyperparameters(AaeHyperparameters):
    """A style of 15 floats; the decoder is told the digit (002)."""

    code_size: Units = 15
    prior_stddev: Positive = 1.0
    # Measured after 2 epochs: at 10 and 1e-3 the image suffers (MSE .030), at 2 and
    # 1e-3 the discriminator wins later on (accuracy .78); here .012 and .61.
    adversarial_weight: NonNegative = 5.0
    discriminator_learning_rate: Positive = 3e-4


@dataclasses.dataclass(frozen=True)
class SemiSupervisedAaeHyperparameters(AaeHyperparameters):
    """A style and a softmax of ten digits, from few labels (002).

    Attributes:
      style_size: Floats of style; the code is the style and ten probabilities.
      labels: Labelled training images, balanced by digit.
      labelled_batch_size: Labelled images appended to every batch.
      classification_weight: Of the labelled images' cross-entropy against BCE
        summed over pixels.
      distortion: How far labelled images, and copies of the others, are turned,
        scaled and moved: 1 is up to .2 an entry of the matrix and two pixels.
      consistency: Weight of the cross-entropy between an image's digit and its
        distorted copy's, relative to that of the labelled images.
    """

    code_size: int = dataclasses.field(init=False, default=20)
    style_size: Units = 10
    prior_stddev: Positive = 1.0
    labels: Annotated[int, Ge(10), MultipleOf(10)] = 1_000
    labelled_batch_size: Units = 64
    classification_weight: Positive = 100.0
    distortion: NonNegative = 1.0
    consistency: NonNegative = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "code_size", self.style_size + 10)
        super().__post_init__()


@dataclasses.dataclass(frozen=True)
class LstmHyperparameters(Hyperparameters):
    """28 rows through an LSTM to a code and back (003).

    Attributes:
      code_size: Floats in a code, the units of the encoder's LSTM.
      decoder_units: Of the decoder's LSTM.
      loss: Binary cross-entropy or mean squared error.
    """

    code_size: Units = 32
    decoder_units: Units = 128
    loss: Loss = "mse"


@dataclasses.dataclass(frozen=True)
class TiedDenoisingHyperparameters(Hyperparameters):
    """784-500-784 with one weight matrix (004).

    Attributes:
      code_size: Floats in a code.
      masking: Share of the pixels that are blackened in training.
    """

    overcomplete: ClassVar[bool] = True

    code_size: Units = 500
    masking: Share = 0.3


@dataclasses.dataclass(frozen=True)
class StackedHyperparameters(Hyperparameters):
    """784-500-250-32 and back, sigmoid, trained layer by layer (004).

    Attributes:
      code_size: Floats in a code.
      hidden: Widths between image and code; the decoder mirrors them.
      pretraining_epochs: Epochs for each layer; 0 trains from scratch.
      labels: Labelled training images for the classifier, balanced by digit; 0
        leaves it out.
      labelled_batch_size: Labelled images appended to every batch.
      classifier_epochs: Epochs of the classifier's training, at the end.
    """

    code_size: Units = 32
    hidden: tuple[Units, ...] = (500, 250)
    pretraining_epochs: Count = 5
    labels: Annotated[int, Ge(0), MultipleOf(10)] = 1_000
    labelled_batch_size: Count = 32
    classifier_epochs: Count = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels and not (self.labelled_batch_size and self.classifier_epochs):
            raise ValueError(
                "labels: a classifier needs labelled_batch_size and classifier_epochs above 0"
            )

    @property
    def disabled(self) -> frozenset[str]:
        """Without labels there is no classifier."""
        return frozenset() if self.labels else frozenset({"classify"})


@dataclasses.dataclass(frozen=True)
class BestHyperparameters(Hyperparameters):
    """Two strided convolutions, dense layers, and back.

    Attributes:
      code_size: Floats in a code.
      filters: Of the two convolutions, at 14 x 14 and 7 x 7.
      hidden: Widths of the dense layers between maps and code.
      activation: Of all layers but code and output.
    """

    code_size: Units = 32
    filters: Annotated[tuple[Units, ...], Len(2, 2)] = (16, 32)
    hidden: tuple[Units, ...] = (256,)
    activation: Activation = "silu"
