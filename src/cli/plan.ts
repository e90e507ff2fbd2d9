/** `moestream plan`: what a memory budget is spent on, what a larger one would buy, and what the disk allows. */
import { type Command, Option } from 'commander';
import { deviceOf } from '../disk/device.ts';
import type { DiskPoint } from '../disk/measure.ts';
import { bestPoint, storedMeasurement } from '../disk/store.ts';
import { KV_TYPES, type KvType, settingsOf } from '../engine/options.ts';
import { planOf } from '../engine/planning.ts';
import { MoestreamError } from '../errors.ts';
import { type Model, openModel } from '../model/model.ts';
import { type Budget, defaultBudget } from '../pipeline/budget.ts';
import { POLICY_DEFAULT, type Policy } from '../pipeline/eviction.ts';
import { formatBytes } from '../pipeline/memory.ts';
import type { MemoryPlan } from '../pipeline/plan.ts';
import { readRoutingTrace } from '../pipeline/routing-trace.ts';
import { slotCount } from '../pipeline/slab.ts';
import { replay } from '../simulate/replay.ts';
import { integer, size } from './arguments.ts';
import { print, say, table } from './output.ts';

interface PlanFlags {
  readonly memory?: number;
  readonly context?: number;
  readonly chunk?: number;
  readonly threads?: number;
  readonly expertsPerToken?: number;
  readonly kvType?: KvType;
  readonly routingTrace?: string;
  readonly json?: boolean;
}

/** Shares of all experts whose budgets are worth naming. */
const SHARES = [0.25, 0.5, 0.75, 1] as const;

export function addPlan(program: Command): void {
  program
    .command('plan')
    .description('show what a memory budget is spent on and what the disk allows; loads nothing')
    .argument('<model>', 'GGUF file, any part of a split set, or packed folder')
    .option('--memory <size>', 'the budget, such as 8G (default: most of what is free)', size)
    .option('-c, --context <n>', 'positions that fit (default 4096)', integer)
    .option('--chunk <n>', 'prompt tokens computed together (default: up to 512, as memory allows)', integer)
    .option('-t, --threads <n>', 'compute threads (default: all cores)', integer)
    .option('--experts-per-token <n>', "overrides the model's own number of experts", integer)
    .addOption(new Option('--kv-type <name>', 'how keys and values are kept (default f16)').choices(KV_TYPES))
    .option('--routing-trace <file>', 'a recorded trace of this model: then the hit rate is expected from it')
    .option('--json', 'as JSON')
    .action(plan);
}

/** tok/s that the disk alone allows; null when nothing is read. */
interface Bound {
  readonly hitRate: number;
  readonly tokensPerSecond: number | null;
}

interface Larger {
  readonly budgetBytes: number;
  readonly slabShare: number;
  readonly tokensPerSecond: number | null;
}

interface Disk {
  readonly device: string;
  readonly measuredAt: string;
  readonly bytesPerSecond: number;
  readonly setting: Pick<DiskPoint, 'engine' | 'io' | 'split' | 'readers' | 'window'>;
  readonly bounds: readonly Bound[];
}

export interface PlanReport {
  readonly model: string;
  readonly layers: number;
  readonly experts: number;
  readonly expertsPerToken: number;
  readonly contextLength: number;
  readonly kvType: KvType;
  readonly maxRows: number;
  readonly budgetBytes: number;
  readonly budgetBecause: string;
  readonly denseBytes: number;
  readonly kvBytes: number;
  readonly stateBytes: number;
  readonly scratchBytes: number;
  readonly logitsBytes: number;
  readonly slabBytes: number;
  readonly totalBytes: number;
  readonly slots: number;
  readonly allSlots: number;
  readonly slabShare: number;
  readonly smallestBytes: number;
  /** The budget from which on every expert stays in memory. */
  readonly everythingBytes: number;
  readonly expertBytesPerToken: number;
  /** What the plan's slots would have found in the trace of --routing-trace, by policy. */
  readonly expected: Expected | null;
  readonly disk: Disk | null;
  readonly larger: readonly Larger[];
}

interface Expected {
  readonly policy: Policy;
  readonly lookups: number;
  readonly hitRate: number;
  /** While the answer was generated; null when the trace holds none. */
  readonly answerHitRate: number | null;
}

/** The hit rate of a recorded trace with the plan's slots and the default policy. */
function expectedOf(path: string, model: Model, plan: MemoryPlan): Expected {
  const trace = readRoutingTrace(path);
  const { layers, experts, expertsPerToken } = model.hyperparameters;
  const { header } = trace;
  const shapes = [header, { layers, experts, expertsPerToken }].map(
    (each) => `${each.layers} layers of ${each.experts} experts, ${each.expertsPerToken} per token`,
  );
  if (shapes[0] !== shapes[1])
    throw new MoestreamError('USAGE', `${path} is of another model: ${shapes[0]}, this one has ${shapes[1]}`);
  const policy = POLICY_DEFAULT;
  const result = replay(trace, { shape: plan.slab, policy, prediction: undefined, disk: undefined });
  const { lookups, hits } = result.counters;
  return {
    policy,
    lookups,
    hitRate: lookups === 0 ? 0 : hits / lookups,
    answerHitRate: result.answerLookups === 0 ? null : result.answerHits / result.answerLookups,
  };
}

function expertBytesPerToken({ tensors, hyperparameters }: Model): number {
  return tensors.experts.reduce(
    (sum, { gate, up, down }) =>
      sum + (gate.byteLength + up.byteLength + down.byteLength) * hyperparameters.expertsPerToken,
    0,
  );
}

function tokensPerSecond(bytesPerToken: number, hitRate: number, bytesPerSecond: number): number | null {
  return hitRate >= 1 ? null : bytesPerSecond / (bytesPerToken * (1 - hitRate));
}

function diskOf(
  model: Model,
  slabShare: number,
  expected: Expected | null,
  notice: (sentence: string) => void,
): Disk | null {
  const stored = storedMeasurement(deviceOf(model.files.at(-1)!.path), notice);
  const best = stored && bestPoint(stored.points);
  if (stored === undefined || best === undefined) return null;
  const { engine, io, split, readers, window, bytesPerSecond } = best;
  const bytes = expertBytesPerToken(model);
  const found = expected?.answerHitRate ?? expected?.hitRate ?? slabShare;
  const hitRates = [...new Set([0, 0.5, slabShare, found])].sort((a, b) => a - b);
  return {
    device: stored.device,
    measuredAt: stored.measuredAt,
    bytesPerSecond,
    setting: { engine, io, split, readers, window },
    bounds: hitRates.map((hitRate) => ({
      hitRate,
      tokensPerSecond: tokensPerSecond(bytes, hitRate, bytesPerSecond),
    })),
  };
}

function totalOf(plan: MemoryPlan): number {
  return (
    plan.denseBytes + plan.kvBytes + plan.stateBytes + plan.scratchBytes + plan.logitsBytes + plan.slabBytes
  );
}

function reportOf(
  model: Model,
  flags: PlanFlags,
  budget: Budget,
  notice: (text: string) => void,
): PlanReport {
  const settings = settingsOf({
    model: model.files[0]!.path,
    memory: budget.bytes,
    ...(flags.context === undefined ? {} : { contextLength: flags.context }),
    ...(flags.chunk === undefined ? {} : { chunk: flags.chunk }),
    ...(flags.threads === undefined ? {} : { threads: flags.threads }),
    ...(flags.kvType === undefined ? {} : { kvType: flags.kvType }),
  });
  const { plan, config } = planOf(model, settings);
  const slots = slotCount(plan.slab);
  const allSlots = config.layers * config.experts;
  const slabShare = slots / allSlots;
  const totalBytes = totalOf(plan);
  const fixedBytes = totalBytes - plan.slabBytes;
  const expected = flags.routingTrace === undefined ? null : expectedOf(flags.routingTrace, model, plan);
  const disk = diskOf(model, slabShare, expected, notice);
  const bytesPerToken = expertBytesPerToken(model);
  const larger = SHARES.filter((share) => share > slabShare).map((share) => ({
    budgetBytes: fixedBytes + Math.ceil(share * plan.allExpertsBytes),
    slabShare: share,
    tokensPerSecond: disk === null ? null : tokensPerSecond(bytesPerToken, share, disk.bytesPerSecond),
  }));
  return {
    model: model.hyperparameters.name ?? model.files[0]!.path,
    layers: config.layers,
    experts: config.experts,
    expertsPerToken: config.expertsPerToken,
    contextLength: config.contextLength,
    kvType: config.kvType,
    maxRows: config.maxRows,
    budgetBytes: plan.budgetBytes,
    budgetBecause: budget.because,
    denseBytes: plan.denseBytes,
    kvBytes: plan.kvBytes,
    stateBytes: plan.stateBytes,
    scratchBytes: plan.scratchBytes,
    logitsBytes: plan.logitsBytes,
    slabBytes: plan.slabBytes,
    totalBytes,
    slots,
    allSlots,
    slabShare,
    smallestBytes: plan.smallestBytes,
    everythingBytes: fixedBytes + plan.allExpertsBytes,
    expertBytesPerToken: bytesPerToken,
    expected,
    disk,
    larger,
  };
}

async function plan(path: string, flags: PlanFlags): Promise<void> {
  const model = openModel(
    path,
    flags.expertsPerToken === undefined ? {} : { expertsPerToken: flags.expertsPerToken },
  );
  const free = defaultBudget();
  const budget = flags.memory === undefined ? free : { bytes: flags.memory, because: 'as --memory says' };
  const notice = (sentence: string): void => say(`moestream: ${sentence}`);
  const found = reportOf(model, flags, budget, notice);
  if (found.totalBytes > free.bytes) {
    notice(`this takes more than the ${formatBytes(free.bytes)} that would be taken now: ${free.because}`);
  }
  await print(flags.json === true ? `${JSON.stringify(found, undefined, 2)}\n` : textOf(found));
}

const percent = (share: number): string => `${(100 * share).toFixed(share < 0.1 && share > 0 ? 1 : 0)} %`;

function speed(tokens: number | null): string {
  if (tokens === null) return 'nothing is read';
  return `${tokens < 10 ? tokens.toPrecision(2) : tokens.toFixed(0)} tok/s at most`;
}

function textOf(found: PlanReport): string {
  const bytes = (count: number): string => formatBytes(count).padStart(8);
  const parts = [
    table([
      [
        'model',
        `${found.model}: ${found.layers} layers of ${found.experts} experts, ${found.expertsPerToken} per token`,
      ],
      ['budget', `${formatBytes(found.budgetBytes)}: ${found.budgetBecause}`],
    ]),
    table([
      ['dense weights', bytes(found.denseBytes), ''],
      ['KV cache', bytes(found.kvBytes), `context of ${found.contextLength}, kept as ${found.kvType}`],
      ['states', bytes(found.stateBytes), ''],
      ['scratch', bytes(found.scratchBytes), `chunks of ${found.maxRows}`],
      ['logits', bytes(found.logitsBytes), ''],
      [
        'expert slab',
        bytes(found.slabBytes),
        `${found.slots} of ${found.allSlots} experts, ${percent(found.slabShare)}`,
      ],
      ['total', bytes(found.totalBytes), 'and about 200 MB for Node.js, its threads and their rings'],
    ]),
    table([
      ['smallest budget', bytes(found.smallestBytes), `--memory ${found.smallestBytes}`],
      ['for all experts', bytes(found.everythingBytes), `--memory ${found.everythingBytes}`],
      ['one token reads', bytes(found.expertBytesPerToken), 'of experts, less those that are in the slab'],
    ]),
    ...(found.expected === null ? [] : [expectedText(found.expected)]),
    diskText(found),
  ];
  return parts.join('\n');
}

function expectedText({ policy, lookups, hitRate, answerHitRate }: Expected): string {
  return table([
    ['expected hits', percent(hitRate), `of ${lookups} lookups of the trace, policy ${policy}`],
    ...(answerHitRate === null ? [] : [['of the answer', percent(answerHitRate), 'while it was generated']]),
  ]);
}

function diskText({ disk, larger, slabShare }: PlanReport): string {
  const budgets = larger.map(({ budgetBytes, slabShare: share, tokensPerSecond: tokens }) => [
    `with ${formatBytes(budgetBytes)}`,
    `${percent(share)} of the experts`,
    disk === null ? '' : speed(tokens),
  ]);
  if (disk === null) {
    const hint = 'The disk is not measured yet: `moestream diskbench MODEL` does it.\n';
    return larger.length === 0 ? hint : `${table(budgets)}\n${hint}`;
  }
  const { engine, io, split } = disk.setting;
  const head =
    `disk ${disk.device}: ${(disk.bytesPerSecond / 1e9).toFixed(2)} GB/s ` +
    `(${engine}, ${io}, split ${split}; measured ${disk.measuredAt.slice(0, 10)})\n`;
  const bounds = disk.bounds.map(({ hitRate, tokensPerSecond: tokens }) => [
    `${percent(hitRate)} found`,
    hitRate === slabShare ? 'the share in the slab' : '',
    speed(tokens),
  ]);
  const foot =
    "The disk's bound alone: computing takes its time too, and experts that are used often are found more often.\n";
  return [head + table(bounds), ...(larger.length === 0 ? [] : [table(budgets)]), foot].join('\n');
}
