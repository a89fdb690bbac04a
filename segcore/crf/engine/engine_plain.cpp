#define SEGCRF_ISA plain
#define SEGCRF_NAME "native-plain"
#define SEGCRF_ENGINE engine_plain
#include "engine.inl"
