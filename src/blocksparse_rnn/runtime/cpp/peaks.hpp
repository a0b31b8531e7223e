// Peak rates of a core, for benchmarks: multiply-adds of a number format, and reading memory.
#pragma once
#include "kernels.hpp"

// `rounds` rounds of enough independent multiply-adds to hide their latency, with the same weights and
// activations within a round; returns the number of operations.
template <class Format> static double multiply_rounds(long rounds) {
    typedef Vector<typename Format::Sum, LANES> Sum;
    constexpr int COUNT = 12;
    Sum sum[COUNT] = {};
    Vector<int32_t, LANES> weights{};
    typename Format::Activation h[4] = {};
    for (long i = 0; i < rounds; i++) {
        asm volatile("" : "+x"(weights) : "r"(h) : "memory");  // the compiler must know neither
        const auto activations = Format::template to_lanes<LANES>(h);
        UNROLL for (int c = 0; c < COUNT; c++) {
            sum[c] = Format::template multiply_add<LANES>(sum[c], weights, activations);
            asm volatile("" : "+x"(sum[c]));
        }
    }
    return 2.0 * rounds * COUNT * LANES * Format::GROUP;
}

// Read a range of floats, a multiple of eight registers long, `rounds` times.
static float read_rounds(const float *from, long count, long rounds) {
    typedef Vector<float, LANES> F;
    F sum[8] = {};
    for (long i = 0; i < rounds; i++) {
        for (long j = 0; j < count; j += 8 * LANES) {
            UNROLL for (int c = 0; c < 8; c++) sum[c] += load<F>(from + j + c * LANES);
        }
        asm volatile("" ::: "memory");
    }
    float total = 0;
    for (int c = 0; c < 8; c++)
        for (int l = 0; l < LANES; l++) total += sum[c][l];
    return total;
}
