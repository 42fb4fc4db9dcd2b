"""Sections of a report, where models and data are not as they should be."""

import numpy as np
import pytest

from components.image_index import anomalies
from components.report import sections
from components.report.blocks import Figure, Strips, Words
from components.report.material import Material
from components.report.sections.codes import code_shape
from components.report.sections.quality import corrupt_as_trained
from serving.client import Reconstruction


class Dead:
    """A model that has collapsed to black."""

    def reconstruct(self, images):
        black, errors = np.zeros(images.shape), np.square(images / 255.0).mean(axis=(1, 2))
        return Reconstruction(black, errors, np.zeros((len(images), 1)), errors > 0.3)


def material(count, code, labels=None):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
    columns = {
        "image": images,
        "label": np.full(count, -1) if labels is None else labels,
        "code": np.asarray(code, np.float32),
        "reconstruction_error": np.square(images / 255.0).mean(axis=(1, 2)),
        "anomaly_score": np.zeros(count),
    }
    losses = {"mse": 0.1, "bce": 0.5, "example_count": float(count)}
    kinds = {kind: {"auroc": 0.5, "aupr": 0.5} for kind in anomalies.KINDS}
    anomaly = {
        "against": "corruptions",
        "auroc": 0.5,
        "aupr": 0.5,
        "base_rate": 0.5,
        "normal": count,
        "by_kind": kinds,
    }
    metrics = {
        "overall": losses,
        "by_label": {},
        "pca_mse": 0.05,
        "pca_mse_by_label": {},
        "baseline": None,
        "baseline_by_label": None,
        "search": None,
        "classification": None,
        "anomaly": anomaly,
        "code": {"mean": 0.0, "stddev": 0.0, "active_units": 0},
    }
    summary = {
        "model": "dead",
        "dataset": {"train": count, "eval": count},
        "code_size": columns["code"].shape[1],
        "anomaly_threshold": 0.3,
        "metrics": metrics,
    }
    training = {
        "history": [{"loss": 0.7, "val_loss": 0.7}],
        "seconds": 1.0,
        "training_images": count,
        "validation_images": 1,
    }
    metadata = {"abilities": ["encode", "decode"], "hyperparameters": {}, "prior": None}
    return Material(summary, metadata, training, Dead(), columns, columns, {})


@pytest.mark.parametrize(
    "count, code",
    [(30, np.zeros((30, 8))), (30, np.ones((30, 2))), (3, np.eye(3)), (12, np.eye(12)[:, :1])],
)
def test_dead_models_and_few_images_have_a_page_too(count, code):
    found = sections.build(material(count, code))
    assert {"reconstructions", "errors", "codes", "search"} <= {section.id for section in found}
    for section in found:
        for block in section.blocks:
            if isinstance(block, (Figure, Strips)):
                assert block.png.startswith(b"\x89PNG")


def test_codes_that_are_all_the_same_are_said_to_be():
    (section,) = [s for s in sections.build(material(30, np.zeros((30, 8)))) if s.id == "codes"]
    words = [block.text for block in section.blocks if isinstance(block, Words)]
    assert any("All codes are the same" in text for text in words)


def test_corruption_is_that_of_the_training():
    images = np.full((50, 28, 28), 128, np.uint8)
    masked, how = corrupt_as_trained(images, {"masking": 0.3})
    assert set(np.unique(masked)) == {0, 128} and "30%" in how
    assert np.mean(masked == 0) == pytest.approx(0.3, abs=0.02)
    noisy, how = corrupt_as_trained(images, {"noise": 0.1})
    assert noisy.std() == pytest.approx(25.5, rel=0.05) and "0.1" in how


@pytest.mark.parametrize("size, shape", [(32, (4, 8)), (1_568, (32, 49)), (2, (1, 2)), (7, (1, 7))])
def test_codes_are_shown_as_nearly_square(size, shape):
    assert code_shape(size) == shape


def test_a_page_of_a_part_of_the_images_says_so():
    whole = material(30, np.eye(30))
    assert whole.sampled == ""
    whole.summary["dataset"] = {"train": 7_000_000, "eval": 30}
    (section,) = [s for s in sections.build(whole) if s.id == "reconstructions"]
    assert "30 of 7,000,000 train images, chosen at random" in section.lead
    assert "eval" not in whole.sampled
