// Kernels of the torch backend for CPUs: plain C++ over vectors of 16 floats, which the compiler maps to what the
// processor has. Weights and KV are bfloat16 or float; everything between is float.
//
// The order in which an output is summed depends on its own row alone. So a token's result is bit for bit the same
// whatever else is in the batch, and however a prompt is cut into chunks.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

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
constexpr int64_t ROWS_IN_CACHE = 96;
constexpr int64_t WORTH_THREADS = 8;

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
    Vector shifted = clamped * 1.44269504f + 12582912.0f;  // rounds to whole numbers in the low bits
    Vector whole = shifted - 12582912.0f;
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

template <typename W, int ROWS>
void multiply(const float* rows, int64_t inputs, const W* tile, const float* bias, float* out, int64_t stride, int width) {
    Vector sums[ROWS][2];
    Vector first = {}, second = {};
    if (bias) {
        float padded[TILE] = {};
        std::copy(bias, bias + width, padded);
        first = load(padded);
        second = load(padded + LANES);
    }
    for (int row = 0; row < ROWS; row++) {
        sums[row][0] = first;
        sums[row][1] = second;
    }
    for (int64_t input = 0; input < inputs; input++) {
        Vector left, right;
        columns(tile + input * TILE, left, right);
#pragma GCC unroll 12
        for (int row = 0; row < ROWS; row++) {
            float value = rows[row * inputs + input];
            sums[row][0] += left * value;
            sums[row][1] += right * value;
        }
    }
    for (int row = 0; row < ROWS; row++) {
        if (width == TILE) {
            store(out + row * stride, sums[row][0]);
            store(out + row * stride + LANES, sums[row][1]);
        } else {
            float both[TILE];
            store(both, sums[row][0]);
            store(both + LANES, sums[row][1]);
            std::copy(both, both + width, out + row * stride);
        }
    }
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

template <typename W>
void linear(const float* rows, int64_t num_rows, const W* packed, const float* bias, int64_t inputs, int64_t outputs,
            float* out, int threads) {
    int64_t tiles = (outputs + TILE - 1) / TILE;
    int64_t parts = (num_rows + ROWS_IN_CACHE - 1) / ROWS_IN_CACHE;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < parts * tiles; task++) {
        int64_t tile = task % tiles, begin = task / tiles * ROWS_IN_CACHE;
        int64_t end = std::min(begin + ROWS_IN_CACHE, num_rows);
        int width = (int)std::min<int64_t>(TILE, outputs - tile * TILE);
        for (int64_t row = begin; row < end; row += MAX_ROWS)
            dispatch<MAX_ROWS>((int)std::min<int64_t>(MAX_ROWS, end - row), [&](auto count) {
                multiply<W, decltype(count)::value>(rows + row * inputs, inputs, packed + tile * inputs * TILE,
                                                    bias ? bias + tile * TILE : nullptr,
                                                    out + row * outputs + tile * TILE, outputs, width);
            });
    }
}

inline void normalize(const float* row, const float* weight, int64_t size, float epsilon, float* out) {
    Vector squares = {};
    for (int64_t at = 0; at < size; at += LANES) squares += load(row + at) * load(row + at);
    float scale = 1.0f / std::sqrt(sum(squares) / (float)size + epsilon);
    for (int64_t at = 0; at < size; at += LANES) store(out + at, load(row + at) * scale * load(weight + at));
}

// One head: normalized where the model wants it, then turned. `half` pairs of features.
inline void turn(const float* head, const float* norm, float epsilon, const float* cosines, const float* sines, int64_t half,
                 float* out) {
    float normal[1024];
    if (norm) {
        normalize(head, norm, 2 * half, epsilon, normal);
        head = normal;
    }
    for (int64_t at = 0; at < half; at++) {
        float first = head[at], second = head[half + at];
        out[at] = first * cosines[at] - second * sines[at];
        out[half + at] = second * cosines[at] + first * sines[at];
    }
}

}  // namespace

// How a layer's heads and pages lie. Keys: (pages, kv heads, head size, page size); values: (pages, kv heads, page
// size, head size); so scores of a page and weighted values are both sums over whole vectors.
struct Layout {
    int64_t heads, kv_heads, head_size, page_size, table_width;
    int64_t window;  // 0: everything
};

struct Batch {
    const int32_t *positions, *starts, *lengths, *tables;
    const int64_t* cells;
    int64_t num_tokens, num_sequences;
};

namespace {

template <typename T>
void store_keys(const float* qkv, const Batch& batch, const Layout& at, const float* query_norm, const float* key_norm,
                float epsilon, const float* cosines, const float* sines, float* queries, T* keys, T* values, int threads) {
    int64_t size = at.head_size, half = size / 2, width = (at.heads + 2 * at.kv_heads) * size;
#pragma omp parallel for schedule(static) num_threads(threads) if (batch.num_tokens > WORTH_THREADS)
    for (int64_t token = 0; token < batch.num_tokens; token++) {
        const float* row = qkv + token * width;
        const float* cosine = cosines + batch.positions[token] * half;
        const float* sine = sines + batch.positions[token] * half;
        for (int64_t head = 0; head < at.heads; head++)
            turn(row + head * size, query_norm, epsilon, cosine, sine, half, queries + (token * at.heads + head) * size);
        int64_t page = batch.cells[token] / at.page_size, offset = batch.cells[token] % at.page_size;
        for (int64_t head = 0; head < at.kv_heads; head++) {
            float key[1024];
            turn(row + (at.heads + head) * size, key_norm, epsilon, cosine, sine, half, key);
            const float* value = row + (at.heads + at.kv_heads + head) * size;
            int64_t start = (page * at.kv_heads + head) * size * at.page_size;
            for (int64_t feature = 0; feature < size; feature++) {
                store(keys + start + feature * at.page_size + offset, key[feature]);
                store(values + start + offset * size + feature, value[feature]);
            }
        }
    }
}

// Queries of one sequence that look at the same head of keys: row r is token r / group, head r % group of the group.
struct Rows {
    int64_t sequence, kv_head, first, count;
};

template <typename T, int ROWS>
void attend_rows(const float* queries, const Batch& batch, const Layout& at, const Rows& rows, const T* keys,
                 const T* values, float* out, std::vector<float>& scratch) {
    int64_t size = at.head_size, group = at.heads / at.kv_heads, page_size = at.page_size;
    int64_t positions[ROWS], begins[ROWS], heads[ROWS];
    float query[ROWS][1024];
    float scale = 1.0f / std::sqrt((float)size);
    int64_t first_key = std::numeric_limits<int64_t>::max(), last_key = 0;
    for (int row = 0; row < ROWS; row++) {
        int64_t token = batch.starts[rows.sequence] + (rows.first + row) / group;
        heads[row] = (token * at.heads + rows.kv_head * group + (rows.first + row) % group) * size;
        positions[row] = batch.positions[token];
        begins[row] = at.window ? std::max<int64_t>(0, positions[row] - at.window + 1) : 0;
        first_key = std::min(first_key, begins[row]);
        last_key = std::max(last_key, positions[row]);
        for (int64_t feature = 0; feature < size; feature++) query[row][feature] = queries[heads[row] + feature] * scale;
    }
    int64_t first_page = first_key / page_size, last_page = last_key / page_size;
    int64_t count = (last_page - first_page + 1) * page_size;
    scratch.resize(std::max<size_t>(scratch.size(), ROWS * count));
    float* weights = scratch.data();
    const int32_t* table = batch.tables + rows.sequence * at.table_width;
    for (int64_t page = first_page; page <= last_page; page++) {
        const T* block = keys + ((int64_t)table[page] * at.kv_heads + rows.kv_head) * size * page_size;
        for (int64_t column = 0; column < page_size; column += LANES) {
            Vector scores[ROWS] = {};
            for (int64_t feature = 0; feature < size; feature++) {
                Vector key = load(block + feature * page_size + column);
#pragma GCC unroll 12
                for (int row = 0; row < ROWS; row++) scores[row] += key * query[row][feature];
            }
            int64_t at_key = page * page_size + column;
            for (int row = 0; row < ROWS; row++) {
                if (at_key + LANES - 1 > positions[row] || at_key < begins[row])
                    for (int lane = 0; lane < LANES; lane++)
                        if (at_key + lane > positions[row] || at_key + lane < begins[row]) scores[row][lane] = -INFINITY;
                store(weights + row * count + at_key - first_page * page_size, scores[row]);
            }
        }
    }
    float totals[ROWS];
    for (int row = 0; row < ROWS; row++) {
        float* own = weights + row * count;
        Vector highest = load(own), total = {};
        for (int64_t key = LANES; key < count; key += LANES) {
            Vector score = load(own + key);
            highest = score > highest ? score : highest;
        }
        float most = highest[0];
        for (int lane = 1; lane < LANES; lane++) most = std::max(most, (float)highest[lane]);
        for (int64_t key = 0; key < count; key += LANES) {
            Vector weight = exponential(load(own + key) - most);
            total += weight;
            store(own + key, weight);
        }
        totals[row] = sum(total);
    }
    for (int64_t feature = 0; feature < size; feature += LANES) {
        Vector sums[ROWS] = {};
        for (int64_t page = first_page; page <= last_page; page++) {
            const T* block = values + ((int64_t)table[page] * at.kv_heads + rows.kv_head) * page_size * size + feature;
            const float* own = weights + (page - first_page) * page_size;
            int64_t used = std::min(page_size, last_key + 1 - page * page_size);
            for (int64_t key = 0; key < used; key++) {
                Vector value = load(block + key * size);
#pragma GCC unroll 12
                for (int row = 0; row < ROWS; row++) sums[row] += value * own[row * count + key];
            }
        }
        for (int row = 0; row < ROWS; row++) store(out + heads[row] + feature, sums[row] / totals[row]);
    }
}

template <typename T>
void attend(const float* queries, const Batch& batch, const Layout& at, const T* keys, const T* values, float* out,
            int threads) {
    std::vector<Rows> tasks;
    int64_t group = at.heads / at.kv_heads;
    for (int64_t sequence = 0; sequence < batch.num_sequences; sequence++) {
        int64_t count = (batch.starts[sequence + 1] - batch.starts[sequence]) * group;
        for (int64_t kv_head = 0; kv_head < at.kv_heads; kv_head++)
            for (int64_t first = 0; first < count; first += MAX_ROWS)
                tasks.push_back({sequence, kv_head, first, std::min<int64_t>(MAX_ROWS, count - first)});
    }
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> scratch;
#pragma omp for schedule(dynamic)
        for (size_t task = 0; task < tasks.size(); task++)
            dispatch<MAX_ROWS>((int)tasks[task].count, [&](auto count) {
                attend_rows<T, decltype(count)::value>(queries, batch, at, tasks[task], keys, values, out, scratch);
            });
    }
}

}  // namespace

extern "C" {

int64_t inferflux_tile() { return TILE; }

void inferflux_pack(int is_float, const void* weight, int64_t outputs, int64_t inputs, void* packed) {
    if (is_float)
        pack((const float*)weight, outputs, inputs, (float*)packed);
    else
        pack((const Bf16*)weight, outputs, inputs, (Bf16*)packed);
}

void inferflux_linear(int is_float, const float* rows, int64_t num_rows, const void* packed, const float* bias,
                      int64_t inputs, int64_t outputs, float* out, int threads) {
    if (is_float)
        linear(rows, num_rows, (const float*)packed, bias, inputs, outputs, out, threads);
    else
        linear(rows, num_rows, (const Bf16*)packed, bias, inputs, outputs, out, threads);
}

void inferflux_embed(int is_float, const int32_t* tokens, int64_t num_tokens, const void* table, int64_t size, float* out) {
    for (int64_t token = 0; token < num_tokens; token++)
        for (int64_t at = 0; at < size; at++) {
            int64_t from = tokens[token] * size + at;
            out[token * size + at] = is_float ? ((const float*)table)[from] : widen(((const Bf16*)table)[from]);
        }
}

// With `added`, each row is added to its residual first.
void inferflux_norm(float* residual, const float* added, const float* weight, int64_t num_rows, int64_t size, float epsilon,
                    float* out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (num_rows > WORTH_THREADS)
    for (int64_t row = 0; row < num_rows; row++) {
        float* own = residual + row * size;
        if (added)
            for (int64_t at = 0; at < size; at += LANES) store(own + at, load(own + at) + load(added + row * size + at));
        normalize(own, weight, size, epsilon, out + row * size);
    }
}

void inferflux_gate(const float* rows, int64_t num_rows, int64_t size, float* out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (num_rows > WORTH_THREADS)
    for (int64_t row = 0; row < num_rows; row++) {
        const float *gate = rows + row * 2 * size, *up = gate + size;
        for (int64_t at = 0; at < size; at += LANES) {
            Vector value = load(gate + at);
            store(out + row * size + at, value / (1.0f + exponential(-value)) * load(up + at));
        }
    }
}

void inferflux_attend(int is_float, const float* qkv, const Batch* batch, const Layout* at, const float* query_norm,
                      const float* key_norm, float epsilon, const float* cosines, const float* sines, float* queries,
                      void* keys, void* values, float* out, int threads) {
    if (is_float) {
        store_keys(qkv, *batch, *at, query_norm, key_norm, epsilon, cosines, sines, queries, (float*)keys,
                   (float*)values, threads);
        attend(queries, *batch, *at, (const float*)keys, (const float*)values, out, threads);
    } else {
        store_keys(qkv, *batch, *at, query_norm, key_norm, epsilon, cosines, sines, queries, (Bf16*)keys,
                   (Bf16*)values, threads);
        attend(queries, *batch, *at, (const Bf16*)keys, (const Bf16*)values, out, threads);
    }
}

// Whether the processor really runs what the compiler made of this: a small product against plain loops.
int inferflux_check() {
    constexpr int64_t rows = 14, inputs = 48, outputs = 40;
    std::vector<Bf16> weight(outputs * inputs), packed(2 * TILE * inputs);
    std::vector<float> left(rows * inputs), out(rows * outputs);
    for (int64_t at = 0; at < outputs * inputs; at++) store(&weight[at], (float)(at % 13) - 6.0f);
    for (int64_t at = 0; at < rows * inputs; at++) left[at] = (float)(at % 7) - 3.0f;
    pack(weight.data(), outputs, inputs, packed.data());
    linear(left.data(), rows, packed.data(), nullptr, inputs, outputs, out.data(), 2);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t output = 0; output < outputs; output++) {
            float expected = 0;
            for (int64_t input = 0; input < inputs; input++)
                expected += left[row * inputs + input] * widen(weight[output * inputs + input]);
            if (expected != out[row * outputs + output]) return 0;
        }
    Vector powers = exponential(Vector{} + 1.0f);
    return std::fabs(powers[0] - 2.7182818f) < 1e-5f;
}
}
