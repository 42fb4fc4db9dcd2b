"""What is strange by code, by error or by sharpness scores higher than what is usual."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage, stats

from trainer.anomaly_score import AnomalyScore, Density, upper_limit

RNG = np.random.default_rng(0)


def surprise(density, rows):
    return density.surprise(tf.constant(rows, tf.float32)).numpy()


def test_one_component_is_a_normal_distribution():
    deviations = np.array([1.0, 5.0, 0.2])
    samples = RNG.normal(size=(20_000, 3)) * deviations + 3
    rows = RNG.normal(size=(50, 3)) * deviations + 3
    found = surprise(Density(samples, components=1, seed=0), rows)
    expected = -stats.multivariate_normal(samples.mean(0), np.cov(samples.T)).logpdf(rows)
    np.testing.assert_allclose(found - found[0], expected - expected[0], rtol=0.1, atol=0.1)


def test_a_mixture_is_surprised_between_its_components():
    samples = np.concatenate([RNG.normal(-10, 1, (500, 2)), RNG.normal(10, 1, (500, 2))])
    density = Density(samples, components=2, seed=0)
    between, left, right = surprise(density, [[0, 0], [-10, -10], [10, 10]])
    assert between > max(left, right) + 10


@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize("size", [3, 100])
def test_few_images_and_dead_units_are_a_density_all_the_same(count, size):
    samples = np.pad(RNG.normal(size=(count, size)), ((0, 0), (0, 5)))
    density = Density(samples, components=1, seed=0)
    assert np.all(np.isfinite(surprise(density, samples)))
    assert surprise(density, samples + 50)[0] > surprise(density, samples).max()


def test_codes_that_are_all_the_same_are_a_density_all_the_same():
    assert np.all(np.isfinite(surprise(Density(np.ones((30, 4)), components=1, seed=0), np.eye(4))))


@pytest.fixture(scope="module")
def usual():
    """Squares of ink of random height and place, their codes and errors, and the score by them."""
    images = np.zeros((1_000, 28, 28), np.float32)
    for image, (y, x, height) in zip(images, RNG.integers(2, 6, (1_000, 3))):
        image[y : y + 10 + height, x : x + 8] = 1
    codes = RNG.normal(size=(1_000, 6)).astype(np.float32)
    errors = np.exp(RNG.normal(-4, 0.3, 1_000)).astype(np.float32)
    score = AnomalyScore(codes, AnomalyScore.look(images, errors).numpy(), seed=0)
    return images, codes, errors, score


@pytest.mark.parametrize("what", ["code", "larger error", "smaller error", "blur"])
def test_what_is_strange_scores_above_nearly_all_that_is_usual(usual, what):
    images, codes, errors, score = usual
    bound = np.quantile(score(images, codes, errors), 0.99)
    if what == "code":
        codes = codes * 4
    elif what == "blur":
        images = ndimage.gaussian_filter(images, (0, 1, 1))
    else:
        errors = errors * (20 if what == "larger error" else 0.05)
    assert np.mean(score(images, codes, errors) > bound) > 0.9


def test_the_stated_rate_of_alarms_holds_for_images_that_were_not_looked_at():
    """In about nine samples of ten; a quantile of the sample's own would in five."""
    samples = np.random.default_rng(1).normal(size=(400, 2_000))
    limits = [upper_limit(sample, 0.99) for sample in samples]
    rates = stats.norm.sf(limits)
    assert 0.84 < np.mean(rates <= 0.01) < 0.97
    assert 0.006 < np.mean(rates) < 0.009


@pytest.mark.parametrize("quantile", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_a_limit_is_one_of_the_scores(count, quantile):
    scores = RNG.normal(size=count)
    assert upper_limit(scores, quantile) in scores
    assert upper_limit(scores, 1.0) == scores.max()
