/** The command line as a user calls it: a child process. */
import { execFileSync, spawn } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { temporaryFolder } from './folder.js';

const MAIN = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

/** Sampling so hot that no answer ends by chance. */
export const ENDLESS = ['--temp', '99', '--top-k', '0', '--top-p', '1', '--min-p', '0'] as const;

export interface CliRun {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface CliOptions {
  readonly input?: string;
  readonly env?: Record<string, string>;
  /** Kills the command, so that it cannot end in order, when this resolves. */
  readonly kill?: Promise<void>;
  /** Called with what has come so far, whenever there is more. */
  readonly onStdout?: (text: string, kill: (signal: NodeJS.Signals) => void) => void;
  readonly onStderr?: (text: string, kill: (signal: NodeJS.Signals) => void) => void;
}

export function runCli(args: readonly string[], options: CliOptions = {}): Promise<CliRun> {
  const child = spawn(process.execPath, [MAIN, ...args], { env: { ...process.env, ...options.env } });
  options.kill?.then(() => child.kill('SIGKILL'));
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
    options.onStdout?.(stdout, (signal) => child.kill(signal));
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
    options.onStderr?.(stderr, (signal) => child.kill(signal));
  });
  child.stdin.end(options.input ?? '');
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code, signal) => resolve({ code, signal, stdout, stderr }));
  });
}

let faultyReads: string | undefined;

/** Environment that makes reads of a byte range fail; see faulty-reads.c. */
export function faultyReadsEnv(mode: string, from: number, to: number): Record<string, string> {
  if (faultyReads === undefined) {
    faultyReads = join(temporaryFolder(), 'faulty-reads.so');
    const source = fileURLToPath(new URL('./faulty-reads.c', import.meta.url));
    execFileSync('cc', ['-shared', '-fPIC', '-O1', '-o', faultyReads, source, '-ldl']);
  }
  return { LD_PRELOAD: faultyReads, FAULT_MODE: mode, FAULT_FROM: String(from), FAULT_TO: String(to) };
}
