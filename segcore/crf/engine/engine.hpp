// What the Python binding and the three builds of the engine (plain, AVX2, AVX-512) agree on.
//
// The engine itself is engine.inl, compiled once per instruction set in a namespace of its own; only plain structs
// cross this border, so that no inline function compiled for AVX-512 can end up being run by an older processor.
#pragma once

#include <cstddef>
#include <cstdint>

// Compiled with -DSEGCRF_PROFILE every call tells its parts on standard error, in thread CPU time.
#if defined(SEGCRF_PROFILE)
#include <cstdio>
#include <ctime>
namespace segcrf {
inline void tick(const char* name) {
    static thread_local double last = 0;
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    const double now = static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_nsec) * 1e-6;
    std::fprintf(stderr, "  %-12s %.2f ms\n", name, now - last);
    last = now;
}
}  // namespace segcrf
#define SEGCRF_TICK(name) ::segcrf::tick(name)
#else
#define SEGCRF_TICK(name)
#endif

namespace segcrf {

// Memory that grows and is then reused from image to image.
struct Buffer {
    void* data = nullptr;
    std::size_t bytes = 0;
};

// At least `bytes` of 64-byte aligned memory; what was in it is lost when it grows. Throws std::bad_alloc.
void* reserve(Buffer& buffer, std::size_t bytes);
void release(Buffer& buffer);

constexpr int kMaxDims = 5;

// A permutohedral lattice (Adams et al. 2010) over the pixels of one image, or over the plane of one image size.
struct Lattice {
    int dims = 0;
    std::int64_t num_pixels = 0;
    std::int64_t num_vertices = 0;            // rows 2 .. num_vertices + 1; row 0 is always zero, row 1 takes rubbish
    Buffer vertices;                          // int32 [num_pixels][dims + 1], row of each simplex corner
    Buffer weights;                           // float [num_pixels][dims + 1], barycentric times the splat scale
    Buffer chains[kMaxDims + 1];              // int32, runs of neighbours along one axis, 0 between and after them
    std::int64_t chain_length[kMaxDims + 1] = {};
    Buffer made;                              // int32 [blocks + 1], rows in use before each block of pixels
    Buffer gain;                              // float [num_pixels], scale of a sliced message; empty: 1 everywhere
    Buffer total;                             // float [num_pixels], message that Q = 1 would send; empty: 1 everywhere
};

constexpr int kBlock = 16;  // pixels that go through a pass together

void release(Lattice& lattice);
std::size_t footprint(const Lattice& lattice);

enum class Normalization : int { symmetric = 0, caffe = 1 };

struct Params {
    float bilateral_weight, bilateral_xy, bilateral_rgb, gaussian_weight, gaussian_xy;
    int iterations;
    Normalization normalization;
    float min_probability;
};

// Everything that one call needs, reused by the next call of the same thread.
struct Workspace {
    Lattice bilateral;
    Buffer unary, grid, row, normalizer, table, keys, next, values[4], scratch[4];
};

struct Problem {
    int height = 0, width = 0, num_classes = 0;
    const std::uint8_t* image = nullptr;      // [height][width][3]
    // Either probabilities ...
    const float* probabilities = nullptr;     // [num_classes][height][width]
    // ... or scores on a grid whose corners are the corners of extent_height x extent_width pixels.
    const std::uint16_t* scores = nullptr;    // float16 [num_classes][grid_height][grid_width]
    int grid_height = 0, grid_width = 0, extent_height = 0, extent_width = 0;
    bool with_crf = true;
    Params params{};
    // Results; null pointers are left out.
    float* marginals = nullptr;               // [num_classes][height][width]
    std::uint8_t* labels = nullptr;           // [height][width]
    std::uint8_t* labels_before = nullptr;    // [height][width]
    std::int64_t* class_pixels = nullptr;     // [num_classes]
    double* class_confidence = nullptr;       // [num_classes]
    double confidence = 0, entropy = 0, changed = 0;
    int num_kept = 0;                         // classes that took part in the mean field
};

struct Engine {
    const char* name;
    void (*build_spatial)(Lattice&, Workspace&, int height, int width, float sigma, Normalization);
    void (*solve)(Problem&, Workspace&, const Lattice* spatial);
};

extern const Engine engine_plain;
#if defined(SEGCRF_X86)
extern const Engine engine_avx2;
extern const Engine engine_avx512;
#endif

}  // namespace segcrf
