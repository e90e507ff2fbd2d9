/**
 * Page-aligned memory that every thread and the native add-ons share.
 *
 * A plain SharedArrayBuffer starts 16 bytes into a page, where direct reads fail with EINVAL; a growable one starts on a
 * page boundary. It must be viewed with an explicit length: a length-tracking view costs 20 to 40 times more per access
 * in JavaScript (measured on Node 20). Typed arrays end at 4 GiB on Node 20, so large memory is made of segments.
 */
import { invariant, MoestreamError } from '../errors.ts';
import type { IoAddon } from '../native.ts';

/** Reads start and end on this boundary, in the file and in memory. Devices ask for 512 or 4096. */
export const PAGE_BYTES = 4096;

/** Slots start on the page size of Apple Silicon, so that a GPU buffer can be laid over one without a copy. */
export const SLOT_ALIGN_BYTES = 16384;

/** Node 20 cannot view more at once. */
export const SEGMENT_BYTES_MAX = 4 * 1024 ** 3 - SLOT_ALIGN_BYTES;

export function roundDown(value: number, multiple: number): number {
  return value - (value % multiple);
}

export function roundUp(value: number, multiple: number): number {
  return roundDown(value + multiple - 1, multiple);
}

/** One page-aligned, zeroed piece of shared memory. */
export function allocateShared(byteLength: number): Uint8Array<SharedArrayBuffer> {
  invariant(byteLength > 0 && byteLength <= SEGMENT_BYTES_MAX, `segment of ${byteLength} bytes`);
  try {
    return new Uint8Array(new SharedArrayBuffer(byteLength, { maxByteLength: byteLength }), 0, byteLength);
  } catch (cause) {
    throw new MoestreamError(
      'PLAN_REFUSED',
      `the system has no ${formatBytes(byteLength)} of memory to give`,
      {
        hint: 'Set a smaller --memory.',
        cause,
      },
    );
  }
}

/**
 * The same for memory that is read into: it begins where a huge page begins, so that all of it but its end can be in huge
 * pages, which makes reads two to four times cheaper (native/io/uring.h). The addresses before it are never touched.
 */
export function allocateSegment(byteLength: number, io: IoAddon): Uint8Array<SharedArrayBuffer> {
  const hugeBytes = io.hugePageSize();
  if (byteLength < hugeBytes || byteLength > SEGMENT_BYTES_MAX - hugeBytes) return allocateShared(byteLength);
  const roomy = allocateShared(byteLength + hugeBytes);
  return new Uint8Array(roomy.buffer, io.bytesToBoundary(roomy, hugeBytes), byteLength);
}

/** Small shared tables of 32-bit words: rings, tickets, control. */
export function allocateWords(count: number): Int32Array<SharedArrayBuffer> {
  return new Int32Array(new SharedArrayBuffer(count * 4));
}

const UNITS = ['B', 'KB', 'MB', 'GB', 'TB'] as const;

/** 5439488 -> "5.44 MB". Decimal units, as disks and files are sold and listed. */
export function formatBytes(byteCount: number): string {
  let value = byteCount;
  let unit = 0;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1000;
    unit++;
  }
  return unit === 0 ? `${value} B` : `${value.toPrecision(3)} ${UNITS[unit]}`;
}

/** "8G", "512MiB", "1.5gb", "4096" -> bytes. G and GB are decimal, GiB is binary, as the letters say. */
export function parseBytes(text: string): number {
  const match = /^\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?\s*$/i.exec(text);
  if (!match) {
    throw new MoestreamError('USAGE', `"${text}" is not a size`, {
      hint: 'Write a size such as 8G, 512M or 6GiB.',
    });
  }
  const power = match[2] ? 'kmgt'.indexOf(match[2].toLowerCase()) + 1 : 0;
  return Math.floor(Number(match[1]) * (match[3] ? 1024 : 1000) ** power);
}
