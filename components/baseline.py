"""Which blessed model a candidate has to measure up to."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.common import resolver
from tfx.types import standard_artifacts

# Custom property of Model and ModelBlessing artifacts: what they are served as.
SERVABLE_PROPERTY = "servable"

_CURRENT_MODEL_ID = "current_model_id"
_BLESSED = "blessed"

MODEL = "model"
BLESSING = "model_blessing"
CANDIDATE = "candidate"


class LatestOtherBlessedModel(resolver.ResolverStrategy):
    """The last blessed model of the candidate's servable that is not the candidate.

    TFX's LatestBlessedModelStrategy takes the last of the whole pipeline: after
    a run it finds the candidate itself, so that a repeated run is never cached,
    and it would compare autoencoders of different kinds. Inputs are ``model``,
    ``model_blessing`` (all there are) and ``candidate`` (the one of this run);
    the first two come out with one artifact each, or with none.
    """

    def resolve_artifacts(
        self, store, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]] | None:
        """See the base class."""
        del store
        candidates = input_dict[CANDIDATE]
        none = {MODEL: [], BLESSING: [], CANDIDATE: candidates}
        if not candidates:
            return none
        candidate = candidates[0]
        servable = candidate.get_string_custom_property(SERVABLE_PROPERTY)
        models = {
            model.id: model
            for model in input_dict[MODEL]
            if model.id != candidate.id
            and model.get_string_custom_property(SERVABLE_PROPERTY) == servable
        }
        for blessing in sorted(input_dict[BLESSING], key=lambda b: b.id, reverse=True):
            model_id = blessing.get_int_custom_property(_CURRENT_MODEL_ID)
            if blessing.get_int_custom_property(_BLESSED) == 1 and model_id in models:
                return {MODEL: [models[model_id]], BLESSING: [blessing], CANDIDATE: candidates}
        return none


def baseline_resolver(candidate: types.BaseChannel) -> resolver.Resolver:
    """The node that finds the baseline of ``candidate``."""
    return resolver.Resolver(
        strategy_class=LatestOtherBlessedModel,
        **{
            MODEL: types.Channel(type=standard_artifacts.Model),
            BLESSING: types.Channel(type=standard_artifacts.ModelBlessing),
            CANDIDATE: candidate,
        },
    ).with_id("BaselineResolver")
