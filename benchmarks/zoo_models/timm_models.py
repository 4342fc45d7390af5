"""The smallest model of every timm module (timm's `test_*` toys left aside), on small images.

Only the few whose smallest model is large are shortened, by their own `depth`.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.zoo_models.images import image_inputs
from benchmarks.zoo_models.model import ZooModel
from benchmarks.zoo_models.preparation import prepared_image_model
from benchmarks.zoo_models.shim import declare_torchvision_ops


@dataclass(frozen=True)
class Row:
    """One timm model.

    Attributes:
        name: What `timm.create_model` calls it.
        size: Height and width of its images, in pixels.
        fixed_size: Whether the constructor must be told the size, as `img_size`.
        cnn: Whether it has no attention and convolutions (1 × 1 too) do at least 60 % of its multiplications.
        arguments: What else the constructor gets, to shorten the model.
    """

    name: str
    size: int = 64
    fixed_size: bool = False
    cnn: bool = False
    arguments: Mapping[str, int | float] = field(default_factory=dict)


MODELS: Mapping[str, Row] = {  # timm module -> its smallest model, as of timm 1.0.31
    "beit": Row("beit_base_patch16_224", fixed_size=True, arguments={"depth": 6}),
    "byoanet": Row("eca_halonext26ts", size=256),
    "byobnet": Row("mobileone_s1", cnn=True),
    "cait": Row("cait_xxs24_224", fixed_size=True),
    "coat": Row("coat_tiny", fixed_size=True),
    "convit": Row("convit_tiny", fixed_size=True),
    "convmixer": Row("convmixer_768_32", cnn=True),
    "convnext": Row("convnext_zepto_rms", cnn=True),
    "cpubone": Row("cpubone_nano"),
    "crossvit": Row("crossvit_tiny_240", size=120, fixed_size=True),
    "csatv2": Row("csatv2"),
    "cspnet": Row("cs3darknet_focus_s", cnn=True),
    "cspnext": Row("cspnext_tiny", cnn=True),
    "davit": Row("davit_tiny"),
    "deepseek_vit": Row("deepseek_vit_412m", size=112, fixed_size=True, arguments={"depth": 4}),
    "deit": Row("deit_tiny_patch16_224", fixed_size=True),
    "densenet": Row("densenet121", cnn=True),
    "dla": Row("dla46x_c", cnn=True),
    "dpn": Row("dpn48b", cnn=True),
    "edgenext": Row("edgenext_xx_small"),
    "efficientformer": Row("efficientformer_l1", size=224),
    "efficientformer_v2": Row("efficientformerv2_s0", fixed_size=True),
    "efficientnet": Row("mobilenetv2_035", cnn=True),
    "efficientvim": Row("efficientvim_m1"),
    "efficientvit_mit": Row("efficientvit_b0"),
    "efficientvit_msra": Row("efficientvit_m0", fixed_size=True),
    "eva": Row("eva02_tiny_patch14_224", size=112, fixed_size=True),
    "fasternet": Row("fasternet_t0", cnn=True),
    "fastvit": Row("fastvit_t8", cnn=True),
    "focalnet": Row("focalnet_tiny_srf", cnn=True),
    "gcvit": Row("gcvit_xxtiny", fixed_size=True),
    "gemma4_vit": Row("gemma4_vit_167m", size=96, fixed_size=True, arguments={"depth": 3}),
    "ghostnet": Row("ghostnet_050", cnn=True),
    "hardcorenas": Row("hardcorenas_b", cnn=True),
    "hgnet": Row("hgnetv2_b0", cnn=True),
    "hiera": Row("hiera_tiny_224", fixed_size=True),
    "hieradet_sam2": Row("sam2_hiera_tiny"),
    "hrnet": Row("hrnet_w18_small", cnn=True),
    "iformer": Row("iformer_t"),
    "inception_next": Row("inception_next_atto", cnn=True),
    "inception_resnet_v2": Row("inception_resnet_v2", size=96, cnn=True),
    "inception_v3": Row("inception_v3", size=96, cnn=True),
    "inception_v4": Row("inception_v4", size=96, cnn=True),
    "lcnetv2": Row("lcnetv2_small", cnn=True),
    "levit": Row("levit_128s", size=128, fixed_size=True),
    "lowformer": Row("lowformer_b0"),
    "mambaout": Row("mambaout_femto"),
    "maxxvit": Row("maxvit_pico_rw_256", fixed_size=True),
    "metaformer": Row("poolformerv2_s12", cnn=True),
    "mlp_mixer": Row("gmlp_ti16_224", fixed_size=True),
    "mobilenetv3": Row("mobilenetv3_small_050", cnn=True),
    "mobilenetv5": Row("mobilenetv5_base"),
    "mobilevit": Row("mobilevit_xxs"),
    "mvitv2": Row("mvitv2_tiny", fixed_size=True),
    "naflexvit": Row("naflexvit_base_patch16_parfac_gap", fixed_size=True, arguments={"depth": 4}),
    "nasnet": Row("nasnetalarge", cnn=True),
    "nest": Row("nest_tiny", fixed_size=True),
    "nextvit": Row("nextvit_small"),
    "nfnet": Row("nf_regnet_b0", cnn=True),
    "pit": Row("pit_ti_224", fixed_size=True),
    "pnasnet": Row("pnasnet5large", cnn=True),
    "pvt_v2": Row("pvt_v2_b0"),
    "qwen3_vit": Row("qwen3_vit_88m", fixed_size=True, arguments={"depth": 4}),
    "rdnet": Row("rdnet_tiny", cnn=True),
    "regnet": Row("regnetx_002", cnn=True),
    "repghost": Row("repghostnet_050", cnn=True),
    "repvit": Row("repvit_m1", cnn=True),
    "res2net": Row("res2next50", cnn=True),
    "resnest": Row("resnest14d", cnn=True),
    "resnet": Row("resnet10t", cnn=True),
    "resnetv2": Row("resnetv2_18", cnn=True),
    "rexnet": Row("rexnet_100", cnn=True),
    "selecsls": Row("selecsls42", cnn=True),
    "senet": Row("legacy_seresnet18", cnn=True),
    "sequencer": Row("sequencer2d_s", fixed_size=True),
    "shvit": Row("shvit_s1"),
    "sknet": Row("skresnet18", cnn=True),
    "starnet": Row("starnet_s050", cnn=True),
    "swiftformer": Row("swiftformer_xs", fixed_size=True),
    "swin_transformer": Row("swin_tiny_patch4_window7_224", fixed_size=True),
    "swin_transformer_v2": Row("swinv2_tiny_window8_256", fixed_size=True),
    "swin_transformer_v2_cr": Row("swinv2_cr_tiny_224", fixed_size=True),
    "tiny_vit": Row("tiny_vit_5m_224"),
    "tnt": Row("tnt_s_legacy_patch16_224", fixed_size=True),
    "tresnet": Row("tresnet_m", cnn=True),
    "twins": Row("twins_svt_small", fixed_size=True),
    "vgg": Row("vgg11", size=224, cnn=True, arguments={"mlp_ratio": 0.125}),
    "visformer": Row("visformer_tiny", fixed_size=True),
    "vision_transformer": Row("vit_tiny_patch16_224", fixed_size=True),
    "vision_transformer_hybrid": Row("vit_tiny_r_s16_p8_224", fixed_size=True),
    "vision_transformer_relpos": Row("vit_relpos_small_patch16_224", fixed_size=True),
    "vision_transformer_sam": Row("samvit_base_patch16_224", fixed_size=True, arguments={"depth": 6}),
    "vitamin": Row("vitamin_small_224", fixed_size=True),
    "volo": Row("volo_d1_224", fixed_size=True),
    "vovnet": Row("ese_vovnet19b_slim_dw", cnn=True),
    "xception": Row("legacy_xception", cnn=True),
    "xception_aligned": Row("xception41p", cnn=True),
    "xcit": Row("xcit_nano_12_p8_224", fixed_size=True),
}


def timm_models() -> tuple[ZooModel, ...]:
    """List one model a timm module, in the modules' alphabetical order."""
    return tuple(_zoo_model(module, row) for module, row in MODELS.items())


def _zoo_model(module: str, row: Row) -> ZooModel:
    return ZooModel(
        name=row.name,
        family=module,
        build=functools.partial(_build, row),
        inputs=functools.partial(image_inputs, size=row.size, seed=0),
        dynamic="batch",
        other_inputs=functools.partial(image_inputs, size=row.size, seed=1),
        is_cnn=row.cnn,
    )


def _build(row: Row) -> torch.nn.Module:
    return prepared_image_model(functools.partial(_construct, row), row.size)


def _construct(row: Row) -> torch.nn.Module:
    declare_torchvision_ops()
    import timm

    arguments: dict[str, Any] = dict(row.arguments)
    if row.fixed_size:
        arguments["img_size"] = row.size
    model: torch.nn.Module = timm.create_model(row.name, pretrained=False, **arguments)
    return model
