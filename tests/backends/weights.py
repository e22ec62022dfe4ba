"""Tiny models of published architectures with random weights, saved as the hub has them."""

from __future__ import annotations

from pathlib import Path

WORDS = [
    "[PAD]",
    "[BOS]",
    "[EOS]",
    "[UNK]",
    "a",
    "photo",
    "of",
    "cat",
    "dog",
    "red",
    "blue",
    "the",
    "says",
]
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def tokenizer(template: str | None = None):
    """Splits at spaces; texts begin with [BOS] and end with [EOS]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template is None:
        inner.post_processor = processors.TemplateProcessing(
            single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        unk_token="[UNK]",
    )
    if template is not None:
        made.chat_template = template
    return made


def save_vision_models(root: Path) -> dict[str, str]:
    """CLIP, SigLIP and DINOv2 with their PIL image processors."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    vision = {**TINY, "image_size": 32, "patch_size": 8}
    text = {**TINY, "vocab_size": 16, "max_position_embeddings": 12}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    square = {"height": 32, "width": 32}
    dino = {k: v for k, v in vision.items() if k != "intermediate_size"}
    made = {
        "clip": (
            t.CLIPModel(
                t.CLIPConfig(text_config={**text, **ids}, vision_config=vision, projection_dim=16)
            ),
            t.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square),
        ),
        "siglip": (
            t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=vision)),
            t.SiglipImageProcessorPil(size=square),
        ),
        "dinov2": (
            t.Dinov2Model(t.Dinov2Config(**dino)),
            t.BitImageProcessorPil(size={"shortest_edge": 36}, crop_size=square),
        ),
    }
    for name, (model, processor) in made.items():
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
        if name != "dinov2":
            tokenizer().save_pretrained(root / name)
    return {name: str(root / name) for name in made}
