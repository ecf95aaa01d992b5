// Matrix products with weights in bfloat16 or float.

#pragma once

#include "vectors.h"

namespace {

constexpr int64_t ROWS_IN_CACHE = 96;
constexpr int64_t AHEAD = 4096;  // bytes: the processor's own prefetching alone leaves a fifth to a third of the speed

// A tile is 32 columns of outputs, input by input. Two bfloat16 share a lane: a shift and a mask take them apart.
inline void columns(const Bf16* from, Vector& left, Vector& right) {
    Bits pairs;
    std::memcpy(&pairs, from, sizeof pairs);
    left = (Vector)(pairs << 16);
    right = (Vector)(pairs & 0xffff0000u);
}

inline void columns(const float* from, Vector& left, Vector& right) {
    left = load(from);
    right = load(from + LANES);
}

// Past the end of a matrix this is no error.
inline void prefetch(const void* from) { __builtin_prefetch((const char*)from + AHEAD); }

inline int64_t place(const Bf16*, int column) { return column < LANES ? 2 * column : 2 * (column - LANES) + 1; }

inline int64_t place(const float*, int column) { return column; }

template <typename W>
void pack(const W* weight, int64_t outputs, int64_t inputs, W* packed) {
#pragma omp parallel for schedule(static)
    for (int64_t tile = 0; tile < (outputs + TILE - 1) / TILE; tile++)
        for (int64_t input = 0; input < inputs; input++)
            for (int column = 0; column < TILE; column++) {
                int64_t output = tile * TILE + column;
                W value = output < outputs ? weight[output * inputs + input] : W{};
                packed[(tile * inputs + input) * TILE + place(weight, column)] = value;
            }
}

// Calls `work(tile, row, count)` for each tile and up to MAX_ROWS rows at a time, while a part of the rows is in cache.
template <typename Work>
void for_tiles(int64_t num_rows, int64_t outputs, int threads, Work&& work) {
    int64_t tiles = (outputs + TILE - 1) / TILE;
    int64_t parts = (num_rows + ROWS_IN_CACHE - 1) / ROWS_IN_CACHE;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < parts * tiles; task++) {
        int64_t tile = task % tiles, begin = task / tiles * ROWS_IN_CACHE;
        int64_t end = std::min(begin + ROWS_IN_CACHE, num_rows);
        for (int64_t row = begin; row < end; row += MAX_ROWS)
            dispatch<MAX_ROWS>((int)std::min<int64_t>(MAX_ROWS, end - row), [&](auto count) { work(tile, row, count); });
    }
}

template <int ROWS>
void begin_with(const float* bias, int64_t tile, int64_t outputs, Vector (&sums)[ROWS][2]) {
    float padded[TILE] = {};
    if (bias) std::copy(bias + tile * TILE, bias + std::min((tile + 1) * TILE, outputs), padded);
    for (int row = 0; row < ROWS; row++) {
        sums[row][0] = load(padded);
        sums[row][1] = load(padded + LANES);
    }
}

template <int ROWS>
void put(const Vector (&sums)[ROWS][2], int64_t tile, int64_t row, int64_t outputs, float* out) {
    int64_t width = std::min<int64_t>(TILE, outputs - tile * TILE);
    out += row * outputs + tile * TILE;
    for (int row = 0; row < ROWS; row++) {
        float both[TILE];
        float* to = width == TILE ? out + row * outputs : both;
        store(to, sums[row][0]);
        store(to + LANES, sums[row][1]);
        if (width < TILE) std::copy(both, both + width, out + row * outputs);
    }
}

template <typename W, int ROWS>
void multiply(const float* rows, int64_t inputs, const W* tile, Vector (&out)[ROWS][2]) {
    Vector sums[ROWS][2];
    std::copy(&out[0][0], &out[0][0] + 2 * ROWS, &sums[0][0]);
    for (int64_t input = 0; input < inputs; input++) {
        Vector left, right;
        columns(tile + input * TILE, left, right);
        prefetch(tile + input * TILE);
#pragma GCC unroll 12
        for (int row = 0; row < ROWS; row++) {
            float value = rows[row * inputs + input];
            sums[row][0] += left * value;
            sums[row][1] += right * value;
        }
    }
    std::copy(&sums[0][0], &sums[0][0] + 2 * ROWS, &out[0][0]);
}

template <typename W>
void linear(const float* rows, int64_t num_rows, const W* packed, const float* bias, int64_t inputs, int64_t outputs,
            float* out, int threads) {
    for_tiles(num_rows, outputs, threads, [&](int64_t tile, int64_t row, auto count) {
        constexpr int ROWS = decltype(count)::value;
        Vector sums[ROWS][2];
        begin_with<ROWS>(bias, tile, outputs, sums);
        multiply<W, ROWS>(rows + row * inputs, inputs, packed + tile * inputs * TILE, sums);
        put<ROWS>(sums, tile, row, outputs, out);
    });
}

}  // namespace
