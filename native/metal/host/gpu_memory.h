// The buffers that a step computes in, in memory that CPU and GPU share.
//
// One list of sizes, computed from the configuration, is what `footprint` counts and what is allocated. Every (row,
// choice) has an output of its own, as in the CPU backend, and every part of a layer a buffer of its own: two kernels that
// touch the same buffer need a barrier, two that touch none in common may run at the same time.
#pragma once

#include <cstddef>
#include <vector>

#include "../../cpu/model_config.h"
#include "mapped_memory.h"
#include "metal.h"

namespace moestream::metal {

using cpu::ModelConfig;

// Rows of the maps at which an expert's part may start: offsets of bound buffers are multiples of 16 bytes.
inline constexpr std::size_t kMapAlign = 4;

// Bytes of each buffer; 0 for what the model has no use for.
struct GpuMemorySizes {
  explicit GpuMemorySizes(const ModelConfig& config);
  std::size_t total() const;

  // Rows that one dispatch of attention takes: its partial results are large.
  std::size_t attention_rows = 0;

  std::size_t rows, rotations, identity;
  std::size_t stream, normed, mixed;
  std::size_t query, key, value, partial, attended;
  std::size_t conv, delta_gate, beta, alpha, delta_output;
  std::size_t scores, route_ids, route_weights, map_from, map_to;
  std::size_t inner, inner_gate, inner_up, routed;
  std::size_t shared_inner, shared_inner_gate, shared_inner_up, shared_output, shared_score;
};

struct GpuMemory {
  GpuMemory(const Device& device, const ModelConfig& config);

  const GpuMemorySizes sizes;
  const Buffer rows;             // (maxRows) RowEntry
  const Buffer rotations;        // (maxRows, rotaryDims)
  const Buffer identity;         // (maxRows): 0, 1, 2, ...
  const Buffer stream;           // (maxRows, hidden)
  const Buffer normed;           // (maxRows, hidden)
  const Buffer mixed;            // (maxRows, hidden)
  const Buffer query;            // (maxRows, queryWidth)
  const Buffer key;              // (maxRows, kvWidth)
  const Buffer value;            // (maxRows, kvWidth)
  const Buffer partial;          // (attention_rows, heads, kMaxAttentionSplits, headDim + 2)
  const Buffer attended;         // (maxRows, attendedWidth)
  const Buffer conv;             // (maxRows, convChannels)
  const Buffer delta_gate;       // (maxRows, deltaValueWidth)
  const Buffer beta;             // (maxRows, deltaValueHeads), or with alpha in it (maxRows, 2 * deltaValueHeads)
  const Buffer alpha;            // (maxRows, deltaValueHeads)
  const Buffer delta_output;     // (maxRows, deltaValueWidth)
  const Buffer scores;           // (maxRows, experts)
  const Buffer route_ids;        // (maxRows, choices)
  const Buffer route_weights;    // (maxRows, choices)
  const Buffer map_from;         // rows, those of one expert together
  const Buffer map_to;           // their (row, choice)
  const Buffer inner;            // (row of the maps, expertWidth)
  const Buffer inner_gate;       // the same, before they are multiplied
  const Buffer inner_up;
  const Buffer routed;           // (maxRows, choices, hidden)
  const Buffer shared_inner;     // (maxRows, sharedWidth)
  const Buffer shared_inner_gate;
  const Buffer shared_inner_up;
  const Buffer shared_output;    // (maxRows, hidden)
  const Buffer shared_score;     // (maxRows)
};

inline Place at(const Buffer& buffer, std::size_t offset = 0) { return {&buffer, offset}; }

}  // namespace moestream::metal
