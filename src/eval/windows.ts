/**
 * Which tokens of a text are scored, and what the model sees before each.
 *
 * Two conventions, whose numbers must not be compared. llama.cpp's: the text is cut into chunks of one context each, every
 * chunk starts from nothing, and only its second half is scored, so that every scored token has at least half a context
 * before it. The reference engine's: one continuous context from the start, and every token but the first is scored; its
 * early tokens, with little before them, dominate short texts.
 */
import { MoestreamError } from '../errors.ts';

/** Plain data: it crosses processes and stands in logs. */
export type ScoringMethod =
  | { readonly context: number; readonly chunks?: number | undefined }
  | { readonly tokens: number };

export const DEFAULT_CONTEXT = 512;
const CONTEXT_LEAST = 4;

export interface Windows {
  /** (windows, windowTokens), back to back. */
  readonly ids: readonly number[];
  readonly windowTokens: number;
  readonly windows: number;
  /** The first row of a window that is scored: it tells of the id behind it. */
  readonly from: number;
}

/** Positions that a method needs. */
export function positionsOf(method: ScoringMethod): number {
  const positions = 'tokens' in method ? method.tokens : method.context;
  const least = 'tokens' in method ? 2 : CONTEXT_LEAST;
  if (Number.isInteger(positions) && positions >= least) return positions;
  throw new MoestreamError(
    'USAGE',
    `${positions} tokens of context, expected an integer of at least ${least}`,
  );
}

/** `firstId` stands at the beginning of every chunk where a model wants one. */
export function windowsOf(
  ids: readonly number[],
  method: ScoringMethod,
  firstId: number | undefined,
): Windows {
  const windowTokens = Math.min(
    positionsOf(method),
    'tokens' in method ? ids.length : Number.POSITIVE_INFINITY,
  );
  if (ids.length < windowTokens || windowTokens < 2) {
    throw new MoestreamError(
      'USAGE',
      `the text has ${ids.length} tokens, a context of ${windowTokens} is to be filled`,
      {
        hint: 'Take a longer text, a smaller --context, or --tokens for one continuous context.',
      },
    );
  }
  if ('tokens' in method) return { ids: ids.slice(0, windowTokens), windowTokens, windows: 1, from: 0 };
  const { chunks } = method;
  if (chunks !== undefined && !(Number.isInteger(chunks) && chunks >= 1)) {
    throw new MoestreamError('USAGE', `${chunks} chunks, expected an integer of at least 1`);
  }
  const windows = Math.min(Math.floor(ids.length / windowTokens), chunks ?? Number.POSITIVE_INFINITY);
  const taken = ids.slice(0, windows * windowTokens);
  if (firstId !== undefined)
    for (let window = 0; window < windows; window++) taken[window * windowTokens] = firstId;
  return { ids: taken, windowTokens, windows, from: Math.floor(windowTokens / 2) };
}

export const rowsPerWindow = ({ windowTokens, from }: Windows): number => windowTokens - 1 - from;

export function describeWindows({ windows, windowTokens, from }: Windows): string {
  if (from === 0) return `one continuous context of ${windowTokens} tokens`;
  return `${windows} ${windows === 1 ? 'chunk' : 'chunks'} of ${windowTokens} tokens, the second half of each scored (llama.cpp's convention)`;
}
