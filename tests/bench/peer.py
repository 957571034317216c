"""A framework to stand beside, in a process of its own.

    peer.py make FOLDER                              a model folder with random weights of a fixed seed, and inputs.safetensors
    peer.py serve FRAMEWORK PART FOLDER THREADS      PART is transformer or vae

`serve` loads the part, runs it twice to warm up and says {"name": ...}, or {"absent": why} when the framework is not installed or cannot run the part.
Then each line in gets one line out: `run` one forward and {"ms": ...}; `write PATH` the last result as the tensor `output` and {"written": PATH}.
Tensors have torch's layout without the batch dimension.
"""
import json
import os
import sys
import time

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print must not stand between the answers


def answer(**fields):
    print(json.dumps(fields), file=ANSWERS, flush=True)


def make(folder):
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from safetensors.torch import save_file

    torch.manual_seed(0)
    WanTransformer3DModel(patch_size=(1, 2, 2), num_attention_heads=6, attention_head_dim=64, in_channels=16, out_channels=16, text_dim=512, freq_dim=256,
                          ffn_dim=1536, num_layers=12, cross_attn_norm=True, qk_norm="rms_norm_across_heads").save_pretrained(f"{folder}/transformer")
    AutoencoderKLWan().save_pretrained(f"{folder}/vae")
    save_file({"latent": torch.randn(16, 4, 32, 32), "text": torch.randn(128, 512), "timestep": torch.tensor([500.0]), "z": torch.randn(16, 2, 16, 16)},
              f"{folder}/inputs.safetensors")


def load(part, folder, dtype):
    """The module, wrapped to take and give plain tensors, and its inputs."""
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from safetensors.torch import load_file

    inputs = load_file(f"{folder}/inputs.safetensors")

    class Transformer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = WanTransformer3DModel.from_pretrained(f"{folder}/transformer", torch_dtype=dtype)

        def forward(self, latent, timestep, text):
            return self.model(latent, timestep, text, return_dict=False)[0]

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = AutoencoderKLWan.from_pretrained(f"{folder}/vae", torch_dtype=dtype)
            shape = (1, -1, 1, 1, 1)
            self.mean, self.std = (torch.tensor(self.model.config[key], dtype=dtype).view(shape) for key in ("latents_mean", "latents_std"))

        def forward(self, z):
            return self.model.decode(z * self.std + self.mean, return_dict=False)[0]

    if part == "transformer":
        return Transformer().eval(), (inputs["latent"][None].to(dtype), inputs["timestep"], inputs["text"][None].to(dtype))
    return Decoder().eval(), (inputs["z"][None].to(dtype),)


def exportable(module):
    """Operators that exporters do not know in other words: the same values."""
    import torch

    torch.nn.RMSNorm.forward = lambda self, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight
    for layer in module.modules():
        if isinstance(layer, torch.nn.Upsample) and layer.mode == "nearest-exact":
            layer.mode = "nearest"  # the two are one when the factor is 2
    return module


def torch_eager(part, folder, threads, dtype="float32", compiled=False):
    import torch

    torch.set_num_threads(threads)
    module, inputs = load(part, folder, getattr(torch, dtype))
    run = torch.compile(module) if compiled else module

    def forward():
        with torch.inference_mode():
            return run(*inputs)

    return f"torch {torch.__version__} {'compiled ' if compiled else ''}{'bf16' if dtype == 'bfloat16' else 'f32'}", forward


def onnxruntime_f32(part, folder, threads):
    import onnxruntime
    import torch

    path = f"{folder}/{part}.onnx"
    module, inputs = load(part, folder, torch.float32)
    names = [f"in{i}" for i in range(len(inputs))]
    with torch.no_grad():
        torch.onnx.export(exportable(module), inputs, path, input_names=names, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = dict(zip(names, (value.numpy() for value in inputs)))
    return f"ONNX Runtime {onnxruntime.__version__} f32", lambda: torch.from_numpy(session.run(None, feed)[0])


def openvino_bf16(part, folder, threads):
    import openvino
    import torch

    module, inputs = load(part, folder, torch.float32)
    with torch.no_grad():
        model = openvino.convert_model(exportable(module), example_input=inputs)
    config = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.compile_model(model, "CPU", config).create_infer_request()
    feed = [value.numpy() for value in inputs]
    return f"OpenVINO {openvino.__version__.split('-')[0]} bf16", lambda: torch.from_numpy(request.infer(feed)[0].copy())


FRAMEWORKS = {
    "torch-f32": torch_eager,
    "torch-bf16": lambda *args: torch_eager(*args, dtype="bfloat16"),
    "torch-compiled-bf16": lambda *args: torch_eager(*args, dtype="bfloat16", compiled=True),
    "onnxruntime-f32": onnxruntime_f32,
    "openvino-bf16": openvino_bf16,
}


def serve(framework, part, folder, threads):
    try:
        name, forward = FRAMEWORKS[framework](part, folder, int(threads))
        for _ in range(2):
            forward()
    except ImportError as error:
        return answer(absent=f"{framework}: {error}")
    except Exception as error:  # a framework that cannot run the part is reported, whatever it says
        return answer(absent=f"{framework} cannot run the {part}: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}")
    answer(name=name)
    output = None
    for line in sys.stdin:
        command, _, path = line.strip().partition(" ")
        if command == "run":
            start = time.perf_counter()
            output = forward()
            answer(ms=1000 * (time.perf_counter() - start))
        elif command == "write":
            from safetensors.torch import save_file

            save_file({"output": output[0].float().contiguous()}, path)
            answer(written=path)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    {"make": make, "serve": serve}[command](*arguments)
