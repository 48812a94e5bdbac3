#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_core, m) { m.doc() = "Sparse convolution and fully connected kernels for the CPU."; }
