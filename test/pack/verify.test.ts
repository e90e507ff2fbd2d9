/** `moestream verify`: what is damaged is found and named, what is whole is called whole. */
import { createHash } from 'node:crypto';
import { closeSync, copyFileSync, openSync, readFileSync, readSync, truncateSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { progressLine } from '../../dist/cli/progress.js';
import { readGguf } from '../../dist/model/gguf.js';
import { openModel } from '../../dist/model/model.js';
import { pack } from '../../dist/pack/pack.js';
import { verify } from '../../dist/pack/verify.js';
import { faultyReadsEnv, runCli } from '../support/cli.js';
import { temporaryFolder } from '../support/folder.js';
import { BUILT_IN_MODEL } from '../support/golden.js';

const folder = temporaryFolder();

function flip(path: string, offsetBytes: number): void {
  const fd = openSync(path, 'r+');
  const byte = Buffer.alloc(1);
  readSync(fd, byte, 0, 1, offsetBytes);
  writeSync(fd, Buffer.of(byte[0]! ^ 1), 0, 1, offsetBytes);
  closeSync(fd);
}

describe('a packed folder', () => {
  const out = join(folder, 'packed');
  let strideBytes: number;

  beforeAll(async () => {
    await pack(BUILT_IN_MODEL, out);
    strideBytes = openModel(out).tensors.experts[0]!.gate.strideBytes;
  });

  it('that is whole passes', async () => {
    const run = await runCli(['verify', out]);
    expect([run.code, run.stdout]).toEqual([0, '']);
    expect(run.stderr).toMatch(/all 256 experts match: 33\.6 MB in/);
    const json = JSON.parse((await runCli(['verify', out, '--json', '-q'])).stdout) as unknown;
    expect(json).toMatchObject({ kind: 'packed', ok: true, experts: 256, damageCount: 0 });
  });

  it('with one byte changed in an expert fails by name, and passes when it is changed back', async () => {
    const path = join(out, 'experts-003.bin');
    flip(path, 7 * strideBytes + 50_000);
    const run = await runCli(['verify', out]);
    expect(run.code).toBe(1);
    expect(run.stdout.match(/\n/g)).toHaveLength(1);
    expect(run.stdout).toMatch(
      new RegExp(`^damaged: expert 7 of layer 3, experts-003\\.bin at byte ${7 * strideBytes}: checksum`),
    );
    expect(run.stderr).toMatch(/expert 7 of layer 3.*\(VERIFY_FAILED\)/);
    flip(path, 7 * strideBytes + 50_000);
    expect(await verify(out)).toMatchObject({ ok: true });
  });

  it('lists the first ten and counts the rest', async () => {
    const places = Array.from({ length: 14 }, (_, index) => index * 2);
    for (const expert of places) flip(join(out, 'experts-005.bin'), expert * strideBytes);
    flip(join(out, 'model.gguf'), 8_000_000);
    const found = await verify(out);
    expect(found).toMatchObject({ ok: false, damageCount: 15, experts: 256 });
    expect(found.damages.map(({ expert }) => expert)).toEqual([undefined, 0, 2, 4, 6, 8, 10, 12, 14, 16]);
    const run = await runCli(['verify', out, '--json', '-q']);
    expect(run.code).toBe(1);
    expect(JSON.parse(run.stdout)).toMatchObject({ ok: false, damageCount: 15 });
    for (const expert of places) flip(join(out, 'experts-005.bin'), expert * strideBytes);
    flip(join(out, 'model.gguf'), 8_000_000);
    expect(await verify(out)).toMatchObject({ ok: true });
  });

  it('with an unreadable expert names it and goes on', async () => {
    if (process.platform !== 'linux') return;
    const run = await runCli(['verify', out, '-q'], {
      env: faultyReadsEnv('eio', 30 * strideBytes, 30 * strideBytes + 1),
    });
    expect(run.code).toBe(1);
    // The dense file has that byte too.
    expect(run.stdout.match(/EIO/g)).toHaveLength(9);
    expect(run.stdout).toMatch(/damaged: expert 30 of layer 7/);
  });
});

describe('a plain model', () => {
  it('that is whole passes, with the digest that sha256sum gives', async () => {
    const run = await runCli(['verify', BUILT_IN_MODEL]);
    const digest = createHash('sha256').update(readFileSync(BUILT_IN_MODEL)).digest('hex');
    expect([run.code, run.stdout]).toEqual([0, `${digest}  ${BUILT_IN_MODEL}\n`]);
    expect(run.stderr).toMatch(/every byte reads: 30\.2 MB/);
  });

  it('that is cut is a bad model', async () => {
    const path = join(folder, 'cut.gguf');
    copyFileSync(BUILT_IN_MODEL, path);
    truncateSync(path, 20_000_000);
    const run = await runCli(['verify', path]);
    expect([run.code, run.stdout]).toEqual([3, '']);
    expect(run.stderr).toMatch(/ends at byte \d+, the file has 20000000.*MODEL_INVALID/);
  });

  it('with an unreadable place names the tensor', async () => {
    if (process.platform !== 'linux') return;
    const { offsetBytes, byteLength } = readGguf(BUILT_IN_MODEL).tensors.get('blk.3.ffn_up_exps.weight')!;
    const middle = offsetBytes + byteLength / 2;
    const run = await runCli(['verify', BUILT_IN_MODEL, '--json', '-q'], {
      env: faultyReadsEnv('eio', middle, middle + 1),
    });
    expect(run.code).toBe(1);
    expect(JSON.parse(run.stdout)).toMatchObject({ kind: 'plain', ok: false, damageCount: 1 });
    expect(run.stderr).toMatch(/tensor blk\.\d\.\S+, .*tldr.*VERIFY_FAILED/);
  });
});

describe('the progress line', () => {
  it('fits 60 columns', () => {
    expect(progressLine(0, 0, undefined)).toBe('[############] 100 %  0 B of 0 B');
    expect(progressLine(84.1e9, 179e9, 1.23e9)).toBe(
      '[#####       ]  46 %  84.1 GB of 179 GB  1.23 GB/s  1:17',
    );
    expect(progressLine(999e9, 1000e9, 0.0001e9).length).toBeLessThanOrEqual(60);
  });
});
