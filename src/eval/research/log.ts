/**
 * What a research run has found: results.jsonl, the truth, and results.tsv, the same for people and spreadsheets.
 *
 * Every line is on the disk before the next run begins. A killed run loses the round that it was in and nothing else: a
 * result is written once, when its last round is, and an experiment that has one is never measured again. One process at
 * a time writes; a second one is refused. A log that is damaged in the middle is refused too: results are not guessed.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { invariant, MoestreamError } from '../../errors.ts';
import { writeError } from '../../pack/disk.ts';
import { takeFileLock } from '../../pack/lock.ts';
import { LineWriter, readLines } from '../line-log.ts';
import { replaceFile } from '../profile/store.ts';
import {
  FORMAT,
  type Line,
  type LogHead,
  type LogPerplexity,
  type LogResult,
  type LogRound,
  lineSchema,
  VERSION,
} from './records.ts';
import { TSV_HEADER, tsvLine } from './tsv.ts';

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
