/** `moestream profile`: one answer, and where its time went. */
import { createRequire } from 'node:module';
import { basename } from 'node:path';
import type { Command } from 'commander';
import { type Engine, open } from '../engine/engine.ts';
import type { GenerationResult } from '../engine/generation.ts';
import { MoestreamError } from '../errors.ts';
import type { RecordedTrace } from '../pipeline/trace-log.ts';
import { chromeTrace } from '../profile/chrome-trace.ts';
import { figuresOf, type ProfileFigures, type ProfileSubject } from '../profile/figures.ts';
import { drawFlamegraphs, prepareProfileFolder } from '../profile/flamegraph.ts';
import { profilePage } from '../profile/page.ts';
import { profileOf, type RunProfile } from '../profile/profile.ts';
import { profileText } from '../profile/text.ts';
import { renderPage } from '../report/page.ts';
import { checkReportPath, writeReport } from '../report/write.ts';
import { addEngineFlags, MODEL_FLAG, openOptionsOf } from './engine-options.ts';
import { addPromptFlags, generateOptions, type PromptFlags, promptOf } from './generate.ts';
import type { Interruption } from './interrupt.ts';
import { print, say } from './output.ts';

interface ProfileFlags extends Omit<PromptFlags, 'model'> {
  readonly model?: string;
  readonly json?: boolean;
  readonly trace?: string;
  readonly html?: string;
  readonly flamegraph?: string;
}

const DEFAULT_TOKENS = 64;
const { version } = createRequire(import.meta.url)('../../package.json') as { version: string };

export function addProfile(program: Command, interruption: () => Interruption): void {
  const command = program.command('profile').option(...MODEL_FLAG);
  addPromptFlags(addEngineFlags(command, { model: 'argument' }))
    .description('generate an answer and report where its time went')
    .argument('[model]', 'the model, unless --model names it')
    .argument('[prompt]', 'the prompt; without one, --prompt, --file or standard input')
    .option('--json', 'every figure, as one JSON object')
    .option('--trace <path>', 'write a trace that Perfetto and chrome://tracing open')
    .option('--html <path>', 'write a page with charts')
    .option('--flamegraph <folder>', 'write a CPU profile and a flame graph of every worker thread')
    .addHelpText('after', `\nGenerates ${DEFAULT_TOKENS} tokens unless --max-tokens says otherwise.`)
    .action((first: string | undefined, second: string | undefined, flags: ProfileFlags) =>
      profile(first, second, flags, interruption()),
    );
}

/** With --model the first argument is the prompt. */
function argumentsOf(
  first: string | undefined,
  second: string | undefined,
  flags: ProfileFlags,
): readonly [PromptFlags, string | undefined] {
  if (flags.model !== undefined && second !== undefined) {
    throw new MoestreamError('USAGE', `the model is named twice: ${flags.model} and ${first}`);
  }
  const model = flags.model ?? first;
  if (model === undefined) throw new MoestreamError('USAGE', 'no model given', { hint: 'Name a GGUF file.' });
  const tokens = { maxTokens: flags.maxTokens ?? DEFAULT_TOKENS };
  return [{ ...flags, ...tokens, model }, flags.model === undefined ? second : first];
}

async function profile(
  first: string | undefined,
  second: string | undefined,
  given: ProfileFlags,
  interruption: Interruption,
): Promise<void> {
  const [flags, argument] = argumentsOf(first, second, given);
  const prompt = promptOf(argument, flags);
  const { flamegraph } = given;
  for (const path of [given.html, given.trace]) if (path !== undefined) checkReportPath(path);
  if (flamegraph !== undefined) prepareProfileFolder(flamegraph);
  const watching = { trace: true, ...(flamegraph === undefined ? {} : { cpuProfileFolder: flamegraph }) };
  const engine = await open({ ...openOptionsOf(flags), ...watching });
  let text = '';
  let found: Found;
  try {
    const generation = engine.generate(prompt, generateOptions(flags, interruption.signal));
    const progress = tokenProgress(given, flags.maxTokens ?? DEFAULT_TOKENS);
    for await (const piece of generation) {
      text += piece.text;
      progress.next();
    }
    progress.end();
    found = findings(engine, flags.model, generation.result);
  } finally {
    await engine.close();
  }
  // First what cannot fail: a full disk must not cost the figures.
  if (given.json === true) await print(`${JSON.stringify({ ...found.figures, text })}\n`);
  else await print(profileText(found.figures));
  writeFiles(found, given);
  if (flamegraph === undefined) return;
  const pages = await drawFlamegraphs(flamegraph, () => {});
  tell(given, `${pages.length} CPU profiles and flame graphs in ${flamegraph}`);
}

/** A large model takes seconds a token: the count on a terminal, one sentence behind the prompt elsewhere. */
function tokenProgress(flags: ProfileFlags, most: number): { next(): void; end(): void } {
  const isTerminal = process.stderr.isTTY === true && flags.quiet !== true;
  let tokens = 0;
  return {
    next: () => {
      if (++tokens === 1 && !isTerminal) tell(flags, `the prompt is done, up to ${most} tokens follow`);
      if (isTerminal) process.stderr.write(`\r${tokens} of up to ${most} tokens\x1b[K`);
    },
    end: () => {
      if (isTerminal) process.stderr.write('\r\x1b[K');
    },
  };
}

interface Found {
  readonly figures: ProfileFigures;
  readonly run: RunProfile;
  readonly trace: RecordedTrace;
}

function findings(engine: Engine, model: string, result: GenerationResult): Found {
  const { trace } = engine;
  const { layers, experts, expertsPerToken } = engine.model.hyperparameters;
  const subject: ProfileSubject = {
    model: basename(model),
    layers,
    experts,
    expertsPerToken,
    slots: engine.plan.slab.classes.reduce((sum, { slots }) => sum + slots, 0),
    readEngine: engine.readEngine,
    version,
  };
  const run = profileOf(trace);
  return { figures: figuresOf(run, subject, result), run, trace };
}

function writeFiles({ figures, run, trace }: Found, flags: ProfileFlags): void {
  if (flags.html !== undefined) {
    writeReport(flags.html, [renderPage(profilePage(figures, run, trace))]);
    tell(flags, `page in ${flags.html}`);
  }
  if (flags.trace === undefined) return;
  writeReport(flags.trace, chromeTrace(trace, `moestream ${figures.subject.model}`));
  tell(flags, `trace in ${flags.trace}: open it at https://ui.perfetto.dev`);
}

function tell(flags: ProfileFlags, sentence: string): void {
  if (flags.quiet !== true) say(`moestream: ${sentence}`);
}
