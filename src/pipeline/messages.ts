/**
 * What travels in the rings: one layout per ring, in 32-bit words.
 *
 *     prompt   main    -> compute   [count, token ids...]
 *     token    sample  -> compute   [token id, or END_OF_TOKENS]
 *     logits   compute -> sample    [row number in the run]; the logits lie in the buffer of the same slot number
 *     route    compute -> predict   [position, layer, count, expert ids...]
 *     hint     predict -> compute   [layer, expert]
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

export const ROUTE_POSITION = 0;
export const ROUTE_LAYER = 1;
export const ROUTE_COUNT = 2;
export const ROUTE_IDS = 3;
export const ROUTE_SLOTS = 256;

export const HINT_LAYER = 0;
export const HINT_EXPERT = 1;
export const HINT_WORDS = 2;
export const HINT_SLOTS = 256;

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
