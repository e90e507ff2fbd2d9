/** `moestream tune`: settings that are faster than the defaults on this machine, kept as a profile for later commands. */
import type { Command } from 'commander';
import { type EngineSettings, type OpenOptions, settingsOf } from '../engine/options.ts';
import { planOf } from '../engine/planning.ts';
import { MoestreamError } from '../errors.ts';
import type { RunRequest } from '../eval/measure-run.ts';
import { profileKey } from '../eval/profile/key.ts';
import { storeEntry } from '../eval/profile/store.ts';
import {
  describeSettings,
  effectiveValue,
  flagOf,
  settingsIn,
  TUNABLE_NAMES,
  type TunableSettings,
} from '../eval/settings.ts';
import { LocalRunner } from '../eval/tasks/local-runner.ts';
import { axesFor } from '../eval/tune/axes.ts';
import { JournaledBench, journalBudget, journalPath } from '../eval/tune/journal.ts';
import { RunBench } from '../eval/tune/run-bench.ts';
import { type Axis, type SearchResult, type Step, search, TuningFailed } from '../eval/tune/search.ts';
import { openModel } from '../model/model.ts';
import { formatBytes } from '../pipeline/memory.ts';
import { slotCount } from '../pipeline/slab.ts';
import { number } from './arguments.ts';
import { addEngineFlags, type EngineFlags, givenOptionsOf } from './engine-options.ts';
import type { Interruption } from './interrupt.ts';
import { print, say } from './output.ts';
import { duration } from './progress.ts';
import { addRunFlags, lookBefore, type RunFlags, runRequestOf, statusLine } from './run-flags.ts';
import { sourceOf } from './text-and-machine.ts';

interface TuneFlags extends EngineFlags, RunFlags {
  readonly budgetMinutes: number;
  readonly store: boolean;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

/** A little less is free than when it began: that is what budgets have head-room for. */
const BUDGET_GROWN_MAX = 1.05;
const BUDGET_MINUTES_MAX = 7 * 24 * 60;

export function addTune(program: Command, interruption: () => Interruption): void {
  const command = program
    .command('tune')
    .description('find settings that are faster than the defaults, and keep them for later commands')
    .argument('<model>', 'GGUF file, any part of a split set, or packed folder');
  addEngineFlags(command, { model: 'argument', lasting: false });
  addRunFlags(command, 'total')
    .option('--budget-minutes <n>', 'measure for so long at most, interruptions not counted', number, 20)
    .option('--no-store', 'print what was found and keep nothing')
    .option('--json', 'as JSON')
    .action((model: string, flags: TuneFlags) => tune({ ...flags, model }, interruption()));
}

async function tune(flags: TuneFlags, interruption: Interruption): Promise<void> {
  const { budgetMinutes, score } = flags;
  if (!(budgetMinutes > 0 && budgetMinutes <= BUDGET_MINUTES_MAX)) {
    throw new MoestreamError(
      'USAGE',
      `--budget-minutes ${budgetMinutes}: expected more than 0, at most a week`,
    );
  }
  const given = givenOptionsOf(flags);
  const { path: journal, what, memory } = identityOf(given, flags);
  const request = runRequestOf({ ...given, memory }, flags);
  const { axes, defaults } = tuningOf(given, request, flags);
  if (axes.length === 0) {
    throw new MoestreamError('USAGE', 'there is nothing to tune', {
      hint: 'Every setting that matters is given, or the model fits into memory and has one thread.',
    });
  }
  const notice = (sentence: string): void => {
    if (flags.quiet !== true) say(`moestream: ${sentence}`);
  };
  const machine = await lookBefore(request, flags.quiet);
  const result = await measured(flags, interruption, {
    request,
    axes,
    defaults,
    journal,
    what,
    memory,
    notice,
  });
  const key = profileKey(flags.model);
  const stored = flags.store && key !== undefined && result.steps.length > 0;
  const path = stored ? storeEntry(key, entryOf(result, memory, flags), notice) : undefined;
  if (flags.json === true) {
    return print(
      `${JSON.stringify({ model: flags.model, machine, budgetBytes: memory, score, ...result, winner: result.winner ?? null, profile: path ?? null }, undefined, 1)}\n`,
    );
  }
  await print(report(result, flags, memory, path));
}

/** Which tuning this is: one that was interrupted goes on under the same name, with the memory that it began with. */
function identityOf(
  given: OpenOptions,
  flags: TuneFlags,
): { readonly path: string; readonly what: unknown; readonly memory: number } {
  const what = {
    key: profileKey(flags.model),
    settings: settingsIn(given),
    run: [flags.promptTokens, flags.decodeTokens, flags.cache, flags.score, sourceOf(flags) ?? null],
  };
  const path = journalPath(what);
  const { budgetBytes: now } = settingsOf(given);
  const before = given.memory === undefined ? journalBudget(path, what) : undefined;
  return { path, what, memory: before !== undefined && before <= BUDGET_GROWN_MAX * now ? before : now };
}

/** What can be turned, and where it stands when nobody turns it. */
function tuningOf(
  given: OpenOptions,
  request: RunRequest,
  flags: TuneFlags,
): { readonly axes: readonly Axis[]; readonly defaults: TunableSettings } {
  const settings: EngineSettings = settingsOf(request.options);
  const { plan, config } = planOf(openModel(given.model), settings);
  const fixed = TUNABLE_NAMES.filter((name) => given[name] !== undefined);
  const axes = axesFor({
    cores: settingsOf({ model: given.model, memory: 1 }).threads,
    allResident: slotCount(plan.slab) >= config.layers * config.experts,
    score: flags.score,
    promptTokens: flags.promptTokens,
    fixed,
  });
  const known = TUNABLE_NAMES.map((name) => [name, effectiveValue(settings, name)] as const);
  const defaults = Object.fromEntries(known.filter(([, value]) => value !== null));
  return { axes, defaults: { ...defaults, chunk: config.maxRows } };
}

interface Tuning {
  readonly request: RunRequest;
  readonly axes: readonly Axis[];
  readonly defaults: TunableSettings;
  readonly journal: string;
  /** Whatever makes outcomes comparable. */
  readonly what: unknown;
  readonly memory: number;
  readonly notice: (sentence: string) => void;
}

async function measured(
  flags: TuneFlags,
  { signal }: Interruption,
  { request, axes, defaults, journal: path, what, memory, notice }: Tuning,
): Promise<SearchResult> {
  const status = statusLine(flags.quiet);
  const runner = new LocalRunner();
  const began = performance.now();
  let journal: JournaledBench | undefined;
  let finished = false;
  try {
    const bench = new RunBench({
      runner,
      request,
      score: flags.score,
      timeoutSeconds: flags.runTimeout,
      signal,
      onRun: (settings) =>
        status.show(`${duration((performance.now() - began) / 1000)}  ${describeSettings(settings)}`),
    });
    journal = new JournaledBench(bench, path, { request: what, budgetBytes: memory }, notice);
    if (journal.playedBack > 0)
      notice(`going on behind ${journal.playedBack} rounds that were measured before`);
    const result = await search(journal, {
      axes,
      defaults,
      budgetSeconds: flags.budgetMinutes * 60,
      onStep: (step) => {
        status.clear();
        notice(stepLine(step));
      },
    });
    // With more time the same command goes on from here.
    finished = result.untried.length === 0;
    return result;
  } catch (error) {
    if (error instanceof TuningFailed) {
      throw new MoestreamError('RUN_FAILED', `the defaults do not run: ${error.message}`, { cause: error });
    }
    if (MoestreamError.is(error) && error.code === 'ABORTED' && journal !== undefined) {
      status.clear();
      notice('interrupted; the same command goes on from here');
    }
    throw error;
  } finally {
    status.clear();
    await runner.close();
    journal?.close(finished);
  }
}

function entryOf({ winner, confirmation }: SearchResult, budgetBytes: number, { score }: TuneFlags) {
  const gain =
    winner === undefined || confirmation === undefined
      ? null
      : {
          ratio: confirmation.ratio,
          low: confirmation.low,
          high: confirmation.high,
          p99Ratio: confirmation.p99Ratio,
        };
  return { budgetBytes, settings: winner ?? {}, tunedAt: new Date().toISOString(), score, gain };
}

/** `window: 4 kept, +8.3 % (2, 0, 1, 8 tried)` */
function stepLine({ axis, accepted, sentence, challengers }: Step): string {
  if (axis === 'confirmation') return `confirmation: ${sentence}`;
  const name = axis as keyof TunableSettings;
  const tried = challengers.map(({ settings, ratio, failure }) => {
    const gain = ratio === undefined ? '' : ` ${ratio.toFixed(2)}x`;
    return `${settings[name]}${failure === undefined ? gain : ' fails'}`;
  });
  const kept = accepted === undefined ? 'stays' : `${accepted[name]}`;
  return `${flagOf(name).slice(2)}: ${kept}; ${sentence} (${tried.join(', ')})`;
}

function report(
  result: SearchResult,
  flags: TuneFlags,
  budgetBytes: number,
  path: string | undefined,
): string {
  const { winner, confirmation, untried, runs, secondsUsed, sentence } = result;
  const lines = [
    `${runs} runs in ${duration(secondsUsed)}, memory ${formatBytes(budgetBytes)}, score ${flags.score}`,
    `${winner === undefined ? 'no winner' : 'winner'}: ${sentence}`,
  ];
  if (winner !== undefined) lines.push(`  ${describeSettings(winner)}`);
  if (confirmation !== undefined) {
    const { ratio, low, high, p99Ratio } = confirmation;
    lines.push(
      `  ${ratio.toFixed(3)} times the defaults (${low.toFixed(3)} to ${high.toFixed(3)}), p99 ${p99Ratio.toFixed(3)} times`,
    );
  }
  if (untried.length > 0)
    lines.push(
      `the time did not reach: ${untried.join(', ')}; with a larger --budget-minutes the same command goes on`,
    );
  if (path !== undefined) lines.push(`stored in ${path}`);
  return `${lines.join('\n')}\n`;
}
