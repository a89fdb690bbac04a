// One seeded problem through the plain engine, without Python: prints what tests/aarch64.sh compares between processors.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "../segcore/crf/engine/engine.hpp"

using namespace segcrf;

int main() {
    const int height = 123, width = 157, classes = 7;
    const std::size_t pixels = static_cast<std::size_t>(height) * width;
    std::uint32_t state = 12345;
    auto draw = [&state] { return static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) / 16777216.0f; };
    std::vector<std::uint8_t> image(pixels * 3);
    std::vector<float> probabilities(classes * pixels);
    for (std::size_t p = 0; p < pixels; ++p) {
        const int y = static_cast<int>(p) / width, x = static_cast<int>(p) % width;
        for (int c = 0; c < 3; ++c)
            image[3 * p + c] = static_cast<std::uint8_t>(((x / 31 + y / 23) % 5) * 40 + 10 * c + 20 * draw());
        float sum = 0;
        for (int k = 0; k < classes; ++k)
            sum += probabilities[k * pixels + p] = 0.05f + draw() + ((x / 40 + y / 40) % classes == k ? 1.0f : 0.0f);
        for (int k = 0; k < classes; ++k) probabilities[k * pixels + p] /= sum;
    }
    std::vector<float> marginals(classes * pixels);
    std::vector<std::uint8_t> labels(pixels);
    Problem problem;
    problem.height = height, problem.width = width, problem.num_classes = classes;
    problem.image = image.data(), problem.probabilities = probabilities.data();
    problem.params = {4, 67, 3, 3, 1, 10, Normalization::symmetric, 0};
    problem.marginals = marginals.data(), problem.labels = labels.data();
    Workspace workspace;
    Lattice spatial;
    engine_plain.build_spatial(spatial, workspace, height, width, problem.params.gaussian_xy,
                               problem.params.normalization);
    engine_plain.solve(problem, workspace, &spatial);
    std::uint64_t digest = 1469598103934665603u;
    std::vector<std::size_t> counts(classes);
    for (const std::uint8_t label : labels) digest = (digest ^ label) * 1099511628211u, ++counts[label];
    double sum = 0;
    for (const float marginal : marginals) sum += static_cast<double>(marginal) * marginal;
    std::printf("labels %016llx, mean squared marginal %.5f, pixels", static_cast<unsigned long long>(digest),
                sum / static_cast<double>(pixels));
    for (const std::size_t count : counts) std::printf(" %zu", count);
    std::printf("\n");
    return std::isfinite(sum) ? 0 : 1;
}
