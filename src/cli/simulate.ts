/** `moestream simulate`: what caches and predictors would have done with a recorded trace, without the model. */
import type { Command } from 'commander';
import { deviceOf } from '../disk/device.ts';
import { bestPoint, storedMeasurement } from '../disk/store.ts';
import { type Prediction, predictionOf } from '../engine/prediction.ts';
import { MoestreamError } from '../errors.ts';
import { POLICIES, type Policy } from '../pipeline/eviction.ts';
import { formatBytes } from '../pipeline/memory.ts';
import { type RoutingTrace, readRoutingTrace, type TraceEnding } from '../pipeline/routing-trace.ts';
import { slotCount } from '../pipeline/slab.ts';
import { belady } from '../simulate/belady.ts';
import { type DiskModel, type ReplayResult, replay } from '../simulate/replay.ts';
import { shapeFor } from '../simulate/shape.ts';
import { LOOKAHEAD_MAX } from '../workers/predictors/lookahead.ts';
import { Panel } from '../workers/predictors/panel.ts';
import { integer, number } from './arguments.ts';
import { print, say, table } from './output.ts';

interface SimulateFlags {
  readonly policy: string;
  readonly slots: string;
  readonly predict: string;
  readonly lookahead: number;
  readonly diskSpeed?: number;
  readonly computeMicros?: number;
  readonly json?: boolean;
}

/** Enough for every policy, predictor and share that one would compare. */
const COMBINATIONS_MAX = 500;
const BELADY = 'belady';

export function addSimulate(program: Command): void {
  program
    .command('simulate')
    .description('replay a routing trace through caches and predictors, without the model')
    .argument('<trace>', 'a file of `moestream generate --trace-routing`')
    .option('--policy <names>', 'which expert leaves first; several separated by commas', POLICIES.join(','))
    .option('--slots <list>', 'sizes of the cache, in experts or as shares of all', '25%,50%,75%')
    .option(
      '--predict <names>',
      'predictors as generate takes them, several separated by commas; + combines: auto+markov',
      'none',
    )
    .option('--lookahead <n>', 'layers to predict ahead', integer, 1)
    .option(
      '--disk-speed <n>',
      'GB/s of the disk (default: as diskbench measured where the trace lies)',
      number,
    )
    .option(
      '--compute-micros <n>',
      'microseconds that a layer computes for one token; then stalls are predicted',
      number,
    )
    .option('--json', 'as JSON')
    .action(simulate);
}

export interface SimulatedRow {
  readonly slots: number;
  readonly slotShare: number;
  readonly policy: Policy | typeof BELADY;
  readonly predict: string;
  readonly lookups: number;
  /** Of all lookups, and of those of the answer. Late prefetches are no hits. */
  readonly hitRate: number;
  readonly answerHitRate: number | null;
  readonly lateShare: number;
  readonly bytesRead: number;
  readonly usefulPrefetchBytes: number;
  readonly wastedPrefetchBytes: number;
  /** Null without a disk's speed and a computing time. */
  readonly stallMicros: number | null;
  readonly stallShare: number | null;
}

export interface SimulateReport {
  readonly trace: string;
  readonly ending: TraceEnding;
  readonly layers: number;
  readonly experts: number;
  readonly expertsPerToken: number;
  readonly records: number;
  readonly disk: DiskModel | null;
  readonly lookupsPerSecond: number;
  readonly rows: readonly SimulatedRow[];
}

function listOf(text: string): string[] {
  return text.split(',').map((part) => part.trim());
}

function policiesOf(text: string): Policy[] {
  return listOf(text).map((name) => {
    const found = POLICIES.find((each) => each === name);
    if (found !== undefined) return found;
    throw new MoestreamError(
      'USAGE',
      `no eviction policy is called "${name}", choose ${POLICIES.join(', ')}`,
    );
  });
}

function slotsOf(text: string, all: number): number[] {
  return listOf(text).map((part) => {
    const share = part.endsWith('%');
    const value = Number(share ? part.slice(0, -1) : part);
    const slots = share ? Math.floor((value / 100) * all) : value;
    if (part !== '' && part !== '%' && Number.isInteger(slots) && slots >= 1 && slots <= all) return slots;
    throw new MoestreamError(
      'USAGE',
      `slots "${part}" is no number from 1 to ${all}, and no share such as 25%`,
    );
  });
}

interface Asked {
  readonly name: string;
  readonly prediction: Prediction | undefined;
}

function predictionsOf(text: string, depth: number): Asked[] {
  if (depth < 1 || depth > LOOKAHEAD_MAX)
    throw new MoestreamError('USAGE', `lookahead is ${depth}, expected 1 to ${LOOKAHEAD_MAX}`);
  return listOf(text).map((name) => {
    const prediction = predictionOf(name.split('+'), depth, undefined);
    if (prediction?.union === true && prediction.names.length === 0) {
      throw new MoestreamError(
        'USAGE',
        `"${name}" reads within a prompt's chunks, which a replay does not time`,
        {
          hint: 'Measure it with `moestream profile --predict union`, beside none.',
        },
      );
    }
    if (prediction?.names.includes('lookahead') !== true) return { name, prediction };
    throw new MoestreamError('USAGE', `"${name}" asks the routers, whose input a trace does not hold`, {
      hint: 'Measure it with `moestream generate --predict lookahead`, or name auto+markov.',
    });
  });
}

function diskOf(trace: string, flags: SimulateFlags): DiskModel | undefined {
  const { computeMicros, diskSpeed } = flags;
  if (computeMicros === undefined) {
    if (diskSpeed === undefined) return undefined;
    throw new MoestreamError('USAGE', '--disk-speed says nothing without --compute-micros');
  }
  if (computeMicros <= 0 || (diskSpeed !== undefined && diskSpeed <= 0))
    throw new MoestreamError('USAGE', '--compute-micros and --disk-speed must be above 0');
  if (diskSpeed !== undefined) return { bytesPerSecond: diskSpeed * 1e9, computeMicros };
  const notice = (sentence: string): void => say(`moestream: ${sentence}`);
  const stored = storedMeasurement(deviceOf(trace), notice);
  const best = stored && bestPoint(stored.points);
  if (best !== undefined) return { bytesPerSecond: best.bytesPerSecond, computeMicros };
  throw new MoestreamError('USAGE', `the disk of ${trace} is not measured`, {
    hint: 'Give --disk-speed, or run `moestream diskbench` first.',
  });
}

async function simulate(path: string, flags: SimulateFlags): Promise<void> {
  const policies = policiesOf(flags.policy);
  const asked = predictionsOf(flags.predict, flags.lookahead);
  const trace = readRoutingTrace(path);
  const { layers, experts, expertsPerToken } = trace.header;
  const sizes = slotsOf(flags.slots, layers * experts);
  const disk = diskOf(path, flags);
  if (policies.length * asked.length * sizes.length > COMBINATIONS_MAX)
    throw new MoestreamError('USAGE', `more than ${COMBINATIONS_MAX} combinations`);
  const began = performance.now();
  const rows = sizes.flatMap((slots) => rowsFor(trace, slots, policies, asked, disk));
  const lookups = rows.reduce((sum, row) => sum + row.lookups, 0);
  const report: SimulateReport = {
    trace: path,
    ending: trace.ending,
    layers,
    experts,
    expertsPerToken,
    records: trace.records,
    disk: disk ?? null,
    lookupsPerSecond: (lookups / (performance.now() - began)) * 1000,
    rows,
  };
  if (trace.ending !== 'complete')
    say(`moestream: the recording of ${path} was ${endingWords[trace.ending]}`);
  await print(flags.json === true ? `${JSON.stringify(report, undefined, 2)}\n` : textOf(report));
}

const endingWords: Readonly<Record<Exclude<TraceEnding, 'complete'>, string>> = {
  interrupted: 'interrupted; what there is, is whole',
  cut: 'cut off; its last step is left out',
};

function rowsFor(
  trace: RoutingTrace,
  slots: number,
  policies: readonly Policy[],
  asked: readonly Asked[],
  disk: DiskModel | undefined,
): SimulatedRow[] {
  const { layers, experts, expertsPerToken } = trace.header;
  const shape = shapeFor(trace.header, slots);
  const size = { slots: slotCount(shape), slotShare: slotCount(shape) / (layers * experts) };
  const rows = policies.flatMap((policy) =>
    asked.map(({ name, prediction }): SimulatedRow => {
      const panel =
        prediction && new Panel({ names: prediction.names, shape: { layers, experts, expertsPerToken } });
      const result = replay(trace, {
        shape,
        policy,
        disk,
        prediction: panel && prediction && { panel, auto: prediction.auto, depth: prediction.depth },
      });
      return { ...size, policy, predict: name, ...ratesOf(result, disk) };
    }),
  );
  const best = belady(trace, shape);
  const missed = best.lookups - best.hits;
  const meanBytes = trace.header.expertBytes.reduce((sum, bytes) => sum + bytes, 0) / layers;
  const bound: SimulatedRow = {
    ...size,
    policy: BELADY,
    predict: 'none',
    lookups: best.lookups,
    hitRate: rate(best.hits, best.lookups),
    answerHitRate: best.answerLookups === 0 ? null : rate(best.answerHits, best.answerLookups),
    lateShare: 0,
    bytesRead: Math.round(missed * meanBytes),
    usefulPrefetchBytes: 0,
    wastedPrefetchBytes: 0,
    stallMicros: null,
    stallShare: null,
  };
  return [...rows, bound];
}

const rate = (part: number, whole: number): number => (whole === 0 ? 0 : part / whole);

function ratesOf(
  result: ReplayResult,
  disk: DiskModel | undefined,
): Omit<SimulatedRow, 'slots' | 'slotShare' | 'policy' | 'predict'> {
  const { counters, answerLookups, answerHits, stallMicros, computeMicros } = result;
  return {
    lookups: counters.lookups,
    hitRate: rate(counters.hits, counters.lookups),
    answerHitRate: answerLookups === 0 ? null : rate(answerHits, answerLookups),
    lateShare: rate(counters.lateHits, counters.lookups),
    bytesRead: Math.round(counters.bytesRead),
    usefulPrefetchBytes: Math.round(counters.usefulPrefetchBytes),
    wastedPrefetchBytes: Math.round(counters.wastedPrefetchBytes),
    stallMicros: disk === undefined ? null : stallMicros,
    stallShare: disk === undefined ? null : rate(stallMicros, stallMicros + computeMicros),
  };
}

const percent = (share: number | null): string => (share === null ? '-' : `${(100 * share).toFixed(1)} %`);

function textOf(report: SimulateReport): string {
  const { disk, rows } = report;
  const head = ['slots', '', 'policy', 'predict', 'hits', 'answer', 'late', 'read', 'wasted'];
  const lines = rows.map((row) => [
    row.slots,
    `${(100 * row.slotShare).toFixed(0)} %`,
    row.policy,
    row.predict,
    percent(row.hitRate),
    percent(row.answerHitRate),
    percent(row.lateShare),
    formatBytes(row.bytesRead),
    formatBytes(row.wastedPrefetchBytes),
    ...(disk === null
      ? []
      : [
          row.stallMicros === null ? '-' : `${(row.stallMicros / 1e6).toFixed(3)} s`,
          percent(row.stallShare),
        ]),
  ]);
  const speed =
    disk === null
      ? 'Prefetches count as instant: no --compute-micros was given.\n'
      : `Disk ${(disk.bytesPerSecond / 1e9).toFixed(2)} GB/s, a layer computes ${disk.computeMicros} us a token.\n`;
  const traceLine =
    `${report.records} choices of ${report.expertsPerToken} out of ${report.experts} experts in ${report.layers} layers; ` +
    `${(report.lookupsPerSecond / 1e6).toFixed(1)} million lookups a second\n`;
  return `${traceLine}${speed}\n${table([disk === null ? head : [...head, 'stall', 'of time'], ...lines])}`;
}
