/** The Metal add-on on the emulated GPU, with its controls, and why it may not be there. */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { loadMetal, type MetalAddon } from '../../dist/native.js';

const FOLDER = new URL('../../build/emulator/Release/', import.meta.url);
export const MISUSE = fileURLToPath(new URL('metal_misuse', FOLDER));

/** Undefined where the emulator was built. */
export const missingEmulator: string | undefined = existsSync(fileURLToPath(new URL('metal.node', FOLDER)))
  ? undefined
  : 'the Metal emulator was not built: `npm run build:emulator`, which needs clang 19';

if (missingEmulator !== undefined) process.stderr.write(`skipped: ${missingEmulator}\n`);

export interface EmulatorCounts {
  readonly created: number;
  readonly committed: number;
  readonly completed: number;
  readonly failed: number;
  /** Released without a commit. */
  readonly discarded: number;
  readonly waits: number;
  readonly encoders: number;
  readonly dispatches: number;
  readonly barriers: number;
  readonly residentBytes: number;
}

export interface Emulator {
  /** Counts from zero; forgets what was injected; keeps a log from here on, or none. */
  reset(log: boolean): void;
  counts(): EmulatorCounts;
  /** create, commit, wait, discard, in order */
  events(): string[];
  /** Objects alive, by class. */
  live(): Record<string, number>;
  inject(
    what:
      | 'dropBarrier'
      | 'dropBinding'
      | 'noDevice'
      | 'refuseSource'
      | 'internal'
      | 'timeout'
      | 'memory'
      | 'removed',
    number: number,
  ): void;
}

export function loadEmulated(): { metal: MetalAddon; emulator: Emulator } {
  const metal = loadMetal();
  return { metal, emulator: metal.emulator as Emulator };
}
