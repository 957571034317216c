"""Reads and writes the model folder in diffusers' layout: `python export.py --run RUN --out ../weights`.

The averaged weights of the last checkpoint go out in bfloat16. `model_index.json` also holds, under "zoetrope", what a folder of this
layout cannot say elsewhere: the fixed text length, the conditioning channels and the sampling defaults.
"""
import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "diffusion_pytorch_model.safetensors"


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def save_part(folder, state, config, name=WEIGHTS):
    write_json(folder / "config.json", config)
    path = folder / name
    save_file({key: value.detach().bfloat16().contiguous().cpu() for key, value in state.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)


def load_part(folder, name=WEIGHTS):
    return {key: value.float() for key, value in load_file(folder / name).items()}, json.loads((folder / "config.json").read_text())


def save_vae(folder, vae):
    save_part(folder, vae.wan_state(), vae.config)


def save_text(out, encoder, state):
    config = {**encoder.bert.config.to_diff_dict(), "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu",
              "layer_norm_eps": 1e-12, "type_vocab_size": 2, "pad_token_id": 0}
    save_part(out / "text_encoder", {n.removeprefix("text.bert."): v for n, v in state.items() if n.startswith("text.bert.")}, config, "model.safetensors")
    encoder.tokenizer.no_padding()
    encoder.tokenizer.no_truncation()
    (out / "tokenizer").mkdir(exist_ok=True)
    encoder.tokenizer.save(str(out / "tokenizer" / "tokenizer.json"))
    special = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
    write_json(out / "tokenizer" / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": text_length(), "do_lower_case": True, **special})


def text_length():
    from text import TEXT_LENGTH
    return TEXT_LENGTH


def save_index(out):
    import sampling as s
    write_json(out / "scheduler" / "scheduler_config.json", {"_class_name": "UniPCMultistepScheduler", **s.SCHEDULER})
    write_json(out / "model_index.json", {
        "_class_name": "WanPipeline", "text_encoder": ["transformers", "BertModel"], "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"], "vae": ["diffusers", "AutoencoderKLWan"],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "zoetrope": {"text_length": text_length(), "conditioning": "mask1", "key_frames": s.KEY_FRAMES, "key_frame_fps": s.KEY_FRAME_FPS,
                     "size": [s.SIZE, s.SIZE], "steps": s.STEPS, "guidance": s.GUIDANCE, "shift": s.SHIFT}})


def main():
    from text import TextEncoder
    from transformer import VideoTransformer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--last", action="store_true", help="the last weights instead of their average: better after a short run, which the average trails")
    args = parser.parse_args()
    saved = torch.load(args.run / "last.pt", map_location="cpu")
    state, vae_config = load_part(args.run / "vae")
    save_part(args.out / "vae", state, vae_config)
    encoder, transformer = TextEncoder(), VideoTransformer(vae_config["z_dim"])
    weights = saved["weights"] if args.last else saved["average"]
    save_part(args.out / "transformer", {n.removeprefix("transformer."): v for n, v in weights.items() if n.startswith("transformer.")}, transformer.config)
    save_text(args.out, encoder, weights)
    save_index(args.out)
    print(f"exported step {saved['step']}, {saved['clips']} clips, {saved['seconds'] / 60:.1f} minutes of training")


if __name__ == "__main__":
    main()
