"""The collection of real models."""

from benchmarks.real_models.efficientnet import EFFICIENTNET
from benchmarks.real_models.faces import FACE_NETWORKS
from benchmarks.real_models.fashion import FASHION
from benchmarks.real_models.model import RealModel
from benchmarks.real_models.pitch import PITCH
from benchmarks.real_models.sentences import MINILM_SENTIMENT, MINILM_SIMILARITY
from benchmarks.real_models.voice_activity import VOICE_ACTIVITY


def real_models() -> tuple[RealModel, ...]:
    """Return every real model; nothing is loaded before one of its functions is called."""
    return (EFFICIENTNET, MINILM_SIMILARITY, MINILM_SENTIMENT, VOICE_ACTIVITY, PITCH, *FACE_NETWORKS, *FASHION)
