// A sequence as bytes: what leaves the backend to come back later, in the same process or another.
//
// A header, then the keys and values of the positions that are taken, then the DeltaNet states, each as it lies in
// memory; the length follows from the number of positions alone, whatever the context's. Bytes that come back may be
// of another model, cut off or damaged: the header names the model and carries a checksum of everything, and a state
// that does not fit is refused before anything is changed. The checksum finds accidents, not malice; a state that was
// forged to pass it gives wrong numbers and touches no other memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "model_config.h"
#include "moestream/coded_error.h"
#include "sequence_state.h"
#include "weights.h"

namespace moestream::cpu {

// Bytes that cannot become a sequence of this backend.
class StateRefused : public CodedError {
 public:
  explicit StateRefused(const std::string& sentence) : CodedError("STATE_REFUSED", sentence) {}
};

// What must be equal for a state to mean the same: the shape, the precision, and the weights by samples of them.
std::uint64_t model_fingerprint(const ModelConfig& config, const Weights& weights);

std::size_t saved_bytes(const ModelConfig& config, std::size_t positions);

// Returns the bytes written. Throws std::length_error when `into` is too short.
std::size_t save_sequence(const ModelConfig& config, std::uint64_t fingerprint, const SequenceStore& sequences,
                          std::size_t sequence, std::span<std::uint8_t> into);

// How many positions the state holds. Throws StateRefused.
std::size_t checked_positions(const ModelConfig& config, std::uint64_t fingerprint, std::span<const std::uint8_t> from);

// `from` has passed `checked_positions`, which returned `positions`.
void load_sequence(SequenceStore& sequences, std::size_t sequence, std::size_t positions,
                   std::span<const std::uint8_t> from);

}  // namespace moestream::cpu
