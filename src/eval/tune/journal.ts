/**
 * What a tuning run has measured so far, so that one that was interrupted or killed goes on where it was.
 *
 * One line per finished round, written before the search hears of it. A search asks for the same rounds again when it is
 * given the same outcomes, so playing the journal back takes it to where it was; a round that was cut off is measured
 * again as a whole, because half of one compares a machine of today with one of yesterday. A journal is only help: when it
 * is of another request or damaged, what is unsound of it is dropped with a sentence.
 */
import { mkdirSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { z } from 'zod';
import { cacheFolder } from '../../disk/store.ts';
import { writeError } from '../../pack/disk.ts';
import { takeFileLock } from '../../pack/lock.ts';
import { digestOf } from '../digest.ts';
import { LineWriter, readLines } from '../line-log.ts';
import type { TunableSettings } from '../settings.ts';
import type { Bench, Outcome } from './search.ts';

const FORMAT = 'moestream-tuning';
const VERSION = 1;
const CANDIDATES_MAX = 64;

const seconds = z.number().nonnegative();
const outcomeSchema = z.union([
  z.strictObject({
    seconds,
    score: z.number().positive(),
    p99Millis: z.number().positive(),
    drawn: z.string().max(64),
  }),
  z.strictObject({ seconds, failure: z.string().max(2000) }),
]);
const headSchema = z.strictObject({
  format: z.literal(FORMAT),
  version: z.literal(VERSION),
  request: z.string(),
  /** What every run had: what is free changes, and a search goes on with what it began with. */
  budgetBytes: z.int().positive(),
});
const roundSchema = z.strictObject({
  candidates: z.string().length(16),
  outcomes: z.array(outcomeSchema).max(CANDIDATES_MAX),
});
const lineSchema = z.union([headSchema, roundSchema]);
type Line = z.infer<typeof lineSchema>;

/** The journal of a request; whatever makes outcomes comparable belongs into it. */
export function journalPath(request: unknown): string {
  return join(cacheFolder(), 'tuning', `${digestOf(request)}.jsonl`);
}

/** The budget that the rounds of a journal were measured with; undefined when there is none to go on with. */
export function journalBudget(path: string, request: unknown): number | undefined {
  const [head] = readLines(path, parsedLine)?.entries ?? [];
  const fits = head !== undefined && 'format' in head && head.request === digestOf(request);
  return fits ? head.budgetBytes : undefined;
}

const parsedLine = (value: unknown): Line | undefined => lineSchema.safeParse(value).data;

export interface JournalHead {
  /** Whatever makes outcomes comparable, the budget aside. */
  readonly request: unknown;
  readonly budgetBytes: number;
}

export class JournaledBench implements Bench {
  /** Rounds that were played back instead of measured. */
  readonly playedBack: number;
  private readonly bench: Bench;
  private readonly path: string;
  private readonly writer: LineWriter;
  private readonly release: () => void;
  /** By candidates, in the order in which they were measured. */
  private readonly stored = new Map<string, (readonly Outcome[])[]>();

  /** Throws LOG_REFUSED when another process tunes with the same request. */
  constructor(bench: Bench, path: string, head: JournalHead, notice: (sentence: string) => void) {
    const request = digestOf(head.request);
    const { budgetBytes } = head;
    this.bench = bench;
    this.path = path;
    try {
      mkdirSync(dirname(path), { recursive: true });
    } catch (cause) {
      throw writeError(dirname(path), cause);
    }
    this.release = takeFileLock(`${path}.lock`, { code: 'LOG_REFUSED', doing: 'tuning this model' });
    try {
      const { rounds, soundBytes } = soundRounds(path, request, budgetBytes, notice);
      this.playedBack = rounds.length;
      for (const { candidates, outcomes } of rounds) {
        this.stored.set(candidates, [...(this.stored.get(candidates) ?? []), outcomes]);
      }
      this.writer = new LineWriter(path, soundBytes);
      if (soundBytes === 0)
        this.writer.append(JSON.stringify({ format: FORMAT, version: VERSION, request, budgetBytes }));
    } catch (error) {
      this.release();
      throw error;
    }
  }

  async round(candidates: readonly TunableSettings[]): Promise<readonly Outcome[]> {
    const digest = digestOf(candidates);
    const stored = this.stored.get(digest)?.shift();
    if (stored !== undefined && stored.length === candidates.length) return stored;
    const outcomes = await this.bench.round(candidates);
    this.writer.append(JSON.stringify({ candidates: digest, outcomes }));
    return outcomes;
  }

  /** `finished`: the search is over, and nobody will want to go on with it. */
  close(finished: boolean): void {
    this.writer.close();
    if (finished) rmSync(this.path, { force: true });
    this.release();
  }
}

function soundRounds(
  path: string,
  request: string,
  budgetBytes: number,
  notice: (sentence: string) => void,
): { rounds: z.infer<typeof roundSchema>[]; soundBytes: number } {
  const found = readLines(path, parsedLine);
  if (found === undefined) return { rounds: [], soundBytes: 0 };
  const [head, ...lines] = found.entries;
  if (
    head === undefined ||
    !('format' in head) ||
    head.request !== request ||
    head.budgetBytes !== budgetBytes
  ) {
    if (found.badLine !== undefined || head !== undefined)
      notice(`${path} is no journal of this tuning and begins anew`);
    return { rounds: [], soundBytes: 0 };
  }
  if (found.badLine !== undefined) {
    notice(`${path} is damaged at line ${found.badLine}: what is behind it is measured again`);
  }
  return { rounds: lines.filter((line) => 'candidates' in line), soundBytes: found.soundBytes };
}
