#!/usr/bin/env node
/**
 * Compiles the Metal kernels to PTX and builds the program that runs them on an NVIDIA card, into build/ptx. Needs
 * clang 19 and no part of NVIDIA's SDK; the card's driver compiles the PTX when the program runs. Not part of the package.
 *
 *   npm run build:ptx && build/ptx/ptx_bench build/ptx build/ptx/results.json
 */
import { spawn } from 'node:child_process';
import { mkdirSync, readdirSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const out = join(root, 'build', 'ptx');
const COMPILER = 'clang++-19';
const PROCESSES = 2;

const CPU_SOURCES = [
  'codebooks',
  'dequantize',
  'dequantize_affine',
  'dequantize_iq',
  'dequantize_k',
  'tensor_type',
  'vector_kernels',
  'vector_kernels_baseline',
];
const X86_SOURCES = {
  vector_kernels_avx2: ['-mavx2', '-mf16c'],
  vector_kernels_avx512: ['-mavx512f', '-mf16c'],
};

function run(command, args) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd: root, stdio: 'inherit' });
    child.on('error', (error) => reject(new Error(`${command}: ${error.message}`)));
    child.on('exit', (code) =>
      code === 0 ? resolve() : reject(new Error(`${command} ${args.at(-1)} ended with ${code}`)),
    );
  });
}

async function compileKernels(name) {
  const source = join(out, `${name}.cu.cpp`);
  await run(process.execPath, [
    'native/metal/emu/generator/generate.mjs',
    'cuda',
    join('native/metal/kernels', `${name}.metal`),
    source,
  ]);
  const target = [
    '-x',
    'cuda',
    '--cuda-device-only',
    '--cuda-gpu-arch=sm_80',
    '-nocudainc',
    '-nocudalib',
    '-S',
  ];
  const language = [
    '-std=c++20',
    '-O3',
    '-ffp-contract=off',
    '-fno-exceptions',
    '-Xclang',
    '-cl-single-precision-constant',
  ];
  await run(COMPILER, [
    ...target,
    ...language,
    '-Wno-everything',
    '-Inative/metal/emu/shim',
    source,
    '-o',
    join(out, `${name}.ptx`),
  ]);
  rmSync(source);
}

const objects = [];
async function compileHost(source, flags) {
  const object = join(out, `${basename(dirname(source))}-${basename(source, '.cpp')}.o`);
  objects.push(object);
  await run(COMPILER, [
    '-std=c++20',
    '-O2',
    '-ffp-contract=off',
    '-Inative/include',
    ...flags,
    '-c',
    source,
    '-o',
    object,
  ]);
}

async function inParallel(tasks) {
  const worker = async () => {
    for (let task = tasks.shift(); task !== undefined; task = tasks.shift()) await task();
  };
  await Promise.all(Array.from({ length: PROCESSES }, worker));
}

const filesOf = (folder, ending) => readdirSync(join(root, folder)).filter((name) => name.endsWith(ending));

mkdirSync(out, { recursive: true });
const tasks = [];
for (const file of filesOf('native/metal/kernels', '.metal')) {
  // Metal 4's tensor operations have no meaning on CUDA.
  if (file !== 'tensor.metal') tasks.push(() => compileKernels(basename(file, '.metal')));
}
for (const folder of ['native/metal/checks', 'native/cuda']) {
  for (const file of filesOf(folder, '.cpp')) tasks.push(() => compileHost(join(folder, file), []));
}
for (const name of CPU_SOURCES) tasks.push(() => compileHost(`native/cpu/${name}.cpp`, []));
if (process.arch === 'x64') {
  for (const [name, flags] of Object.entries(X86_SOURCES))
    tasks.push(() => compileHost(`native/cpu/${name}.cpp`, flags));
}
await inParallel(tasks);
const link = [
  '-static-libstdc++',
  '-static-libgcc',
  '-ldl',
  '-lpthread',
  '-lm',
  '-o',
  join(out, 'ptx_bench'),
];
await run(COMPILER, [...objects, ...link]);
for (const object of objects) rmSync(object);
process.stdout.write(`${out}: the kernels as PTX, and ptx_bench\n`);
