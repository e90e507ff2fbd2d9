/**
 * How much memory a model gets when nobody says: what is free, less head-room, inside whatever limit this process has.
 *
 * Node's process.availableMemory() takes a control group's page cache for memory that is gone: a container that has just
 * copied a model file seems to have nothing left. So the groups are read here, every one from this process's own up to the
 * root, and cache that the kernel gives back is counted as free. Control groups of both versions, mixed as they come.
 *
 * On macOS free memory is what nobody has found a use for yet, close to nothing; `vm_stat` also says what can be had.
 */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { freemem, totalmem } from 'node:os';
import { join } from 'node:path';
import { formatBytes } from './memory.ts';

export interface Budget {
  readonly bytes: number;
  /** Where the number comes from, for people. */
  readonly because: string;
}

/** What a limit leaves, and whose it is. */
export interface Limit {
  readonly limitBytes: number;
  readonly leftBytes: number;
  readonly where: string;
}

/** What stays for the system, Node.js and its threads: a share of what is free, within bounds. */
const HEAD_ROOM_SHARE = 0.15;
const HEAD_ROOM_MIN_BYTES = 512 * 1024 ** 2;
const HEAD_ROOM_MAX_BYTES = 6 * 1024 ** 3;

export type ReadText = (path: string) => string | undefined;

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}

/** A file with one number; "max" is no limit. */
function amountIn(text: string | undefined): number | undefined {
  const value = Number(text?.trim());
  return text !== undefined && text.trim() !== '' && Number.isFinite(value) ? value : undefined;
}

/** A field of memory.stat. */
function statIn(text: string | undefined, name: string): number {
  const match = new RegExp(`^${name} (\\d+)$`, 'm').exec(text ?? '');
  return match === null ? 0 : Number(match[1]);
}

/** The names of a control group's files, by version. */
const VERSIONS = {
  cgroup: {
    limit: 'memory.limit_in_bytes',
    used: 'memory.usage_in_bytes',
    cache: ['total_inactive_file', 'total_active_file'],
    where: 'control group v1',
  },
  cgroup2: {
    limit: 'memory.max',
    used: 'memory.current',
    cache: ['inactive_file', 'active_file'],
    where: 'control group',
  },
} as const;

interface Hierarchy {
  readonly version: keyof typeof VERSIONS;
  /** Where it is mounted, and which group that is. */
  readonly mount: string;
  readonly root: string;
}

function hierarchiesIn(mountinfo: string): Hierarchy[] {
  const found: Hierarchy[] = [];
  for (const line of mountinfo.split('\n')) {
    const [place, origin] = line.split(' - ');
    const [, , , root, mount] = place?.split(' ') ?? [];
    const [version, , options = ''] = origin?.split(' ') ?? [];
    if (root === undefined || mount === undefined) continue;
    if (version === 'cgroup2') found.push({ version, mount, root });
    if (version === 'cgroup' && options.split(',').includes('memory')) found.push({ version, mount, root });
  }
  return found;
}

/** The group of this process in a hierarchy: `N:controllers:path` a line, `0::path` in version 2. */
function groupIn(cgroup: string, version: Hierarchy['version']): string | undefined {
  for (const line of cgroup.split('\n')) {
    const [, controllers, ...path] = line.split(':');
    const isIt = version === 'cgroup2' ? controllers === '' : controllers?.split(',').includes('memory');
    if (isIt === true) return path.join(':');
  }
  return undefined;
}

/** A group's folder and those of all groups above it. A group outside of what is mounted shows as the mount itself. */
function foldersOf({ mount, root }: Hierarchy, group: string): string[] {
  const isInside = root === '/' || group === root || group.startsWith(`${root}/`);
  const within = isInside ? group.slice(root === '/' ? 0 : root.length) : '';
  const parts = within.split('/').filter((part) => part !== '' && part !== '..');
  return Array.from({ length: parts.length + 1 }, (_, index) =>
    join(mount, ...parts.slice(0, parts.length - index)),
  );
}

/** The tightest memory limit over this process, or undefined when there is none. */
export function memoryLimit(totalBytes: number, read: ReadText = readText): Limit | undefined {
  const mountinfo = read('/proc/self/mountinfo');
  const cgroup = read('/proc/self/cgroup');
  if (mountinfo === undefined || cgroup === undefined) return undefined;
  let tightest: Limit | undefined;
  for (const hierarchy of hierarchiesIn(mountinfo)) {
    const group = groupIn(cgroup, hierarchy.version);
    if (group === undefined) continue;
    const files = VERSIONS[hierarchy.version];
    for (const folder of foldersOf(hierarchy, group)) {
      const limitBytes = amountIn(read(join(folder, files.limit)));
      // Version 1 writes "no limit" as a number close to 2^63.
      if (limitBytes === undefined || limitBytes >= totalBytes) continue;
      const used = amountIn(read(join(folder, files.used))) ?? 0;
      const stat = read(join(folder, 'memory.stat'));
      const cache = files.cache.reduce((sum, name) => sum + statIn(stat, name), 0);
      const leftBytes = Math.max(0, limitBytes - Math.max(0, used - cache));
      if (tightest === undefined || leftBytes < tightest.leftBytes) {
        tightest = { limitBytes, leftBytes, where: files.where };
      }
    }
  }
  return tightest;
}

/** Free, inactive, speculative and purgeable pages, by `vm_stat`. */
export function freeByVmStat(text: string): number | undefined {
  const page = /page size of (\d+) bytes/.exec(text);
  if (page === null) return undefined;
  const pages = ['free', 'inactive', 'speculative', 'purgeable'].map((kind) =>
    Number(new RegExp(`^Pages ${kind}: +(\\d+)\\.`, 'm').exec(text)?.[1] ?? 0),
  );
  return pages.reduce((sum, count) => sum + count, 0) * Number(page[1]);
}

/** On Linux MemAvailable, which counts cache that can be given back. */
function freeBytes(): number {
  if (process.platform !== 'darwin') return freemem();
  try {
    return freeByVmStat(execFileSync('vm_stat', { encoding: 'utf8' })) ?? freemem();
  } catch {
    return freemem();
  }
}

/** The budget for this much free memory under this limit. */
export function budgetFor(free: number, limit: Limit | undefined): Budget {
  const limited = limit !== undefined && limit.leftBytes < free;
  const leftBytes = limited ? limit.leftBytes : free;
  const wanted = Math.min(HEAD_ROOM_MAX_BYTES, Math.max(HEAD_ROOM_MIN_BYTES, leftBytes * HEAD_ROOM_SHARE));
  const headRoom = Math.floor(Math.min(wanted, leftBytes / 2));
  const whose = limited
    ? `that the limit of ${formatBytes(limit.limitBytes)} (${limit.where}) leaves`
    : 'that are free';
  return {
    bytes: Math.floor(leftBytes) - headRoom,
    because: `of ${formatBytes(Math.floor(leftBytes))} ${whose}, ${formatBytes(headRoom)} stay for everything else`,
  };
}

/** What this process may use now, and why. */
export function defaultBudget(): Budget {
  return budgetFor(freeBytes(), process.platform === 'linux' ? memoryLimit(totalmem()) : undefined);
}

export function defaultBudgetBytes(): number {
  return defaultBudget().bytes;
}
