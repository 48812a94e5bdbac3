#!/usr/bin/env bash
# Looks for races in the native code with ThreadSanitizer; then builds the extension with AddressSanitizer and
# UndefinedBehaviorSanitizer and runs the tests of the kernels on it. Both for every instruction set of this machine.
# Needs GCC.
#
#     scripts/sanitize.sh [PYTHON]      # of an environment with the test extra
#
# The instrumented package goes into an environment of its own in build/sanitize, laid over PYTHON's packages.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${1:-.venv/bin/python}
OVERLAY=$PWD/build/sanitize/venv

rm -rf "$OVERLAY"
"$PYTHON" -m venv --without-pip "$OVERLAY"
"$PYTHON" - "$OVERLAY" <<'EOF'
import sys
from pathlib import Path

# Folders that a .pth file adds have their own .pth files ignored: an editable install does not reach the overlay.
packages = next(Path(sys.argv[1]).glob("lib/python*/site-packages"))
(packages / "below.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")) + "\n")
EOF
build() { # SANITIZERS FOLDER PIP_COMMAND...
  "$PYTHON" -m pip --python "$OVERLAY/bin/python" "${@:3}" --quiet --no-deps \
    -C build-dir="build/sanitize/$2" -C cmake.define.FINEPRUNING_SANITIZE="$1" .
}

build thread thread wheel -w build/sanitize/thread # no wheel of use, but the program in it
build/sanitize/thread/races
echo "ThreadSanitizer found nothing."

build address,undefined address install

# The interpreter itself is not instrumented: the run-time library must come first, and with it the library whose
# exceptions it watches. Python and PyTorch keep memory until they exit, so leaks are not looked for.
export LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0:strict_string_checks=1:detect_stack_use_after_return=1
export UBSAN_OPTIONS=print_stacktrace=1
export OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive
run() { "$OVERLAY/bin/python" -I "$@"; } # -I: the package in this folder is not the instrumented one

instruction_sets=$(run - <<'EOF'
from pathlib import Path

from finepruning import _core

library = Path(_core.__file__).read_bytes()
assert b"__asan_report_store" in library, f"{_core.__file__} is not instrumented"
assert b"__ubsan_handle" in library, f"{_core.__file__} is not instrumented"
print(*sorted({kernel["isa"] for kernel in _core.kernels()}))
EOF
)
for isa in $instruction_sets; do # --capture=sys lets the sanitizers' reports through, which end the process
  echo "AddressSanitizer and UndefinedBehaviorSanitizer, $isa kernels:"
  FINEPRUNING_ISA=$isa run -m pytest -q --capture=sys -p no:cacheprovider tests/csrc tests/engine/test_cpu.py \
    tests/engine/test_cpu_pooling.py tests/engine/test_cpu_residual.py tests/engine/test_cpu_values.py \
    tests/engine/test_cpu_schedule.py tests/engine/test_cpu_bands.py tests/engine/test_cpu_streaming.py
done
echo "AddressSanitizer and UndefinedBehaviorSanitizer found nothing ($instruction_sets)."
