"""Every model learns, and each does what is particular to it."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from trainer.models import CATALOGUE, build_model
from trainer.models import hyperparameters as hps
from trainer.models.catalogue import Ability, TrainingDefaults
from trainer.models.generative import digits_of_seeds, normal_of_seeds
from trainer.models.keras_api import keras
from trainer.models.layers import distort_images
from trainer.models.variational import Variational

# Test MSE after some seconds of training. The mean image has .0675, black .114.
REACHED = {"vae": 0.063, "lstm": 0.064, "aae": 0.06, "conv_vae": 0.058}
TYPICAL = 0.055

BUILT_FOR = {
    ability: [name for name, spec in CATALOGUE.items() if ability in spec.abilities]
    for ability in Ability
}


# These may look at labels, or at those that are left.
UNSUPERVISED = [n for n in CATALOGUE if not n.endswith("supervised_aae") and n != "stacked"]


@pytest.mark.parametrize("name", CATALOGUE)
def test_learns_what_a_broken_model_cannot(name: str, trained, digits) -> None:
    reconstruction = trained(name)(digits.test_images).numpy()
    error = np.mean((reconstruction - digits.test_images) ** 2)
    assert error < REACHED.get(name, TYPICAL)
    assert reconstruction.min() >= 0 and reconstruction.max() <= 1


@pytest.mark.parametrize("name", CATALOGUE)
def test_reconstruction_is_decode_of_encode_and_draws_nothing(name: str, trained, digits) -> None:
    model, images = trained(name), digits.test_images[:20]
    code = model.encode(images)
    if model.decoder_uses_labels:
        reconstruction, best = model.reconstruct_with_best_digit(images)
        decoded = model.decode(code, best)
    else:
        reconstruction, decoded = model(images), model.decode(code)
    np.testing.assert_allclose(decoded, reconstruction, atol=1e-6)
    np.testing.assert_allclose(model(images), reconstruction, atol=1e-6)


@pytest.mark.parametrize("name", CATALOGUE)
def test_no_image_at_all_is_an_empty_answer(name: str) -> None:
    model = build_model(name)
    images = tf.TensorSpec([None, 28, 28])
    encode = tf.function(model.encode, [images])
    reconstruct = tf.function(lambda images: model(images), [images])
    assert encode(tf.zeros((0, 28, 28))).shape == (0, model.hp.code_size)
    assert reconstruct(tf.zeros((0, 28, 28))).shape == (0, 28, 28)


@pytest.mark.parametrize("name", BUILT_FOR[Ability.GENERATE])
def test_an_image_depends_on_its_seed_alone(name: str, trained) -> None:
    model = trained(name)
    images = model.generate(tf.constant([7, 1, 7, 2], tf.int64)).numpy()
    np.testing.assert_allclose(images[0], images[2])
    np.testing.assert_allclose(images[3:], model.generate(tf.constant([2], tf.int64)), atol=1e-6)
    assert np.abs(images[0] - images[1]).max() > 0.01
    assert model.generate(tf.constant([], tf.int64)).shape == (0, 28, 28)


def test_prior_samples_have_the_prior_s_deviation() -> None:
    seeds = tf.range(2_000, dtype=tf.int64)
    codes = tf.function(normal_of_seeds)(seeds, 10, 2.0).numpy()
    assert codes.std() == pytest.approx(2.0, rel=0.02)
    assert codes.mean() == pytest.approx(0.0, abs=0.05)
    assert np.bincount(tf.function(digits_of_seeds)(seeds), minlength=10).min() > 150


def test_variational_codes_have_the_posterior_s_deviation() -> None:
    # exp(s/2), not exp(s), and noise of deviation 1: the bound hardly tells them apart.
    mean = tf.fill((5_000, 2), 3.0)
    log_variance = tf.fill((5_000, 2), np.float32(np.log(0.25)))
    codes = Variational.sample(mean, log_variance, tf.constant([1, 2], tf.int64)).numpy()
    assert codes.std() == pytest.approx(0.5, rel=0.03)
    assert codes.mean() == pytest.approx(3.0, abs=0.03)


@pytest.mark.parametrize("name", BUILT_FOR[Ability.DENOISE])
def test_noise_is_fresh_at_every_step_and_repeatable(name: str, digits) -> None:
    model = build_model(name)
    model.configure(TrainingDefaults(xla=False), total_steps=10)
    images = digits.images[:5]
    first = model.corrupt(images, model.step_seed()).numpy()
    again = model.corrupt(images, model.step_seed()).numpy()
    np.testing.assert_array_equal(first, again)
    model.optimizer.iterations.assign_add(1)
    ink = images > 0
    assert np.mean(model.corrupt(images, model.step_seed()).numpy()[ink] != first[ink]) > 0.3
    assert first.min() >= 0 and first.max() <= 1 and np.mean((first != images)[ink]) > 0.2


def test_masking_blackens_its_share_of_the_pixels() -> None:
    model = build_model("tied_denoising")
    white = tf.ones((200, 28, 28))
    kept = model.corrupt(white, tf.constant([1, 1], tf.int64)).numpy()
    assert set(np.unique(kept)) == {0.0, 1.0}
    assert 1 - kept.mean() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("name", BUILT_FOR[Ability.DENOISE])
def test_denoises(name: str, trained, digits) -> None:
    model, clean = trained(name), digits.test_images[:300]
    noisy = model.corrupt(clean, tf.constant([5, 5], tf.int64))
    before = np.mean((noisy - clean) ** 2)
    after = np.mean((model(noisy) - clean) ** 2)
    assert after < 0.75 * before


def test_tied_weights_are_one_matrix(trained) -> None:
    model = trained("tied_denoising")
    assert len(model.trainable_variables) == 3
    code = tf.one_hot([4], model.hp.code_size)
    pixels = tf.reshape(model.decode_output(code), (-1,)) - model.pixel_bias
    np.testing.assert_allclose(pixels, model.kernel[:, 4], atol=1e-6)


@pytest.mark.parametrize("name", UNSUPERVISED)
def test_unsupervised_models_are_blind_to_labels(name: str, digits) -> None:
    def weights_after(labels) -> np.ndarray:
        model = build_model(name, seed=5)
        model.configure(TrainingDefaults(xla=False), total_steps=1)
        model.train_step((tf.constant(digits.images[:10]), tf.constant(labels, tf.int64)))
        return np.concatenate([np.ravel(w) for w in model.get_weights()])

    np.testing.assert_array_equal(weights_after(digits.labels[:10]), weights_after([-1] * 10))


@pytest.mark.parametrize("name", BUILT_FOR[Ability.CLASSIFY])
def test_classifies_with_few_labels(name: str, trained, digits) -> None:
    probabilities = trained(name).classify_probabilities(digits.test_images).numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert np.mean(probabilities.argmax(axis=1) == digits.test_labels) > 0.75


@pytest.mark.parametrize("name", BUILT_FOR[Ability.CLASSIFY])
def test_without_any_known_label_nothing_is_learnt_from_labels(name: str, digits) -> None:
    """A masked label must not leak: with all masked, accuracy has nothing to count."""
    model = build_model(name)
    model.begin_phase(model.phases(1)[-1])
    model.configure(TrainingDefaults(xla=False), total_steps=1)
    images = tf.constant(digits.images[: 20 + model.labelled_batch_size])
    masked = model.loss_terms(images, tf.fill(images.shape[:1], tf.constant(-1, tf.int64)), True)
    assert float(tf.reduce_max(masked["accuracy"])) == 0
    if "classification" in masked:
        assert float(tf.reduce_max(masked["classification"])) == 0


def test_labels_in_front_of_the_appended_ones_are_not_looked_at(digits) -> None:
    model = build_model("semi_supervised_aae")
    model.configure(TrainingDefaults(xla=False), total_steps=1)
    appended = model.labelled_batch_size
    images, labels = digits.images[: 20 + appended], digits.labels[: 20 + appended].copy()
    seen = model.loss_terms(tf.constant(images), tf.constant(labels), True)["loss"]
    labels[:20] = -1
    np.testing.assert_array_equal(
        seen, model.loss_terms(tf.constant(images), tf.constant(labels), True)["loss"]
    )


@pytest.mark.slow
def test_supervised_code_leaves_the_digit_to_the_label(trained, digits) -> None:
    model = trained("supervised_aae")
    code = model.encode(digits.test_images[:1])
    drawn = [model.decode(code, tf.constant([d], tf.int64)).numpy() for d in range(10)]
    assert np.std(drawn, axis=0).mean() > 0.005


def test_sparse_code_is_smaller_than_simple_s(trained, digits) -> None:
    def mean_code(name: str) -> float:
        return float(np.abs(trained(name).encode(digits.test_images)).mean())

    assert mean_code("sparse") < 0.8 * mean_code("simple")


def test_stacked_trains_one_layer_at_a_time(digits, batches) -> None:
    model = build_model("stacked")
    phases = model.phases(7)
    assert [(p.name, p.epochs) for p in phases] == [
        ("pretrain 1", 5),
        ("pretrain 2", 5),
        ("pretrain 3", 5),
        ("fine-tune", 7),
        ("classify", 3),
    ]
    model.begin_phase(phases[1])
    model.configure(TrainingDefaults(xla=False), total_steps=2)
    before = [w.numpy() for w in model.trainable_variables]
    model.fit(batches(model, digits, 2), verbose=0)
    changed = {
        v.ref()
        for v, old in zip(model.trainable_variables, before)
        if not np.array_equal(v.numpy(), old)
    }
    expected = [model.encoder_layers[1], model.decoder_layers[1]]
    assert changed == {v.ref() for layer in expected for v in layer.trainable_variables}


def test_stacked_classifier_starts_from_the_encoder_and_leaves_it_alone(
    trained, digits, batches
) -> None:
    model = trained("stacked")
    rest = [v.numpy() for layer in model.encoder_layers for v in layer.trainable_variables]
    phase = model.phases(1)[-1]
    model.begin_phase(phase)
    for copy, layer in zip(model.classifier_layers, model.encoder_layers):
        np.testing.assert_array_equal(copy.kernel, layer.kernel)
    model.configure(TrainingDefaults(xla=False), total_steps=2)
    model.fit(batches(model, digits, 20), verbose=0)
    after = [v.numpy() for layer in model.encoder_layers for v in layer.trainable_variables]
    for old, new in zip(rest, after):
        np.testing.assert_array_equal(old, new)


def test_adversarial_steps_train_each_side_on_its_own_loss(digits) -> None:
    model = build_model("aae")
    model.configure(TrainingDefaults(xla=False), total_steps=1)
    theirs = {v.ref() for d in model.discriminators for v in d.trainable_variables}
    ours = {v.ref() for v in model.phase_variables()}
    assert ours.isdisjoint(theirs)
    assert len(ours) + len(theirs) == len(model.trainable_variables)
    model.train_step((tf.constant(digits.images[:10]), tf.fill((10,), tf.constant(-1, tf.int64))))
    assert int(model.optimizer.iterations) == int(model.discriminator_optimizer.iterations) == 1


def test_low_level_is_made_of_plain_variables() -> None:
    model = build_model("low_level", hps.LowLevelHyperparameters(initial_stddev=1.0))
    assert not list(model.layers)
    assert float(tf.math.reduce_std(model.hidden.weights)) == pytest.approx(1.0, rel=0.02)


def test_distortion_moves_the_ink_a_little_and_keeps_it() -> None:
    image = np.zeros((64, 28, 28), np.float32)
    image[:, 10:14, 12:16] = 1
    seed = tf.constant([1, 2], tf.int64)
    moved = distort_images(tf.constant(image), seed, 1.0).numpy()
    ink = moved.sum(axis=(1, 2))
    assert ink.min() > 9 and ink.max() < 27
    rows = (moved.sum(axis=2) @ np.arange(28)) / ink
    assert 0.5 < rows.std() < 2 and abs(rows.mean() - 11.5) < 0.7
    np.testing.assert_allclose(distort_images(tf.constant(image), seed, 1e-6), image, atol=1e-4)


def test_the_same_seed_trains_the_same_model(digits, fit) -> None:
    def weights(seed: int) -> np.ndarray:
        model = fit(build_model("vae", seed=seed), digits, 5)
        return np.concatenate([np.ravel(w) for w in model.get_weights()])

    first = weights(1)
    np.testing.assert_array_equal(first, weights(1))
    assert np.abs(first - weights(2)).max() > 0.01


@pytest.fixture
def precision(request):
    """Layers in the precision of this name, while a test runs."""
    keras.mixed_precision.set_global_policy(request.param)
    yield request.param
    keras.mixed_precision.set_global_policy("float32")


def small(name: str):
    """The model with layers that a CPU can train in float16, which it only emulates."""
    hyperparameters = CATALOGUE[name].hyperparameters
    if max(hyperparameters.model_dump().get("hidden") or [0]) > 256:
        hyperparameters = hyperparameters.replaced(hidden=(32,) * len(hyperparameters.hidden))
    return build_model(name, hyperparameters)


def train_briefly(model, digits, batches, steps: int) -> None:
    for phase in model.phases(1):
        model.begin_phase(phase)
        model.configure(TrainingDefaults(xla=False), total_steps=steps, steps_per_execution=steps)
        model.fit(batches(model, digits, steps), verbose=0)


@pytest.mark.parametrize("precision", ["mixed_float16"], indirect=True)
@pytest.mark.parametrize("name", ["low_level", "aae"])
def test_every_loss_is_scaled_in_float16(name: str, precision, digits, batches) -> None:
    model = small(name)
    train_briefly(model, digits, batches, 3)
    optimizers = [v for v in vars(model).values() if isinstance(v, keras.optimizers.Optimizer)]
    scaled = keras.mixed_precision.LossScaleOptimizer
    assert optimizers and all(isinstance(optimizer, scaled) for optimizer in optimizers)


@pytest.mark.e2e
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"], indirect=True)
@pytest.mark.parametrize("name", CATALOGUE)
def test_trains_in_mixed_precision(name: str, precision, digits, batches) -> None:
    model, images = small(name), digits.test_images[:100]
    before = np.mean((model(images) - images) ** 2)
    train_briefly(model, digits, batches, 10)
    reconstruction = model(images)
    assert reconstruction.dtype == tf.float32
    assert np.mean((reconstruction - images) ** 2) < before
    assert all(v.dtype == tf.float32 for v in model.trainable_variables)
