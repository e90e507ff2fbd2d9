/**
 * The measuring rig: a slab, readers and a queue as the engine has them, and a loop in the place of compute that reads
 * layer after layer and computes nothing.
 *
 * A station is one way to read: an engine, direct or buffered, a number of readers, a window. The split is the issuer's
 * affair, so stations are shared by every split that has the same number of chunks under way.
 */
import { readFileSync } from 'node:fs';
import { closeModelFiles, type ModelFiles, openModelFiles } from '../engine/model-files.ts';
import { type ReadEngine, ReaderPool } from '../engine/stages.ts';
import { MoestreamError } from '../errors.ts';
import type { IoAddon } from '../native.ts';
import { ControlBlock } from '../pipeline/control.ts';
import { chunksPerExpert, ExpertLayout, emptyChunkList, slotBytesOf } from '../pipeline/expert-layout.ts';
import { emptyRequest, FetchQueue, LANE_DEMAND } from '../pipeline/fetch-queue.ts';
import { allocateSegment } from '../pipeline/memory.ts';
import { placeSlots, type SlotPlace } from '../pipeline/slab.ts';
import { readError, Tickets } from '../pipeline/tickets.ts';
import { expertBytesOf, type Workload } from './workload.ts';

export const DISK_IO_MODES = ['direct', 'buffered'] as const;
export type DiskIoMode = (typeof DISK_IO_MODES)[number];

/** One way to read. */
export interface DiskSetting {
  readonly engine: ReadEngine;
  readonly io: DiskIoMode;
  readonly split: number;
  /** Threads that read; io_uring has one, and many reads under way. */
  readonly readers: number;
  /** Experts whose reads are under way at once, 0 for as many as there are readers or places in the ring. */
  readonly window: number;
}

/** What one turn of layer after layer came to. */
export interface Turn {
  readonly layers: number;
  /** Bytes of experts, without the rest of their pages. */
  readonly bytes: number;
  readonly seconds: number;
  readonly cpuSeconds: number;
  /** What the disk gave, by the system's count; undefined where there is none. */
  readonly diskBytes: number | undefined;
  readonly layerMillis: readonly number[];
  /** When the i-th expert of a layer had arrived, mean over the layers. */
  readonly arrivalMillis: readonly number[];
}

const QUEUE_SLOTS = 512;
/** What io_uring may have under way without a window: the engine's default. */
const QUEUE_DEPTH = 64;
/**
 * Layers whose experts have slots of their own. With few slots reads meet memory that is still in a processor's cache and
 * look 35 % faster than they ever are with a real slab (2.85 GB/s into 21 MB, 2.1 into 87 MB and more, one virtual disk).
 */
const LAYERS_IN_SLAB = 4;
const SLAB_BYTES_MAX = 1024 ** 3;
const READ_TIMEOUT_MILLIS = 30_000;
/** The event loop gets a turn this often: signals and the ends of threads come through it. */
const BREATHE_MILLIS = 200;
const LAYERS_MIN = 3;

/** `read_bytes` of this process: what its reads fetched from a device. */
export function diskBytesRead(): number | undefined {
  try {
    const match = /^read_bytes: (\d+)$/m.exec(readFileSync('/proc/self/io', 'utf8'));
    return match === null ? undefined : Number(match[1]);
  } catch {
    return undefined;
  }
}

class Station {
  readonly control = new ControlBlock();
  readonly queue: FetchQueue;
  readonly tickets: Tickets;
  readonly pool: ReaderPool;
  private readonly io: IoAddon;
  private readonly wakeFd: number;

  constructor(io: IoAddon, engine: ReadEngine, readers: number, mostUnderWay: number, slots: number) {
    this.io = io;
    this.wakeFd = engine === 'uring' ? io.createWakeFd() : -1;
    this.queue = FetchQueue.create(QUEUE_SLOTS, mostUnderWay, this.wakeFd, (fd) => io.signalWakeFd(fd));
    this.tickets = Tickets.create(slots);
    this.pool = new ReaderPool(engine, readers);
  }

  async end(): Promise<readonly string[]> {
    this.control.shutDown();
    this.queue.interrupt();
    const totals = await this.pool.end();
    if (this.wakeFd >= 0) this.io.close(this.wakeFd);
    return totals.flatMap(({ notice }) => notice ?? []);
  }
}

export class Rig {
  readonly expertsPerLayer: number;
  /** Bytes of the slab that are in huge pages, or -1 where the system does not say. */
  readonly hugePageBytes: number;
  readonly slabBytes: number;
  private readonly io: IoAddon;
  private readonly workload: Workload;
  private readonly notice: (sentence: string) => void;
  private readonly files = new Map<DiskIoMode, ModelFiles>();
  private readonly segments: readonly Uint8Array<SharedArrayBuffer>[];
  private readonly places: readonly SlotPlace[];
  private readonly stations = new Map<string, Station>();
  private readonly layouts = new Map<number, ExpertLayout>();
  private readonly chunks = emptyChunkList();
  private readonly request = emptyRequest();
  /** Experts 0..n-1 in an order that is shuffled as far as a layer needs. */
  private readonly deck: Int32Array;
  private readonly arrived: Float64Array;
  private readonly slots: Int32Array;
  private nextSlot = 0;

  constructor(
    io: IoAddon,
    workload: Workload,
    notice: (sentence: string) => void,
    slabLayers: number = LAYERS_IN_SLAB,
  ) {
    this.io = io;
    this.workload = workload;
    this.notice = notice;
    this.expertsPerLayer = workload.expertsPerLayer;
    const slotBytes = Math.max(...workload.layers.map(slotBytesOf));
    const wanted = Math.floor(slabLayers * this.expertsPerLayer);
    const slots = Math.max(this.expertsPerLayer, Math.min(wanted, Math.floor(SLAB_BYTES_MAX / slotBytes)));
    const { segmentBytes, places } = placeSlots({
      layers: 1,
      experts: 1,
      classes: [{ slotBytes, slots, firstSlot: 0 }],
      classOfLayer: [0],
    });
    this.places = places;
    this.segments = segmentBytes.map((bytes) => allocateSegment(bytes, io));
    this.slabBytes = segmentBytes.reduce((sum, bytes) => sum + bytes, 0);
    for (const segment of this.segments) io.prefault(segment);
    const huge = this.segments.map((segment) => io.hugePageBytes(segment));
    this.hugePageBytes = huge.some((bytes) => bytes < 0) ? -1 : huge.reduce((sum, bytes) => sum + bytes, 0);
    this.deck = Int32Array.from({ length: workload.experts }, (_, expert) => expert);
    this.arrived = new Float64Array(this.expertsPerLayer);
    this.slots = new Int32Array(this.expertsPerLayer);
  }

  /** Threads that this setting's station has. */
  threadsOf(setting: DiskSetting): number {
    return setting.engine === 'uring' ? 1 : Math.min(setting.readers, this.mostUnderWay(setting));
  }

  /** Two settings with the same key read through the same threads. */
  stationKey(setting: DiskSetting): string {
    return `${setting.engine} ${setting.io} ${setting.readers} ${this.mostUnderWay(setting)}`;
  }

  /** Opens the files in this mode if they are not open yet. Throws READ_FAILED where the mode is refused. */
  openFiles(mode: DiskIoMode): ModelFiles {
    let files = this.files.get(mode);
    if (files === undefined) {
      files = openModelFiles(this.io, this.workload.paths, mode, this.notice, () => 0);
      this.files.set(mode, files);
    }
    return files;
  }

  /** Reads layers for so long, and at least three. */
  async turn(setting: DiskSetting, seconds: number, signal?: AbortSignal): Promise<Turn> {
    const station = this.stationOf(setting);
    const layout = this.layoutOf(setting.split);
    const files = this.openFiles(setting.io);
    // The first layer wakes threads and warms code up.
    await this.breathe(station, signal);
    this.readLayer(station, layout, files);
    const arrivals = new Float64Array(this.expertsPerLayer);
    const layerMillis: number[] = [];
    let bytes = 0;
    const diskBefore = diskBytesRead();
    const cpuBefore = process.cpuUsage();
    const began = performance.now();
    let breathed = began;
    let now = began;
    while (now - began < seconds * 1000 || layerMillis.length < LAYERS_MIN) {
      bytes += this.readLayer(station, layout, files);
      const ended = performance.now();
      layerMillis.push(ended - now);
      now = ended;
      for (let index = 0; index < arrivals.length; index++)
        arrivals[index] = arrivals[index]! + this.arrived[index]!;
      if (now - breathed > BREATHE_MILLIS) {
        await this.breathe(station, signal);
        now = performance.now();
        breathed = now;
      }
    }
    const cpu = process.cpuUsage(cpuBefore);
    const diskAfter = diskBytesRead();
    return {
      layers: layerMillis.length,
      bytes,
      // Without the pauses between layers, in which nothing was read.
      seconds: layerMillis.reduce((sum, millis) => sum + millis, 0) / 1000,
      cpuSeconds: (cpu.user + cpu.system) / 1e6,
      diskBytes: diskBefore === undefined || diskAfter === undefined ? undefined : diskAfter - diskBefore,
      layerMillis,
      arrivalMillis: Array.from(arrivals, (sum) => sum / layerMillis.length),
    };
  }

  /** Ends the readers of all settings. They start again when they are needed. */
  async endStations(): Promise<void> {
    const stations = [...this.stations.values()];
    this.stations.clear();
    const notices = await Promise.all(stations.map((station) => station.end()));
    for (const sentence of new Set(notices.flat())) this.notice(sentence);
  }

  async close(): Promise<void> {
    await this.endStations();
    for (const files of this.files.values()) closeModelFiles(this.io, files);
    this.files.clear();
  }

  private mostUnderWay({ engine, split, readers, window }: DiskSetting): number {
    const most = engine === 'uring' ? QUEUE_DEPTH : readers;
    if (window === 0) return most;
    const chunks = Math.max(...this.workload.layers.map((layer) => chunksPerExpert(layer, split)));
    return Math.min(most, window * chunks);
  }

  private stationOf(setting: DiskSetting): Station {
    const key = this.stationKey(setting);
    let station = this.stations.get(key);
    if (station === undefined) {
      const { fds } = this.openFiles(setting.io);
      const { engine } = setting;
      const readers = this.threadsOf(setting);
      station = new Station(this.io, engine, readers, this.mostUnderWay(setting), this.places.length);
      this.stations.set(key, station);
      station.pool.start({
        control: station.control.words,
        queue: station.queue.handle(),
        tickets: station.tickets.words,
        fds,
        segments: this.segments,
      });
    }
    return station;
  }

  private layoutOf(split: number): ExpertLayout {
    let layout = this.layouts.get(split);
    if (layout === undefined) {
      layout = new ExpertLayout(this.workload.layers, this.workload.sizeBytes, split);
      this.layouts.set(split, layout);
    }
    return layout;
  }

  private async breathe(station: Station, signal: AbortSignal | undefined): Promise<void> {
    await station.pool.fuse.guard(new Promise((resolve) => setImmediate(resolve)));
    if (signal?.aborted === true)
      throw new MoestreamError('ABORTED', 'interrupted', { cause: signal.reason });
  }

  /** Reads random experts of a random layer and waits for all of them. Fills `arrived`; returns their bytes. */
  private readLayer(station: Station, layout: ExpertLayout, files: ModelFiles): number {
    const { tickets } = station;
    const layer = Math.floor(Math.random() * this.workload.layers.length);
    const began = performance.now();
    for (let index = 0; index < this.expertsPerLayer; index++) {
      const slot = this.nextSlot;
      this.nextSlot = (this.nextSlot + 1) % this.places.length;
      this.slots[index] = slot;
      this.issue(station, layout, slot, layer, this.draw(index));
    }
    let left = this.expertsPerLayer;
    while (left > 0) {
      const epoch = tickets.bell.enter();
      const before = left;
      for (let index = 0; index < left; index++) {
        const slot = this.slots[index]!;
        if (!tickets.isDone(slot)) continue;
        this.arrived[this.expertsPerLayer - left] = performance.now() - began;
        this.refuseFailed(tickets, slot, files);
        // The last one that is still to come takes its place.
        this.slots[index--] = this.slots[--left]!;
      }
      const leftMillis = began + READ_TIMEOUT_MILLIS - performance.now();
      if (left === before && leftMillis > 0) tickets.bell.sleep(epoch, leftMillis);
      tickets.bell.leave();
      if (leftMillis <= 0) throw this.timeout();
    }
    return expertBytesOf(this.workload.layers[layer]!) * this.expertsPerLayer;
  }

  private issue(station: Station, layout: ExpertLayout, slot: number, layer: number, expert: number): void {
    const { request, chunks } = this;
    const place = this.places[slot]!;
    layout.chunksOf(layer, expert, chunks);
    const firstClaim = station.tickets.open(slot, chunks.count);
    for (let index = 0; index < chunks.count; index++) {
      request.ticket = slot;
      request.claim = firstClaim + index;
      request.segment = place.segment;
      request.file = chunks.file[index]!;
      request.offsetBytes = chunks.offsetBytes[index]!;
      request.byteLength = chunks.byteLength[index]!;
      request.requiredBytes = chunks.requiredBytes[index]!;
      request.intoBytes = place.bytes + chunks.slotBytes[index]!;
      const { queue, control } = station;
      if (!queue.push(LANE_DEMAND, request, control, READ_TIMEOUT_MILLIS)) throw this.timeout();
    }
  }

  /** The next of the random experts of a layer, each at most once. */
  private draw(index: number): number {
    const { deck } = this;
    const other = index + Math.floor(Math.random() * (deck.length - index));
    const expert = deck[other]!;
    deck[other] = deck[index]!;
    deck[index] = expert;
    return expert;
  }

  private refuseFailed(tickets: Tickets, slot: number, files: ModelFiles): void {
    if (!tickets.hasFailed(slot)) return;
    const failure = tickets.failure(slot);
    const path = files.paths[failure.file]!;
    throw readError(failure, path, 'measuring', (errno) => this.io.errnoName(errno));
  }

  private timeout(): MoestreamError {
    return new MoestreamError('READ_TIMEOUT', `no bytes arrived within ${READ_TIMEOUT_MILLIS} ms`, {
      hint: 'The disk does not answer; check the system log and the disk.',
    });
  }
}
