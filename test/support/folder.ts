/** Folders that tests write into. They go when the tests of the file are over. */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll } from 'vitest';

const made: string[] = [];

afterAll(() => {
  for (const folder of made.splice(0)) rmSync(folder, { recursive: true, force: true });
});

/** A new, empty folder. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'moestream-test-'));
  made.push(folder);
  return folder;
}

/** Every file of a folder and the SHA-256 of its content. */
export function contentOf(folder: string): Record<string, string> {
  const digest = (name: string): string =>
    createHash('sha256')
      .update(readFileSync(join(folder, name)))
      .digest('hex');
  return Object.fromEntries(
    readdirSync(folder)
      .sort()
      .map((name) => [name, digest(name)]),
  );
}

/** A file system of its own, or why there is none. */
export function mountSmall(at: string, size: string): string | undefined {
  if (process.platform !== 'linux' || process.getuid?.() !== 0) return 'needs root to mount a small disk';
  mkdirSync(at, { recursive: true });
  const mount = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs', at]);
  return mount.status === 0 ? undefined : 'the system lets no disk be mounted';
}

/** Takes a file out of the page cache, as far as it has been written. Node.js has no call for it. */
export function dropFromCache(path: string): boolean {
  const code = 'import os,sys; f=os.open(sys.argv[1],os.O_RDONLY); os.fsync(f); os.posix_fadvise(f,0,0,4)';
  return spawnSync('python3', ['-c', code, path], { stdio: 'ignore' }).status === 0;
}
