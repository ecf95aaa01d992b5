// A whole decoder, block after block, without a return to the caller in between.

#pragma once

#include "attention.h"
#include "int8_linear.h"

enum Kind { BFLOAT16 = 0, FLOAT = 1, INT8 = 2 };

// Weights of `outputs` x `inputs`, packed as its kind wants them.
struct Matrix {
    int64_t kind, inputs, outputs;
    const void* packed;
    const float* bias;
};

struct Block {
    Matrix qkv, output, gate_up, down;
    const float *attention_norm, *query_norm, *key_norm, *feed_forward_norm;
    void *keys, *values;
    int64_t window;
};

// `num_blocks` blocks of one shape; `layout.window` is each block's own. `kind` is that of keys and values.
struct Decoder {
    const Block* blocks;
    int64_t num_blocks, kind;
    const float *norm, *cosines, *sines;
    float epsilon;
};

namespace {

inline void linear(const Matrix& matrix, const float* rows, int64_t num_rows, float* out, int threads) {
    auto run = [&](auto* packed) {
        linear(rows, num_rows, packed, matrix.bias, matrix.inputs, matrix.outputs, out, threads);
    };
    switch (matrix.kind) {
        case BFLOAT16: return run((const Bf16*)matrix.packed);
        case FLOAT: return run((const float*)matrix.packed);
        case INT8: return run((const Group*)matrix.packed);
    }
}

template <typename T>
void attend(const float* qkv, const Batch& batch, const Layout& at, const Heads<T>& heads, float* queries, float* out,
            int threads) {
    store_keys(qkv, batch, at, heads, queries, threads);
    attend(queries, batch, at, heads, out, threads);
}

// Rows of `residual` in, normalized last states in `out`.
template <typename T>
void decode(const Decoder& decoder, const Batch& batch, Layout at, float* residual, float* out, int threads) {
    static thread_local std::vector<float> scratch;
    const Block& first = decoder.blocks[0];
    int64_t hidden = first.qkv.inputs, seen = first.output.inputs, inner = first.down.inputs, count = batch.num_tokens;
    int64_t wide = std::max(first.qkv.outputs, 2 * inner);
    scratch.resize(std::max<size_t>(scratch.size(), count * (wide + 2 * seen + inner + hidden)));
    float *both = scratch.data(), *queries = both + count * wide, *context = queries + count * seen;
    float *gated = context + count * seen, *added = gated + count * inner;
    norm(residual, nullptr, first.attention_norm, count, hidden, decoder.epsilon, out, threads);
    for (int64_t number = 0; number < decoder.num_blocks; number++) {
        const Block& block = decoder.blocks[number];
        const float* next = number + 1 < decoder.num_blocks ? decoder.blocks[number + 1].attention_norm : decoder.norm;
        Heads<T> heads{(T*)block.keys, (T*)block.values, block.query_norm, block.key_norm,
                       decoder.epsilon, decoder.cosines, decoder.sines};
        at.window = block.window;
        linear(block.qkv, out, count, both, threads);
        attend(both, batch, at, heads, queries, context, threads);
        linear(block.output, context, count, added, threads);
        norm(residual, added, block.feed_forward_norm, count, hidden, decoder.epsilon, out, threads);
        linear(block.gate_up, out, count, both, threads);
        gate(both, count, inner, gated, threads);
        linear(block.down, gated, count, added, threads);
        norm(residual, added, next, count, hidden, decoder.epsilon, out, threads);
    }
}

}  // namespace
