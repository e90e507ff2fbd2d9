/**
 * A model hub on this machine: the two questions that `pull` asks, and files with ranges behind a redirect, as a hub has
 * its storage on another host. Faults are set per test; everything that was asked for is kept.
 */
import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll } from 'vitest';

export const COMMIT = 'c0ffee'.padEnd(40, '0');

export interface StoredFile {
  readonly path: string;
  readonly bytes: Uint8Array;
  /** What the listing says instead of the truth. */
  readonly sha256?: string;
  readonly sizeBytes?: number;
}

export interface Asked {
  readonly url: string;
  readonly range: string | undefined;
  readonly authorization: string | undefined;
}

/** Decides about one transfer of a file: nothing, or what goes wrong. */
export type Fault = (
  asked: Asked,
  count: number,
) =>
  | undefined
  | { readonly status: number; readonly retryAfter?: string }
  | { readonly cutAfterBytes: number }
  | { readonly standStillAfterBytes: number }
  | { readonly withoutRanges: true };

export class HubServer {
  /** Of the storage. */
  readonly asked: Asked[] = [];
  /** Tokens that the hub itself was shown. */
  readonly tokens: (string | undefined)[] = [];
  fault: Fault = () => undefined;
  /** Answers every question about the repository with this. */
  refuse: number | undefined;
  files: readonly StoredFile[];
  private transfers = 0;
  private readonly hub: Server;
  private readonly storage: Server;

  static async start(files: readonly StoredFile[]): Promise<HubServer> {
    const server = new HubServer(files);
    await Promise.all([listen(server.hub), listen(server.storage)]);
    started.push(server);
    return server;
  }

  private constructor(files: readonly StoredFile[]) {
    this.files = files;
    this.hub = createServer((request, response) => this.answer(request, response));
    this.storage = createServer((request, response) => this.serve(request, response));
  }

  get endpoint(): string {
    return `http://127.0.0.1:${portOf(this.hub)}`;
  }

  /** Bytes that were asked for by ranges. */
  get rangeBytes(): number {
    return this.asked.reduce((sum, { range }) => {
      const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(range ?? '') ?? [];
      return from === undefined ? sum : sum + Number(to) - Number(from) + 1;
    }, 0);
  }

  close(): void {
    for (const server of [this.hub, this.storage]) {
      server.closeAllConnections();
      server.close();
    }
  }

  private answer(request: IncomingMessage, response: ServerResponse): void {
    const { pathname } = new URL(request.url!, this.endpoint);
    this.tokens.push(request.headers.authorization);
    if (this.refuse !== undefined) return void response.writeHead(this.refuse).end();
    if (pathname.startsWith('/api/')) {
      const isTree = pathname.includes('/tree/');
      const name = pathname.split('/').slice(3, 5).join('/');
      const body = isTree ? this.files.map(entryOf) : { id: name, _id: '1', sha: COMMIT };
      return void response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(body));
    }
    const location = `http://127.0.0.1:${portOf(this.storage)}${pathname}`;
    response.writeHead(302, { location }).end();
  }

  private serve(request: IncomingMessage, response: ServerResponse): void {
    const { range, authorization } = request.headers;
    const asked = { url: request.url!, range, authorization };
    this.asked.push(asked);
    const path = decodeURIComponent(asked.url.split(`/resolve/${COMMIT}/`)[1] ?? '');
    const file = this.files.find((each) => each.path === path);
    if (file === undefined) return void response.writeHead(404).end();
    const fault = this.fault(asked, this.transfers++);
    if (fault !== undefined && 'status' in fault) {
      const headers = fault.retryAfter === undefined ? {} : { 'retry-after': fault.retryAfter };
      return void response.writeHead(fault.status, headers).end();
    }
    const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(range ?? '') ?? [];
    if (first === undefined || (fault !== undefined && 'withoutRanges' in fault)) {
      return void response.writeHead(200, { 'content-length': file.bytes.length }).end(file.bytes);
    }
    const bytes = file.bytes.subarray(Number(first), Number(last) + 1);
    response.writeHead(206, {
      'content-length': bytes.length,
      'content-range': `bytes ${first}-${Number(first) + bytes.length - 1}/${file.bytes.length}`,
    });
    if (fault === undefined) return void response.end(bytes);
    if ('cutAfterBytes' in fault) {
      return void response.write(bytes.subarray(0, fault.cutAfterBytes), () => response.destroy());
    }
    if ('standStillAfterBytes' in fault) response.write(bytes.subarray(0, fault.standStillAfterBytes));
  }
}

function entryOf({ path, bytes, sha256, sizeBytes }: StoredFile): object {
  const size = sizeBytes ?? bytes.length;
  const oid = sha256 ?? createHash('sha256').update(bytes).digest('hex');
  const isSmall = /\.(json|md)$/.test(path);
  const blob = createHash('sha1').update(`blob ${bytes.length}\0`).update(bytes).digest('hex');
  if (isSmall) return { type: 'file', path, size, oid: blob };
  return { type: 'file', path, size: 135, oid: blob, lfs: { oid, size, pointerSize: 135 } };
}

const started: HubServer[] = [];

afterAll(() => {
  for (const server of started.splice(0)) server.close();
});

const listen = (server: Server): Promise<void> =>
  new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve()));

const portOf = (server: Server): number => (server.address() as AddressInfo).port;
