// Block-sparse matrix times dense vectors: y_b = U h_b for b = 0 .. B-1, U in square blocks.
//
// Two kernels cover all blocks and number formats. Both keep a register tile of outputs for one row of
// blocks and a few vectors h_b, and read the blocks of that row once:
//
//   panel kernel (blocks of 8, 16, 32): lanes are rows of the block. A step loads the weights of some rows
//       for a group of columns and multiplies them with that group of h_b, broadcast to all lanes.
//   small kernel (blocks of 4): a block fills one register, or several where registers are short; lanes are
//       (row, group of columns). The four values of h_b are repeated for each row, and the lanes of a row are
//       summed at the end. A block shorter than a register is repeated in it: several vectors per register.
//
// A group is the columns in one lane of 32 bits: one float, two bf16 or four int8. Products of bf16 are
// summed in float, those of int8 (with activations as unsigned bytes) in int32, exactly.
//
// LANES is the number of floats in a vector register: 16, 8 or 4. The only other machine-dependent part is
// the two instructions that multiply bf16 and int8 groups, where the processor has them.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

template <class T, int N> struct VectorOf {
    typedef T type __attribute__((vector_size(N * sizeof(T))));
    typedef T loose __attribute__((vector_size(N * sizeof(T)), aligned(1), may_alias));
};
template <class T, int N> using Vector = typename VectorOf<T, N>::type;
template <class V> INLINE V load(const void *p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}
template <class V> INLINE void store(void *p, V v) { memcpy(p, &v, sizeof v); }
template <class To, class From> INLINE To bits(From v) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To to;
    memcpy(&to, &v, sizeof to);
    return to;
}

// The 32 bits at h in all lanes; the GROUPS words at h, repeated.
template <int N> INLINE Vector<int32_t, N> to_all(const void *h) { return load<int32_t>(h) - Vector<int32_t, N>{}; }
template <int N, size_t... I> INLINE Vector<int32_t, N> repeated(Vector<int32_t, 4> v, std::index_sequence<I...>) {
    return Vector<int32_t, N>{v[I % 4]...};
}
template <int N, int GROUPS> INLINE Vector<int32_t, N> repeat_words(const void *h) {
    if constexpr (GROUPS == 1) return to_all<N>(h);
    else if constexpr (GROUPS == 2) return bits<Vector<int32_t, N>>(load<int64_t>(h) - Vector<int64_t, N / 2>{});
#ifdef __AVX512F__
    else if constexpr (N == 16) return bits<Vector<int32_t, N>>(_mm512_broadcast_i32x4(load<__m128i>(h)));  // GCC does not generate it
#endif
    else return repeated<N>(load<Vector<int32_t, 4>>(h), std::make_index_sequence<N>());
}

// Several vectors per register: the EACH words at w once per vector, and the words at h, each vector's repeated.
template <int N, int EACH> INLINE Vector<int32_t, N> weights_per_vector(const void *w) {
    if constexpr (EACH == 4) return repeat_words<N, 4>(w);
#ifdef __AVX512F__
    else return bits<Vector<int32_t, N>>(_mm512_broadcast_i64x4(load<__m256i>(w)));
#endif
}
template <int N, int EACH, size_t... I> INLINE Vector<int32_t, N> several_vectors(const void *h, std::index_sequence<I...>) {
    const Vector<int32_t, N> word{int32_t(I / EACH * (EACH / 4) + I % (EACH / 4))...};
#ifdef __AVX512F__
    if constexpr (N == 16) return bits<Vector<int32_t, N>>(_mm512_permutexvar_epi32(bits<__m512i>(word), _mm512_castsi128_si512(load<__m128i>(h))));
#endif
#ifdef __AVX2__
    if constexpr (N == 8) return bits<Vector<int32_t, N>>(_mm256_permutevar8x32_epi32(_mm256_set1_epi64x(load<int64_t>(h)), bits<__m256i>(word)));
#endif
}

// Number formats. Weight and Activation are the types in memory, GROUP the columns of weights in 32 bits.
// multiply_add takes 32-bit lanes of weights, and activations from to_lanes (a group in all lanes) or to_rows
// (GROUPS groups, repeated).
struct Float32 {
    typedef float Weight;
    typedef float Activation;
    typedef float Sum;
    static constexpr int GROUP = 1;
    template <int N> INLINE Vector<int32_t, N> to_lanes(const float *h) { return to_all<N>(h); }
    template <int N, int GROUPS> INLINE Vector<int32_t, N> to_rows(const float *h) { return repeat_words<N, GROUPS>(h); }
    template <int N> INLINE Vector<float, N> multiply_add(Vector<float, N> sum, Vector<int32_t, N> w, Vector<int32_t, N> h) {
        return sum + bits<Vector<float, N>>(w) * bits<Vector<float, N>>(h);
    }
};
#ifdef __AVX512BF16__
struct BFloat16 {
    typedef uint16_t Weight;
    typedef uint16_t Activation;
    typedef float Sum;
    static constexpr int GROUP = 2;
    template <int N> INLINE Vector<int32_t, N> to_lanes(const uint16_t *h) { return to_all<N>(h); }
    template <int N, int GROUPS> INLINE Vector<int32_t, N> to_rows(const uint16_t *h) { return repeat_words<N, GROUPS>(h); }
    template <int N> INLINE Vector<float, N> multiply_add(Vector<float, N> sum, Vector<int32_t, N> w, Vector<int32_t, N> h) {
        if constexpr (N == 16) return bits<Vector<float, N>>(_mm512_dpbf16_ps(bits<__m512>(sum), bits<__m512bh>(w), bits<__m512bh>(h)));
        if constexpr (N == 8) return bits<Vector<float, N>>(_mm256_dpbf16_ps(bits<__m256>(sum), bits<__m256bh>(w), bits<__m256bh>(h)));
        if constexpr (N == 4) return bits<Vector<float, N>>(_mm_dpbf16_ps(bits<__m128>(sum), bits<__m128bh>(w), bits<__m128bh>(h)));
    }
};
#else
// Weights are widened to float when loaded: a bf16 is the upper half of one. Activations stay float, since
// each would be widened again for every block in its column.
struct BFloat16 {
    typedef uint16_t Weight;
    typedef float Activation;
    typedef float Sum;
    static constexpr int GROUP = 2;
    template <int N> struct Pair {
        Vector<float, N> lower, upper;
    };
    template <int N> INLINE Pair<N> to_lanes(const float *h) { return {h[0] - Vector<float, N>{}, h[1] - Vector<float, N>{}}; }
    template <int N, int GROUPS> INLINE Pair<N> to_rows(const float *h) {
        static_assert(GROUPS == 2, "only blocks of 4, packed so that columns 0 and 2, 1 and 3 are groups");
        typedef Vector<float, N> F;
        return {bits<F>(repeat_words<N, 2>(h)), bits<F>(repeat_words<N, 2>(h + 2))};
    }
    template <int N> INLINE Vector<float, N> multiply_add(Vector<float, N> sum, Vector<int32_t, N> w, Pair<N> h) {
        typedef Vector<float, N> F;
        return sum + bits<F>(w << 16) * h.lower + bits<F>(w & (int32_t)0xffff0000) * h.upper;
    }
};
#endif
struct Int8 {
    typedef int8_t Weight;
    typedef uint8_t Activation;
    typedef int32_t Sum;
    static constexpr int GROUP = 4;
    template <int N> INLINE Vector<int32_t, N> to_lanes(const uint8_t *h) { return to_all<N>(h); }
    template <int N, int GROUPS> INLINE Vector<int32_t, N> to_rows(const uint8_t *h) { return repeat_words<N, GROUPS>(h); }
    template <int N> INLINE Vector<int32_t, N> multiply_add(Vector<int32_t, N> sum, Vector<int32_t, N> w, Vector<int32_t, N> h) {
#ifdef __AVX512VNNI__
        if constexpr (N == 16) return bits<Vector<int32_t, N>>(_mm512_dpbusd_epi32(bits<__m512i>(sum), bits<__m512i>(h), bits<__m512i>(w)));
        if constexpr (N == 8) return bits<Vector<int32_t, N>>(_mm256_dpbusd_epi32(bits<__m256i>(sum), bits<__m256i>(h), bits<__m256i>(w)));
        if constexpr (N == 4) return bits<Vector<int32_t, N>>(_mm_dpbusd_epi32(bits<__m128i>(sum), bits<__m128i>(h), bits<__m128i>(w)));
#else
        // Bytes widened to 16 bits, even and odd ones separately: their products and sums of two fit 32 bits.
        typedef Vector<int16_t, 2 * N> Halves;
        const Halves w_halves = bits<Halves>(w), h_halves = bits<Halves>(h);
        sum += multiply_pairs<N>(w_halves << 8 >> 8, h_halves & 0xff);
        return sum + multiply_pairs<N>(w_halves >> 8, h_halves >> 8 & 0xff);
#endif
    }
    // 32-bit lanes: the sum of the products of two neighbouring 16-bit ones.
    template <int N> INLINE Vector<int32_t, N> multiply_pairs(Vector<int16_t, 2 * N> a, Vector<int16_t, 2 * N> b) {
        typedef Vector<int32_t, N> I;
#ifdef __AVX512BW__
        if constexpr (N == 16) return bits<I>(_mm512_madd_epi16(bits<__m512i>(a), bits<__m512i>(b)));
#endif
#ifdef __AVX2__
        if constexpr (N == 8) return bits<I>(_mm256_madd_epi16(bits<__m256i>(a), bits<__m256i>(b)));
#endif
#ifdef __SSE2__
        if constexpr (N == 4) return bits<I>(_mm_madd_epi16(bits<__m128i>(a), bits<__m128i>(b)));
#endif
        return (bits<I>(a) << 16 >> 16) * (bits<I>(b) << 16 >> 16) + (bits<I>(a) >> 16) * (bits<I>(b) >> 16);
    }
};

// The operands of a product. Vectors are laid out as [block of columns][vector][column of the block], so that
// what a block needs of all of them is contiguous.
template <class Format> struct Product {
    const int32_t *row_pointer;
    const uint16_t *column;  // of each block, in blocks
    const typename Format::Weight *weights;
    const typename Format::Activation *h;
    long h_block;  // elements from one block of columns to the next
};

// Prefetch the COUNT activations of a later block: columns jump, so hardware cannot predict them.
constexpr int PREFETCHED = 8;  // blocks past the end that may be prefetched
template <int COUNT, class Format> INLINE void prefetch(const Product<Format> &p, int block) {
    const auto *h = p.h + p.column[block] * p.h_block;
    UNROLL for (int i = 0; i < COUNT; i += 64 / (int)sizeof *h) __builtin_prefetch(h + i);
}

// Where the sums of a row of blocks go: y[v] + row * y_block[v] receives those of vector v.
template <class Format> struct Output {
    float *const *y;
    const long *y_block;
    const float *scale_row;       // of int8 weights, one per row
    const int32_t *zero_row;      // 128 * the sum of a row's weights, to subtract: the activations' zero point is 128
    const float *scale_vector;    // of uint8 activations
    const float *bias;            // one per row, or null
};

template <class Format, int N>
INLINE void put(const Output<Format> &out, int v, long row, int block, int first, Vector<typename Format::Sum, N> sum) {
    Vector<float, N> value;
    if constexpr (sizeof(typename Format::Weight) == 1) {
        const long r = row * block + first;
        auto exact = sum - load<Vector<int32_t, N>>(out.zero_row + r);
        value = __builtin_convertvector(exact, Vector<float, N>) * load<Vector<float, N>>(out.scale_row + r) * out.scale_vector[v];
    } else {
        value = sum;
    }
    if (out.bias) value += load<Vector<float, N>>(out.bias + row * block + first);
    store(out.y[v] + row * out.y_block[v] + first, value);
}

// Registers for sums: half of them; the rest hold weights and activations.
constexpr int SUMS = LANES == 16 ? 16 : 8;

// Independent partial sums per sum, so that no multiply-add waits for the previous one.
constexpr int chains(int sums) { return sums >= 8 ? 1 : sums >= 4 ? 2 : 4; }

// Rows of a block per pass: two registers of them where registers are narrow, so that a broadcast
// activation serves two products.
constexpr int panel_rows(int block) {
    const int most = LANES == 16 ? LANES : 2 * LANES;
    return block < most ? block : most;
}

template <class Format, int BLOCK, int VECTORS>
void panel_kernel(const Product<Format> &p, const Output<Format> &out, int from, int to) {
    constexpr int GROUP = Format::GROUP, GROUPS = BLOCK / GROUP;
    constexpr int ROWS = panel_rows(BLOCK), WIDTH = ROWS < LANES ? ROWS : LANES, PARTS = ROWS / WIDTH;
    constexpr int CHAINS = chains(VECTORS * PARTS) < GROUPS ? chains(VECTORS * PARTS) : GROUPS;
    typedef Vector<typename Format::Sum, WIDTH> Sum;
    typedef Vector<int32_t, WIDTH> Lanes;
    for (int row = from; row < to; row++) {
        const int begin = p.row_pointer[row], end = p.row_pointer[row + 1];
        const typename Format::Weight *w = p.weights + (long)begin * BLOCK * BLOCK;
        for (int first = 0; first < BLOCK; first += ROWS) {
            Sum sum[VECTORS][PARTS][CHAINS] = {};
            for (int i = begin; i < end; i++, w += BLOCK * ROWS) {
                if constexpr (VECTORS > 1) prefetch<BLOCK * VECTORS>(p, i + (BLOCK == 8 ? 2 : 1));
                const typename Format::Activation *h = p.h + p.column[i] * p.h_block;
                UNROLL for (int k = 0; k < GROUPS; k += CHAINS) {
                    UNROLL for (int c = 0; c < CHAINS; c++) {
                        Lanes weights[PARTS];
                        UNROLL for (int q = 0; q < PARTS; q++) weights[q] = load<Lanes>(w + ((long)(k + c) * ROWS + q * WIDTH) * GROUP);
                        UNROLL for (int v = 0; v < VECTORS; v++) {
                            const auto activation = Format::template to_lanes<WIDTH>(h + v * BLOCK + (k + c) * GROUP);
                            UNROLL for (int q = 0; q < PARTS; q++)
                                sum[v][q][c] = Format::template multiply_add<WIDTH>(sum[v][q][c], weights[q], activation);
                        }
                    }
                }
            }
            UNROLL for (int v = 0; v < VECTORS; v++) {
                UNROLL for (int q = 0; q < PARTS; q++) {
                    Sum total = sum[v][q][0];
                    UNROLL for (int c = 1; c < CHAINS; c++) total += sum[v][q][c];
                    put<Format, WIDTH>(out, v, row, BLOCK, first + q * WIDTH, total);
                }
            }
        }
    }
}

// Sum neighbouring lanes of PARTS registers, pairwise, until four sums are left.
template <class Half, class V, size_t... I> INLINE Half neighbours(V a, V b, std::index_sequence<I...>) {
    constexpr size_t N = sizeof(V) / sizeof a[0];  // lane by lane: __builtin_shufflevector needs GCC 12
    const auto lane = [&](size_t i) __attribute__((always_inline)) { return i < N ? a[i] : b[i - N]; };
    return Half{lane(2 * I)...} + Half{lane(2 * I + 1)...};
}
template <class Number, int N, int PARTS> INLINE Vector<Number, 4> four_sums(const Vector<Number, N> *part) {
    if constexpr (PARTS > 1) {
        Vector<Number, N> next[PARTS / 2];
        UNROLL for (int q = 0; q < PARTS / 2; q++) next[q] = neighbours<Vector<Number, N>>(part[2 * q], part[2 * q + 1], std::make_index_sequence<N>());
        return four_sums<Number, N, PARTS / 2>(next);
    } else if constexpr (N > 4) {
        const auto half = neighbours<Vector<Number, N / 2>>(part[0], part[0], std::make_index_sequence<N / 2>());
        return four_sums<Number, N / 2, 1>(&half);
    } else {
        return part[0];
    }
}

// How many vectors share a register, where one takes `each` lanes.
template <class Format> constexpr int vectors_per_register(int each, int vectors) {
    const bool packed = sizeof(typename Format::Activation) == sizeof(typename Format::Weight);
    const int room = packed && each < LANES ? LANES / each : 1;
    return vectors < room ? vectors : room;
}

template <class Format, int VECTORS>
void small_kernel(const Product<Format> &p, const Output<Format> &out, int from, int to) {
    constexpr int GROUPS = 4 / Format::GROUP, EACH = 4 * GROUPS, SHARED = vectors_per_register<Format>(EACH, VECTORS);
    constexpr int ALL = EACH * SHARED, WIDTH = ALL < LANES ? ALL : LANES, PARTS = ALL / WIDTH;
    constexpr int TILES = VECTORS / SHARED, CHAINS = chains(TILES * PARTS);
    typedef typename Format::Sum Number;
    typedef Vector<Number, WIDTH> Sum;
    typedef Vector<int32_t, WIDTH> Lanes;
    for (int row = from; row < to; row++) {
        const int end = p.row_pointer[row + 1];
        int i = p.row_pointer[row];
        const typename Format::Weight *w = p.weights + (long)i * 16;
        Sum sum[TILES][PARTS][CHAINS] = {};
        auto step = [&](int c) __attribute__((always_inline)) {
            const typename Format::Activation *h = p.h + p.column[i + c] * p.h_block;
            if constexpr (SHARED > 1) {
                const auto weights = weights_per_vector<WIDTH, EACH>(w + 16 * c);
                UNROLL for (int t = 0; t < TILES; t++) {
                    const auto activations = several_vectors<WIDTH, EACH>(h + 4 * SHARED * t, std::make_index_sequence<WIDTH>());
                    sum[t][0][c] = Format::template multiply_add<WIDTH>(sum[t][0][c], weights, activations);
                }
            } else {
                Lanes weights[PARTS];
                UNROLL for (int q = 0; q < PARTS; q++) weights[q] = load<Lanes>(w + 16 * c + q * 16 / PARTS);
                UNROLL for (int v = 0; v < VECTORS; v++) {
                    const auto repeated = Format::template to_rows<WIDTH, GROUPS>(h + 4 * v);
                    UNROLL for (int q = 0; q < PARTS; q++)
                        sum[v][q][c] = Format::template multiply_add<WIDTH>(sum[v][q][c], weights[q], repeated);
                }
            }
        };
        for (; i + CHAINS <= end; i += CHAINS, w += 16 * CHAINS) {
            UNROLL for (int c = 0; c < CHAINS; c++) {
                prefetch<4 * VECTORS>(p, i + c + 8);
                step(c);
            }
        }
        for (; i < end; i++, w += 16) step(0);
        UNROLL for (int t = 0; t < TILES; t++) {
            Sum total[PARTS];
            UNROLL for (int q = 0; q < PARTS; q++) {
                total[q] = sum[t][q][0];
                UNROLL for (int c = 1; c < CHAINS; c++) total[q] += sum[t][q][c];
            }
            UNROLL for (int a = 0; a < SHARED; a++) {
                Vector<Number, WIDTH / SHARED> own[PARTS];
                memcpy(own, (const char *)total + a * sizeof own, sizeof own);
                put<Format, 4>(out, t * SHARED + a, row, 4, 0, four_sums<Number, WIDTH / SHARED, PARTS>(own));
            }
        }
    }
}

// Most vectors of a tile, and the size of the next tile of the remaining ones.
constexpr int most_vectors(int group, int block) {
    const int wide = block == 4 ? 16 / group : panel_rows(block);
    return wide > LANES ? SUMS * LANES / wide : SUMS;
}
constexpr int next_tile(int most, int left) {
    int n = 1;
    while (2 * n <= most && 2 * n <= left) n *= 2;
    return n;
}

template <class Format, int BLOCK, int VECTORS>
INLINE void tile(const Product<Format> &p, const Output<Format> &out, int from, int to) {
    if constexpr (BLOCK == 4) small_kernel<Format, VECTORS>(p, out, from, to);
    else panel_kernel<Format, BLOCK, VECTORS>(p, out, from, to);
}
