// What the parts of a layer share while one step runs.
#pragma once

#include "batch.h"
#include "matmul.h"
#include "model_config.h"
#include "scratch.h"
#include "sequence_state.h"
#include "thread_pool.h"
#include "vector_kernels.h"

namespace moestream::cpu {

struct Step {
  const ModelConfig& config;
  const Batch& batch;
  const Scratch& scratch;
  const SequenceStore& sequences;
  const Multiplier& multiplier;
  const VectorKernels& kernels;
  ThreadPool& pool;

  const ScratchLayout& plan() const { return scratch.plan; }
  std::size_t row_count() const { return batch.rows.size(); }

  // All rows of the step, each to its own place.
  RowMap every_row() const {
    const auto rows = scratch.all(plan().all_rows).first(row_count());
    return {rows, rows};
  }

  // The first rows of a buffer of (maxRows, cols) as the input of products.
  Activations input(Slice<float> slice, std::size_t cols) const {
    return {scratch.all(slice).first(row_count() * cols), cols};
  }
};

}  // namespace moestream::cpu
