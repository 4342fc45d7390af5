"""Static int8 quantization: observe, calibrate, convert."""

from fxopt.passes.quantize.adaround import AdaRound
from fxopt.passes.quantize.calibrate import Calibrate
from fxopt.passes.quantize.convert import Convert
from fxopt.passes.quantize.correct_bias import CorrectBias
from fxopt.passes.quantize.correct_bias_by_moments import CorrectBiasByMoments
from fxopt.passes.quantize.equalize_layers import EqualizeLayers
from fxopt.passes.quantize.fix_scales import FixScales
from fxopt.passes.quantize.fold_restored_batch_norm import FoldRestoredBatchNorm
from fxopt.passes.quantize.freeze_batch_norm import FreezeBatchNorm
from fxopt.passes.quantize.gptq import Gptq
from fxopt.passes.quantize.insert import InsertObservers
from fxopt.passes.quantize.learn_scales import LearnScales
from fxopt.passes.quantize.placement import Placement, place
from fxopt.passes.quantize.quantize import Quantize
from fxopt.passes.quantize.quantize_data_free import QuantizeDataFree
from fxopt.passes.quantize.quantize_dynamic import QuantizeDynamic
from fxopt.passes.quantize.quantize_embeddings import QuantizeEmbeddings
from fxopt.passes.quantize.quantize_weights import QuantizeWeights
from fxopt.passes.quantize.remove_fake_quantize import RemoveFakeQuantize
from fxopt.passes.quantize.restore_batch_norm import RestoreBatchNorm
from fxopt.passes.quantize.round_biases import RoundBiases
from fxopt.passes.quantize.round_gptq import RoundGptq
from fxopt.passes.quantize.scheme import FIXED_POINT, Scheme
from fxopt.passes.quantize.shift_negatives import ShiftNegatives
from fxopt.passes.quantize.smooth_quant import SmoothQuant
from fxopt.passes.quantize.store_int8 import StoreInt8
from fxopt.passes.quantize.track_ranges import TrackRanges

__all__ = [
    "FIXED_POINT",
    "AdaRound",
    "Calibrate",
    "Convert",
    "CorrectBias",
    "CorrectBiasByMoments",
    "EqualizeLayers",
    "FixScales",
    "FoldRestoredBatchNorm",
    "FreezeBatchNorm",
    "Gptq",
    "InsertObservers",
    "LearnScales",
    "Placement",
    "Quantize",
    "QuantizeDataFree",
    "QuantizeDynamic",
    "QuantizeEmbeddings",
    "QuantizeWeights",
    "RemoveFakeQuantize",
    "RestoreBatchNorm",
    "RoundBiases",
    "RoundGptq",
    "Scheme",
    "ShiftNegatives",
    "SmoothQuant",
    "StoreInt8",
    "TrackRanges",
    "place",
]
