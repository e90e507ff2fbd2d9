/**
 * What travels in the rings: one layout per ring, in 32-bit words.
 *
 *     prompt   main    -> compute   [count, token ids...]
 *     token    sample  -> compute   [token id, or END_OF_TOKENS]
 *     logits   compute -> sample    [row number in the run]; the logits lie in the buffer of the same slot number
 *     route    compute -> predict   [sequence, layer, rows, count, expert ids...]: each expert once, the last row's first
 *     stream   compute -> predict   [sequence, layer, rows, floats...]: residual streams of some rows, before its route
 *     hint     predict -> compute   [layer, expert]: of a layer the likeliest first
 *     trace    compute -> main      [position, layer, rows of the step behind this one, expert ids..., weights as floats...]
 *     text     sample  -> main      [kind, token id or reason, byte count, bytes...]
 *
 * A text longer than one slot takes several, all but the last with kind TEXT_PART.
 */
export const PROMPT_WORDS = 64;
export const PROMPT_TOKENS_MAX = PROMPT_WORDS - 1;
export const PROMPT_SLOTS = 16;

export const TOKEN_WORDS = 1;
export const TOKEN_SLOTS = 4;
export const END_OF_TOKENS = -1;

export const LOGITS_WORDS = 1;
/** Rows of logits that can wait for the sampler. */
export const LOGITS_SLOTS = 4;

/** What a router chose, and the sequence number of the streams that go with it. */
export const ROUTE_SEQUENCE = 0;
export const ROUTE_LAYER = 1;
export const ROUTE_ROWS = 2;
export const ROUTE_COUNT = 3;
export const ROUTE_IDS = 4;
export const ROUTE_SLOTS = 256;

export const STREAM_SEQUENCE = 0;
export const STREAM_LAYER = 1;
export const STREAM_ROWS = 2;
export const STREAM_VALUES = 3;
export const STREAM_SLOTS = 4;

export const HINT_LAYER = 0;
export const HINT_EXPERT = 1;
export const HINT_WORDS = 2;
/** A layer's whole union of a prompt fits. */
export const HINT_SLOTS = 1024;

export const TRACE_POSITION = 0;
export const TRACE_LAYER = 1;
export const TRACE_ROWS_LEFT = 2;
export const TRACE_IDS = 3;
/** More than the rows of a step: the writer gets what it needs for one layer while the next is computed. */
export const TRACE_SLOTS = 8192;
export const traceWords = (expertsPerToken: number): number => TRACE_IDS + 2 * expertsPerToken;

export const TEXT_KIND = 0;
export const TEXT_VALUE = 1;
export const TEXT_LENGTH = 2;
export const TEXT_BYTES = 3;
export const TEXT_WORDS = 64;
export const TEXT_BYTES_MAX = (TEXT_WORDS - TEXT_BYTES) * 4;
export const TEXT_SLOTS = 64;

export const TEXT_PART = 0;
export const TEXT_TOKEN = 1;
export const TEXT_FINISH = 2;

/** Why a generation ended, by the number that travels in a TEXT_FINISH message. */
export const FINISH_REASONS = ['stop', 'length', 'context'] as const;
export type FinishReason = (typeof FINISH_REASONS)[number] | 'aborted';
