"""A GGUF file with one tensor of each type that is read, written and read back by ggml's own Python package (`gguf`).

Blocks are random bytes with sensible scales, so every bit of a block counts. The file speaks Wan's original dialect and
the expected values diffusers', like a community conversion and the network that asks for it.
"""

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import save_file

GOLDENS = Path(__file__).parent / "goldens"
ROWS, WIDTH = 2, 512
# Where each block keeps its f16 scales.
SCALES = {
    Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0],
    Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
}  # fmt: skip
MODULES = {
    "self_attn.q": "attn1.to_q", "self_attn.k": "attn1.to_k", "self_attn.v": "attn1.to_v", "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q", "cross_attn.k": "attn2.to_k", "cross_attn.v": "attn2.to_v", "cross_attn.o": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
}  # fmt: skip


def random_blocks(kind: Type, rng: np.random.Generator) -> np.ndarray:
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (ROWS * WIDTH // elements, size), dtype=np.uint8)
    for at in SCALES[kind]:
        blocks[:, at : at + 2] = rng.normal(0, 0.05, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    return blocks.reshape(ROWS, -1)


def main() -> None:
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(GOLDENS / "gguf_tiny.gguf", "wan")
    writer.add_name("tiny")
    writer.add_array("test.words", ["one", "two"])
    expected = {}

    def add(name: str, diffusers: str, data: np.ndarray, kind: Type | None = None) -> None:
        writer.add_tensor(name, data, raw_dtype=kind)
        values = data if kind is None else gguf.quants.dequantize(data, kind)
        expected[diffusers] = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))

    for kind, (original, diffusers) in zip(SCALES, MODULES.items(), strict=True):
        add(f"blocks.0.{original}.weight", f"blocks.0.{diffusers}.weight", random_blocks(kind, rng), kind)
    add("blocks.0.modulation", "blocks.0.scale_shift_table", rng.normal(size=(1, 6, 8)).astype(np.float32))
    add("patch_embedding.weight", "patch_embedding.weight", rng.normal(size=(8, 4, 1, 2, 2)).astype(np.float16))
    bf16 = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    raw = bf16.view(torch.uint8).numpy()
    add("head.head.weight", "proj_out.weight", raw, Type.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, GOLDENS / "gguf_tiny.safetensors")


if __name__ == "__main__":
    main()
