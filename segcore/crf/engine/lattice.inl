// Construction of permutohedral lattices (Adams, Baek and Davis 2010). Compiled once per instruction set, and without
// contraction into fused multiply-adds: rounding decides which simplex a pixel on a border belongs to.

#include "engine.hpp"

#include <cmath>
#include <cstring>
#include <utility>

namespace segcrf {
namespace SEGCRF_ISA {
namespace {

#include "simd.inl"

// Where a pixel lies in the lattice. A vertex has dims + 1 integer coordinates that sum to 0 and share one remainder k
// modulo dims + 1, so (quotients of the first dims coordinates, k) names it. The quotients are packed into one key with
// as many bits each as the extent of the features asks for, the remainder in the lowest three.
template <int D, class Key> struct Packing {
    Key unit[D + 1];           // what one step of quotient i adds to the key; nothing for the last coordinate
    Key all;                   // the sum of the units
    std::int32_t bias[D + 1];  // makes quotients positive
    float scale[D];            // feature to elevated coordinate

    // Largest feature values, smallest are 0. Returns the bits that a key needs.
    int plan(const float* largest) {
        const double deviation = std::sqrt(2.0 / 3.0) * (D + 1);
        double reach[D];
        for (int i = 0; i < D; ++i) {
            scale[i] = static_cast<float>(1.0 / std::sqrt(static_cast<double>((i + 2) * (i + 1))) *
                                          static_cast<double>(static_cast<float>(deviation)));
            reach[i] = static_cast<double>(largest[i]) * scale[i];
        }
        int shift = 3;
        all = 0;
        for (int i = 0; i <= D; ++i) {
            double lowest = i ? -i * reach[i - 1] : 0, highest = 0;
            for (int j = i; j < D; ++j) highest += reach[j];
            // One step each for rounding, for returning to the plane, for the far corners, for neighbours; and one more
            const double margin = 5 + 1e-6 * (highest - lowest);
            const double first = std::floor(lowest / (D + 1)) - margin, last = std::ceil(highest / (D + 1)) + margin;
            bias[i] = static_cast<std::int32_t>(-first);
            int bits = 1;
            while (std::ldexp(1.0, bits) < last - first + 2) ++bits;
            unit[i] = i < D && shift < static_cast<int>(8 * sizeof(Key)) ? Key(1) << shift : Key(0);
            if (i < D) shift += bits;
            all += unit[i];
        }
        return shift;
    }
};

// Barycentric weights and vertex keys of kWide points. The arithmetic and its order are those of the published filter,
// since which of two simplices a point on their border belongs to decides which vertices exist.
template <int D, class Key>
inline void embed(const Wide* feature, const Packing<D, Key>& packing, float* weights, Key* keys) {
    Wide elevated[D + 1], nearest[D + 1];
    Wide sum = Wide{};
    for (int j = D; j > 0; --j) {
        const Wide cf = feature[j - 1] * packing.scale[j - 1];
        elevated[j] = sum - static_cast<float>(j) * cf;
        sum += cf;
    }
    elevated[0] = sum;

    const float step = D + 1, inverse = 1.0f / (D + 1);
    const Wide magic = set<Wide>(12582912.0f);
    Wide off = Wide{};
    Wide quotient[D + 1];
    for (int i = 0; i <= D; ++i) {
        const Wide v = elevated[i] * inverse;
        quotient[i] = (v + magic) - magic;  // to nearest, ties to even
        nearest[i] = quotient[i] * step;
        off += quotient[i];
    }
    WideInt rank[D + 1];
    for (int i = 0; i <= D; ++i) rank[i] = WideInt{};
    for (int i = 0; i < D; ++i) {
        const Wide a = elevated[i] - nearest[i];
        for (int j = i + 1; j <= D; ++j) {
            const WideInt less = a < elevated[j] - nearest[j];  // -1 where true
            rank[i] -= less;
            rank[j] += 1 + less;
        }
    }
    const WideInt outside = __builtin_convertvector(off, WideInt);
    Wide sorted[D + 1];
    for (int r = 0; r <= D; ++r) sorted[r] = Wide{};
    WideInt whole[D + 1];
    for (int i = 0; i <= D; ++i) {
        rank[i] += outside;
        const WideInt under = rank[i] < 0, over = rank[i] > D;
        rank[i] += (over - under) * (D + 1);
        whole[i] = __builtin_convertvector(quotient[i], WideInt) + over - under;
        nearest[i] = __builtin_convertvector(whole[i], Wide) * step;
        const Wide v = (elevated[i] - nearest[i]) * inverse;
        for (int r = 0; r <= D; ++r) sorted[r] = rank[i] == r ? v : sorted[r];
    }
    Wide corner[D + 1];
    corner[0] = sorted[D] + (1.0f - sorted[0]);
    for (int k = 1; k <= D; ++k) corner[k] = sorted[D - k] - sorted[D + 1 - k];

    for (int p = 0; p < kWide; ++p) {
        Key base = 0, by_rank[D + 1];
        for (int i = 0; i <= D; ++i) {
            base += packing.unit[i] * static_cast<Key>(static_cast<std::uint32_t>(whole[i][p] + packing.bias[i]));
            by_rank[rank[i][p]] = packing.unit[i];
        }
        for (int k = 0; k <= D; ++k) {
            keys[p * (D + 1) + k] = base | static_cast<Key>(k);
            weights[p * (D + 1) + k] = corner[k][p];
            base -= by_rank[D - k];
        }
    }
}

template <class Key> inline std::uint64_t scatter(Key key) {
    std::uint64_t h = static_cast<std::uint64_t>(key);
    if constexpr (sizeof(Key) > 8) h ^= static_cast<std::uint64_t>(key >> 64) * 0xd6e8feb86659fd93ull;
    h *= 0x9e3779b97f4a7c15ull;
    return h ^ (h >> 29);
}

// A hash table of buckets as large as a cache line. A bucket holds 32 more bits of the hash and the row of up to eight
// keys, and is searched without a branch; what finds it full goes to the next one. Row 0 is no row.
struct alignas(64) Bucket {
    std::int32_t tag[8];
    std::int32_t row[8];
};

template <class Key> struct Table {
    Buffer& memory;
    Bucket* buckets;
    Key* keys;  // by row
    std::uint64_t mask;
    std::int64_t count = 0, limit;

    Table(Buffer& table, Buffer& by_row, std::int64_t expected, std::int64_t most) : memory(table) {
        keys = fit<Key>(by_row, most + 32);
        std::uint64_t capacity = 256;
        while (static_cast<std::int64_t>(capacity) * 4 < expected) capacity *= 2;
        clear(capacity);
    }
    void clear(std::uint64_t capacity) {
        buckets = fit<Bucket>(memory, static_cast<std::int64_t>(capacity));
        std::memset(static_cast<void*>(buckets), 0, capacity * sizeof(Bucket));
        mask = capacity - 1;
        limit = static_cast<std::int64_t>(capacity * 4);
    }
    inline void prefetch(std::uint64_t hash) const { __builtin_prefetch(&buckets[hash & mask]); }

    // The row with the tag of `hash` in its first bucket, or 0; only one in 2^29 of them has another key.
    inline std::int32_t candidate(std::uint64_t hash) const {
        const Bucket& bucket = buckets[hash & mask];
        i8 tags, rows;
        __builtin_memcpy(&tags, bucket.tag, sizeof tags);
        __builtin_memcpy(&rows, bucket.row, sizeof rows);
        const i8 found = rows & (tags == i8{} + static_cast<std::int32_t>(hash >> 32));
        i4 one = __builtin_shufflevector(found, found, 0, 1, 2, 3) | __builtin_shufflevector(found, found, 4, 5, 6, 7);
        one |= __builtin_shufflevector(one, one, 2, 3, 0, 1);
        return one[0] | one[1];
    }
    inline bool is_full(std::uint64_t hash) const { return buckets[hash & mask].row[7] != 0; }

    // What `candidate` may miss.
    __attribute__((noinline)) std::int32_t search(Key key, std::uint64_t hash) const {
        const std::int32_t tag = static_cast<std::int32_t>(hash >> 32);
        for (std::uint64_t at = hash & mask;; at = (at + 1) & mask) {
            for (int i = 0; i < 8; ++i) {
                const std::int32_t row = buckets[at].row[i];
                if (row == 0 || (buckets[at].tag[i] == tag && keys[row] == key)) return row;
            }
        }
    }
    inline std::int32_t find(Key key, std::uint64_t hash, std::int32_t guess) const {
        if (guess ? keys[guess] == key : !is_full(hash)) return guess;
        return search(key, hash);
    }
    inline std::int32_t insert(Key key, std::uint64_t hash) {
        std::int32_t row = find(key, hash, candidate(hash));
        if (row == 0) {
            row = static_cast<std::int32_t>(count + 2);
            keys[row] = key;
            place(hash, row);
            if (++count > limit) grow();
        }
        return row;
    }
    inline void place(std::uint64_t hash, std::int32_t row) {
        for (std::uint64_t at = hash & mask;; at = (at + 1) & mask) {
            Bucket& bucket = buckets[at];
            if (bucket.row[7]) continue;
            int free = 0;
            for (int i = 0; i < 7; ++i) free += bucket.row[i] != 0;
            bucket.tag[free] = static_cast<std::int32_t>(hash >> 32);
            bucket.row[free] = row;
            return;
        }
    }
    __attribute__((noinline)) void grow() {
        clear(2 * (mask + 1));
        for (std::int32_t row = 2; row < count + 2; ++row) place(scatter(keys[row]), row);
    }
};

// Features of kWide pixels from pixel `first` on; zeros behind the last.
struct BilateralFeatures {
    const std::uint8_t* image;
    std::int64_t num_pixels;
    int width;
    float xy, rgb;
    inline void at(std::int64_t first, Wide* feature) const {
        alignas(64) float f[5][kWide];
        std::int64_t y = first / width, x = first % width;
        for (int p = 0; p < kWide; ++p) {
            if (first + p < num_pixels) {
                f[0][p] = static_cast<float>(x);
                f[1][p] = static_cast<float>(y);
                for (int c = 0; c < 3; ++c) f[2 + c][p] = static_cast<float>(image[3 * (first + p) + c]);
            } else {
                for (int c = 0; c < 5; ++c) f[c][p] = 0;
            }
            if (++x == width) x = 0, ++y;
        }
        for (int c = 0; c < 5; ++c) feature[c] = load<Wide>(f[c]) / (c < 2 ? xy : rgb);
    }
};
struct SpatialFeatures {
    std::int64_t num_pixels;
    int width;
    float xy;
    inline void at(std::int64_t first, Wide* feature) const {
        alignas(64) float f[2][kWide];
        std::int64_t y = first / width, x = first % width;
        for (int p = 0; p < kWide; ++p) {
            const bool inside = first + p < num_pixels;
            f[0][p] = inside ? static_cast<float>(x) : 0;
            f[1][p] = inside ? static_cast<float>(y) : 0;
            if (++x == width) x = 0, ++y;
        }
        for (int c = 0; c < 2; ++c) feature[c] = load<Wide>(f[c]) / xy;
    }
};

// Row before which each vertex comes along `axis`, or 0. A step along axis j lowers every coordinate by one but raises
// coordinate j by dims.
template <int D, class Key> inline Key neighbour(Key key, int axis, const Packing<D, Key>& packing) {
    const Key remainder = key & 7;
    const Key moved = key - remainder + packing.unit[axis];
    return remainder ? moved + (remainder - 1) : moved - packing.all + D;
}

// Writes the chains that begin at `heads`, each followed by 0; returns how much was written.
std::int64_t walk(const std::int32_t* next, const std::int32_t* heads, std::int64_t num_heads, std::int32_t* chain) {
    std::int64_t length = 0;
    for (std::int64_t i = 0; i < num_heads; ++i) {
        for (std::int32_t at = heads[i]; at; at = next[at]) chain[length++] = at;
        chain[length++] = 0;
    }
    for (int i = 0; i < 64; ++i) chain[length + i] = 0;  // read ahead by the blur
    return length;
}

template <int D, class Key, class Features>
void build(Lattice& lattice, Workspace& workspace, std::int64_t num_pixels, const Packing<D, Key>& packing,
           const Features& features) {
    const std::int64_t padded = (num_pixels + 15) / 16 * 16;
    lattice.dims = D;
    lattice.num_pixels = num_pixels;
    std::int32_t* rows = fit<std::int32_t>(lattice.vertices, padded * (D + 1));
    float* weights = fit<float>(lattice.weights, padded * (D + 1));
    Table<Key> table(workspace.table, workspace.keys, num_pixels / 2, (num_pixels + 4) * (D + 1));

    // Keys of one block are computed, and their slots fetched, before those of the block before are looked up.
    constexpr int kKeys = 16 * (D + 1);
    Key two_blocks[2][kKeys];
    std::uint64_t hashes[2][kKeys];
    // pydensecrf works on four pixels at a time and pads the last four with the point 0, whose vertices then exist.
    const std::int64_t with_padding = (num_pixels + 3) / 4 * 4;
    const std::int64_t num_blocks = padded / kBlock;
    std::int32_t* made = fit<std::int32_t>(lattice.made, num_blocks + 1);
    const auto locate = [&](std::int64_t block, Key* keys) {
        for (int at = 0; at < kBlock; at += kWide) {
            const std::int64_t first = block * kBlock + at;
            Wide feature[D];
            features.at(first, feature);
            embed<D, Key>(feature, packing, weights + first * (D + 1), keys + at * (D + 1));
        }
    };
    for (std::int64_t turn = 0; turn <= num_blocks; ++turn) {
        if (turn < num_blocks) {
            Key* now = two_blocks[turn % 2];
            std::uint64_t* hash = hashes[turn % 2];
            locate(turn, now);
            for (int i = 0; i < kKeys; ++i) hash[i] = scatter(now[i]);
            for (int i = 0; i < kKeys; ++i) table.prefetch(hash[i]);
        }
        if (turn > 0) {
            const Key* before = two_blocks[(turn + 1) % 2];
            const std::uint64_t* hash = hashes[(turn + 1) % 2];
            const std::int64_t first = (turn - 1) * kBlock;
            const std::int64_t left = with_padding - first;
            const int present = static_cast<int>(left < kBlock ? left : kBlock) * (D + 1);
            made[turn - 1] = static_cast<std::int32_t>(table.count + 2);
            for (int i = 0; i < present; ++i) rows[first * (D + 1) + i] = table.insert(before[i], hash[i]);
        }
    }
    made[num_blocks] = static_cast<std::int32_t>(table.count + 2);
    SEGCRF_TICK("  insert");
    const std::int64_t count = table.count;
    lattice.num_vertices = count;

    // A vertex without neighbours keeps its value and is left out. At worst every chain has two vertices and a 0.
    for (int axis = 0; axis <= D; ++axis) fit<std::int32_t>(lattice.chains[axis], count + count / 2 + 128);
    const std::int64_t rows_size = count + 8;
    std::int32_t* next = fit<std::int32_t>(workspace.next, 3 * rows_size);
    std::int32_t* first_of_chain = next + rows_size;  // 1 where nothing comes before
    std::int32_t* heads = first_of_chain + rows_size;
    for (int axis = 0; axis <= D; ++axis) {
        for (std::int64_t row = 0; row < count + 2; ++row) first_of_chain[row] = 1;
        // Three steps behind each other: fetch the bucket, look into it and fetch the key of the row, compare the key
        constexpr int kAhead = 16;
        Key key[3][kAhead];
        std::uint64_t hash[3][kAhead];
        std::int32_t guess[kAhead];
        const std::int64_t end = count + 2;
        for (std::int64_t start = 2, turn = 0; start < end + 2 * kAhead; start += kAhead, ++turn) {
            if (start < end) {
                Key* k = key[turn % 3];
                std::uint64_t* h = hash[turn % 3];
                for (int i = 0; i < kAhead; ++i) k[i] = neighbour<D, Key>(table.keys[start + i], axis, packing);
                for (int i = 0; i < kAhead; ++i) h[i] = scatter(k[i]);
                for (int i = 0; i < kAhead; ++i) table.prefetch(h[i]);
            }
            if (turn >= 2) {
                const std::int64_t first = start - 2 * kAhead;
                const int present = static_cast<int>(end - first < kAhead ? end - first : kAhead);
                for (int i = 0; i < present; ++i) {
                    const std::int32_t row = table.find(key[(turn + 1) % 3][i], hash[(turn + 1) % 3][i], guess[i]);
                    next[first + i] = row;
                    first_of_chain[row] = 0;
                }
            }
            if (turn >= 1 && start - kAhead < end) {
                for (int i = 0; i < kAhead; ++i) {
                    guess[i] = table.candidate(hash[(turn + 2) % 3][i]);
                    __builtin_prefetch(&table.keys[guess[i]]);
                }
            }
        }
        SEGCRF_TICK("  neighbours");
        std::int32_t* chain = as<std::int32_t>(lattice.chains[axis]);
        std::int64_t num_heads = 0;
        for (std::int32_t row = 2; row < count + 2; ++row) {
            heads[num_heads] = row;
            num_heads += first_of_chain[row] & (next[row] != 0);
        }
        lattice.chain_length[axis] = walk(next, heads, num_heads, chain);
        SEGCRF_TICK("  chains");
    }
}

template <class Key>
bool lay_with(Lattice& lattice, Workspace& workspace, const Problem& problem) {
    Packing<5, Key> packing;
    const Params& params = problem.params;
    const float xy = params.bilateral_xy, rgb = params.bilateral_rgb;
    const float largest[5] = {static_cast<float>(problem.width - 1) / xy, static_cast<float>(problem.height - 1) / xy,
                              255 / rgb, 255 / rgb, 255 / rgb};
    if (packing.plan(largest) > static_cast<int>(8 * sizeof(Key))) return false;
    const std::int64_t n = static_cast<std::int64_t>(problem.height) * problem.width;
    const BilateralFeatures features{problem.image, n, problem.width, xy, rgb};
    build<5, Key>(lattice, workspace, n, packing, features);
    return true;
}

}  // namespace

void lay_bilateral(Lattice& lattice, Workspace& workspace, const Problem& problem) {
    if (!lay_with<std::uint64_t>(lattice, workspace, problem)) {
        lay_with<unsigned __int128>(lattice, workspace, problem);
    }
}

void lay_spatial(Lattice& lattice, Workspace& workspace, int height, int width, float sigma) {
    Packing<2, std::uint64_t> packing;
    const float largest[2] = {static_cast<float>(width - 1) / sigma, static_cast<float>(height - 1) / sigma};
    packing.plan(largest);  // two coordinates of float32 precision always fit
    const std::int64_t n = static_cast<std::int64_t>(height) * width;
    build<2, std::uint64_t>(lattice, workspace, n, packing, SpatialFeatures{n, width, sigma});
}

}  // namespace SEGCRF_ISA
}  // namespace segcrf
