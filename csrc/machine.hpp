// Limits of this machine, measured: the floor that speeds are compared with.
#pragma once

namespace finepruning {

// Multiply-accumulates of float32 per second that `threads` cores reach together, in units of 1e9.
double fma_peak(int threads);
// Bytes per second that `threads` cores read from memory together, in units of 1e9; needs 1 GiB for a moment.
double read_bandwidth(int threads);

}  // namespace finepruning
