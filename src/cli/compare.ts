/** `moestream compare`: several models, quantisations or settings in one table of quality, size and speed. */
import type { Command } from 'commander';
import { MoestreamError } from '../errors.ts';
import { type CompareRow, compare as measure } from '../eval/compare.ts';
import type { Divergence } from '../eval/kl.ts';
import { DEFAULT_CONTEXT } from '../eval/windows.ts';
import { formatBytes } from '../pipeline/memory.ts';
import { integer } from './arguments.ts';
import type { Interruption } from './interrupt.ts';
import { type Column, markdownTable } from './markdown-table.ts';
import { print } from './output.ts';
import { scoringOf } from './perplexity.ts';
import { addSettingLists, type SettingListFlags, settingsOf } from './setting-lists.ts';
import { lookFirst, type SourceFlags } from './text-and-machine.ts';
import { tokenMeter } from './token-progress.ts';

interface CompareFlags extends SourceFlags, SettingListFlags {
  readonly chunks?: number;
  readonly chunkTokens?: number;
  readonly tokens?: number;
  readonly decode?: boolean;
  readonly nPrompt: number;
  readonly nGen: number;
  readonly repetitions: number;
  readonly json?: boolean;
}

export function addCompare(program: Command, interruption: () => Interruption): void {
  const command = program
    .command('compare')
    .description(
      'perplexity, KL divergence from the first, size and speed of models or settings in one table',
    )
    .argument(
      '<models...>',
      'GGUF files, any part of a split set, or packed folders; the first is the baseline',
    )
    .option('-f, --file <path>', 'the text, - for standard input')
    .option('--ids <path>', 'a file with token ids, - for standard input')
    .option('-c, --context <n>', `tokens of a chunk (default ${DEFAULT_CONTEXT})`, integer)
    .option('--chunks <n>', 'chunks to score at most (default: all that the text fills)', integer)
    .option('--tokens <n>', 'score the first n tokens in one continuous context instead of chunks', integer)
    .option('--decode', 'compute token by token, as an answer is, instead of in chunks, as a prompt is')
    .option('-p, --n-prompt <n>', 'prompt tokens of a speed run', integer, 64)
    .option('-n, --n-gen <n>', 'answer tokens of a speed run', integer, 64)
    .option('-r, --repetitions <n>', 'speed runs of each; 0 measures no speed', integer, 4)
    .option('--json', 'as JSON');
  addSettingLists(command).action((models: readonly string[], flags: CompareFlags & { context?: number }) =>
    compare(models, flags, interruption()),
  );
}

async function compare(
  models: readonly string[],
  flags: CompareFlags & { readonly context?: number },
  interruption: Interruption,
): Promise<void> {
  const { nPrompt, nGen, repetitions, decode } = flags;
  if (nPrompt < 1 || nGen < 1 || repetitions < 0) {
    throw new MoestreamError(
      'USAGE',
      'a speed run has at least one prompt token (-p) and one answer token (-n)',
    );
  }
  const { source, method } = scoringOf(flags, flags.context);
  const variants = settingsOf(models, flags);
  const meter = tokenMeter(flags.quiet === true);
  const buffered = variants.some(({ options }) => options.io === 'buffered');
  const look = await lookFirst(models, buffered, meter.onNotice);
  const told = new Set<string>();
  let rows: readonly CompareRow[];
  try {
    rows = await measure(
      {
        variants,
        source: source!,
        method: method!,
        decode: decode === true,
        rounds: repetitions,
        shape: { promptTokens: nPrompt, decodeTokens: nGen },
      },
      {
        signal: interruption.signal,
        notice: (sentence) => {
          if (!told.has(sentence)) meter.onNotice(sentence);
          told.add(sentence);
        },
        onProgress: meter.onProgress,
      },
    );
  } finally {
    meter.clear();
  }
  if (flags.json === true) return print(`${JSON.stringify({ rows, machine: look }, undefined, 1)}\n`);
  await print(table(rows, process.stdout.isTTY ? process.stdout.columns : undefined));
}

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;

/** Of the perplexity, with an error that is smaller than that of either one: both score the same tokens. */
function change({ logRatio, logRatioError }: Divergence): string {
  const share = 100 * Math.expm1(logRatio);
  return `${share < 0 ? '' : '+'}${share.toFixed(1)} ± ${(100 * logRatioError * Math.exp(logRatio)).toFixed(1)} %`;
}

export function table(rows: readonly CompareRow[], terminalColumns?: number): string {
  const scored = rows[0]!.quality!;
  const timed = rows.some((row) => row.speed !== undefined);
  return `${[
    ...markdownTable(columnsOf(rows, timed), rows, terminalColumns),
    '',
    `${scored.scoredTokens} tokens scored: ${scored.method}. KL in nats, from the first row.`,
    ...(timed ? ['Speed: medians, warm, rounds in balanced order.'] : []),
    ...rows.flatMap(({ name, failure }) =>
      failure === undefined ? [] : [`${name} failed: ${failure.message} (${failure.code})`],
    ),
  ].join('\n')}\n`;
}

function columnsOf(rows: readonly CompareRow[], timed: boolean): Column<CompareRow>[] {
  const flags = [...new Set(rows.flatMap((row) => Object.keys(row.given)))];
  /** A cell of what a row may lack. */
  const from =
    <T>(pick: (row: CompareRow) => T | undefined, text: (value: T) => string) =>
    (row: CompareRow): string => {
      const value = pick(row);
      return value === undefined ? '' : text(value);
    };
  const quality = ({ quality }: CompareRow) => quality;
  const divergence = ({ divergence }: CompareRow) => divergence;
  const speed = ({ speed }: CompareRow) => speed;
  const timing: Column<CompareRow>[] = [
    {
      head: 'read/token',
      cell: from(speed, (it) => formatBytes(Math.round(it.bytesReadPerToken))),
      expendable: 7,
    },
    {
      head: 'prefill t/s',
      cell: from(speed, (it) => it.prefillTokensPerSecond.median.toFixed(2)),
      expendable: 5,
    },
    {
      head: 'decode t/s',
      cell: from(speed, (it) => it.decodeTokensPerSecond.median.toFixed(2)),
      expendable: 0,
    },
  ];
  return [
    { head: 'model', cell: (row) => row.name, expendable: 0, left: true },
    { head: 'size', cell: (row) => formatBytes(row.sizeBytes), expendable: 4 },
    ...flags.map((flag) => ({ head: flag, cell: (row: CompareRow) => row.given[flag] ?? '', expendable: 0 })),
    {
      head: 'PPL',
      cell: from(quality, (it) => `${it.perplexity.toFixed(3)} ± ${it.error.toFixed(3)}`),
      expendable: 0,
    },
    { head: 'PPL change', cell: from(divergence, change), expendable: 2 },
    { head: 'KL', cell: from(divergence, (it) => it.meanKl.toFixed(4)), expendable: 1 },
    { head: 'same top', cell: from(divergence, (it) => percent(it.sameTop)), expendable: 3 },
    { head: 'RMS Δp', cell: from(divergence, (it) => percent(it.rmsDifference)), expendable: 6 },
    { head: 'needs/token', cell: (row) => formatBytes(row.expertBytesPerToken), expendable: 8 },
    ...(timed ? timing : []),
  ];
}
