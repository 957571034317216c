"""Goldens for what becomes conditioning: prompts through UMT5 (and T5), pictures through CLIP's vision tower, pictures at other sizes.

    python tests/parity/encoders.py        (diffusers 0.42.1, transformers 5.23, torch 2.15, pillow 13, ftfy 6.3; CPU, float32)

`umt5_tiny`, `t5_tiny`: weights, config, a `tokenizer.json` and prompts in the metadata; states of the longest prompt after every layer, and what
diffusers' Wan pipeline makes of each prompt (run with its mask, cut, zeros behind). `clip_vision_*`: weights, a picture, its pixel values, states
after every layer. `picture_resize`: Pillow's bicubic and Lanczos. `prompts.json`: prompts as Python's `html.unescape` and Wan's `prompt_clean` leave them.
"""
import html
import json

import numpy as np
import torch
from diffusers import WanPipeline
from diffusers.pipelines.wan.pipeline_wan import is_ftfy_available, prompt_clean
from networks import GOLDENS, randomise
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel
from transformers.models.umt5.modeling_umt5 import UMT5Attention
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

TEXT_LENGTH = 24
PROMPTS = ["A cat &amp;amp; a  dog\n run", "", "a red fox jumps over the lazy dog, and the dog and the cat and the fox run to the red sea again and again"]


def write(name, tensors, metadata):
    path = GOLDENS / f"{name}.safetensors"
    save_file({key: value.detach().clone().contiguous() for key, value in tensors.items()}, path, metadata=metadata)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def states_of(blocks):
    """Collects what goes into the first block and what comes out of each."""
    states = []
    first = lambda value: value[0] if isinstance(value, tuple) else value
    blocks[0].register_forward_pre_hook(lambda module, args, kwargs: states.append(first(args or tuple(kwargs.values()))), with_kwargs=True)
    for block in blocks:
        block.register_forward_hook(lambda module, args, out: states.append(first(out)))
    return states


def tokenizer():
    """A Unigram model with T5's special tokens: end token behind the text, pieces with a mark for the space."""
    words = ["▁a", "▁the", "▁cat", "▁dog", "▁fox", "▁red", "▁and", "▁run", "▁to", "&", ",", "um", "ps", "az", "ain"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.5)] + [(word, -2.0 - 0.1 * i) for i, word in enumerate(words)]
    pieces += [(letter, -4.0 - 0.05 * i) for i, letter in enumerate("abcdefghijklmnopqrstuvwyzA")]
    made = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    made.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return made


def text_encoder(name, seed, model, stored):
    randomise(model, seed, stored)
    source = tokenizer()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer(), pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    pipeline = WanPipeline(tokenizer=fast, text_encoder=model, vae=None, scheduler=None, transformer=None)
    conditioning = pipeline._get_t5_prompt_embeds(PROMPTS, max_sequence_length=TEXT_LENGTH, dtype=torch.float32)
    encoded = fast([prompt_clean(p) for p in PROMPTS], padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")
    print(name, encoded.attention_mask.sum(1).tolist(), encoded.input_ids.tolist())
    states = states_of(model.encoder.block)
    ids, mask = encoded.input_ids[-1:], encoded.attention_mask[-1:]
    last = model(ids, mask).last_hidden_state
    keep = lambda value: value if value.is_floating_point() else None
    weights = {f"weights.{key}": value.to(stored) for key, value in model.state_dict().items() if keep(value) is not None and key != "encoder.embed_tokens.weight"}
    tensors = {f"out.states.{i}": state[0] for i, state in enumerate(states)} | {"out.last": last[0], "in.token_ids": ids[0].float()}
    tensors |= {f"out.prompt.{i}": conditioning[i] for i in range(len(PROMPTS))}
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    write(name, weights | tensors, {"config": json.dumps(config), "tokenizer": source.to_str(), "prompts": json.dumps(PROMPTS), "text_length": str(TEXT_LENGTH)})


def picture(width, height, seed):
    """Smooth colours with hard edges and a little noise, so that ringing and clipping show."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [127 + 127 * np.sin(x / 5 + k + seed) * np.cos(y / 7 - k) for k in range(3)]
    pixels = np.stack(planes, -1) + generator.normal(0, 12, (height, width, 3))
    pixels[height // 3:height // 2, width // 4:width // 2] = (255, 0, 255)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def image_encoder(name, seed, size, prefix, stored, **config):
    model = randomise(CLIPVisionModel(CLIPVisionConfig(**config)), seed, stored)
    side = config["image_size"]
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    source = picture(*size, seed)
    pixels = processor(images=source, return_tensors="pt").pixel_values
    states = states_of(model.encoder.layers)
    run = model(pixels, output_hidden_states=True)
    assert torch.equal(run.hidden_states[-2], states[-2])
    weights = {f"weights.{prefix}{key}": value.to(stored) for key, value in model.state_dict().items()}
    if prefix:  # older files keep the positions' indices beside their table
        weights[f"weights.{prefix}embeddings.position_ids"] = torch.arange(model.embeddings.num_positions)[None]
    # PIL's bytes fit exactly into half precision.
    tensors = {"in.picture": torch.from_numpy(np.array(source)).half(), "in.pixels": pixels[0], "out.image": run.hidden_states[-2][0]}
    tensors |= {f"out.states.{i}": state[0] for i, state in enumerate(states)}
    # Spelt as published folders do: the processor of any backend has the same keys.
    processor = {key: value for key, value in json.loads(processor.to_json_string()).items() if key != "image_processor_type"}
    write(name, weights | tensors, {"config": json.dumps(model.config.to_dict() | {"architectures": ["CLIPVisionModel"]}), "processor": json.dumps(processor)})


def picture_resize():
    source = picture(53, 37, 5)
    tensors = {"in.picture": torch.from_numpy(np.array(source)).half()}
    for kind, resample in ("bicubic", Image.BICUBIC), ("lanczos", Image.LANCZOS):
        for width, height in (20, 31), (96, 64), (53, 18), (7, 37):
            resized = np.array(source.resize((width, height), resample))
            tensors[f"out.{kind}.{width}x{height}"] = torch.from_numpy(resized).half()
    write("picture_resize", tensors, {})


def prompts():
    cases = [
        "plain", "  spaces \t\n inside\u00a0and\u3000out\x1c \u2029", "a &amp; b", "&amp;amp;amp; thrice", "&lt;b&gt;bold&lt;/b&gt;", "&quot;q&quot; &apos;a&apos;",
        "&#65;&#x42;&#X43;&#68", "&#38;#65;", "&amp;#x41;", "&#0; &#128;&#150;&#159;&#129;", "&#xD800; &#1114112; &#99999999999999999999;", "[&#1;&#11;&#127;&#xFFFE;&#xFDD0;]",
        "&#13;&#10;", "&eacute;&Eacute &eacutex", "&notit; &notin; &not", "&ampx &ampersand; &am;", "&;&&amp&amp;", "&#;&#x;&#xg;&#", "&CounterClockwiseContourIntegral; &CounterClockwiseContourIntegralX;",
        "&NotEqualTilde; &fjlig; &ngE;", "&copy&reg;&trade &trade;", "&nbsp;edge&nbsp;", "&Lt; &LT &Gt; &GT;", "&unknown; &verylongnamethatdoesnotexistanywhere;", "5 < 6 & 7 > 3",
        "&lang;x&rang; &hearts;", "&amp lt;", "&amp;lt;", "&#x1F600; smile", "“curly” ’quotes’ ﬁ", "tab&Tab;line&NewLine;end", "&ThickSpace;&zwj;|", "&\u00e9;&eacute\u00e9", "&Ａmp;",
    ]
    assert is_ftfy_available(), "Wan was trained on prompts that ftfy had cleaned: pip install ftfy"
    path = GOLDENS / "prompts.json"
    path.write_text(json.dumps([{"prompt": c, "unescaped": html.unescape(c), "clean": prompt_clean(c)} for c in cases], indent=0) + "\n")
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def buckets():
    """Rows of UMT5's table of relative positions at its own sizes, for every distance of 512 tokens."""
    attention = UMT5Attention(UMT5Config(d_model=8, d_kv=4, num_heads=2), has_relative_attention_bias=True)
    distances = torch.arange(-511, 512)
    rows = attention._relative_position_bucket(distances)
    path = GOLDENS / "t5_buckets.json"
    path.write_text(json.dumps(list(zip(distances.tolist(), rows.tolist()))) + "\n")
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    GOLDENS.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    with torch.no_grad():
        # Heads do not add up to the width, and the longest prompt is farther than the largest distance.
        small = dict(vocab_size=45, d_model=24, d_kv=5, d_ff=44, num_layers=3, num_heads=3, relative_attention_num_buckets=12, relative_attention_max_distance=14)
        text_encoder("umt5_tiny", 31, UMT5EncoderModel(UMT5Config(**small)), torch.bfloat16)
        text_encoder("t5_tiny", 32, T5EncoderModel(T5Config(**small | {"num_layers": 2}, feed_forward_proj="relu")), torch.float32)
        image_encoder("clip_vision_tiny", 33, (65, 47), "vision_model.", torch.float32, hidden_size=24, intermediate_size=36, num_hidden_layers=3, num_attention_heads=3,
                      image_size=30, patch_size=10, hidden_act="quick_gelu")
        image_encoder("clip_vision_gelu", 34, (28, 31), "", torch.float16, hidden_size=20, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                      image_size=28, patch_size=7, hidden_act="gelu", layer_norm_eps=1e-6)
        buckets()
        picture_resize()
        prompts()
