// Depthwise convolution and batch normalisation of a training step, on channels-last bfloat16. oneDNN has no fast
// gradient of a depthwise convolution in bfloat16, and torch runs normalisation and ReLU6 as two passes each way.
// Every function does the channels [begin, end), multiples of 16, so that threads share nothing and sums have one order.
#pragma once
#include <cstdint>

namespace seglayers {

struct Shape {
    int images, height, width, channels, kernel, stride, dilation, padding, out_height, out_width;
};

struct Kernels {
    const char* name;
    // x (N, H, W, C), weights (k * k, C) float, y (N, H', W', C)
    void (*convolve)(const Shape&, const uint16_t* x, const float* weights, uint16_t* y, int begin, int end);
    void (*convolve_gradient)(const Shape&, const uint16_t* dy, const float* weights, uint16_t* dx, int begin, int end);
    void (*weight_gradient)(const Shape&, const uint16_t* x, const uint16_t* dy, float* dw, int begin, int end);
    // rows = N * H * W; sums and squares are (C,) double
    void (*statistics)(const uint16_t* x, int64_t rows, int channels, double* sums, double* squares, int begin, int end);
    // y = x * scale + shift, within [0, bound] where bound > 0
    void (*normalise)(const uint16_t* x, uint16_t* y, int64_t rows, int channels, const float* scale, const float* shift,
                      float bound, int begin, int end);
    // Sums of dy and of dy * x over the rows whose y is within the bound
    void (*gradient_sums)(const uint16_t* x, const uint16_t* dy, int64_t rows, int channels, const float* scale,
                          const float* shift, float bound, double* sums, double* products, int begin, int end);
    // dx = a * dy + b * x + c, dy counting only within the bound
    void (*normalise_gradient)(const uint16_t* x, const uint16_t* dy, uint16_t* dx, int64_t rows, int channels,
                               const float* scale, const float* shift, float bound, const float* a, const float* b,
                               const float* c, int begin, int end);
};

extern const Kernels kernels_plain;
#ifdef SEGLAYERS_X86
extern const Kernels kernels_avx2, kernels_avx512;
#endif

}  // namespace seglayers
