/**
 * One process at a time packs into a folder, tunes a model or writes a log: a file that is created exclusively and says who
 * holds it.
 *
 * A killed holder leaves its file behind. It is stale when no process has that number any more, or another one has it now:
 * processes are told apart by when they started. A holder on another host cannot be asked, so its lock always counts.
 */
import { execFileSync } from 'node:child_process';
import { readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { type ErrorCode, MoestreamError } from '../errors.ts';
import { codeOf, writeError } from './disk.ts';

export const LOCK_NAME = 'pack.lock';

/** Between creating the file and writing into it nothing takes this long. */
const UNWRITTEN_MILLIS = 10_000;
const ATTEMPTS = 3;

interface Holder {
  readonly pid: number;
  readonly host: string;
  readonly started: string;
}

/** What a lock guards, for the sentence about who holds it. */
export interface LockPurpose {
  readonly code: ErrorCode;
  /** What its holder does, such as "packing into this folder". */
  readonly doing: string;
}

const PACKING: LockPurpose = { code: 'PACK_REFUSED', doing: 'packing into this folder' };

/** Takes the lock of a packed folder. Throws PACK_REFUSED when another process holds it. */
export function takeLock(folder: string): () => void {
  return takeFileLock(join(folder, LOCK_NAME), PACKING);
}

/** Takes the lock and returns how to give it back. Throws when another process holds it. */
export function takeFileLock(path: string, purpose: LockPurpose): () => void {
  const text = `${JSON.stringify({ pid: process.pid, host: hostname(), started: startOf(process.pid) })}\n`;
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    try {
      writeFileSync(path, text, { flag: 'wx' });
      return () => {
        if (readOr(path) === text) rmSync(path, { force: true });
      };
    } catch (cause) {
      if (codeOf(cause) !== 'EEXIST') throw writeError(path, cause);
    }
    removeIfStale(path, purpose);
  }
  throw new MoestreamError(purpose.code, `${path} keeps coming back: another process is ${purpose.doing}`);
}

function removeIfStale(path: string, { code, doing }: LockPurpose): void {
  const seen = readOr(path);
  if (seen === undefined) return;
  const holder = holderOf(seen);
  if (holder === undefined ? isBeingWritten(path) : isRunning(holder)) {
    const who = holder === undefined ? 'another process' : `process ${holder.pid} on ${holder.host}`;
    throw new MoestreamError(code, `${path}: ${who} is ${doing}`, {
      hint: 'Wait for it or stop it. If there is no such process, delete that file.',
    });
  }
  // Renamed first: two processes may find the same stale lock, and only one of them must remove it.
  const aside = `${path}.${process.pid}`;
  try {
    renameSync(path, aside);
  } catch {
    return;
  }
  if (readOr(aside) === seen) rmSync(aside, { force: true });
  else renameSync(aside, path);
}

function readOr(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}

function holderOf(text: string): Holder | undefined {
  try {
    const { pid, host, started } = JSON.parse(text) as Record<string, unknown>;
    const known = Number.isSafeInteger(pid) && Number(pid) > 0 && typeof host === 'string';
    return known && typeof started === 'string' ? { pid: Number(pid), host, started } : undefined;
  } catch {
    return undefined;
  }
}

function isBeingWritten(path: string): boolean {
  const found = statSync(path, { throwIfNoEntry: false });
  return found !== undefined && Date.now() - found.mtimeMs < UNWRITTEN_MILLIS;
}

function isRunning(holder: Holder): boolean {
  if (holder.host !== hostname()) return true;
  try {
    process.kill(holder.pid, 0);
  } catch (error) {
    if (codeOf(error) === 'ESRCH') return false;
  }
  return startOf(holder.pid) === holder.started;
}

/** When a process started, in whatever form the system tells it; empty when it does not. */
function startOf(pid: number): string {
  try {
    if (process.platform === 'linux') {
      // Behind the name in brackets, which may hold anything, the start is field 20.
      const fields = readFileSync(`/proc/${pid}/stat`, 'latin1').split(') ').at(-1)!.split(' ');
      return fields[19] ?? '';
    }
    return execFileSync('ps', ['-o', 'lstart=', '-p', String(pid)], { encoding: 'utf8' }).trim();
  } catch {
    return '';
  }
}
