// The Python door of the kernels: chooses the build for this processor, shares channels among threads, releases the
// GIL. Arguments are addresses of tensors that segcore/models/cpu_training.py has checked.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "kernels.hpp"

namespace nb = nanobind;

namespace seglayers {

namespace {

const Kernels& chosen() {
#ifdef SEGLAYERS_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return kernels_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kernels_avx2;
#endif
    return kernels_plain;
}

// f(begin, end) over ranges of whole blocks of 16 channels, on up to `threads` threads
template <class F> void share(int channels, int threads, F f) {
    nb::gil_scoped_release released;
    const int blocks = channels / 16;
    const int parts = std::max(1, std::min(threads, blocks));
    std::vector<std::thread> others;
    for (int part = 1; part < parts; ++part)
        others.emplace_back([=] { f(16 * (blocks * part / parts), 16 * (blocks * (part + 1) / parts)); });
    f(0, 16 * (blocks / parts));
    for (std::thread& other : others) other.join();
}

template <class T> T* pointer(std::uintptr_t address) { return reinterpret_cast<T*>(address); }
using Address = std::uintptr_t;
using Bits = std::uint16_t;

}  // namespace

}  // namespace seglayers

NB_MODULE(_layers, m) {
    using namespace seglayers;
    using Sizes = nb::tuple;
    auto read = [](const Sizes& s) {
        return Shape{nb::cast<int>(s[0]), nb::cast<int>(s[1]), nb::cast<int>(s[2]), nb::cast<int>(s[3]),
                     nb::cast<int>(s[4]), nb::cast<int>(s[5]), nb::cast<int>(s[6]), nb::cast<int>(s[7]),
                     nb::cast<int>(s[8]), nb::cast<int>(s[9])};
    };
    m.def("name", [] { return std::string(chosen().name); });
    m.def("convolve", [read](const Sizes& sizes, Address x, Address weights, Address y, int threads) {
        const Shape s = read(sizes);
        share(s.channels, threads, [=](int begin, int end) {
            chosen().convolve(s, pointer<Bits>(x), pointer<float>(weights), pointer<Bits>(y), begin, end);
        });
    });
    m.def("convolve_gradient", [read](const Sizes& sizes, Address dy, Address weights, Address dx, int threads) {
        const Shape s = read(sizes);
        share(s.channels, threads, [=](int begin, int end) {
            chosen().convolve_gradient(s, pointer<Bits>(dy), pointer<float>(weights), pointer<Bits>(dx), begin, end);
        });
    });
    m.def("weight_gradient", [read](const Sizes& sizes, Address x, Address dy, Address dw, int threads) {
        const Shape s = read(sizes);
        share(s.channels, threads, [=](int begin, int end) {
            chosen().weight_gradient(s, pointer<Bits>(x), pointer<Bits>(dy), pointer<float>(dw), begin, end);
        });
    });
    m.def("statistics", [](Address x, int64_t rows, int channels, Address sums, Address squares, int threads) {
        share(channels, threads, [=](int begin, int end) {
            chosen().statistics(pointer<Bits>(x), rows, channels, pointer<double>(sums), pointer<double>(squares),
                                begin, end);
        });
    });
    m.def("normalise", [](Address x, Address y, int64_t rows, int channels, Address scale, Address shift, float bound,
                          int threads) {
        share(channels, threads, [=](int begin, int end) {
            chosen().normalise(pointer<Bits>(x), pointer<Bits>(y), rows, channels, pointer<float>(scale),
                               pointer<float>(shift), bound, begin, end);
        });
    });
    m.def("gradient_sums", [](Address x, Address dy, int64_t rows, int channels, Address scale, Address shift,
                              float bound, Address sums, Address products, int threads) {
        share(channels, threads, [=](int begin, int end) {
            chosen().gradient_sums(pointer<Bits>(x), pointer<Bits>(dy), rows, channels, pointer<float>(scale),
                                   pointer<float>(shift), bound, pointer<double>(sums), pointer<double>(products),
                                   begin, end);
        });
    });
    m.def("normalise_gradient", [](Address x, Address dy, Address dx, int64_t rows, int channels, Address scale,
                                   Address shift, float bound, Address a, Address b, Address c, int threads) {
        share(channels, threads, [=](int begin, int end) {
            chosen().normalise_gradient(pointer<Bits>(x), pointer<Bits>(dy), pointer<Bits>(dx), rows, channels,
                                        pointer<float>(scale), pointer<float>(shift), bound, pointer<float>(a),
                                        pointer<float>(b), pointer<float>(c), begin, end);
        });
    });
}
