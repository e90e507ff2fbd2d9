/** `moestream requantize`: a copy of a model whose routed experts are of another type. */
import type { Command } from 'commander';
import { MoestreamError } from '../errors.ts';
import { measurePerplexity, type PerplexityMeasurement } from '../eval/perplexity.ts';
import { formatBytes } from '../pipeline/memory.ts';
import { AFFINE_TARGETS, GGUF_TARGETS } from '../requantize/plan.ts';
import { requantize } from '../requantize/requantize.ts';
import { integer, MODEL_ARGUMENT, readText } from './arguments.ts';
import type { Interruption } from './interrupt.ts';
import { print, say, table } from './output.ts';
import { progressMeter } from './progress.ts';

interface RequantizeFlags {
  readonly experts: string;
  readonly output: string;
  readonly file?: string;
  readonly threads?: number;
  readonly quiet?: boolean;
  readonly json?: boolean;
}

export function addRequantize(program: Command, interruption: () => Interruption): void {
  program
    .command('requantize')
    .description('write a copy of a model whose routed experts are of another type')
    .argument('<model>', MODEL_ARGUMENT)
    .requiredOption(
      '--experts <type>',
      `of a GGUF: ${GGUF_TARGETS.join(', ')}; of an MLX checkpoint: ${AFFINE_TARGETS.join(', ')}`,
    )
    .requiredOption('-o, --output <path>', 'a new GGUF file, or a new folder for a checkpoint')
    .option('-f, --file <text>', 'measure the perplexity of this text before and after, in precision exact')
    .option('-t, --threads <n>', 'converting threads (default: all cores)', integer)
    .option('-q, --quiet', 'nothing on stderr but errors')
    .option('--json', 'a summary as JSON on stdout')
    .action((model: string, flags: RequantizeFlags) => requantizeModel(model, flags, interruption()));
}

async function requantizeModel(
  model: string,
  flags: RequantizeFlags,
  interruption: Interruption,
): Promise<void> {
  const meter = progressMeter(flags.quiet === true, 'wrote');
  const began = performance.now();
  try {
    const result = await requantize(model, flags.experts, flags.output, {
      ...meter,
      signal: interruption.signal,
      ...(flags.threads === undefined ? {} : { threads: flags.threads }),
    });
    meter.clear();
    const seconds = (performance.now() - began) / 1e3;
    const quality =
      flags.file === undefined ? undefined : await perplexities(model, result.path, flags, interruption);
    if (flags.json === true) return await print(`${JSON.stringify({ ...result, seconds, ...quality })}\n`);
    if (quality !== undefined) {
      const { before, after } = quality;
      const change = (100 * (after.perplexity / before.perplexity - 1)).toFixed(2);
      await print(
        `perplexity ${before.perplexity.toFixed(3)} -> ${after.perplexity.toFixed(3)} (${change} %), ${after.method}\n`,
      );
    }
    if (flags.quiet === true) return;
    const rows = result.losses.map(({ from, to, tensors, relativeError }) => [
      `${from} -> ${to}`,
      `${tensors} tensors`,
      `error ${(100 * relativeError).toFixed(2)} % of the values`,
    ]);
    await print(table(rows));
    const sizes = `${formatBytes(result.beforeBytes)} -> ${formatBytes(result.afterBytes)}`;
    say(`moestream: ${result.path}: ${sizes} in ${seconds.toFixed(1)} s`);
  } catch (error) {
    meter.clear();
    if (MoestreamError.is(error) && error.code === 'ABORTED') {
      say('moestream: interrupted; run the same command again to go on');
    }
    throw error;
  }
}

/** Of both models over the same text, in `exact`: what the rounding of activations adds is no loss of the experts. */
async function perplexities(
  source: string,
  output: string,
  { file, threads }: RequantizeFlags,
  { signal }: Interruption,
): Promise<Record<'before' | 'after', PerplexityMeasurement>> {
  const text = readText(file!);
  const measure = (model: string): Promise<PerplexityMeasurement> =>
    measurePerplexity(
      {
        options: { model, precision: 'exact', ...(threads === undefined ? {} : { threads }) },
        source: { text },
      },
      { signal },
    );
  return { before: await measure(source), after: await measure(output) };
}
