/**
 * What a research run has found: results.jsonl, the truth, and results.tsv, the same for people and spreadsheets.
 *
 * Every line is on the disk before the next run begins. A killed run loses the round that it was in and nothing else: a
 * result is written once, when its last round is, and an experiment that has one is never measured again. One process at
 * a time writes; a second one is refused. A log that is damaged in the middle is refused too: results are not guessed.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { invariant, MoestreamError } from '../../errors.ts';
import { writeError } from '../../pack/disk.ts';
import { takeFileLock } from '../../pack/lock.ts';
import { LineWriter, readLines } from '../line-log.ts';
import { replaceFile } from '../profile/store.ts';
import { SCORES } from '../score.ts';
import { TSV_HEADER, tsvLine } from './tsv.ts';

const FORMAT = 'moestream-research';
const VERSION = 1;

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

const lineSchema = z.discriminatedUnion('kind', [headSchema, roundSchema, perplexitySchema, resultSchema]);
type Line = z.infer<typeof lineSchema>;
export type LogHead = z.infer<typeof headSchema>;
export type LogRun = z.infer<typeof runSchema>;
export type LogRound = z.infer<typeof roundSchema>;
export type LogPerplexity = z.infer<typeof perplexitySchema>;
export type LogResult = z.infer<typeof resultSchema>;

export interface LogContent {
  readonly head: LogHead | undefined;
  readonly results: readonly LogResult[];
  readonly rounds: readonly LogRound[];
  readonly perplexities: readonly LogPerplexity[];
  readonly soundBytes: number;
}

const JSONL_NAME = 'results.jsonl';
const TSV_NAME = 'results.tsv';

export const jsonlPath = (folder: string): string => join(folder, JSONL_NAME);

/** Reads a log; empty when there is none. Throws LOG_REFUSED when a line before the last is damaged. */
export function readLog(folder: string): LogContent {
  const path = jsonlPath(folder);
  const found = readLines(path, (value): Line | undefined => lineSchema.safeParse(value).data);
  if (found?.badLine !== undefined) {
    throw new MoestreamError('LOG_REFUSED', `${path} is damaged at line ${found.badLine}`, {
      hint: 'Repair that line, or move the folder away and begin anew.',
    });
  }
  const lines = found?.entries ?? [];
  const [head] = lines;
  if (head !== undefined && head.kind !== 'head') {
    throw new MoestreamError('LOG_REFUSED', `${path} does not begin with its head`);
  }
  const of = <Kind extends Line['kind']>(kind: Kind) =>
    lines.filter((each): each is Extract<Line, { kind: Kind }> => each.kind === kind);
  return {
    head,
    results: of('result'),
    rounds: of('round'),
    perplexities: of('perplexity'),
    soundBytes: found?.soundBytes ?? 0,
  };
}

export class ResearchLog {
  /** What was there when it was opened. */
  readonly content: LogContent;
  private readonly jsonl: LineWriter;
  private readonly tsv: LineWriter;
  private readonly release: () => void;

  /** Makes the folder, takes the lock, and begins a log or goes on with one. */
  static open(folder: string): ResearchLog {
    try {
      mkdirSync(folder, { recursive: true });
    } catch (cause) {
      throw writeError(folder, cause);
    }
    const release = takeFileLock(join(folder, 'research.lock'), {
      code: 'LOG_REFUSED',
      doing: 'at work on these results',
    });
    try {
      return new ResearchLog(folder, release);
    } catch (error) {
      release();
      throw error;
    }
  }

  private constructor(folder: string, release: () => void) {
    this.release = release;
    this.content = readLog(folder);
    this.jsonl = new LineWriter(jsonlPath(folder), this.content.soundBytes);
    // The table follows the log: a kill between the two lines of one result, or an editor, may have parted them.
    const tsv = [TSV_HEADER, ...this.content.results.map(tsvLine)].map((line) => `${line}\n`).join('');
    const path = join(folder, TSV_NAME);
    replaceFile(path, tsv);
    this.tsv = new LineWriter(path, Buffer.byteLength(tsv));
  }

  begin(head: Omit<LogHead, 'kind' | 'format' | 'version'>): void {
    this.append({ kind: 'head', format: FORMAT, version: VERSION, ...head });
  }

  append(line: Line): void {
    const json = JSON.stringify(line);
    // What could not be read again must not be written.
    invariant(
      lineSchema.safeParse(JSON.parse(json)).success,
      `a line of the log fits its schema: ${json.slice(0, 200)}`,
    );
    this.jsonl.append(json);
    if (line.kind === 'result') this.tsv.append(tsvLine(line));
  }

  close(): void {
    this.jsonl.close();
    this.tsv.close();
    this.release();
  }
}
