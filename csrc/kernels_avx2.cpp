// AVX2 + FMA build of the kernels: 8 floats a vector, 16 registers.
#include <immintrin.h>

#define FINEPRUNING_ISA_NAME "avx2"
#define FINEPRUNING_ISA_TABLE kIsaAvx2
#define FINEPRUNING_VECTOR_FLOATS 8
#define FINEPRUNING_TILE_VECTORS 14
#include "kernels.inl"
