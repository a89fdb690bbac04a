#define SEGCRF_ISA plain
#include "lattice.inl"
