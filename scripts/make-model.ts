/**
 * `npm run make-model -- --preset 397b --layers 8 -o FILE`: a model of random weights in the shape of a real one.
 *
 * Why: what this project is about, speed on models larger than memory, can be measured without downloading 170 GB, and
 * tests need models of every architecture and block type. The work is done in model-maker/; this file knows about the
 * terminal. Exit codes: 0 made, 1 failed, 2 wrong usage, 130 and 143 when interrupted. Progress is printed at most ten
 * times a second, to a terminal only.
 */
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { MakeModelError } from './model-maker/error.ts';
import { DEFAULT_MIX, type MadeModel, type MakeModelOptions, makeModel } from './model-maker/make-model.ts';
import { MIX_NAMES } from './model-maker/mixes.ts';
import { ARCHITECTURES, PRESETS } from './model-maker/shapes.ts';

const EXIT_FAILURE = 1;
const EXIT_USAGE = 2;
const EXIT_INTERRUPTED = 130;
const EXIT_TERMINATED = 143;

const PROGRESS_INTERVAL_MILLIS = 100;

function integer(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value)) {
    throw new InvalidArgumentError(`"${text}" is not a whole number.`);
  }
  return value;
}

function integerOrNone(text: string): number | 'none' {
  return text === 'none' ? text : integer(text);
}

type CommandLine = Omit<MakeModelOptions, 'signal' | 'onProgress'> & { readonly output: string };

function command(): Command {
  return new Command('make-model')
    .description('Writes a model of random weights in the shape and the types of a published one.')
    .addOption(
      new Option('--format <name>', 'a GGUF, or a folder as MLX has it')
        .choices(['gguf', 'mlx'])
        .default('gguf'),
    )
    .option('--bits <n>', 'bits of a code, in format mlx (default: 4)', integer)
    .option('--expert-bits <n>', 'bits of the routed experts, in format mlx (default: as --bits)', integer)
    .addOption(new Option('--preset <name>', 'shape of the layers').choices(PRESETS).makeOptionMandatory())
    .addOption(new Option('--arch <name>', 'architecture').choices(ARCHITECTURES).default('qwen35moe'))
    .option('--layers <n>', 'number of layers (default: as published)', integer)
    .option('--experts <n>', 'experts per layer (default: as published)', integer)
    .option('--experts-per-token <n>', 'experts that a token selects (default: as published)', integer)
    .option('--vocab <n>', 'tokens in the vocabulary (default: as published)', integer)
    .addOption(
      new Option('--mix <name>', 'block types, in format gguf').choices(MIX_NAMES).default(DEFAULT_MIX),
    )
    .option(
      '--outlier <layer>',
      'the layer with finer experts, or none (default: as published)',
      integerOrNone,
    )
    .option('--split-files <n>', 'write a set of so many files', integer)
    .option('--seed <n>', 'the same seed makes the same bytes', integer, 1)
    .requiredOption('-o, --output <path>', 'the file to write, in format mlx the folder')
    .allowExcessArguments(false)
    .exitOverride();
}

function gigabytes(byteCount: number): string {
  return `${(byteCount / 1e9).toFixed(2)} GB`;
}

/** One line that is written over again; nothing when stderr is a file. */
function progressPrinter(): {
  report: (writtenBytes: number, totalBytes: number) => void;
  clear: () => void;
} {
  if (!process.stderr.isTTY) return { report: () => {}, clear: () => {} };
  const begunMillis = performance.now();
  let printedMillis = begunMillis;
  const report = (writtenBytes: number, totalBytes: number): void => {
    const nowMillis = performance.now();
    if (nowMillis - printedMillis < PROGRESS_INTERVAL_MILLIS) return;
    printedMillis = nowMillis;
    const gigabytesPerSecond = writtenBytes / 1e6 / (nowMillis - begunMillis);
    const percent = Math.floor((100 * writtenBytes) / totalBytes);
    process.stderr.write(
      `\r${percent}% of ${gigabytes(totalBytes)}, ${gigabytesPerSecond.toFixed(2)} GB/s\x1b[K`,
    );
  };
  return { report, clear: () => process.stderr.write('\r\x1b[K') };
}

/** Resolves signals into one AbortSignal; the first one ends the work in order, a second one at once. */
function watchSignals(): { signal: AbortSignal; exitCode: () => number } {
  const controller = new AbortController();
  let code = EXIT_INTERRUPTED;
  const on = (signalCode: number) => () => {
    if (controller.signal.aborted) process.exit(signalCode);
    code = signalCode;
    controller.abort();
  };
  process.on('SIGINT', on(EXIT_INTERRUPTED));
  process.on('SIGTERM', on(EXIT_TERMINATED));
  return { signal: controller.signal, exitCode: () => code };
}

function summary(made: MadeModel, elapsedMillis: number): string {
  const [first] = made.paths;
  const files = made.paths.length === 1 ? first : `${first} and ${made.paths.length - 1} more`;
  const speed = (made.totalBytes / 1e6 / elapsedMillis).toFixed(2);
  const seconds = (elapsedMillis / 1e3).toFixed(1);
  return `${files}: ${made.tensorCount} tensors, ${gigabytes(made.totalBytes)}, ${seconds} s, ${speed} GB/s\n`;
}

async function main(): Promise<number> {
  const { output, ...options } = command().parse().opts<CommandLine>();
  const { signal, exitCode } = watchSignals();
  const progress = progressPrinter();
  const begunMillis = performance.now();
  try {
    const made = await makeModel({ ...options, signal, onProgress: progress.report }, output);
    progress.clear();
    process.stdout.write(summary(made, performance.now() - begunMillis));
    return 0;
  } catch (error) {
    progress.clear();
    if (!(error instanceof MakeModelError)) throw error;
    process.stderr.write(`make-model: ${error.message}\n`);
    if (error.kind === 'interrupted') return exitCode();
    return error.kind === 'usage' ? EXIT_USAGE : EXIT_FAILURE;
  }
}

try {
  process.exitCode = await main();
} catch (error) {
  // Commander has printed its sentence already.
  if (!(error instanceof CommanderError)) throw error;
  process.exitCode = error.exitCode === 0 ? 0 : EXIT_USAGE;
}
