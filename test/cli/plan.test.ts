/** `moestream plan` and the default budget. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { PlanReport } from '../../dist/cli/plan.js';
import { settingsOf } from '../../dist/engine/options.js';
import { planOf } from '../../dist/engine/planning.js';
import { openModel } from '../../dist/model/model.js';
import { budgetFor, freeByVmStat, memoryLimit } from '../../dist/pipeline/budget.js';
import { slotCount } from '../../dist/pipeline/slab.js';
import { runCli } from '../support/cli.js';
import { temporaryFolder } from '../support/folder.js';
import { BUILT_IN_MODEL } from '../support/golden.js';

const env = { XDG_CACHE_HOME: temporaryFolder() };

async function planJson(...args: string[]): Promise<PlanReport> {
  const run = await runCli(['plan', BUILT_IN_MODEL, '--json', ...args], { env });
  expect(run.code, run.stderr).toBe(0);
  return JSON.parse(run.stdout) as PlanReport;
}

const PARTS = ['denseBytes', 'kvBytes', 'stateBytes', 'scratchBytes', 'logitsBytes', 'slabBytes'] as const;

describe('plan', () => {
  it('adds up, within the budget', async () => {
    for (const memory of ['25M', '40M', '8G']) {
      const found = await planJson('--memory', memory);
      expect(PARTS.reduce((sum, part) => sum + found[part], 0)).toBe(found.totalBytes);
      expect(found.totalBytes).toBeLessThanOrEqual(found.budgetBytes);
      expect(found.slabShare).toBe(found.slots / found.allSlots);
    }
  });

  it('context and chunk count', async () => {
    const [small, large] = [
      await planJson('-c', '512', '--chunk', '64'),
      await planJson('-c', '4096', '--chunk', '256'),
    ];
    expect(large.kvBytes).toBe(8 * small.kvBytes);
    expect(large.scratchBytes).toBeGreaterThan(small.scratchBytes);
  });

  it('the KV type counts, and only one that there is', async () => {
    const [usual, f32, q8] = [
      await planJson(),
      await planJson('--kv-type', 'f32'),
      await planJson('--kv-type', 'q8_0'),
    ];
    expect([usual.kvType, f32.kvBytes / usual.kvBytes, q8.kvBytes / f32.kvBytes]).toEqual([
      'f16',
      2,
      34 / 128,
    ]);
    const run = await runCli(['plan', BUILT_IN_MODEL, '--kv-type', 'q4_0'], { env });
    expect(run.code).toBe(2);
    expect(run.stderr).toMatch(/f32, f16, q8_0/);
  });

  it('prints every part, the smallest budget and what more would buy', async () => {
    const run = await runCli(['plan', BUILT_IN_MODEL, '--memory', '30M'], { env });
    for (const word of ['dense weights', 'KV cache', 'states', 'scratch', 'logits', 'expert slab', 'total'])
      expect(run.stdout).toMatch(new RegExp(`^${word} +[\\d.]+ [KMG]?B`, 'm'));
    expect(run.stdout).toMatch(/^smallest budget +[\d.]+ MB +--memory \d+$/m);
    expect(run.stdout).toMatch(/with [\d.]+ MB +100 % of the experts/);
    expect(run.stdout).toMatch(/not measured yet: `moestream diskbench MODEL` does it/);
  });

  it('names the smallest budget when it refuses, and that one opens', async () => {
    const refused = await runCli(['plan', BUILT_IN_MODEL, '--memory', '1M'], { env });
    expect([refused.code, refused.stdout]).toEqual([4, '']);
    const smallest = /--memory (\d+)/.exec(refused.stderr)![1]!;
    const run = await runCli([
      'generate',
      '-m',
      BUILT_IN_MODEL,
      '--memory',
      smallest,
      '--temp',
      '0',
      '-n',
      '3',
      '-q',
      'tar',
    ]);
    expect([run.code, run.stderr]).toEqual([0, '']);
    expect((await planJson('--memory', smallest)).smallestBytes).toBe(Number(smallest));
    const less = await runCli(['plan', BUILT_IN_MODEL, '--memory', String(Number(smallest) - 1)], { env });
    expect(less.code).toBe(4);
  });

  it('chooses the largest chunk whose scratch memory is an eighth of the budget at most', async () => {
    const chunks: number[] = [];
    for (const memory of ['19M', '60M', '100M', '8G']) {
      const { maxRows, scratchBytes, budgetBytes } = await planJson('--memory', memory, '-c', '1024');
      chunks.push(maxRows);
      if (maxRows > 64) expect(scratchBytes).toBeLessThanOrEqual(budgetBytes / 8);
    }
    expect(chunks).toEqual(chunks.toSorted((a, b) => a - b));
    expect([chunks[0], chunks.at(-1)]).toEqual([64, 512]);
  });

  it('the budget for all experts holds all of them', async () => {
    // With a chunk of its own: a smaller budget would choose a smaller one, and have room left.
    const withBudget = (bytes: number) => planJson('--chunk', '64', '--memory', String(bytes));
    const { everythingBytes } = await planJson('--chunk', '64');
    expect((await withBudget(everythingBytes)).slabShare).toBe(1);
    expect((await withBudget(everythingBytes - 1)).slabShare).toBeLessThan(1);
  });

  it('a larger budget never has fewer slots', () => {
    const model = openModel(BUILT_IN_MODEL);
    const slots = (memory: number): number =>
      slotCount(planOf(model, settingsOf({ model: BUILT_IN_MODEL, memory, chunk: 64 })).plan.slab);
    const { smallestBytes } = planOf(model, settingsOf({ model: BUILT_IN_MODEL, memory: '1G' })).plan;
    const budget = fc.integer({ min: smallestBytes, max: 3 * smallestBytes });
    fc.assert(
      fc.property(budget, budget, (one, other) => {
        expect(slots(Math.min(one, other))).toBeLessThanOrEqual(slots(Math.max(one, other)));
      }),
    );
  });

  it('a damaged measurement is ignored with a sentence', async () => {
    const { deviceOf } = await import('../../dist/disk/device.js');
    const home = join(env.XDG_CACHE_HOME, 'damaged');
    mkdirSync(join(home, 'moestream', 'disks'), { recursive: true });
    writeFileSync(join(home, 'moestream', 'disks', `${deviceOf(BUILT_IN_MODEL)}.json`), '{"version":1');
    const run = await runCli(['plan', BUILT_IN_MODEL], { env: { XDG_CACHE_HOME: home } });
    expect(run.code).toBe(0);
    expect(run.stderr).toMatch(/is ignored: it is no JSON; `moestream diskbench` writes a new one/);
  });
});

describe('the default budget', () => {
  it('leaves head-room, whatever there is', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 2 ** 40 }), (free) => {
        const { bytes } = budgetFor(free, undefined);
        expect(bytes).toBeGreaterThanOrEqual(0);
        expect(bytes).toBeLessThanOrEqual(free);
        expect(free - bytes).toBeGreaterThanOrEqual(Math.floor(Math.min(free / 2, 512 * 1024 ** 2)));
      }),
    );
    expect(budgetFor(24e9, undefined).because).toBe(
      'of 24.0 GB that are free, 3.60 GB stay for everything else',
    );
    const limit = { limitBytes: 8e9, leftBytes: 6e9, where: 'control group' };
    expect(budgetFor(24e9, limit)).toEqual({
      bytes: 5.1e9,
      because: 'of 6.00 GB that the limit of 8.00 GB (control group) leaves, 900 MB stay for everything else',
    });
  });

  const files = (entries: Record<string, string>) => (path: string) => entries[path];

  it('version 2: the tightest of all groups above, cache counts as free', () => {
    const read = files({
      '/proc/self/mountinfo': '30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw',
      '/proc/self/cgroup': '0::/user.slice/app',
      '/sys/fs/cgroup/user.slice/app/memory.max': 'max\n',
      '/sys/fs/cgroup/user.slice/memory.max': '8000000000\n',
      '/sys/fs/cgroup/user.slice/memory.current': '7000000000\n',
      '/sys/fs/cgroup/user.slice/memory.stat':
        'anon 1000000000\ninactive_file 5000000000\nactive_file 1000000000\n',
    });
    expect(memoryLimit(16e9, read)).toEqual({ limitBytes: 8e9, leftBytes: 7e9, where: 'control group' });
    // A limit above what the machine has is none.
    expect(memoryLimit(4e9, read)).toBeUndefined();
  });

  it('version 1 in a container that sees only its own group', () => {
    const read = files({
      '/proc/self/mountinfo': '31 20 0:27 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory',
      '/proc/self/cgroup': '4:memory:/docker/abc\n0::/',
      '/sys/fs/cgroup/memory/memory.limit_in_bytes': '1000000000',
      '/sys/fs/cgroup/memory/memory.usage_in_bytes': '900000000',
      '/sys/fs/cgroup/memory/memory.stat': 'total_inactive_file 500000000\ntotal_active_file 100000000',
    });
    expect(memoryLimit(16e9, read)).toEqual({ limitBytes: 1e9, leftBytes: 7e8, where: 'control group v1' });
  });

  it('no control groups at all', () => {
    expect(memoryLimit(16e9, () => undefined)).toBeUndefined();
    expect(memoryLimit(16e9, files({ '/proc/self/mountinfo': '', '/proc/self/cgroup': '' }))).toBeUndefined();
  });

  it('reads vm_stat', () => {
    const text = [
      'Mach Virtual Memory Statistics: (page size of 16384 bytes)',
      'Pages free:                               10000.',
      'Pages active:                            400000.',
      'Pages inactive:                          300000.',
      'Pages speculative:                        20000.',
      'Pages purgeable:                           5000.',
    ].join('\n');
    expect(freeByVmStat(text)).toBe(335_000 * 16384);
    expect(freeByVmStat('nonsense')).toBeUndefined();
  });

  it('obeys a real control group, and counts its page cache as free', async ({ skip }) => {
    const group = `/sys/fs/cgroup/memory/moestream-test-${process.pid}`;
    try {
      mkdirSync(group);
      writeFileSync(join(group, 'memory.limit_in_bytes'), String(1024 ** 3));
    } catch (error) {
      skip(`needs a writable version 1 memory control group (${String(error)})`);
    }
    try {
      const script = [
        `echo $$ > ${group}/cgroup.procs`,
        // 300 MB of page cache, charged to the group.
        `head -c 300000000 /dev/zero > ${join(env.XDG_CACHE_HOME, 'filler')}`,
        `exec ${process.execPath} dist/cli/main.js plan ${BUILT_IN_MODEL} --json`,
      ].join('\n');
      const out = execFileSync('sh', ['-c', script], { encoding: 'utf8', env: { ...process.env, ...env } });
      const found = JSON.parse(out) as PlanReport;
      expect(found.budgetBecause).toMatch(/the limit of 1\.07 GB \(control group v1\)/);
      // Half a GiB of head-room; without counting the cache 300 MB less would be left.
      expect(found.budgetBytes).toBeGreaterThan(400e6);
      expect(found.budgetBytes).toBeLessThan(1024 ** 3 - 512 * 1024 ** 2);
    } finally {
      rmdirSync(group);
    }
  });
});
