// Reading and checking the caller's row table. It is copied out here, so what another thread writes there later cannot
// change a step under way.
#include "batch.h"

#include <stdexcept>
#include <string>

namespace moestream::cpu {

Batch read_batch(const ModelConfig& config, const SequenceStore& sequences, std::span<const std::int32_t> table,
                 std::size_t row_count) {
  Batch batch;
  std::vector<bool> seen(config.max_sequences, false);
  for (std::size_t r = 0; r < row_count; ++r) {
    const std::int32_t* const words = table.data() + r * kRowWords;
    // A negative word becomes a number beyond every bound.
    const Row row{static_cast<std::size_t>(words[0]), static_cast<std::size_t>(words[1]),
                  static_cast<std::size_t>(words[2])};
    const auto refuse = [&](const std::string& what) {
      throw std::logic_error("row " + std::to_string(r) + what);
    };
    if (row.token >= config.vocabulary) refuse(" has token " + std::to_string(words[0]));
    if (row.sequence >= config.max_sequences) refuse(" has sequence " + std::to_string(words[2]));
    const bool continues = !batch.runs.empty() && batch.runs.back().sequence == row.sequence;
    if (!continues) {
      if (seen[row.sequence]) refuse(": the rows of a sequence must stand together");
      if (!sequences.settled(row.sequence)) refuse(": the sequence's last step did not end; reset it");
      seen[row.sequence] = true;
      batch.runs.push_back({r, 0, row.sequence});
    }
    Run& run = batch.runs.back();
    const std::size_t expected = sequences.token_count(row.sequence) + run.row_count;
    if (row.position != expected || row.position >= config.context_length) {
      refuse(" has position " + std::to_string(words[1]) + ", its sequence goes on at " + std::to_string(expected) +
             " of " + std::to_string(config.context_length));
    }
    ++run.row_count;
    batch.rows.push_back(row);
  }
  return batch;
}

}  // namespace moestream::cpu
