// Vectors of 4, 8 and 16 lanes in the vector extension of GCC and Clang: the same source becomes SSE2, AVX2, AVX-512
// or NEON, according to the flags of the file that includes it. No intrinsics.

typedef float f4 __attribute__((vector_size(16)));
typedef float f8 __attribute__((vector_size(32)));
typedef float f16 __attribute__((vector_size(64)));
typedef std::int32_t i4 __attribute__((vector_size(16)));
typedef std::int32_t i8 __attribute__((vector_size(32)));
typedef std::int32_t i16 __attribute__((vector_size(64)));

template <class V> struct IntOf;
template <> struct IntOf<f4> { using type = i4; };
template <> struct IntOf<f8> { using type = i8; };
template <> struct IntOf<f16> { using type = i16; };

// What one register holds. Wider vectors are in memory, and GCC shuffles them lane by lane and copies them in pieces
// whose loads wait for the stores.
#if defined(__AVX512F__)
typedef f16 Wide;
#elif defined(__AVX__)
typedef f8 Wide;
#else
typedef f4 Wide;
#endif
constexpr int kWide = sizeof(Wide) / sizeof(float);
typedef IntOf<Wide>::type WideInt;
constexpr auto kLanes = std::make_integer_sequence<int, kWide>{};

template <class V> inline V load(const float* from) { V v; __builtin_memcpy(&v, from, sizeof v); return v; }
template <class V> inline void store(float* to, V v) { __builtin_memcpy(to, &v, sizeof v); }
template <class V> inline V set(float x) { return V{} + x; }

template <class V> inline V max(V a, V b) { return a > b ? a : b; }
template <class V> inline V min(V a, V b) { return a < b ? a : b; }

// 2^x for x in [-64, 126]; below that 2^-64, so that no product of it becomes denormal. Relative error under 3e-7.
template <class V> inline V exp2(V x) {
    using I = typename IntOf<V>::type;
    x = max(x, set<V>(-64.0f));
    const V magic = set<V>(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    V shifted = x + magic;
    V f = x - (shifted - magic);
    // 2^f on [-0.5, 0.5]: Taylor in f ln 2 with the last terms fitted (Cephes exp2f)
    V p = set<V>(1.535336188319500e-4f);
    p = p * f + 1.339887440266574e-3f;
    p = p * f + 9.618437357674640e-3f;
    p = p * f + 5.550332471162809e-2f;
    p = p * f + 2.402264791363012e-1f;
    p = p * f + 6.931472028550421e-1f;
    p = p * f + 1.0f;
    I bits = (I)p + ((I)shifted << 23);
    return (V)bits;
}

// log2 x for normal x > 0. Absolute error under 2e-7 + relative 1e-7 (Cephes logf).
template <class V> inline V log2(V x) {
    using I = typename IntOf<V>::type;
    I bits = (I)x;
    I exponent = (bits - 0x3f3504f3) >> 23;  // mantissa in [sqrt 1/2, sqrt 2)
    V m = (V)(bits - (exponent << 23)) - 1.0f;
    V z = m * m;
    V p = set<V>(7.0376836292e-2f);
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    V ln = m + (m * z * p - 0.5f * z);
    return ln * 1.44269504088896341f + __builtin_convertvector(exponent, V);
}

// 1 / x to about one unit in the last place; a division of 16 lanes takes as long as twenty other operations.
inline Wide reciprocal(Wide x) {
#if defined(__AVX512F__)
    const f16 r = (f16)__builtin_ia32_rcp14ps512_mask((f16)x, (f16)x, (unsigned short)0xffff);
    return r * (2.0f - x * r);
#else
    return 1.0f / x;
#endif
}

inline f8 low(f16 v) { return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7); }
inline f8 high(f16 v) { return __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15); }
inline f4 low(f8 v) { return __builtin_shufflevector(v, v, 0, 1, 2, 3); }
inline f4 high(f8 v) { return __builtin_shufflevector(v, v, 4, 5, 6, 7); }

inline f4 quarters(f4 v) { return v; }
inline f4 quarters(f8 v) { return low(v) + high(v); }
inline f4 quarters(f16 v) { return quarters(low(v) + high(v)); }

inline float sum(f4 v) {
    v += __builtin_shufflevector(v, v, 2, 3, 0, 1);
    return v[0] + v[1];
}
inline float sum(f8 v) { return sum(low(v) + high(v)); }
inline float sum(f16 v) { return sum(low(v) + high(v)); }
inline float top(f4 v) {
    v = max(v, __builtin_shufflevector(v, v, 2, 3, 0, 1));
    return v[0] > v[1] ? v[0] : v[1];
}
inline float top(f8 v) { return top(max(low(v), high(v))); }
inline float top(f16 v) { return top(max(low(v), high(v))); }

// Every lane with the one D lanes away in its group of 2 D.
template <int D, int... L> inline Wide swapped(Wide v, std::integer_sequence<int, L...>) {
    return __builtin_shufflevector(v, v, (L ^ D)...);
}

// Sum and maximum over each group of G neighbouring lanes, in every lane of the group.
template <int G> inline Wide group_sum(Wide v) {
    v += swapped<1>(v, kLanes);
    v += swapped<2>(v, kLanes);
    if constexpr (G >= 8) v += swapped<4>(v, kLanes);
    if constexpr (G >= 16) v += swapped<8>(v, kLanes);
    return v;
}
template <int G> inline Wide group_max(Wide v) {
    v = max(v, swapped<1>(v, kLanes));
    v = max(v, swapped<2>(v, kLanes));
    if constexpr (G >= 8) v = max(v, swapped<4>(v, kLanes));
    if constexpr (G >= 16) v = max(v, swapped<8>(v, kLanes));
    return v;
}

// kWide rows become columns: at each stage, blocks of D x D lanes off the diagonal change places.
template <int D, int... L> inline void exchange(Wide& a, Wide& b, std::integer_sequence<int, L...>) {
    const Wide low = __builtin_shufflevector(a, b, ((L & D) ? kWide + L - D : L)...);
    b = __builtin_shufflevector(a, b, ((L & D) ? kWide + L : L + D)...);
    a = low;
}
template <int D> inline void exchange_all(Wide* rows) {
    for (int i = 0; i < kWide; ++i) {
        if (!(i & D)) exchange<D>(rows[i], rows[i + D], kLanes);
    }
}
inline void transpose(Wide* rows) {
    exchange_all<1>(rows);
    exchange_all<2>(rows);
    if constexpr (kWide >= 8) exchange_all<4>(rows);
    if constexpr (kWide >= 16) exchange_all<8>(rows);
}

// One row of CP class values in as few registers as hold it; CP is a multiple of 4, or 1.
template <int CP> struct Row {
    static constexpr int wide = CP / kWide, n8 = CP % kWide / 8, n4 = CP % kWide % 8 / 4, n1 = CP % 4;
    Wide a[wide ? wide : 1];
    f8 b;
    f4 c;
    float d;

    static inline Row zero() {
        Row r;
        for (int i = 0; i < wide; ++i) r.a[i] = Wide{};
        if constexpr (n8) r.b = f8{};
        if constexpr (n4) r.c = f4{};
        if constexpr (n1) r.d = 0;
        return r;
    }
    static inline Row at(const float* p) {
        Row r;
        for (int i = 0; i < wide; ++i) r.a[i] = load<Wide>(p + kWide * i);
        if constexpr (n8) r.b = load<f8>(p + kWide * wide);
        if constexpr (n4) r.c = load<f4>(p + kWide * wide + 8 * n8);
        if constexpr (n1) r.d = *p;
        return r;
    }
    inline void put(float* p) const {
        for (int i = 0; i < wide; ++i) store(p + kWide * i, a[i]);
        if constexpr (n8) store(p + kWide * wide, b);
        if constexpr (n4) store(p + kWide * wide + 8 * n8, c);
        if constexpr (n1) *p = d;
    }
    // this + w * p[...]
    inline void fma(float w, const float* p) {
        for (int i = 0; i < wide; ++i) a[i] += w * load<Wide>(p + kWide * i);
        if constexpr (n8) b += w * load<f8>(p + kWide * wide);
        if constexpr (n4) c += w * load<f4>(p + kWide * wide + 8 * n8);
        if constexpr (n1) d += w * *p;
    }
    // p[...] += w * this
    inline void splat(float w, float* p) const {
        for (int i = 0; i < wide; ++i) store(p + kWide * i, load<Wide>(p + kWide * i) + w * a[i]);
        if constexpr (n8) store(p + kWide * wide, load<f8>(p + kWide * wide) + w * b);
        if constexpr (n4) store(p + kWide * wide + 8 * n8, load<f4>(p + kWide * wide + 8 * n8) + w * c);
        if constexpr (n1) *p += w * d;
    }
    // p[...] = current + (before + after) / 2
    static inline void smooth(float* p, const Row& before, const Row& current, const Row& after) {
        for (int i = 0; i < wide; ++i) store(p + kWide * i, current.a[i] + 0.5f * (before.a[i] + after.a[i]));
        if constexpr (n8) store(p + kWide * wide, current.b + 0.5f * (before.b + after.b));
        if constexpr (n4) store(p + kWide * wide + 8 * n8, current.c + 0.5f * (before.c + after.c));
        if constexpr (n1) *p = current.d + 0.5f * (before.d + after.d);
    }
    inline void scale(float w) {
        for (int i = 0; i < wide; ++i) a[i] *= w;
        if constexpr (n8) b *= w;
        if constexpr (n4) c *= w;
        if constexpr (n1) d *= w;
    }
};

// Typed views of a Buffer.
template <class T> inline T* as(const Buffer& buffer) { return static_cast<T*>(buffer.data); }
template <class T> inline T* fit(Buffer& buffer, std::int64_t count) {
    return static_cast<T*>(reserve(buffer, static_cast<std::size_t>(count) * sizeof(T)));
}
