// Runs every kernel and layer once, at sizes with edge cases, under the compilers' sanitizers.
#include "bsr.cpp"

#include <cstdio>
#include <random>

static std::mt19937 generator(0);
static bool kept(int percent) { return (int)(generator() % 100) < percent; }

struct Sparse {
    std::vector<int32_t> row_pointer{0};
    std::vector<uint16_t> column;
    std::vector<uint8_t> values;
    std::vector<float> scale;
    Matrix *matrix;
    Sparse(int format, int rows, int columns, int block, int percent) : scale(rows, 0.01f) {
        for (int r = 0; r < rows / block; r++) {
            for (int c = 0; c < columns / block; c++)
                if (kept(percent)) column.push_back((uint16_t)c);
            row_pointer.push_back((int32_t)column.size());
        }
        const size_t count = column.size() * block * block, width = format == FLOAT32 ? 4 : format == BFLOAT16 ? 2 : 1;
        values.resize(count * width);
        for (size_t i = 0; i < count; i++) {
            const float value = 0.1f;
            const uint16_t half = 0x3dcd;
            memcpy(&values[i * width], format == FLOAT32 ? (const void *)&value : format == BFLOAT16 ? (const void *)&half : "\x05", width);
        }
        matrix = bsr_create(format, rows, columns, block, row_pointer.data(), column.data(), values.data(), scale.data());
    }
    ~Sparse() { bsr_free(matrix); }
};

int main() {
    for (int format : {FLOAT32, BFLOAT16, INT8})
        for (int block : {4, 8, 16, 32})
            for (int percent : {0, 30, 100})
                for (int threads : {1, 3}) {
                    const int inputs = 2 * block, units = 3 * block;
                    Sparse w(format, 3 * units, inputs, block, percent), u(format, 3 * units, units, block, percent);
                    Sparse narrow(format, units, inputs, block, percent), back(format, units, units, block, percent);
                    for (int count : {1, 2, 3, 5, 17, 130}) {
                        std::vector<float> x((size_t)count * inputs, 0.5f), y((size_t)count * 3 * units);
                        bsr_product(w.matrix, threads, count, x.data(), y.data());
                        std::vector<float> values(w.column.size() * block * block);
                        bsr_gradient(w.matrix, threads, count, y.data(), x.data(), values.data());
                    }
                    const std::vector<int> sizes{9, 9, 4, 1};
                    std::vector<float> x(23 * inputs, 0.5f), bias(3 * units, 0.1f), state(9 * units), out(23 * units);
                    for (float *given : {state.data(), (float *)nullptr})
                        bsr_gru(w.matrix, u.matrix, bias.data(), threads, 4, sizes.data(), x.data(), given, out.data());
                    bsr_rnn(narrow.matrix, back.matrix, back.matrix, bias.data(), threads, 4, sizes.data(), x.data(), out.data());
                }
    bsr_multiply_rounds(FLOAT32, 3);
    std::puts("all ran");
}
