// Turns a .metal file into a translation unit for clang.
//
//   node generate.mjs emulated|strict|cuda in.metal out.cpp
//
// clang's preprocessor runs first, against empty <metal_*> headers, so the rewriting sees no macros and no includes.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Rewriter } from './rewrite.mjs';
import { Tokens } from './tokens.mjs';

const EMPTY_HEADERS = [
  'metal_stdlib',
  'metal_simdgroup',
  'metal_simdgroup_matrix',
  'metal_tensor',
  'MetalPerformancePrimitives/MetalPerformancePrimitives.h',
];

const PREPROCESSOR = process.env.MOESTREAM_CLANG ?? 'clang-19';

function preprocess(file) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'moestream-metal-'));
  try {
    for (const header of EMPTY_HEADERS) {
      fs.mkdirSync(path.dirname(path.join(folder, header)), { recursive: true });
      fs.writeFileSync(path.join(folder, header), '');
    }
    const flags = [
      '-E',
      '-x',
      'c++',
      '-nostdinc',
      '-undef',
      '-D__METAL__=1',
      '-D__METAL_VERSION__=310',
      `-I${folder}`,
    ];
    return execFileSync(PREPROCESSOR, [...flags, file], { maxBuffer: 1 << 28, encoding: 'utf8' });
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

function emulatedText(rewriter, library) {
  const lines = rewriter.entries.map((entry, index) => {
    const parameters = rewriter.kernels.get(entry.base);
    const list = parameters.map(
      (each) => `{moestream::emu::ParameterKind::${each.kind}, ${each.index ?? 0}}`,
    );
    return (
      `static const moestream::emu::Parameter parameters_${index}[] = {${list.join(', ')}};\n` +
      `static const moestream::emu::Registration registration_${index} = moestream::emu::registration<&${entry.expression}>` +
      `("${entry.host}", "${library}", ${entry.maxThreads}, parameters_${index});`
    );
  });
  return `#include "emulated.h"\n${rewriter.tokens}\n${lines.join('\n')}\n`;
}

// Template kernels are instantiated: clang would leave their bodies unchecked.
function strictText(rewriter) {
  const uses = rewriter.entries
    .filter((entry) => entry.expression !== entry.base)
    .map(
      (entry, index) =>
        `static void use_${index}() { auto function = &${entry.expression}; (void)function; }`,
    );
  return `#include "strict.h"\n${rewriter.tokens}\n${uses.join('\n')}\n`;
}

function cudaText(rewriter) {
  const entries = rewriter.entries.map((entry) => {
    const parameters = rewriter.kernels.get(entry.base);
    const list = parameters.map(
      (each) => `moestream::ptx::Parameter<moestream::ptx::Kind::${each.kind}, ${each.index ?? 0}>`,
    );
    return (
      `extern "C" __attribute__((global)) void ${entry.host}(moestream::ptx::Buffers buffers) {\n` +
      `  moestream::ptx::call<&${entry.expression}, ${list.join(', ')}>(buffers);\n}`
    );
  });
  return `#include "cuda.h"\n${rewriter.tokens}\n${entries.join('\n')}\n`;
}

export function generate(flavour, input) {
  const library = path.basename(input, '.metal');
  const source = preprocess(input).replace(/^#\s*pragma\s+METAL[^\n]*/gm, '');
  const rewriter = new Rewriter(new Tokens(source, input), flavour);
  rewriter.run();
  if (flavour === 'emulated') return emulatedText(rewriter, library);
  if (flavour === 'strict') return strictText(rewriter);
  if (flavour === 'cuda') return cudaText(rewriter);
  throw new Error(`${flavour} is none of emulated, strict and cuda`);
}

const [flavour, input, output] = process.argv.slice(2);
if (output === undefined) {
  process.stderr.write('usage: node generate.mjs emulated|strict|cuda in.metal out.cpp\n');
  process.exit(2);
}
fs.writeFileSync(output, generate(flavour, input));
