import pytest
from tfx.types import standard_artifacts

from components import baseline


def model(artifact_id, servable="simple"):
    artifact = standard_artifacts.Model()
    artifact.id = artifact_id
    artifact.set_string_custom_property(baseline.SERVABLE_PROPERTY, servable)
    return artifact


def blessing(artifact_id, model_id, blessed=1):
    artifact = standard_artifacts.ModelBlessing()
    artifact.id = artifact_id
    artifact.set_int_custom_property("current_model_id", model_id)
    artifact.set_int_custom_property("blessed", blessed)
    return artifact


def resolve(models, blessings, candidate):
    found = baseline.LatestOtherBlessedModel().resolve_artifacts(
        None,
        {
            baseline.MODEL: models,
            baseline.BLESSING: blessings,
            baseline.CANDIDATE: [candidate] if candidate else [],
        },
    )
    return [m.id for m in found[baseline.MODEL]]


def test_the_first_model_has_no_baseline():
    assert resolve([model(1)], [], model(1)) == []


def test_a_candidate_is_never_its_own_baseline():
    assert resolve([model(1)], [blessing(2, 1)], model(1)) == []


def test_the_last_blessed_one_is_the_baseline():
    models = [model(1), model(3), model(5)]
    assert resolve(models, [blessing(2, 1), blessing(4, 3)], model(5)) == [3]


def test_what_was_blessed_last_counts_not_what_was_trained_last():
    models = [model(1), model(3), model(5)]
    blessings = [blessing(2, 1), blessing(4, 3), blessing(9, 1)]
    assert resolve(models, blessings, model(5)) == [1]


def test_a_refused_model_is_passed_over():
    models = [model(1), model(3), model(5)]
    assert resolve(models, [blessing(2, 1), blessing(4, 3, blessed=0)], model(5)) == [1]


def test_models_served_as_something_else_do_not_count():
    models = [model(1, "conv"), model(3)]
    assert resolve(models, [blessing(2, 1)], model(3)) == []


@pytest.mark.parametrize("models", [[], [model(1)]])
def test_without_a_candidate_there_is_none(models):
    assert resolve(models, [blessing(2, 1)], None) == []
