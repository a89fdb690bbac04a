// The Python door of the engine: chooses the build for this processor, keeps workspaces and spatial lattices, and
// releases the GIL. Arguments are checked in segcore/crf/dense_crf.py; here only what would crash the process.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <list>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.hpp"

#if defined(SEGCRF_X86)
#include <immintrin.h>
#endif

namespace nb = nanobind;

namespace segcrf {

namespace {

struct OwnedWorkspace : Workspace {
    OwnedWorkspace() = default;
    OwnedWorkspace(const OwnedWorkspace&) = delete;
    OwnedWorkspace& operator=(const OwnedWorkspace&) = delete;
    template <class F> void each(F f) {
        for (Buffer* b : {&unary, &grid, &row, &normalizer, &table, &keys, &next}) f(*b);
        for (Buffer& b : values) f(b);
        for (Buffer& b : scratch) f(b);
    }
    ~OwnedWorkspace() {
        each([](Buffer& b) { release(b); });
        release(bilateral);
    }
    std::size_t bytes() {
        std::size_t sum = footprint(bilateral);
        each([&](Buffer& b) { sum += b.bytes; });
        return sum;
    }
};

struct OwnedLattice : Lattice {
    OwnedLattice() = default;
    OwnedLattice(const OwnedLattice&) = delete;
    OwnedLattice& operator=(const OwnedLattice&) = delete;
    ~OwnedLattice() { release(*this); }
};

std::mutex guard;  // over everything below

// Workspaces at rest; a call takes one and puts it back, so there are as many as calls ever ran at the same time.
std::vector<std::unique_ptr<OwnedWorkspace>> resting;
constexpr std::size_t kMostResting = 16;
constexpr std::size_t kLargestResting = std::size_t{1} << 30;  // what a very large image took is given back

struct CachedLattice {
    int height, width;
    float sigma;
    Normalization normalization;
    const Engine* engine;
    std::shared_ptr<const OwnedLattice> lattice;
};
std::list<CachedLattice> spatial_cache;  // most recently used first
std::size_t spatial_limit = 256u << 20;

const Engine* available(const std::string& name) {
    std::vector<const Engine*> engines;
#if defined(SEGCRF_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw")) {
        engines.push_back(&engine_avx512);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) engines.push_back(&engine_avx2);
#endif
    engines.push_back(&engine_plain);
    if (name.empty()) return engines.front();
    for (const Engine* engine : engines) {
        if (name == engine->name) return engine;
    }
    return nullptr;
}

const Engine* current = nullptr;

struct Lease {
    std::unique_ptr<OwnedWorkspace> workspace;
    Lease() {
        const std::lock_guard<std::mutex> lock(guard);
        if (!resting.empty()) {
            workspace = std::move(resting.back());
            resting.pop_back();
        }
        if (!workspace) workspace = std::make_unique<OwnedWorkspace>();
    }
    ~Lease() {
        if (workspace->bytes() > kLargestResting) return;
        const std::lock_guard<std::mutex> lock(guard);
        if (resting.size() < kMostResting) resting.push_back(std::move(workspace));
    }
};

std::shared_ptr<const OwnedLattice> spatial_lattice(const Engine* engine, Workspace& workspace, int height, int width,
                                                    float sigma, Normalization normalization) {
    const auto cached = [&]() -> std::shared_ptr<const OwnedLattice> {
        for (auto it = spatial_cache.begin(); it != spatial_cache.end(); ++it) {
            if (it->height == height && it->width == width && it->sigma == sigma &&
                it->normalization == normalization && it->engine == engine) {
                spatial_cache.splice(spatial_cache.begin(), spatial_cache, it);
                return it->lattice;
            }
        }
        return nullptr;
    };
    {
        const std::lock_guard<std::mutex> lock(guard);
        if (auto found = cached()) return found;
    }
    auto lattice = std::make_shared<OwnedLattice>();
    engine->build_spatial(*lattice, workspace, height, width, sigma, normalization);
    const std::lock_guard<std::mutex> lock(guard);
    if (auto found = cached()) return found;  // another thread was faster
    spatial_cache.push_front({height, width, sigma, normalization, engine, lattice});
    std::size_t bytes = 0;
    for (auto it = spatial_cache.begin(); it != spatial_cache.end();) {
        bytes += footprint(*it->lattice);
        it = bytes > spatial_limit ? spatial_cache.erase(it) : std::next(it);
    }
    return lattice;
}

// Denormal numbers are a hundred times slower and mean nothing here.
struct FlushDenormals {
#if defined(SEGCRF_X86)
    const unsigned saved = _mm_getcsr();
    FlushDenormals() { _mm_setcsr(saved | 0x8040u); }
    ~FlushDenormals() { _mm_setcsr(saved); }
#else
    FlushDenormals() {}
#endif
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;
};

void run(Problem& problem) {
    const FlushDenormals flush;
    Lease lease;
    const Engine* engine = current;
    std::shared_ptr<const OwnedLattice> spatial;
    if (problem.with_crf && problem.params.gaussian_weight != 0) {
        spatial = spatial_lattice(engine, *lease.workspace, problem.height, problem.width,
                                  problem.params.gaussian_xy, problem.params.normalization);
    }
    engine->solve(problem, *lease.workspace, spatial.get());
}

Params to_params(const std::vector<double>& values) {
    if (values.size() != 8) throw std::invalid_argument("eight parameters are expected");
    Params p{};
    p.bilateral_weight = static_cast<float>(values[0]);
    p.bilateral_xy = static_cast<float>(values[1]);
    p.bilateral_rgb = static_cast<float>(values[2]);
    p.gaussian_weight = static_cast<float>(values[3]);
    p.gaussian_xy = static_cast<float>(values[4]);
    p.iterations = static_cast<int>(values[5]);
    p.normalization = values[6] != 0 ? Normalization::caffe : Normalization::symmetric;
    p.min_probability = static_cast<float>(values[7]);
    return p;
}

template <class T, int N> using Array = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

}  // namespace
}  // namespace segcrf

NB_MODULE(_crf, m) {
    using namespace segcrf;
    current = available("");

    m.attr("source_digest") = SEGCRF_SOURCE_DIGEST;
    m.def("engine_name", [] { return std::string(current->name); });
    m.def("use_engine", [](const std::string& name) {
        const Engine* engine = available(name);
        if (!engine) throw std::invalid_argument("this processor or build has no engine " + name);
        current = engine;
    });
    m.def("memory", [] {
        const std::lock_guard<std::mutex> lock(guard);
        std::size_t workspaces = 0, lattices = 0;
        for (auto& w : resting) workspaces += w->bytes();
        for (auto& c : spatial_cache) lattices += footprint(*c.lattice);
        return nb::make_tuple(workspaces, lattices);
    });
    m.def("forget", [](std::size_t limit) {
        const std::lock_guard<std::mutex> lock(guard);
        resting.clear();
        spatial_cache.clear();
        spatial_limit = limit;
    }, nb::arg("spatial_limit") = std::size_t{256} << 20);

    m.def("refine", [](Array<const std::uint8_t, 3> image, Array<const float, 3> probabilities,
                       const std::vector<double>& params, Array<float, 3> marginals) {
        Problem p;
        p.height = static_cast<int>(image.shape(0));
        p.width = static_cast<int>(image.shape(1));
        p.num_classes = static_cast<int>(probabilities.shape(0));
        if (image.shape(2) != 3 || p.num_classes < 1 || p.num_classes > 255) throw std::invalid_argument("shapes");
        for (auto* a : {&marginals}) {
            if (a->shape(0) != probabilities.shape(0) || a->shape(1) != image.shape(0) ||
                a->shape(2) != image.shape(1) || probabilities.shape(1) != image.shape(0) ||
                probabilities.shape(2) != image.shape(1)) {
                throw std::invalid_argument("shapes");
            }
        }
        p.image = image.data();
        p.probabilities = probabilities.data();
        p.params = to_params(params);
        p.marginals = marginals.data();
        {
            nb::gil_scoped_release released;
            run(p);
        }
        return p.num_kept;
    });

    m.def("refine_scores", [](Array<const std::uint8_t, 3> image, Array<const std::uint16_t, 3> scores,
                              int extent_height, int extent_width, const std::vector<double>& params, bool with_crf,
                              Array<std::uint8_t, 2> labels, Array<std::uint8_t, 2> labels_before,
                              Array<std::int64_t, 1> class_pixels, Array<double, 1> class_confidence) {
        Problem p;
        p.height = static_cast<int>(image.shape(0));
        p.width = static_cast<int>(image.shape(1));
        p.num_classes = static_cast<int>(scores.shape(0));
        p.grid_height = static_cast<int>(scores.shape(1));
        p.grid_width = static_cast<int>(scores.shape(2));
        p.extent_height = extent_height;
        p.extent_width = extent_width;
        const std::size_t classes = scores.shape(0);
        bool good = image.shape(2) == 3 && classes >= 1 && classes <= 255 && p.grid_height >= 1 && p.grid_width >= 1;
        good = good && extent_height >= p.height && extent_width >= p.width && p.height >= 1 && p.width >= 1;
        for (auto* a : {&labels, &labels_before}) {
            good = good && a->shape(0) == image.shape(0) && a->shape(1) == image.shape(1);
        }
        good = good && class_pixels.shape(0) == classes && class_confidence.shape(0) == classes;
        if (!good) throw std::invalid_argument("shapes");
        p.image = image.data();
        p.scores = scores.data();
        p.params = to_params(params);
        p.with_crf = with_crf;
        p.labels = labels.data();
        p.labels_before = labels_before.data();
        p.class_pixels = class_pixels.data();
        p.class_confidence = class_confidence.data();
        {
            nb::gil_scoped_release released;
            run(p);
        }
        return nb::make_tuple(p.confidence, p.entropy, p.changed, p.num_kept);
    });
}
