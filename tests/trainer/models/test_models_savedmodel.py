"""What a server loads gives what the model in memory gives.

TensorFlow Serving runs a SavedModel in a v1 Session; so does the fresh process
here, which knows nothing of Keras or of this project.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from trainer.models import CATALOGUE
from trainer.models.catalogue import Ability

# The last of each class: the tutorials come first and take longer.
FAMILIES = list({spec.implementation: name for name, spec in CATALOGUE.items()}.values())

SERVER = """
import sys
import numpy as np
import tensorflow as tf

for folder in sys.argv[1:]:
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], folder)
        inputs = np.load(folder + "/inputs.npz")
        outputs = {}
        for name, signature in meta.signature_def.items():
            if name.startswith("__"):
                continue
            feed = {info.name: inputs[key] for key, info in signature.inputs.items()}
            outputs[name] = session.run(signature.outputs["y"].name, feed)
        np.savez(folder + "/outputs.npz", **outputs)
assert "trainer" not in sys.modules
"""


def _signatures(model, abilities) -> dict[str, tf.types.experimental.ConcreteFunction]:
    images = tf.TensorSpec([None, 28, 28], tf.float32, name="images")
    code = tf.TensorSpec([None, model.hp.code_size], tf.float32, name="code")
    ints = tf.TensorSpec([None], tf.int64, name="ints")
    functions = {
        "reconstruct": (model, [images]),
        "encode": (model.encode, [images]),
        "decode": (model.decode, [code, ints] if model.decoder_uses_labels else [code]),
    }
    if Ability.GENERATE in abilities:
        functions["generate"] = (model.generate, [ints])
    if Ability.CLASSIFY in abilities:
        functions["classify"] = (model.classify_probabilities, [images])
    return {
        name: tf.function(_named(f), specs).get_concrete_function()
        for name, (f, specs) in functions.items()
    }


def _named(f):
    return lambda *args: {"y": f(*args)}


@pytest.fixture(scope="module")
def served(request, trained, digits, tmp_path_factory) -> dict[str, tuple[dict, dict]]:
    """For each family that is asked for the outputs in memory and in the fresh process."""
    asked = [i.callspec for i in request.session.items if i.path == request.path]
    families = [name for name in FAMILIES if name in {spec.params["name"] for spec in asked}]
    root = tmp_path_factory.mktemp("served")
    expected = {}
    for name in families:
        model, folder = trained(name), str(root / name)
        module = tf.Module()
        module.model_variables = model.variables
        signatures = _signatures(model, CATALOGUE[name].abilities)
        tf.saved_model.save(module, folder, signatures=signatures)
        images = digits.test_images[:6]
        inputs = {
            "images": images,
            "code": model.encode(images).numpy(),
            "ints": np.arange(6, dtype=np.int64),
        }
        np.savez(folder + "/inputs.npz", **inputs)
        expected[name] = {
            key: function(**{k: tf.constant(inputs[k]) for k in _names(function)})["y"].numpy()
            for key, function in signatures.items()
        }
    folders = [str(root / name) for name in families]
    subprocess.run([sys.executable, "-c", SERVER, *folders], check=True, cwd=root)
    return {name: (expected[name], np.load(root / name / "outputs.npz")) for name in families}


def _names(function) -> list[str]:
    return list(function.structured_input_signature[1]) or [
        spec.name for spec in function.structured_input_signature[0]
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_served_numbers_are_those_in_memory(name: str, served) -> None:
    in_memory, in_session = served[name]
    assert set(in_memory) == set(in_session.files)
    for signature, value in in_memory.items():
        np.testing.assert_allclose(in_session[signature], value, atol=2e-5, err_msg=signature)


@pytest.mark.parametrize("name", FAMILIES)
def test_serving_an_image_again_gives_the_same(name: str, served) -> None:
    """No noise survives in the export: the session's run is another draw, if any."""
    in_memory, in_session = served[name]
    assert np.abs(in_session["reconstruct"] - in_memory["reconstruct"]).max() < 2e-5
    assert in_session["reconstruct"].std() > 0.05
