// What is done to each row by itself.

#pragma once

#include "vectors.h"

namespace {

inline void normalize(const float* row, const float* weight, int64_t size, float epsilon, float* out) {
    Vector squares = {};
    for (int64_t at = 0; at < size; at += LANES) squares += load(row + at) * load(row + at);
    float scale = 1.0f / std::sqrt(sum(squares) / (float)size + epsilon);
    for (int64_t at = 0; at < size; at += LANES) store(out + at, load(row + at) * scale * load(weight + at));
}

// With `added`, each row is added to its residual first.
inline void norm(float* residual, const float* added, const float* weight, int64_t num_rows, int64_t size, float epsilon,
                 float* out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (num_rows > WORTH_THREADS)
    for (int64_t row = 0; row < num_rows; row++) {
        float* own = residual + row * size;
        if (added)
            for (int64_t at = 0; at < size; at += LANES) store(own + at, load(own + at) + load(added + row * size + at));
        normalize(own, weight, size, epsilon, out + row * size);
    }
}

// SiLU of the first half of each row, times the second half.
inline void gate(const float* rows, int64_t num_rows, int64_t size, float* out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (num_rows > WORTH_THREADS)
    for (int64_t row = 0; row < num_rows; row++) {
        const float *gate = rows + row * 2 * size, *up = gate + size;
        for (int64_t at = 0; at < size; at += LANES) {
            Vector value = load(gate + at);
            store(out + row * size + at, value / (1.0f + exponential(-value)) * load(up + at));
        }
    }
}

}  // namespace
