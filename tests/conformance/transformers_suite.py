"""Architectures of Hugging Face transformers, small and with random weights, through the whole road at sizes other than the traced ones.

Text models have a dynamic batch and number of tokens, vision models a dynamic batch, audio models what their entry says.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from llmos.compiler.frontend.torch import import_torch, to_numpy
from tests.conformance.inprocess import Compiled
from tests.conformance.opinfo import check_answer, difference
from tests.conformance.outcome import Outcome, judge

# Traced at (3, 7); one row of one token is where broadcasts hide.
SIZES = ((2, 5), (4, 11), (1, 16))
TRACED = (3, 7)
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Architecture:
    """How to make a small model: its class, its configuration's class and fields, and what of its answer is compared."""

    model: str
    config: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "text"  # text, image, frames or samples
    takes_mask: bool = True
    attention: str = ""  # "" for what the model takes by itself
    answer: str = "last_hidden_state"


_LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_SMALL = {**_LAYERS, "vocab_size": 99, "max_position_embeddings": 64}
_DECODER = {**_SMALL, "num_key_value_heads": 2, "use_cache": False}
_IMAGE = {"image_size": 32, "patch_size": 8}
_VISION = {**_IMAGE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_LOGITS = "logits"

ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": Architecture("BertModel", "BertConfig", _SMALL),
    "roberta": Architecture("RobertaModel", "RobertaConfig", {**_SMALL, "pad_token_id": 1}),
    "distilbert": Architecture(
        "DistilBertModel", "DistilBertConfig",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 99, "max_position_embeddings": 64},
    ),
    "electra": Architecture("ElectraModel", "ElectraConfig", {**_SMALL, "embedding_size": 16}),
    "deberta-v2": Architecture(
        "DebertaV2Model", "DebertaV2Config",
        {**_SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "position_biased_input": False,
         "share_att_key": True},
    ),
    "deberta": Architecture("DebertaModel", "DebertaConfig", {**_SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "albert": Architecture("AlbertModel", "AlbertConfig", {**_SMALL, "embedding_size": 16}),
    "mpnet": Architecture("MPNetModel", "MPNetConfig", {**_SMALL, "pad_token_id": 1}),
    "t5": Architecture(
        "T5EncoderModel", "T5Config", {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 99}
    ),
    "xlm-roberta": Architecture("XLMRobertaModel", "XLMRobertaConfig", {**_SMALL, "pad_token_id": 1}),
    "clip-text": Architecture("CLIPTextModel", "CLIPTextConfig", {**_SMALL, "eos_token_id": 98}),
    "gpt2": Architecture(
        "GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99, "n_positions": 64, "use_cache": False},
        attention="eager", answer=_LOGITS,
    ),
    "llama": Architecture("LlamaForCausalLM", "LlamaConfig", _DECODER, answer=_LOGITS),
    "mistral": Architecture("MistralForCausalLM", "MistralConfig", _DECODER, answer=_LOGITS),
    "qwen2": Architecture("Qwen2ForCausalLM", "Qwen2Config", _DECODER, answer=_LOGITS),
    "qwen3": Architecture("Qwen3ForCausalLM", "Qwen3Config", {**_DECODER, "head_dim": 8}, answer=_LOGITS),
    "gemma2": Architecture("Gemma2ForCausalLM", "Gemma2Config", {**_DECODER, "head_dim": 8}, answer=_LOGITS, attention="eager"),
    "phi": Architecture("PhiForCausalLM", "PhiConfig", {**_DECODER, "num_key_value_heads": 4}, answer=_LOGITS),
    "vit": Architecture("ViTModel", "ViTConfig", _VISION, "image"),
    "deit": Architecture("DeiTModel", "DeiTConfig", _VISION, "image"),
    "swin": Architecture(
        "SwinModel", "SwinConfig",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}, "image",
    ),
    "convnext": Architecture(
        "ConvNextModel", "ConvNextConfig", {"image_size": 32, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}, "image"
    ),
    "resnet": Architecture(
        "ResNetModel", "ResNetConfig", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}, "image"
    ),
    "clip-vision": Architecture("CLIPVisionModel", "CLIPVisionConfig", _VISION, "image"),
    "whisper": Architecture(
        "WhisperModel", "WhisperConfig",
        {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "num_mel_bins": 16,
         "decoder_layers": 1, "decoder_attention_heads": 4,
         "max_source_positions": 20},
        "frames",
    ),
    "wav2vec2": Architecture(
        "Wav2Vec2Model", "Wav2Vec2Config",
        {**_SMALL, "conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2,
         "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4},
        "samples",
    ),
}  # fmt: skip


class TransformersSuite:
    """One case an architecture."""

    name, title = "transformers", "transformers architectures, at three sizes that weren't traced"

    def cases(self) -> Sequence[str]:
        import transformers  # noqa: F401  what all workers need

        return sorted(ARCHITECTURES)

    def run(self, case: str) -> Outcome:
        return run_architecture(case)


class Answer(nn.Module):
    """A model with its inputs in order and one tensor as its answer."""

    def __init__(self, model: nn.Module, call: Callable[..., Any], answer: str) -> None:
        super().__init__()
        self.model, self._call, self._answer = model, call, answer

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = getattr(self._call(self.model, *inputs), self._answer)
        return found


def build(architecture: Architecture) -> Answer:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, architecture.config)(**architecture.fields)
    if architecture.attention:
        config._attn_implementation = architecture.attention
    model = getattr(transformers, architecture.model)(config).eval()
    if architecture.kind == "frames":
        model = model.encoder
    calls: dict[str, Callable[..., Any]] = {
        "text": lambda m, ids, mask: m(input_ids=ids, attention_mask=mask),
        "image": lambda m, pixels: m(pixel_values=pixels),
        "frames": lambda m, features: m(input_features=features),
        "samples": lambda m, samples: m(input_values=samples),
    }
    return Answer(model, calls[architecture.kind], architecture.answer)


def inputs_of(architecture: Architecture, batch: int, tokens: int) -> tuple[torch.Tensor, ...]:
    """Random inputs; of each row but the first some tokens are padding."""
    generator = torch.Generator().manual_seed(batch * 100 + tokens)
    if architecture.kind == "text":
        ids = torch.randint(3, 97, (batch, tokens), generator=generator)
        mask = torch.ones(batch, tokens, dtype=torch.int64)
        for row in range(1, batch):
            mask[row, max(1, tokens - row) :] = 0
        return ids, mask
    shapes = {"image": (batch, 3, 32, 32), "frames": (batch, 16, 40), "samples": (batch, 100 + 20 * tokens)}
    return (torch.randn(shapes[architecture.kind], generator=generator),)


def dynamic_shapes(architecture: Architecture) -> Any:
    batch, tokens = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("tokens", min=2, max=48)
    if architecture.kind == "text":
        return {"inputs": ({0: batch, 1: tokens}, {0: batch, 1: tokens})}
    if architecture.kind == "samples":
        return {"inputs": ({0: batch, 1: torch.export.Dim.AUTO},)}
    return {"inputs": ({0: batch},)}


def run_architecture(name: str) -> Outcome:
    """What `llmos check` says, and the numbers at every size."""
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    architecture = ARCHITECTURES[name]
    module = build(architecture)
    checked = check_answer(module, inputs_of(architecture, *TRACED), dynamic_shapes(architecture))
    return judge(name, lambda: _difference(module, architecture), checked, limit_s=60)


def _difference(module: Answer, architecture: Architecture) -> str:
    compiled = Compiled(import_torch(module, inputs_of(architecture, *TRACED), dynamic_shapes(architecture)))
    for batch, tokens in SIZES:
        inputs = inputs_of(architecture, batch, tokens)
        with torch.no_grad():
            want = module(*inputs)
        (got,) = compiled([to_numpy(each) for each in inputs])
        if text := difference(got, want):
            return f"at batch {batch}, tokens {tokens}: {text}"
    return ""
