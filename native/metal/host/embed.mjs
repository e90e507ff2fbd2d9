#!/usr/bin/env node
/**
 * Writes the kernels' text as C++: `embed.mjs OUTPUT`.
 *
 * Metal's run-time compiler sees one text and no folder, so a file's own includes are put in their place, each once. The
 * first line names the file, for the compiler's messages and for the emulator.
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';

const kernels = join(import.meta.dirname ?? new URL('.', import.meta.url).pathname, '..', 'kernels');
/** Needs Metal 4, which may not be there. */
const METAL_4 = new Set(['tensor.metal']);
const DELIMITER = 'MSL';

function flatten(file, seen) {
  if (seen.has(file)) return '';
  seen.add(file);
  const lines = readFileSync(join(kernels, file), 'utf8').split('\n');
  return lines
    .map((line) => {
      if (line.trim() === '#pragma once') return '';
      const own = /^#include "(.+)"$/.exec(line.trim());
      return own ? flatten(own[1], seen) : line;
    })
    .join('\n');
}

function literal(text) {
  if (text.includes(`)${DELIMITER}"`)) throw new Error(`a kernel contains )${DELIMITER}"`);
  // With its length: counting so many letters is more than a compiler does for a constant.
  return `{R"${DELIMITER}(${text})${DELIMITER}", ${Buffer.byteLength(text)}}`;
}

const [output] = process.argv.slice(2);
if (output === undefined) throw new Error('usage: embed.mjs OUTPUT');
const files = readdirSync(kernels)
  .filter((file) => file.endsWith('.metal'))
  .sort();
const entries = files.map((file) => {
  const text = `// file: ${basename(file)}\n${flatten(file, new Set())}`;
  return `    {"${file}", ${literal(text)}, ${METAL_4.has(file)}},`;
});
writeFileSync(
  output,
  `// Written by native/metal/host/embed.mjs.
#include "kernels.h"

namespace moestream::metal {
namespace {

constexpr KernelSource kSources[] = {
${entries.join('\n')}
};

}  // namespace

std::span<const KernelSource> kernel_sources() { return kSources; }

}  // namespace moestream::metal
`,
);
