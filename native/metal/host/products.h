// Matrix products on the GPU: which kernel, which grid.
//
// Up to kMatvecInputs rows go through the matrix-vector kernels, which read the weights once per row and up to four
// matrices of one type in one dispatch; more rows go through the matrix-matrix kernels, a tile of 32 at a time. A result
// depends on which of the two computed it in its last bits, so a prompt's chunk does too: see docs/metal.md.
//
// Affine matrices have kernels of the same shape with more buffers, one for each width of code; the group is an argument.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "commands.h"
#include "gpu_memory.h"
#include "gpu_weights.h"
#include "kernels.h"

namespace moestream::metal {

// More rows than this are worth a tile.
inline constexpr std::size_t kMatvecInputs = 4;

// Rows of an input and where their results go: result of input row from[t] is row to[t] of the output.
struct RowMap {
  Place from;
  Place to;
  std::size_t count = 0;
  bool mapped = false;  // false: row t to row t
};

struct Product {
  GpuMatrix matrix;
  Place output;  // (output rows, matrix.rows)
};

// One feed-forward block: the shared expert, or a routed one for the rows that chose it.
struct FeedForward {
  GpuMatrix gate, up, down;
  RowMap in;      // rows of `normed` to rows of `inner`
  RowMap out;     // rows of `inner` to rows of `output`
  Place inner;                  // silu(gate) * up
  Place inner_gate, inner_up;   // both before that, where they take kernels of their own
  Place output;
};

class Products {
 public:
  explicit Products(Kernels& kernels) : kernels_(kernels) {}

  // Makes the pipelines of a type, so that no token waits for one. Throws GpuError when there is no kernel for it.
  void prepare(cpu::TensorType type);

  // All products of one input; they may run at the same time.
  void multiply(Commands& commands, const Place& input, const RowMap& map, std::span<const Product> products) const;
  // The blocks beside each other, with the barriers that each needs inside. `input` is what all of them read.
  void feed_forward(Commands& commands, const Place& input, std::span<const FeedForward> blocks) const;

 private:
  struct TypeKernels {
    const Pipeline* matvec;
    const Pipeline* gated;
    const Pipeline* matmul;
  };

  const TypeKernels& of(cpu::TensorType type) const;
  void matvec(Commands& commands, const Place& input, const RowMap& map, std::span<const Product> same_type) const;
  void matmul(Commands& commands, const Place& input, const RowMap& map, const Product& product) const;
  void gated(Commands& commands, const Place& input, const FeedForward& block) const;
  void swiglu(Commands& commands, const FeedForward& block) const;

  Kernels& kernels_;
  std::unordered_map<std::uint32_t, TypeKernels> types_;
  const Pipeline* swiglu_ = nullptr;
};

// A type as it stands in kernels' names: "q8_0", "affine4".
std::string kernel_name(cpu::TensorType type);

// Binds the three arrays of the one matrix of a dispatch: codes to index 0, scales to `side` and biases behind them, and
// what the kernel has to know of them behind those. Any other matrix is bound as it is.
void bind_matrix(Dispatch& dispatch, const GpuMatrix& matrix, unsigned side);

}  // namespace moestream::metal
