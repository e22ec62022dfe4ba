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


def save_chronos_models(root: Path) -> dict[str, str]:
    """Chronos-Bolt, Chronos-T5 and Chronos-2."""
    import torch
    from chronos.chronos_bolt import ChronosBoltModelForForecasting
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    levels = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    bolt = T5Config(
        **t5,
        vocab_size=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        architectures=["ChronosBoltModelForForecasting"],
        feed_forward_proj="relu",
        chronos_config={
            "context_length": 64,
            "prediction_length": 8,
            "input_patch_size": 8,
            "input_patch_stride": 8,
            "quantiles": levels,
            "use_reg_token": True,
        },
    )
    bolt.chronos_pipeline_class = "ChronosBoltPipeline"
    ChronosBoltModelForForecasting(bolt).save_pretrained(root / "bolt")

    config = T5Config(**t5, vocab_size=256, decoder_start_token_id=0)
    config.chronos_config = {
        "tokenizer_class": "MeanScaleUniformBins",
        "tokenizer_kwargs": {"low_limit": -15.0, "high_limit": 15.0},
        "n_tokens": 256,
        "n_special_tokens": 2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "use_eos_token": True,
        "model_type": "seq2seq",
        "context_length": 64,
        "prediction_length": 8,
        "num_samples": 5,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
    }
    T5ForConditionalGeneration(config).save_pretrained(root / "t5")

    from chronos.chronos2 import Chronos2CoreConfig, Chronos2Model

    core = Chronos2CoreConfig(
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        chronos_config={
            "context_length": 64,
            "output_patch_size": 8,
            "input_patch_size": 8,
            "input_patch_stride": 8,
            "quantiles": levels,
            "use_reg_token": True,
            "use_arcsinh": True,
            "max_output_patches": 4,
        },
    )
    core.chronos_pipeline_class = "Chronos2Pipeline"
    core.architectures = ["Chronos2Model"]
    Chronos2Model(core).save_pretrained(root / "chronos2")
    return {name: str(root / name) for name in ("bolt", "t5", "chronos2")}


CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m.role }} says {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}[BOS]{% endif %}"
)


def save_language_models(root: Path) -> dict[str, str]:
    """A causal model, an encoder-decoder, and classifiers of texts and of tokens."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    size = {**TINY, "vocab_size": len(WORDS)}
    bert = {**size, "max_position_embeddings": 64, "pad_token_id": 0}
    llama = t.LlamaConfig(
        **size, **ids, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.5
    )
    t5 = t.T5Config(
        vocab_size=len(WORDS),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        **{k: v for k, v in ids.items() if k != "bos_token_id"},
    )
    moods = {"id2label": {0: "good", 1: "bad", 2: "so so"}}
    made = {
        "causal": (t.LlamaForCausalLM(llama), CHAT_TEMPLATE),
        "seq2seq": (t.T5ForConditionalGeneration(t5), None),
        "moods": (t.BertForSequenceClassification(t.BertConfig(**bert, **moods)), None),
        "entails": (
            t.BertForSequenceClassification(
                t.BertConfig(
                    **bert,
                    label2id={"contradiction": 0, "entailment": 1},
                    id2label={0: "contradiction", 1: "entailment"},
                )
            ),
            None,
        ),
        "tokens": (t.BertForTokenClassification(t.BertConfig(**bert, **moods)), None),
    }
    for name, (model, template) in made.items():
        model.save_pretrained(root / name)
        tokenizer(template).save_pretrained(root / name)
    return {name: str(root / name) for name in made}


FAMILIES = {
    save_vision_models: ("clip", "siglip", "dinov2"),
    save_chronos_models: ("bolt", "t5", "chronos2"),
    save_language_models: ("causal", "seq2seq", "moods", "entails", "tokens"),
}


class TinyModels(dict[str, str]):
    """The folder of each model by its name; a family is saved when one of it is asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def __missing__(self, name: str) -> str:
        (save,) = [save for save, names in FAMILIES.items() if name in names]
        self.update(save(self._root))
        return self[name]


def greedy(model, tokenizer, text: str, most: int) -> str:
    """What a language model makes of a text by ``generate``, called by hand on the model's device."""
    given = tokenizer(text, return_tensors="pt").to(model.device)
    made = model.generate(
        input_ids=given["input_ids"],
        attention_mask=given["attention_mask"],
        max_new_tokens=most,
        do_sample=False,
    )
    return tokenizer.decode(made[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
