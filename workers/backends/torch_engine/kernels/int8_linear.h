// Matrix products with weights in 8 bits. Inputs are taken in groups, and each group has a scale for each output; rows
// are rounded to 8 bits by groups, too, so that the products are sums of whole numbers, which are exact in any order.

#pragma once

#include <vector>

#include "linear.h"
#ifdef __AVX512VNNI__
#include <immintrin.h>
#endif

namespace {

typedef int32_t Ints __attribute__((vector_size(64)));
typedef int8_t Bytes __attribute__((vector_size(16)));

constexpr int64_t GROUP = 32, STEPS = GROUP / 4;
constexpr int STEP_BYTES = 4 * TILE;

// One group of a tile. Four neighbouring inputs of an output share a lane. Weights are kept 128 above themselves, because
// the processor multiplies bytes without a sign by bytes with one; `Quantized::starts` takes that off again.
struct Group {
    float scales[TILE];
    uint8_t weights[STEPS * STEP_BYTES];
};

inline int64_t num_groups(int64_t inputs) { return (inputs + GROUP - 1) / GROUP; }

template <typename W>
void quantize_group(const W* weight, int64_t outputs, int64_t inputs, int64_t tile, int64_t group, Group& packed) {
    int64_t first = group * GROUP, count = std::min(GROUP, inputs - first);
    for (int column = 0; column < TILE; column++) {
        int64_t output = tile * TILE + column;
        const W* own = weight + output * inputs + first;
        float most = 0;
        if (output < outputs)
            for (int64_t at = 0; at < count; at++) most = std::max(most, std::fabs(widen(own[at])));
        packed.scales[column] = most / 127;
        for (int64_t at = 0; at < GROUP; at++) {
            float value = output < outputs && at < count && most > 0 ? widen(own[at]) / most * 127 : 0;
            int64_t place = at / 4 * STEP_BYTES + column / LANES * 4 * LANES + column % LANES * 4 + at % 4;
            packed.weights[place] = (uint8_t)(128 + (int)std::lrint(value));
        }
    }
}

template <typename W>
void quantize(const W* weight, int64_t outputs, int64_t inputs, Group* packed) {
    int64_t tiles = (outputs + TILE - 1) / TILE, groups = num_groups(inputs);
#pragma omp parallel for schedule(static)
    for (int64_t tile = 0; tile < tiles; tile++)
        for (int64_t group = 0; group < groups; group++)
            quantize_group(weight, outputs, inputs, tile, group, packed[tile * groups + group]);
}

// Rows in 8 bits. Each group has a scale, and what its sums begin with.
struct Quantized {
    std::vector<int8_t> values;
    std::vector<float> scales;
    std::vector<int32_t> starts;

    void take(const float* rows, int64_t num_rows, int64_t inputs, int threads) {
        int64_t groups = num_groups(inputs);
        values.resize(std::max<size_t>(values.size(), num_rows * groups * GROUP));
        scales.resize(std::max<size_t>(scales.size(), num_rows * groups));
        starts.resize(scales.size());
#pragma omp parallel for schedule(static) num_threads(threads) if (num_rows > WORTH_THREADS)
        for (int64_t row = 0; row < num_rows; row++)
            for (int64_t group = 0; group < groups; group++)
                take_group(rows + row * inputs + group * GROUP, std::min(GROUP, inputs - group * GROUP), row * groups + group);
    }

    void take_group(const float* from, int64_t count, int64_t index) {
        Vector highest = {};
        for (int64_t at = 0; at < count; at += LANES) {
            Vector value = load(from + at), size = value < 0.0f ? -value : value;
            highest = size > highest ? size : highest;
        }
        float most = highest[0];
        for (int lane = 1; lane < LANES; lane++) most = std::max(most, (float)highest[lane]);
        float scale = most > 0 ? 127 / most : 0;
        int8_t* own = values.data() + index * GROUP;
        Ints total = {};
        for (int64_t at = 0; at < GROUP; at += LANES) {
            Ints whole = {};
            if (at < count) whole = (Ints)(load(from + at) * scale + ROUNDING) - (Ints)(Vector{} + ROUNDING);
            total += whole;
            Bytes bytes = __builtin_convertvector(whole, Bytes);
            std::memcpy(own + at, &bytes, sizeof bytes);
        }
        int32_t sum = 0;
        for (int lane = 0; lane < LANES; lane++) sum += total[lane];
        scales[index] = most / 127;
        starts[index] = -128 * sum;
    }
};

// Adds the products of four weights and four inputs to each lane.
inline Ints dot(Ints sums, Ints weights, int32_t inputs) {
#ifdef __AVX512VNNI__
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, _mm512_set1_epi32(inputs));
#else
    for (int byte = 0; byte < 4; byte++) sums += (Ints)((Bits)weights >> 8 * byte & 255) * (int32_t)(int8_t)(inputs >> 8 * byte);
    return sums;
#endif
}

template <int ROWS>
void multiply(const Quantized& rows, int64_t row, int64_t groups, const Group* tile, Vector (&out)[ROWS][2]) {
    const int8_t* values = rows.values.data() + row * groups * GROUP;
    const float* scales = rows.scales.data() + row * groups;
    const int32_t* starts = rows.starts.data() + row * groups;
    for (int64_t group = 0; group < groups; group++) {
        const Group& weights = tile[group];
        Ints sums[ROWS][2];
        for (int row = 0; row < ROWS; row++) sums[row][0] = sums[row][1] = Ints{} + starts[row * groups + group];
        for (int64_t step = 0; step < STEPS; step++) {
            Ints left, right;
            std::memcpy(&left, weights.weights + step * STEP_BYTES, sizeof left);
            std::memcpy(&right, weights.weights + step * STEP_BYTES + STEP_BYTES / 2, sizeof right);
            prefetch(weights.weights + step * STEP_BYTES);
            prefetch(weights.weights + step * STEP_BYTES + STEP_BYTES / 2);
#pragma GCC unroll 12
            for (int row = 0; row < ROWS; row++) {
                int32_t inputs;
                std::memcpy(&inputs, values + (row * groups + group) * GROUP + 4 * step, sizeof inputs);
                sums[row][0] = dot(sums[row][0], left, inputs);
                sums[row][1] = dot(sums[row][1], right, inputs);
            }
        }
#pragma GCC unroll 12
        for (int row = 0; row < ROWS; row++)
            for (int half = 0; half < 2; half++) {
                Vector scale = load(weights.scales + half * LANES) * scales[row * groups + group];
                out[row][half] += __builtin_convertvector(sums[row][half], Vector) * scale;
            }
    }
}

void linear(const float* rows, int64_t num_rows, const Group* packed, const float* bias, int64_t inputs, int64_t outputs,
            float* out, int threads) {
    static thread_local Quantized quantized;
    Quantized& own = quantized;
    own.take(rows, num_rows, inputs, threads);
    int64_t groups = num_groups(inputs);
    for_tiles(num_rows, outputs, threads, [&](int64_t tile, int64_t row, auto count) {
        constexpr int ROWS = decltype(count)::value;
        Vector sums[ROWS][2];
        begin_with<ROWS>(bias, tile, outputs, sums);
        multiply<ROWS>(own, row, groups, packed + tile * groups, sums);
        put<ROWS>(sums, tile, row, outputs, out);
    });
}

}  // namespace
