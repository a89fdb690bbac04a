// The engine: dense CRF with Gaussian edge potentials (Kraehenbuehl and Koltun 2011) filtered on permutohedral lattices
// (Adams, Baek and Davis 2010), from network scores to labels. Compiled once per instruction set; see engine.hpp.
//
// How it is laid out, and why:
//  * one class is the reference: its message is what is left of the total, so C classes cost C - 1 channels;
//  * slice, softmax and splat are one pass over the pixels: the marginals exist for 16 pixels at a time;
//  * a lattice row holds the channels of one vertex, and blurring walks along chains of neighbours in place.
// One thread works on an image: images are many, and two threads on one were only 1.2 to 1.5 times as fast.
// Potentials are in units of log 2 inside, because exp2 is cheaper than exp.

#include "engine.hpp"

#include <cmath>
#include <cstring>
#include <new>
#include <utility>

namespace segcrf {
namespace SEGCRF_ISA {

void lay_bilateral(Lattice&, Workspace&, const Problem&);  // lattice.inl
void lay_spatial(Lattice&, Workspace&, int height, int width, float sigma);

namespace {

#include "simd.inl"

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kNegligible = 1e-4f;        // marginals of all other classes together that a pixel need not tell
constexpr float kLeastProbability = 1e-5f;  // unary potentials are -log(clip(p, 1e-5, 1)), as in DeepLab's own code

// ---------------------------------------------------------------------------------------------------------------------
// Filtering; a row of values has CP * panels channels

constexpr int kBlurAhead = 48;  // links of a chain whose rows are fetched early; all rows do not fit into the cache

// Row 0 stays zero: its updates go to row 1.
template <int CP> void blur_axis(const Lattice& lattice, int axis, float* values, int panels) {
    const std::int32_t* chain = as<std::int32_t>(lattice.chains[axis]);
    const std::int64_t length = lattice.chain_length[axis];
    const std::int64_t stride = static_cast<std::int64_t>(CP) * panels;
    for (int panel = 0; panel < panels; ++panel) {
        float* base = values + panel * CP;
        Row<CP> before = Row<CP>::zero(), current = Row<CP>::zero();
        if (length) current = Row<CP>::at(base + chain[0] * stride);
        for (std::int64_t i = 0; i < length; ++i) {
            const Row<CP> after = Row<CP>::at(base + chain[i + 1] * stride);
            __builtin_prefetch(base + chain[i + kBlurAhead] * stride, 1);
            const std::int64_t to = chain[i] + (chain[i] == 0);
            Row<CP>::smooth(base + to * stride, before, current, after);
            before = current;
            current = after;
        }
    }
}

template <int CP> void blur(const Lattice& lattice, float* values, int panels) {
    for (int axis = 0; axis <= lattice.dims; ++axis) blur_axis<CP>(lattice, axis, values, panels);
}

inline std::int64_t num_rows(const Lattice& lattice) { return lattice.num_vertices + 2; }

inline float alpha(int dims) { return 1.0f / (1.0f + std::ldexp(1.0f, -dims)); }

// out[i] = slice(blur(splat(1 or `in`))) of one channel.
template <int D> void filter_one(const Lattice& lattice, Workspace& workspace, const float* in, float* out) {
    const std::int64_t n = lattice.num_pixels;
    float* values = fit<float>(workspace.values[0], num_rows(lattice));
    std::memset(values, 0, static_cast<std::size_t>(num_rows(lattice)) * sizeof(float));
    const std::int32_t* rows = as<std::int32_t>(lattice.vertices);
    const float* weights = as<float>(lattice.weights);
    for (std::int64_t i = 0; i < n; ++i) {
        const float value = in ? in[i] : 1.0f;
        for (int k = 0; k <= D; ++k) values[rows[i * (D + 1) + k]] += weights[i * (D + 1) + k] * value;
    }
    blur<1>(lattice, values, 1);
    const float a = alpha(D);
    for (std::int64_t i = 0; i < n; ++i) {
        float sum = 0;
        for (int k = 0; k <= D; ++k) sum += weights[i * (D + 1) + k] * values[rows[i * (D + 1) + k]];
        out[i] = a * sum;
    }
}

// Folds the normalisation into the lattice, and finds the message of Q = 1.
template <int D> void normalize(Lattice& lattice, Workspace& workspace, Normalization normalization) {
    const std::int64_t n = lattice.num_pixels;
    float* norm = fit<float>(workspace.normalizer, n);
    filter_one<D>(lattice, workspace, nullptr, norm);
    if (normalization == Normalization::symmetric) {
        for (std::int64_t i = 0; i < n; ++i) norm[i] = 1.0f / std::sqrt(norm[i] + 1e-20f);
        float* total = fit<float>(lattice.total, n);
        filter_one<D>(lattice, workspace, norm, total);
        float* weights = as<float>(lattice.weights);
        for (std::int64_t i = 0; i < n; ++i) {
            total[i] *= norm[i];
            for (int k = 0; k <= D; ++k) weights[i * (D + 1) + k] *= norm[i];
        }
        release(lattice.gain);
    } else {
        float* gain = fit<float>(lattice.gain, n);
        float* total = fit<float>(lattice.total, n);
        for (std::int64_t i = 0; i < n; ++i) {
            gain[i] = 1.0f / (norm[i] + 1e-20f);
            total[i] = norm[i] * gain[i];
        }
    }
}

void build_spatial(Lattice& lattice, Workspace& workspace, int height, int width, float sigma,
                   Normalization normalization) {
    lay_spatial(lattice, workspace, height, width, sigma);
    normalize<2>(lattice, workspace, normalization);
}

// ---------------------------------------------------------------------------------------------------------------------
// Scores and probabilities

// Columns (or rows) of the image on the axis of the score grid.
struct Axis {
    std::int32_t* low;
    float* fraction;
    void fill(int pixels, int extent, int grid) {
        for (int i = 0; i < pixels; ++i) {
            const double at = extent > 1 ? static_cast<double>(i) * (grid - 1) / (extent - 1) : 0.0;
            int l = static_cast<int>(at);
            if (l > grid - 2) l = grid - 2;
            if (l < 0) l = 0;
            low[i] = l;
            fraction[i] = static_cast<float>(at - l);
        }
    }
};

inline float from_half(std::uint16_t half) {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16, rest = half & 0x7fffu;
    float value;
    std::uint32_t bits;
    if (rest >= 0x7c00u) {
        bits = sign | 0x7f800000u | (rest & 0x3ffu) << 13;
    } else if (rest < 0x0400u) {
        value = static_cast<float>(rest) * 5.9604644775390625e-8f;
        std::memcpy(&bits, &value, 4);
        bits |= sign;
    } else {
        bits = sign | ((rest << 13) + 0x38000000u);
    }
    std::memcpy(&value, &bits, 4);
    return value;
}

// Scores of the grid, upsampled row by row; a row is [grid_width][channels], channels padded with -1e30.
struct Upsampler {
    int grid_width, grid_height, channels;
    float* grid;  // [grid_height][grid_width + 1][channels], the last column doubled
    float* line;  // of the image row that is being read
    Axis x, y;

    Upsampler(const Problem& p, Workspace& workspace) {
        grid_width = p.grid_width;
        grid_height = p.grid_height;
        channels = (p.num_classes + 15) / 16 * 16;
        const std::int64_t row = static_cast<std::int64_t>(grid_width + 1) * channels;
        grid = fit<float>(workspace.grid, row * (grid_height + 2) + 2 * (p.width + p.height) + 64);
        line = grid + row * (grid_height + 1);
        float* axes = line + row;
        x.fraction = axes;
        y.fraction = axes + p.width;
        x.low = reinterpret_cast<std::int32_t*>(axes + p.width + p.height);
        y.low = x.low + p.width;
        x.fill(p.width, p.extent_width, grid_width);
        y.fill(p.height, p.extent_height, grid_height);
        for (int j = 0; j < grid_height; ++j) {
            for (int i = 0; i <= grid_width; ++i) {
                float* to = grid + j * row + static_cast<std::int64_t>(i) * channels;
                const int from = i < grid_width ? i : grid_width - 1;
                for (int c = 0; c < channels; ++c) {
                    const std::int64_t plane = static_cast<std::int64_t>(c) * grid_height;
                    to[c] = c < p.num_classes ? from_half(p.scores[(plane + j) * grid_width + from]) : -1e30f;
                }
            }
        }
        const float* bottom = grid + (grid_height - 1) * row;
        std::memcpy(grid + grid_height * row, bottom, static_cast<std::size_t>(row) * sizeof(float));
    }
    // Rows of the score grid at image row `i`, interpolated downwards.
    const float* row(int i) const {
        const std::int64_t n = static_cast<std::int64_t>(grid_width + 1) * channels;
        const float* a = grid + y.low[i] * n;
        const float* b = a + n;
        const float f = y.fraction[i], g = 1 - f;
        for (std::int64_t j = 0; j < n; j += kWide) store(line + j, load<Wide>(a + j) * g + load<Wide>(b + j) * f);
        return line;
    }
};

// What the first pass over the scores finds.
struct Survey {
    float* best;         // [classes padded to 16], largest probability of each class
    float* log_sum;      // [num_pixels], log2 of the sum of exp of the scores
    std::int64_t* wins;  // [classes], pixels whose most probable class this is
};

// As many pixels at a time as a register has lanes, classes one after the other: sums over classes need no shuffles
// that way.
void survey_scores(Problem& p, const Upsampler& up, Survey& survey) {
    const int channels = up.channels;
    alignas(64) float logits[256][kWide], best[256][kWide];
    std::memset(best, 0, sizeof best);
    alignas(64) float labels[kWide], bits_of[kWide], entropy_of[kWide];
    double entropy = 0;
    for (int i = 0; i < p.height; ++i) {
        const float* line = up.row(i);
        float row_entropy = 0;
        for (int j = 0; j < p.width; j += kWide) {
            const int count = p.width - j < kWide ? p.width - j : kWide;
            for (int c = 0; c < channels; c += kWide) {
                Wide rows[kWide];
                for (int l = 0; l < kWide; ++l) {
                    const int x = j + (l < count ? l : count - 1);  // behind the last pixel it comes again
                    const float* a = line + static_cast<std::int64_t>(up.x.low[x]) * channels + c;
                    const float f = up.x.fraction[x];
                    rows[l] = load<Wide>(a) * (1 - f) + load<Wide>(a + channels) * f;
                }
                transpose(rows);
                for (int l = 0; l < kWide; ++l) store(logits[c + l], rows[l]);
            }
            Wide most = load<Wide>(logits[0]), label = Wide{};
            for (int c = 1; c < p.num_classes; ++c) {
                const Wide l = load<Wide>(logits[c]);
                label = l > most ? set<Wide>(static_cast<float>(c)) : label;
                most = max(l, most);
            }
            Wide total = Wide{}, weighted = Wide{};
            for (int c = 0; c < p.num_classes; ++c) {
                const Wide d = max((load<Wide>(logits[c]) - most) * kLog2E, set<Wide>(-64.0f));
                const Wide e = exp2(d);
                store(logits[c], e);
                total += e;
                weighted += e * d;
            }
            const Wide share = reciprocal(total), bits = log2(total);
            for (int c = 0; c < p.num_classes; ++c) {
                store(best[c], max(load<Wide>(best[c]), load<Wide>(logits[c]) * share));
            }
            store(labels, label);
            store(bits_of, most * kLog2E + bits);
            store(entropy_of, bits - weighted * share);
            const std::int64_t pixel = static_cast<std::int64_t>(i) * p.width + j;
            for (int l = 0; l < count; ++l) {
                const int winner = static_cast<int>(labels[l]);
                ++survey.wins[winner];
                if (p.labels_before) p.labels_before[pixel + l] = static_cast<std::uint8_t>(winner);
                survey.log_sum[pixel + l] = bits_of[l];
                row_entropy += entropy_of[l];
            }
        }
        entropy += row_entropy;
    }
    for (int c = 0; c < p.num_classes; ++c) survey.best[c] = top(load<Wide>(best[c]));
    p.entropy = entropy / kLog2E / (static_cast<double>(p.height) * p.width);
}

void survey_probabilities(const Problem& p, Survey& survey, Workspace& workspace) {
    const std::int64_t n = static_cast<std::int64_t>(p.height) * p.width;
    float* most = fit<float>(workspace.row, n);
    std::uint8_t* label = fit<std::uint8_t>(workspace.scratch[3], n);
    for (std::int64_t i = 0; i < n; ++i) most[i] = -1, label[i] = 0;
    for (int c = 0; c < p.num_classes; ++c) {
        const float* plane = p.probabilities + c * n;
        float best = 0;
        for (std::int64_t i = 0; i < n; ++i) {
            best = plane[i] > best ? plane[i] : best;
            label[i] = plane[i] > most[i] ? static_cast<std::uint8_t>(c) : label[i];
            most[i] = plane[i] > most[i] ? plane[i] : most[i];
        }
        survey.best[c] = best;
    }
    for (std::int64_t i = 0; i < n; ++i) ++survey.wins[label[i]];
}

// ---------------------------------------------------------------------------------------------------------------------
// Mean field

// Puts the messages of one kernel into `messages` [count][channels], or adds them to those of another.
template <int D, int CP, bool Single>
inline void slice(const Lattice& lattice, float gain, const float* values, int panels, std::int64_t first, int count,
                  float* messages, bool add) {
    const std::int64_t stride = Single ? CP : static_cast<std::int64_t>(CP) * panels;
    const std::int32_t* rows = as<std::int32_t>(lattice.vertices) + first * (D + 1);
    const float* weights = as<float>(lattice.weights) + first * (D + 1);
    const float* gains = lattice.gain.data ? as<float>(lattice.gain) + first : nullptr;
    for (int p = 0; p < count; ++p) {
        const float g = gains ? gain * gains[p] : gain;
        for (int panel = 0; panel < (Single ? 1 : panels); ++panel) {
            Row<CP> sum = Row<CP>::zero();
            for (int k = 0; k <= D; ++k) {
                sum.fma(weights[p * (D + 1) + k], values + rows[p * (D + 1) + k] * stride + panel * CP);
            }
            float* to = messages + p * stride + panel * CP;
            if (add) {
                sum.splat(g, to);
            } else {
                sum.scale(g);
                sum.put(to);
            }
        }
    }
}

template <int D, int CP, bool Single>
inline void splat(const Lattice& lattice, float* values, int panels, std::int64_t first, int count,
                  const float* marginals, const float* rest, float certain) {
    const std::int64_t stride = Single ? CP : static_cast<std::int64_t>(CP) * panels;
    const std::int32_t* rows = as<std::int32_t>(lattice.vertices) + first * (D + 1);
    const float* weights = as<float>(lattice.weights) + first * (D + 1);
    for (int p = 0; p < count; ++p) {
        if (rest[p] > certain) continue;
        for (int panel = 0; panel < (Single ? 1 : panels); ++panel) {
            const Row<CP> q = Row<CP>::at(marginals + p * stride + panel * CP);
            for (int k = 0; k <= D; ++k) {
                q.splat(weights[p * (D + 1) + k], values + rows[p * (D + 1) + k] * stride + panel * CP);
            }
        }
    }
}

// z = unary + messages + their sum (the reference class receives what is left of the total), for 16 pixels.
template <int CP, bool Single> inline void potentials(const float* unary, float* z, int channels) {
    if constexpr (Single && kWide % CP == 0) {
        for (int i = 0; i < kBlock * CP; i += kWide) {
            const Wide m = load<Wide>(z + i);
            store(z + i, load<Wide>(unary + i) + m + group_sum<CP>(m));
        }
    } else {
        for (int p = 0; p < kBlock; ++p) {
            float* row = z + p * channels;
            const float* own = unary + p * channels;
            f4 total = f4{};
            int c = 0;
            for (; c + kWide <= channels; c += kWide) total += quarters(load<Wide>(row + c));
            for (; c < channels; c += 4) total += load<f4>(row + c);
            const float left = sum(total);
            for (c = 0; c + kWide <= channels; c += kWide) {
                store(row + c, load<Wide>(row + c) + load<Wide>(own + c) + left);
            }
            for (; c < channels; c += 4) store(row + c, load<f4>(row + c) + load<f4>(own + c) + left);
        }
    }
}

// In place, for 16 pixels; the reference class has potential 0, and its probabilities go to `rest`. Where no potential
// can reach 2^100 (`Bounded`), the largest need not be taken off first.
template <int CP, bool Single, bool Bounded> inline void softmax(float* z, int channels, float* rest) {
    if constexpr (Single && kWide % CP == 0) {
        for (int i = 0; i < kBlock * CP; i += kWide) {
            Wide v = load<Wide>(z + i), own = set<Wide>(1.0f);
            if constexpr (!Bounded) {
                const Wide most = max(group_max<CP>(v), Wide{});
                v -= most;
                own = exp2(-most);
            }
            const Wide e = exp2(v);
            const Wide share = reciprocal(group_sum<CP>(e) + own);
            store(z + i, e * share);
            const Wide q = own * share;
            for (int l = 0; l < kWide; l += CP) rest[(i + l) / CP] = q[l];
        }
    } else {
        for (int p = 0; p < kBlock; ++p) {
            float* row = z + p * channels;
            float most = 0, own = 1;
            int c = 0;
            if constexpr (!Bounded) {
                f4 most4 = f4{};
                for (; c < channels; c += 4) most4 = max(most4, load<f4>(row + c));
                most = top(most4);
                own = exp2(set<f4>(-most))[0];
            }
            f4 sum4 = f4{};
            for (c = 0; c + kWide <= channels; c += kWide) {
                const Wide e = exp2(load<Wide>(row + c) - most);
                store(row + c, e);
                sum4 += quarters(e);
            }
            for (; c + 8 <= channels; c += 8) {
                const f8 e = exp2(load<f8>(row + c) - most);
                store(row + c, e);
                sum4 += low(e) + high(e);
            }
            if (c < channels) {
                const f4 e = exp2(load<f4>(row + c) - most);
                store(row + c, e);
                sum4 += e;
            }
            const float share = 1 / (sum(sum4) + own);
            for (c = 0; c + kWide <= channels; c += kWide) store(row + c, load<Wide>(row + c) * share);
            for (; c < channels; c += 4) store(row + c, load<f4>(row + c) * share);
            rest[p] = own * share;
        }
    }
}

// Which classes take part, in which channel.
struct Channels {
    int kept = 0;           // classes that take part
    int reference = 0;      // the most frequent of them
    int label[256] = {};    // class of each channel, ascending
    int count = 0;          // kept - 1
};

Channels choose(const Problem& p, const Survey& survey) {
    Channels channels;
    std::int64_t most = -1;
    for (int c = 0; c < p.num_classes; ++c) {
        if (survey.wins[c] > most) most = survey.wins[c], channels.reference = c;
    }
    for (int c = 0; c < p.num_classes; ++c) {
        const bool keep = c == channels.reference || survey.wins[c] > 0 || survey.best[c] > p.params.min_probability ||
                          p.params.min_probability <= 0;
        if (!keep) continue;
        ++channels.kept;
        if (c != channels.reference) channels.label[channels.count++] = c;
    }
    return channels;
}

// Unary potentials relative to the reference class for the channels, from scores or probabilities.
struct UnarySource {
    const Problem& problem;
    const Channels& channels;
    const Survey& survey;
    Upsampler* up;
    int width;  // padded channels
    float* picked;  // [grid_height + 1][grid_width + 1][pick_width]; the reference first
    int pick_width;

    void write(float* unary) const {
        const std::int64_t n = static_cast<std::int64_t>(problem.height) * problem.width;
        const float floor = std::log2(kLeastProbability);
        const float none = -1e30f;
        if (problem.probabilities) {
            constexpr int kPixels = 1024;
            float reference[kPixels];
            for (std::int64_t first = 0; first < n; first += kPixels) {
                const int count = static_cast<int>(n - first < kPixels ? n - first : kPixels);
                const float* plane = problem.probabilities + channels.reference * n + first;
                for (int i = 0; i < count; ++i) reference[i] = clipped(plane[i]);
                for (int c = 0; c < channels.count; ++c) {
                    const float* other = problem.probabilities + channels.label[c] * n + first;
                    for (int i = 0; i < count; ++i) unary[(first + i) * width + c] = clipped(other[i]) - reference[i];
                }
                for (int i = 0; i < count; ++i) {
                    for (int c = channels.count; c < width; ++c) unary[(first + i) * width + c] = none;
                }
            }
        } else {
            const std::int64_t line_size = static_cast<std::int64_t>(up->grid_width + 1) * pick_width;
            float* line = picked + (up->grid_height + 1) * line_size;
            for (int i = 0; i < problem.height; ++i) {
                const float* top_line = picked + up->y.low[i] * line_size;
                const float f = up->y.fraction[i], g = 1 - f;
                for (std::int64_t j = 0; j < line_size; j += 4) {
                    store(line + j, load<f4>(top_line + j) * g + load<f4>(top_line + line_size + j) * f);
                }
                for (int j = 0; j < problem.width; ++j) {
                    const float* a = line + static_cast<std::int64_t>(up->x.low[j]) * pick_width;
                    const float* b = a + pick_width;
                    const float fx = up->x.fraction[j], gx = 1 - fx;
                    const std::int64_t pixel = static_cast<std::int64_t>(i) * problem.width + j;
                    const float log_sum = survey.log_sum[pixel];
                    // The reference stands behind the padded channels
                    float reference = (a[width] * gx + b[width] * fx) * kLog2E - log_sum;
                    reference = reference > floor ? reference : floor;
                    float* to = unary + pixel * width;
                    for (int c = 0; c < width; c += 4) {
                        const f4 l = (load<f4>(a + c) * gx + load<f4>(b + c) * fx) * kLog2E - log_sum;
                        store(to + c, l < set<f4>(-1e20f) ? l : max(l, set<f4>(floor)) - reference);
                    }
                }
            }
        }
        for (std::int64_t i = n * width; i < (n + kBlock - 1) / kBlock * kBlock * width; ++i) unary[i] = none;
    }
    static inline float clipped(float p) {
        p = p > kLeastProbability ? p : kLeastProbability;
        return log2(set<f4>(p < 1 ? p : 1))[0];
    }
    void pick(Buffer& buffer) {
        if (problem.probabilities) return;
        pick_width = width + 4;
        const std::int64_t cells = static_cast<std::int64_t>(up->grid_height + 1) * (up->grid_width + 1);
        picked = fit<float>(buffer, (cells + up->grid_width + 1) * pick_width);
        for (std::int64_t i = 0; i < cells; ++i) {
            const float* from = up->grid + i * up->channels;
            float* to = picked + i * pick_width;
            for (int c = 0; c < width; ++c) to[c] = c < channels.count ? from[channels.label[c]] : -1e30f;
            for (int c = width; c < pick_width; ++c) to[c] = from[channels.reference];
        }
    }
};

template <int CP, bool Single> void output(const Problem& p, const Channels& channels, int width, std::int64_t first,
                                           int count, float* z) {
    const std::int64_t n = static_cast<std::int64_t>(p.height) * p.width;
    if (p.labels) {
        for (int i = 0; i < count; ++i) {
            float best = 0;
            int label = channels.reference;
            for (int c = 0; c < channels.count; ++c) {
                const float v = z[i * width + c];
                const bool wins = v > best || (v == best && channels.label[c] < label);
                best = wins ? v : best;
                label = wins ? channels.label[c] : label;
            }
            p.labels[first + i] = static_cast<std::uint8_t>(label);
        }
    }
    if (p.marginals) {
        float rest[kBlock];
        softmax<CP, Single, false>(z, width, rest);
        for (int i = 0; i < count; ++i) p.marginals[channels.reference * n + first + i] = rest[i];
        for (int c = 0; c < channels.count; ++c) {
            for (int i = 0; i < count; ++i) p.marginals[channels.label[c] * n + first + i] = z[i * width + c];
        }
    }
}

inline float largest(const float* values, std::int64_t count) {
    float most = 0;
    for (std::int64_t i = 0; i < count; ++i) most = values[i] > most ? values[i] : most;
    return most;
}

// What every pass over the pixels reads.
struct Passes {
    const Channels& channels;
    int panels;
    float* unary;
    const Lattice* const* lattices;
    const float* gains;
    bool bounded;
    float certain;
    float* z;  // [kBlock][channels], where there are several panels
};

// Slice, softmax and splat (or, the last time, output) of all pixels.
template <int CP, bool Single>
void step(const Problem& p, const Passes& passes, int iteration, const float* const* now, float* const* then) {
    const Channels& channels = passes.channels;
    const Lattice* const lattices[2] = {passes.lattices[0], passes.lattices[1]};
    const int panels = Single ? 1 : passes.panels, width = CP * panels;
    const float certain = passes.certain;
    const bool last = iteration == p.params.iterations, bounded = passes.bounded;
    alignas(64) float fixed[Single ? kBlock * CP : 1];
    float* z = Single ? fixed : passes.z;
    float rest[kBlock];
    const std::int64_t n = static_cast<std::int64_t>(p.height) * p.width;
    for (std::int64_t first = 0; first < n; first += kBlock) {
        const int count = static_cast<int>(n - first < kBlock ? n - first : kBlock);
        for (int k = 0; k < 2; ++k) {
            if (!lattices[k] || last) continue;
            // Rows are numbered by the first block that touches them: they are cleared just before
            const std::int32_t* made = as<std::int32_t>(lattices[k]->made) + first / kBlock;
            float* from = then[k] + static_cast<std::int64_t>(made[0]) * width;
            std::memset(from, 0, static_cast<std::size_t>(made[1] - made[0]) * width * sizeof(float));
        }
        float* u = passes.unary + first * width;
        if (iteration == 0) {
            // Marginals start as the softmax of the unary alone; from here on it carries the total message as well
            std::memcpy(z, u, static_cast<std::size_t>(kBlock) * width * sizeof(float));
            for (int k = 0; k < 2; ++k) {
                if (!lattices[k]) continue;
                const float* total = as<float>(lattices[k]->total) + first;
                const float gain = passes.gains[k];
                for (int i = 0; i < count; ++i) {
                    for (int c = 0; c < width; ++c) u[i * width + c] -= gain * total[i];
                }
            }
        } else {
            if (!lattices[0] && !lattices[1]) {
                std::memset(z, 0, static_cast<std::size_t>(kBlock) * width * sizeof(float));
            }
            if (lattices[0]) {
                const float gain = passes.gains[0] * alpha(5);
                slice<5, CP, Single>(*lattices[0], gain, now[0], panels, first, count, z, false);
            }
            if (lattices[1]) {
                const float gain = passes.gains[1] * alpha(2);
                slice<2, CP, Single>(*lattices[1], gain, now[1], panels, first, count, z, lattices[0] != nullptr);
            }
            potentials<CP, Single>(u, z, width);
        }
        if (last) {
            output<CP, Single>(p, channels, width, first, count, z);
            continue;
        }
        if (bounded) {
            softmax<CP, Single, true>(z, width, rest);
        } else {
            softmax<CP, Single, false>(z, width, rest);
        }
        if (lattices[0]) splat<5, CP, Single>(*lattices[0], then[0], panels, first, count, z, rest, certain);
        if (lattices[1]) splat<2, CP, Single>(*lattices[1], then[1], panels, first, count, z, rest, certain);
    }
}

template <int CP, bool Single>
void mean_field(Problem& p, const Channels& channels, int panels, float* unary, const Lattice* const* lattices,
                const float* gains, Workspace& workspace) {
    const std::int64_t n = static_cast<std::int64_t>(p.height) * p.width;
    const int width = CP * panels;
    float *now[2] = {}, *then[2] = {};
    for (int k = 0; k < 2; ++k) {
        if (!lattices[k]) continue;
        now[k] = fit<float>(workspace.values[2 * k], num_rows(*lattices[k]) * width);
        then[k] = fit<float>(workspace.values[2 * k + 1], num_rows(*lattices[k]) * width);
    }
    // Unary potentials are within log2(1e-5), and no message exceeds the total
    float reach = -std::log2(kLeastProbability);
    for (int k = 0; k < 2; ++k) {
        if (lattices[k]) reach += std::fabs(gains[k]) * largest(as<float>(lattices[k]->total), n);
    }
    // Pixels that are this sure of the reference class have nothing to say about the others. In exact mode all speak
    const float certain = p.params.min_probability > 0 ? 1 - kNegligible : 2.0f;
    float* z = Single ? nullptr : fit<float>(workspace.scratch[2], static_cast<std::int64_t>(kBlock) * width);
    const Passes passes{channels, panels, unary, lattices, gains, reach < 100, certain, z};
    for (int iteration = 0; iteration <= p.params.iterations; ++iteration) {
        const bool last = iteration == p.params.iterations;
        for (int k = 0; k < 2; ++k) {
            if (lattices[k] && !last) std::memset(then[k], 0, static_cast<std::size_t>(2 * width) * sizeof(float));
        }
        step<CP, Single>(p, passes, iteration, now, then);
        SEGCRF_TICK("step");
        if (last) break;
        for (int k = 0; k < 2; ++k) {
            if (lattices[k]) blur<CP>(*lattices[k], then[k], panels);
            SEGCRF_TICK("blur");
        }
        for (int k = 0; k < 2; ++k) std::swap(now[k], then[k]);
    }
}

// Pixels, confidence and change of the final labels. Confidence is the probability before the CRF.
void summarize(Problem& p, const Survey& survey, const Upsampler& up) {
    std::int64_t pixels[256] = {}, changed = 0;
    double confidence[256] = {};
    for (int i = 0; i < p.height; ++i) {
        const float* line = up.row(i);
        for (int j = 0; j < p.width; j += 16) {
            const int count = p.width - j < 16 ? p.width - j : 16;
            const std::int64_t first = static_cast<std::int64_t>(i) * p.width + j;
            const std::uint8_t* labels = p.labels + first;
            alignas(64) float power[16] = {};
            for (int l = 0; l < count; ++l) {
                const float* a = line + static_cast<std::int64_t>(up.x.low[j + l]) * up.channels + labels[l];
                const float f = up.x.fraction[j + l];
                power[l] = (a[0] * (1 - f) + a[up.channels] * f) * kLog2E - survey.log_sum[first + l];
            }
            for (int l = 0; l < 16; l += kWide) store(power + l, exp2(min(load<Wide>(power + l), Wide{})));
            for (int l = 0; l < count; ++l) {
                ++pixels[labels[l]];
                confidence[labels[l]] += power[l];
                changed += labels[l] != p.labels_before[first + l];
            }
        }
    }
    const double n = static_cast<double>(p.height) * p.width;
    p.confidence = 0;
    for (int c = 0; c < p.num_classes; ++c) {
        p.confidence += confidence[c] / n;
        p.class_pixels[c] = pixels[c];
        p.class_confidence[c] = pixels[c] ? confidence[c] / static_cast<double>(pixels[c]) : 0.0;
    }
    p.changed = static_cast<double>(changed) / n;
}

void solve(Problem& p, Workspace& workspace, const Lattice* spatial) {
    const std::int64_t n = static_cast<std::int64_t>(p.height) * p.width;
    float* survey_memory = fit<float>(workspace.scratch[0], 256 + n + 16);
    std::int64_t wins[256] = {};
    Survey survey{survey_memory, survey_memory + 256, wins};
    for (int c = 0; c < 256; ++c) survey.best[c] = 0;

    alignas(Upsampler) unsigned char place[sizeof(Upsampler)];
    Upsampler* up = nullptr;
    if (p.scores) {
        up = new (place) Upsampler(p, workspace);
        survey_scores(p, *up, survey);
    } else {
        survey_probabilities(p, survey, workspace);
    }
    SEGCRF_TICK("survey");
    const Channels channels = choose(p, survey);
    p.num_kept = channels.kept;

    if (!p.with_crf) {
        std::memcpy(p.labels, p.labels_before, static_cast<std::size_t>(n));
    } else if (channels.count == 0) {
        if (p.labels) std::memset(p.labels, channels.reference, static_cast<std::size_t>(n));
        if (p.marginals) {
            for (std::int64_t i = 0; i < n; ++i) p.marginals[channels.reference * n + i] = 1;
        }
    } else {
        int width = (channels.count + 3) / 4 * 4, panels = 1;
        if (width > 24) {
            panels = (channels.count + 31) / 32;
            width = 32 * panels;
        }
        UnarySource source{p, channels, survey, up, width, nullptr, 0};
        source.pick(workspace.scratch[1]);
        float* unary = fit<float>(workspace.unary, (n + kBlock) * width);
        source.write(unary);
        SEGCRF_TICK("unary");

        const Lattice* lattices[2] = {nullptr, spatial};
        if (p.params.bilateral_weight != 0) {
            lay_bilateral(workspace.bilateral, workspace, p);
            SEGCRF_TICK("lay");
            normalize<5>(workspace.bilateral, workspace, p.params.normalization);
            lattices[0] = &workspace.bilateral;
            SEGCRF_TICK("normalize");
        }
        const float gains[2] = {p.params.bilateral_weight * kLog2E, p.params.gaussian_weight * kLog2E};
        switch (panels > 1 ? 0 : width) {
            case 4: mean_field<4, true>(p, channels, 1, unary, lattices, gains, workspace); break;
            case 8: mean_field<8, true>(p, channels, 1, unary, lattices, gains, workspace); break;
            case 12: mean_field<12, true>(p, channels, 1, unary, lattices, gains, workspace); break;
            case 16: mean_field<16, true>(p, channels, 1, unary, lattices, gains, workspace); break;
            case 20: mean_field<20, true>(p, channels, 1, unary, lattices, gains, workspace); break;
            case 24: mean_field<24, true>(p, channels, 1, unary, lattices, gains, workspace); break;
            case 32: mean_field<32, true>(p, channels, 1, unary, lattices, gains, workspace); break;
            default: mean_field<32, false>(p, channels, panels, unary, lattices, gains, workspace); break;
        }
    }
    if (p.labels && p.class_pixels) summarize(p, survey, *up);
    SEGCRF_TICK("summarize");
}

}  // namespace
}  // namespace SEGCRF_ISA

extern const Engine SEGCRF_ENGINE = {SEGCRF_NAME, SEGCRF_ISA::build_spatial, SEGCRF_ISA::solve};

}  // namespace segcrf
