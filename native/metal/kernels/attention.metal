// Attention of a step: norms, rotation and the cache, then softmax over any number of positions with one reading of keys
// and values.
//
// A row's positions are cut into splits by its position alone (attention_split_length), a split into tiles of 32
// positions that the simdgroups of a threadgroup take in turn; each keeps a running maximum, and what they have is
// joined in a fixed order. So a row has the same bits in every step that it may be part of.
#include <metal_stdlib>

#include "arguments.h"
#include "functions.h"

#pragma METAL fp contract(off)

using namespace metal;
using namespace moestream::gpu;

// How keys and values are kept: rows of head_dim numbers.

struct KvF32 {
  static float2 two(device const uchar *row, uint i) { return *(device const float2 *)(row + 4 * i); }
  static float4 four(device const uchar *row, uint i) { return *(device const float4 *)(row + 4 * i); }
  static void store(device uchar *row, uint i, float value) { ((device float *)row)[i] = value; }
};

struct KvF16 {
  static float2 two(device const uchar *row, uint i) { return float2(*(device const half2 *)(row + 2 * i)); }
  static float4 four(device const uchar *row, uint i) { return float4(*(device const half4 *)(row + 2 * i)); }
  static void store(device uchar *row, uint i, float value) { ((device half *)row)[i] = half(value); }
};

// Blocks of 32: d f16 | q i8[32]. A simdgroup stores a whole block, a value per lane.
struct KvQ8 {
  static float2 two(device const uchar *row, uint i) {
    device const uchar *block = row + 34 * (i / 32);
    device const char *codes = (device const char *)(block + 2 + i % 32);
    return float2(float(int(codes[0])), float(int(codes[1]))) * float(*(device const half *)block);
  }
  static float4 four(device const uchar *row, uint i) {
    device const uchar *block = row + 34 * (i / 32);
    device const char *codes = (device const char *)(block + 2 + i % 32);
    return float4(float(int(codes[0])), float(int(codes[1])), float(int(codes[2])), float(int(codes[3]))) *
           float(*(device const half *)block);
  }
  static void store(device uchar *row, uint i, float value) {
    device uchar *block = row + 34 * (i / 32);
    // Compared as integers, so that a NaN is larger than everything.
    const uint largest = simd_max(as_type<uint>(value) & 0x7fffffffu);
    const bool finite = largest < 0x7f800000u;
    const float step = as_type<float>(largest) / 127.0f;
    const half scale = finite ? half(step) : as_type<half>(ushort(0x7e00));
    const bool zero = !finite || as_type<ushort>(scale) == 0;
    const float product = zero ? 0.0f : value * (1.0f / step);
    if (i % 32 == 0) *(device half *)block = scale;
    ((device char *)(block + 2))[i % 32] = char(int(rint(product)));
  }
};

static inline ulong cache_offset(constant AttentionArguments &arguments, uint sequence, uint kv_head) {
  return sequence * arguments.sequence_stride + kv_head * arguments.head_stride;
}

// One simdgroup per query head, then per key head: norm and rotation in place for queries, into the cache for keys.
template <class Kv>
kernel void attention_prepare(device float *query [[buffer(0)]],            // (rows, heads * query_head_width)
                              device const float *key [[buffer(1)]],        // (rows, kv_heads * head_dim)
                              device const float *value [[buffer(2)]],      // (rows, kv_heads * head_dim)
                              device const float *query_norm [[buffer(3)]], // (head_dim)
                              device const float *key_norm [[buffer(4)]],   // (head_dim)
                              device const float *rotations [[buffer(5)]],  // (rows, rotary_dims)
                              device const RowEntry *rows [[buffer(6)]], device uchar *keys [[buffer(7)]],
                              device uchar *values [[buffer(8)]], constant AttentionArguments &arguments [[buffer(9)]],
                              uint3 group [[threadgroup_position_in_grid]],
                              uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float head[kMaxHeadDim];
  const uint dim = arguments.head_dim;
  const uint row = group.y;
  const bool is_query = group.x < arguments.heads;
  const uint kv_head = is_query ? 0 : group.x - arguments.heads;
  device float *query_head =
      query + (ulong(row) * arguments.heads + (is_query ? group.x : 0)) * arguments.query_head_width;
  const ulong kv_at = (ulong(row) * arguments.kv_heads + kv_head) * dim;
  device const float *norm = is_query ? query_norm : key_norm;

  float squares = 0.0f;
  for (uint i = lane; i < dim; i += kSimdWidth) {
    const float x = is_query ? query_head[i] : key[kv_at + i];
    head[i] = x;
    squares += x * x;
  }
  const float mean_square = simd_sum(squares) / float(dim);
  const float scale = 1.0f / precise::sqrt(mean_square + arguments.epsilon);
  for (uint i = lane; i < dim; i += kSimdWidth) head[i] = head[i] * scale * norm[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const uint half_dims = arguments.rotary_dims / 2;
  device const float *rotation = rotations + ulong(row) * arguments.rotary_dims;
  const ulong at = cache_offset(arguments, rows[row].sequence, kv_head) + ulong(rows[row].position) * arguments.row_bytes;
  for (uint i = lane; i < dim; i += kSimdWidth) {
    float x = head[i];
    if (i < half_dims) {
      x = head[i] * rotation[i] - head[i + half_dims] * rotation[half_dims + i];
    } else if (i < arguments.rotary_dims) {
      x = head[i] * rotation[i - half_dims] + head[i - half_dims] * rotation[i];
    }
    if (is_query) {
      query_head[i] = x;
    } else {
      Kv::store(keys + at, i, x);
      Kv::store(values + at, i, value[kv_at + i]);
    }
  }
}

// Lanes that differ in `kDistance` share 2 * kDistance parts of sums: each keeps half of them and adds the other's.
template <ushort kDistance>
static inline void exchange(thread float *parts, uint lane) {
  const bool upper = (lane & kDistance) != 0;
#pragma unroll
  for (uint i = 0; i < kDistance; ++i) {
    // By value: a choice between two places would keep the array in memory.
    const float low = parts[i];
    const float high = parts[i + kDistance];
    parts[i] = (upper ? high : low) + simd_shuffle_xor(upper ? low : high, kDistance);
  }
}

constant constexpr uint kDimsPerLane = kMaxHeadDim / kSimdWidth;
constant constexpr uint kPairsPerLane = kDimsPerLane / 2;

constant constexpr uint kSimdgroups = kAttentionThreads / kSimdWidth;

// One threadgroup per query head, row and split.
template <class Kv>
kernel void attention(device const float *query [[buffer(0)]],  // (step rows, heads * query_head_width)
                      device const uchar *keys [[buffer(1)]], device const uchar *values [[buffer(2)]],
                      device const RowEntry *rows [[buffer(3)]],
                      device float *partial [[buffer(4)]],  // (rows, heads, kMaxAttentionSplits, head_dim + 2)
                      constant AttentionArguments &arguments [[buffer(5)]],
                      uint3 group [[threadgroup_position_in_grid]],
                      uint thread_index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                      uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float maxima[kSimdgroups];
  threadgroup float sums[kSimdgroups];
  threadgroup float outputs[kSimdgroups * kMaxHeadDim];
  threadgroup float weights[kSimdgroups * kSimdWidth];

  const uint dim = arguments.head_dim;
  const uint row = arguments.first_row + group.y;
  const uint positions = rows[row].position + 1;
  const uint length = attention_split_length(positions);
  const uint begin = group.z * length;
  if (begin >= positions) return;  // the whole threadgroup: this row has fewer splits than another
  const uint end = min(begin + length, positions);
  const uint kv_head = group.x / (arguments.heads / arguments.kv_heads);
  const ulong cache = cache_offset(arguments, rows[row].sequence, kv_head);
  device const float *q = query + (ulong(row) * arguments.heads + group.x) * arguments.query_head_width;

  // Eight lanes share a position's key: lane l has the fours l, l + 8, and so on. Beyond the head's end lanes read its
  // last numbers and count them for nothing: a load in a branch would be waited for before the next one begins.
  float4 query_fours[kDimsPerLane];
#pragma unroll
  for (uint j = 0; j < kDimsPerLane; ++j) {
    const uint at = 4 * (lane % 8 + 8 * j);
    query_fours[j] = at < dim ? *(device const float4 *)(q + at) : float4(0.0f);
  }
  float2 output[kPairsPerLane];
#pragma unroll
  for (uint j = 0; j < kPairsPerLane; ++j) output[j] = float2(0.0f);
  float maximum = -INFINITY;
  float sum = 0.0f;
  for (uint tile = begin + kSimdWidth * simdgroup; tile < end; tile += kAttentionThreads) {
    float products[8];
#pragma unroll
    for (uint step = 0; step < 8; ++step) {
      const uint position = min(tile + 4 * step + lane / 8, end - 1);
      device const uchar *key = keys + cache + ulong(position) * arguments.row_bytes;
      float4 four = float4(0.0f);
#pragma unroll
      for (uint j = 0; j < kDimsPerLane; ++j) {
        four = fma(Kv::four(key, min(4 * (lane % 8 + 8 * j), dim - 4)), query_fours[j], four);
      }
      products[step] = (four[0] + four[1]) + (four[2] + four[3]);
    }
    // Eight lanes with eight parts of sums each become eight lanes with one sum each: lane i of them that of step i.
    exchange<4>(products, lane);
    exchange<2>(products, lane);
    exchange<1>(products, lane);
    const uint offset = 4 * (lane % 8) + lane / 8;
    const bool inside = tile + offset < end;
    const float score = inside ? products[0] * arguments.scale : -INFINITY;
    const float larger = max(maximum, simd_max(score));
    const float weight = inside ? exp_float(score - larger) : 0.0f;
    const float shrink = maximum == -INFINITY ? 0.0f : exp_float(maximum - larger);
    sum = sum * shrink + simd_sum(weight);
    maximum = larger;
#pragma unroll
    for (uint j = 0; j < kPairsPerLane; ++j) output[j] *= shrink;
    weights[simdgroup * kSimdWidth + offset] = weight;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    // Positions beyond the end count for nothing, so that every tile is the same straight run of loads.
#pragma unroll 8
    for (uint p = 0; p < kSimdWidth; ++p) {
      const float of_position = weights[simdgroup * kSimdWidth + p];
      device const uchar *value = values + cache + ulong(min(tile + p, end - 1)) * arguments.row_bytes;
#pragma unroll
      for (uint j = 0; j < kPairsPerLane; ++j) {
        output[j] = fma(float2(of_position), Kv::two(value, min(2 * (lane + kSimdWidth * j), dim - 2)), output[j]);
      }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);  // before the next tile's weights
  }

  if (lane == 0) {
    maxima[simdgroup] = maximum;
    sums[simdgroup] = sum;
  }
#pragma unroll
  for (uint j = 0; j < kPairsPerLane; ++j) {
    *(threadgroup float2 *)(outputs + simdgroup * kMaxHeadDim + 2 * (lane + kSimdWidth * j)) = output[j];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float largest = maxima[0];  // the first simdgroup has a tile always
#pragma unroll
  for (uint s = 1; s < kSimdgroups; ++s) largest = max(largest, maxima[s]);
  float factors[kSimdgroups];
  float total = 0.0f;
#pragma unroll
  for (uint s = 0; s < kSimdgroups; ++s) {
    factors[s] = sums[s] == 0.0f ? 0.0f : exp_float(maxima[s] - largest);
    total = fma(sums[s], factors[s], total);
  }
  device float *out =
      partial + ((ulong(group.y) * arguments.heads + group.x) * kMaxAttentionSplits + group.z) * (dim + 2);
  if (thread_index == 0) {
    out[0] = largest;
    out[1] = total;
  }
  for (uint i = thread_index; i < dim; i += kAttentionThreads) {
    float joined = 0.0f;
#pragma unroll
    for (uint s = 0; s < kSimdgroups; ++s) joined = fma(outputs[s * kMaxHeadDim + i], factors[s], joined);
    out[2 + i] = joined;
  }
}

// Joins the splits of a row's head and passes the result through its gate.
kernel void attention_merge(device const float *partial [[buffer(0)]], device const float *query [[buffer(1)]],
                            device const RowEntry *rows [[buffer(2)]],
                            device float *attended [[buffer(3)]],  // (step rows, heads * head_dim)
                            constant AttentionArguments &arguments [[buffer(4)]],
                            uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
  const uint dim = arguments.head_dim;
  const uint row = arguments.first_row + group.y;
  const uint splits = attention_split_count(rows[row].position + 1);
  device const float *from = partial + (ulong(group.y) * arguments.heads + group.x) * kMaxAttentionSplits * (dim + 2);
  const ulong head = ulong(row) * arguments.heads + group.x;
  float largest = -INFINITY;
  for (uint s = 0; s < splits; ++s) largest = max(largest, from[s * (dim + 2)]);
  float sum = 0.0f;
  for (uint s = 0; s < splits; ++s) {
    sum = fma(from[s * (dim + 2) + 1], exp_float(from[s * (dim + 2)] - largest), sum);
  }
  for (uint i = lane; i < dim; i += kSimdWidth) {
    float joined = 0.0f;
    for (uint s = 0; s < splits; ++s) {
      joined = fma(from[s * (dim + 2) + 2 + i], exp_float(from[s * (dim + 2)] - largest), joined);
    }
    joined = joined / sum;
    if (arguments.gated != 0) joined = joined * sigmoid(query[head * arguments.query_head_width + dim + i]);
    attended[head * dim + i] = joined;
  }
}

typedef decltype(attention_prepare<KvF32>) attention_prepare_entry;
template [[host_name("attention_prepare_f32")]] kernel attention_prepare_entry attention_prepare<KvF32>;
template [[host_name("attention_prepare_f16")]] kernel attention_prepare_entry attention_prepare<KvF16>;
template [[host_name("attention_prepare_q8_0")]] kernel attention_prepare_entry attention_prepare<KvQ8>;

typedef decltype(attention<KvF32>) attention_entry;
template [[host_name("attention_f32")]] kernel attention_entry attention<KvF32>;
template [[host_name("attention_f16")]] kernel attention_entry attention<KvF16>;
template [[host_name("attention_q8_0")]] kernel attention_entry attention<KvQ8>;
