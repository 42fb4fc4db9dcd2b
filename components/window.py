"""Which spans a training sees, and which model it starts from.

TFX's RollingRange takes the last spans there are; here a span may have been set
aside, or may have made the model worse, so the strategies read the verdicts,
which are artifacts too.
"""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.common import resolver
from tfx.types import standard_artifacts

from components import baseline
from components.drift.component import DriftReportArtifact
from components.span_gate.component import SpanReportArtifact

EXAMPLES = "examples"
DRIFT = "drift"
REPORTS = "reports"
CURRENT = "current"
WITHOUT = "without"

# Custom properties. TFX's driver sets the first two on Examples.
SPAN = "span"
VERSION = "version"
ROLE = "role"
ROLE_SPAN = "span"
# On a model: the span that it was trained for, as "N.V".
SPAN_KEY = "span_key"
# Where the span is only known in the run.
LATEST = "latest"

_BLESSED = "blessed"
_GATED = "gated"
_WITHDRAWN = "withdrawn"
_MODEL_ID = "current_model_id"


def _int(artifact: types.Artifact, name: str, default: int = 0) -> int:
    return artifact.get_int_custom_property(name) if artifact.has_custom_property(name) else default


def _text(artifact: types.Artifact, name: str) -> str:
    return artifact.get_string_custom_property(name) if artifact.has_custom_property(name) else ""


def _key(artifact: types.Artifact) -> tuple[int, int]:
    return _int(artifact, SPAN, -1), _int(artifact, VERSION)


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

    def resolve_artifacts(
        self, store, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]] | None:
        """See the base class."""
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
        resolved = {
            EXAMPLES: window,
            # What decided, for the lineage.
            DRIFT: [report for key, report in verdicts.items() if key in keys],
            REPORTS: [report for report in input_dict[REPORTS] if _key(report) in keys],
        }
        return {**{key: input_dict[key] for key in (CURRENT, WITHOUT) if key in input_dict},
                **resolved}  # fmt: skip


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

    def resolve_artifacts(
        self, store, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]] | None:
        """See the base class."""
        del store
        models = {
            model.id: model
            for model in input_dict[baseline.MODEL]
            if _text(model, baseline.SERVABLE_PROPERTY) == self._servable
            and (self._span_key == LATEST or _text(model, SPAN_KEY) != self._span_key)
        }
        for blessing in sorted(input_dict[baseline.BLESSING], key=lambda b: b.id, reverse=True):
            model = models.get(_int(blessing, _MODEL_ID, -1))
            if model is None or _int(blessing, _BLESSED) != 1 or _int(blessing, _WITHDRAWN):
                continue
            # An Evaluator's own blessing counts where nothing but it was asked.
            if _int(blessing, _GATED) or not _text(model, SPAN_KEY):
                return {baseline.MODEL: [model], baseline.BLESSING: [blessing]}
        return {baseline.MODEL: [], baseline.BLESSING: []}


def window_resolver(
    size: int,
    *,
    current: types.BaseChannel | None = None,
    without: types.BaseChannel | None = None,
) -> resolver.Resolver:
    """The node that finds a window; see :class:`RollingWindow`."""
    channels = {
        EXAMPLES: types.Channel(type=standard_artifacts.Examples),
        DRIFT: types.Channel(type=DriftReportArtifact),
        REPORTS: types.Channel(type=SpanReportArtifact),
    }
    for key, channel in ((CURRENT, current), (WITHOUT, without)):
        if channel is not None:
            channels[key] = channel
    return resolver.Resolver(strategy_class=RollingWindow, config={"size": size}, **channels)


def serving_model_resolver(servable: str, span_key: str) -> resolver.Resolver:
    """The node that finds the serving model; see :class:`ServingModel`."""
    return resolver.Resolver(
        strategy_class=ServingModel,
        config={"servable": servable, "span_key": span_key},
        **{
            baseline.MODEL: types.Channel(type=standard_artifacts.Model),
            baseline.BLESSING: types.Channel(type=standard_artifacts.ModelBlessing),
        },
    )
