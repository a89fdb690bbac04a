#define SEGCRF_ISA avx2
#include "lattice.inl"
