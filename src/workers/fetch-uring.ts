/**
 * The fetch stage, engine `uring`: one thread that keeps many reads under way through io_uring.
 *
 * It does what the sixteen readers do, with a quarter of their CPU time: takes requests as far as permits go, starts them
 * together, and sleeps in the kernel until one has ended or a new request signals the wake descriptor. With nothing under
 * way it sleeps on the queue's doorbell like any reader.
 *
 * A short read is continued from where it stopped, like in native/io/file_reader.cpp; one that gets no further has met the
 * end of the file.
 */
import { type IoAddon, loadIo, type UringReader } from '../native.ts';
import { ControlBlock } from '../pipeline/control.ts';
import { emptyRequest, FetchQueue, type ReadRequest } from '../pipeline/fetch-queue.ts';
import { roundDown } from '../pipeline/memory.ts';
import { Tickets } from '../pipeline/tickets.ts';
import { TRACE, Tracer } from '../pipeline/trace.ts';
import { endCpuProfile, startCpuProfile } from './cpu-profile.ts';
import { type FetchSetup, type FetchTotals, recordShortfall } from './fetch-contract.ts';

/** The thread must come back from the kernel this often, so that it can be ended. */
const WAIT_MILLIS = 50;
/** After a short direct read the next one starts on this boundary, the smallest that a device may ask for. */
const RESUME_BOUNDARY_BYTES = 512;
/** Interrupted reads are started again, but not for ever. */
const INTERRUPTIONS_MAX = 1000;
const EINTR = 4;
const EAGAIN = 11;

/** One read under way. */
interface Flight {
  readonly request: ReadRequest;
  /** Bytes of the request that are there, from its start; and from where the read under way began. */
  reachedBytes: number;
  resumedBytes: number;
  interruptions: number;
  beganMillis: number;
}

class UringLoop {
  private readonly control: ControlBlock;
  private readonly queue: FetchQueue;
  private readonly tickets: Tickets;
  private readonly ring: UringReader;
  private readonly trace: Tracer;
  private readonly flights: Flight[];
  private readonly free: number[];
  private readonly completions: Int32Array;
  private readonly request = emptyRequest();
  private reads = 0;
  private bytesRead = 0;
  private readMillis = 0;

  constructor(setup: FetchSetup, io: IoAddon) {
    this.control = new ControlBlock(setup.control);
    this.queue = new FetchQueue(setup.queue);
    this.tickets = new Tickets(setup.tickets);
    this.trace = new Tracer(setup.observation?.trace);
    const depth = this.queue.mostUnderWay;
    this.ring = new io.UringReader(depth, setup.fds, setup.segments, setup.queue.wakeFd);
    this.flights = Array.from({ length: depth }, () => ({
      request: emptyRequest(),
      reachedBytes: 0,
      resumedBytes: 0,
      interruptions: 0,
      beganMillis: 0,
    }));
    this.free = Array.from({ length: depth }, (_, id) => id);
    this.completions = new Int32Array(2 * depth);
  }

  run(): FetchTotals {
    const notice = this.ring.registeredBuffers
      ? undefined
      : 'io_uring reads into unregistered memory; a higher `ulimit -l` would save some CPU time';
    while (!this.control.shuttingDown) {
      this.takeRequests();
      if (this.free.length < this.flights.length) this.waitInKernel();
      else if (this.queue.pop(this.request, this.control)) this.begin();
    }
    while (this.free.length < this.flights.length && this.land(WAIT_MILLIS) > 0);
    this.ring.close();
    return { reads: this.reads, bytesRead: this.bytesRead, readMicros: this.readMillis * 1000, notice };
  }

  private takeRequests(): void {
    while (this.queue.tryPop(this.request)) this.begin();
  }

  /** Starts the request that has been taken, unless somebody else has or nobody wants it. */
  private begin(): void {
    const { request } = this;
    if (!this.tickets.claim(request.ticket, request.claim)) {
      this.queue.finish(request);
      return;
    }
    const id = this.free.pop()!;
    const flight = this.flights[id]!;
    Object.assign(flight.request, request);
    flight.reachedBytes = 0;
    flight.resumedBytes = 0;
    flight.interruptions = 0;
    flight.beganMillis = performance.now();
    this.launch(id, flight);
  }

  private launch(id: number, { request, resumedBytes }: Flight): void {
    const { file, offsetBytes, byteLength, segment, intoBytes } = request;
    this.ring.queueRead(
      id,
      file,
      offsetBytes + resumedBytes,
      segment,
      intoBytes + resumedBytes,
      byteLength - resumedBytes,
    );
  }

  private waitInKernel(): void {
    this.queue.enterNative();
    // A request that came before the flag was up has signalled nobody.
    const timeoutMillis = this.queue.tryPop(this.request) ? 0 : WAIT_MILLIS;
    if (timeoutMillis === 0) this.begin();
    this.land(timeoutMillis);
    this.queue.leaveNative();
  }

  /** Deals with the reads that have ended; returns how many. */
  private land(timeoutMillis: number): number {
    const count = this.ring.wait(timeoutMillis, this.completions);
    for (let index = 0; index < count; index++) {
      this.end(this.completions[2 * index]!, this.completions[2 * index + 1]!);
    }
    return count;
  }

  private end(id: number, result: number): void {
    const flight = this.flights[id]!;
    const { request } = flight;
    if ((result === -EINTR || result === -EAGAIN) && ++flight.interruptions < INTERRUPTIONS_MAX) {
      this.launch(id, flight);
      return;
    }
    const reachedBytes = flight.resumedBytes + Math.max(0, result);
    const further = reachedBytes > flight.reachedBytes;
    flight.reachedBytes = Math.max(reachedBytes, flight.reachedBytes);
    if (result >= 0 && further && reachedBytes < request.requiredBytes) {
      flight.resumedBytes = roundDown(reachedBytes, RESUME_BOUNDARY_BYTES);
      this.launch(id, flight);
      return;
    }
    if (flight.reachedBytes < request.requiredBytes) {
      recordShortfall(this.tickets, request, result < 0 ? result : flight.reachedBytes);
    }
    this.trace.span(
      TRACE.read,
      flight.beganMillis,
      request.ticket,
      result < 0 ? result : flight.reachedBytes,
      request.file,
    );
    this.tickets.completeChunk(request.ticket);
    this.reads++;
    this.bytesRead += flight.reachedBytes;
    this.readMillis += performance.now() - flight.beganMillis;
    this.free.push(id);
    this.queue.finish(request);
  }
}

export default function readUntilShutdown(setup: FetchSetup): FetchTotals {
  const profile = startCpuProfile(setup.observation?.cpuProfile);
  const io = loadIo();
  io.preferPromptWakeup();
  const totals = new UringLoop(setup, io).run();
  return { ...totals, notice: endCpuProfile(profile) ?? totals.notice };
}
