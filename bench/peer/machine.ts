/** The state that a turn finds: what the page cache holds of the model, how much memory there is, and who else computes. */
import { spawnSync } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, openSync, readSync, rmdirSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';

const READ_BYTES = 8 * 1024 ** 2;

/** Reads the files once, as any reader through the page cache would. */
export function readIntoPageCache(paths: readonly string[]): void {
  const buffer = Buffer.alloc(READ_BYTES);
  for (const path of paths) {
    const fd = openSync(path, 'r');
    while (readSync(fd, buffer) > 0);
    closeSync(fd);
  }
}

/** Asks the system to forget the files' pages (GNU dd passes POSIX_FADV_DONTNEED on). False where that is not known. */
export function dropFromPageCache(paths: readonly string[]): boolean {
  return paths.every(
    (path) => spawnSync('dd', [`if=${path}`, 'iflag=nocache', 'count=0'], { stdio: 'ignore' }).status === 0,
  );
}

/** Bytes of the files in the page cache, or undefined where `fincore` is not there to say. */
export function cachedBytes(paths: readonly string[]): number | undefined {
  const run = spawnSync('fincore', ['--bytes', '--noheadings', '--output', 'RES', ...paths], {
    encoding: 'utf8',
  });
  if (run.status !== 0) return undefined;
  return run.stdout.split('\n').reduce((sum, line) => sum + Number(line), 0);
}

/** A control group (version 1) with a memory limit, which counts the page cache as well. */
export class MemoryLimit {
  private static readonly root = '/sys/fs/cgroup/memory';
  private readonly folder = join(MemoryLimit.root, `moestream-peer-${process.pid}`);

  /** Why there can be none, or undefined. */
  static refusal(): string | undefined {
    if (process.platform !== 'linux') return 'only Linux has control groups';
    if (!existsSync(join(MemoryLimit.root, 'memory.limit_in_bytes'))) {
      return `the memory controller is not mounted at ${MemoryLimit.root} (control groups version 1)`;
    }
    return process.getuid?.() === 0 ? undefined : 'only root may make a control group';
  }

  constructor(byteCount: number) {
    mkdirSync(this.folder);
    writeFileSync(join(this.folder, 'memory.limit_in_bytes'), String(byteCount));
  }

  /** Runs the command that follows inside the group. */
  readonly prefix = (): string[] => ['sh', '-c', 'echo $$ > "$0/cgroup.procs" && exec "$@"', this.folder];

  /** Only when nothing runs in it any more. */
  remove(): void {
    try {
      writeFileSync(join(this.folder, 'memory.force_empty'), '1');
    } finally {
      rmdirSync(this.folder);
    }
  }
}

/** Processor time of the whole machine since it started. */
interface ProcessorTime {
  readonly busyMillis: number;
  readonly totalMillis: number;
}

function processorTime(): ProcessorTime {
  let idleMillis = 0;
  let totalMillis = 0;
  for (const { times } of cpus()) {
    idleMillis += times.idle;
    totalMillis += times.idle + times.user + times.nice + times.sys + times.irq;
  }
  return { busyMillis: totalMillis - idleMillis, totalMillis };
}

/** How much of the processor goes to others, 0 to 1, while `work` runs and says what it took itself. */
export async function othersDuring<T extends { readonly cpuMillis: number }>(
  work: () => Promise<T>,
): Promise<{ result: T; others: number }> {
  const before = processorTime();
  const result = await work();
  const after = processorTime();
  const busyMillis = after.busyMillis - before.busyMillis - result.cpuMillis;
  return { result, others: Math.max(0, busyMillis / (after.totalMillis - before.totalMillis)) };
}

/** Waits until others leave nine tenths of the processor idle for a second, or the time is over. */
export async function waitForIdle(seconds: number): Promise<void> {
  for (const endMillis = performance.now() + seconds * 1000; performance.now() < endMillis; ) {
    const { others } = await othersDuring(async () => {
      await new Promise((resolve) => setTimeout(resolve, 1000));
      return { cpuMillis: 0 };
    });
    if (others < 0.1) return;
  }
}
