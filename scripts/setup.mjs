#!/usr/bin/env node
/**
 * Makes a clone ready to run: installs the packages when they are missing or older than the lock file, and builds what
 * is older than its sources. Every npm script that runs moestream calls this first, so `git clone` and one command are
 * enough; when nothing has changed it costs a few milliseconds. Prints to stderr only.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const at = (...parts) => join(root, ...parts);

function modifiedMillis(path) {
  return existsSync(path) ? statSync(path).mtimeMs : 0;
}

function newestMillis(path) {
  const found = statSync(path);
  if (!found.isDirectory()) return found.mtimeMs;
  return readdirSync(path).reduce((newest, name) => Math.max(newest, newestMillis(join(path, name))), 0);
}

function step(sentence, command, args) {
  process.stderr.write(`moestream: ${sentence}\n`);
  const run = spawnSync(command, args, { cwd: root, stdio: ['ignore', 2, 2] });
  if (run.error) process.stderr.write(`moestream: ${command} did not start: ${run.error.message}\n`);
  if (run.status !== 0) process.exit(run.status ?? 1);
}

const installed = modifiedMillis(at('node_modules', '.package-lock.json'));
if (installed < modifiedMillis(at('package-lock.json')) || installed === 0) {
  step('installing packages and building (about a minute)', 'npm', ['ci', '--no-audit', '--no-fund']);
}

/** The add-ons that an installation has; each has its folder in native/. */
const names = process.platform === 'darwin' ? ['io', 'cpu', 'metal'] : ['io', 'cpu'];
const addons = names.map((name) => modifiedMillis(at('build', 'Release', `${name}.node`)));
const nativeSources = Math.max(
  ...['include', ...names].map((name) => newestMillis(at('native', name))),
  modifiedMillis(at('CMakeLists.txt')),
);
if (Math.min(...addons) < nativeSources) {
  step('building the native add-ons', process.execPath, [at('scripts', 'build-native.mjs')]);
}

const tsc = at('node_modules', 'typescript', 'bin', 'tsc');

function compile(what, config, output, sources) {
  const newest = Math.max(modifiedMillis(config), ...sources.map(newestMillis));
  if (modifiedMillis(join(output, '.tsbuildinfo')) < newest)
    step(`compiling ${what}`, process.execPath, [tsc, '-p', config]);
}

compile('TypeScript', at('tsconfig.json'), at('dist'), [at('src')]);
compile('scripts and benchmarks', at('scripts', 'tsconfig.json'), at('dist-scripts'), [
  at('scripts'),
  at('bench'),
  at('src'),
]);
