/**
 * CPU profiles into flame graphs, with 0x, which is an optional package: it draws them, the engine's threads make them.
 *
 * The `.cpuprofile` files are there before 0x is looked for, and are useful without it: Chrome's and VS Code's own tools
 * open them.
 */
import { mkdirSync, readdirSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, join, resolve } from 'node:path';
import { MoestreamError } from '../errors.ts';

const PROFILE_SUFFIX = '.cpuprofile';

/** Makes the folder, and sees that profiles of before are not taken for new ones. Throws USAGE or WRITE_FAILED. */
export function prepareProfileFolder(folder: string): void {
  try {
    if (statSync(folder, { throwIfNoEntry: false }) === undefined) mkdirSync(folder);
    const old = readdirSync(folder).find((name) => name.endsWith(PROFILE_SUFFIX));
    if (old === undefined) return;
    throw new MoestreamError('USAGE', `${folder} holds profiles already: ${old}`, {
      hint: 'Name a new folder, or remove them.',
    });
  } catch (cause) {
    if (MoestreamError.is(cause)) throw cause;
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new MoestreamError('WRITE_FAILED', `the folder for profiles cannot be used: ${reason}`, { cause });
  }
}

/** The profiles that a closed engine has left. Throws WORKER_FAILED when there is none. */
export function profilesIn(folder: string): readonly string[] {
  const names = readdirSync(folder).filter((name) => name.endsWith(PROFILE_SUFFIX));
  if (names.length === 0) {
    throw new MoestreamError('WORKER_FAILED', `no thread has left a CPU profile in ${folder}`, {
      hint: 'Threads that do not end within two seconds write none.',
    });
  }
  return names.sort().map((name) => join(folder, name));
}

interface FlamegraphSettings {
  readonly argv: readonly string[];
  readonly visualizeCpuProfile: string;
  readonly workingDir: string;
  readonly name: string;
  readonly title: string;
}

type Flamegraph = (settings: FlamegraphSettings) => Promise<string>;

/** 0x, if it is installed. Throws USAGE with what to install. */
function loadFlamegraph(folder: string): Flamegraph {
  const { resolve: find } = createRequire(import.meta.url);
  let path: string;
  try {
    path = find('0x');
  } catch (cause) {
    throw new MoestreamError('USAGE', `flame graphs need the package 0x; the CPU profiles are in ${folder}`, {
      hint: 'Install it with `npm install 0x`, or open the .cpuprofile files with the developer tools of a browser.',
      cause,
    });
  }
  return createRequire(import.meta.url)(path) as Flamegraph;
}

/** Draws each profile beside its file; returns the pages. */
export async function drawFlamegraphs(folder: string, onDrawn: (path: string) => void): Promise<string[]> {
  const draw = loadFlamegraph(folder);
  const pages: string[] = [];
  for (const profile of profilesIn(folder)) {
    const name = basename(profile, PROFILE_SUFFIX);
    try {
      await draw({
        argv: [],
        visualizeCpuProfile: resolve(profile),
        workingDir: resolve(folder),
        name,
        title: `moestream ${name}`,
      });
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      throw new MoestreamError('WRITE_FAILED', `0x does not draw ${profile}: ${reason}`, { cause });
    }
    const page = join(folder, `${name}.html`);
    pages.push(page);
    onDrawn(page);
  }
  return pages;
}
