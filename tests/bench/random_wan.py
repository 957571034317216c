"""Writes a model folder of Wan's published shapes with random weights, to measure memory and time where no checkpoint can be had.

    python tests/bench/random_wan.py FOLDER [--shape 1.3B|14B] [--layers N] [--encoder-layers N]    (diffusers 0.42.1, transformers 5.23, torch 2.15)
    zoetrope generate --prompt "a red ball" --model FOLDER --size 832x480 --frames 33 --steps 2

The transformer (bf16, in shards with an index) and the VAE have the published sizes unless --layers says otherwise. The text encoder is UMT5-XXL
in width only: few layers (one by default) and a vocabulary of a few words, since it is not what is measured. Weights have the scale that keeps
activations of unit size, so that nothing overflows; the pictures are noise. About 3 GB for 1.3B, 28 GB for 14B.
"""
import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

SHAPES = {
    "1.3B": dict(num_attention_heads=12, ffn_dim=8960, num_layers=30),
    "14B": dict(num_attention_heads=40, ffn_dim=13824, num_layers=40),
}
SHARD_BYTES_MAX = 1_000_000_000
WORDS = "a the red blue ball dog cat walks runs through snow forest city at night".split()


def random_value(name, shape, generator):
    if len(shape) == 1 or name.endswith("gamma"):
        is_scale = name.endswith("gamma") or "norm" in name.lower() and name.endswith("weight")
        return float(is_scale) + 0.02 * torch.randn(shape, generator=generator)
    if "scale_shift_table" in name:
        return 0.1 * torch.randn(shape, generator=generator)
    return torch.randn(shape, generator=generator) / (torch.Size(shape[1:]).numel() or 1) ** 0.5


def write_part(folder, stem, model, seed, stored):
    """The config and random weights of a model on torch's meta device, shard by shard: no more than one is in memory."""
    model.save_config(folder) if hasattr(model, "save_config") else model.config.save_pretrained(folder)
    if not hasattr(model, "save_config"):  # transformers writes the architecture together with the weights
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": [type(model).__name__]}, indent=2))
    generator = torch.Generator().manual_seed(seed)
    shards, size = [[]], 0
    for name, value in model.state_dict().items():
        if name == "encoder.embed_tokens.weight":  # the same tensor as `shared.weight`
            continue
        bytes_ = value.numel() * stored.itemsize
        if size + bytes_ > SHARD_BYTES_MAX:
            shards, size = shards + [[]], 0
        shards[-1].append((name, tuple(value.shape)))
        size += bytes_
    where = {}
    for i, names in enumerate(shards):
        file = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{i + 1:05}-of-{len(shards):05}.safetensors"
        save_file({name: random_value(name, shape, generator).to(stored) for name, shape in names}, folder / file)
        where |= {name: file for name, _ in names}
    if len(shards) > 1:
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def write_tokenizer(folder):
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    return len(vocabulary)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="1.3B")
    parser.add_argument("--layers", type=int, help="blocks of the transformer, instead of the published number")
    parser.add_argument("--encoder-layers", type=int, default=1)
    args = parser.parse_args()
    shape = SHAPES[args.shape] | ({"num_layers": args.layers} if args.layers else {})

    folder = {part: args.folder / part for part in ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")}
    for path in folder.values():
        path.mkdir(parents=True, exist_ok=True)
    words = write_tokenizer(folder["tokenizer"])
    text = UMT5Config(vocab_size=words, d_model=4096, d_kv=64, num_heads=64, d_ff=10240, num_layers=args.encoder_layers,
                      feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    with torch.device("meta"):
        parts = [
            ("transformer", "diffusion_pytorch_model", WanTransformer3DModel(**shape), torch.bfloat16),
            ("vae", "diffusion_pytorch_model", AutoencoderKLWan(), torch.float32),
            ("text_encoder", "model", UMT5EncoderModel(text), torch.bfloat16),
        ]
    for seed, (part, stem, model, stored) in enumerate(parts):
        write_part(folder[part], stem, model, seed, stored)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    scheduler.save_pretrained(folder["scheduler"])
    index = {"_class_name": "WanPipeline", "text_encoder": ["transformers", "UMT5EncoderModel"],
             "tokenizer": ["transformers", "PreTrainedTokenizerFast"], "transformer": ["diffusers", "WanTransformer3DModel"],
             "vae": ["diffusers", "AutoencoderKLWan"], "scheduler": ["diffusers", "UniPCMultistepScheduler"]}
    (args.folder / "model_index.json").write_text(json.dumps(index, indent=2))
    total = sum(path.stat().st_size for path in args.folder.rglob("*") if path.is_file())
    print(f"{args.folder}: {args.shape} with {shape['num_layers']} blocks, {total / 1e9:.1f} GB")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
