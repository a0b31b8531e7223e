// The block-sparse runtime: block-sparse matrices, their product with vectors, and whole recurrent layers over
// whole sequences. C ABI for ctypes. The only error is a lack of memory or threads: NULL or 1 is returned.
//
// Sequences are packed: frames of all utterances, one time step after the other, utterances from long to short;
// step t holds batch_sizes[t] frames. Sources: Narang, Undersander, Diamos, "Block-Sparse Recurrent Neural
// Networks", 2017; gated recurrent unit with the reset applied after the product, as in cuDNN.
#include "gradients.hpp"
#include "kernels.hpp"
#include "peaks.hpp"
#include "threads.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <new>

enum Format { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2 };

// Page-aligned, zeroed memory, freed with its owner.
template <class T> class Buffer {
public:
    explicit Buffer(size_t count = 0) { resize(count); }
    Buffer(const Buffer &) = delete;
    ~Buffer() { free(memory); }
    void at_least(size_t count) {
        if (count > capacity) resize(count);
    }
    void resize(size_t count) {
        free(memory);
        capacity = count;
        const size_t bytes = (count * sizeof(T) + 4095) / 4096 * 4096 + 4096;  // kernels may read past the end
        memory = static_cast<T *>(aligned_alloc(4096, bytes));
        if (!memory) throw std::bad_alloc();
        memset(static_cast<void *>(memory), 0, bytes);
    }
    T *get() const { return memory; }

private:
    T *memory = nullptr;
    size_t capacity = 0;
};

struct Matrix {
    int format, rows, columns, block;
    std::vector<int32_t> row_pointer;
    std::vector<uint16_t> column;
    Buffer<uint8_t> weights;
    Buffer<float> scale_row;
    Buffer<int32_t> zero_row;
    int block_rows() const { return rows / block; }
};

// Blocks in row-major order -> the order in which the kernels read them.
template <class F> static void pack(Matrix &m, const typename F::Weight *values) {
    auto *to = reinterpret_cast<typename F::Weight *>(m.weights.get());
    const int block = m.block, area = block * block;
    if (block == 4) {
        constexpr bool apart = sizeof(typename F::Activation) > sizeof(typename F::Weight);  // see BFloat16
        constexpr int order[4] = {0, apart ? 2 : 1, apart ? 1 : 2, 3};
        for (long i = 0; i < (long)m.row_pointer.back() * area; i++) to[i] = values[i / 4 * 4 + order[i % 4]];
        return;
    }
    const int R = panel_rows(block);
    for (int row = 0; row < m.block_rows(); row++)
        for (int first = 0; first < block; first += R)
            for (int i = m.row_pointer[row]; i < m.row_pointer[row + 1]; i++)
                for (int k = 0; k < block; k += F::GROUP)
                    for (int r = first; r < first + R; r++)
                        for (int g = 0; g < F::GROUP; g++) *to++ = values[(long)i * area + r * block + k + g];
}

// Vectors in the number format of a product, as [tile][block of columns][vector][column].
struct Activations {
    const void *h;
    long columns;        // of a vector
    long h_block;        // elements from one block to the next if all vectors are one tile; 0: tiles of next_tile
    const float *scale;  // of int8, one per vector
};

struct Target {
    float *const *y;
    const long *y_block;
    const float *bias = nullptr;  // one per row
};

constexpr long STRETCH = 64;  // frames
constexpr long NEAR = 128 << 10;  // bytes of activations that stay in the second-level cache while all rows are read

template <class F, int BLOCK>
static void multiply(const Matrix &m, const Activations &a, const Target &t, int count, int from, int to) {
    const auto *h = static_cast<const typename F::Activation *>(a.h);
    const auto *weights = reinterpret_cast<const typename F::Weight *>(m.weights.get());
    constexpr int MOST = most_vectors(F::GROUP, BLOCK);
    // For each chunk of vectors that stays in the cache: all rows, each row with all tiles of the chunk.
    const int near = std::max(MOST, (int)(NEAR / (m.columns * sizeof *h)) / MOST * MOST);
    for (int chunk = 0; chunk < count; chunk += near) {
        const int end = std::min(count, chunk + near), step = end - chunk > MOST ? 1 : to - from;
        for (int row = from; row < to; row += step) {
            for (int v = chunk, n; v < end; v += n) {
                n = next_tile(MOST, end - v);
                const Product<F> p{m.row_pointer.data(), m.column.data(), weights, a.h_block ? h + (long)v * BLOCK : h + v * a.columns, a.h_block ? a.h_block : n * BLOCK};
                const Output<F> out{t.y + v, t.y_block + v, m.scale_row.get(), m.zero_row.get(), a.scale ? a.scale + v : nullptr, t.bias};
                switch (n) {
                case 16: tile<F, BLOCK, MOST < 16 ? 1 : 16>(p, out, row, row + step); break;
                case 8: tile<F, BLOCK, MOST < 8 ? 1 : 8>(p, out, row, row + step); break;
                case 4: tile<F, BLOCK, MOST < 4 ? 1 : 4>(p, out, row, row + step); break;
                case 2: tile<F, BLOCK, 2>(p, out, row, row + step); break;
                case 1: tile<F, BLOCK, 1>(p, out, row, row + step); break;
                }
            }
        }
    }
}

template <class F>
static void multiply(const Matrix &m, const Activations &a, const Target &t, int count, int from, int to) {
    switch (m.block) {
    case 4: return multiply<F, 4>(m, a, t, count, from, to);
    case 8: return multiply<F, 8>(m, a, t, count, from, to);
    case 16: return multiply<F, 16>(m, a, t, count, from, to);
    case 32: return multiply<F, 32>(m, a, t, count, from, to);
    }
}

static void multiply(const Matrix &m, const Activations &a, const Target &t, int count, int from, int to) {
    switch (m.format) {
    case FLOAT32: return multiply<Float32>(m, a, t, count, from, to);
    case BFLOAT16: return multiply<BFloat16>(m, a, t, count, from, to);
    case INT8: return multiply<Int8>(m, a, t, count, from, to);
    }
}

// Bytes of an activation in a product with a matrix.
static int activation_bytes(const Matrix &m) {
    return m.format == FLOAT32 ? sizeof(Float32::Activation) : m.format == BFLOAT16 ? sizeof(BFloat16::Activation) : sizeof(Int8::Activation);
}

// float -> bf16, to the nearest, ties to even; NaN stays NaN. `count` is a multiple of four, as all blocks are.
template <int N> static inline void to_bfloat16(const float *x, uint16_t *halves) {
    const auto u = load<Vector<uint32_t, N>>(x);
    const auto nearest = u + 0x7fff + (u >> 16 & 1), quiet_nan = u | 0x400000;
    store(halves, __builtin_convertvector(((u & 0x7fffffff) > 0x7f800000 ? quiet_nan : nearest) >> 16, Vector<uint16_t, N>));
}
static inline void to_bfloat16(const float *x, long count, uint16_t *halves) {
    long i = 0;
    for (; i + LANES <= count; i += LANES) to_bfloat16<LANES>(x + i, halves + i);
    for (; i < count; i += 4) to_bfloat16<4>(x + i, halves + i);
}

// The largest magnitude of the added values, four at a time, as a float's bits without the sign: these order
// like the floats, and NaN is above all.
struct Largest {
    Vector<int32_t, 4> bits{};

    void add(const float *x, long count) {
        for (long i = 0; i < count; i += 4) {
            const auto here = load<Vector<int32_t, 4>>(x + i) & 0x7fffffff;
            bits = here > bits ? here : bits;
        }
    }
    int32_t all() const { return std::max(std::max(bits[0], bits[1]), std::max(bits[2], bits[3])); }
};

// The scale of a vector's unsigned bytes (zero point 128), given its largest magnitude; NaN if that isn't finite.
static inline float byte_scale(int32_t largest) {
    const float magnitude = bits<float>(largest);
    return std::isfinite(magnitude) ? magnitude / 127.0f : NAN;
}
template <int N> static inline void to_bytes(const float *x, float inverse, uint8_t *bytes) {
    typedef Vector<float, N> F;
    typedef Vector<int32_t, N> I;
    const F most = 127.0f - F{};
    F value = load<F>(x) * inverse;
    value = value < -most ? -most : value;
    value = value > most ? most : value;
    const I nearest = bits<I>(value + 12582912.0f) - 0x4b400000;  // 1.5 * 2^23: the sum's lowest bits are the nearest integer
    store(bytes, __builtin_convertvector(nearest + 128, Vector<uint8_t, N>));
}
static inline void to_bytes(const float *x, long count, float scale, uint8_t *bytes) {
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    long i = 0;
    for (; i + LANES <= count; i += LANES) to_bytes<LANES>(x + i, inverse, bytes + i);
    for (; i < count; i += 4) to_bytes<4>(x + i, inverse, bytes + i);
}

// Row-major vectors (count, columns), converted to the number format and layout of a product.
class Converted {
public:
    Activations activations{};

    Converted(const Matrix &m, const float *x, long count) : m(m), x(x), bytes(activation_bytes(m)), tile_of(count) {
        const int group = m.format == FLOAT32 ? 1 : m.format == BFLOAT16 ? 2 : 4;
        for (long v = 0, n; v < count; v += n) {
            n = next_tile(most_vectors(group, m.block), (int)std::min(count - v, 64L));
            for (long i = v; i < v + n; i++) tile_of[i] = {v, n};
        }
        activations.columns = m.columns;
        activations.h = x;
        if (bytes == 4 && count == 1) return;  // the layout is the same
        packed.resize(count * m.columns * bytes);
        activations.h = packed.get();
        if (m.format == INT8) {
            scale.resize(count);
            activations.scale = scale.get();
        }
    }
    void convert(long from, long to) {
        if (activations.h == x) return;
        for (long v = from; v < to; v++) {
            if (m.format == INT8) {
                Largest largest;
                largest.add(x + v * m.columns, m.columns);
                scale.get()[v] = byte_scale(largest.all());
            }
            switch (m.block) {
            case 4: place<4>(v); break;
            case 8: place<8>(v); break;
            case 16: place<16>(v); break;
            case 32: place<32>(v); break;
            }
        }
    }

private:
    struct Tile {
        long first, size;
    };
    template <int BLOCK> void place(long v) {
        const float *row = x + v * m.columns;
        const auto [first, size] = tile_of[v];
        const long start = first * m.columns + (v - first) * BLOCK;
        for (int j = 0; j < m.columns; j += BLOCK) {
            const long at = start + j * size;
            if (bytes == 4) memcpy(packed.get() + 4 * at, row + j, BLOCK * sizeof(float));
            if (bytes == 1) to_bytes(row + j, BLOCK, scale.get()[v], packed.get() + at);
            if (bytes == 2) to_bfloat16(row + j, BLOCK, reinterpret_cast<uint16_t *>(packed.get()) + at);
        }
    }

    const Matrix &m;
    const float *x;
    const int bytes;
    std::vector<Tile> tile_of;
    Buffer<uint8_t> packed;
    Buffer<float> scale;
};

// Bounds of `parts` ranges of rows with about equal numbers of blocks (plus one per row: an empty one costs too).
static std::vector<int> shares(int parts, int rows, const std::function<long(int)> &blocks) {
    std::vector<int> bounds{0};
    long total = 0, so_far = 0;
    for (int row = 0; row < rows; row++) total += blocks(row) + 1;
    for (int row = 0; row < rows; row++) {
        so_far += blocks(row) + 1;
        while ((int)bounds.size() < parts && so_far * parts >= total * (long)bounds.size()) bounds.push_back(row + 1);
    }
    while ((int)bounds.size() <= parts) bounds.push_back(rows);
    bounds[parts] = rows;
    return bounds;
}

static long row_blocks(const Matrix &m, int row) { return m.row_pointer[row + 1] - m.row_pointer[row]; }

// exp, sigmoid and tanh, to about two units in the last place; NaN stays NaN.
template <int N> static inline Vector<float, N> exponential(Vector<float, N> x) {
    typedef Vector<float, N> F;
    typedef Vector<int32_t, N> I;
    const F low = -87.3f - F{}, high = 88.3f - F{};
    x = x < low ? low : x;
    x = x > high ? high : x;
    const F shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's lowest bits are the nearest integer
    const F n = shifted - 12582912.0f;
    const F r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // x - n ln 2 (Cephes, expf)
    F p = 1.9875691500e-4f - F{};
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const I power = (bits<I>(shifted) - 0x4b400000 + 127) << 23;
    return p * bits<F>(power);
}
template <int N> static inline Vector<float, N> sigmoid(Vector<float, N> x) { return 1.0f / (1.0f + exponential<N>(-x)); }
template <int N> static inline Vector<float, N> hyperbolic_tangent(Vector<float, N> x) { return 2.0f * sigmoid<N>(x + x) - 1.0f; }

template <int N> static inline void gru_units(const float *a, const float *u, long gate_a, long gate_u, const float *before, float *after) {
    typedef Vector<float, N> F;
    const F r = sigmoid<N>(load<F>(a) + load<F>(u));
    const F z = sigmoid<N>(load<F>(a + gate_a) + load<F>(u + gate_u));
    const F n = hyperbolic_tangent<N>(load<F>(a + 2 * gate_a) + r * load<F>(u + 2 * gate_u));
    store(after, n + z * (load<F>(before) - n));
}
template <int N> static inline void rnn_units(const float *a, const float *u, float *after) {
    typedef Vector<float, N> F;
    const F zero{}, clip = 20.0f - F{};
    F x = load<F>(a) + load<F>(u);
    x = x < zero ? zero : x;  // both comparisons are false for NaN, which stays
    store(after, x > clip ? clip : x);
}

// One recurrent matrix over all steps. States, and a step's input part, are laid out as [block of units][vector]
// [unit of the block], so that what a step needs is contiguous.
struct Recurrence {
    const Matrix &matrix;
    int gates;                 // 3 for a GRU, 1 for an RNN
    const int *batch_sizes;
    int steps;
    bool backward, add;        // from the last step to the first; add to `out` instead of overwriting it
    const float *a;            // input part, bias included: for each step [gate][block][vector][unit]
    float *state;              // (vectors, units): initial, then final; may be null
    float *out;                // (frames, units)

    int units() const { return matrix.rows / gates; }

    void run(int threads) {
        const int block = matrix.block, blocks = units() / block, vectors = batch_sizes[0];
        const long stride = (long)vectors * block;
        Buffer<float> first(stride * blocks), second(stride * blocks), product(stride * blocks * gates);
        const bool halves = activation_bytes(matrix) == 2;
        Buffer<uint16_t> first_half(halves ? stride * blocks : 0), second_half(halves ? stride * blocks : 0);
        Buffer<uint8_t> bytes(matrix.format == INT8 ? stride * blocks : 0);
        Buffer<float> scale(vectors);
        Buffer<int32_t> largest_of((long)threads * vectors);
        const auto bounds = shares(threads, blocks, [&](int row) {
            long sum = 0;
            for (int g = 0; g < gates; g++) sum += row_blocks(matrix, g * blocks + row);
            return sum;
        });
        std::vector<long> offsets{0};
        for (int t = 0; t < steps; t++) offsets.push_back(offsets.back() + batch_sizes[t]);
        std::vector<float *> y(vectors);
        std::vector<long> y_block(vectors, stride);
        for (int v = 0; v < vectors; v++) y[v] = product.get() + (long)v * block;
        if (state)
            for (int v = 0; v < vectors; v++)
                for (int i = 0; i < units(); i++)
                    first.get()[i / block * stride + (long)v * block + i % block] = state[(long)v * units() + i];

        pool().run(threads, [&](int me, Barrier &barrier) {
            const int from = bounds[me], to = bounds[me + 1];
            float *before = first.get(), *after = second.get();
            uint16_t *read_half = first_half.get(), *write_half = second_half.get();  // two buffers: other threads still read one
            auto reduce = [&](const float *h, int count) { // this thread's units, in the matrix's number format
                if (halves)
                    for (int j = from; j < to; j++) to_bfloat16(h + j * stride, (long)count * block, write_half + j * stride);
                if (matrix.format == INT8) {
                    for (int v = 0; v < count; v++) {
                        Largest own;
                        for (int j = from; j < to; j++) own.add(h + j * stride + (long)v * block, block);
                        largest_of.get()[(long)me * vectors + v] = own.all();
                    }
                    barrier.wait();
                    for (int v = 0; v < count; v++) {
                        int32_t found = 0;
                        for (int m = 0; m < threads; m++) found = std::max(found, largest_of.get()[(long)m * vectors + v]);
                        const float mine = byte_scale(found);
                        if (me == 0) scale.get()[v] = mine;
                        for (int j = from; j < to; j++)
                            to_bytes(h + j * stride + (long)v * block, block, mine, bytes.get() + j * stride + (long)v * block);
                    }
                }
            };
            reduce(before, vectors);
            std::swap(read_half, write_half);
            barrier.wait();
            Activations activations{nullptr, units(), stride, matrix.format == INT8 ? scale.get() : nullptr};
            for (int step = 0; step < steps; step++) {
                const int t = backward ? steps - 1 - step : step, count = batch_sizes[t];
                activations.h = halves ? (const void *)read_half : matrix.format == INT8 ? (const void *)bytes.get() : before;
                for (int g = 0; g < gates; g++)
                    multiply(matrix, activations, Target{y.data(), y_block.data()}, count, g * blocks + from, g * blocks + to);
                const long width = (long)count * block, gate_a = blocks * width, gate_u = blocks * stride;
                const float *input = a + offsets[t] * matrix.rows;
                for (int j = from; j < to; j++) {
                    const float *aj = input + j * width, *uj = product.get() + j * stride, *hj = before + j * stride;
                    float *next = after + j * stride;
                    long i = 0;
                    for (; i + LANES <= width; i += LANES) {
                        if (gates == 3) gru_units<LANES>(aj + i, uj + i, gate_a, gate_u, hj + i, next + i);
                        else rnn_units<LANES>(aj + i, uj + i, next + i);
                    }
                    for (; i < width; i += 4) {
                        if (gates == 3) gru_units<4>(aj + i, uj + i, gate_a, gate_u, hj + i, next + i);
                        else rnn_units<4>(aj + i, uj + i, next + i);
                    }
                    for (int v = 0; v < count; v++) {
                        float *to_out = out + (offsets[t] + v) * units() + (long)j * block;
                        for (int r = 0; r < block; r += 4) {
                            const auto h = load<Vector<float, 4>>(next + (long)v * block + r);
                            store(to_out + r, add ? load<Vector<float, 4>>(to_out + r) + h : h);
                        }
                    }
                    // Utterances that have ended, or not begun, keep their state.
                    if (count < vectors) memcpy(next + width, hj + width, (stride - width) * sizeof(float));
                }
                if (matrix.format == INT8) barrier.wait();  // all threads have read the bytes
                reduce(after, vectors);
                std::swap(before, after);
                std::swap(read_half, write_half);
                barrier.wait();
            }
            if (state)
                for (int v = 0; v < vectors; v++)
                    for (int i = from * block; i < to * block; i++)
                        state[(long)v * units() + i] = before[i / block * stride + (long)v * block + i % block];
        });
    }
};

// a = W x + bias for all frames, in the layout of Recurrence.
static void input_part(const Matrix &w, const float *bias, int block, int threads, int steps, const int *batch_sizes, const float *x, float *a) {
    std::vector<float *> y;
    std::vector<long> y_block;
    for (int t = 0, frame = 0; t < steps; frame += batch_sizes[t++])
        for (int v = 0; v < batch_sizes[t]; v++) {
            y.push_back(a + (long)frame * w.rows + (long)v * block);
            y_block.push_back((long)batch_sizes[t] * block);
        }
    const long frames = (long)y.size();
    Converted converted(w, x, frames);
    const auto bounds = shares(threads, w.block_rows(), [&](int row) { return row_blocks(w, row); });
    pool().run(threads, [&](int me, Barrier &barrier) {
        converted.convert(frames * me / threads, frames * (me + 1) / threads);
        barrier.wait();
        multiply(w, converted.activations, Target{y.data(), y_block.data(), bias}, (int)frames, bounds[me], bounds[me + 1]);
    });
}

extern "C" {

// A matrix of rows x columns in square blocks; `values` holds the row-major blocks in the given format,
// `scale_row` a scale per row of int8 values. Arguments are copied. NULL: no memory.
Matrix *bsr_create(int format, int rows, int columns, int block, const int32_t *row_pointer, const uint16_t *column, const void *values, const float *scale_row) {
    try {
        auto *m = new Matrix{format, rows, columns, block, {row_pointer, row_pointer + rows / block + 1}, {}, Buffer<uint8_t>(), Buffer<float>(), Buffer<int32_t>()};
        const long blocks = m->row_pointer.back();
        m->column.assign(column, column + blocks);
        m->column.resize(blocks + PREFETCHED);
        m->weights.resize(blocks * block * block * (format == FLOAT32 ? 4 : format == BFLOAT16 ? 2 : 1));
        if (format == FLOAT32) pack<Float32>(*m, static_cast<const float *>(values));
        if (format == BFLOAT16) pack<BFloat16>(*m, static_cast<const uint16_t *>(values));
        if (format == INT8) {
            pack<Int8>(*m, static_cast<const int8_t *>(values));
            m->scale_row.resize(rows);
            m->zero_row.resize(rows);
            memcpy(m->scale_row.get(), scale_row, rows * sizeof(float));
            const auto *w = static_cast<const int8_t *>(values);
            for (int row = 0; row < m->block_rows(); row++)
                for (int i = row_pointer[row]; i < row_pointer[row + 1]; i++)
                    for (int e = 0; e < block * block; e++) m->zero_row.get()[row * block + e / block] += 128 * w[(long)i * block * block + e];
        }
        return m;
    } catch (const std::bad_alloc &) {
        return nullptr;
    }
}

void bsr_free(Matrix *m) { delete m; }

// y (count, rows) = x (count, columns) times the transposed matrix. 1: no memory.
int bsr_product(const Matrix *m, int threads, long count, const float *x, float *y) {
    try {
        std::vector<float *> to(count);
        std::vector<long> y_block(count, m->block);
        for (long v = 0; v < count; v++) to[v] = y + v * m->rows;
        Converted converted(*m, x, count);
        const auto bounds = shares(threads, m->block_rows(), [&](int row) { return row_blocks(*m, row); });
        pool().run(threads, [&](int me, Barrier &barrier) {
            converted.convert(count * me / threads, count * (me + 1) / threads);
            barrier.wait();
            multiply(*m, converted.activations, Target{to.data(), y_block.data()}, (int)count, bounds[me], bounds[me + 1]);
        });
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}

// A GRU layer over packed frames: x (frames, inputs) -> out (frames, units). bias (3 * units) is added to W x;
// state (batch_sizes[0], units) holds the initial, then the final states, and may be null. 1: no memory.
int bsr_gru(const Matrix *w, const Matrix *u, const float *bias, int threads, int steps, const int *batch_sizes, const float *x, float *state, float *out) {
    try {
        Buffer<float> own(state ? 0 : (long)batch_sizes[0] * (u->rows / 3)), a(0);
        if (!state) state = own.get();
        for (int from = 0, to; from < steps; from = to) {
            long frames = 0;  // few enough that their W x stays in the cache until it is used
            for (to = from; to < steps && (frames == 0 || frames + batch_sizes[to] <= STRETCH); to++) frames += batch_sizes[to];
            a.at_least(frames * w->rows);
            input_part(*w, bias, u->block, threads, to - from, batch_sizes + from, x, a.get());
            Recurrence{*u, 3, batch_sizes + from, to - from, false, false, a.get(), state, out}.run(threads);
            x += frames * w->columns;
            out += frames * (u->rows / 3);
        }
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}

// A bidirectional clipped-ReLU layer, directions summed: h_t = clip(W x_t + bias + U h_{t-1}). 1: no memory.
int bsr_rnn(const Matrix *w, const Matrix *u, const Matrix *u_reverse, const float *bias, int threads, int steps, const int *batch_sizes, const float *x, float *out) {
    try {
        long frames = 0;
        for (int t = 0; t < steps; t++) frames += batch_sizes[t];
        Buffer<float> a(frames * w->rows);
        input_part(*w, bias, u->block, threads, steps, batch_sizes, x, a.get());
        Recurrence{*u, 1, batch_sizes, steps, false, false, a.get(), nullptr, out}.run(threads);
        Recurrence{*u_reverse, 1, batch_sizes, steps, true, true, a.get(), nullptr, out}.run(threads);
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}

// values (blocks, block, block): for each block of m, the sum over frames of the outer product of gradient
// (frames, rows) and input x (frames, columns). 1: no memory.
int bsr_gradient(const Matrix *m, int threads, long frames, const float *gradient, const float *x, float *values) {
    try {
        Buffer<float> g((long)m->rows * FRAMES), h((long)m->columns * FRAMES);
        const auto bounds = shares(threads, m->block_rows(), [&](int row) { return row_blocks(*m, row); });
        const long area = (long)m->block * m->block;
        pool().run(threads, [&](int me, Barrier &barrier) {
            const int from = bounds[me], to = bounds[me + 1];
            std::fill_n(values + m->row_pointer[from] * area, (m->row_pointer[to] - m->row_pointer[from]) * area, 0.0f);
            for (long first = 0; first < frames; first += FRAMES) {
                const int count = (int)std::min<long>(FRAMES, frames - first);
                const long begin = (long)count * me / threads, end = (long)count * (me + 1) / threads;
                pack_frames(gradient + first * m->rows, m->rows, m->block, begin, end, g.get());
                pack_frames(x + first * m->columns, m->columns, m->block, begin, end, h.get());
                barrier.wait();
                const auto add = m->block == 4 ? block_gradients<4> : m->block == 8 ? block_gradients<8> : m->block == 16 ? block_gradients<16> : block_gradients<32>;
                add(m->row_pointer.data(), m->column.data(), g.get(), h.get(), count, from, to, values);
                barrier.wait();
            }
        });
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}

// For benchmarks: the number of operations in `rounds` rounds of multiply-adds, and the sum of the values read.
double bsr_multiply_rounds(int format, long rounds) {
    return format == FLOAT32 ? multiply_rounds<Float32>(rounds) : format == BFLOAT16 ? multiply_rounds<BFloat16>(rounds) : multiply_rounds<Int8>(rounds);
}
float bsr_read_rounds(const float *from, long count, long rounds) { return read_rounds(from, count, rounds); }
}
