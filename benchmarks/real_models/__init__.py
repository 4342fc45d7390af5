"""Models with real trained weights, each with real labelled data and its task's metric.

Everything comes from packages (requirements.txt beside this file), nothing is downloaded at run time. The evaluation
sets are small: read a figure together with the number of samples in `RealModel.data`.
"""

from benchmarks.real_models.collection import real_models
from benchmarks.real_models.model import RealModel

__all__ = ["RealModel", "real_models"]
