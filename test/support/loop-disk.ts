/**
 * A real block device whose faults can be switched on and off: a file system in an image behind a loop device.
 *
 * Preloaded functions reach pread, not io_uring; a block device reaches every engine. Cutting the image off makes reads of
 * what was behind the cut fail with EIO; a control group's limit on the device holds reads up. Both need root.
 */
import { execFileSync } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmdirSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import { temporaryFolder } from './folder.js';

const BLKIO = '/sys/fs/cgroup/blkio';
const TOOLS = ['losetup', 'mkfs.ext4', 'mount', 'umount'];

function reasonOf(cause: unknown): string {
  return cause instanceof Error ? cause.message.trim().split('\n').at(-1)! : String(cause);
}

function run(command: string, ...args: string[]): string {
  return execFileSync(command, args, { encoding: 'utf8', stdio: 'pipe' }).trim();
}

function hasTool(name: string): boolean {
  const folders = `${process.env.PATH ?? ''}:/usr/sbin:/sbin`.split(':');
  return folders.some((folder) => existsSync(join(folder, name)));
}

/** A disk with one file on it, or the sentence that says why there is none. */
export function openLoopDisk(file: string): LoopDisk | string {
  if (process.platform !== 'linux') return 'loop devices are Linux only';
  if (process.getuid?.() !== 0) return 'a loop device needs root';
  const missing = TOOLS.filter((tool) => !hasTool(tool));
  if (missing.length > 0) return `a loop device needs ${missing.join(', ')}`;
  const disk = new LoopDisk();
  try {
    disk.begin(file);
  } catch (cause) {
    disk.end();
    return `no loop device here: ${reasonOf(cause)}`;
  }
  return disk;
}

export class LoopDisk {
  /** The file on the disk. */
  path = '';
  private readonly image: string;
  private readonly spare: string;
  private readonly folder: string;
  private readonly group = join(BLKIO, `moestream-test-${process.pid}`);
  private device = '';
  private mounted = false;

  constructor() {
    const folder = temporaryFolder();
    this.image = join(folder, 'image');
    this.spare = join(folder, 'spare');
    this.folder = join(folder, 'mount');
  }

  begin(file: string): void {
    mkdirSync(this.folder);
    writeFileSync(this.image, '');
    truncateSync(this.image, statSync(file).size + 32_000_000);
    run('mkfs.ext4', '-q', '-F', '-O', '^has_journal', this.image);
    this.device = run('losetup', '--find', '--show', this.image);
    // What is read ahead would be answered by memory when the disk no longer does.
    writeFileSync(`/sys/class/block/${basename(this.device)}/queue/read_ahead_kb`, '0');
    this.mount('rw');
    this.path = join(this.folder, basename(file));
    copyFileSync(file, this.path);
    this.unmount();
    copyFileSync(this.image, this.spare);
    this.mount('ro');
  }

  /** Whole, and nothing of the file in memory. Nobody may have it open. */
  renew(): void {
    this.release();
    this.unmount();
    this.mend();
    this.mount('ro');
  }

  /** From now on the device has nothing from this byte on: reads of it fail with EIO. */
  cutOff(bytes: number): void {
    truncateSync(this.image, bytes);
  }

  /** The device is whole again. */
  mend(): void {
    copyFileSync(this.spare, this.image);
  }

  /** Why this process's reads cannot be held up, if they cannot. */
  get holdRefusal(): string | undefined {
    try {
      mkdirSync(this.group);
      this.limit(1);
      this.limit(0);
      return undefined;
    } catch (cause) {
      return `reads can be held up only by a control group (version 1, blkio): ${reasonOf(cause)}`;
    } finally {
      if (existsSync(this.group)) rmdirSync(this.group);
    }
  }

  /** Every read of this process from this device waits, until `release`. */
  hold(): void {
    mkdirSync(this.group);
    writeFileSync(join(this.group, 'cgroup.procs'), String(process.pid));
    this.limit(1);
  }

  release(): void {
    if (!existsSync(this.group)) return;
    this.limit(0);
    writeFileSync(join(BLKIO, 'cgroup.procs'), String(process.pid));
    rmdirSync(this.group);
  }

  private limit(bytesPerSecond: number): void {
    const number = readFileSync(`/sys/class/block/${basename(this.device)}/dev`, 'utf8').trim();
    writeFileSync(join(this.group, 'blkio.throttle.read_bps_device'), `${number} ${bytesPerSecond}`);
  }

  end(): void {
    this.release();
    this.unmount();
    if (this.device !== '') run('losetup', '--detach', this.device);
    this.device = '';
  }

  private mount(mode: 'ro' | 'rw'): void {
    run('mount', '-o', mode, this.device, this.folder);
    this.mounted = true;
  }

  private unmount(): void {
    if (this.mounted) run('umount', this.folder);
    this.mounted = false;
  }
}
