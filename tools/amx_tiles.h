// Mends `_tile_loadconfig` of GCC 12 for llama.cpp, which crashes with AMX otherwise (docs/engine.md, "AMX").
// GCC's own reads 64 bytes, but tells the optimiser of 8, so that the stores to the others are removed.
#ifdef __AMX_TILE__
#include <immintrin.h>
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg\t%X0" ::"m"(*(const char(*)[64])(config)))
#endif
