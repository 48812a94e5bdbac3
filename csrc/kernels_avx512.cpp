// AVX-512 build of the kernels: 16 floats a vector, 32 registers.
#include <immintrin.h>

#define FINEPRUNING_ISA_NAME "avx512"
#define FINEPRUNING_ISA_TABLE kIsaAvx512
#define FINEPRUNING_VECTOR_FLOATS 16
#define FINEPRUNING_TILE_VECTORS 28
#include "kernels.inl"
