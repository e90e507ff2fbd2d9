// The rows of one step: each is one token of one sequence.
//
// Rows of a sequence stand together in rising position, so a prefill chunk and several users' decode steps are the same
// thing, and recurrent state is walked run by run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace moestream::cpu {

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

}  // namespace moestream::cpu
