// AVX-512 build of the kernels with vectors of half the width: 8 floats a vector, 32 registers. For machines
// that are no faster with whole ones.
#include <immintrin.h>

#define FINEPRUNING_ISA_NAME "avx512vl"
#define FINEPRUNING_ISA_TABLE kIsaAvx512vl
#define FINEPRUNING_VECTOR_FLOATS 8
#define FINEPRUNING_TILE_VECTORS 28
#include "kernels.inl"
