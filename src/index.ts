/** The public interface of moestream. */
export { Engine, type LogitsOptions, open, type ReplayOptions, type RowListener } from './engine/engine.ts';
export type { Generation, GenerationResult, GenerationStats, Piece } from './engine/generation.ts';
export type {
  ChatMessage,
  GenerateOptions,
  IoMode,
  KvType,
  OpenOptions,
  Prompt,
} from './engine/options.ts';
export { ERROR_CODES, type ErrorCode, MoestreamError } from './errors.ts';
export type { MemoryPlan } from './pipeline/plan.ts';
export { TRACE_KINDS, type TraceKind } from './pipeline/trace.ts';
export type { RecordedTrace, TracedThread, TraceLog } from './pipeline/trace-log.ts';
export type { ExpertCounters } from './workers/expert-counters.ts';
export { PREDICTOR_NAMES, type PredictorName } from './workers/predictors/predictor.ts';
export type { ControllerDecision, ControllerReport } from './workers/prefetch-controller.ts';
