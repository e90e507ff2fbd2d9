/**
 * The Metal kernels on Linux: every one on the emulator against the CPU's code, in three orders of the lanes, under two
 * sanitizers; their address spaces; and kernels that are wrong on purpose, each of which must be caught. A check that
 * never failed proves nothing, so what must be caught is as much a test as what must pass.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

const root = join(fileURLToPath(import.meta.url), '..', '..', '..');
const BUILT = join(root, 'build', 'kernel-tests');
const SPACES = join(root, 'test', 'metal', 'kernels', 'planted', 'spaces');
const BUILD_MILLIS = 600_000;
const RUN_MILLIS = 240_000;

interface Outcome {
  readonly code: number | null;
  readonly text: string;
}

function run(command: string, ...args: readonly string[]): Outcome {
  return runFor(RUN_MILLIS, command, ...args);
}

function runFor(timeout: number, command: string, ...args: readonly string[]): Outcome {
  const done = spawnSync(command, args, { cwd: root, encoding: 'utf8', timeout });
  if (done.error) throw done.error;
  return { code: done.status, text: done.stdout + done.stderr };
}

const hasCompiler = spawnSync('clang++-19', ['--version'], { stdio: 'ignore' }).error === undefined;
if (!hasCompiler) process.stderr.write('The Metal kernels are not tested: there is no clang++-19.\n');

describe.skipIf(!hasCompiler)('Metal kernels on the emulator', () => {
  beforeAll(() => {
    const built = runFor(BUILD_MILLIS, process.execPath, join(root, 'scripts', 'build-kernel-tests.mjs'));
    if (built.code !== 0) throw new Error(built.text);
  }, BUILD_MILLIS);

  const orders = ['forward', 'reverse', 'random'];
  for (const sanitizer of ['address', 'thread']) {
    test.each(orders)(
      `every kernel agrees with the CPU, lanes %s, ${sanitizer} sanitizer`,
      (order) => {
        const outcome = run(join(BUILT, sanitizer, 'emulated-kernels'), order, '2');
        expect(outcome.text).toMatch(/^\d+ checks in \w+ order, 0 failed, largest distance \S+\n$/);
        expect(outcome.code).toBe(0);
      },
      RUN_MILLIS,
    );
  }

  const THREAD = 'thread';
  const ADDRESS = 'address';
  const planted: readonly [kernel: string, sanitizer: string, mode: string, found: RegExp][] = [
    ['missing_barrier', THREAD, '', /ThreadSanitizer: data race/],
    ['missing_barrier', ADDRESS, '', /value \d+ is not a number/],
    ['simd_sum_as_fence', THREAD, '', /ThreadSanitizer: data race/],
    ['two_writers', THREAD, '', /ThreadSanitizer: data race/],
    ['barrier_after_return', ADDRESS, '', /reached by some threads after others returned/],
    ['two_barriers', ADDRESS, '', /wait at different barriers, lines 36 and 38/],
    ['beyond_buffer', ADDRESS, '', /AddressSanitizer: heap-buffer-overflow/],
    ['beyond_threadgroup_array', ADDRESS, '', /faults\.metal:55:\d+: runtime error: index 128 out of bounds/],
    ['uninitialised', ADDRESS, '', /value \d+ is not a number/],
    [
      'shuffle_from_inactive',
      ADDRESS,
      'divergent',
      /a shuffle at line 70 reads lane 16, which is not active/,
    ],
    ['shuffle_beyond', ADDRESS, '', /reads lane 32/],
    [
      'divergent_sum',
      ADDRESS,
      '',
      /a simdgroup function at line 84 is reached by lanes 000003ff of ffffffff/,
    ],
    ['too_much_memory', ADDRESS, '', /32800 bytes of threadgroup memory are more than 32768/],
  ];
  test.each(planted)('a planted fault is caught: %s (%s)', (kernel, sanitizer, mode, found) => {
    const outcome = run(join(BUILT, sanitizer, 'planted-fault'), kernel, mode);
    expect(outcome.text).toMatch(found);
    expect(outcome.code).not.toBe(0);
  });

  test.each(['address', 'thread'])('a kernel with nothing wrong passes (%s)', (sanitizer) => {
    expect(run(join(BUILT, sanitizer, 'planted-fault'), 'nothing_wrong', 'random')).toEqual({
      code: 0,
      text: 'ran\n',
    });
  });
});

describe.skipIf(!hasCompiler)('address spaces and attributes', () => {
  let folder = '';
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'moestream-spaces-'));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  const expected: Readonly<Record<string, RegExp>> = {
    constant_to_device: /cannot initialize a variable of type 'const __global float/,
    device_to_thread: /no matching function for call to 'first'/,
    double_number: /attempt to use a poisoned identifier/,
    in_a_template: /in_a_template\.metal:9:\d+: error: no matching function/,
    initialised_threadgroup: /a threadgroup variable stands alone and has no initializer/,
    no_attribute: /parameter 'device float \*out' of kernel wrong has no attribute/,
    same_index: /kernel wrong uses kBuffer 0 twice/,
    threadgroup_to_device: /no matching function for call to 'first'/,
    write_to_constant: /read-only variable is not assignable/,
  };

  test('every planted mistake has its expectation', () => {
    const names = readdirSync(SPACES).map((name) => name.replace('.metal', ''));
    expect(names.sort()).toEqual(Object.keys(expected).sort());
  });

  test.each(Object.keys(expected))('a planted mistake is refused: %s', (name) => {
    const generated = join(folder, `${name}.clcpp`);
    const generator = join(root, 'native', 'metal', 'emu', 'generator', 'generate.mjs');
    const first = run(process.execPath, generator, 'strict', join(SPACES, `${name}.metal`), generated);
    const flags = ['-x', 'clcpp', '-cl-std=clc++2021', '-target', 'spir64-unknown-unknown', '-fsyntax-only'];
    const include = `-I${join(root, 'native', 'metal', 'emu', 'shim')}`;
    const outcome = existsSync(generated) ? run('clang++-19', ...flags, include, generated) : first;
    expect(outcome.text).toMatch(expected[name] as RegExp);
    expect(outcome.code).not.toBe(0);
  });
});
