// The rows of the embedding table that a step's tokens name, dequantised to the bits that the CPU gives.
#include <metal_stdlib>

#include "arguments.h"
#include "formats.h"
#include "products.h"

#pragma METAL fp contract(off)

using namespace metal;
using namespace moestream::gpu;

template <class F>
kernel void embed(device const uchar *table [[buffer(0)]], device const RowEntry *rows [[buffer(1)]],
                  device float *stream [[buffer(2)]],  // (rows, hidden)
                  constant EmbedArguments &arguments [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                  uint thread_index [[thread_index_in_threadgroup]]) {
  threadgroup uint book[F::kBookWords];
  fill_book<F>(book, thread_index, kMatvecThreads);

  store_values<F>(row_of<F>(blocks_at(table), rows[group.x].token, arguments.hidden), arguments.hidden, book,
                  stream + ulong(group.x) * arguments.hidden, thread_index);
}

typedef decltype(embed<F32>) embed_entry;
template [[host_name("embed_f32")]] kernel embed_entry embed<F32>;
template [[host_name("embed_f16")]] kernel embed_entry embed<F16>;
template [[host_name("embed_bf16")]] kernel embed_entry embed<BF16>;
template [[host_name("embed_q8_0")]] kernel embed_entry embed<Q8_0>;
template [[host_name("embed_q4_0")]] kernel embed_entry embed<Q4_0>;
template [[host_name("embed_q4_1")]] kernel embed_entry embed<Q4_1>;
template [[host_name("embed_q5_0")]] kernel embed_entry embed<Q5_0>;
template [[host_name("embed_q5_1")]] kernel embed_entry embed<Q5_1>;
template [[host_name("embed_iq4_nl")]] kernel embed_entry embed<IQ4_NL>;
template [[host_name("embed_mxfp4")]] kernel embed_entry embed<MXFP4>;
template [[host_name("embed_q2_k")]] kernel embed_entry embed<Q2_K>;
template [[host_name("embed_q3_k")]] kernel embed_entry embed<Q3_K>;
template [[host_name("embed_q4_k")]] kernel embed_entry embed<Q4_K>;
template [[host_name("embed_q5_k")]] kernel embed_entry embed<Q5_K>;
template [[host_name("embed_q6_k")]] kernel embed_entry embed<Q6_K>;
template [[host_name("embed_iq2_xxs")]] kernel embed_entry embed<IQ2_XXS>;
template [[host_name("embed_iq2_xs")]] kernel embed_entry embed<IQ2_XS>;
template [[host_name("embed_iq2_s")]] kernel embed_entry embed<IQ2_S>;
template [[host_name("embed_iq3_xxs")]] kernel embed_entry embed<IQ3_XXS>;
template [[host_name("embed_iq3_s")]] kernel embed_entry embed<IQ3_S>;
template [[host_name("embed_iq4_xs")]] kernel embed_entry embed<IQ4_XS>;
