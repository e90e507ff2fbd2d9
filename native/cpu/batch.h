// The rows of one step: each is one token of one sequence.
//
// Rows of a sequence stand together in rising position, so a prefill chunk and several users' decode steps are the same
// thing, and recurrent state is walked run by run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "model_config.h"
#include "sequence_state.h"

namespace moestream::cpu {

// Words of a row in the caller's table: token, position, sequence, 0.
inline constexpr std::size_t kRowWords = 4;

struct Row {
  std::size_t token;
  std::size_t position;
  std::size_t sequence;
};

// Neighbouring rows of one sequence.
struct Run {
  std::size_t first_row;
  std::size_t row_count;
  std::size_t sequence;
};

struct Batch {
  std::vector<Row> rows;
  std::vector<Run> runs;
};

// The first rows of the caller's table, each checked to continue its sequence. Throws std::logic_error.
Batch read_batch(const ModelConfig& config, const SequenceStore& sequences, std::span<const std::int32_t> table,
                 std::size_t row_count);

}  // namespace moestream::cpu
