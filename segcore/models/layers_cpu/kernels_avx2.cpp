#define SEGLAYERS_NAME "avx2"
#define SEGLAYERS_KERNELS kernels_avx2
#include "kernels.inl"
