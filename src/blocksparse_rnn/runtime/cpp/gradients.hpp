// The gradient of a block-sparse matrix W in y = W x: for each kept block, the sum over all frames of the outer
// product of its rows' gradient and its columns' input. Nothing is computed for pruned blocks.
#pragma once
#include "kernels.hpp"

// Frames per pass: what a block needs of them stays in a near cache.
constexpr int FRAMES = 256;

// Vectors (frames, width) -> [block][frame][unit of the block], for frames begin .. end - 1.
static inline void pack_frames(const float *from, long width, int block, long begin, long end, float *to) {
    for (long n = begin; n < end; n++)
        for (long j = 0; j < width; j += block) memcpy(to + j * FRAMES + n * block, from + n * width + j, block * sizeof(float));
}

// Add the contribution of `frames` frames to the blocks of rows from .. to - 1.
template <int BLOCK>
void block_gradients(const int32_t *row_pointer, const uint16_t *column, const float *gradient, const float *x, int frames, int from, int to, float *values) {
    constexpr int WIDTH = BLOCK < LANES ? BLOCK : LANES, MOST = LANES == 16 ? 16 : 8, ROWS = BLOCK < MOST ? BLOCK : MOST;
    constexpr int CHAINS = ROWS < 8 ? 8 / ROWS : 1;  // independent sums
    typedef Vector<float, WIDTH> Columns;
    for (int row = from; row < to; row++) {
        for (int i = row_pointer[row]; i < row_pointer[row + 1]; i++) {
            const float *g = gradient + (long)row * FRAMES * BLOCK, *h = x + (long)column[i] * FRAMES * BLOCK;
            for (int first = 0; first < BLOCK; first += ROWS) {
                for (int left = 0; left < BLOCK; left += WIDTH) {
                    Columns sum[CHAINS][ROWS] = {};
                    auto step = [&](int n, int c) __attribute__((always_inline)) {
                        const Columns inputs = load<Columns>(h + (long)n * BLOCK + left);
                        UNROLL for (int r = 0; r < ROWS; r++) sum[c][r] += inputs * g[(long)n * BLOCK + first + r];
                    };
                    int n = 0;
                    for (; n + CHAINS <= frames; n += CHAINS) { UNROLL for (int c = 0; c < CHAINS; c++) step(n + c, c); }
                    for (; n < frames; n++) step(n, 0);
                    UNROLL for (int r = 0; r < ROWS; r++) {
                        float *out = values + ((long)i * BLOCK + first + r) * BLOCK + left;
                        Columns total = load<Columns>(out);
                        UNROLL for (int c = 0; c < CHAINS; c++) total += sum[c][r];
                        store(out, total);
                    }
                }
            }
        }
    }
}
