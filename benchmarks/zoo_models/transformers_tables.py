"""Small transformers configurations: two or three layers of width 64 keep every kind of layer, vocabularies are small.

Each table gives, for a model type, the model class, the kind of its inputs and the arguments of its configuration.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.zoo_models.transformers_inputs import (
    CAPTIONED_IMAGE,
    IMAGE,
    IMAGE_SIZE,
    MEL_BANDS,
    PAGE,
    SOUND,
    SPECTROGRAM_FRAMES,
    SPECTROGRAM_IMAGE,
    TEXT,
    TEXT_PAIR,
    TRANSCRIBED_SPECTROGRAM,
    TYPED_TEXT,
    VOCABULARY,
    InputKind,
)


@dataclass(frozen=True)
class Row:
    """One transformers model.

    Attributes:
        model: Its class, by name; so that listing the models does not import transformers.
        inputs: The kind of its inputs.
        arguments: What its configuration class gets.
        cnn: Whether convolutions do most of the work.
    """

    model: str
    inputs: InputKind
    arguments: Mapping[str, Any]
    cnn: bool = False


TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LAYERS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
BERT = {**LAYERS, **TOKENS, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
LLAMA = {**BERT, "num_key_value_heads": 2, "head_dim": 16, "use_cache": False}
BART = {
    **{"d_model": 64, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "use_cache": False, **TOKENS},
    **{f"{side}_{key}": 2 for side in ("encoder", "decoder") for key in ("layers", "attention_heads")},
    **{f"{side}_ffn_dim": 128 for side in ("encoder", "decoder")},
    "decoder_start_token_id": 2,
}
T5 = {"vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, **TOKENS}
VIT = {**LAYERS, "image_size": IMAGE_SIZE, "patch_size": 16}
SWIN = {"image_size": IMAGE_SIZE, "patch_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
STAGES = {"num_stages": 3, "hidden_sizes": (16, 32, 64), "depths": (1, 2, 1)}
WAV2VEC2 = {
    **LAYERS,
    "vocab_size": 32,
    "conv_dim": (32,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}

ENCODERS: Mapping[str, Row] = {
    "bert": Row("BertForSequenceClassification", TYPED_TEXT, BERT),
    "roberta": Row("RobertaForTokenClassification", TEXT, BERT),
    "xlm-roberta": Row("XLMRobertaForQuestionAnswering", TEXT, {**BERT, "num_labels": 2}),
    "distilbert": Row(
        "DistilBertForSequenceClassification",
        TEXT,
        {"vocab_size": VOCABULARY, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, **TOKENS},
    ),
    "albert": Row("AlbertModel", TYPED_TEXT, {**BERT, "embedding_size": 32}),
    "electra": Row("ElectraForPreTraining", TYPED_TEXT, {**BERT, "embedding_size": 32}),
    "mpnet": Row("MPNetModel", TEXT, BERT),
    "deberta": Row(
        "DebertaModel", TEXT, {**BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}
    ),
    "deberta-v2": Row(
        "DebertaV2ForSequenceClassification",
        TEXT,
        {
            **BERT,
            "relative_attention": True,
            "position_buckets": 8,
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm",
            "conv_kernel_size": 3,
            "conv_act": "gelu",
        },
    ),
    "modernbert": Row("ModernBertForMaskedLM", TEXT, {**BERT, "num_hidden_layers": 4, "local_attention": 8}),
    "convbert": Row("ConvBertModel", TYPED_TEXT, {**BERT, "embedding_size": 64, "conv_kernel_size": 5}),
    "squeezebert": Row("SqueezeBertModel", TYPED_TEXT, {**BERT, "embedding_size": 64}),
    "mobilebert": Row(
        "MobileBertModel",
        TYPED_TEXT,
        {**BERT, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    ),
    "roformer": Row("RoFormerModel", TYPED_TEXT, {**BERT, "embedding_size": 64}),
    "esm": Row("EsmModel", TEXT, {**BERT, "position_embedding_type": "rotary", "mask_token_id": 3}),
    "layoutlm": Row("LayoutLMModel", PAGE, {**BERT, "max_2d_position_embeddings": 64}),
    "xlnet": Row(
        "XLNetModel", TEXT, {"vocab_size": VOCABULARY, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128}
    ),
    "t5-encoder": Row("T5EncoderModel", TEXT, T5),
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_positions": 64,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "use_cache": False,
    **TOKENS,
}
DECODERS: Mapping[str, Row] = {
    "gpt2": Row("GPT2LMHeadModel", TEXT, GPT2),
    "gptj": Row("GPTJForCausalLM", TEXT, {**GPT2, "rotary_dim": 8}),
    "gpt_neo": Row(
        "GPTNeoForCausalLM",
        TEXT,
        {**BERT, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8}
        | {"use_cache": False},
    ),
    "gpt_neox": Row("GPTNeoXForCausalLM", TEXT, {**BERT, "use_cache": False}),
    "opt": Row("OPTForCausalLM", TEXT, {**BERT, "ffn_dim": 128, "word_embed_proj_dim": 64, "use_cache": False}),
    "bloom": Row("BloomForCausalLM", TEXT, {**BERT, "n_layer": 2, "n_head": 4, "use_cache": False}),
    "falcon": Row("FalconForCausalLM", TEXT, {**BERT, "use_cache": False}),
    "llama": Row("LlamaForCausalLM", TEXT, LLAMA),
    "mistral": Row("MistralForCausalLM", TEXT, {**LLAMA, "sliding_window": 8}),
    "qwen2": Row("Qwen2ForCausalLM", TEXT, LLAMA),
    "qwen3": Row("Qwen3ForCausalLM", TEXT, LLAMA),
    "gemma": Row("GemmaForCausalLM", TEXT, LLAMA),
    "gemma2": Row("Gemma2ForCausalLM", TEXT, {**LLAMA, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "gemma3": Row("Gemma3ForCausalLM", TEXT, {**LLAMA, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "phi": Row("PhiForCausalLM", TEXT, {**BERT, "num_key_value_heads": 4, "use_cache": False}),
    "phi3": Row("Phi3ForCausalLM", TEXT, LLAMA),
    "olmo2": Row("Olmo2ForCausalLM", TEXT, LLAMA),
    "cohere": Row("CohereForCausalLM", TEXT, LLAMA),
    "granite": Row("GraniteForCausalLM", TEXT, LLAMA),
    "mixtral": Row(
        "MixtralForCausalLM", TEXT, {**LLAMA, "num_local_experts": 4, "experts_implementation": "batched_mm"}
    ),
}
ENCODER_DECODERS: Mapping[str, Row] = {
    "t5": Row("T5ForConditionalGeneration", TEXT_PAIR, {**T5, "use_cache": False}),
    "mt5": Row("MT5ForConditionalGeneration", TEXT_PAIR, {**T5, "use_cache": False, "feed_forward_proj": "gated-gelu"}),
    "bart": Row("BartForConditionalGeneration", TEXT_PAIR, BART),
    "mbart": Row("MBartForConditionalGeneration", TEXT_PAIR, BART),
    "marian": Row("MarianMTModel", TEXT_PAIR, BART),
    "pegasus": Row("PegasusForConditionalGeneration", TEXT_PAIR, BART),
}
CLIP_TOWER = {**LAYERS, "projection_dim": 32}
CLIP = {
    "text_config": {**BERT, **CLIP_TOWER},
    "vision_config": {**VIT, **CLIP_TOWER},
    "projection_dim": 32,
}
VISION: Mapping[str, Row] = {
    "vit": Row("ViTForImageClassification", IMAGE, VIT),
    "deit": Row("DeiTForImageClassificationWithTeacher", IMAGE, VIT),
    "beit": Row("BeitForImageClassification", IMAGE, {**VIT, "use_relative_position_bias": True}),
    "dinov2": Row("Dinov2ForImageClassification", IMAGE, {**VIT, "mlp_ratio": 2}),
    "dinov2-registers": Row("Dinov2WithRegistersModel", IMAGE, {**VIT, "mlp_ratio": 2, "num_register_tokens": 2}),
    "dinov3_vit": Row("DINOv3ViTModel", IMAGE, {**VIT, "num_register_tokens": 2}),
    "swin": Row("SwinForImageClassification", IMAGE, {**SWIN, "window_size": 7}),
    "swinv2": Row("Swinv2ForImageClassification", IMAGE, {**SWIN, "window_size": 8}),
    "yolos": Row(
        "YolosForObjectDetection", IMAGE, {**VIT, "image_size": [IMAGE_SIZE, IMAGE_SIZE], "num_detection_tokens": 10}
    ),
    "segformer": Row(
        "SegformerForSemanticSegmentation",
        IMAGE,
        {
            "num_encoder_blocks": 4,
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [16, 32, 48, 64],
            "num_attention_heads": [1, 2, 4, 4],
            "decoder_hidden_size": 64,
        },
    ),
    "dpt": Row(
        "DPTForDepthEstimation",
        IMAGE,
        {
            **VIT,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 16, 32, 32],
            "fusion_hidden_size": 16,
            "is_hybrid": False,
        },
    ),
    "mobilevit": Row(
        "MobileViTForImageClassification",
        IMAGE,
        {"image_size": IMAGE_SIZE, "hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [16, 16, 24, 32, 40, 48, 128]},
    ),
    "mobilevitv2": Row(
        "MobileViTV2ForImageClassification", IMAGE, {"image_size": IMAGE_SIZE, "width_multiplier": 0.25}
    ),
    "levit": Row(
        "LevitForImageClassification",
        IMAGE,
        {"image_size": IMAGE_SIZE, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [2, 2, 2]},
    ),
    "poolformer": Row(
        "PoolFormerForImageClassification", IMAGE, {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}, cnn=True
    ),
    "pvt_v2": Row(
        "PvtV2ForImageClassification",
        IMAGE,
        {"hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 4, 4], "depths": [1, 1, 1, 1]},
    ),
    "cvt": Row(
        "CvtForImageClassification", IMAGE, {"embed_dim": [16, 32, 64], "num_heads": [1, 2, 4], "depth": [1, 2, 3]}
    ),
    "convnext": Row(
        "ConvNextForImageClassification", IMAGE, {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}, cnn=True
    ),
    "convnextv2": Row(
        "ConvNextV2ForImageClassification", IMAGE, {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}, cnn=True
    ),
    "resnet": Row(
        "ResNetForImageClassification",
        IMAGE,
        {"embedding_size": 16, "hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 2, 1]},
        cnn=True,
    ),
    "mobilenet_v2": Row("MobileNetV2ForImageClassification", IMAGE, {"depth_multiplier": 0.35}, cnn=True),
    "clip": Row("CLIPModel", CAPTIONED_IMAGE, CLIP),
    "siglip": Row("SiglipModel", CAPTIONED_IMAGE, {key: CLIP[key] for key in ("text_config", "vision_config")}),
}
SPEECH: Mapping[str, Row] = {
    "wav2vec2": Row("Wav2Vec2ForCTC", SOUND, WAV2VEC2),
    "hubert": Row("HubertModel", SOUND, {**WAV2VEC2, "feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    "wavlm": Row("WavLMModel", SOUND, WAV2VEC2),
    "data2vec-audio": Row("Data2VecAudioModel", SOUND, WAV2VEC2),
    "whisper": Row(
        "WhisperForConditionalGeneration",
        TRANSCRIBED_SPECTROGRAM,
        {
            **BART,
            "num_mel_bins": MEL_BANDS,
            "max_source_positions": SPECTROGRAM_FRAMES // 2,
            "max_target_positions": 64,
        },
    ),
    "audio-spectrogram-transformer": Row(
        "ASTForAudioClassification",
        SPECTROGRAM_IMAGE,
        {
            **LAYERS,
            "max_length": SPECTROGRAM_FRAMES,
            "num_mel_bins": MEL_BANDS,
            "patch_size": 8,
            "frequency_stride": 4,
            "time_stride": 4,
        },
    ),
}
