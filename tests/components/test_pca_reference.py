import numpy as np
import pytest
from sklearn.decomposition import PCA

from components import pca_reference


@pytest.fixture
def from_digits(digits, monkeypatch):
    """Feeds the reference from arrays instead of TFRecords, in small batches."""

    def batches(split):
        images, labels = digits[split]
        flat = images.reshape(-1, 784).astype(np.float32) / 255
        for start in range(0, len(flat), 700):
            yield flat[start : start + 700], labels[start : start + 700].astype(np.int64)

    monkeypatch.setattr(pca_reference, "batches", batches)
    return digits


def test_it_agrees_with_scikit_learn(from_digits):
    train, test = (from_digits[s][0].reshape(-1, 784) / 255.0 for s in ("train", "eval"))
    mean, components = pca_reference.fit_pca("train")
    mse, by_label = pca_reference.error_by_size("eval", mean, components)
    for size in (2, 32):
        reference = PCA(size, svd_solver="full").fit(train)
        restored = reference.inverse_transform(reference.transform(test))
        errors = ((restored - test) ** 2).mean(axis=1)
        assert mse[size] == pytest.approx(errors.mean(), rel=1e-3)
        eights = from_digits["eval"][1] == 8
        assert by_label[8, size] == pytest.approx(errors[eights].mean(), rel=1e-3)


def test_the_error_falls_with_the_size_to_nothing(from_digits):
    mse, _ = pca_reference.error_by_size("eval", *pca_reference.fit_pca("train"))
    assert np.all(np.diff(mse) <= 1e-9)
    assert mse[784] < 1e-6 < mse[32] < mse[0]
