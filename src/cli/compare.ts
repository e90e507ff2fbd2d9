/** `moestream compare`: several models, quantisations or settings in one table of quality, size and speed. */
import type { Command } from 'commander';
import { MoestreamError } from '../errors.ts';
import { type CompareRow, compare as measure } from '../eval/compare.ts';
import { DEFAULT_CONTEXT } from '../eval/windows.ts';
import { formatBytes } from '../pipeline/memory.ts';
import { integer } from './arguments.ts';
import type { Interruption } from './interrupt.ts';
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
  await print(table(rows));
}

interface Column {
  readonly head: string;
  readonly cell: (row: CompareRow) => string;
  readonly left?: boolean;
}

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;

/** Markdown that also reads well as it is. */
export function table(rows: readonly CompareRow[]): string {
  const flags = [...new Set(rows.flatMap((row) => Object.keys(row.given)))];
  const timed = rows.some((row) => row.speed !== undefined);
  const columns: Column[] = [
    { head: 'model', cell: (row) => row.name, left: true },
    { head: 'size', cell: (row) => formatBytes(row.sizeBytes) },
    ...flags.map((flag) => ({ head: flag, cell: (row: CompareRow) => row.given[flag] ?? '' })),
    {
      head: 'PPL',
      cell: ({ quality }) =>
        quality === undefined ? '' : `${quality.perplexity.toFixed(3)} ± ${quality.error.toFixed(3)}`,
    },
    { head: 'KL', cell: ({ divergence }) => divergence?.meanKl.toFixed(4) ?? '' },
    {
      head: 'same top',
      cell: ({ divergence }) => (divergence === undefined ? '' : percent(divergence.sameTop)),
    },
    {
      head: 'RMS Δp',
      cell: ({ divergence }) => (divergence === undefined ? '' : percent(divergence.rmsDifference)),
    },
    { head: 'needs/token', cell: (row) => formatBytes(row.expertBytesPerToken) },
    ...(timed
      ? [
          {
            head: 'read/token',
            cell: ({ speed }: CompareRow) =>
              speed === undefined ? '' : formatBytes(Math.round(speed.bytesReadPerToken)),
          },
          {
            head: 'prefill t/s',
            cell: ({ speed }: CompareRow) => speed?.prefillTokensPerSecond.median.toFixed(2) ?? '',
          },
          {
            head: 'decode t/s',
            cell: ({ speed }: CompareRow) => speed?.decodeTokensPerSecond.median.toFixed(2) ?? '',
          },
        ]
      : []),
  ];
  const widths = columns.map(({ head, cell }) =>
    Math.max(head.length, 3, ...rows.map((row) => cell(row).length)),
  );
  const line = (cells: readonly string[]): string =>
    `| ${cells.map((cell, at) => (columns[at]!.left ? cell.padEnd(widths[at]!) : cell.padStart(widths[at]!))).join(' | ')} |`;
  const rule = columns.map(({ left }, at) =>
    left ? `:${'-'.repeat(widths[at]! + 1)}` : `${'-'.repeat(widths[at]! + 1)}:`,
  );
  const scored = rows[0]!.quality!;
  return `${[
    line(columns.map(({ head }) => head)),
    `|${rule.join('|')}|`,
    ...rows.map((row) => line(columns.map(({ cell }) => cell(row)))),
    '',
    `${scored.scoredTokens} tokens scored: ${scored.method}. KL in nats, from the first row.`,
    ...(timed ? ['Speed: medians, warm, rounds in balanced order.'] : []),
    ...rows.flatMap(({ name, failure }) =>
      failure === undefined ? [] : [`${name} failed: ${failure.message} (${failure.code})`],
    ),
  ].join('\n')}\n`;
}
