// Kernels of the torch backend for CPUs. Weights and KV are bfloat16 or float, weights in 8 bits, too; everything
// between is float.
//
// The order in which an output is summed depends on its own row alone. So a token's result is bit for bit the same
// whatever else is in the batch, and however a prompt is cut into chunks.

#include "decoder.h"

extern "C" {

// Bytes of a matrix of this kind once it is packed.
int64_t inferflux_packed_bytes(int64_t kind, int64_t outputs, int64_t inputs) {
    int64_t tiles = (outputs + TILE - 1) / TILE;
    if (kind == INT8) return tiles * num_groups(inputs) * sizeof(Group);
    return tiles * TILE * inputs * (kind == FLOAT ? sizeof(float) : sizeof(Bf16));
}

// From rows of outputs, which are bfloat16 for that kind, and float for the others.
void inferflux_pack(int64_t kind, const void* weight, int64_t outputs, int64_t inputs, void* packed) {
    switch (kind) {
        case BFLOAT16: return pack((const Bf16*)weight, outputs, inputs, (Bf16*)packed);
        case FLOAT: return pack((const float*)weight, outputs, inputs, (float*)packed);
        case INT8: return quantize((const float*)weight, outputs, inputs, (Group*)packed);
    }
}

void inferflux_linear(const Matrix* matrix, const float* rows, int64_t num_rows, float* out, int threads) {
    linear(*matrix, rows, num_rows, out, threads);
}

void inferflux_embed(int64_t kind, const int32_t* tokens, int64_t num_tokens, const void* table, int64_t size, float* out) {
    for (int64_t token = 0; token < num_tokens; token++)
        for (int64_t at = 0; at < size; at++) {
            int64_t from = tokens[token] * size + at;
            out[token * size + at] = kind == FLOAT ? ((const float*)table)[from] : widen(((const Bf16*)table)[from]);
        }
}

void inferflux_norm(float* residual, const float* added, const float* weight, int64_t num_rows, int64_t size, float epsilon,
                    float* out, int threads) {
    norm(residual, added, weight, num_rows, size, epsilon, out, threads);
}

void inferflux_gate(const float* rows, int64_t num_rows, int64_t size, float* out, int threads) {
    gate(rows, num_rows, size, out, threads);
}

void inferflux_attend(int64_t kind, const float* qkv, const Batch* batch, const Layout* at, const float* query_norm,
                      const float* key_norm, float epsilon, const float* cosines, const float* sines, float* queries,
                      void* keys, void* values, float* out, int threads) {
    auto run = [&](auto* keys, auto* values) {
        attend(qkv, *batch, *at, Heads<std::remove_pointer_t<decltype(keys)>>{
            keys, values, query_norm, key_norm, epsilon, cosines, sines}, queries, out, threads);
    };
    kind == FLOAT ? run((float*)keys, (float*)values) : run((Bf16*)keys, (Bf16*)values);
}

void inferflux_decode(const Decoder* decoder, const Batch* batch, const Layout* at, float* residual, float* out,
                      int threads) {
    if (decoder->kind == FLOAT)
        decode<float>(*decoder, *batch, *at, residual, out, threads);
    else
        decode<Bf16>(*decoder, *batch, *at, residual, out, threads);
}

// Whether the processor really runs what the compiler made of this: small products against plain loops.
int inferflux_check() {
    constexpr int64_t rows = 14, inputs = 48, outputs = 40;
    std::vector<float> left(rows * inputs), right(outputs * inputs), out(rows * outputs);
    std::vector<Bf16> weight(outputs * inputs);
    for (int64_t at = 0; at < outputs * inputs; at++) store(&weight[at], right[at] = (float)(at % 13) - 6.0f);
    for (int64_t at = 0; at < rows * inputs; at++) left[at] = (float)(at % 7) - 3.0f;
    for (int64_t kind : {BFLOAT16, INT8}) {
        std::vector<char> packed(inferflux_packed_bytes(kind, outputs, inputs));
        const void* from = kind == INT8 ? (const void*)right.data() : (const void*)weight.data();
        inferflux_pack(kind, from, outputs, inputs, packed.data());
        linear({kind, inputs, outputs, packed.data(), nullptr}, left.data(), rows, out.data(), 2);
        for (int64_t row = 0; row < rows; row++)
            for (int64_t output = 0; output < outputs; output++) {
                float expected = 0;
                for (int64_t at = 0; at < inputs; at++)
                    expected += left[row * inputs + at] * right[output * inputs + at];
                if (std::fabs(expected - out[row * outputs + output]) > (kind == INT8 ? 3.0f : 0.0f)) return 0;
            }
    }
    Vector powers = exponential(Vector{} + 1.0f);
    return std::fabs(powers[0] - 2.7182818f) < 1e-5f;
}
}
