"""Which artifacts of earlier runs a run takes up: the baseline, the window, the serving model.

TFX's strategies take the last there is. Here models of different kinds share a
store, and a span may have been set aside, or may have made the model worse, so
the strategies read properties and verdicts, which are artifacts too.
"""

from __future__ import annotations

from collections.abc import Callable

from tfx import types
from tfx.dsl.components.common import resolver

from components.span_gate.component import GATED_PROPERTY

# Channels.
MODEL = "model"
BLESSING = "model_blessing"
CANDIDATE = "candidate"
EXAMPLES = "examples"
DRIFT = "drift"
REPORTS = "reports"
CURRENT = "current"
WITHOUT = "without"

# Custom property of Model and ModelBlessing artifacts: what they are served as.
SERVABLE_PROPERTY = "servable"
# Custom properties of Examples. TFX's driver sets the first two.
SPAN = "span"
VERSION = "version"
ROLE = "role"
ROLE_SPAN = "span"
# Custom property of a model: the span that it was trained for, as "N.V".
SPAN_KEY = "span_key"
# Where the span is only known in the run.
LATEST = "latest"

# Custom properties of a blessing, as the Evaluator sets them.
_BLESSED = "blessed"
_MODEL_ID = "current_model_id"
# On the blessing of a model that was taken back after its push.
_WITHDRAWN = "withdrawn"

Artifacts = dict[str, list[types.Artifact]]


def _key(artifact: types.Artifact) -> tuple[int, int]:
    """Span and version."""
    return artifact.get_int_custom_property(SPAN), artifact.get_int_custom_property(VERSION)


def _newest_by_key(artifacts: list[types.Artifact]) -> dict[tuple[int, int], types.Artifact]:
    return {_key(artifact): artifact for artifact in sorted(artifacts, key=lambda a: a.id)}


def _last_blessed(
    input_dict: Artifacts, servable: str, counts: Callable[[types.Artifact, types.Artifact], bool]
) -> Artifacts:
    """The servable's model with the newest blessing that ``counts`` for it, or none."""
    models = {
        model.id: model
        for model in input_dict[MODEL]
        if model.get_string_custom_property(SERVABLE_PROPERTY) == servable
    }
    for blessing in sorted(input_dict[BLESSING], key=lambda a: a.id, reverse=True):
        model = models.get(blessing.get_int_custom_property(_MODEL_ID))
        blessed = blessing.get_int_custom_property(_BLESSED) == 1
        if model is not None and blessed and counts(model, blessing):
            return {MODEL: [model], BLESSING: [blessing]}
    return {MODEL: [], BLESSING: []}


class LatestOtherBlessedModel(resolver.ResolverStrategy):
    """The last blessed model of the candidate's servable that is not the candidate.

    TFX's LatestBlessedModelStrategy takes the last of the whole pipeline: after
    a run it finds the candidate itself, so that a repeated run is never cached,
    and it would compare autoencoders of different kinds. Inputs are ``model``,
    ``model_blessing`` (all there are) and ``candidate`` (the one of this run);
    the first two come out with one artifact each, or with none.
    """

    def resolve_artifacts(self, store, input_dict: Artifacts) -> Artifacts | None:
        """The candidate, and perhaps its baseline with its blessing."""
        del store
        candidates = input_dict[CANDIDATE]
        if not candidates:
            return {MODEL: [], BLESSING: [], CANDIDATE: []}
        [candidate] = candidates
        servable = candidate.get_string_custom_property(SERVABLE_PROPERTY)
        found = _last_blessed(input_dict, servable, lambda model, _: model.id != candidate.id)
        return {**found, CANDIDATE: candidates}


class RollingWindow(resolver.ResolverStrategy):
    """The examples of the last spans that were let in, in numeric order.

    Inputs are ``examples``, ``drift`` and ``reports``, all there are, and
    perhaps ``current``, the DriftReport of this run, which orders the node, or
    ``without``, Examples whose spans are left out, whatever their version.
    ``examples`` comes out with one artifact a span: of its newest version that
    was let in. A span that was found harmful is left out, unless a person has
    let it in since.
    """

    def __init__(self, size: int):
        """Makes the strategy for windows of ``size`` spans."""
        self._size = size

    def resolve_artifacts(self, store, input_dict: Artifacts) -> Artifacts | None:
        """The window, and the verdicts that decided."""
        del store
        verdicts = _newest_by_key(input_dict[DRIFT])
        reports = _newest_by_key(input_dict[REPORTS])
        without = {_key(examples)[0] for examples in input_dict.get(WITHOUT, [])}

        def let_in(examples: types.Artifact) -> bool:
            key = _key(examples)
            verdict, report = verdicts.get(key), reports.get(key)
            if verdict is None or verdict.get_string_custom_property("verdict") != "train":
                return False
            if report is None or not report.get_int_custom_property("harmful"):
                return True
            # A person may have let it in since then.
            return report.id < verdict.id

        chosen: dict[int, types.Artifact] = {}
        for examples in sorted(input_dict[EXAMPLES], key=lambda a: (_key(a), a.id)):
            span = _key(examples)[0]
            of_span = examples.get_string_custom_property(ROLE) == ROLE_SPAN
            if of_span and span not in without and let_in(examples):
                chosen[span] = examples
        window = [chosen[span] for span in sorted(chosen)[-self._size :]]
        keys = {_key(examples) for examples in window}
        given = {name: input_dict[name] for name in (CURRENT, WITHOUT) if name in input_dict}
        return {
            **given,
            EXAMPLES: window,
            # What decided, for the lineage.
            DRIFT: [report for key, report in verdicts.items() if key in keys],
            REPORTS: [report for report in input_dict[REPORTS] if _key(report) in keys],
        }


class ServingModel(resolver.ResolverStrategy):
    """The last model of a servable that passed every gate, or none.

    A model that was trained for the span at hand does not count, so that a run
    that was killed after its blessing is repeated from the same start; nor does
    one that was withdrawn after its push.
    """

    def __init__(self, servable: str, span_key: str):
        """Makes the strategy for a servable and a span "N.V"; :data:`LATEST` leaves out none."""
        self._servable = servable
        self._span_key = span_key

    def resolve_artifacts(self, store, input_dict: Artifacts) -> Artifacts | None:
        """The model with its blessing, or nothing."""
        del store

        def counts(model: types.Artifact, blessing: types.Artifact) -> bool:
            span_key = model.get_string_custom_property(SPAN_KEY)
            if self._span_key != LATEST and self._span_key == span_key:
                return False
            # An Evaluator's own blessing counts where nothing but it was asked.
            gated = not span_key or blessing.get_int_custom_property(GATED_PROPERTY)
            return bool(gated) and not blessing.get_int_custom_property(_WITHDRAWN)

        return _last_blessed(input_dict, self._servable, counts)
