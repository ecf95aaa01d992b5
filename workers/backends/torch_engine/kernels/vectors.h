// Vectors of 16 floats, which the compiler maps to what the processor has, and the numbers that are stored as bfloat16.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

typedef float Vector __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t HalfBits __attribute__((vector_size(32)));

struct Bf16 {
    uint16_t bits;
};

constexpr int LANES = 16;
constexpr int TILE = 2 * LANES;
#ifdef __AVX512F__
constexpr int MAX_ROWS = 12;  // 24 of 32 registers hold sums
#else
constexpr int MAX_ROWS = 3;
#endif
constexpr int64_t WORTH_THREADS = 8;
constexpr float ROUNDING = 12582912.0f;  // what is added to it is rounded to whole numbers in its low bits

inline Vector load(const float* from) {
    Vector value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline Vector load(const Bf16* from) {
    HalfBits halves;
    std::memcpy(&halves, from, sizeof halves);
    return (Vector)(__builtin_convertvector(halves, Bits) << 16);
}

inline void store(float* to, Vector value) { std::memcpy(to, &value, sizeof value); }

inline void store(float* to, float value) { *to = value; }

inline void store(Bf16* to, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    to->bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to the nearest, ties to even
}

inline float widen(float value) { return value; }

inline float widen(Bf16 value) {
    uint32_t bits = (uint32_t)value.bits << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

inline float sum(Vector value) {
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += value[lane];
    return total;
}

// Cody and Waite's reduction and a polynomial; relative error below 2e-7. Zero far below zero.
inline Vector exponential(Vector x) {
    const Vector zero = {};
    Vector clamped = x < -87.0f ? zero - 87.0f : x;
    clamped = clamped > 88.0f ? zero + 88.0f : clamped;
    Vector shifted = clamped * 1.44269504f + ROUNDING;
    Vector whole = shifted - ROUNDING;
    Vector rest = clamped - whole * 0.693359375f;
    rest = rest + whole * 2.12194440e-4f;
    Vector series = zero + 1.9875691500e-4f;
    series = series * rest + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    series = series * (rest * rest) + rest + 1.0f;
    Bits scale = ((Bits)shifted << 23) + 0x3f800000u;
    return x < -87.0f ? zero : series * (Vector)scale;
}

// Calls `function<count>` for a count that is only known now.
template <int COUNT, typename Call>
inline void dispatch(int count, Call&& call) {
    if constexpr (COUNT == 1)
        call(std::integral_constant<int, 1>{});
    else if (count == COUNT)
        call(std::integral_constant<int, COUNT>{});
    else
        dispatch<COUNT - 1>(count, call);
}

}  // namespace
