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
import { performance } from 'node:perf_hooks';
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
  /** Ids of the flights that are not under way: the first `freeCount` of them. */
  private readonly free: Int32Array;
  private freeCount: number;
  private readonly completions: Int32Array;
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
    this.free = Int32Array.from({ length: depth }, (_, id) => id);
    this.freeCount = depth;
    this.completions = new Int32Array(2 * depth);
  }

  run(): FetchTotals {
    const notice = this.ring.registeringRefused
      ? 'io_uring reads into unregistered memory; a higher `ulimit -l` would save some CPU time'
      : undefined;
    while (!this.control.shuttingDown) {
      this.takeRequests();
      if (this.isReading) this.waitInKernel();
      else if (this.queue.pop(this.nextFlight.request, this.control)) this.begin();
    }
    while (this.isReading && this.land(WAIT_MILLIS) > 0);
    this.ring.close();
    return { reads: this.reads, bytesRead: this.bytesRead, readMicros: this.readMillis * 1000, notice };
  }

  private get isReading(): boolean {
    return this.freeCount < this.flights.length;
  }

  /** Requests are taken straight into it. Whoever has a permit finds one: there are as many as permits. */
  private get nextFlight(): Flight {
    return this.flights[this.free[this.freeCount - 1]!]!;
  }

  private takeRequests(): void {
    while (this.freeCount > 0 && this.queue.tryPop(this.nextFlight.request)) this.begin();
  }

  /** Starts the request that the next flight has taken, unless somebody else has or nobody wants it. */
  private begin(): void {
    const flight = this.nextFlight;
    const { request } = flight;
    if (!this.tickets.claim(request.ticket, request.claim)) {
      this.queue.finish(request);
      return;
    }
    flight.reachedBytes = 0;
    flight.resumedBytes = 0;
    flight.interruptions = 0;
    flight.beganMillis = performance.now();
    this.launch(this.free[--this.freeCount]!, flight);
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
    const found = this.freeCount > 0 && this.queue.tryPop(this.nextFlight.request);
    if (found) this.begin();
    this.land(found ? 0 : WAIT_MILLIS);
    this.queue.leaveNative();
  }

  /** Deals with the reads that have ended, and wakes the issuer once for all of them; returns how many. */
  private land(timeoutMillis: number): number {
    const count = this.ring.wait(timeoutMillis, this.completions);
    let completed = false;
    for (let index = 0; index < count; index++) {
      if (this.end(this.completions[2 * index]!, this.completions[2 * index + 1]!)) completed = true;
    }
    if (completed) this.tickets.bell.ring();
    return count;
  }

  /** Returns whether its ticket has nothing to come any more. */
  private end(id: number, result: number): boolean {
    const flight = this.flights[id]!;
    const { request } = flight;
    if ((result === -EINTR || result === -EAGAIN) && ++flight.interruptions < INTERRUPTIONS_MAX) {
      this.launch(id, flight);
      return false;
    }
    const reachedBytes = flight.resumedBytes + Math.max(0, result);
    const further = reachedBytes > flight.reachedBytes;
    flight.reachedBytes = Math.max(reachedBytes, flight.reachedBytes);
    if (result >= 0 && further && reachedBytes < request.requiredBytes) {
      flight.resumedBytes = roundDown(reachedBytes, RESUME_BOUNDARY_BYTES);
      this.launch(id, flight);
      return false;
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
    const completed = this.tickets.countChunk(request.ticket);
    this.reads++;
    this.bytesRead += flight.reachedBytes;
    this.readMillis += performance.now() - flight.beganMillis;
    this.queue.finish(request);
    this.free[this.freeCount++] = id;
    return completed;
  }
}

export default function readUntilShutdown(setup: FetchSetup): FetchTotals {
  const profile = startCpuProfile(setup.observation?.cpuProfile);
  const io = loadIo();
  io.preferPromptWakeup();
  const totals = new UringLoop(setup, io).run();
  return { ...totals, notice: endCpuProfile(profile) ?? totals.notice };
}
