"""The predictor of a job, in whatever process it is needed."""

import functools

from segcore.crf import dense_crf
from segcore.models import checkpoint
from segcore.models.checkpoint import LoadedModel, PackedModel
from segcore.predictor import Predictor, PredictParams
from tasks.errors import JobError
from tasks.models.remote import local_model
from tasks.stream.units import MaskParams


def predictor_of(params: MaskParams, packed: PackedModel | None = None) -> Predictor:
    """What takes the images of a job to masks, in any worker; the model is loaded where something is scored."""
    try:
        # One thread: there is a worker on every core
        return Predictor(functools.partial(_load, params, packed), params.predict, num_threads=1)
    except ValueError as error:  # The CRF engine that the run began with
        raise JobError(f"Not every node can do this job. {error}") from None


def require_crf_engine(params: PredictParams) -> None:
    """Raises JobError where a process that is to refine cannot: it has no GPU, and the job's CRF runs on one."""
    if params.crf is None:
        return
    try:
        dense_crf.require_engine(params.crf_engine)
    except ValueError as error:
        raise JobError(f"Not every node can do this job. {error}") from None


def _load(params: MaskParams, packed: PackedModel | None) -> LoadedModel:
    if packed is not None:
        model = checkpoint.load_packed(packed)
    else:
        model = checkpoint.load(local_model(params.model), untrained=params.untrained, seed=params.seed)
    if model.digest != params.model_digest:
        raise JobError(f"The model {params.model} is not the one that the run began with: was it replaced?")
    return model
