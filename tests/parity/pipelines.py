"""Goldens for whole pipelines: tiny random Wan folders as diffusers writes them, and what diffusers' pipelines make of them.

    python tests/parity/pipelines.py        (diffusers 0.42.1, transformers 5.23, ftfy 6, torch 2.15; CPU, float32)

`goldens/pipelines/parts/` holds every part once, as `save_pretrained` writes it; `goldens/pipelines/cases.json` says which parts make up the
folder of a case and how it runs; `cases.safetensors` holds what goes in (`<case>.noise`, `image.<name>`: RGB bytes) and what comes out
(`<case>.latents`, `<case>.video`: RGB bytes). Latents are [z, f, h, w], normalised; pictures [f, h, w, 3].
"""
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import (AutoencoderKLWan, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanImageToVideoPipeline,
                       WanPipeline, WanTransformer3DModel)
from networks import randomise
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

HERE = Path(__file__).parent / "goldens" / "pipelines"
PARTS = HERE / "parts"
TEXT_DIM, TEXT_ROWS = 32, 512
CLIP_TOKENS = 17
PROMPT, NEGATIVE = "A robot paints a small house", "blurred"


def store(model, name, seed):
    """Weights are representable in bfloat16 and saved so; the pipelines compute in float32."""
    randomise(model, seed, torch.bfloat16)
    model.to(torch.bfloat16).save_pretrained(PARTS / name)
    return model.float().eval()


def tokenizer():
    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁a", "▁robot", "▁paint", "s", "▁small", "▁house", "▁blur", "red"] + list("abcdefghijklmnopqrstuvwxyz")
    scores = [0.0, 0.0, -10.0] + [-1.0 - 0.25 * i for i in range(len(pieces) - 3)]
    built = Tokenizer(models.Unigram(list(zip(pieces, scores)), unk_id=2, byte_fallback=False))
    built.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    built.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=built, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(PARTS / "tokenizer")
    return fast, len(pieces)


def transformer(name, seed, channels, out=16, **more):
    config = dict(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=channels, out_channels=out, text_dim=TEXT_DIM, freq_dim=32,
                  ffn_dim=32, num_layers=2, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32)
    return store(WanTransformer3DModel(**config | more), name, seed)


def vae(name, seed, **config):
    model = AutoencoderKLWan(dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True], **config)
    randomise(model, seed, torch.bfloat16)
    model.decoder.conv_out.weight.data *= 0.25  # so that few values are clamped; a power of two stays representable
    model.to(torch.bfloat16).save_pretrained(PARTS / name)
    return model.float().eval()


def picture(seed, width, height):
    """Smooth colours with some grain, so that the filters of a resize matter."""
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4, generator=generator), (height, width), mode="bicubic")
    noisy = (smooth + 0.08 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)
    return Image.fromarray((noisy[0].permute(1, 2, 0) * 255).round().byte().numpy())


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    PARTS.mkdir(parents=True)
    tokens, vocabulary = tokenizer()
    text = store(UMT5EncoderModel(UMT5Config(vocab_size=vocabulary, d_model=TEXT_DIM, d_kv=8, d_ff=48, num_layers=2, num_heads=3,
                                             relative_attention_num_buckets=8, relative_attention_max_distance=20, feed_forward_proj="gated-gelu")), "text_encoder", 31)
    clip = store(CLIPVisionModel(CLIPVisionConfig(hidden_size=16, projection_dim=8, num_hidden_layers=3, num_attention_heads=2, image_size=16,
                                                  intermediate_size=24, patch_size=4)), "image_encoder", 32)
    looks = CLIPImageProcessor(crop_size=16, size={"shortest_edge": 16})
    looks.save_pretrained(PARTS / "image_processor")
    small = vae("vae", 33, base_dim=3, z_dim=16)
    residual = vae("vae_residual", 34, base_dim=4, decoder_base_dim=8, z_dim=48, in_channels=12, out_channels=12, is_residual=True, patch_size=2,
                   scale_factor_spatial=16, scale_factor_temporal=4, latents_mean=[round(0.02 * i - 0.4, 2) for i in range(48)],
                   latents_std=[round(0.6 + 0.01 * i, 2) for i in range(48)])
    image_tokens = dict(image_dim=16, added_kv_proj_dim=24)
    networks = {
        "t2v": transformer("transformer_t2v", 35, 16),
        "low_noise": transformer("transformer_low_noise", 36, 16),
        "i2v": transformer("transformer_i2v", 37, 36, **image_tokens),
        "flf2v": transformer("transformer_flf2v", 38, 36, pos_embed_seq_len=2 * CLIP_TOKENS, **image_tokens),
        "i2v_a14b": transformer("transformer_i2v_a14b", 39, 36),
        "i2v_a14b_low_noise": transformer("transformer_i2v_a14b_low_noise", 40, 36),
        "ti2v": transformer("transformer_ti2v", 41, 48, out=48),
    }
    images = {"first": picture(1, 44, 22), "last": picture(2, 44, 22)}
    flow = dict(prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000)
    schedulers = {
        "unipc": lambda shift: UniPCMultistepScheduler(flow_shift=shift, **flow),
        "euler": lambda shift: FlowMatchEulerDiscreteScheduler(shift=shift),
        "dpmpp-2m": lambda shift: DPMSolverMultistepScheduler(flow_shift=shift, **flow),
    }
    cases, tensors = [], {f"image.{name}": torch.from_numpy(np.array(image)) for name, image in images.items()}

    def case(name, sampler, frames, steps, guidance=5.0, shift=3.0, size=(32, 16), first=None, last=None, network="t2v", low_noise=None, boundary=None,
             ti2v=False, with_clip=False, folder_class=None):
        pixels = residual if ti2v else small
        width, height = size
        factor = 16 if ti2v else 8
        generator = torch.Generator().manual_seed(len(cases))
        noise = torch.randn(1, pixels.config.z_dim, 1 + (frames - 1) // 4, height // factor, width // factor, generator=generator)
        scheduler = schedulers[sampler](shift)
        parts = dict(tokenizer=tokens, text_encoder=text, vae=pixels, scheduler=scheduler, transformer=networks[network])
        parts |= dict(transformer_2=networks[low_noise], boundary_ratio=boundary) if low_noise else {}
        shown = dict(image=images[first]) if first else {}
        shown |= dict(last_image=images[last]) if last else {}
        if first:
            parts |= dict(image_encoder=clip, image_processor=looks) if with_clip else dict(image_encoder=None, image_processor=None)
        pipeline = (WanImageToVideoPipeline if first else WanPipeline)(**parts, expand_timesteps=ti2v)
        pipeline.set_progress_bar_config(disable=True)
        run = dict(prompt=PROMPT, negative_prompt=NEGATIVE, height=height, width=width, num_frames=frames, num_inference_steps=steps, guidance_scale=guidance,
                   max_sequence_length=TEXT_ROWS, **shown)
        latents = pipeline(**run, latents=noise, output_type="latent").frames
        pipeline.scheduler = schedulers[sampler](shift)
        video = pipeline(**run, latents=noise, output_type="np").frames[0]
        folder = {"text_encoder": "text_encoder", "tokenizer": "tokenizer", "vae": "vae_residual" if ti2v else "vae", "transformer": f"transformer_{network}"}
        folder |= {"transformer_2": f"transformer_{low_noise}"} if low_noise else {}
        folder |= {"image_encoder": "image_encoder", "image_processor": "image_processor"} if with_clip else {}
        index = {"_class_name": folder_class or type(pipeline).__name__} | ({"boundary_ratio": boundary} if low_noise else {}) | ({"expand_timesteps": True} if ti2v else {})
        config = {key: value for key, value in dict(scheduler.config).items() if not key.startswith("_")} | {"_class_name": type(scheduler).__name__}
        cases.append(dict(name=name, parts=folder, model_index=index, scheduler=json.dumps(config), prompt=PROMPT, negative_prompt=NEGATIVE, frames=frames, steps=steps,
                          guidance=guidance, size=size, first=first, last=last))
        tensors[f"{name}.noise"] = noise[0]
        tensors[f"{name}.latents"] = latents[0]
        tensors[f"{name}.video"] = torch.from_numpy((video * 255).round().astype(np.uint8))
        print(f"{name}: |latents| {latents.abs().mean():.3f}, clamped {np.mean((video == 0) | (video == 1)):.1%}")

    with torch.no_grad():
        for sampler in schedulers:
            case(f"t2v_5.{sampler}", sampler, 5, 4)
            case(f"t2v_13.{sampler}", sampler, 13, 3, shift=8.0)
            case(f"i2v.{sampler}", sampler, 5, 3, network="i2v", first="first", with_clip=True)
            case(f"flf2v.{sampler}", sampler, 9, 3, shift=16.0, network="flf2v", first="first", last="last", with_clip=True)
            case(f"ti2v_text.{sampler}", sampler, 5, 3, shift=5.0, size=(64, 32), network="ti2v", ti2v=True)
            case(f"ti2v_image.{sampler}", sampler, 9, 3, shift=5.0, size=(64, 32), network="ti2v", ti2v=True, first="first", folder_class="WanPipeline")
        case("t2v_a14b.unipc", "unipc", 5, 6, low_noise="low_noise", boundary=0.875, guidance=4.0)
        case("i2v_a14b.unipc", "unipc", 5, 4, network="i2v_a14b", low_noise="i2v_a14b_low_noise", boundary=0.9, first="first", shift=5.0)
        case("flf_a14b.unipc", "unipc", 5, 4, network="i2v_a14b", low_noise="i2v_a14b_low_noise", boundary=0.9, first="first", last="last", shift=5.0)
        case("t2v_unguided.euler", "euler", 5, 3, guidance=1.0)
    save_file({name: value.contiguous() for name, value in tensors.items()}, HERE / "cases.safetensors")
    (HERE / "cases.json").write_text(json.dumps(cases, indent=1))
    total = sum(file.stat().st_size for file in HERE.rglob("*") if file.is_file())
    print(f"{total / 1000:.0f} kB in all")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
