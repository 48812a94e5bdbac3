"""Runs one ONNX file in DeepSparse for `cpu_peers.py`, under the interpreter of an environment that has it.

    PYTHON deepsparse_worker.py MODEL.onnx INPUT.npy OUTPUT.npy THREADS

DeepSparse needs NumPy < 2 and an older ONNX, so it cannot share a process with the rest. It prints "ready",
then runs once for every line it reads and prints "done"; OUTPUT.npy holds the result of the first run.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from deepsparse import Engine


def main() -> None:
    model_path, input_path, output_path, threads = sys.argv[1:]
    x = np.load(input_path)
    # It reads files up to IR version 9 and opset 17 or so; the operations used here mean the same in those.
    model = onnx.load(model_path)
    model.ir_version = 8
    model.opset_import[0].version = min(17, model.opset_import[0].version)
    older = Path(model_path).with_suffix(".deepsparse.onnx")
    onnx.save(model, str(older))
    engine = Engine(model=str(older), batch_size=x.shape[0], num_cores=int(threads))
    np.save(output_path, engine([x])[0])
    print("ready", flush=True)
    for _ in sys.stdin:
        engine([x])
        print("done", flush=True)


if __name__ == "__main__":
    main()
