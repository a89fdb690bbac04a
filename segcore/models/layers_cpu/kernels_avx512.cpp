#define SEGLAYERS_NAME "avx512"
#define SEGLAYERS_KERNELS kernels_avx512
#include "kernels.inl"
