"""``mnist-ae models``."""

import json

from trainer.models.catalogue import CATALOGUE


def test_models_lists_the_whole_catalogue(invoke):
    listed = json.loads(invoke("models", "--json").stdout)
    assert [entry["name"] for entry in listed] == list(CATALOGUE)
    for entry in listed:
        assert {"name", "code_size", "abilities", "parameters", "source"} <= set(entry)
        assert {"summary", "paper", "hyperparameters", "training"} <= set(entry)
        assert entry["code_size"] > 0
    table = invoke("models").stdout
    for name in CATALOGUE:
        assert name in table
