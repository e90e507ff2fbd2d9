/** Packing: the same answers from the packed model, and the same bytes however often it was killed on the way. */
import { execFileSync, spawnSync } from 'node:child_process';
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { readGguf } from '../../dist/model/gguf.js';
import { openModel } from '../../dist/model/model.js';
import { LOCK_NAME, takeLock } from '../../dist/pack/lock.js';
import { pack } from '../../dist/pack/pack.js';
import { makeModel } from '../../dist-scripts/scripts/model-maker/make-model.js';
import { faultyReadsEnv, runCli } from '../support/cli.js';
import { score, withEngine } from '../support/engine.js';
import { contentOf, mountSmall, temporaryFolder } from '../support/folder.js';
import { BUILT_IN_MODEL, tldrGolden } from '../support/golden.js';

const folder = temporaryFolder();
const builtIn = join(folder, 'built-in');
const tiny = join(folder, 'tiny.gguf');
const TINY = { preset: 'tiny', mix: 'UD_Q3_K_XL', outlier: 2, experts: 12, vocab: 512 } as const;

beforeAll(async () => {
  await pack(BUILT_IN_MODEL, builtIn);
  await makeModel(TINY, tiny);
});

async function bitsOf(model: string, ids: readonly number[]): Promise<Buffer[]> {
  return withEngine({ model }, async (engine) => {
    const { logits, experts } = await score(engine, ids);
    return [Buffer.from(logits.buffer), Buffer.from(experts.buffer)];
  });
}

async function expectSameBits(plain: string, packed: string, ids: readonly number[]): Promise<void> {
  const [one, other] = [await bitsOf(plain, ids), await bitsOf(packed, ids)];
  expect(Buffer.compare(one[0]!, other[0]!), 'logits').toBe(0);
  expect(Buffer.compare(one[1]!, other[1]!), 'experts').toBe(0);
}

describe('a packed model', () => {
  it('gives the same logits, bit for bit', () =>
    expectSameBits(BUILT_IN_MODEL, builtIn, tldrGolden().prose.ids.slice(0, 60)));

  it.each(['qwen35moe', 'qwen3next', 'qwen3moe'] as const)(
    'gives the same logits as a split %s with a layer of other types',
    async (arch) => {
      const path = join(folder, `${arch}-00001-of-00003.gguf`);
      await makeModel({ ...TINY, arch, splitFiles: 3 }, join(folder, `${arch}.gguf`));
      const out = join(folder, `${arch}-packed`);
      await pack(path, out);
      const kinds = openModel(out).tensors.experts.map(({ down }) => down.type.name);
      expect(new Set(kinds)).toEqual(new Set(['IQ4_XS', 'Q5_K']));
      await expectSameBits(path, out, [1, 2, 3, 400, 17, 5, 5, 80]);
    },
  );

  it('answers the same through the command line, by folder and by manifest', async () => {
    const rest = ['--temp', '0', '-n', '40', '-q', '--readers', '4', 'How do I use tar?'];
    const plain = await runCli(['generate', '-m', BUILT_IN_MODEL, ...rest]);
    expect(plain.code).toBe(0);
    for (const model of [builtIn, join(builtIn, 'manifest.json')]) {
      const run = await runCli(['generate', '-m', model, ...rest]);
      expect([run.code, run.stdout]).toEqual([0, plain.stdout]);
    }
    const tokens = await runCli(['tokenize', '-m', builtIn, '--ids', 'tar']);
    expect(tokens.stdout).toBe('83,280\n');
  });

  it('keeps all metadata and every tensor that is no expert, byte for byte', () => {
    const [before, after] = [readGguf(BUILT_IN_MODEL), readGguf(join(builtIn, 'model.gguf'))];
    expect(after.metadata.keys).toEqual(before.metadata.keys);
    for (const key of before.metadata.keys)
      expect(after.metadata.plain(key)).toEqual(before.metadata.plain(key));
    const dense = [...before.tensors.keys()].filter((name) => !name.includes('_exps'));
    expect([...after.tensors.keys()]).toEqual(dense);
    const [from, to] = [readFileSync(BUILT_IN_MODEL), readFileSync(join(builtIn, 'model.gguf'))];
    for (const name of dense) {
      const [a, b] = [before.tensors.get(name)!, after.tensors.get(name)!];
      const bytes = from.subarray(a.offsetBytes, a.offsetBytes + a.byteLength);
      expect(bytes.equals(to.subarray(b.offsetBytes, b.offsetBytes + b.byteLength)), name).toBe(true);
    }
  });

  it('starts every expert on a page of 16 KiB and lays its matrices back to back', () => {
    for (const { gate, up, down } of openModel(builtIn).tensors.experts) {
      expect([gate.offsetBytes, gate.strideBytes % 16384]).toEqual([0, 0]);
      expect(up.offsetBytes).toBe(gate.byteLength);
      expect(down.offsetBytes).toBe(gate.byteLength + up.byteLength);
    }
  });

  it('is told apart from the same model in parts, and from another of the same shape', async () => {
    const parts = join(folder, 'same.gguf');
    await makeModel({ ...TINY, splitFiles: 2 }, parts);
    const out = join(folder, 'same');
    const { fingerprint } = await pack(tiny, out);
    const again = await pack(join(folder, 'same-00001-of-00002.gguf'), out);
    expect(again).toMatchObject({ writtenBytes: 0, fingerprint });
    const other = join(folder, 'other.gguf');
    await makeModel({ ...TINY, seed: 2 }, other);
    await expect(pack(other, out)).rejects.toMatchObject({ code: 'PACK_REFUSED', message: /another model/ });
  });
});

describe('the command', () => {
  it('says a line per file, nothing with -q, and a summary with --json', async () => {
    const out = join(folder, 'lines');
    const run = await runCli(['pack', tiny, '-o', out]);
    expect([run.code, run.stdout]).toEqual([0, '']);
    expect(run.stderr).toMatch(/^moestream: packed and verified model\.gguf \(\d/);
    expect(run.stderr).toMatch(/packed and verified 4 layers of 12 experts, .* \(\d+\.\d\d GB\/s\)\n$/);
    const again = await runCli(['pack', tiny, '-o', out]);
    expect([again.code, again.stderr]).toEqual([0, expect.stringMatching(/holds this model already/)]);
    const json = await runCli(['pack', tiny, '-o', join(folder, 'json'), '--json', '-q']);
    expect(json.stderr).toBe('');
    expect(JSON.parse(json.stdout)).toMatchObject({ layers: 4, experts: 12 });
  });

  it.each([
    [2, ['pack', BUILT_IN_MODEL]],
    [3, ['pack', join(folder, 'missing.gguf'), '-o', join(folder, 'x')]],
    [2, ['pack', builtIn, '-o', join(folder, 'x')]],
    [1, ['pack', BUILT_IN_MODEL, '-o', '/proc/nowhere']],
  ])('ends with %i for %j', async (code, args) => {
    const run = await runCli(args);
    expect([run.code, run.stdout]).toEqual([code, '']);
    expect(run.stderr).not.toMatch(/\n\s+at /);
  });

  it('overwrites nothing that it did not write', async () => {
    const out = join(folder, 'occupied');
    mkdirSync(out);
    writeFileSync(join(out, 'model.gguf'), 'mine');
    const run = await runCli(['pack', tiny, '-o', out]);
    expect([run.code, run.stderr]).toEqual([
      1,
      expect.stringMatching(/not empty.*model\.gguf.*PACK_REFUSED/),
    ]);
    expect(readFileSync(join(out, 'model.gguf'), 'utf8')).toBe('mine');
    expect(existsSync(join(out, LOCK_NAME))).toBe(false);
  });
});

describe('interrupted', () => {
  const large = join(folder, 'large.gguf');
  const whole = join(folder, 'whole');
  let wholeMillis: number;

  beforeAll(async () => {
    await makeModel({ ...TINY, layers: 6, outlier: 3, experts: 160 }, large);
    const began = performance.now();
    const run = await runCli(['pack', large, '-o', whole, '-q']);
    wholeMillis = performance.now() - began;
    expect(run.code).toBe(0);
  });

  it('by kill -9 at any point, goes on and ends with the same bytes', async () => {
    const { spawn } = await import('node:child_process');
    const out = join(folder, 'killed');
    let killed = 0;
    let left = 0;
    for (let round = 0; round < 12; round++) {
      const child = spawn(process.execPath, ['dist/cli/main.js', 'pack', large, '-o', out, '-q']);
      const timer = setTimeout(() => child.kill('SIGKILL'), 100 + Math.random() * wholeMillis * 0.6);
      const signal = await new Promise((resolve) => child.on('close', (_, by) => resolve(by)));
      clearTimeout(timer);
      if (signal === 'SIGKILL') killed++;
      if (existsSync(join(out, 'manifest.json'))) {
        openModel(out);
        // Whole already: the next rounds begin anew.
        expect(contentOf(out)).toMatchObject(contentOf(whole));
        rmSync(out, { recursive: true });
      } else if (existsSync(join(out, LOCK_NAME))) {
        left++;
        expect(() => openModel(out)).toThrow(expect.objectContaining({ code: 'MODEL_NOT_FOUND' }));
      }
    }
    expect(killed).toBeGreaterThan(3);
    expect(left).toBeGreaterThan(0);
    const last = await runCli(['pack', large, '-o', out, '-q']);
    expect([last.code, last.stderr]).toEqual([0, '']);
    expect(contentOf(out)).toEqual(contentOf(whole));
    rmSync(out, { recursive: true });
  });

  it.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)('by %s, ends with %i, says how to go on, and does', async (signal, code) => {
    const { spawn } = await import('node:child_process');
    const out = join(folder, signal);
    const child = spawn(process.execPath, ['dist/cli/main.js', 'pack', large, '-o', out]);
    let stderr = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
      // Once: a second signal ends it on the spot.
      if (stderr.includes('experts-001.bin') && !child.killed) child.kill(signal);
    });
    expect(await new Promise((resolve) => child.on('close', resolve))).toBe(code);
    expect(stderr).toMatch(/interrupted at \d+ %; run the same command again to go on\n$/);
    expect(existsSync(join(out, LOCK_NAME))).toBe(false);
    const inspect = await runCli(['inspect', out]);
    expect([inspect.code, inspect.stderr]).toEqual([3, expect.stringMatching(/has not been finished/)]);
    const again = await runCli(['pack', large, '-o', out]);
    expect([again.code, again.stderr]).toEqual([0, expect.stringMatching(/ were there\)\n$/)]);
    expect(again.stderr).not.toMatch(/experts-001/);
    expect(contentOf(out)).toEqual(contentOf(whole));
    rmSync(out, { recursive: true });
  });
});

/** Packs the tiny model until `files` files are done. */
async function packPart(out: string, files: number): Promise<void> {
  const controller = new AbortController();
  let done = 0;
  const onFile = (): void => {
    if (++done === files) controller.abort();
  };
  await expect(pack(tiny, out, { signal: controller.signal, onFile })).rejects.toMatchObject({
    code: 'ABORTED',
  });
}

describe('resuming', () => {
  const whole = join(folder, 'tiny-whole');
  beforeAll(() => pack(tiny, whole));

  it('believes no journal line that is torn, wrong, or whose file is not there', async () => {
    const out = join(folder, 'torn');
    await packPart(out, 3);
    const journal = join(out, 'pack.journal');
    const text = readFileSync(journal);
    for (const damage of [
      () => truncateSync(journal, text.length - 1),
      () => truncateSync(journal, text.length - 200),
      () => truncateSync(journal, 10),
      () => appendFileSync(journal, '{"file":"experts-003.bin","sizeBytes":1,"crc32":[1]}\n'),
      () => appendFileSync(journal, '{"file":"../elsewhere","sizeBytes":5,"crc32":[]}\n'),
      () => appendFileSync(journal, Buffer.alloc(500)),
      () => rmSync(join(out, 'experts-000.bin')),
      () => truncateSync(join(out, 'experts-000.bin'), 16384),
    ]) {
      rmSync(out, { recursive: true, force: true });
      await packPart(out, 3);
      damage();
      // A journal without its first line says nothing about the files beside it.
      if (readFileSync(journal).length === 10) {
        await expect(pack(tiny, out)).rejects.toMatchObject({ code: 'PACK_REFUSED' });
      } else {
        await pack(tiny, out);
        expect(contentOf(out)).toEqual(contentOf(whole));
      }
    }
  });

  it('refuses another model, and starts over when the file is not the one it was', async () => {
    const out = join(folder, 'source');
    const copy = join(folder, 'copy.gguf');
    await makeModel(TINY, copy);
    await packPart(out, 2);
    await expect(pack(BUILT_IN_MODEL, out)).rejects.toMatchObject({
      code: 'PACK_REFUSED',
      message: /belongs to another model \(tiny\.gguf\)/,
    });
    utimesSync(copy, 1, 1);
    const notices: string[] = [];
    const result = await pack(copy, out, { onNotice: (sentence) => notices.push(sentence) });
    expect(notices.join()).toMatch(/starting over/);
    expect(result.writtenBytes).toBe(result.totalBytes);
  });

  it('goes on after a read of the source that failed', async () => {
    if (process.platform !== 'linux') return;
    const out = join(folder, 'unreadable');
    const { offsetBytes, byteLength } = readGguf(tiny).tensors.get('blk.3.ffn_up_exps.weight')!;
    const middle = offsetBytes + byteLength / 2;
    const env = faultyReadsEnv('eio', middle, middle + 1);
    const run = await runCli(['pack', tiny, '-o', out], { env });
    expect([run.code, run.stderr]).toEqual([
      1,
      expect.stringMatching(/EIO reading .*tiny\.gguf at byte \d+/),
    ]);
    const again = await runCli(['pack', tiny, '-o', out]);
    expect(again.stderr).toMatch(/ were there/);
    expect(contentOf(out)).toEqual(contentOf(whole));
  });

  it.each(['short', 'eintr'])('is not troubled by %s reads', async (mode) => {
    if (process.platform !== 'linux') return;
    const out = join(folder, mode);
    const { offsetBytes, byteLength } = readGguf(tiny).tensors.get('blk.1.ffn_down_exps.weight')!;
    const env = faultyReadsEnv(mode, offsetBytes, offsetBytes + byteLength);
    const run = await runCli(['pack', tiny, '-o', out], { env });
    expect(run.code).toBe(0);
    expect(contentOf(out)).toEqual(contentOf(whole));
  });
});

describe('the lock', () => {
  it('lets one process pack into a folder', async () => {
    const out = join(folder, 'locked');
    mkdirSync(out);
    const unlock = takeLock(out);
    const run = await runCli(['pack', tiny, '-o', out]);
    expect([run.code, run.stderr]).toEqual([
      1,
      expect.stringMatching(/process \d+ on .* is packing.*PACK_REFUSED/),
    ]);
    expect(() => takeLock(out)).toThrow(expect.objectContaining({ code: 'PACK_REFUSED' }));
    unlock();
    expect((await runCli(['pack', tiny, '-o', out])).code).toBe(0);
    expect(existsSync(join(out, LOCK_NAME))).toBe(false);
  });

  it('is stale when its process is gone or its number has been given again', () => {
    const out = join(folder, 'stale');
    mkdirSync(out);
    const gone = spawnSync('true').pid;
    for (const holder of [
      { pid: gone, host: hostname(), started: '1' },
      { pid: process.pid, host: hostname(), started: 'long ago' },
    ]) {
      writeFileSync(join(out, LOCK_NAME), JSON.stringify(holder));
      takeLock(out)();
    }
    const elsewhere = { pid: gone, host: 'another-host', started: '1' };
    writeFileSync(join(out, LOCK_NAME), JSON.stringify(elsewhere));
    expect(() => takeLock(out)).toThrow(/another-host/);
    writeFileSync(join(out, LOCK_NAME), '');
    expect(() => takeLock(out)).toThrow(/another process/);
    utimesSync(join(out, LOCK_NAME), 1, 1);
    takeLock(out)();
  });
});

describe('a disk that is full', () => {
  it('is noticed before the first byte', async (context) => {
    const disk = join(folder, 'small-disk');
    const why = mountSmall(disk, '20m');
    if (why !== undefined) return context.skip(why);
    try {
      const run = await runCli(['pack', BUILT_IN_MODEL, '-o', join(disk, 'out')]);
      expect([run.code, run.stderr]).toEqual([
        1,
        expect.stringMatching(/packing needs 49\.6 MB, its disk has 2\d\.\d MB free \(DISK_FULL\)/),
      ]);
      expect(existsSync(join(disk, 'out', 'model.gguf'))).toBe(false);
    } finally {
      execFileSync('umount', [disk]);
    }
  });

  it('in the middle ends it, and it goes on when there is room again', async (context) => {
    const disk = join(folder, 'filling-disk');
    const why = mountSmall(disk, '64m');
    if (why !== undefined) return context.skip(why);
    try {
      const filler = join(disk, 'filler');
      const fill = (name: string): void => {
        if (name === 'experts-002.bin') writeFileSync(filler, Buffer.alloc(64e6 - 18.5e6));
      };
      const out = join(disk, 'out');
      const failed = pack(BUILT_IN_MODEL, out, { onFile: fill });
      await expect(failed).rejects.toMatchObject({ code: 'DISK_FULL', hint: /goes on where it was/ });
      rmSync(filler);
      const result = await pack(BUILT_IN_MODEL, out);
      expect(result.writtenBytes).toBeLessThan(result.totalBytes);
      expect(contentOf(out)).toEqual(contentOf(builtIn));
    } finally {
      execFileSync('umount', [disk]);
    }
  });
});
