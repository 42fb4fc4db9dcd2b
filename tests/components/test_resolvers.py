import pytest
from tfx.types import standard_artifacts

from components import resolvers
from components.drift.component import DriftReportArtifact
from components.span_gate.component import SpanReportArtifact


class Store:
    """Makes artifacts with growing identifiers, as ML Metadata does."""

    def __init__(self):
        self.examples, self.drift, self.reports, self.models, self.blessings = [], [], [], [], []
        self._count = 0

    def _make(self, kind, **properties):
        self._count += 1
        artifact = kind()
        artifact.id = self._count
        for name, value in properties.items():
            setter = artifact.set_int_custom_property
            if isinstance(value, str):
                setter = artifact.set_string_custom_property
            setter(name, value)
        return artifact

    def span(self, span, version=1, verdict="train", accepted=0, role="span"):
        values = {"span": span, "version": version}
        self.examples.append(self._make(standard_artifacts.Examples, role=role, **values))
        self.judge(span, version, verdict, accepted)
        return self.examples[-1]

    def judge(self, span, version=1, verdict="train", accepted=0):
        values = {"span": span, "version": version, "verdict": verdict, "accepted": accepted}
        self.drift.append(self._make(DriftReportArtifact, **values))

    def report(self, span, version=1, harmful=0):
        values = {"span": span, "version": version, "harmful": harmful}
        self.reports.append(self._make(SpanReportArtifact, **values))

    def window(self, size, without=-1):
        inputs = {"examples": self.examples[::-1], "drift": self.drift, "reports": self.reports}
        if without >= 0:
            inputs["without"] = [
                a for a in self.examples if a.get_int_custom_property("span") == without
            ]
        found = resolvers.RollingWindow(size).resolve_artifacts(None, inputs)
        assert set(found) == set(inputs)
        return [
            (a.get_int_custom_property("span"), a.get_int_custom_property("version"))
            for a in found["examples"]
        ]

    def model(self, span_key, servable="simple", blessed=1, gated=1, withdrawn=0):
        properties = {"servable": servable}
        if span_key:
            properties["span_key"] = span_key
        model = self._make(standard_artifacts.Model, **properties)
        self.models.append(model)
        values = {"blessed": blessed, "current_model_id": model.id, "withdrawn": withdrawn}
        if gated:
            values["gated"] = 1
        self.blessings.append(self._make(standard_artifacts.ModelBlessing, **values))
        return model

    def serving(self, span_key, servable="simple"):
        inputs = {"model": self.models, "model_blessing": self.blessings}
        found = resolvers.ServingModel(servable, span_key).resolve_artifacts(None, inputs)
        return found["model"][0].id if found["model"] else None


@pytest.fixture
def store():
    return Store()


def test_the_last_spans_by_number_not_by_name_or_arrival(store):
    for span in (9, 10, 2, 100, 11):
        store.span(span)
    assert store.window(3) == [(10, 1), (11, 1), (100, 1)]
    assert store.window(3, without=100) == [(9, 1), (10, 1), (11, 1)]
    assert store.window(10) == [(2, 1), (9, 1), (10, 1), (11, 1), (100, 1)]


def test_only_what_was_let_in_counts(store):
    store.span(1)
    store.span(2, verdict="stop")
    store.span(3, verdict="skip")
    store.span(4)
    store.examples.append(store._make(standard_artifacts.Examples, role="span", span=5, version=1))
    store.span(0, role="golden")
    assert store.window(9) == [(1, 1), (4, 1)]
    store.judge(2, verdict="train", accepted=1)
    assert store.window(9) == [(1, 1), (2, 1), (4, 1)]


def test_a_correction_takes_the_place_of_what_it_corrects(store):
    store.span(1, 1)
    store.span(1, 10)
    store.span(1, 9)
    assert store.window(9) == [(1, 10)]
    store.span(1, 11, verdict="stop")
    assert store.window(9) == [(1, 10)]


def test_what_made_the_model_worse_is_left_out_until_it_is_let_in(store):
    store.span(1)
    store.report(1)
    store.span(2)
    store.judge(2, accepted=1)
    store.report(2, harmful=1)
    assert store.window(9) == [(1, 1)]
    store.judge(2, accepted=1)
    assert store.window(9) == [(1, 1), (2, 1)]


def test_the_newest_ingestion_of_a_span_is_taken(store):
    store.span(1)
    newer = store.span(1)
    inputs = {"examples": store.examples, "drift": store.drift, "reports": []}
    found = resolvers.RollingWindow(3).resolve_artifacts(None, inputs)
    assert [a.id for a in found["examples"]] == [newer.id]


def test_the_serving_model_passed_every_gate(store):
    assert store.serving("1.1") is None
    plain = store.model("", gated=0)
    assert store.serving("1.1") == plain.id
    first = store.model("1.1")
    store.model("2.1", blessed=0)
    store.model("3.1", servable="other")
    # The Evaluator's own blessing of a continuous run is not enough.
    store.model("3.1", gated=0)
    assert store.serving("4.1") == first.id
    newest = store.model("4.1")
    assert store.serving("5.1") == newest.id
    # The span at hand, again after a kill: from the same start.
    assert store.serving("4.1") == first.id
    store.model("5.1", withdrawn=1)
    assert store.serving("6.1") == newest.id


def model(artifact_id, servable="simple"):
    artifact = standard_artifacts.Model()
    artifact.id = artifact_id
    artifact.set_string_custom_property(resolvers.SERVABLE_PROPERTY, servable)
    return artifact


def blessing(artifact_id, model_id, blessed=1):
    artifact = standard_artifacts.ModelBlessing()
    artifact.id = artifact_id
    artifact.set_int_custom_property("current_model_id", model_id)
    artifact.set_int_custom_property("blessed", blessed)
    return artifact


def resolve(models, blessings, candidate):
    found = resolvers.LatestOtherBlessedModel().resolve_artifacts(
        None,
        {
            resolvers.MODEL: models,
            resolvers.BLESSING: blessings,
            resolvers.CANDIDATE: [candidate] if candidate else [],
        },
    )
    return [m.id for m in found[resolvers.MODEL]]


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
