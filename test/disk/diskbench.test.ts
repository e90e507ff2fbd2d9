/** `moestream diskbench`: what it reports and what it keeps. Nothing here depends on how fast the disk is. */
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { report } from '../../dist/cli/diskbench.js';
import { deviceByMounts, deviceOf } from '../../dist/disk/device.js';
import { combinedSettings, type DiskMeasurement, defaultSettings, pointOf } from '../../dist/disk/measure.js';
import { bestPoint, measurementPath, storedMeasurement, storeMeasurement } from '../../dist/disk/store.js';
import { runCli } from '../support/cli.js';
import { temporaryFolder } from '../support/folder.js';
import { BUILT_IN_MODEL } from '../support/golden.js';

const folder = temporaryFolder();
const env = { XDG_CACHE_HOME: join(folder, 'cache') };
const cacheHome = process.env.XDG_CACHE_HOME;

afterEach(() => {
  if (cacheHome === undefined) delete process.env.XDG_CACHE_HOME;
  else process.env.XDG_CACHE_HOME = cacheHome;
});

const FEW = ['--splits', '1,3', '--readers', '2', '--seconds', '0.05'];

function expectSane(found: DiskMeasurement): void {
  expect(found.points.length).toBeGreaterThan(0);
  for (const point of found.points) {
    const amounts = [point.bytesPerSecond, point.p50Millis, point.cpuSecondsPerGigabyte, point.layers];
    for (const amount of amounts) expect(amount).toBeGreaterThan(0);
    expect(point.slowestBytesPerSecond).toBeLessThanOrEqual(point.bytesPerSecond);
    expect(point.fastestBytesPerSecond).toBeGreaterThanOrEqual(point.bytesPerSecond);
    expect(point.p99Millis).toBeGreaterThanOrEqual(point.p50Millis);
    expect(point.arrivalMillis).toHaveLength(found.expertsPerLayer);
    expect([...point.arrivalMillis].sort((a, b) => a - b)).toEqual(point.arrivalMillis);
  }
}

describe('diskbench', () => {
  it('measures a model and keeps the result for the device', async () => {
    const run = await runCli(['diskbench', BUILT_IN_MODEL, ...FEW, '--io', 'direct,buffered', '--json'], {
      env,
    });
    expect(run.code).toBe(0);
    const found = JSON.parse(run.stdout) as DiskMeasurement;
    expectSane(found);
    expect(found.points.every((point) => point.io === 'direct' || point.io === 'buffered')).toBe(true);
    expect(found).toMatchObject({ path: BUILT_IN_MODEL, expertsPerLayer: 4, computing: false });
    process.env.XDG_CACHE_HOME = env.XDG_CACHE_HOME;
    const stored = storedMeasurement(deviceOf(BUILT_IN_MODEL), (sentence) => expect.unreachable(sentence));
    expect(stored).toMatchObject({ device: found.device, points: found.points });
    // Written beside and renamed: nothing else is left.
    expect(readdirSync(dirname(measurementPath(found.device)))).toEqual([`${found.device}.json`]);
    const plan = await runCli(['plan', BUILT_IN_MODEL, '--json'], { env });
    const best = bestPoint(found.points);
    const disk = (JSON.parse(plan.stdout) as { disk: { bytesPerSecond: number } | null }).disk;
    expect(disk?.bytesPerSecond).toBe(best?.bytesPerSecond);
  });

  it('takes any file in experts of a given size, or of its own choice', async () => {
    const path = join(folder, 'random.bin');
    writeFileSync(path, randomBytes(8_000_001));
    const args = ['diskbench', path, ...FEW, '--expert-bytes', '100000', '--experts', '5', '--window', '0,1'];
    const run = await runCli([...args, '--json'], { env });
    expect(run.code).toBe(0);
    const found = JSON.parse(run.stdout) as DiskMeasurement;
    expectSane(found);
    expect(found).toMatchObject({ expertBytes: 98304, expertsPerLayer: 5 });
    const tooSmall = await runCli(['diskbench', path], { env });
    expect([tooSmall.code, tooSmall.stdout]).toEqual([2, '']);
    expect(tooSmall.stderr).toMatch(/too small for layers of 10 experts/);
  });

  it('prints a table that fits 80 columns, and keeps nothing under --compute', async () => {
    const other = { XDG_CACHE_HOME: join(folder, 'unused') };
    const run = await runCli(['diskbench', BUILT_IN_MODEL, '--window', '0,2', ...FEW, '--compute'], {
      env: other,
    });
    expect(run.code).toBe(0);
    expect(run.stdout).toMatch(/engine +io +split +readers +window +GB\/s/);
    expect(run.stdout).toMatch(/\d+%$/m);
    expect(Math.max(...run.stdout.split('\n').map((line) => line.length))).toBeLessThanOrEqual(80);
    expect(existsSync(other.XDG_CACHE_HOME)).toBe(false);
  });

  it.each([
    [3, ['/nowhere/at/all']],
    [3, ['/tmp']],
    [2, [BUILT_IN_MODEL, '--splits', '0']],
    [2, [BUILT_IN_MODEL, '--splits', '17']],
    [2, [BUILT_IN_MODEL, '--engines', 'magic']],
    [2, [BUILT_IN_MODEL, '--seconds', '0']],
    [2, [BUILT_IN_MODEL, '--experts', '33']],
    [2, [BUILT_IN_MODEL, '--expert-bytes', '4096']],
  ])('exit code %i for %j', async (code, args) => {
    const run = await runCli(['diskbench', ...args], { env });
    expect([run.code, run.stdout]).toEqual([code, '']);
    expect(run.stderr).not.toMatch(/\n\s+at /);
  });

  it('ends at once when it is interrupted', async () => {
    // Without a path it says which file it takes: the sign that it has begun and listens to signals.
    const child = spawn(process.execPath, ['dist/cli/main.js', 'diskbench'], {
      env: { ...process.env, ...env },
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    child.stderr.once('data', () => child.kill('SIGINT'));
    const code = await new Promise((resolve) => child.on('close', resolve));
    expect(code).toBe(130);
  });

  it('says so when a file of the page cache answers', async ({ skip }) => {
    if (!existsSync('/dev/shm') || process.platform !== 'linux') skip('needs a tmpfs at /dev/shm');
    const path = `/dev/shm/moestream-test-${process.pid}`;
    try {
      writeFileSync(path, randomBytes(4_000_000));
      const args = [path, '--expert-bytes', '65536', '--io', 'buffered', '--engines', 'threads', ...FEW];
      const run = await runCli(['diskbench', ...args, '--json'], { env });
      const found = JSON.parse(run.stdout) as DiskMeasurement & { notices: string[] };
      expect(found.points.every((point) => point.cached)).toBe(true);
      expect(found.notices.join('\n')).toMatch(/the page cache has answered, not the disk/);
      expect(bestPoint(found.points)).toBeUndefined();
    } finally {
      rmSync(path, { force: true });
    }
  });
});

const POINT = pointOf({ engine: 'uring', io: 'direct', split: 1, readers: 1, window: 2 }, [
  {
    layers: 3,
    bytes: 3e9,
    seconds: 1,
    cpuSeconds: 0.03,
    diskBytes: 3.3e9,
    layerMillis: [1, 3, 2],
    arrivalMillis: [1, 2],
  },
  {
    layers: 1,
    bytes: 1e9,
    seconds: 1,
    cpuSeconds: 0.02,
    diskBytes: 1.1e9,
    layerMillis: [9],
    arrivalMillis: [3, 4],
  },
]);

const MEASUREMENT: DiskMeasurement = {
  device: 'nvme0n1p2',
  path: '/models/a.gguf',
  measuredAt: '2026-11-21T00:00:00.000Z',
  totalBytes: 4e9,
  expertBytes: 5e6,
  expertsPerLayer: 2,
  cores: 2,
  computing: false,
  hugePageShare: null,
  points: [POINT],
};

describe('what is reported', () => {
  it('medians of the rounds, percentiles of the layers', () => {
    expect(POINT).toMatchObject({
      layers: 4,
      bytesPerSecond: 2e9,
      slowestBytesPerSecond: 1e9,
      fastestBytesPerSecond: 3e9,
      p50Millis: 3,
      p99Millis: 9,
      arrivalMillis: [2, 3],
      cached: false,
      computeKept: null,
    });
    expect(POINT.amplification).toBeCloseTo(1.1);
    expect(POINT.cpuSecondsPerGigabyte).toBeCloseTo(0.015);
  });

  it('tables of 80 and of 60 columns', () => {
    const points = [POINT, { ...POINT, engine: 'threads' as const, readers: 16, window: 0 }];
    const compute = points.map((point) => ({ ...point, computeKept: 0.875 }));
    for (const columns of [60, 80]) {
      const all = { ...MEASUREMENT, computing: columns === 80, expertsPerLayer: 10, points };
      const wider = points.map((point) => ({
        ...point,
        p99Millis: 1234.5,
        io: 'buffered' as const,
        computeKept: 1,
        arrivalMillis: Array<number>(10).fill(100.04),
      }));
      const text = report({ ...all, points: wider }, columns);
      expect(Math.max(...text.split('\n').map((line) => line.length)), text).toBeLessThanOrEqual(columns);
    }
    expect(report({ ...MEASUREMENT, computing: true, points: compute }, 80)).toMatch(/88%/);
  });

  it('the default settings fit a minute and differ from each other', () => {
    for (const quick of [true, false]) {
      const settings = defaultSettings(quick).map((setting) => JSON.stringify(setting));
      expect(new Set(settings).size).toBe(settings.length);
    }
    // Readers are of no interest to io_uring.
    expect(combinedSettings({ readers: [1, 2, 4], splits: [1] })).toHaveLength(4);
  });
});

describe('the store', () => {
  const said: string[] = [];
  const say = (sentence: string): void => {
    said.push(sentence);
  };

  it('gives back what was put in', () => {
    process.env.XDG_CACHE_HOME = join(folder, 'store');
    expect(storedMeasurement('nvme0n1p2', say)).toBeUndefined();
    expect(storeMeasurement(MEASUREMENT, say)).toBe(true);
    expect(storedMeasurement('nvme0n1p2', say)).toMatchObject(MEASUREMENT);
    expect(said).toEqual([]);
  });

  it.each([
    ['', /no JSON/],
    ['{', /no JSON/],
    ['[]', /no measurement/],
    ['{"version":2}', /of version 2/],
    ['{"version":1}', /no measurement/],
    [JSON.stringify({ version: 1, ...MEASUREMENT, device: 'sda' }), /another device/],
    [
      JSON.stringify({ version: 1, ...MEASUREMENT, points: [{ ...POINT, engine: 'mmap' }] }),
      /no measurement/,
    ],
    [
      JSON.stringify({ version: 1, ...MEASUREMENT, points: [{ ...POINT, bytesPerSecond: -1 }] }),
      /no measurement/,
    ],
    [' '.repeat(5 * 1024 ** 2), /too large/],
  ])('ignores damaged content %#, with a sentence', (text, sentence) => {
    process.env.XDG_CACHE_HOME = join(folder, 'store');
    const path = measurementPath('nvme0n1p2');
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, text);
    said.length = 0;
    expect(storedMeasurement('nvme0n1p2', say)).toBeUndefined();
    expect(said).toHaveLength(1);
    expect(said[0]).toMatch(sentence);
    expect(readFileSync(path, 'utf8')).toBe(text);
  });

  it('a cache folder that takes nothing costs a sentence', () => {
    const file = join(folder, 'a-file');
    writeFileSync(file, '');
    process.env.XDG_CACHE_HOME = file;
    said.length = 0;
    expect(storeMeasurement(MEASUREMENT, say)).toBe(false);
    expect(said).toEqual([expect.stringMatching(/the result is not kept/)]);
  });
});

describe('the name of a device', () => {
  const mounts = [
    '22 27 0:21 / /proc rw,relatime - proc proc rw',
    '27 1 254:0 / / rw shared:1 - ext4 /dev/vda rw',
    '28 27 253:1 / /data rw - xfs /dev/mapper/vg-data rw',
    '29 27 0:50 / /container rw - overlay overlay rw',
  ].join('\n');

  it.each([
    ['254:0', 'vda'],
    ['253:1', 'mapper-vg-data'],
    ['0:50', 'overlay-0-50'],
    ['9:9', undefined],
  ])('%s is %s', (numbers, name) => expect(deviceByMounts(mounts, numbers)).toBe(name));

  it('is the same for two files of one folder', () => {
    expect(deviceOf(BUILT_IN_MODEL)).toBe(deviceOf(dirname(BUILT_IN_MODEL)));
  });
});
