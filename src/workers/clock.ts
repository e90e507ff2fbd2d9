/**
 * The time by which reads are waited for. The scheduler asks a clock instead of the system, so that its real code runs in
 * a simulation whose disk and arithmetic take exactly the time they are told (test/support/virtual-machine.ts).
 */
import type { Doorbell } from '../pipeline/doorbell.ts';

export interface Clock {
  nowMillis(): number;
  /** Sleeps on a bell that was entered at this epoch. */
  sleep(bell: Doorbell, epoch: number, timeoutMillis: number): void;
}

export const SYSTEM_CLOCK: Clock = {
  nowMillis: () => performance.now(),
  sleep: (bell, epoch, timeoutMillis) => bell.sleep(epoch, timeoutMillis),
};
