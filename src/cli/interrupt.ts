/**
 * Ctrl-C and friends. The first signal ends the work within one layer, and the engine is closed in order; a second one
 * ends the process at once, for when the disk hangs.
 */
import { EXIT_INTERRUPTED, EXIT_PIPE_CLOSED, EXIT_TERMINATED } from './exit-codes.ts';
import { stdoutClosed } from './output.ts';

export interface Interruption {
  readonly signal: AbortSignal;
  /** What the process shall end with if the work was interrupted. */
  exitCode(): number;
}

export function watchInterrupts(): Interruption {
  const controller = new AbortController();
  let code = EXIT_INTERRUPTED;
  const on = (signalCode: number) => () => {
    if (controller.signal.aborted) process.exit(signalCode);
    code = signalCode;
    controller.abort(new Error('interrupted'));
  };
  process.on('SIGINT', on(EXIT_INTERRUPTED));
  process.on('SIGTERM', on(EXIT_TERMINATED));
  stdoutClosed.addEventListener('abort', () => {
    code = EXIT_PIPE_CLOSED;
    controller.abort(stdoutClosed.reason);
  });
  return { signal: controller.signal, exitCode: () => code };
}
