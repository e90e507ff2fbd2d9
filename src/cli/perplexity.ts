/** `moestream perplexity`: how well a model foresees a text, and how far its probabilities are from another's. */
import type { Command } from 'commander';
import type { OpenOptions } from '../engine/options.ts';
import { MoestreamError } from '../errors.ts';
import type { Divergence } from '../eval/kl.ts';
import { measurePerplexity, type PerplexityMeasurement, type PerplexityRequest } from '../eval/perplexity.ts';
import { DEFAULT_CONTEXT, type ScoringMethod } from '../eval/windows.ts';
import { formatBytes } from '../pipeline/memory.ts';
import { integer } from './arguments.ts';
import { addEngineFlags, type EngineFlags, openOptionsOf } from './engine-options.ts';
import type { Interruption } from './interrupt.ts';
import { print } from './output.ts';
import { lookFirst, type SourceFlags, sourceOf } from './text-and-machine.ts';
import { tokenMeter } from './token-progress.ts';

interface PerplexityFlags extends Omit<EngineFlags, 'model'>, SourceFlags {
  readonly chunks?: number;
  readonly tokens?: number;
  readonly decode?: boolean;
  readonly klBase?: string;
  readonly kl?: string;
  readonly json?: boolean;
}

export function addPerplexity(program: Command, interruption: () => Interruption): void {
  const command = program
    .command('perplexity')
    .description('how well a model foresees a text; how far its probabilities are from a baseline')
    .argument('<model>', 'GGUF file, any part of a split set, or packed folder')
    .option('-f, --file <path>', 'the text, - for standard input')
    .option('--ids <path>', 'a file with token ids, - for standard input')
    .option('--chunks <n>', 'chunks to score at most (default: all that the text fills)', integer)
    .option('--tokens <n>', 'score the first n tokens in one continuous context instead of chunks', integer)
    .option('--decode', 'compute token by token, as an answer is, instead of in chunks, as a prompt is')
    .option('--kl-base <file>', 'write the probabilities, to compare others with')
    .option('--kl <file>', 'compare with probabilities that --kl-base wrote; they bring text and method')
    .option('--json', 'as JSON');
  addEngineFlags(command, { model: 'argument' }).addHelpText(
    'after',
    `\nHere --context is the size of a chunk, and ${DEFAULT_CONTEXT} where it is not given.`,
  );
  command.action((model: string, flags: PerplexityFlags) => {
    // MOESTREAM_CONTEXT is for answers; a chunk's size is part of what is measured.
    const context = command.getOptionValueSource('context') === 'cli' ? flags.context : undefined;
    return perplexity(model, flags, context, interruption());
  });
}

/** What is scored, and how; nothing when a baseline brings it. */
export function scoringOf(
  flags: { readonly chunks?: number; readonly tokens?: number; readonly kl?: string } & SourceFlags,
  context: number | undefined,
): Pick<PerplexityRequest, 'source' | 'method'> {
  const { chunks, tokens, kl } = flags;
  const source = sourceOf(flags);
  const chunked = chunks !== undefined || context !== undefined;
  if (kl !== undefined) {
    if (source === undefined && tokens === undefined && !chunked) return {};
    throw new MoestreamError(
      'USAGE',
      '--kl brings its own text and method: leave out -f, --ids, --tokens, --chunks and --context',
    );
  }
  if (source === undefined) {
    throw new MoestreamError('USAGE', 'no text to score', {
      hint: 'Name one with -f, or token ids with --ids.',
    });
  }
  if (tokens !== undefined && chunked) {
    throw new MoestreamError('USAGE', '--tokens is one continuous context: leave out --chunks and --context');
  }
  const method: ScoringMethod =
    tokens !== undefined
      ? { tokens }
      : { context: context ?? DEFAULT_CONTEXT, ...(chunks === undefined ? {} : { chunks }) };
  return { source, method };
}

async function perplexity(
  model: string,
  flags: PerplexityFlags,
  context: number | undefined,
  interruption: Interruption,
): Promise<void> {
  const { file, ids, chunks, tokens, decode, klBase, kl, json, context: _, ...engineFlags } = flags;
  const scoring = scoringOf({ ...flags }, context);
  const meter = tokenMeter(flags.quiet === true);
  const opened: OpenOptions = openOptionsOf({ ...engineFlags, model });
  const { onNotice: _say, contextLength: _context, ...options } = opened;
  const look = await lookFirst([model], options.io === 'buffered', meter.onNotice);
  let found: PerplexityMeasurement;
  try {
    found = await measurePerplexity(
      {
        options,
        ...scoring,
        decode: decode === true,
        ...(klBase === undefined ? {} : { writeBaseline: klBase }),
        ...(kl === undefined ? {} : { baseline: kl }),
      },
      {
        signal: interruption.signal,
        notice: meter.onNotice,
        onProgress: (done, total, so) => meter.onProgress(done, total, `PPL ${so.toFixed(3)}`),
      },
    );
  } finally {
    meter.clear();
  }
  if (json === true) return print(`${JSON.stringify({ model, ...found, machine: look }, undefined, 1)}\n`);
  await print(report(found, klBase, kl));
}

const percent = (share: number): string => `${(100 * share).toFixed(2)} %`;

export function report(
  found: PerplexityMeasurement,
  written: string | undefined,
  base: string | undefined,
): string {
  const { perplexity: value, error, scoredTokens, method, millis, bytesRead, hitRate, divergence } = found;
  const speed = (scoredTokens * 1000) / millis;
  const lines = [
    `PPL ${value.toFixed(4)} +- ${error.toFixed(4)}`,
    `  ${scoredTokens} tokens scored: ${method}`,
    `  ${(millis / 1000).toFixed(1)} s, ${speed.toFixed(1)} scored tok/s, read ${formatBytes(bytesRead)}, experts ${(100 * hitRate).toFixed(0)} % hit`,
    ...(written === undefined ? [] : [`  probabilities written to ${written}`]),
    ...(divergence === undefined ? [] : ['', ...divergenceLines(divergence, base ?? '')]),
  ];
  return `${lines.join('\n')}\n`;
}

function divergenceLines(found: Divergence, base: string): string[] {
  return [
    `against ${base}, PPL ${found.basePerplexity.toFixed(4)}`,
    `  PPL ratio        ${Math.exp(found.logRatio).toFixed(4)} +- ${(found.logRatioError * Math.exp(found.logRatio)).toFixed(4)}`,
    `  KL divergence    ${found.meanKl.toExponential(3)} +- ${found.meanKlError.toExponential(1)} nats`,
    `                   median ${found.medianKl.toExponential(2)}, 99 % ${found.kl99.toExponential(2)}, most ${found.mostKl.toExponential(2)}`,
    `  same top token   ${percent(found.sameTop)} +- ${percent(found.sameTopError)}`,
    `  p of the text's  RMS difference ${percent(found.rmsDifference)}, mean ${percent(found.meanDifference)}`,
  ];
}
