// The bytes of saved_sequence.h.
#include "saved_sequence.h"

#include <bit>
#include <cstring>
#include <string>
#include <type_traits>

#include "fingerprint.h"

namespace moestream::cpu {
namespace {

static_assert(std::endian::native == std::endian::little, "states are written as they lie in memory");

constexpr std::uint64_t kMagic = 0x31'71'65'73'65'6f'6d'7f;  // 7f "moeseq1"
constexpr std::uint32_t kVersion = 1;

struct Header {
  std::uint64_t magic;
  std::uint32_t version;
  KvType kv_type;  // an id of the file format
  std::uint64_t fingerprint;
  std::uint64_t positions;
  std::uint64_t total_bytes;
  std::uint64_t checksum;  // of everything, with this member as 0
};
static_assert(sizeof(Header) == 48 && std::is_trivially_copyable_v<Header>);

std::uint64_t checksum(Header header, std::span<const std::uint8_t> payload) {
  header.checksum = 0;
  std::uint8_t bytes[sizeof(Header)];
  std::memcpy(bytes, &header, sizeof(Header));
  Fingerprint sum;
  sum.add(std::span<const std::uint8_t>(bytes));
  sum.add(payload);
  return sum.value();
}

}  // namespace

std::uint64_t model_fingerprint(const ModelConfig& config, const Weights& weights) {
  Fingerprint sum;
  for (const std::size_t number :
       {config.layers, config.hidden, config.vocabulary, config.heads, config.kv_heads, config.head_dim,
        config.rotary_dims, static_cast<std::size_t>(config.gated_attention), config.delta_key_heads,
        config.delta_value_heads, config.delta_head_dim, config.conv_kernel,
        static_cast<std::size_t>(config.tiled_value_heads), config.experts, config.experts_per_token,
        config.expert_width, config.shared_width, static_cast<std::size_t>(config.precision)}) {
    sum.add(number);
  }
  sum.add(std::bit_cast<std::uint32_t>(config.rms_epsilon));
  sum.add(std::bit_cast<std::uint64_t>(config.rope_theta));
  sum.add(std::span<const std::uint8_t>(config.attention_layers));
  sum.add(weights.fingerprint());
  for (std::size_t layer = 0; layer < config.layers; ++layer) {
    const ExpertTypes& types = weights.layer(layer).expert_types;
    for (const TensorType type : {types.gate, types.up, types.down}) sum.add(static_cast<std::uint64_t>(type));
  }
  return sum.value();
}

std::size_t saved_bytes(const ModelConfig& config, std::size_t positions) {
  if (positions == 0) return sizeof(Header);
  const std::size_t kv = product({config.attention_layer_count(), 2, config.kv_heads, positions, config.kv_row_bytes()});
  return sizeof(Header) + kv + SequenceStore::state_bytes(config) / config.max_sequences;
}

std::size_t save_sequence(const ModelConfig& config, std::uint64_t fingerprint, const SequenceStore& sequences,
                          std::size_t sequence, std::span<std::uint8_t> into) {
  const std::size_t positions = sequences.token_count(sequence);
  const std::size_t total = saved_bytes(config, positions);
  if (into.size() < total) {
    throw std::length_error("a sequence of " + std::to_string(positions) + " positions needs " +
                            std::to_string(total) + " bytes, the array has " + std::to_string(into.size()));
  }
  const std::span<std::uint8_t> payload = into.subspan(sizeof(Header), total - sizeof(Header));
  std::uint8_t* at = payload.data();
  for (const std::span<std::byte> part : sequences.parts(sequence, positions)) {
    std::memcpy(at, part.data(), part.size());
    at += part.size();
  }
  Header header{kMagic, kVersion, config.kv_type, fingerprint, positions, total, 0};
  header.checksum = checksum(header, payload);
  std::memcpy(into.data(), &header, sizeof(Header));
  return total;
}

std::size_t checked_positions(const ModelConfig& config, std::uint64_t fingerprint,
                              std::span<const std::uint8_t> from) {
  Header header;
  if (from.size() < sizeof(Header)) throw StateRefused("the saved state is cut off: it has no whole header");
  std::memcpy(&header, from.data(), sizeof(Header));
  if (header.magic != kMagic) throw StateRefused("the bytes are not a saved state");
  if (header.version != kVersion) {
    throw StateRefused("the saved state has version " + std::to_string(header.version) + ", this is version " +
                       std::to_string(kVersion));
  }
  if (header.total_bytes != from.size()) {
    throw StateRefused("the saved state has " + std::to_string(from.size()) + " bytes, its header says " +
                       std::to_string(header.total_bytes));
  }
  if (header.checksum != checksum(header, from.subspan(sizeof(Header)))) {
    throw StateRefused("the saved state is damaged: its checksum is wrong");
  }
  if (header.fingerprint != fingerprint || header.kv_type != config.kv_type) {
    throw StateRefused("the saved state is of another model, or of other settings of it");
  }
  if (header.positions > config.context_length) {
    throw StateRefused("the saved state has " + std::to_string(header.positions) + " positions, the context holds " +
                       std::to_string(config.context_length));
  }
  if (saved_bytes(config, header.positions) != from.size()) {
    throw StateRefused("the saved state is damaged: its length is not that of its positions");
  }
  return header.positions;
}

void load_sequence(SequenceStore& sequences, std::size_t sequence, std::size_t positions,
                   std::span<const std::uint8_t> from) {
  sequences.reset(sequence);
  const std::uint8_t* at = from.data() + sizeof(Header);
  for (const std::span<std::byte> part : sequences.parts(sequence, positions)) {
    std::memcpy(part.data(), at, part.size());
    at += part.size();
  }
  sequences.extend(sequence, positions);
  sequences.settle(sequence);
}

}  // namespace moestream::cpu
