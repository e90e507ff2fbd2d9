/** What the lines of a research log hold, and what is accepted when one is read back. */
import { z } from 'zod';
import { SCORES } from '../score.ts';

export const FORMAT = 'moestream-research';
export const VERSION = 1;

const text = z.string();
const finite = z.number();
const ratio = z.strictObject({ ratio: finite, low: finite, high: finite.nullable() });

/** What one run came to. */
const runSchema = z.strictObject({
  score: finite,
  p99Millis: finite.nullable(),
  bytesReadPerToken: finite,
  hitRate: finite,
  stallShare: finite,
  cache: text,
  othersShare: finite,
  drawn: text,
});

const headSchema = z.strictObject({
  kind: z.literal('head'),
  format: z.literal(FORMAT),
  version: z.literal(VERSION),
  name: text,
  /** Digest of what makes results comparable: baseline, run, score, rounds and gates. */
  core: text,
  budgetBytes: z.int().positive(),
  score: z.enum(SCORES),
  /** How far the perplexity may rise, as a share; null for no gate. */
  perplexityRaise: finite.nullable(),
  startedAt: text,
  machine: text,
  moestream: text,
});

const roundSchema = z.strictObject({
  kind: z.literal('round'),
  experiment: text,
  incumbent: text,
  machine: text,
  /** Null while the baseline is measured: there is no incumbent. */
  incumbentRun: runSchema.nullable(),
  experimentRun: runSchema,
});

const perplexitySchema = z.strictObject({
  kind: z.literal('perplexity'),
  experiment: text,
  /** Null for what is no number: a broken model has such a perplexity. */
  perplexity: finite.nullable(),
  error: finite.nullable(),
  digest: text,
});

const resultSchema = z.strictObject({
  kind: z.literal('result'),
  number: z.int().min(0),
  at: text,
  /** Of the plan's repository, or what the experiment names; null where there is none. */
  commit: text.nullable(),
  machine: text,
  experiment: text,
  incumbent: text,
  name: text,
  why: text,
  /** What it changes, and all that it ran with. */
  changes: text,
  model: text,
  settings: z.record(z.string(), z.union([z.string(), z.number(), z.boolean()])),
  environment: z.record(z.string(), z.string()),
  rounds: z.array(z.strictObject({ incumbent: runSchema.nullable(), experiment: runSchema })),
  score: finite.nullable(),
  confidence: ratio.nullable(),
  p99Millis: finite.nullable(),
  p99Ratio: finite.nullable(),
  perplexity: finite.nullable(),
  perplexityError: finite.nullable(),
  cache: text,
  /** Whether it computed the same as the incumbent, to the bit. */
  output: z.enum(['same', 'changed', 'unknown']),
  othersShare: finite.nullable(),
  verdict: z.enum(['baseline', 'keep', 'discard', 'error']),
  reason: text,
  notices: z.array(text),
});

/** One line of a log. */
export const lineSchema = z.discriminatedUnion('kind', [
  headSchema,
  roundSchema,
  perplexitySchema,
  resultSchema,
]);
export type Line = z.infer<typeof lineSchema>;
export type LogHead = z.infer<typeof headSchema>;
export type LogRun = z.infer<typeof runSchema>;
export type LogRound = z.infer<typeof roundSchema>;
export type LogPerplexity = z.infer<typeof perplexitySchema>;
export type LogResult = z.infer<typeof resultSchema>;
