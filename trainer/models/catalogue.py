"""What autoencoders there are: hyper-parameters, sources and abilities.

Nothing is built here and TensorFlow is not imported, so that the command line
can list the models and check a configuration at once. An entry names the class
that implements it; adding an autoencoder means one class, one entry and,
for a new family, its hyper-parameters.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
from collections.abc import Mapping
from typing import Any

import pydantic

from trainer.models import hyperparameters as hps
from trainer.models.checked_values import Count, PositiveFloat, PositiveInt, Settings
from trainer.models.hyperparameters import Hyperparameters


class Ability(str, enum.Enum):
    """What a model offers beyond reconstruction; each is a SavedModel signature."""

    ENCODE = "encode"
    DECODE = "decode"
    DENOISE = "denoise"
    GENERATE = "generate"
    CLASSIFY = "classify"


class UnknownModelError(ValueError):
    """A name that the catalogue does not hold."""

    def __init__(self, name: str):
        near = difflib.get_close_matches(name, CATALOGUE, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        super().__init__(f"unknown model {name!r}{hint} (known: {', '.join(CATALOGUE)})")


# Fewer images say too little of a gradient.
_LEAST_BATCH = 16


class TrainingDefaults(Settings):
    """How a model is trained when the configuration does not say otherwise.

    Attributes:
      epochs: Passes over the training split.
      batch_size: Images a step, of all replicas together.
      learning_rate: Learning rate of the model's optimizer.
      min_steps: Optimizer steps that a training takes at least: where images are
        few a batch is smaller, so that the same epochs have as many; 0 leaves it.
      xla: Compile the step with XLA: faster for deep dense models,
        slower for shallow ones and three times slower for convolutions, on a CPU
        (measured). On one device only: with several it fails on CPUs, and nobody
        saw it on GPUs.
    """

    epochs: PositiveInt = 50
    batch_size: PositiveInt = 256
    learning_rate: PositiveFloat = 1e-3
    min_steps: Count = 0
    xla: bool = True

    def batch_for(self, images: int) -> int:
        """Images a step where there are so many to train on."""
        steps_an_epoch = max(1, -(-self.min_steps // self.epochs))
        return max(1, min(self.batch_size, images, max(_LEAST_BATCH, images // steps_an_epoch)))


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """An entry of the catalogue.

    Attributes:
      name: What the user selects.
      summary: The form in a line.
      source: The tutorial that teaches it.
      paper: The paper behind it, or "".
      correction: What the source got wrong and what is done here instead, or "".
      hyperparameters: The reference form.
      training: Training defaults.
      implementation: ``module:Class`` of the ``Autoencoder`` subclass.
      abilities: What it can do in the reference form; see :meth:`abilities_of`.
      parameters: Number of trainable weights in the reference form.
      max_mse: Absolute bound on the mean eval MSE for a blessing. A collapsed
        model (mean image .0675, black .114) is above it.
      search_space: Hyper-parameters worth tuning, each with the values to try.
    """

    name: str
    summary: str
    source: str
    hyperparameters: Hyperparameters
    training: TrainingDefaults
    implementation: str
    parameters: int
    max_mse: float
    paper: str = ""
    correction: str = ""
    abilities: tuple[Ability, ...] = (Ability.ENCODE, Ability.DECODE)
    search_space: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)

    @property
    def code_size(self) -> int:
        """Floats in a code, in the reference form."""
        return self.hyperparameters.code_size

    def abilities_of(self, hyperparameters: Hyperparameters) -> tuple[Ability, ...]:
        """What the model can do with these hyper-parameters, e.g. without labels."""
        return tuple(a for a in self.abilities if a.value not in hyperparameters.disabled)


class ModelChoice(Settings):
    """A model of the catalogue with hyper-parameters; as data, one flat mapping.

    Attributes:
      name: Its name in the catalogue.
      hyperparameters: All of them.
    """

    name: str
    hyperparameters: pydantic.SerializeAsAny[Hyperparameters]

    @property
    def spec(self) -> ModelSpec:
        """Its catalogue entry."""
        return get_model_spec(self.name)

    @classmethod
    def of(cls, name: str, **values: Any) -> ModelChoice:
        """The model called ``name``, with other values than the reference form's.

        Raises:
          UnknownModelError: No such model.
          pydantic.ValidationError: No such hyper-parameter, or a bad value.
        """
        spec = get_model_spec(name)
        return cls(name=name, hyperparameters=spec.hyperparameters.replaced(**values))

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_flat(cls, values: Any) -> Any:
        if isinstance(values, dict) and "hyperparameters" not in values:
            return dict(cls.of(**values))
        return values

    @pydantic.model_serializer
    def _flat(self, info: pydantic.SerializationInfo) -> dict[str, Any]:
        own = self.hyperparameters.model_dump(mode=info.mode, round_trip=info.round_trip)
        return {"name": self.name, **own}


BARP = "000: Implementing a Simple Auto-Encoder in TensorFlow (E. Barp)"
GUIDE = "001: Autoencoders: Guide and Code in TensorFlow 2.0 (I. us Salam)"
WIZARD = "002: A wizard's guide to Adversarial Autoencoders (N. Nagabushan)"
KERAS_BLOG = "003: Building Autoencoders in Keras (F. Chollet)"
TIED_BLOG = "004: a tutorial on a masking-noise autoencoder with tied weights"
OWN = "this project"

DEEP_PAPER = "Hinton & Salakhutdinov 2006, Reducing the dimensionality of data"
VAE_PAPER = "Kingma & Welling 2013, Auto-encoding variational Bayes"
AAE_PAPER = "Makhzani et al. 2015, Adversarial autoencoders"
DENOISING_PAPER = "Vincent et al. 2008, Extracting and composing robust features"
STACKED_PAPER = "Vincent et al. 2010, Stacked denoising autoencoders"

_BASIC = (Ability.ENCODE, Ability.DECODE)
_DENOISING = (*_BASIC, Ability.DENOISE)
_GENERATIVE = (*_BASIC, Ability.GENERATE)

_ENTRIES = (
    ModelSpec(
        name="best",
        summary="8 x 8 squares to 32 maps, 256-32 linear-256, maps to squares, BCE to MSE, Muon",
        source=OWN,
        paper="Jordan et al. 2024, Muon: an optimizer for hidden layers",
        hyperparameters=hps.BestHyperparameters(),
        training=TrainingDefaults(epochs=14, batch_size=256, learning_rate=0.02, min_steps=300),
        implementation="trainer.models.best:Best",
        parameters=829_664,
        max_mse=0.02,
        search_space={"hidden": ((128,), (256,), (384,)), "code_size": (16, 32, 64)},
    ),
    ModelSpec(
        name="low_level",
        summary="784-128 relu-784 sigmoid from plain variables, BCE, RMSProp",
        source=BARP,
        correction=(
            "N(0,1) initial weights saturate the sigmoid (BCE .229 after 10 epochs, .083 with "
            "Glorot's); RMSProp at .005 overshoots, .001 does not. The loss is a mean, not a sum "
            "over the batch. The tutorial's form: initial_stddev=1."
        ),
        hyperparameters=hps.LowLevelHyperparameters(),
        training=TrainingDefaults(epochs=10, batch_size=64),
        implementation="trainer.models.low_level:LowLevel",
        parameters=201_616,
        max_mse=0.04,
        search_space={"code_size": (64, 128, 256)},
    ),
    ModelSpec(
        name="sequential",
        summary="784-256-128 relu-784 sigmoid, BCE",
        source=BARP,
        correction=(
            "Cross-entropy that expects logits was given sigmoid outputs (BCE .230 against .067 "
            "after 5 epochs); linear hidden layers make it PCA; undefined names; the last 32 "
            "images dropped. The linear form: activation=linear, code_activation=linear."
        ),
        hyperparameters=hps.DenseHyperparameters(code_size=128, hidden=(256,)),
        training=TrainingDefaults(epochs=10, batch_size=64),
        implementation="trainer.models.dense:SequentialAutoencoder",
        parameters=334_992,
        max_mse=0.03,
        search_space={"code_size": (64, 128), "hidden": ((256,), (512,))},
    ),
    ModelSpec(
        name="fully_connected",
        summary="784-64-32-16-32-64-784 relu, sigmoid output, MSE",
        source=GUIDE,
        correction=(
            "A linear output gives grey levels from -.60 to 1.78 (output=linear keeps it, clipped "
            "when serving); batches of 4 without a shuffle take twenty times as long."
        ),
        hyperparameters=hps.DenseHyperparameters(code_size=16, hidden=(64, 32), loss="mse"),
        training=TrainingDefaults(epochs=50, batch_size=128, xla=False),
        implementation="trainer.models.dense:DenseAutoencoder",
        parameters=106_464,
        max_mse=0.04,
        search_space={"hidden": ((64, 32), (128, 64)), "output": ("sigmoid", "linear")},
    ),
    ModelSpec(
        name="conv_mse",
        summary="C16-P-C8-P-C8-P, code 4x4x8, C8-U-C8-U-C16-U-C1 linear, MSE",
        source=GUIDE,
        correction=(
            "A sigmoid output under MSE collapses to black for most seeds (MSE .114); a linear "
            "one, clipped when serving, never did. The tutorial's form: output=sigmoid."
        ),
        hyperparameters=hps.ConvHyperparameters(output="linear", loss="mse"),
        training=TrainingDefaults(epochs=12, batch_size=128, xla=False),
        implementation="trainer.models.conv:ConvAutoencoder",
        parameters=4_385,
        max_mse=0.04,
        search_space={"filters": ((16, 8, 8), (32, 16, 8))},
    ),
    ModelSpec(
        name="conv_denoising",
        summary="as conv, input + .5 N(0,1), BCE to the clean image",
        source=GUIDE,
        paper=DENOISING_PAPER,
        correction=(
            "Noise was drawn once for the whole training, here afresh for every step; MSE "
            "collapses to black as in conv_mse, BCE does not. The tutorial's form: loss=mse."
        ),
        hyperparameters=hps.ConvDenoisingHyperparameters(),
        training=TrainingDefaults(epochs=12, batch_size=64, learning_rate=3e-3, xla=False),
        implementation="trainer.models.denoising:ConvDenoising",
        parameters=4_385,
        max_mse=0.04,
        abilities=_DENOISING,
        search_space={"filters": ((16, 8, 8), (32, 16, 8))},
    ),
    ModelSpec(
        name="conv_vae",
        summary="conv encoder with linear 4x4x8 heads for mean and log variance, conv decoder",
        source=GUIDE,
        paper=VAE_PAPER,
        correction=(
            "Mean and 'sigma' were the same rectified pool without weights, and the image term a "
            "mean against a summed KL: the posterior collapsed (KL 1e-5, no active unit). Linear "
            "heads of their own, both terms summed per image."
        ),
        hyperparameters=hps.ConvVaeHyperparameters(),
        training=TrainingDefaults(epochs=10, batch_size=128, xla=False),
        implementation="trainer.models.variational:ConvVae",
        parameters=5_553,
        max_mse=0.06,
        abilities=_GENERATIVE,
        search_space={"filters": ((16, 8, 8), (32, 16, 8)), "beta": (0.5, 1.0)},
    ),
    ModelSpec(
        name="mlp_2d",
        summary="784-1000-1000-2 linear-1000-1000-784 sigmoid, MSE",
        source=WIZARD,
        correction="Adam at .01 dies at once (MSE .117); .001.",
        hyperparameters=hps.DenseHyperparameters(
            code_size=2, hidden=(1000, 1000), code_activation="linear", loss="mse"
        ),
        training=TrainingDefaults(epochs=10, batch_size=128),
        implementation="trainer.models.dense:DenseAutoencoder",
        parameters=3_576_786,
        max_mse=0.055,
        search_space={"hidden": ((1000, 1000), (500, 500)), "activation": ("relu", "silu")},
    ),
    ModelSpec(
        name="aae",
        summary="784-1000-1000-2-1000-1000-784, adversarially matched to N(0, 2)",
        source=WIZARD,
        paper=AAE_PAPER,
        correction=(
            "Three optimizers of equal rate on losses of unequal size: either the prior is missed "
            "or the image. One Adam on the summed BCE + 10 x the generator's loss balances them."
        ),
        hyperparameters=hps.AaeHyperparameters(),
        training=TrainingDefaults(epochs=5, batch_size=128),
        implementation="trainer.models.adversarial:AdversarialAutoencoder",
        parameters=4_581_787,
        max_mse=0.06,
        abilities=_GENERATIVE,
        search_space={"adversarial_weight": (3.0, 10.0, 30.0)},
    ),
    ModelSpec(
        name="supervised_aae",
        summary="as aae with a style of 15 floats; the decoder is told the digit",
        source=WIZARD,
        paper=AAE_PAPER,
        correction="As aae. Without a label, serving takes the digit that reconstructs best.",
        hyperparameters=hps.SupervisedAaeHyperparameters(),
        training=TrainingDefaults(epochs=5, batch_size=64),
        implementation="trainer.models.adversarial:SupervisedAae",
        parameters=4_630_800,
        max_mse=0.04,
        abilities=_GENERATIVE,
        search_space={"adversarial_weight": (2.0, 5.0, 10.0), "code_size": (10, 15, 20)},
    ),
    ModelSpec(
        name="semi_supervised_aae",
        summary="as aae with a style of 10 floats and a softmax of 10 digits, 1,000 labels",
        source=WIZARD,
        paper=AAE_PAPER,
        correction=(
            "The labelled images came from the test split; here from the training split. As aae; "
            "every step sees labelled images, slightly distorted, and asks that a distorted image "
            "keeps its digit. The tutorial's form: consistency=0, distortion=0."
        ),
        hyperparameters=hps.SemiSupervisedAaeHyperparameters(),
        training=TrainingDefaults(epochs=10, batch_size=128),
        implementation="trainer.models.semi_supervised:SemiSupervisedAae",
        parameters=5_638_806,
        max_mse=0.04,
        abilities=(*_GENERATIVE, Ability.CLASSIFY),
        search_space={"distortion": (0.5, 1.0), "classification_weight": (30.0, 100.0)},
    ),
    ModelSpec(
        name="simple",
        summary="784-32 relu-784 sigmoid, BCE",
        source=KERAS_BLOG,
        hyperparameters=hps.DenseHyperparameters(),
        training=TrainingDefaults(epochs=50, batch_size=256, xla=False),
        implementation="trainer.models.dense:DenseAutoencoder",
        parameters=50_992,
        max_mse=0.03,
        search_space={"code_size": (16, 32, 64), "code_activation": ("relu", "linear")},
    ),
    ModelSpec(
        name="sparse",
        summary="as simple with an L1 penalty of 1e-4 on the code, per image",
        source=KERAS_BLOG,
        correction=(
            "The penalty only rescales the code: its mean falls to a sixth, the share of active "
            "units hardly (.965 to .932), which is therefore reported. Keras 3.12 sums it over "
            "the batch, which kills the model; here it is averaged."
        ),
        hyperparameters=hps.SparseHyperparameters(),
        training=TrainingDefaults(epochs=100, batch_size=256, xla=False),
        implementation="trainer.models.dense:SparseAutoencoder",
        parameters=50_992,
        max_mse=0.03,
        search_space={"l1": (1e-5, 1e-4, 1e-3)},
    ),
    ModelSpec(
        name="deep",
        summary="784-128-64-32-64-128-784 relu, sigmoid output, BCE",
        source=KERAS_BLOG,
        paper=DEEP_PAPER,
        hyperparameters=hps.DenseHyperparameters(hidden=(128, 64)),
        training=TrainingDefaults(epochs=100, batch_size=256),
        implementation="trainer.models.dense:DenseAutoencoder",
        parameters=222_384,
        max_mse=0.03,
        search_space={
            "hidden": ((128, 64), (256, 128), (512, 256)),
            "activation": ("relu", "silu"),
        },
    ),
    ModelSpec(
        name="conv",
        summary="C16-P-C8-P-C8-P, code 4x4x8, C8-U-C8-U-C16-U-C1 sigmoid, BCE",
        source=KERAS_BLOG,
        correction="Called better than the dense models for a loss of .094; theirs is lower.",
        hyperparameters=hps.ConvHyperparameters(),
        training=TrainingDefaults(epochs=12, batch_size=128, learning_rate=2e-3, xla=False),
        implementation="trainer.models.conv:ConvAutoencoder",
        parameters=4_385,
        max_mse=0.035,
        search_space={"filters": ((16, 8, 8), (32, 16, 8))},
    ),
    ModelSpec(
        name="denoising",
        summary="C32-P-C32-P, code 7x7x32, C32-U-C32-U-C1 sigmoid, noise .5, BCE",
        source=KERAS_BLOG,
        paper=DENOISING_PAPER,
        correction="Noise was drawn once for the whole training; here afresh for every step.",
        hyperparameters=hps.ConvDenoisingHyperparameters(filters=(32, 32)),
        training=TrainingDefaults(epochs=5, batch_size=128, xla=False),
        implementation="trainer.models.denoising:ConvDenoising",
        parameters=28_353,
        max_mse=0.03,
        abilities=_DENOISING,
        search_space={"filters": ((32, 32), (16, 16))},
    ),
    ModelSpec(
        name="lstm",
        summary="an image as 28 rows: LSTM 32, repeated, LSTM 128, dense sigmoid rows, MSE",
        source=KERAS_BLOG,
        correction=(
            "The decoder's LSTM was as wide as its output, 28, and tanh cannot reach white; here "
            "it is wider and a dense sigmoid makes the row. No loss was given."
        ),
        hyperparameters=hps.LstmHyperparameters(),
        training=TrainingDefaults(epochs=10, batch_size=128, learning_rate=3e-3, xla=False),
        implementation="trainer.models.recurrent:LstmAutoencoder",
        parameters=93_852,
        max_mse=0.05,
        search_space={"decoder_units": (64, 128, 256)},
    ),
    ModelSpec(
        name="vae",
        summary="784-64 relu-2+2-64 relu-784 sigmoid, summed BCE + KL",
        source=KERAS_BLOG,
        paper=VAE_PAPER,
        correction=(
            "Noise of deviation .1 with exp(s) as deviation, while the KL read s as log variance; "
            "here exp(s/2) and deviation 1. Codes of up to 15 deviations were drawn for a picture "
            "that ends at 3."
        ),
        hyperparameters=hps.VaeHyperparameters(),
        training=TrainingDefaults(epochs=30, batch_size=128, xla=False),
        implementation="trainer.models.variational:Vae",
        parameters=101_652,
        max_mse=0.06,
        abilities=_GENERATIVE,
        search_space={"hidden": ((64,), (256,), (500,)), "code_size": (2, 10, 20)},
    ),
    ModelSpec(
        name="tied_denoising",
        summary="784-500-784 sigmoid with tied weights, 30 % of the pixels masked, SGD",
        source=TIED_BLOG,
        paper=DENOISING_PAPER,
        correction=(
            "The loss was summed over the batch, so that SGD's .02 meant 2.56 for a batch of 128; "
            "here it is averaged, and 1.5 leaves more units alive (402 against 277 of 500). The "
            "last batch was dropped and the test loss taken on corrupted sums."
        ),
        hyperparameters=hps.TiedDenoisingHyperparameters(),
        training=TrainingDefaults(epochs=20, batch_size=128, learning_rate=1.5),
        implementation="trainer.models.tied:TiedDenoising",
        parameters=393_284,
        max_mse=0.03,
        abilities=_DENOISING,
        search_space={"code_size": (250, 500), "masking": (0.1, 0.3)},
    ),
    ModelSpec(
        name="stacked",
        summary="784-500-250-32 sigmoid, trained layer by layer, then whole; a classifier on top",
        source=TIED_BLOG,
        paper=STACKED_PAPER,
        correction=(
            "Sizes, epochs and the classifier were left out. From scratch the same network "
            "reaches BCE .141 in 10 epochs, after layer-wise training .085."
        ),
        hyperparameters=hps.StackedHyperparameters(),
        training=TrainingDefaults(epochs=10, batch_size=128),
        implementation="trainer.models.stacked:Stacked",
        parameters=1_578_428,
        max_mse=0.04,
        abilities=(*_BASIC, Ability.CLASSIFY),
        search_space={"pretraining_epochs": (2, 5, 10)},
    ),
)

CATALOGUE: dict[str, ModelSpec] = {spec.name: spec for spec in _ENTRIES}


def get_model_spec(name: str) -> ModelSpec:
    """Returns the entry called ``name``.

    Raises:
      UnknownModelError: No such entry; the message suggests the nearest.
    """
    try:
        return CATALOGUE[name]
    except KeyError:
        raise UnknownModelError(name) from None
