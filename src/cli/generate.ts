/** `moestream generate`: a prompt in, text out as it is generated. */
import type { Command } from 'commander';
import { type Engine, open } from '../engine/engine.ts';
import type { GenerationResult } from '../engine/generation.ts';
import type { GenerateOptions, Prompt } from '../engine/options.ts';
import { MoestreamError } from '../errors.ts';
import { formatBytes } from '../pipeline/memory.ts';
import { collect, integer, number, readText } from './arguments.ts';
import { addEngineFlags, type EngineFlags, openOptionsOf } from './engine-options.ts';
import type { Interruption } from './interrupt.ts';
import { print, say } from './output.ts';

interface GenerateFlags extends EngineFlags {
  readonly prompt?: string;
  readonly file?: string;
  readonly maxTokens?: number;
  readonly seed?: number;
  readonly temp?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly repeatPenalty?: number;
  readonly stop?: readonly string[];
  readonly system?: string;
  readonly raw?: boolean;
  readonly traceRouting?: string;
  readonly json?: boolean;
}

export function addGenerate(program: Command, interruption: () => Interruption): void {
  addEngineFlags(program.command('generate').alias('run'))
    .description('answer a prompt')
    .argument('[prompt]', 'the prompt; without one, --prompt, --file or standard input')
    .option('-p, --prompt <text>', 'the prompt')
    .option('-f, --file <path>', 'a file with the prompt, - for standard input')
    .option(
      '-n, --max-tokens <n>',
      'tokens to generate at most (default: what the context has room for)',
      integer,
    )
    .option('-s, --seed <n>', 'seed of the random numbers (default: a new one each time)', integer)
    .option('--temp <n>', 'temperature, 0 takes the likeliest token (default 0.8)', number)
    .option('--top-k <n>', 'sample among the k likeliest, 0 for all (default 40)', integer)
    .option('--top-p <n>', 'sample among the likeliest that make up this share (default 0.95)', number)
    .option('--min-p <n>', 'drop tokens below this share of the likeliest (default 0.05)', number)
    .option('--repeat-penalty <n>', 'penalty of tokens among the last 64, 1 for none (default 1)', number)
    .option('--stop <text>', 'end before this text; may be given several times', collect)
    .option('--system <text>', 'system message')
    .option('--raw', 'take the prompt as it is, without the chat template')
    .option('--trace-routing <file>', 'record every choice of the routers, for `moestream simulate`')
    .option('--json', 'one JSON object on stdout instead of text')
    .action((prompt: string | undefined, flags: GenerateFlags) => generate(prompt, flags, interruption()));
}

async function generate(
  argument: string | undefined,
  flags: GenerateFlags,
  interruption: Interruption,
): Promise<void> {
  const prompt = promptOf(argument, flags);
  const engine = await open(openOptionsOf(flags));
  try {
    await answer(engine, prompt, flags, interruption);
  } finally {
    await engine.close();
  }
}

/** The one prompt that was given; more than one is a mistake worth stopping for. */
function promptOf(argument: string | undefined, flags: GenerateFlags): Prompt {
  const given = [argument, flags.prompt, flags.file].filter((each) => each !== undefined);
  if (given.length > 1) throw new MoestreamError('USAGE', 'more than one prompt was given');
  if (given.length === 0 && process.stdin.isTTY) {
    throw new MoestreamError('USAGE', 'no prompt', { hint: 'Write it behind the options, or pipe it in.' });
  }
  const text = argument ?? flags.prompt ?? readText(flags.file ?? '-');
  if (flags.raw === true && flags.system !== undefined) {
    throw new MoestreamError('USAGE', '--system needs the chat template, --raw goes without it');
  }
  return flags.raw === true ? { raw: text } : text;
}

function generateOptions(flags: GenerateFlags, signal: AbortSignal): GenerateOptions {
  const options = {
    maxTokens: flags.maxTokens,
    seed: flags.seed === -1 ? undefined : flags.seed,
    temperature: flags.temp,
    topK: flags.topK,
    topP: flags.topP,
    minP: flags.minP,
    repeatPenalty: flags.repeatPenalty,
    stop: flags.stop,
    system: flags.system,
    traceRouting: flags.traceRouting,
  };
  const given = Object.entries(options).filter(([, value]) => value !== undefined);
  return { ...Object.fromEntries(given), signal };
}

async function answer(
  engine: Engine,
  prompt: Prompt,
  flags: GenerateFlags,
  interruption: Interruption,
): Promise<void> {
  const generation = engine.generate(prompt, generateOptions(flags, interruption.signal));
  let text = '';
  let endsLine = true;
  const finishLine = async (): Promise<void> => {
    if (!endsLine && flags.json !== true) await print('\n');
  };
  try {
    for await (const piece of generation) {
      if (piece.text === '') continue;
      endsLine = piece.text.endsWith('\n');
      if (flags.json === true) text += piece.text;
      else await print(piece.text);
    }
  } finally {
    await finishLine();
  }
  if (flags.json === true) await print(`${JSON.stringify({ text, ...generation.result })}\n`);
  if (flags.quiet !== true) say(summary(generation.result));
}

function summary({ stats }: GenerationResult): string {
  return (
    `[prompt ${stats.promptTokens} tokens, ${stats.promptTokensPerSecond.toFixed(1)} tok/s | ` +
    `answer ${stats.answerTokens} tokens, ${stats.decodeTokensPerSecond.toFixed(1)} tok/s | ` +
    `read ${formatBytes(stats.bytesRead)} | experts ${(100 * stats.hitRate).toFixed(0)} % hit]`
  );
}
