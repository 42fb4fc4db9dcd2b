"""What autoencoders there are: hyper-parameters, sources and abilities.

Nothing is built here and TensorFlow is not imported, so that the command line
can list the models and check a configuration at once. An entry names the class
that implements it; adding an autoencoder means one class and one entry.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
from typing import Annotated

from annotated_types import Ge, Gt

# Constraints are declared in the annotations; pipeline.config enforces them
# before a run starts, naming model and field.
Units = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]


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


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Base of every model's hyper-parameters. Subclasses have a ``code_size``."""

    code_size: Units = 32


@dataclasses.dataclass(frozen=True)
class TrainingDefaults:
    """How a model is trained when the configuration does not say otherwise.

    Attributes:
      epochs: Passes over the training split.
      batch_size: Images a step, per replica.
      learning_rate: Of the model's optimizer.
      xla: Whether to compile the step with XLA: faster for dense models, three
        times slower for convolutions on a CPU (measured).
    """

    epochs: Annotated[int, Ge(0)] = 50
    batch_size: Units = 256
    learning_rate: Positive = 1e-3
    xla: bool = True


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """An entry of the catalogue.

    Attributes:
      name: What the user selects.
      summary: The form in a line.
      source: The tutorial that teaches it.
      paper: The paper behind it, or "".
      correction: What the source got wrong and what is done here instead, or "".
      hyperparameters: Dataclass whose defaults are the reference form.
      training: Training defaults.
      implementation: ``module:Class`` of the ``Autoencoder`` subclass.
      abilities: What it can do.
      parameters: Number of trainable weights in the reference form.
      max_mse: Absolute bound on the mean eval MSE for a blessing. A collapsed
        model (mean image .0675, black .114) is above it.
    """

    name: str
    summary: str
    source: str
    hyperparameters: type[Hyperparameters]
    training: TrainingDefaults
    implementation: str
    parameters: int
    max_mse: float
    paper: str = ""
    correction: str = ""
    abilities: tuple[Ability, ...] = (Ability.ENCODE, Ability.DECODE)

    @property
    def code_size(self) -> int:
        """Floats in a code, in the reference form."""
        return self.hyperparameters().code_size


KERAS_BLOG = "003: Building Autoencoders in Keras (F. Chollet)"


@dataclasses.dataclass(frozen=True)
class SimpleHyperparameters(Hyperparameters):
    """784-``code_size``-784."""


@dataclasses.dataclass(frozen=True)
class ConvHyperparameters(Hyperparameters):
    """Filters of the three encoder stages; the code is 4 x 4 x the last."""

    filters: tuple[Units, Units, Units] = (16, 8, 8)
    code_size: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "code_size", 16 * self.filters[-1])


_ENTRIES = (
    ModelSpec(
        name="simple",
        summary="784-32 relu-784 sigmoid, BCE",
        source=KERAS_BLOG,
        hyperparameters=SimpleHyperparameters,
        training=TrainingDefaults(epochs=50, batch_size=256),
        implementation="trainer.models.dense:Simple",
        parameters=50_992,
        max_mse=0.03,
    ),
    ModelSpec(
        name="conv",
        summary="C16-P-C8-P-C8-P, code 4x4x8, C8-U-C8-U-C16-U-C1 sigmoid, BCE",
        source=KERAS_BLOG,
        correction="Called better than the dense models for a loss of .094; theirs is lower.",
        hyperparameters=ConvHyperparameters,
        training=TrainingDefaults(epochs=12, batch_size=128, xla=False),
        implementation="trainer.models.conv:Conv",
        parameters=4_385,
        max_mse=0.035,
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
