#!/usr/bin/env node
/**
 * Builds what tests the Metal kernels on Linux, into build/kernel-tests: every kernel on the emulator against the CPU's
 * code, and the kernels that are wrong on purpose, once with AddressSanitizer and UndefinedBehaviorSanitizer and once with
 * ThreadSanitizer; and checks the kernels' address spaces. Objects are kept and built again when a source is newer.
 *
 * Exit code 0 also when there is no clang 19: the tests look for what is built and say why they skip.
 */
import { spawn, spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const out = join(root, 'build', 'kernel-tests');
const COMPILER = 'clang++-19';
const PROCESSES = 2;
const EMULATOR = 'native/metal/emu';
const GENERATOR = `${EMULATOR}/generator/generate.mjs`;

const SANITIZERS = {
  address: { flags: ['-fsanitize=address,undefined', '-fno-sanitize-recover=undefined'], runtime: 'same' },
  // The runtime tells ThreadSanitizer of its fibers itself and is not to be watched.
  thread: { flags: ['-fsanitize=thread'], runtime: ['-DMOESTREAM_EMU_TSAN'] },
};
const CPU_SOURCES = {
  codebooks: [],
  dequantize: [],
  dequantize_affine: [],
  dequantize_iq: [],
  dequantize_k: [],
  tensor_type: [],
  vector_kernels: [],
  vector_kernels_baseline: [],
  ...(process.arch === 'x64' && {
    vector_kernels_avx2: ['-mavx2', '-mf16c'],
    vector_kernels_avx512: ['-mavx512f', '-mf16c'],
  }),
};
const HOST_FLAGS = ['-std=c++20', '-O1', '-g1', '-ffp-contract=off', '-Inative/include', '-Wall', '-Wextra'];
const KERNEL_FLAGS = [
  ...['-std=c++20', '-O1', '-g1', '-ffp-contract=off', '-fno-exceptions', '-fno-rtti'],
  ...[
    '-Xclang',
    '-cl-single-precision-constant',
    '-Wall',
    '-Wno-unused',
    '-Wno-deprecated-enum-enum-conversion',
  ],
  ...[`-I${EMULATOR}/shim`, ...(process.arch === 'x64' ? ['-march=x86-64-v3'] : [])],
];
const STRICT_FLAGS = [
  ...['-x', 'clcpp', '-cl-std=clc++2021', '-target', 'spir64-unknown-unknown', '-fsyntax-only'],
  ...['-cl-single-precision-constant', '-Wno-everything', `-I${EMULATOR}/shim`],
];

function run(command, args) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'] });
    child.on('error', (error) => reject(new Error(`${command}: ${error.message}`)));
    child.on('exit', (code) => (code === 0 ? resolve() : reject(new Error(`${command} ended with ${code}`))));
  });
}

function changedAt(path) {
  return statSync(join(root, path), { throwIfNoEntry: false })?.mtimeMs ?? 0;
}

function filesOf(folder, ...endings) {
  const names = readdirSync(join(root, folder)).filter((name) =>
    endings.some((ending) => name.endsWith(ending)),
  );
  return names.map((name) => join(folder, name));
}

function newest(paths) {
  return Math.max(...paths.map(changedAt));
}

const kernelHeaders = filesOf('native/metal/kernels', '.h');
const HEADERS = {
  kernel: newest([
    ...kernelHeaders,
    ...filesOf(`${EMULATOR}/generator`, '.mjs'),
    ...filesOf(`${EMULATOR}/shim`, '.h'),
    ...filesOf(`${EMULATOR}/runtime`, '.h'),
  ]),
  host: newest([
    `${EMULATOR}/simt.h`,
    ...kernelHeaders,
    ...filesOf(`${EMULATOR}/runtime`, '.h'),
    ...filesOf('native/metal/checks', '.h'),
    ...filesOf('native/cpu', '.h'),
  ]),
};

const isBuilt = (object, source, headers) => changedAt(object) > Math.max(changedAt(source), headers);
const folderOf = (name) => join('build', 'kernel-tests', name);

async function compileHost(source, folder, flags) {
  const object = join(folder, `${basename(dirname(source))}-${basename(source, '.cpp')}.o`);
  if (isBuilt(object, source, HEADERS.host)) return;
  await run(COMPILER, [...HOST_FLAGS, ...flags, '-c', source, '-o', object]);
}

async function compileKernels(source, sanitizer) {
  const name = basename(source, '.metal');
  const object = join(folderOf(sanitizer), `kernel-${name}.o`);
  if (isBuilt(object, source, HEADERS.kernel)) return;
  const generated = join(folderOf(sanitizer), `${name}.cpp`);
  await run(process.execPath, [GENERATOR, 'emulated', source, generated]);
  await run(COMPILER, [...KERNEL_FLAGS, ...SANITIZERS[sanitizer].flags, '-c', generated, '-o', object]);
}

async function checkAddressSpaces(source) {
  const stamp = join(folderOf('strict'), `${basename(source, '.metal')}.checked`);
  if (isBuilt(stamp, source, HEADERS.kernel)) return;
  const generated = join(folderOf('strict'), `${basename(source, '.metal')}.clcpp`);
  await run(process.execPath, [GENERATOR, 'strict', source, generated]);
  await run(COMPILER, [...STRICT_FLAGS, generated]);
  writeFileSync(join(root, stamp), '');
}

async function inParallel(tasks) {
  const worker = async () => {
    for (let task = tasks.shift(); task !== undefined; task = tasks.shift()) await task();
  };
  await Promise.all(Array.from({ length: PROCESSES }, worker));
}

async function link(sanitizer) {
  const folder = folderOf(sanitizer);
  const runtime = filesOf(folder, '.o').filter((path) => basename(path).startsWith('runtime-'));
  const kernels = filesOf('native/metal/kernels', '.metal').map((source) =>
    join(folder, `kernel-${basename(source, '.metal')}.o`),
  );
  const shared = filesOf(folderOf('host'), '.o');
  const part = (name) => shared.filter((path) => basename(path).includes(name));
  const programs = {
    'emulated-kernels': [...kernels, ...shared.filter((path) => !basename(path).includes('planted-fault'))],
    'planted-fault': [join(folder, 'kernel-faults.o'), ...part('planted-fault')],
  };
  for (const [name, objects] of Object.entries(programs)) {
    await run(COMPILER, [
      ...SANITIZERS[sanitizer].flags,
      ...runtime,
      ...objects,
      '-lpthread',
      '-o',
      join(folder, name),
    ]);
  }
}

async function build() {
  for (const name of ['host', 'strict', ...Object.keys(SANITIZERS)])
    mkdirSync(join(out, name), { recursive: true });
  const kernels = filesOf('native/metal/kernels', '.metal');
  // Metal 4's tensors have no counterpart in OpenCL.
  const strict = kernels.filter((source) => basename(source) !== 'tensor.metal');
  const tasks = strict.map((source) => () => checkAddressSpaces(source));
  for (const [sanitizer, { flags, runtime }] of Object.entries(SANITIZERS)) {
    for (const source of [...kernels, 'test/metal/kernels/planted/faults.metal']) {
      tasks.push(() => compileKernels(source, sanitizer));
    }
    for (const source of filesOf(`${EMULATOR}/runtime`, '.cpp')) {
      tasks.push(() =>
        compileHost(source, folderOf(sanitizer), ['-O2', ...(runtime === 'same' ? flags : runtime)]),
      );
    }
  }
  for (const source of [
    ...filesOf('native/metal/checks', '.cpp'),
    ...filesOf('test/metal/kernels', '.cpp'),
  ]) {
    tasks.push(() => compileHost(source, folderOf('host'), []));
  }
  for (const [name, flags] of Object.entries(CPU_SOURCES)) {
    tasks.push(() => compileHost(`native/cpu/${name}.cpp`, folderOf('host'), flags));
  }
  await inParallel(tasks);
  for (const sanitizer of Object.keys(SANITIZERS)) await link(sanitizer);
}

if (spawnSync(COMPILER, ['--version'], { stdio: 'ignore' }).error !== undefined) {
  process.stderr.write(
    `moestream: no ${COMPILER}, so the Metal kernels are not tested; on Debian: apt-get install clang-19\n`,
  );
} else {
  await build();
}
