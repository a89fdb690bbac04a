// Memory of the engine: grows to what the largest image needs, is reused from image to image, and asks for huge pages.

#include <cstdlib>
#include <initializer_list>
#include <new>

#include "engine.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#elif defined(_WIN32)
#include <malloc.h>
#endif

namespace segcrf {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Windows has no aligned_alloc, and frees what is aligned by a function of its own
static void* aligned(std::size_t unit, std::size_t size) {
#if defined(_WIN32)
    return _aligned_malloc(size, unit);
#else
    return std::aligned_alloc(unit, size);
#endif
}

void release(Buffer& buffer) {
#if defined(_WIN32)
    _aligned_free(buffer.data);
#else
    std::free(buffer.data);
#endif
    buffer = Buffer{};
}

void* reserve(Buffer& buffer, std::size_t bytes) {
    if (bytes > buffer.bytes || !buffer.data) {
        release(buffer);
        // A little more than asked, so that images of slightly different sizes do not each allocate
        const std::size_t wanted = bytes + bytes / 16 + 4096;
        const bool large = wanted >= kHugePage;
        const std::size_t unit = large ? kHugePage : 64, size = (wanted + unit - 1) / unit * unit;
        buffer.data = aligned(unit, size);
        if (!buffer.data) throw std::bad_alloc();
#if defined(__linux__)
        // Rows and hash slots are visited at random: with pages of 4 KiB half the time goes into address translation
        if (large) madvise(buffer.data, size, MADV_HUGEPAGE);
#endif
        buffer.bytes = size;
    }
    return buffer.data;
}

void release(Lattice& lattice) {
    for (Buffer* b : {&lattice.vertices, &lattice.weights, &lattice.made, &lattice.gain, &lattice.total}) release(*b);
    for (Buffer& b : lattice.chains) release(b);
}

std::size_t footprint(const Lattice& lattice) {
    std::size_t bytes = lattice.vertices.bytes + lattice.weights.bytes + lattice.made.bytes;
    bytes += lattice.gain.bytes + lattice.total.bytes;
    for (const Buffer& b : lattice.chains) bytes += b.bytes;
    return bytes;
}

}  // namespace segcrf
