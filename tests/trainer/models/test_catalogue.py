"""The catalogue as data: complete, cheap to read, true to what is built."""

from __future__ import annotations

import subprocess
import sys

import pydantic
import pytest

from trainer.models import CATALOGUE, UnknownModelError, build_model, get_model_spec
from trainer.models import hyperparameters as hps
from trainer.models.catalogue import Ability, TrainingDefaults

TUTORIALS = (
    "low_level sequential fully_connected conv_mse conv_denoising conv_vae mlp_2d aae "
    "supervised_aae semi_supervised_aae simple sparse deep conv denoising lstm vae "
    "tied_denoising stacked"
).split()


def test_holds_the_nineteen_models_of_the_tutorials_and_our_own() -> None:
    assert set(CATALOGUE) == {*TUTORIALS, "best"}


def test_listing_the_models_imports_no_tensorflow() -> None:
    code = (
        "import sys; from trainer.models import CATALOGUE; "
        "[(s.code_size, s.abilities, s.parameters, s.source) for s in CATALOGUE.values()]; "
        "sys.exit('tensorflow' in sys.modules or 'tf_keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", CATALOGUE)
def test_declared_facts_are_those_of_the_model_built(name: str) -> None:
    spec = CATALOGUE[name]
    model = build_model(name)
    assert model.parameter_count() == spec.parameters
    assert model.encode(_black()).shape == (1, spec.code_size)
    assert (Ability.GENERATE in spec.abilities) == hasattr(model, "generate")
    assert (Ability.CLASSIFY in spec.abilities) == hasattr(model, "classify_probabilities")
    assert (Ability.DENOISE in spec.abilities) == hasattr(model, "corrupt")
    assert spec.source


def _black():
    import tensorflow as tf

    return tf.zeros((1, 28, 28))


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownModelError, match="did you mean 'simple'"):
        get_model_spec("simpel")


def test_hyperparameters_of_another_model_are_refused() -> None:
    with pytest.raises(TypeError, match="takes VaeHyperparameters"):
        build_model("vae", hps.LstmHyperparameters())


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: hps.DenseHyperparameters(code_size=785), "code_size"),
        (lambda: hps.ConvHyperparameters(filters=(16, 8, 64)), "code_size"),
        (lambda: hps.DenseHyperparameters(output="linear", loss="bce"), "loss"),
        (lambda: hps.StackedHyperparameters(classifier_epochs=0), "labels"),
    ],
)
def test_rules_that_join_fields_name_the_field(make, field: str) -> None:
    with pytest.raises(pydantic.ValidationError) as refused:
        make()
    (error,) = refused.value.errors()
    assert str(error["ctx"]["error"]).startswith(f"{field}:")


def test_a_code_larger_than_the_image_is_fine_where_noise_must_be_undone() -> None:
    assert get_model_spec("denoising").code_size == 49 * 32
    assert hps.TiedDenoisingHyperparameters(code_size=1_000).code_size == 1_000


def test_without_labels_stacked_cannot_classify() -> None:
    spec = get_model_spec("stacked")
    assert Ability.CLASSIFY in spec.abilities_of(spec.hyperparameters)
    assert Ability.CLASSIFY not in spec.abilities_of(hps.StackedHyperparameters(labels=0))


@pytest.mark.parametrize("name", CATALOGUE)
def test_search_space_holds_valid_hyperparameters(name: str) -> None:
    spec = CATALOGUE[name]
    for field, values in spec.search_space.items():
        for value in values:
            changed = spec.hyperparameters.replaced(**{field: value})
            assert getattr(changed, field) == value


@pytest.mark.parametrize("images, batch", [(57_000, 256), (1_000, 100), (100, 16), (7, 7)])
def test_few_images_come_in_smaller_batches_so_that_epochs_have_their_steps(images, batch):
    training = TrainingDefaults(epochs=10, batch_size=256, min_steps=100)
    assert training.batch_for(images) == batch
    assert TrainingDefaults(epochs=10, batch_size=256).batch_for(images) == min(256, images)
