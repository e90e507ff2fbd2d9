/**
 * How much of what the disk can give reaches the engine: our two read engines against fio, in one run, in turns.
 *
 * The file is a 4-layer model in the shape of Qwen3.5-397B-A17B (11.7 GB; made once). We read 10 random experts per layer
 * and wait for all of them, as a token does without any cache. fio reads random blocks of the sizes of the experts' chunks in
 * two ways: without ever waiting for a layer, which is the most that any engine could get, and in batches of a layer's
 * chunks that all end before the next begins, which is our pattern. Memory decides the speed too, so ours is compared with
 * a fio that has about as much. Both read past the page cache into huge pages. Targets for our pattern: uring 95 % of fio
 * and 0.015 CPU-seconds per GB, threads 90 % and 0.05.
 *
 * Both are measured after the same time at full speed: fio's ramp, and as much reading that nobody counts for ours, in which
 * V8 also ends compiling (half of what a first second of ours costs). What shares the time of a comparison stands side by
 * side in a round, and every second round runs backwards.
 *
 * Run: npm run bench:disk -- [MODEL] [--rounds 5] [--seconds 1]
 */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { DISK_SPLITS, type DiskPoint, pointOf } from '#dist/disk/measure.js';
import { type DiskSetting, Rig, type Turn } from '#dist/disk/rig.js';
import { Spinners } from '#dist/disk/spinners.js';
import { openWorkload, type Workload } from '#dist/disk/workload.js';
import { median } from '#dist/eval/statistics.js';
import { loadIo } from '#dist/native.js';
import { ExpertLayout, emptyChunkList } from '#dist/pipeline/expert-layout.js';
import { allocateShared } from '#dist/pipeline/memory.js';
import { makeModel } from '../scripts/model-maker/make-model.js';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string', default: '5' },
    seconds: { type: 'string', default: '1' },
  },
});
const ROUNDS = Number(values.rounds);
const SECONDS = Number(values.seconds);
const path = positionals[0] ?? join(tmpdir(), 'moestream-bench-397b.gguf');
/**
 * fio reads into the same memory again after as many reads as it has under way, we after as many as our slots hold: three
 * per expert. So these depths stand for our slabs of four layers and of four experts, and thirty for that of one layer.
 */
const LARGE_DEPTH = 120;
const SMALL_EXPERTS = 4;
const FIO_DEPTHS = { io_uring: [4, 8, 12, LARGE_DEPTH], psync: [4, 12, LARGE_DEPTH] } as const;
const WINDOWS = [0, 1, 2, 4];
/** fio takes about as long to start. */
const REST_MILLIS = 500;
/** What is read before anything is counted, per turn. A rate limiter in front of a virtual disk saves up for bursts. */
const RAMP_SECONDS = 1;
/** The same for the first turn of a setting: its threads have new code to compile. */
const FIRST_RAMP_SECONDS = 5;
const TABLE_ROUNDS = 3;
const TABLE_SECONDS = 0.35;

interface FioSetting {
  readonly engine: 'io_uring' | 'psync';
  readonly depth: number;
  /** All reads under way end before the next are submitted. */
  readonly barrier?: true;
}

interface FioTurn {
  readonly bytesPerSecond: number;
  readonly cpuSecondsPerGigabyte: number;
}

const rest = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, REST_MILLIS));

/** The sizes of the reads that one expert is made of. */
function chunkSizes(workload: Workload): number[] {
  const layout = new ExpertLayout(workload.layers, workload.sizeBytes, 1);
  const chunks = emptyChunkList();
  layout.chunksOf(0, 0, chunks);
  return [...chunks.byteLength.subarray(0, chunks.count)];
}

/** `1609728/66:2232320/34`: fio wants whole percents that make 100. */
function blockSizes(sizes: readonly number[]): string {
  const distinct = [...new Set(sizes)];
  const shares = distinct.map((size) =>
    Math.round((100 * sizes.filter((each) => each === size).length) / sizes.length),
  );
  shares[0] = shares[0]! + 100 - shares.reduce((sum, share) => sum + share, 0);
  return distinct.map((size, index) => `${size}/${shares[index]}`).join(':');
}

/** Reserved huge pages when there are enough of them; otherwise memory that the kernel backs with such pages by itself. */
function hugeBuffers(neededBytes: number): { name: string; args: string[]; env: Record<string, string> } {
  const free = /^HugePages_Free: +(\d+)$/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1] ?? '0';
  const isEnough = Number(free) * 2 * 1024 ** 2 >= neededBytes;
  return isEnough
    ? { name: 'reserved huge pages', args: ['--iomem=shmhuge'], env: {} }
    : { name: 'transparent huge pages', args: [], env: { GLIBC_TUNABLES: 'glibc.malloc.hugetlb=1' } };
}

/** Not spawnSync: the computing processes' channels must stay alive meanwhile. */
function fio(
  setting: FioSetting,
  sizes: readonly number[],
  buffers: ReturnType<typeof hugeBuffers>,
): Promise<FioTurn> {
  const { engine, depth, barrier } = setting;
  const args = [
    '--name=read',
    `--filename=${path}`,
    '--rw=randread',
    '--direct=1',
    `--bssplit=${blockSizes(sizes)}`,
    // Without it fio rounds the larger sizes down to a multiple of the smallest.
    '--bs_unaligned',
    '--blockalign=4096',
    '--norandommap',
    '--randrepeat=0',
    '--time_based',
    // Until fio has touched all of its memory: that is slow, and ours has been touched.
    `--ramp_time=${depth === LARGE_DEPTH ? 3 : RAMP_SECONDS}`,
    `--runtime=${Math.max(1, Math.round(SECONDS))}`,
    '--group_reporting',
    '--output-format=json',
    `--ioengine=${engine}`,
    ...(engine === 'psync' ? [`--numjobs=${depth}`, '--thread'] : [`--iodepth=${depth}`]),
    ...(barrier
      ? ['submit', 'complete_min', 'complete_max'].map((what) => `--iodepth_batch_${what}=${depth}`)
      : []),
    ...buffers.args,
  ];
  return new Promise((resolve, reject) => {
    const child = spawn('fio', args, { env: { ...process.env, ...buffers.env } });
    let out = '';
    let errors = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      out += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      errors += text;
    });
    child.on('error', reject);
    child.on('close', (code) => {
      if (code !== 0) return reject(new Error(`fio ended with ${code}: ${errors || out}`));
      const { jobs } = JSON.parse(out.slice(out.indexOf('{'))) as {
        jobs: [
          {
            read: { bw_bytes: number; io_bytes: number };
            usr_cpu: number;
            sys_cpu: number;
            job_runtime: number;
          },
        ];
      };
      const [{ read, usr_cpu, sys_cpu, job_runtime }] = jobs;
      const cpuSeconds = (((usr_cpu + sys_cpu) / 100) * job_runtime) / 1000;
      resolve({
        bytesPerSecond: read.bw_bytes,
        cpuSecondsPerGigabyte: (cpuSeconds * 1e9) / read.io_bytes,
      });
    });
  });
}

const gigabytes = (bytesPerSecond: number): string => (bytesPerSecond / 1e9).toFixed(2);

function range(values: readonly number[]): string {
  return `${gigabytes(median(values))} [${gigabytes(Math.min(...values))}-${gigabytes(Math.max(...values))}]`;
}

/** Slots of four layers, of one layer, of four experts. */
const MEMORIES = ['slab', 'layer', 'cache'] as const;
type Memory = (typeof MEMORIES)[number];

interface Rigs {
  readonly large: Rig;
  readonly layer: Rig;
  readonly small: Rig;
}

interface Ours {
  readonly rig: Rig;
  readonly memory: Memory;
  readonly setting: DiskSetting;
}

function oursOf({ large, layer, small }: Rigs): readonly Ours[] {
  const setting = (engine: DiskSetting['engine'], split: number, readers = 16): DiskSetting => ({
    engine,
    io: 'direct',
    split,
    readers: engine === 'uring' ? 1 : readers,
    window: 0,
  });
  const usual = [setting('uring', 1), setting('uring', 4), setting('threads', 1), setting('threads', 4)];
  return [
    ...usual.map((each): Ours => ({ rig: large, memory: 'slab', setting: each })),
    ...usual.map((each): Ours => ({ rig: layer, memory: 'layer', setting: each })),
    // Not a target: what sixteen reads under way cost where a layer is thirty.
    { rig: layer, memory: 'layer', setting: setting('threads', 1, 32) },
    { rig: small, memory: 'cache', setting: setting('uring', 1) },
    { rig: small, memory: 'cache', setting: setting('threads', 1) },
  ];
}

const memoryOf = ({ depth, barrier }: FioSetting): Memory =>
  barrier ? 'layer' : depth === LARGE_DEPTH ? 'slab' : 'cache';

interface Fio {
  readonly settings: readonly FioSetting[];
  readonly sizes: readonly number[];
  readonly buffers: ReturnType<typeof hugeBuffers>;
}

/** What was measured of one setting, ours or fio's. */
interface Watched<T> {
  readonly turns: T[];
  /** How fast the computing processes were meanwhile, where there are any. */
  readonly computeRates: number[];
}

const nothingYet = <T>(): Watched<T> => ({ turns: [], computeRates: [] });

/** Every setting of both once per round, those into as much memory side by side. */
async function measure(
  ours: readonly Ours[],
  { settings, sizes, buffers }: Fio,
  spinners: Spinners | undefined,
): Promise<{
  fios: readonly Watched<FioTurn>[];
  our: readonly Watched<Turn>[];
  idleRates: readonly number[];
}> {
  const fios = settings.map(() => nothingYet<FioTurn>());
  const our = ours.map(() => nothingYet<Turn>());
  const idleRates: number[] = [];
  const watch = async <T>(into: Watched<T>, work: () => Promise<T>): Promise<void> => {
    await spinners?.mark();
    into.turns.push(await work());
    if (spinners !== undefined) into.computeRates.push(await spinners.rate());
  };
  const steps = MEMORIES.flatMap((memory) => [
    ...settings.flatMap((setting, index) =>
      memoryOf(setting) === memory ? () => watch(fios[index]!, () => fio(setting, sizes, buffers)) : [],
    ),
    ...ours.flatMap(({ rig, memory: its, setting }, index) => {
      if (its !== memory) return [];
      return async (): Promise<void> => {
        await rest();
        await rig.turn(setting, our[index]!.turns.length === 0 ? FIRST_RAMP_SECONDS : RAMP_SECONDS);
        await watch(our[index]!, () => rig.turn(setting, SECONDS));
      };
    }),
  ]);
  for (let round = 0; round < ROUNDS; round++) {
    if (spinners !== undefined) {
      await spinners.mark();
      await rest();
      idleRates.push(await spinners.rate());
    }
    for (const step of round % 2 === 0 ? steps : steps.toReversed()) await step();
  }
  return { fios, our, idleRates };
}

/** One comparison. Returns the fastest of fio's settings for each memory. */
async function compare(
  ours: readonly Ours[],
  against: Fio,
  spinners: Spinners | undefined,
): Promise<readonly FioSetting[]> {
  const { settings } = against;
  const { fios, our, idleRates } = await measure(ours, against, spinners);
  const keptText = (rates: readonly number[]): string =>
    rates.length === 0 ? '' : `, compute kept ${Math.round((100 * median(rates)) / median(idleRates))} %`;
  const speedsOf = (index: number): number[] => fios[index]!.turns.map((turn) => turn.bytesPerSecond);
  const fastest = (memory: Memory): number => {
    const speeds = settings.map((each, index) => (memoryOf(each) === memory ? median(speedsOf(index)) : -1));
    return speeds.indexOf(Math.max(...speeds));
  };
  for (const [index, each] of settings.entries()) {
    const name = `fio ${each.engine}, ${each.depth} ${each.barrier ? 'and a barrier' : 'under way'}`.padEnd(
      34,
    );
    const { turns, computeRates } = fios[index]!;
    const cpu = median(turns.map((turn) => turn.cpuSecondsPerGigabyte)).toFixed(3);
    console.log(
      `${memoryOf(each).padEnd(6)} ${name} ${range(speedsOf(index))} GB/s, CPU ${cpu} s/GB${keptText(computeRates)}`,
    );
  }
  for (const [index, { memory, setting }] of ours.entries()) {
    const { turns, computeRates } = our[index]!;
    const point = pointOf(setting, turns);
    const speeds = turns.map((turn) => turn.bytes / turn.seconds);
    const readers = setting.readers > 16 ? `, ${setting.readers} readers` : '';
    const name = `our ${setting.engine}, split ${setting.split}${readers}`.padEnd(34);
    const cpu = point.cpuSecondsPerGigabyte.toFixed(3);
    const best = settings.length === 0 ? undefined : speedsOf(fastest(memory));
    const ratio =
      best === undefined
        ? ''
        : `, ${median(speeds.map((speed, round) => speed / best[round]!)).toFixed(2)} of the fastest fio`;
    const layer = `, layer p50 ${point.p50Millis.toFixed(1)} p99 ${point.p99Millis.toFixed(1)} ms`;
    console.log(
      `${memory.padEnd(6)} ${name} ${range(speeds)} GB/s, CPU ${cpu} s/GB${layer}${ratio}${keptText(computeRates)}`,
    );
  }
  return settings.length === 0 ? [] : MEMORIES.map((memory) => settings[fastest(memory)]!);
}

/** Splits and windows of both engines. */
async function tuningTable(rig: Rig): Promise<void> {
  for (const engine of ['uring', 'threads'] as const) {
    const settings = WINDOWS.flatMap((window) =>
      DISK_SPLITS.map(
        (split): DiskSetting => ({
          engine,
          io: 'direct',
          split,
          readers: engine === 'uring' ? 1 : 16,
          window,
        }),
      ),
    );
    const turns = settings.map((): Turn[] => []);
    for (let round = 0; round < TABLE_ROUNDS; round++)
      for (const [index, setting] of settings.entries())
        turns[index]!.push(await rig.turn(setting, TABLE_SECONDS));
    await rig.endStations();
    const points = settings.map((setting, index) => pointOf(setting, turns[index]!));
    console.log(`\n${engine}: GB/s, CPU s/GB, first and half of the experts there (ms), p99 of a layer (ms)`);
    console.log(`window   ${DISK_SPLITS.map((split) => `split ${split}`.padEnd(28)).join('')}`);
    for (const window of WINDOWS) {
      const cells = points.filter((point) => point.window === window).map(cell);
      console.log(`${String(window || 'all').padEnd(9)}${cells.join('')}`);
    }
  }
}

function cell({ bytesPerSecond, cpuSecondsPerGigabyte, arrivalMillis, p99Millis }: DiskPoint): string {
  const first = arrivalMillis[0]!.toFixed(1);
  const half = arrivalMillis[(arrivalMillis.length >> 1) - 1]!.toFixed(1);
  return `${gigabytes(bytesPerSecond)} ${cpuSecondsPerGigabyte.toFixed(3)} ${first}/${half} ${p99Millis.toFixed(0)}`.padEnd(
    28,
  );
}

/** A virtual disk is slow where it has not been read yet: every byte once, before anything is timed. */
function readOnce(workload: Workload): void {
  const io = loadIo();
  const buffer = allocateShared(16 * 1024 ** 2);
  io.prefault(buffer);
  for (const each of workload.paths) {
    const { fd, sizeBytes } = io.open(each, true);
    for (let at = 0; at < sizeBytes; at += buffer.length) io.readAt(fd, at, buffer.length, buffer, 0);
    io.close(fd);
  }
}

if (!existsSync(path)) {
  console.log(`making ${path} (11.7 GB)`);
  await makeModel({ preset: '397b', layers: 4, vocab: 512, mix: 'UD_Q3_K_XL' }, path);
}
// The page cache gives the file's pages back; direct reads go past it either way.
spawnSync('dd', [`if=${path}`, 'iflag=nocache', 'count=0'], { stdio: 'ignore' });
const notice = (sentence: string): void => console.log(`(${sentence})`);
const workload = openWorkload(path, { notice });
readOnce(workload);
const rig = new Rig(loadIo(), workload, notice);
const layer = new Rig(loadIo(), workload, notice, 1);
const small = new Rig(loadIo(), { ...workload, expertsPerLayer: SMALL_EXPERTS }, notice, 1);
const sizes = chunkSizes(workload);
const hugeShare = Math.round((100 * rig.hugePageBytes) / rig.slabBytes);
const megabytes = (bytes: number): string => `${Math.round(bytes / 1e6)} MB`;
console.log(
  `${path}: layers of ${workload.expertsPerLayer} experts, each of reads of ${sizes.join(' + ')} bytes`,
);
console.log(
  `slab: ${megabytes(rig.slabBytes)}, ${hugeShare} % in huge pages; ` +
    `layer: ${megabytes(layer.slabBytes)}; cache: layers of ${SMALL_EXPERTS} experts, ${megabytes(small.slabBytes)}; ${ROUNDS} rounds of ${SECONDS} s`,
);
const hasFio = spawnSync('fio', ['--version']).status === 0;
if (!hasFio) console.log('fio is not installed (Debian and Ubuntu: apt-get install fio): our engines alone');
const buffers = hugeBuffers(1.1 * LARGE_DEPTH * Math.max(...sizes));
if (hasFio) console.log(`fio reads into ${buffers.name}`);
try {
  const ours = oursOf({ large: rig, layer, small });
  const all: readonly FioSetting[] = [
    ...(['io_uring', 'psync'] as const).flatMap((engine) =>
      FIO_DEPTHS[engine].map((depth) => ({ engine, depth })),
    ),
    { engine: 'io_uring', depth: workload.expertsPerLayer * sizes.length, barrier: true },
  ];
  console.log('\nalone');
  const best = await compare(ours, { settings: hasFio ? all : [], sizes, buffers }, undefined);
  console.log('\nwhile every core computes');
  const spinners = await Spinners.start();
  try {
    await compare(ours, { settings: best, sizes, buffers }, spinners);
  } finally {
    spinners.end();
  }
  await tuningTable(rig);
} finally {
  await Promise.all([rig, layer, small].map((each) => each.close()));
}
