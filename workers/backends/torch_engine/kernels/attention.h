// Attention of new tokens over pages of keys and values.

#pragma once

#include <limits>
#include <vector>

#include "rows.h"

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

// Where a layer's keys and values lie, and what heads are normalized and turned by.
template <typename T>
struct Heads {
    T *keys, *values;
    const float *query_norm, *key_norm;
    float epsilon;
    const float *cosines, *sines;
};

namespace {

constexpr int64_t MAX_HEAD = 1024;

// One head: normalized where the model wants it, then turned. `half` pairs of features.
inline void turn(const float* head, const float* norm, float epsilon, const float* cosines, const float* sines, int64_t half,
                 float* out) {
    float normal[MAX_HEAD];
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

template <typename T>
void store_keys(const float* qkv, const Batch& batch, const Layout& at, const Heads<T>& heads, float* queries, int threads) {
    int64_t size = at.head_size, half = size / 2, width = (at.heads + 2 * at.kv_heads) * size;
#pragma omp parallel for schedule(static) num_threads(threads) if (batch.num_tokens > WORTH_THREADS)
    for (int64_t token = 0; token < batch.num_tokens; token++) {
        const float* row = qkv + token * width;
        const float* cosine = heads.cosines + batch.positions[token] * half;
        const float* sine = heads.sines + batch.positions[token] * half;
        for (int64_t head = 0; head < at.heads; head++)
            turn(row + head * size, heads.query_norm, heads.epsilon, cosine, sine, half,
                 queries + (token * at.heads + head) * size);
        int64_t page = batch.cells[token] / at.page_size, offset = batch.cells[token] % at.page_size;
        for (int64_t head = 0; head < at.kv_heads; head++) {
            float key[MAX_HEAD];
            turn(row + (at.heads + head) * size, heads.key_norm, heads.epsilon, cosine, sine, half, key);
            const float* value = row + (at.heads + at.kv_heads + head) * size;
            int64_t start = (page * at.kv_heads + head) * size * at.page_size;
            for (int64_t feature = 0; feature < size; feature++) {
                store(heads.keys + start + feature * at.page_size + offset, key[feature]);
                store(heads.values + start + offset * size + feature, value[feature]);
            }
        }
    }
}

// Queries of one sequence that look at the same head of keys: row r is token r / group, head r % group of the group.
struct Rows {
    int64_t sequence, kv_head, first, count;
};

// How many vectors of sums are kept at once: one for each row would wait for the multiplier's last result.
template <int ROWS>
constexpr int AT_ONCE = ROWS > 6 ? 1 : ROWS > 3 ? 2 : 4;

// Dot products of all rows with COUNT vectors of keys, each `stride` from feature to feature.
template <int ROWS, int COUNT, typename T>
inline void products(const float (&query)[ROWS][MAX_HEAD], const T* const* keys, int64_t size, int64_t stride,
                  Vector (&sums)[COUNT][ROWS]) {
    for (int64_t feature = 0; feature < size; feature++) {
        Vector key[COUNT];
        for (int at = 0; at < COUNT; at++) key[at] = load(keys[at] + feature * stride);
#pragma GCC unroll 12
        for (int row = 0; row < ROWS; row++) {
            Vector value = Vector{} + query[row][feature];
#pragma GCC unroll 4
            for (int at = 0; at < COUNT; at++) sums[at][row] += key[at] * value;
        }
    }
}

// Adds a page's values to COUNT vectors of features of all rows, each key by its weight.
template <int ROWS, int COUNT, typename T>
inline void weigh(const float* weights, int64_t row_stride, const T* values, int64_t num_keys, int64_t size,
                  Vector (&sums)[COUNT][ROWS]) {
    for (int64_t key = 0; key < num_keys; key++) {
        Vector value[COUNT];
        for (int at = 0; at < COUNT; at++) value[at] = load(values + key * size + at * LANES);
#pragma GCC unroll 12
        for (int row = 0; row < ROWS; row++) {
            Vector weight = Vector{} + weights[row * row_stride + key];
#pragma GCC unroll 4
            for (int at = 0; at < COUNT; at++) sums[at][row] += value[at] * weight;
        }
    }
}

// Turns a row's scores to weights; returns their sum.
inline float soften(float* own, int64_t count) {
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
    return sum(total);
}

// One task of attention: ROWS queries, their keys page by page, and a weight for each pair of them.
template <typename T, int ROWS>
struct Attention {
    const Batch& batch;
    const Layout& at;
    const Heads<T>& layer;
    const Rows& rows;
    int64_t positions[ROWS], begins[ROWS], heads[ROWS];
    float query[ROWS][MAX_HEAD];
    int64_t first_page, last_page, last_key, count;
    float* weights;

    Attention(const Batch& batch, const Layout& at, const Heads<T>& layer, const Rows& rows, const float* queries,
              std::vector<float>& scratch)
        : batch(batch), at(at), layer(layer), rows(rows) {
        int64_t size = at.head_size, group = at.heads / at.kv_heads;
        float scale = 1.0f / std::sqrt((float)size);
        int64_t first_key = std::numeric_limits<int64_t>::max();
        last_key = 0;
        for (int row = 0; row < ROWS; row++) {
            int64_t token = batch.starts[rows.sequence] + (rows.first + row) / group;
            heads[row] = (token * at.heads + rows.kv_head * group + (rows.first + row) % group) * size;
            positions[row] = batch.positions[token];
            begins[row] = at.window ? std::max<int64_t>(0, positions[row] - at.window + 1) : 0;
            first_key = std::min(first_key, begins[row]);
            last_key = std::max(last_key, positions[row]);
            for (int64_t feature = 0; feature < size; feature++)
                query[row][feature] = queries[heads[row] + feature] * scale;
        }
        first_page = first_key / at.page_size;
        last_page = last_key / at.page_size;
        count = (last_page - first_page + 1) * at.page_size;
        scratch.resize(std::max<size_t>(scratch.size(), ROWS * count));
        weights = scratch.data();
    }

    int64_t page(int64_t number) const {
        int64_t index = batch.tables[rows.sequence * at.table_width + number];
        return (index * at.kv_heads + rows.kv_head) * at.head_size * at.page_size;
    }

    // Scores of COUNT vectors of keys, the first of which is `key`; minus infinity where a query does not look.
    template <int COUNT>
    void score(int64_t key) {
        const T* keys[COUNT];
        Vector scores[COUNT][ROWS] = {};
        for (int each = 0; each < COUNT; each++) {
            int64_t own = key + each * LANES;
            keys[each] = layer.keys + page(own / at.page_size) + own % at.page_size;
        }
        products<ROWS, COUNT>(query, keys, at.head_size, at.page_size, scores);
        for (int each = 0; each < COUNT; each++)
            for (int row = 0; row < ROWS; row++) {
                int64_t own = key + each * LANES;
                if (own + LANES - 1 > positions[row] || own < begins[row])
                    for (int lane = 0; lane < LANES; lane++)
                        if (own + lane > positions[row] || own + lane < begins[row]) scores[each][row][lane] = -INFINITY;
                store(weights + row * count + own - first_page * at.page_size, scores[each][row]);
            }
    }

    // What the queries see of COUNT vectors of features, the first of which is `feature`.
    template <int COUNT>
    void see(int64_t feature, const float* totals, float* out) {
        Vector sums[COUNT][ROWS] = {};
        for (int64_t number = first_page; number <= last_page; number++)
            weigh<ROWS, COUNT>(weights + (number - first_page) * at.page_size, count, layer.values + page(number) + feature,
                               std::min(at.page_size, last_key + 1 - number * at.page_size), at.head_size, sums);
        for (int each = 0; each < COUNT; each++)
            for (int row = 0; row < ROWS; row++)
                store(out + heads[row] + feature + each * LANES, sums[each][row] / totals[row]);
    }

    void run(float* out) {
        constexpr int SEVERAL = AT_ONCE<ROWS>;
        int64_t key = first_page * at.page_size, end = key + count, feature = 0;
        for (; key + SEVERAL * LANES <= end; key += SEVERAL * LANES) score<SEVERAL>(key);
        for (; key < end; key += LANES) score<1>(key);
        float totals[ROWS];
        for (int row = 0; row < ROWS; row++) totals[row] = soften(weights + row * count, count);
        for (; feature + SEVERAL * LANES <= at.head_size; feature += SEVERAL * LANES) see<SEVERAL>(feature, totals, out);
        for (; feature < at.head_size; feature += LANES) see<1>(feature, totals, out);
    }
};

template <typename T>
void attend(const float* queries, const Batch& batch, const Layout& at, const Heads<T>& layer, float* out, int threads) {
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
                Attention<T, decltype(count)::value>(batch, at, layer, tasks[task], queries, scratch).run(out);
            });
    }
}

}  // namespace
