#define SEGLAYERS_NAME "plain"
#define SEGLAYERS_KERNELS kernels_plain
#include "kernels.inl"
