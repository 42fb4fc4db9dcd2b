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


def _int(artifact: types.Artifact, name: str, default: int = 0) -> int:
    return artifact.get_int_custom_property(name) if artifact.has_custom_property(name) else default


def _text(artifact: types.Artifact, name: str) -> str:
    return artifact.get_string_custom_property(name) if artifact.has_custom_property(name) else ""


def _key(artifact: types.Artifact) -> tuple[int, int]:
    """Span and version."""
    return _int(artifact, SPAN, -1), _int(artifact, VERSION)


def _last_blessed(
    input_dict: Artifacts, servable: str, counts: Callable[[types.Artifact, types.Artifact], bool]
) -> Artifacts:
    """The servable's model with the newest blessing that ``counts`` for it, or none."""
    models = {m.id: m for m in input_dict[MODEL] if _text(m, SERVABLE_PROPERTY) == servable}
    for blessing in sorted(input_dict[BLESSING], key=lambda a: a.id, reverse=True):
        model = models.get(_int(blessing, _MODEL_ID, -1))
        if model is not None and _int(blessing, _BLESSED) == 1 and counts(model, blessing):
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
        servable = _text(candidate, SERVABLE_PROPERTY)
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
        verdicts: dict[tuple[int, int], types.Artifact] = {}
        for report in sorted(input_dict[DRIFT], key=lambda a: a.id):
            verdicts[_key(report)] = report
        harmful = {}
        for report in sorted(input_dict[REPORTS], key=lambda a: a.id):
            harmful[_key(report)] = report.id if _int(report, "harmful") else -1
        without = {_key(examples)[0] for examples in input_dict.get(WITHOUT, [])}
        chosen: dict[int, types.Artifact] = {}
        for examples in sorted(input_dict[EXAMPLES], key=lambda a: (_key(a), a.id)):
            span, _ = key = _key(examples)
            verdict = verdicts.get(key)
            if _text(examples, ROLE) != ROLE_SPAN or span in without or verdict is None:
                continue
            if _text(verdict, "verdict") != "train":
                continue
            # Let in since then by a person, it is let in.
            if verdict.id < harmful.get(key, -1):
                continue
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
        """Makes the strategy.

        Args:
          servable: What the models are served as.
          span_key: The span at hand, as "N.V", or :data:`LATEST`, with which
            no model is left out.
        """
        self._servable = servable
        self._span_key = span_key

    def resolve_artifacts(self, store, input_dict: Artifacts) -> Artifacts | None:
        """The model with its blessing, or nothing."""
        del store

        def counts(model: types.Artifact, blessing: types.Artifact) -> bool:
            span_key = _text(model, SPAN_KEY)
            if self._span_key != LATEST and self._span_key == span_key:
                return False
            # An Evaluator's own blessing counts where nothing but it was asked.
            gated = _int(blessing, GATED_PROPERTY) or not span_key
            return bool(gated) and not _int(blessing, _WITHDRAWN)

        return _last_blessed(input_dict, self._servable, counts)
