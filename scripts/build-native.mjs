#!/usr/bin/env node
/**
 * Builds the native add-ons with cmake-js, quietly when it works and in full when it does not.
 *
 * Runs as npm's install script, so it is the first thing a new user's machine meets: a missing compiler or CMake must
 * end in one sentence that says what to install. Needs no network: the Node-API headers are an npm package.
 */
import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');

function found(command) {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).error === undefined;
}

function stop(sentence) {
  process.stderr.write(`moestream: ${sentence}\n`);
  process.exit(1);
}

const compilers = process.env.CXX ? [process.env.CXX] : ['c++', 'g++', 'clang++'];
const missing = [];
if (!compilers.some(found)) missing.push('a C++20 compiler');
if (!found('cmake')) missing.push('CMake');
if (missing.length > 0) {
  stop(
    `${missing.join(' and ')} not found; install with "xcode-select --install" and "brew install cmake" on macOS, ` +
      'or "apt-get install g++ cmake" on Debian and Ubuntu, then run this again.',
  );
}

const cmakeJs = createRequire(import.meta.url).resolve('cmake-js/bin/cmake-js');
const run = spawnSync(process.execPath, [cmakeJs, 'build', '--parallel', '2'], {
  cwd: root,
  encoding: 'utf8',
});
if (run.status !== 0) {
  process.stderr.write(`${run.stdout ?? ''}${run.stderr ?? ''}`);
  stop(
    run.error
      ? `cmake-js did not start: ${run.error.message}`
      : "the native add-ons did not build; the compiler's words are above.",
  );
}
