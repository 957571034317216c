"""Goldens for the networks: tiny random models of diffusers and transformers with their inputs, block outputs and outputs.

    python tests/parity/networks.py        (diffusers 0.42.1, transformers 5.23, torch 2.15; CPU, float32)

Each golden is one safetensors file: `weights.*` is the model's state dict, `in.*` and `out.*` are what went in and came out in torch's
layout without the batch dimension, and the metadata holds the model's config (`config`) as published folders spell it.
"""
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

GOLDENS = Path(__file__).parent / "goldens"


def randomise(model, seed, stored=torch.float32):
    """Every parameter is representable in the type that it is stored in, and differs from its start (norms from one, biases and gates from zero),
    so that nothing can be left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        if value.dim() == 1 or name.endswith("gamma"):
            is_scale = name.endswith("gamma") or "norm" in name.lower() and name.endswith("weight")
            value.data = float(is_scale) + 0.2 * torch.randn(value.shape, generator=generator)
        elif "scale_shift_table" in name:
            value.data = 0.3 * torch.randn(value.shape, generator=generator)
        else:
            value.data = torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5
        value.data = value.data.to(stored).float()
    return model.eval()


def save(name, model, config, tensors, stored=torch.float32):
    data = {f"weights.{key}": value.to(stored) for key, value in model.state_dict().items()} | {key: value.float() for key, value in tensors.items()}
    # Clones: safetensors refuses views of one storage.
    data = {key: value.detach().clone().contiguous() for key, value in data.items()}
    path = GOLDENS / f"{name}.safetensors"
    save_file(data, path, metadata={"config": json.dumps(config)})
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def published(model):
    """The config as `save_pretrained` writes it."""
    config = dict(model.config)
    return {"_class_name": type(model).__name__} | {k: v for k, v in config.items() if not k.startswith("_")}


def transformer(name, seed, size, timestep, text_rows, text_used, stored=torch.float32, image_tokens=None, **config):
    """`timestep` is a number, or a list of one per latent frame: diffusers then takes one per token. `image_tokens` is the number of rows of CLIP
    states per picture; models with learned positions take the states of two pictures as a batch of two."""
    model = randomise(WanTransformer3DModel(**config), seed, stored)
    generator = torch.Generator().manual_seed(seed + 1)
    latent = torch.randn(1, config["in_channels"], *size, generator=generator)
    text = torch.randn(1, text_rows, config["text_dim"], generator=generator)
    text[:, text_used:] = 0
    inputs = {"in.latent": latent[0], "in.text": text[0]}
    image = None
    if image_tokens:
        pictures = 2 if config.get("pos_embed_seq_len") else 1
        image = torch.randn(pictures, image_tokens, config["image_dim"], generator=generator)
        inputs["in.image"] = image.flatten(0, 1)
    frames = torch.tensor(timestep if isinstance(timestep, list) else [timestep])
    inputs["in.timestep"] = frames
    per_token = frames.repeat_interleave((size[1] // config["patch_size"][1]) * (size[2] // config["patch_size"][2]))[None]
    states = []
    model.blocks[0].register_forward_pre_hook(lambda module, args: states.append(args[0]))
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: states.append(out))
    out = model(latent, per_token if isinstance(timestep, list) else frames, text, image).sample
    save(name, model, published(model), inputs | {"out.velocity": out[0]} | {f"out.tokens.{i}": state[0] for i, state in enumerate(states)}, stored)


def vae(name, seed, frames, size, stored=torch.float32, **config):
    model = randomise(AutoencoderKLWan(**config), seed, stored)
    model.decoder.conv_out.weight.data *= 0.25  # so that few values are clamped
    if not any(config["temperal_downsample"]):
        keep_last_tap(model)
    generator = torch.Generator().manual_seed(seed + 1)
    # Smooth pictures with a little noise, in the range of real ones.
    video = torch.nn.functional.interpolate(torch.randn(1, 3, frames, 4, 4, generator=generator), (frames, *size), mode="trilinear")
    video = (0.6 * video + 0.05 * torch.randn(video.shape, generator=generator)).clamp(-1, 1)
    mean, std = (torch.tensor(model.config[key]).view(1, -1, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    if any(config["temperal_downsample"]):
        latent = model.encode(video).latent_dist.mode()
    else:  # diffusers' encode drops frames unless there are 4k + 1; without temporal layers each frame stands alone
        latent = torch.cat([model.encode(video[:, :, i:i + 1]).latent_dist.mode() for i in range(frames)], 2)
    given = torch.randn(latent.shape, generator=generator)
    decoded = model.decode(given * std + mean).sample
    print(f"  {name}: clamped {(decoded.abs() == 1).float().mean():.1%}")
    save(name, model, published(model), {"in.video": video[0], "out.latent": ((latent - mean) / std)[0], "in.latent": given[0], "out.video": decoded[0]}, stored)


def vae_in_tiles(name, seed, frames, size, tile, stride, stored=torch.float32, **config):
    """As `vae`, whole and in tiles: decoding of latents for pictures of `size`, encoding of pictures of as many patches."""
    model = randomise(AutoencoderKLWan(**config), seed, stored)
    model.decoder.conv_out.weight.data *= 0.25
    generator = torch.Generator().manual_seed(seed + 1)
    side, factor = config.get("patch_size") or 1, config["scale_factor_spatial"]
    video = torch.nn.functional.interpolate(torch.randn(1, 3, frames, 5, 5, generator=generator), (frames, *(side * s for s in size)), mode="trilinear")
    video = (0.6 * video + 0.05 * torch.randn(video.shape, generator=generator)).clamp(-1, 1)
    mean, std = (torch.tensor(model.config[key]).view(1, -1, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    given = torch.randn(1, config["z_dim"], 1 + (frames - 1) // 4, *(s // factor for s in size), generator=generator)
    whole = model.decode(given * std + mean).sample
    model.enable_tiling(tile, tile, stride, stride)
    latent = model.encode(video).latent_dist.mode()
    decoded = model.decode(given * std + mean).sample
    print(f"  {name}: clamped {(decoded.abs() == 1).float().mean():.1%}, tiles move the pictures by {(decoded - whole).norm() / whole.norm():.1%}")
    tensors = {"in.video": video[0], "out.latent": ((latent - mean) / std)[0], "in.latent": given[0], "out.video": decoded[0]}
    save(name, model, published(model) | {"tile_px": tile, "stride_px": stride}, tensors, stored)


def keep_last_tap(model):
    """As models trained on single frames are stored: the taps on earlier frames are zero."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv3d) and module.kernel_size[0] == 3:
            module.weight.data[:, :, :2] = 0
            module.weight.data *= 2


def bert(name, seed, tokens, **config):
    model = randomise(BertModel(BertConfig(**config), add_pooling_layer=False), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    length = 12
    ids = torch.randint(0, config["vocab_size"], (1, length), generator=generator)
    mask = (torch.arange(length) < tokens).long()[None]
    run = model(ids, attention_mask=mask, output_hidden_states=True)
    tensors = {"in.token_ids": ids[0], "in.mask": mask[0], "out.embedded": run.hidden_states[0][0], "out.states": (run.last_hidden_state * mask[..., None])[0]}
    save(name, model, model.config.to_dict() | {"architectures": ["BertModel"]}, tensors)


STATISTICS = {"latents_mean": [round(0.1 * i - 0.3, 2) for i in range(6)], "latents_std": [round(1.5 + 0.2 * i, 2) for i in range(6)]}

if __name__ == "__main__":
    GOLDENS.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    with torch.no_grad():
        # diffusers' own tiny test model, with a text that ends before its rows do.
        transformer("transformer_tiny", 1, (3, 8, 12), 737.25, 12, 7, patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12,
                    in_channels=16, out_channels=16, text_dim=32, freq_dim=256, ffn_dim=32, num_layers=2, cross_attn_norm=True,
                    qk_norm="rms_norm_across_heads", rope_max_seq_len=32)
        # Nothing is a power of two, patches span time, and the conditioning channels make in and out differ.
        transformer("transformer_odd", 2, (4, 6, 10), 3.0, 9, 9, torch.float16, patch_size=(2, 2, 2), num_attention_heads=3, attention_head_dim=20,
                    in_channels=9, out_channels=4, text_dim=24, freq_dim=32, ffn_dim=70, num_layers=2, cross_attn_norm=False,
                    qk_norm="rms_norm_across_heads", rope_max_seq_len=32)
        # Image to video: 36 channels go in, and CLIP states have keys and values of their own. Heads of 20: positions turn 8, 6 and 6 dimensions.
        # diffusers splits picture from text 512 rows from the end, so there are 512 rows of text.
        image = dict(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=20, in_channels=36, out_channels=16, text_dim=4, freq_dim=32,
                     ffn_dim=56, num_layers=2, cross_attn_norm=True, qk_norm="rms_norm_across_heads", image_dim=12, added_kv_proj_dim=40,
                     rope_max_seq_len=32)
        transformer("transformer_i2v", 21, (2, 4, 6), 812.0, 512, 30, torch.bfloat16, image_tokens=5, **image)
        # First and last frame: the states of two pictures, with learned positions.
        transformer("transformer_flf2v", 22, (2, 4, 6), 411.5, 512, 100, torch.bfloat16, image_tokens=5, pos_embed_seq_len=10, **image)
        # Wan 2.2 TI2V: the first frame is clean, and two more differ so that no frame can take another's row. Heads of 14: 6, 4 and 4.
        transformer("transformer_ti2v", 23, (4, 6, 10), [0.0, 950.25, 950.25, 300.0], 9, 6, torch.bfloat16, patch_size=(1, 2, 2),
                    num_attention_heads=3, attention_head_dim=14, in_channels=12, out_channels=12, text_dim=24, freq_dim=32, ffn_dim=70,
                    num_layers=2, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32)
        # Wan 2.1's topology: 9 frames cross two chunk boundaries.
        vae("vae_wan", 3, 9, (8, 24), base_dim=4, z_dim=6, dim_mult=[1, 2, 2, 2], num_res_blocks=1, attn_scales=[],
            temperal_downsample=[False, True, True], **STATISTICS)
        vae("vae_wan_two_blocks", 4, 5, (8, 8), torch.bfloat16, base_dim=3, decoder_base_dim=4, z_dim=6, dim_mult=[1, 2, 2], num_res_blocks=2, attn_scales=[],
            temperal_downsample=[True, True], **STATISTICS)
        # The default model's topology: five levels, each frame alone.
        vae("vae_per_frame", 5, 3, (32, 16), torch.bfloat16, base_dim=4, z_dim=6, dim_mult=[1, 2, 2, 2, 2], num_res_blocks=1, attn_scales=[],
            temperal_downsample=[False] * 4, **STATISTICS)
        # Wan 2.2's topology: patches, shortcuts around levels whose channels grow, stay and shrink, three chunk boundaries.
        residual = {"z_dim": 6, "attn_scales": [], "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, **STATISTICS}
        vae("vae_residual", 7, 13, (16, 32), torch.bfloat16, base_dim=3, decoder_base_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1,
            temperal_downsample=[False, True, True], scale_factor_spatial=16, **residual)
        vae("vae_residual_two_blocks", 8, 5, (24, 8), torch.bfloat16, base_dim=4, dim_mult=[1, 2, 2], num_res_blocks=2,
            temperal_downsample=[True, True], scale_factor_spatial=8, **residual)
        # Tiles that overlap by a half, a third and not at all in the last row and column.
        vae_in_tiles("vae_tiles", 9, 5, (44, 28), 16, 12, torch.bfloat16, base_dim=3, z_dim=6, dim_mult=[1, 2, 2], num_res_blocks=1, attn_scales=[],
                     temperal_downsample=[True, True], scale_factor_spatial=4, **STATISTICS)
        vae_in_tiles("vae_residual_tiles", 10, 5, (16, 24), 16, 8, torch.bfloat16, base_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1,
                     temperal_downsample=[True, True], scale_factor_spatial=8, **residual)
        bert("bert_tiny", 6, 8, vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
             max_position_embeddings=16, layer_norm_eps=1e-12)
