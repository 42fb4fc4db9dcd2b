import numpy as np
import pytest
import tensorflow as tf

from trainer import warm_start
from trainer.models import build_model, get_model_spec


@pytest.mark.parametrize("name", ["simple", "conv", "stacked"])
def test_every_variable_comes_back(tmp_path, name):
    trained = build_model(name, seed=1)
    warm_start.save(trained, name, str(tmp_path / "model" / "Format-Serving"))
    fresh = build_model(name, seed=2)
    restored = warm_start.restore(fresh, name, str(tmp_path / "model" / "Format-Serving"))
    assert restored == len(trained.weights) == len(fresh.weights)
    for before, after in zip(trained.get_weights(), fresh.get_weights()):
        np.testing.assert_array_equal(before, after)
    images = tf.random.stateless_uniform((3, 28, 28), (0, 0))
    np.testing.assert_array_equal(trained(images), fresh(images))


def test_another_architecture_is_refused_and_nothing_is_changed(tmp_path):
    folder = str(tmp_path / "model" / "Format-Serving")
    warm_start.save(build_model("simple", seed=1), "simple", folder)
    spec = get_model_spec("simple")
    other = build_model("simple", spec.hyperparameters(code_size=16), seed=2)
    before = other.get_weights()
    with pytest.raises(warm_start.WarmStartError, match="--cold"):
        warm_start.restore(other, "simple", folder)
    for kept, now in zip(before, other.get_weights()):
        np.testing.assert_array_equal(kept, now)
    with pytest.raises(warm_start.WarmStartError, match="'simple', not 'conv'"):
        warm_start.restore(build_model("conv"), "conv", folder)
    with pytest.raises(warm_start.WarmStartError, match="missing"):
        warm_start.restore(other, "simple", str(tmp_path / "nowhere" / "Format-Serving"))
