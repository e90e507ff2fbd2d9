/** The other side of a ring, in a thread of its own. Answers each message of the main thread with what it saw. */
import { parentPort, workerData } from 'node:worker_threads';
import { ControlBlock } from '../../dist/pipeline/control.js';
import { emptyRequest, FetchQueue } from '../../dist/pipeline/fetch-queue.js';
import { SpscRing, STOPPED, TIMED_OUT } from '../../dist/pipeline/ring.js';

const { role, handle, control: controlWords, count } = workerData;
const control = new ControlBlock(controlWords);

const roles = {
  /** Takes `count` messages; the second word must repeat the first. */
  consume() {
    const ring = new SpscRing(handle);
    for (let expected = 0; expected < count; expected++) {
      const slot = ring.peek(control, 10_000);
      if (slot < 0) return { ok: false, why: `no message ${expected}: ${slot}` };
      const [first, second] = [ring.words[slot], ring.words[slot + 1]];
      ring.release();
      if (first !== expected || second !== -expected)
        return { ok: false, why: `got ${first}, ${second}, not ${expected}` };
    }
    return { ok: true };
  },
  /** Waits on an empty ring until it is stopped. */
  waitForMessage() {
    const slot = new SpscRing(handle).peek(control, 60_000);
    return { ok: slot === STOPPED, why: `peek returned ${slot}` };
  },
  /** Waits on a full ring until it is stopped. */
  waitForSpace() {
    const slot = new SpscRing(handle).reserve(control, 60_000);
    return { ok: slot === STOPPED, why: `reserve returned ${slot}` };
  },
  timesOut() {
    const slot = new SpscRing(handle).peek(control, 20);
    return { ok: slot === TIMED_OUT, why: `peek returned ${slot}` };
  },
  /** Takes requests until shutdown; reports the tickets it got and whether every field agreed with them. */
  fetch() {
    const queue = new FetchQueue(handle);
    const request = emptyRequest();
    const tickets = [];
    while (queue.pop(request, control)) {
      const { ticket } = request;
      const agrees =
        request.claim === ticket * 3 &&
        request.file === ticket % 7 &&
        request.offsetBytes === ticket * 5_000_000_000 &&
        request.byteLength === ticket * 4096 &&
        request.requiredBytes === ticket * 4096 - 1 &&
        request.segment === ticket % 5 &&
        request.intoBytes === (ticket * 16384) % 2 ** 32;
      tickets.push(agrees ? ticket : -1);
      queue.finish(request);
    }
    return { tickets };
  },
};

parentPort.postMessage({ ready: true });
parentPort.postMessage(roles[role]());
