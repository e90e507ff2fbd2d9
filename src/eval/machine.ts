/**
 * Looking at the machine before and while something is measured.
 *
 * A number that was taken while a build ran in the next window looks like any other number. So every measuring command
 * looks first and says what would spoil it, and every run notes how much of the processor went to others meanwhile. What
 * a system does not show is not guessed: nothing is said about it.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { cpus, totalmem } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { formatBytes } from '../pipeline/memory.ts';
import { fileCache } from './cold.ts';

export interface MachineLook {
  /** Whether anything was found that would spoil a measurement. */
  readonly busy: boolean;
  /** What was found, one sentence each. */
  readonly sentences: readonly string[];
  readonly processor: string;
  readonly cores: number;
  readonly memoryBytes: number;
  /** Share of all cores that others took while it was looked at. */
  readonly othersShare: number;
}

/** What else happened while something was measured. */
export interface Disturbance {
  /** Share of all cores that other processes took, 0 to 1. */
  readonly othersShare: number;
  /** How long this process was held back by its CPU limit. */
  readonly throttledMillis: number;
}

const LOOK_MILLIS = 400;
/** More than this of all cores, and timings move. */
const BUSY_SHARE = 0.1;
/** Enough of the model in the page cache that buffered reads are no reads. */
const CACHED_SHARE = 0.1;
/** A core that runs below this share of its own speed limit is held back. */
const SLOW_SHARE = 0.7;
/** What other engines call themselves; their memory and disk traffic matter even while they look idle. */
const ENGINES = /(^|\/)(moestream|llama-[a-z-]+|ollama|vllm|koboldcpp|lms|mlx_lm[.a-z]*)$/;

function processorMillis(): { busy: number; total: number } {
  let idle = 0;
  let total = 0;
  for (const { times } of cpus()) {
    idle += times.idle;
    total += times.idle + times.user + times.nice + times.sys + times.irq;
  }
  return { busy: total - idle, total };
}

function ownMillis(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

function text(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    // Not this system, or gone meanwhile: there is nothing to say about it.
    return undefined;
  }
}

/** Of this process's control group: version 2, then version 1. */
function throttledMillis(): number {
  const lines = (text('/proc/self/cgroup') ?? '').split('\n');
  const group = (controllers: string): string | undefined =>
    lines.map((line) => line.split(':')).find((parts) => parts[1]?.split(',').includes(controllers))?.[2];
  const candidates = [
    [`/sys/fs/cgroup${group('') ?? ''}/cpu.stat`, /^throttled_usec (\d+)/m, 1e3],
    [`/sys/fs/cgroup/cpu${group('cpu') ?? ''}/cpu.stat`, /^throttled_time (\d+)/m, 1e6],
  ] as const;
  for (const [path, pattern, perMilli] of candidates) {
    const found = pattern.exec(text(path) ?? '');
    if (found !== null) return Number(found[1]) / perMilli;
  }
  return 0;
}

/** Starts to watch; the function that it returns ends that and says what was seen. */
export function watchMachine(): () => Disturbance {
  const [before, own, throttled] = [processorMillis(), ownMillis(), throttledMillis()];
  return () => {
    const after = processorMillis();
    const total = after.total - before.total;
    const others = after.busy - before.busy - (ownMillis() - own);
    return {
      // The system counts in ticks: below a few of them there is nothing to divide.
      othersShare: total < 50 ? 0 : Math.min(1, Math.max(0, others / total)),
      throttledMillis: throttledMillis() - throttled,
    };
  };
}

/** Looks for half a second. `paths` are the files that will be measured; `buffered` whether the page cache matters. */
export async function lookAtMachine(
  paths: readonly string[],
  options: { readonly buffered?: boolean } = {},
): Promise<MachineLook> {
  const watch = watchMachine();
  const throttledBefore = throttleCounts();
  await sleep(LOOK_MILLIS);
  const { othersShare, throttledMillis: held } = watch();
  const sentences = [
    ...(othersShare > BUSY_SHARE
      ? [`other processes take ${Math.round(100 * othersShare)} % of the processor`]
      : []),
    ...otherEngines(),
    ...(held > 0 ? [`the CPU limit of this process's control group holds it back`] : []),
    ...(throttleCounts() > throttledBefore ? ['the processor is throttled by its temperature'] : []),
    ...slowCores(),
    ...(options.buffered === true ? cachedFiles(paths) : []),
  ];
  const all = cpus();
  return {
    busy: sentences.length > 0,
    sentences,
    processor: all[0]?.model.trim() ?? 'unknown processor',
    cores: all.length,
    memoryBytes: totalmem(),
    othersShare,
  };
}

/** One sentence for the terminal, or undefined when the machine is quiet. */
export function busySentence(look: MachineLook): string | undefined {
  return look.busy
    ? `the machine is not quiet, numbers will be off: ${look.sentences.join('; ')}`
    : undefined;
}

/** Processes that are engines, except this one and those that it came from. */
function otherEngines(): string[] {
  if (!existsSync('/proc/self/stat')) return [];
  const own = ancestors();
  const found: string[] = [];
  for (const pid of readdirSync('/proc')) {
    if (!/^\d+$/.test(pid) || own.has(pid)) continue;
    const name = engineOf((text(`/proc/${pid}/cmdline`) ?? '').split('\0'));
    if (name !== undefined) found.push(`${name} is running (process ${pid})`);
  }
  return found.slice(0, 4);
}

/** The engine that a command line starts, or undefined. Interpreters name it in their first argument that is no option. */
export function engineOf(words: readonly string[]): string | undefined {
  const [program = '', ...rest] = words;
  const script = /(^|\/)(node|python[\d.]*)$/.test(program)
    ? rest.find((word) => !word.startsWith('-'))
    : undefined;
  if (script?.endsWith('/dist/cli/main.js') === true) return 'another moestream';
  return ENGINES.exec(script ?? program)?.[2];
}

function ancestors(): Set<string> {
  const found = new Set<string>();
  for (let pid = String(process.pid); pid !== '0' && !found.has(pid); ) {
    found.add(pid);
    // The name, in brackets, may hold anything: what follows is counted from the last bracket.
    const stat = text(`/proc/${pid}/stat`) ?? '';
    pid = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1] ?? '0';
  }
  return found;
}

const coreFolders = (): string[] => cpus().map((_, core) => `/sys/devices/system/cpu/cpu${core}`);

function throttleCounts(): number {
  return coreFolders().reduce(
    (sum, folder) => sum + Number(text(`${folder}/thermal_throttle/core_throttle_count`) ?? 0),
    0,
  );
}

/** Cores whose policy does not let them reach their own speed. */
function slowCores(): string[] {
  const slow = coreFolders().filter((folder) => {
    const allowed = Number(text(`${folder}/cpufreq/scaling_max_freq`) ?? Number.NaN);
    const possible = Number(text(`${folder}/cpufreq/cpuinfo_max_freq`) ?? Number.NaN);
    return allowed < SLOW_SHARE * possible;
  });
  return slow.length === 0 ? [] : [`${slow.length} cores may not run at their full speed`];
}

function cachedFiles(paths: readonly string[]): string[] {
  const { cachedBytes, sizeBytes } = fileCache(paths);
  if (cachedBytes === undefined || cachedBytes < CACHED_SHARE * sizeBytes) return [];
  const share = Math.round((100 * cachedBytes) / sizeBytes);
  return [
    `the page cache holds ${formatBytes(cachedBytes)} of the model (${share} %), reads will come from memory`,
  ];
}
