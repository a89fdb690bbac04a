// Included once for each instruction set, with SEGLAYERS_KERNELS and SEGLAYERS_NAME defined.
#include <cstring>
#include <type_traits>

#include "kernels.hpp"

namespace seglayers {

namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

inline Floats load(const uint16_t* at) {
    Halves halves;
    std::memcpy(&halves, at, 32);
    const Words words = __builtin_convertvector(halves, Words) << 16;
    Floats floats;
    std::memcpy(&floats, &words, 64);
    return floats;
}

inline Floats load(const float* at) {
    Floats floats;
    std::memcpy(&floats, at, 64);
    return floats;
}

inline void store(float* at, Floats floats) { std::memcpy(at, &floats, 64); }

// Rounded to the nearest, ties to even
inline void store(uint16_t* at, Floats floats) {
    Words words;
    std::memcpy(&words, &floats, 64);
    words = (words + 0x7fffu + ((words >> 16) & 1u)) >> 16;
    const Halves halves = __builtin_convertvector(words, Halves);
    std::memcpy(at, &halves, 32);
}

// Blocks of 64, 32 and 16 channels: B vectors of 16 in registers
template <class F> inline void blocks(int begin, int end, F f) {
    int c = begin;
    for (; c + 64 <= end; c += 64) f(std::integral_constant<int, 4>(), c);
    for (; c + 32 <= end; c += 32) f(std::integral_constant<int, 2>(), c);
    for (; c < end; c += 16) f(std::integral_constant<int, 1>(), c);
}

inline int64_t at(int image, int y, int x, int height, int width, int channels) {
    return ((static_cast<int64_t>(image) * height + y) * width + x) * channels;
}

void convolve(const Shape& s, const uint16_t* x, const float* weights, uint16_t* y, int begin, int end) {
    blocks(begin, end, [&](auto size, int c) {
        constexpr int B = decltype(size)::value;
        for (int n = 0; n < s.images; ++n)
            for (int oy = 0; oy < s.out_height; ++oy)
                for (int ox = 0; ox < s.out_width; ++ox) {
                    Floats sums[B] = {};
                    for (int ky = 0; ky < s.kernel; ++ky) {
                        const int iy = oy * s.stride - s.padding + ky * s.dilation;
                        if (iy < 0 || iy >= s.height) continue;
                        for (int kx = 0; kx < s.kernel; ++kx) {
                            const int ix = ox * s.stride - s.padding + kx * s.dilation;
                            if (ix < 0 || ix >= s.width) continue;
                            const uint16_t* from = x + at(n, iy, ix, s.height, s.width, s.channels) + c;
                            const float* weight = weights + static_cast<int64_t>(ky * s.kernel + kx) * s.channels + c;
                            for (int b = 0; b < B; ++b) sums[b] += load(from + 16 * b) * load(weight + 16 * b);
                        }
                    }
                    uint16_t* to = y + at(n, oy, ox, s.out_height, s.out_width, s.channels) + c;
                    for (int b = 0; b < B; ++b) store(to + 16 * b, sums[b]);
                }
    });
}

void convolve_gradient(const Shape& s, const uint16_t* dy, const float* weights, uint16_t* dx, int begin, int end) {
    blocks(begin, end, [&](auto size, int c) {
        constexpr int B = decltype(size)::value;
        for (int n = 0; n < s.images; ++n)
            for (int iy = 0; iy < s.height; ++iy)
                for (int ix = 0; ix < s.width; ++ix) {
                    Floats sums[B] = {};
                    for (int ky = 0; ky < s.kernel; ++ky) {
                        const int ty = iy + s.padding - ky * s.dilation;
                        if (ty < 0 || ty % s.stride || ty / s.stride >= s.out_height) continue;
                        for (int kx = 0; kx < s.kernel; ++kx) {
                            const int tx = ix + s.padding - kx * s.dilation;
                            if (tx < 0 || tx % s.stride || tx / s.stride >= s.out_width) continue;
                            const uint16_t* from =
                                dy + at(n, ty / s.stride, tx / s.stride, s.out_height, s.out_width, s.channels) + c;
                            const float* weight = weights + static_cast<int64_t>(ky * s.kernel + kx) * s.channels + c;
                            for (int b = 0; b < B; ++b) sums[b] += load(from + 16 * b) * load(weight + 16 * b);
                        }
                    }
                    uint16_t* to = dx + at(n, iy, ix, s.height, s.width, s.channels) + c;
                    for (int b = 0; b < B; ++b) store(to + 16 * b, sums[b]);
                }
    });
}

// One row of the kernel, K wide: its sums stay in registers
template <int B, int K>
void weight_gradient_row(const Shape& s, const uint16_t* x, const uint16_t* dy, float* dw, int ky, int c) {
    Floats sums[K][B] = {};
    for (int n = 0; n < s.images; ++n)
        for (int oy = 0; oy < s.out_height; ++oy) {
            const int iy = oy * s.stride - s.padding + ky * s.dilation;
            if (iy < 0 || iy >= s.height) continue;
            const uint16_t* row = x + at(n, iy, 0, s.height, s.width, s.channels) + c;
            const uint16_t* gradient = dy + at(n, oy, 0, s.out_height, s.out_width, s.channels) + c;
            for (int ox = 0; ox < s.out_width; ++ox) {
                Floats g[B];
                for (int b = 0; b < B; ++b) g[b] = load(gradient + static_cast<int64_t>(ox) * s.channels + 16 * b);
                for (int kx = 0; kx < K; ++kx) {
                    const int ix = ox * s.stride - s.padding + kx * s.dilation;
                    if (ix < 0 || ix >= s.width) continue;
                    const uint16_t* from = row + static_cast<int64_t>(ix) * s.channels;
                    for (int b = 0; b < B; ++b) sums[kx][b] += g[b] * load(from + 16 * b);
                }
            }
        }
    for (int kx = 0; kx < K; ++kx)
        for (int b = 0; b < B; ++b)
            store(dw + static_cast<int64_t>(ky * K + kx) * s.channels + c + 16 * b, sums[kx][b]);
}

void weight_gradient(const Shape& s, const uint16_t* x, const uint16_t* dy, float* dw, int begin, int end) {
    blocks(begin, end, [&](auto size, int c) {
        constexpr int B = decltype(size)::value;
        for (int ky = 0; ky < s.kernel; ++ky)
            if (s.kernel == 3)
                weight_gradient_row<B, 3>(s, x, dy, dw, ky, c);
            else
                weight_gradient_row<B, 5>(s, x, dy, dw, ky, c);
    });
}

// Sums over rows in float, over groups of rows in double
constexpr int64_t kGroup = 256;
constexpr int kMostChannels = 4096;

template <class F>
void summed(int64_t rows, double* first, double* second, int begin, int end, F add) {
    static thread_local float one[kMostChannels], two[kMostChannels];
    std::memset(first + begin, 0, sizeof(double) * (end - begin));
    std::memset(second + begin, 0, sizeof(double) * (end - begin));
    for (int64_t row = 0; row < rows;) {
        const int64_t last = row + kGroup < rows ? row + kGroup : rows;
        std::memset(one + begin, 0, sizeof(float) * (end - begin));
        std::memset(two + begin, 0, sizeof(float) * (end - begin));
        for (; row < last; ++row)
            for (int c = begin; c < end; c += 16) add(row, c, one + c, two + c);
        for (int c = begin; c < end; ++c) first[c] += one[c], second[c] += two[c];
    }
}

void statistics(const uint16_t* x, int64_t rows, int channels, double* sums, double* squares, int begin, int end) {
    summed(rows, sums, squares, begin, end, [&](int64_t row, int c, float* sum, float* square) {
        const Floats value = load(x + row * channels + c);
        store(sum, load(sum) + value);
        store(square, load(square) + value * value);
    });
}

inline Floats scaled(const uint16_t* x, const float* scale, const float* shift, int c) {
    return load(x + c) * load(scale + c) + load(shift + c);
}

// dy where the output of the forward pass lies within the bound; everywhere without one
inline Floats passed(Floats gradient, Floats output, float bound) {
    const Floats zero = {}, most = zero + bound;
    if (bound <= 0) return gradient;
    gradient = output > zero ? gradient : zero;
    return output < most ? gradient : zero;
}

void normalise(const uint16_t* x, uint16_t* y, int64_t rows, int channels, const float* scale, const float* shift,
               float bound, int begin, int end) {
    const Floats zero = {}, most = zero + bound;
    for (int64_t row = 0; row < rows; ++row)
        for (int c = begin; c < end; c += 16) {
            Floats value = scaled(x + row * channels, scale, shift, c);
            if (bound > 0) {
                value = value > zero ? value : zero;
                value = value < most ? value : most;
            }
            store(y + row * channels + c, value);
        }
}

void gradient_sums(const uint16_t* x, const uint16_t* dy, int64_t rows, int channels, const float* scale,
                   const float* shift, float bound, double* sums, double* products, int begin, int end) {
    summed(rows, sums, products, begin, end, [&](int64_t row, int c, float* sum, float* product) {
        const Floats output = scaled(x + row * channels, scale, shift, c);
        const Floats gradient = passed(load(dy + row * channels + c), output, bound);
        store(sum, load(sum) + gradient);
        store(product, load(product) + gradient * load(x + row * channels + c));
    });
}

void normalise_gradient(const uint16_t* x, const uint16_t* dy, uint16_t* dx, int64_t rows, int channels,
                        const float* scale, const float* shift, float bound, const float* a, const float* b,
                        const float* c, int begin, int end) {
    for (int64_t row = 0; row < rows; ++row)
        for (int at = begin; at < end; at += 16) {
            const Floats output = scaled(x + row * channels, scale, shift, at);
            const Floats gradient = passed(load(dy + row * channels + at), output, bound);
            store(dx + row * channels + at,
                  load(a + at) * gradient + load(b + at) * load(x + row * channels + at) + load(c + at));
        }
}

}  // namespace

const Kernels SEGLAYERS_KERNELS = {SEGLAYERS_NAME, convolve,      convolve_gradient, weight_gradient,
                                   statistics,     normalise,     gradient_sums,     normalise_gradient};

}  // namespace seglayers
