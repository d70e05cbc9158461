"""Our CARAFE beside mmcv's compiled operator on a GPU: values, gradients, time and memory, and whether the package accepts it.

    python tests/benchmarks/mmcv_carafe.py --mmcv mmcv-2.2.0.tar.gz --out tests/benchmarks/results/mmcv_carafe.json

Needs a CUDA GPU, nvcc, ninja, and mmcv's imports (mmengine, addict, yapf, termcolor, platformdirs, OpenCV). Of mmcv's two hundred
C++ and CUDA sources only CARAFE's four are compiled, as they are in its source distribution, behind a binding that stands for
`mmcv._ext`; all other operators are absent and say so when called.

"rows": one shape and number type each. The truth is our CARAFE in float64 on the CPU, on the inputs as rounded to the row's type; an
error is the largest absolute difference, divided by the largest absolute value of the truth. Times are medians of 30 calls, each
started on an idle GPU, so that small shapes show what launching costs; memory is what forward and backward need at their peak beyond
the inputs. "accepted": what `causalclipseg.carafe._mmcv_operator` says of the operator. "through": what `causalclipseg.carafe.carafe`
and the module `CARAFE` give with the operator behind them, against the same without it, in the layouts and types that training uses.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
import os
import shutil
import sys
import sysconfig
import tarfile
import tempfile
import time
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

SEED, WARM_UP, REPEATS = 0, 10, 30
#: name -> (B, C, h, w, k, G, s); the first two are what `Fusion` upsamples in the preset `paper` at 224 x 224, the third in `mini`
SHAPES = {
    "paper, stride 16": (32, 256, 14, 14, 5, 1, 2),
    "paper, stride 32": (32, 256, 7, 7, 5, 1, 4),
    "mini, stride 16": (32, 96, 14, 14, 5, 1, 2),
    "small": (2, 64, 28, 28, 5, 1, 2),
    "small, k 3, 2 groups": (2, 64, 28, 28, 3, 2, 2),
    "odd sizes, 2 groups": (3, 64, 13, 17, 5, 2, 2),
    "scale 3, k 3": (2, 64, 9, 11, 3, 1, 3),
    "batch": (32, 64, 28, 28, 5, 1, 2),
    "batch, k 3": (32, 64, 28, 28, 3, 1, 2),
    "batch, 128 channels, 2 groups": (32, 128, 28, 28, 5, 2, 2),
    "batch, 256 channels": (32, 256, 28, 28, 5, 1, 2),
}
DTYPES = ("float32", "float16", "bfloat16")
FUNCTIONS = ("carafe_forward", "carafe_backward", "carafe_naive_forward", "carafe_naive_backward")
SOURCES = ("carafe.cpp", "carafe_naive.cpp", "cuda/carafe_cuda.cu", "cuda/carafe_naive_cuda.cu")
#: (file under csrc, header it includes, what stands in its place where this torch no longer has the header)
HEADERS = (
    ("common/pytorch_cuda_helper.hpp", "THC/THCAtomics.cuh", "#include <ATen/cuda/Atomic.cuh>"),
    ("common/pytorch_cuda_helper.hpp", "ATen/cuda/CUDAApplyUtils.cuh", ""),
    ("common/cuda/carafe_cuda_kernel.cuh", "ATen/cuda/DeviceUtils.cuh", ""),
)

# CARAFE's part of mmcv's pybind.cpp and cuda/cudabind.cpp. The launchers take const Tensors, the registry wants the dispatcher's types.
BINDING = r"""
#include <torch/extension.h>

#include "pytorch_cpp_helper.hpp"
#include "pytorch_device_registry.hpp"

#define FORWARD Tensor features, Tensor masks, Tensor rfeatures, Tensor routput, Tensor rmasks, Tensor output, \
    int kernel_size, int group_size, int scale_factor
#define BACKWARD Tensor top_grad, Tensor rfeatures, Tensor masks, Tensor rtop_grad, Tensor rbottom_grad_hs, Tensor rbottom_grad, \
    Tensor rmask_grad, Tensor bottom_grad, Tensor mask_grad, int kernel_size, int group_size, int scale_factor
#define NAIVE_FORWARD Tensor features, Tensor masks, Tensor output, int kernel_size, int group_size, int scale_factor
#define NAIVE_BACKWARD Tensor top_grad, Tensor features, Tensor masks, Tensor bottom_grad, Tensor mask_grad, \
    int kernel_size, int group_size, int scale_factor

void CARAFEForwardCUDAKernelLauncher(const Tensor features, const Tensor masks, Tensor rfeatures, Tensor routput, Tensor rmasks,
                                     Tensor output, const int kernel_size, const int group_size, const int scale_factor);
void CARAFEBackwardCUDAKernelLauncher(const Tensor top_grad, const Tensor rfeatures, const Tensor masks, Tensor rtop_grad,
                                      Tensor rbottom_grad_hs, Tensor rbottom_grad, Tensor rmask_grad, Tensor bottom_grad,
                                      Tensor mask_grad, const int kernel_size, const int group_size, const int scale_factor);
void CARAFENAIVEForwardCUDAKernelLauncher(const Tensor features, const Tensor masks, Tensor output, const int kernel_size,
                                          const int group_size, const int scale_factor);
void CARAFENAIVEBackwardCUDAKernelLauncher(const Tensor top_grad, const Tensor features, const Tensor masks, Tensor bottom_grad,
                                           Tensor mask_grad, const int kernel_size, const int group_size, const int scale_factor);

void carafe_forward_cuda(FORWARD) {
  CARAFEForwardCUDAKernelLauncher(features, masks, rfeatures, routput, rmasks, output, kernel_size, group_size, scale_factor);
}
void carafe_backward_cuda(BACKWARD) {
  CARAFEBackwardCUDAKernelLauncher(top_grad, rfeatures, masks, rtop_grad, rbottom_grad_hs, rbottom_grad, rmask_grad, bottom_grad,
                                   mask_grad, kernel_size, group_size, scale_factor);
}
void carafe_naive_forward_cuda(NAIVE_FORWARD) {
  CARAFENAIVEForwardCUDAKernelLauncher(features, masks, output, kernel_size, group_size, scale_factor);
}
void carafe_naive_backward_cuda(NAIVE_BACKWARD) {
  CARAFENAIVEBackwardCUDAKernelLauncher(top_grad, features, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor);
}

void carafe_forward_impl(FORWARD);
void carafe_backward_impl(BACKWARD);
void carafe_naive_forward_impl(NAIVE_FORWARD);
void carafe_naive_backward_impl(NAIVE_BACKWARD);
REGISTER_DEVICE_IMPL(carafe_forward_impl, CUDA, carafe_forward_cuda);
REGISTER_DEVICE_IMPL(carafe_backward_impl, CUDA, carafe_backward_cuda);
REGISTER_DEVICE_IMPL(carafe_naive_forward_impl, CUDA, carafe_naive_forward_cuda);
REGISTER_DEVICE_IMPL(carafe_naive_backward_impl, CUDA, carafe_naive_backward_cuda);

void carafe_forward(FORWARD);
void carafe_backward(BACKWARD);
void carafe_naive_forward(NAIVE_FORWARD);
void carafe_naive_backward(NAIVE_BACKWARD);

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("carafe_forward", &carafe_forward, py::arg("features"), py::arg("masks"), py::arg("rfeatures"), py::arg("routput"),
        py::arg("rmasks"), py::arg("output"), py::arg("kernel_size"), py::arg("group_size"), py::arg("scale_factor"));
  m.def("carafe_backward", &carafe_backward, py::arg("top_grad"), py::arg("rfeatures"), py::arg("masks"), py::arg("rtop_grad"),
        py::arg("rbottom_grad_hs"), py::arg("rbottom_grad"), py::arg("rmask_grad"), py::arg("bottom_grad"), py::arg("mask_grad"),
        py::arg("kernel_size"), py::arg("group_size"), py::arg("scale_factor"));
  m.def("carafe_naive_forward", &carafe_naive_forward, py::arg("features"), py::arg("masks"), py::arg("output"),
        py::arg("kernel_size"), py::arg("group_size"), py::arg("scale_factor"));
  m.def("carafe_naive_backward", &carafe_naive_backward, py::arg("top_grad"), py::arg("features"), py::arg("masks"),
        py::arg("bottom_grad"), py::arg("mask_grad"), py::arg("kernel_size"), py::arg("group_size"), py::arg("scale_factor"));
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mmcv", required=True, type=Path, help="mmcv's source distribution (mmcv-2.2.0.tar.gz), or its unpacked folder")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--build", type=Path, help="folder for what is unpacked and compiled; default: one that is removed afterwards")
    args = parser.parse_args()

    import torch

    from causalclipseg._files import write_text

    if not torch.cuda.is_available():
        raise SystemExit("This comparison needs a CUDA GPU.")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 of both, not rounded to 10 bits
    major, minor = torch.cuda.get_device_capability()
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda}
    result = {"device": torch.cuda.get_device_name(), "versions": versions, "seed": SEED, "repeats": REPEATS, "patched": [], "rows": {}}

    def write() -> None:
        write_text(args.out, json.dumps(result, indent=2) + "\n")

    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.build or Path(temporary)).resolve()
        began = time.perf_counter()
        try:
            source = unpack(args.mmcv, folder)
            extension, result["patched"] = build(source, folder, f"{major}.{minor}")
        except Exception as error:  # whatever failed, the compiler's last words come first
            result["failed"] = text_of(error, 4000)
            write()
            print("\n".join(str(error).splitlines()[-40:]), flush=True)
            raise SystemExit("mmcv's CARAFE could not be built here.") from None
        result["build_seconds"] = time.perf_counter() - began
        print(f"built in {result['build_seconds']:.0f} s; patched: {result['patched'] or 'nothing'}", flush=True)
        try:
            mmcv = import_mmcv(source, extension)
        except Exception as error:
            result["failed"] = text_of(error, 4000)
            write()
            raise SystemExit(f"mmcv.ops cannot be imported: {text_of(error)}") from None
        versions["mmcv"] = mmcv.__version__

        result["accepted"] = acceptance()
        print("accepted:", result["accepted"], flush=True)
        write()
        for name, shape in SHAPES.items():
            for dtype in DTYPES:
                try:
                    row = measure(shape, getattr(torch, dtype))
                except Exception as error:  # one row that cannot run is no end of the others
                    row = {"failed": text_of(error)}
                result["rows"][f"{name}, {dtype}"] = {"shape": dict(zip("BChwkGs", shape)), **row}
                torch.cuda.empty_cache()
                write()
                print(f"{name}, {dtype}: {line(row)}", flush=True)
        result["through"] = {}
        for name, case in cases().items():
            try:
                result["through"][name] = case()
            except Exception as error:
                result["through"][name] = {"failed": text_of(error)}
            write()
            print(f"through, {name}: {result['through'][name]}", flush=True)


def text_of(error: Exception, length: int = 300) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[-length:]


def line(row: dict) -> str:
    """A row in one line: errors of values and gradients against the truth, and how many times mmcv's time ours is."""
    if "failed" in row:
        return row["failed"]
    parts = []
    for name in ("ours", "mmcv", "mmcv_naive"):
        if name in row:
            errors = row[name].get("error")
            parts.append(f"{name} {' '.join(f'{e:.1e}' for e in errors.values())}" if errors else f"{name} {row[name]['failed'][:90]}")
    parts += [f"{key} {value:.2f}" for key, value in row.get("time, ours / mmcv", {}).items()]
    return "; ".join(parts)


def unpack(mmcv: Path, folder: Path) -> Path:
    """A copy of mmcv's sources in `folder`, where they may be patched: the folder that holds `mmcv/ops`."""
    target = folder / "source"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    if mmcv.is_dir():
        shutil.copytree(mmcv / "mmcv", target / "mmcv")
    else:
        with tarfile.open(mmcv) as archive:
            archive.extractall(target, filter="data")
    found = sorted(target.glob("**/mmcv/ops/carafe.py"))
    if not found:
        raise FileNotFoundError(f"{mmcv} holds no mmcv/ops/carafe.py.")
    return found[0].parents[2]


def build(source: Path, folder: Path, arch: str):
    """Compile CARAFE's sources.

    Returns:
        (the extension module, a list of the changes that mmcv's files needed)
    """
    # An nvcc on the path may be a wrapper far from its toolkit, by which torch would then look for headers.
    homes = [Path(p) for p in ("/usr/local/cuda", *sorted(map(str, Path("/usr/local").glob("cuda-*")), reverse=True))]
    home = next((h for h in homes if (h / "bin" / "nvcc").exists()), None)
    if home and not os.environ.get("CUDA_HOME"):
        os.environ["CUDA_HOME"] = str(home)
    os.environ["TORCH_CUDA_ARCH_LIST"] = arch
    os.environ.setdefault("MAX_JOBS", str(min(5, os.cpu_count() or 1)))  # one for each source

    from torch.utils import cpp_extension

    csrc = source / "mmcv" / "ops" / "csrc"
    includes = [Path(p) for p in cpp_extension.include_paths("cuda")]
    patched = []
    for name, header, instead in HEADERS:
        if not any((p / header).exists() for p in includes):
            old = f"#include <{header}>"
            (csrc / name).write_text((csrc / name).read_text(encoding="utf-8").replace(old, instead), encoding="utf-8")
            patched.append(f"{name}: {old} -> {instead or 'nothing'}")
    # Toolkits without the libraries' headers: PyTorch's own wheels bring them.
    extra = [] if any((p / "cusparse.h").exists() for p in includes) else sorted(Path(sysconfig.get_paths()["purelib"]).glob("nvidia/*/include"))
    binding = folder / "binding.cpp"
    binding.write_text(BINDING, encoding="utf-8")
    (folder / "objects").mkdir(exist_ok=True)
    extension = cpp_extension.load(
        name="mmcv_carafe",
        sources=[str(binding), *(str(csrc / "pytorch" / s) for s in SOURCES)],
        extra_include_paths=[str(p) for p in (csrc / "common", csrc / "common" / "cuda", csrc / "pytorch", *extra)],
        extra_cflags=["-O2", "-DMMCV_WITH_CUDA"],
        extra_cuda_cflags=["-O2", "-DMMCV_WITH_CUDA"],
        build_directory=str(folder / "objects"),
        with_cuda=True,
        verbose=False,  # the compiler's output is then in the error
    )
    return extension, patched


def import_mmcv(source: Path, extension):
    """Import `mmcv.ops` from `source`, with `extension` as the part of `mmcv._ext` that exists."""
    fake = types.ModuleType("mmcv._ext")
    fake.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
    for name in FUNCTIONS:
        setattr(fake, name, getattr(extension, name))

    def absent(name: str):
        if name.startswith("__"):
            raise AttributeError(name)  # the import system's own questions

        def refuse(*_, **__):
            raise NotImplementedError(f"{name} was not compiled.")

        return refuse

    fake.__getattr__ = absent
    sys.modules["mmcv._ext"] = fake
    sys.path.insert(0, str(source))
    # mmengine would import all of transformers for one optimiser that no operator needs.
    hidden = "transformers" not in sys.modules and importlib.util.find_spec("transformers") is not None
    if hidden:
        sys.modules["transformers"] = None
    try:
        import mmcv
        import mmcv.ops
    finally:
        if hidden:
            del sys.modules["transformers"]
    if Path(mmcv.__file__).resolve().parents[1] != source.resolve():
        raise ImportError(f"mmcv came from {mmcv.__file__}, not from {source}.")
    return mmcv


def acceptance() -> dict:
    """What `_mmcv_operator` says, and where it says no, what it met."""
    import mmcv.ops

    from causalclipseg import carafe as module

    module._mmcv_operator.cache_clear()
    accepted = module._mmcv_operator()
    about = {"accepted": accepted is not None, "is mmcv's": accepted is mmcv.ops.carafe}
    try:  # the same comparison again, for its number or its error
        import torch

        generator = torch.Generator().manual_seed(SEED)
        features, kernels = torch.randn(1, 4, 3, 5, generator=generator), torch.rand(1, 50, 6, 10, generator=generator)
        got = mmcv.ops.carafe(features.cuda(), kernels.cuda(), 5, 2, 2).cpu()
        about["largest_difference"] = float((got - module.carafe(features, kernels, 5, 2, 2)).abs().max())
    except Exception as error:
        about["failed"] = text_of(error)
    return about


def ours(*args):
    return behind(None, *args)


def behind(operator, *args):
    """`causalclipseg.carafe.carafe` with `operator` as the compiled one; None: ours alone."""
    from causalclipseg import carafe as module

    kept, module._mmcv_operator = module._mmcv_operator, lambda: operator
    try:
        return module.carafe(*args)
    finally:
        module._mmcv_operator = kept


def inputs(shape: tuple, dtype):
    """(features, kernels that sum to one over a group's taps, gradient of the result) on the CPU, as float64 of what `dtype` can hold."""
    import torch

    b, c, h, w, k, g, s = shape
    generator = torch.Generator().manual_seed(SEED)
    features = torch.randn(b, c, h, w, generator=generator)
    kernels = torch.randn(b, g, k * k, s * h, s * w, generator=generator).softmax(2).reshape(b, -1, s * h, s * w)
    gradient = torch.randn(b, c, s * h, s * w, generator=generator)
    return [x.to(dtype).double() for x in (features, kernels, gradient)]


def run(operator, tensors, settings) -> list:
    """[values, gradient of the features, gradient of the kernels]"""
    import torch

    features, kernels = (x.detach().requires_grad_() for x in tensors[:2])
    values = operator(features, kernels, *settings)
    return [values.detach(), *torch.autograd.grad(values, (features, kernels), tensors[2].to(values.dtype))]


def differences(got, truth) -> dict:
    """Largest absolute difference by the largest absolute value of the truth, of values and both gradients."""
    names = ("values", "features' gradient", "kernels' gradient")
    return {n: float((a.double().to(b.device) - b.double()).abs().max() / b.double().abs().max()) for n, a, b in zip(names, got, truth)}


def measure(shape: tuple, dtype) -> dict:
    """One row."""
    import mmcv.ops
    import torch

    settings = shape[4:]
    doubles = inputs(shape, dtype)
    truth = [x.cuda() for x in run(ours, doubles, settings)]
    tensors = [x.to("cuda", dtype) for x in doubles]
    row, results = {}, {}
    operators = {"ours": ours, "mmcv": mmcv.ops.carafe, "mmcv_naive": mmcv.ops.carafe_naive}
    for name, operator in operators.items():
        try:
            results[name] = run(operator, tensors, settings)
            row[name] = {"error": differences(results[name], truth)}
        except Exception as error:  # a type that mmcv lacks
            row[name] = {"failed": text_of(error)}
    if "ours" in results and "mmcv" in results:
        row["ours against mmcv"] = differences(results["ours"], results["mmcv"])
    results.clear()
    del truth
    for name, operator in operators.items():
        if "error" in row[name]:
            row[name] |= times(operator, tensors, settings)
    if "error" in row["ours"] and "error" in row["mmcv"]:
        row["time, ours / mmcv"] = {k: row["ours"][f"{k}_ms"] / row["mmcv"][f"{k}_ms"] for k in ("forward", "forward_backward")}
    return row


def times(operator, tensors, settings) -> dict:
    import torch

    def forward() -> None:
        with torch.no_grad():
            operator(*tensors[:2], *settings)

    found = {}
    for name, call in (("forward", forward), ("forward_backward", lambda: run(operator, tensors, settings))):
        for _ in range(WARM_UP):
            call()
        samples = []
        for _ in range(REPEATS):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            samples.append(begin.elapsed_time(end))
        found[f"{name}_ms"] = sorted(samples)[REPEATS // 2]
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run(operator, tensors, settings)
    torch.cuda.synchronize()
    return {**found, "peak_mb": (torch.cuda.max_memory_allocated() - before) / 1e6}


def cases() -> dict:
    """name -> function that compares the package with mmcv's operator behind it to the package without it."""
    import mmcv.ops
    import torch

    from causalclipseg import carafe as module

    shape = (4, 64, 14, 10, 5, 1, 2)
    last = torch.channels_last

    def function(dtype=torch.float32, kernel_dtype=None, features_format=torch.contiguous_format, kernels_format=torch.contiguous_format):
        features, kernels, gradient = (x.to("cuda", dtype) for x in inputs(shape, dtype))
        tensors = [features.contiguous(memory_format=features_format), kernels.to(kernel_dtype or dtype).contiguous(memory_format=kernels_format)]
        tensors.append(gradient.contiguous(memory_format=features_format))
        alone = run(ours, tensors, shape[4:])
        return differences(run(lambda *args: behind(mmcv.ops.carafe, *args), tensors, shape[4:]), alone)

    def layer(autocast=None, memory_format=torch.contiguous_format):
        torch.manual_seed(SEED)
        net = module.CARAFE(shape[1], 2).cuda().to(memory_format=memory_format)
        features, _, gradient = (x.to("cuda", torch.float32).contiguous(memory_format=memory_format) for x in inputs(shape, torch.float32))

        def result(operator):
            x = features.clone().requires_grad_()
            kept, module._mmcv_operator = module._mmcv_operator, lambda: operator
            try:
                with torch.autocast("cuda", autocast or torch.float16, enabled=autocast is not None):
                    values = net(torch.relu(x) if autocast is None else torch.relu(x).to(autocast))
                weight = net.content_encoder.weight
                return [values.detach(), *torch.autograd.grad(values, (x, weight), gradient.to(values.dtype))]
            finally:
                module._mmcv_operator = kept

        alone = result(None)
        found = differences(result(mmcv.ops.carafe), alone)
        found["encoder's gradient"] = found.pop("kernels' gradient")
        return found

    return {
        "float32": function,
        "float32, features channels_last": lambda: function(features_format=last),
        "float32, kernels channels_last": lambda: function(kernels_format=last),
        "float16": lambda: function(torch.float16),
        "float16, kernels float32": lambda: function(torch.float16, torch.float32),
        "bfloat16": lambda: function(torch.bfloat16),
        "bfloat16, kernels float32": lambda: function(torch.bfloat16, torch.float32),
        "CARAFE, float32": layer,
        "CARAFE, float32, channels_last": lambda: layer(memory_format=last),
        "CARAFE, autocast float16": lambda: layer(torch.float16),
        "CARAFE, autocast float16, channels_last": lambda: layer(torch.float16, last),
        "CARAFE, autocast bfloat16": lambda: layer(torch.bfloat16),
        "CARAFE, autocast bfloat16, channels_last": lambda: layer(torch.bfloat16, last),
    }


if __name__ == "__main__":
    main()
