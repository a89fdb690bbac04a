#define SEGCRF_ISA avx512
#include "lattice.inl"
