// What the host hands to every kernel, written once for both sides.
//
// The structs are copied into a command buffer byte by byte, so their sizes and offsets are part of the contract: members
// are ordered by size, padding is spelled out, and every struct's size is asserted on both sides.
#pragma once

#if !defined(__METAL_VERSION__)
#include <cstdint>
#endif

namespace moestream {
namespace gpu {

#if !defined(__METAL_VERSION__)
using uint = std::uint32_t;
using ulong = std::uint64_t;
#endif

enum : uint {
  kSimdWidth = 32,

  // A threadgroup of the matrix-vector kernels: four simdgroups of two rows each.
  kMatvecThreads = 128,
  kMatvecRows = 8,
  // Gate and up together are two rows of weights per row of output.
  kGatedRows = 4,
  kMaxSegments = 4,

  // A tile of the matrix-matrix kernels, and the threads that compute it.
  kMatmulThreads = 128,
  kMatmulRows = 32,    // weight rows
  kMatmulInputs = 32,  // input rows

  // The arrays of an affine matrix are bound at a multiple of this.
  kAffineAlign = 4,

  kRowThreads = 256,  // norm, combine: one threadgroup per row
  kElementThreads = 256,

  kRouterThreads = 128,  // scores: four experts per threadgroup
  kRouterExperts = 4,
  kMaxExperts = 1024,
  kMaxChoices = 32,

  kAttentionThreads = 128,
  kMaxHeadDim = 256,
  // A split of attention is kAttentionChunk positions until kMaxAttentionSplits of them no longer reach.
  kAttentionChunk = 128,
  kMaxAttentionSplits = 16,

  kDeltaMaxDim = 128,
  kDeltaParts = 4,    // threads that share one column of a state
  kDeltaChunk = 16,   // rows that the chunked form takes together

  kMaxConvKernel = 8,
};

// Positions of one split of a row that attends to `positions`. A function of the position alone: the bits of a row do not
// depend on what else is in its step.
inline uint attention_split_length(uint positions) {
  const uint even = (positions + kMaxAttentionSplits - 1) / kMaxAttentionSplits;
  const uint whole = (even + kSimdWidth - 1) / kSimdWidth * kSimdWidth;
  return whole < kAttentionChunk ? uint(kAttentionChunk) : whole;
}

inline uint attention_split_count(uint positions) {
  const uint length = attention_split_length(positions);
  return (positions + length - 1) / length;
}

// A step's row, as the engine writes it.
struct RowEntry {
  uint token;
  uint position;
  uint sequence;
  uint unused;
};

// Up to four matrices of one type and one input: y[s][to][r] = row r of w[s] . x[from].
struct MatvecArguments {
  uint cols;
  uint segments;
  uint mapped;  // 1: `from` and `to` are read; 0: row t to row t
  uint unused;
  uint rows[kMaxSegments];         // of each matrix
  uint first_group[kMaxSegments];  // threadgroups before the matrix: each takes ceil(rows / kMatvecRows)
};

struct GatedArguments {
  uint cols;
  uint rows;
  uint mapped;
  uint unused;
};

struct MatmulArguments {
  uint cols;
  uint rows;
  uint inputs;
  uint mapped;
};

// Beside the arguments of a product with affine matrices.
struct AffineArguments {
  uint group_shift;          // a group has 1 << group_shift columns
  uint unused[3];
  uint skews[kMaxSegments];  // of each matrix, the bytes before its codes, scales and biases: c | s << 8 | b << 16
};

struct EmbedArguments {
  uint hidden;
  uint vocabulary;
};

struct NormArguments {
  uint count;
  uint add;  // 1: the stream takes the addend first
  float epsilon;
  uint unused;
};

struct ElementArguments {
  uint count;
  uint unused[3];
};

struct CombineArguments {
  uint hidden;
  uint choices;
  uint shared;  // 1: there is a shared expert
  uint norm;    // 1: the next norm is written too
  float epsilon;
  uint unused[3];
};

struct RouterArguments {
  uint experts;
  uint cols;
  uint choices;
  uint unused;
};

struct AttentionArguments {
  ulong sequence_stride;  // bytes from a sequence's keys to the next sequence's
  ulong head_stride;      // bytes from a head's keys to the next head's
  uint row_bytes;         // of one position of one head
  uint heads;
  uint kv_heads;
  uint head_dim;
  uint query_head_width;  // head_dim, or twice that when a gate stands behind each query
  uint rotary_dims;
  uint gated;
  uint first_row;  // the first row of the step that this dispatch computes; `partial` starts with it
  float epsilon;
  float scale;
};

struct ConvolveArguments {
  uint channels;
  uint taps;  // the kernel's width: one more than the rows of history
  uint first_row;
  uint rows;
};

struct DeltaArguments {
  uint key_heads;
  uint value_heads;
  uint head_dim;
  uint channels;   // a row of the convolution: queries, keys, values
  uint tiled;      // 1: value head h uses key head h % key_heads; 0: h / (value_heads / key_heads)
  uint joined;     // 1: beta and alpha stand in one row, grouped by key head
  uint first_row;
  uint rows;
  float epsilon;
  uint unused;
};

static_assert(sizeof(RowEntry) == 16, "shared with the host");
static_assert(sizeof(MatvecArguments) == 48, "shared with the host");
static_assert(sizeof(GatedArguments) == 16, "shared with the host");
static_assert(sizeof(MatmulArguments) == 16, "shared with the host");
static_assert(sizeof(AffineArguments) == 32, "shared with the host");
static_assert(sizeof(EmbedArguments) == 8, "shared with the host");
static_assert(sizeof(NormArguments) == 16, "shared with the host");
static_assert(sizeof(ElementArguments) == 16, "shared with the host");
static_assert(sizeof(CombineArguments) == 32, "shared with the host");
static_assert(sizeof(RouterArguments) == 16, "shared with the host");
static_assert(sizeof(AttentionArguments) == 56, "shared with the host");
static_assert(sizeof(ConvolveArguments) == 16, "shared with the host");
static_assert(sizeof(DeltaArguments) == 40, "shared with the host");

}  // namespace gpu
}  // namespace moestream
