/** One computing process per core, and how fast they get on. */
import { type ChildProcess, fork } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { MoestreamError } from '../errors.ts';

interface Progress {
  readonly rounds: number;
  readonly millis: number;
}

const EXTENSION = import.meta.url.endsWith('.ts') ? '.ts' : '.js';
const WARM_UP_MILLIS = 500;

export class Spinners {
  private readonly children: readonly ChildProcess[];
  private began: readonly Progress[] = [];

  static async start(): Promise<Spinners> {
    const file = new URL(`./spin${EXTENSION}`, import.meta.url);
    const children = Array.from({ length: availableParallelism() }, () => fork(file, { stdio: 'ignore' }));
    const spinners = new Spinners(children);
    try {
      await spinners.look();
      await new Promise((resolve) => setTimeout(resolve, WARM_UP_MILLIS));
    } catch (error) {
      spinners.end();
      throw error;
    }
    return spinners;
  }

  private constructor(children: readonly ChildProcess[]) {
    this.children = children;
  }

  async mark(): Promise<void> {
    this.began = await this.look();
  }

  /** Rounds per second of all of them since the mark. */
  async rate(): Promise<number> {
    const now = await this.look();
    return now.reduce((sum, { rounds, millis }, index) => {
      const before = this.began[index]!;
      return sum + ((rounds - before.rounds) * 1000) / (millis - before.millis);
    }, 0);
  }

  end(): void {
    for (const child of this.children) child.kill('SIGKILL');
  }

  private async look(): Promise<readonly Progress[]> {
    return Promise.all(this.children.map(progressOf));
  }
}

/** Asks one of them. Rejects when it has ended. */
function progressOf(child: ChildProcess): Promise<Progress> {
  return new Promise((resolve, reject) => {
    const settle = (): void => {
      child.off('message', answered);
      child.off('exit', ended);
    };
    const answered = (progress: Progress): void => {
      settle();
      resolve(progress);
    };
    const ended = (): void => {
      settle();
      reject(new MoestreamError('WORKER_FAILED', 'a computing process ended'));
    };
    child.on('message', answered);
    child.on('exit', ended);
    if (!child.connected) ended();
    else child.send('look');
  });
}
