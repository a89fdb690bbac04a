#define SEGCRF_ISA avx2
#define SEGCRF_NAME "native-avx2"
#define SEGCRF_ENGINE engine_avx2
#include "engine.inl"
