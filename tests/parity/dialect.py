"""Pairs of tensor names: Wan's original ones and diffusers', by diffusers' own conversion, at a tiny configuration.

The original names are those of the published `WanModel` (image-to-video with first and last frame, which has every
module). The result must be exactly the names of a `WanTransformer3DModel`, or nothing is written.
"""

import json
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

GOLDEN = Path(__file__).parent / "goldens" / "dialect.json"
LAYERS = 2


def original_names() -> list[str]:
    affine = lambda module: [f"{module}.weight", f"{module}.bias"]
    names = affine("patch_embedding") + affine("head.head") + ["head.modulation", "img_emb.emb_pos"]
    for module in ["text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2", "time_projection.1"]:
        names += affine(module)
    for index in [0, 1, 3, 4]:
        names += affine(f"img_emb.proj.{index}")
    for i in range(LAYERS):
        block = f"blocks.{i}"
        names += [f"{block}.modulation"] + affine(f"{block}.norm3") + affine(f"{block}.ffn.0") + affine(f"{block}.ffn.2")
        for attention in ["self_attn", "cross_attn"]:
            for linear in "qkvo":
                names += affine(f"{block}.{attention}.{linear}")
            names += [f"{block}.{attention}.norm_q.weight", f"{block}.{attention}.norm_k.weight"]
        for linear in ["k_img", "v_img"]:
            names += affine(f"{block}.cross_attn.{linear}")
        names += [f"{block}.cross_attn.norm_k_img.weight"]
    return names


def main() -> None:
    names = original_names()
    pairs = {}
    for name in names:
        # One at a time: the conversion returns a dictionary and says nothing of the order.
        (pairs[name],) = convert_wan_transformer_to_diffusers({name: torch.zeros(1)})
    # The conversion does not know the positions of first and last frame; diffusers' script for the release does.
    pairs["img_emb.emb_pos"] = "condition_embedder.image_embedder.pos_embed"
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=16, freq_dim=16, ffn_dim=32, num_layers=LAYERS,
        image_dim=4, added_kv_proj_dim=24, pos_embed_seq_len=10, rope_max_seq_len=32,
    )  # fmt: skip
    wanted = set(model.state_dict())
    # Its processor ignores the norm of the added queries, which the original does not have.
    wanted = {name for name in wanted if ".norm_added_q." not in name}
    assert set(pairs.values()) == wanted, set(pairs.values()) ^ wanted
    GOLDEN.write_text(json.dumps(pairs, indent=0, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
