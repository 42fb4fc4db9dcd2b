"""The hyper-parameters of the autoencoders, one class a family.

What differs among the models of a family only by its values stands in their
catalogue entries. Every bound is declared here, once: configuration, tuner and
training all take these classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pydantic
from annotated_types import Ge, Len, MultipleOf

from trainer.models.checked_values import (
    Count,
    FractionOrZero,
    ListOf,
    NonNegative,
    PositiveFloat,
    PositiveInt,
    Settings,
)

Activation = Literal["relu", "linear", "sigmoid", "tanh", "silu"]
Output = Literal["sigmoid", "linear"]
Loss = Literal["bce", "mse"]

_SIDE = 28
_PIXELS = _SIDE * _SIDE


class Hyperparameters(Settings):
    """Base of every model's hyper-parameters.

    Attributes:
      overcomplete: Whether a code larger than the image makes sense, as it does
        for a model that has to undo a corruption.
    """

    overcomplete: ClassVar[bool] = False

    if TYPE_CHECKING:

        @property
        def code_size(self) -> int:
            """Floats in a code: a field where it can be chosen, else a property."""

    @property
    def label_budget(self) -> int | None:
        """Labelled training images that the model learns from; None is all there are."""
        return 0

    @property
    def disabled(self) -> frozenset[str]:
        """Abilities of the reference form that these hyper-parameters switch off."""
        return frozenset()

    def check(self) -> None:
        """Refuses a code that the image could be copied into."""
        if self.code_size > _PIXELS and not self.overcomplete:
            raise ValueError(
                f"code_size: a code of {self.code_size} floats is larger than the image "
                f"({_PIXELS} pixels), so the model could copy it"
            )


class SizedCode(Hyperparameters):
    """Base where the code's size, in floats, can be chosen."""

    code_size: PositiveInt = 32


def _check_output(output: Output, loss: Loss) -> None:
    if output == "linear" and loss == "bce":
        raise ValueError("loss: bce needs output=sigmoid, a linear output leaves [0, 1]")


class DenseHyperparameters(SizedCode):
    """784-hidden-code-hidden reversed-784.

    Attributes:
      hidden: Widths between image and code; the decoder mirrors them.
      activation: Activation of the hidden layers.
      code_activation: Activation of the code.
      output: A sigmoid, or linear and clipped to [0, 1] when serving.
      loss: Binary cross-entropy or mean squared error.
    """

    hidden: ListOf[PositiveInt] = ()
    activation: Activation = "relu"
    code_activation: Activation = "relu"
    output: Output = "sigmoid"
    loss: Loss = "bce"

    def check(self) -> None:
        """Refuses a cross-entropy of what is no probability, too."""
        super().check()
        _check_output(self.output, self.loss)


class SparseHyperparameters(DenseHyperparameters):
    """A dense autoencoder with ``l1`` times the code's absolute sum, against BCE a pixel (003)."""

    l1: NonNegative = 1e-4


class LowLevelHyperparameters(SizedCode):
    """784-128-784 from plain variables (000).

    Attributes:
      initial_stddev: Deviation of normal initial weights; 0 means Glorot's
        uniform. The tutorial's 1 saturates.
    """

    code_size: PositiveInt = 128
    initial_stddev: NonNegative = 0.0


class ConvHyperparameters(Hyperparameters):
    """Two or three stages of convolution and pooling, and back (001, 003).

    Attributes:
      filters: Filters of the encoder's stages; the decoder mirrors them.
      output: A sigmoid, or linear and clipped to [0, 1] when serving.
      loss: Binary cross-entropy or mean squared error.
    """

    filters: Annotated[ListOf[PositiveInt], Len(2, 3)] = (16, 8, 8)
    output: Output = "sigmoid"
    loss: Loss = "bce"

    @property
    def code_size(self) -> int:
        """Floats in a code: the last stage's maps, halved (rounded up) by each stage."""
        side = -(-_SIDE // 2 ** len(self.filters))
        return side * side * self.filters[-1]

    def check(self) -> None:
        """Refuses a cross-entropy of what is no probability, too."""
        super().check()
        _check_output(self.output, self.loss)


class ConvDenoisingHyperparameters(ConvHyperparameters):
    """The convolutional model on images with normal noise of deviation ``noise`` (001, 003)."""

    overcomplete: ClassVar[bool] = True

    noise: NonNegative = 0.5


class ConvVaeHyperparameters(ConvHyperparameters):
    """Linear heads for mean and log variance; ``beta`` as :class:`VaeHyperparameters` (001)."""

    beta: NonNegative = 1.0


class VaeHyperparameters(SizedCode):
    """784-64-2 and back (003).

    Attributes:
      hidden: Widths between image and code; the decoder mirrors them.
      beta: Weight of the KL term; 1 is the variational bound.
    """

    code_size: PositiveInt = 2
    hidden: ListOf[PositiveInt] = (64,)
    beta: NonNegative = 1.0


class AdversarialHyperparameters(Hyperparameters):
    """What an autoencoder with discriminators of its code has (002).

    Attributes:
      hidden: Widths between image and code; decoder and discriminator mirror them.
      prior_stddev: Deviation of the normal prior that codes are matched to.
      adversarial_weight: Weight of the generator's loss against BCE summed over
        pixels.
      discriminator_learning_rate: Learning rate of the discriminator's own Adam.
    """

    hidden: ListOf[PositiveInt] = (1000, 1000)
    prior_stddev: PositiveFloat = 1.0
    adversarial_weight: NonNegative = 10.0
    discriminator_learning_rate: PositiveFloat = 1e-3


class AaeHyperparameters(AdversarialHyperparameters, SizedCode):
    """784-1000-1000-2 and back, with a discriminator of the code (002)."""

    code_size: PositiveInt = 2
    prior_stddev: PositiveFloat = 2.0


class SupervisedAaeHyperparameters(AdversarialHyperparameters, SizedCode):
    """A style of 15 floats; the decoder is told the digit (002)."""

    code_size: PositiveInt = 15
    # Measured after 2 epochs: at 10 and 1e-3 the image suffers (MSE .030), at 2 and
    # 1e-3 the discriminator wins later on (accuracy .78); here .012 and .61.
    adversarial_weight: NonNegative = 5.0
    discriminator_learning_rate: PositiveFloat = 3e-4

    @property
    def label_budget(self) -> None:
        """All labels: a style is what remains when the digit is known."""
        return None


class SemiSupervisedAaeHyperparameters(AdversarialHyperparameters):
    """A style and a softmax of ten digits, from few labels (002).

    Attributes:
      style_size: Floats of style; the code is the style and ten probabilities.
      labels: Labelled training images, balanced by digit.
      labelled_batch_size: Labelled images appended to every batch.
      classification_weight: Weight of the labelled images' cross-entropy against
        BCE summed over pixels.
      distortion: How far labelled images, and copies of the others, are turned,
        scaled and moved: 1 is up to .2 an entry of the matrix and two pixels.
      consistency: Weight of the cross-entropy between an image's digit and its
        distorted copy's, relative to that of the labelled images.
    """

    style_size: PositiveInt = 10
    labels: Annotated[int, Ge(10), MultipleOf(10)] = 1_000
    labelled_batch_size: PositiveInt = 64
    classification_weight: PositiveFloat = 100.0
    distortion: NonNegative = 1.0
    consistency: NonNegative = 1.0

    @property
    def code_size(self) -> int:
        """Floats in a code: the style and ten probabilities."""
        return self.style_size + 10

    @property
    def label_budget(self) -> int:
        """``labels``."""
        return self.labels

    @pydantic.model_serializer(mode="wrap")
    def _with_code_size(
        self, fields: pydantic.SerializerFunctionWrapHandler, info: pydantic.SerializationInfo
    ) -> dict[str, Any]:
        # For people to read, as the other models have it; it cannot be given.
        own = fields(self)
        return own if info.round_trip else {"code_size": self.code_size, **own}


class LstmHyperparameters(SizedCode):
    """28 rows through an LSTM to a code and back (003).

    Attributes:
      decoder_units: Units of the decoder's LSTM; the encoder's are the code.
      loss: Binary cross-entropy or mean squared error.
    """

    decoder_units: PositiveInt = 128
    loss: Loss = "mse"


class TiedDenoisingHyperparameters(SizedCode):
    """784-500-784 with one weight matrix (004).

    Attributes:
      masking: Fraction of the pixels that are blackened in training.
    """

    overcomplete: ClassVar[bool] = True

    code_size: PositiveInt = 500
    masking: FractionOrZero = 0.3


class StackedHyperparameters(SizedCode):
    """784-500-250-32 and back, sigmoid, trained layer by layer (004).

    Attributes:
      hidden: Widths between image and code; the decoder mirrors them.
      pretraining_epochs: Epochs for each layer; 0 trains from scratch.
      labels: Labelled training images for the classifier, balanced by digit; 0
        leaves it out.
      labelled_batch_size: Labelled images appended to every batch.
      classifier_epochs: Epochs of the classifier's training, at the end.
    """

    hidden: ListOf[PositiveInt] = (500, 250)
    pretraining_epochs: Count = 5
    labels: Annotated[int, Ge(0), MultipleOf(10)] = 1_000
    labelled_batch_size: Count = 32
    classifier_epochs: Count = 3

    def check(self) -> None:
        """Refuses a classifier that is never trained, too."""
        super().check()
        if self.labels and not (self.labelled_batch_size and self.classifier_epochs):
            raise ValueError(
                "labels: a classifier needs labelled_batch_size and classifier_epochs above 0"
            )

    @property
    def label_budget(self) -> int:
        """``labels``."""
        return self.labels

    @property
    def disabled(self) -> frozenset[str]:
        """The classifier, without labels."""
        return frozenset() if self.labels else frozenset({"classify"})


class BestHyperparameters(SizedCode):
    """Dense layers on squares of pixels and over all of them, and back.

    Attributes:
      filters: Widths between pixels and maps, in the decoder, and of the 7 x 7 maps.
      hidden: Widths of the dense layers between maps and code.
      activation: Activation of all layers but code and output.
      distortion: How much training images are turned, scaled and moved; 1 is up to a
        fifth and two pixels.
    """

    filters: Annotated[ListOf[PositiveInt], Len(2, 2)] = (64, 32)
    hidden: ListOf[PositiveInt] = (256,)
    activation: Activation = "silu"
    distortion: NonNegative = 0.6
