/** The peer's packages, in the user's cache folder: nothing of moestream depends on them. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

const VERSION = '3.22.1';

export function peerFolder(): string {
  return join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'moestream-peer');
}

function binaries(): string {
  const { platform, arch } = process;
  if (platform === 'darwin') return arch === 'arm64' ? 'mac-arm64-metal' : 'mac-x64';
  return `${platform}-${arch}`;
}

function isInstalled(name: string): boolean {
  try {
    const text = readFileSync(join(peerFolder(), 'node_modules', name, 'package.json'), 'utf8');
    return (JSON.parse(text) as { version?: string }).version === VERSION;
  } catch {
    return false;
  }
}

/** Installs node-llama-cpp and its built binaries when they are not there. Throws when npm does. */
export function installPeer(): void {
  const names = ['node-llama-cpp', `@node-llama-cpp/${binaries()}`];
  if (names.every(isInstalled)) return;
  const folder = peerFolder();
  process.stderr.write(`installing node-llama-cpp ${VERSION} into ${folder} (about 85 MB)\n`);
  mkdirSync(folder, { recursive: true });
  const packages = names.map((name) => `${name}@${VERSION}`);
  // The other platforms' binaries are optional dependencies; the install script would build llama.cpp from source.
  const flags = ['--omit=optional', '--ignore-scripts', '--no-audit', '--no-fund'];
  const run = spawnSync('npm', ['install', '--prefix', folder, ...flags, ...packages], {
    cwd: folder,
    stdio: ['ignore', 2, 2],
  });
  if (run.status !== 0 || !names.every(isInstalled)) {
    throw new Error(`node-llama-cpp ${VERSION} could not be installed into ${folder}`);
  }
}
