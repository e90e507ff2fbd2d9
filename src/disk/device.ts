/**
 * Which device a file lies on, as a name that is the same tomorrow: the source of the mount, such as `vda` or
 * `mapper-data`. Containers show an overlay and no device; then the file system's kind and number have to do.
 */
import { execFileSync } from 'node:child_process';
import { readFileSync, statSync } from 'node:fs';

/** Major and minor number in Linux's encoding. */
function deviceNumbers(dev: bigint): string {
  const major = ((dev >> 8n) & 0xfffn) | ((dev >> 32n) & ~0xfffn);
  const minor = (dev & 0xffn) | ((dev >> 12n) & ~0xffn);
  return `${major}:${minor}`;
}

function nameOf(source: string): string {
  return source.replace(/^\/dev\//, '').replaceAll(/[^A-Za-z0-9._-]+/g, '-');
}

/** The name of the device with these numbers, by a mountinfo table. */
export function deviceByMounts(mountinfo: string, numbers: string): string | undefined {
  let found: string | undefined;
  for (const line of mountinfo.split('\n')) {
    const [place, origin] = line.split(' - ');
    if (place === undefined || origin === undefined || place.split(' ')[2] !== numbers) continue;
    const [kind = '', source = ''] = origin.split(' ');
    found = source.startsWith('/') ? nameOf(source) : nameOf(`${kind}-${numbers}`);
  }
  return found;
}

/** The first column of `df -P` for one file. */
function deviceByDf(path: string): string | undefined {
  const [, line = ''] = execFileSync('df', ['-P', path], { encoding: 'utf8' }).split('\n');
  const [source = ''] = line.split(' ');
  return source === '' ? undefined : nameOf(source);
}

/** Never fails: a device that cannot be named has its number for a name. */
export function deviceOf(path: string): string {
  const { dev } = statSync(path, { bigint: true });
  try {
    const name =
      process.platform === 'linux'
        ? deviceByMounts(readFileSync('/proc/self/mountinfo', 'utf8'), deviceNumbers(dev))
        : deviceByDf(path);
    if (name !== undefined) return name;
  } catch {
    // No table of mounts, no df: the number.
  }
  return `device-${dev}`;
}
