// Build of the kernels for any machine: vectors of 4 floats, lowered by the compiler to what there is.
#define FINEPRUNING_ISA_NAME "portable"
#define FINEPRUNING_ISA_TABLE kIsaPortable
#define FINEPRUNING_VECTOR_FLOATS 4
#define FINEPRUNING_TILE_VECTORS 12
#include "kernels.inl"
