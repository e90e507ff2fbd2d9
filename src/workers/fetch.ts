/**
 * The fetch stage, engine `threads`: one of the readers. Takes a request, reads its pages into place, counts the chunk as
 * done.
 *
 * Runs as one never-ending task of a piscina pool, so that its promise is its supervision. A reader writes only the
 * bytes of the place it was given and its ticket; it decides nothing.
 */
import { performance } from 'node:perf_hooks';
import { loadIo } from '../native.ts';
import { ControlBlock } from '../pipeline/control.ts';
import { emptyRequest, FetchQueue } from '../pipeline/fetch-queue.ts';
import { Tickets } from '../pipeline/tickets.ts';
import { TRACE, Tracer } from '../pipeline/trace.ts';
import { endCpuProfile, startCpuProfile } from './cpu-profile.ts';
import { type FetchSetup, type FetchTotals, recordShortfall } from './fetch-contract.ts';

export default function readUntilShutdown(setup: FetchSetup): FetchTotals {
  const io = loadIo();
  io.preferPromptWakeup();
  const control = new ControlBlock(setup.control);
  const queue = new FetchQueue(setup.queue);
  const tickets = new Tickets(setup.tickets);
  const trace = new Tracer(setup.observation?.trace);
  const profile = startCpuProfile(setup.observation?.cpuProfile);
  const request = emptyRequest();
  let reads = 0;
  let bytesRead = 0;
  let readMillis = 0;
  while (queue.pop(request, control)) {
    const { ticket, file, offsetBytes, byteLength, requiredBytes, segment, intoBytes } = request;
    if (tickets.claim(ticket, request.claim)) {
      const beganMillis = performance.now();
      const result = io.readAt(
        setup.fds[file]!,
        offsetBytes,
        byteLength,
        setup.segments[segment]!,
        intoBytes,
      );
      readMillis += performance.now() - beganMillis;
      trace.span(TRACE.read, beganMillis, ticket, result, file);
      if (result < requiredBytes) recordShortfall(tickets, request, result);
      tickets.completeChunk(ticket);
      reads++;
      bytesRead += Math.max(0, result);
    }
    queue.finish(request);
  }
  return { reads, bytesRead, readMicros: readMillis * 1000, notice: endCpuProfile(profile) };
}
