#define SEGCRF_ISA avx512
#define SEGCRF_NAME "native-avx512"
#define SEGCRF_ENGINE engine_avx512
#include "engine.inl"
