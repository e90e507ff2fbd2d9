#!/usr/bin/env node
/**
 * Builds the Metal backend on the kernel emulator into build/emulator, for tests: about a minute, and only where clang 19
 * is installed. Not part of an installation.
 *
 * Exit code 0 also when there is nothing to build with: tests look for the add-on and say why they skip.
 */
import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const COMPILER = 'clang++-19';

if (process.platform !== 'linux') {
  process.stderr.write('moestream: the Metal emulator is built on Linux only\n');
  process.exit(0);
}
if (spawnSync(COMPILER, ['--version'], { stdio: 'ignore' }).error !== undefined) {
  process.stderr.write(
    `moestream: no ${COMPILER}, so no Metal emulator; on Debian and Ubuntu: apt-get install clang-19\n`,
  );
  process.exit(0);
}

const cmakeJs = createRequire(import.meta.url).resolve('cmake-js/bin/cmake-js');
const options = ['--out', 'build/emulator', '--CDMOESTREAM_METAL_EMULATOR=ON', '--parallel', '2'];
for (const target of ['metal', 'metal_misuse']) {
  const run = spawnSync(process.execPath, [cmakeJs, 'build', ...options, '--target', target], {
    cwd: root,
    encoding: 'utf8',
    env: { ...process.env, CC: 'clang-19', CXX: COMPILER },
  });
  if (run.status === 0) continue;
  process.stderr.write(`${run.stdout ?? ''}${run.stderr ?? ''}moestream: the Metal emulator did not build\n`);
  process.exit(1);
}
