/**
 * Requests that meet a real network: servers that are busy, connections that are cut or stand still, redirects.
 *
 * Bounds: an attempt waits 30 s for an answer and for every further byte; a request that makes no progress is tried six
 * times, waiting longer each time (0.5 s doubled, at most 30 s, or what the server asks for up to a minute). Whatever that
 * does not mend is a typed error with the server's status. `fetch` follows redirects and drops the token when they lead
 * to another host, as the storage behind a hub is.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { MoestreamError } from '../errors.ts';

export interface Network {
  readonly token: string | undefined;
  readonly signal: AbortSignal | undefined;
  readonly notice: (sentence: string) => void;
  /** Of the first wait before a further attempt; tests make it short. Default 500. */
  readonly retryMillis?: number;
  /** How long an answer or its next byte may take. Default 30,000. */
  readonly stallMillis?: number;
}

export const ATTEMPTS_MAX = 6;
const RETRY_MILLIS = 500;
const RETRY_MILLIS_MAX = 30_000;
const RETRY_AFTER_MILLIS_MAX = 60_000;
const STALL_MILLIS = 30_000;
/** Worth another attempt: the server is busy, restarting, or was too slow behind its own proxy. */
const PASSING_STATUS = new Set([408, 425, 429, 500, 502, 503, 504]);

/** An attempt that failed in a way that may pass. */
class Passing extends Error {
  readonly waitMillis: number | undefined;

  constructor(message: string, waitMillis?: number) {
    super(message);
    this.waitMillis = waitMillis;
  }
}

function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const cause = error.cause instanceof Error ? `: ${error.cause.message}` : '';
  return `${error.message}${cause}`;
}

/** Seconds or a date, as servers send it; bounded. */
function retryAfterMillis(headers: Headers): number | undefined {
  const text = headers.get('retry-after');
  if (text === null) return undefined;
  const seconds = Number(text);
  const millis = Number.isFinite(seconds) ? seconds * 1000 : Date.parse(text) - Date.now();
  return Number.isFinite(millis) ? Math.min(Math.max(0, millis), RETRY_AFTER_MILLIS_MAX) : undefined;
}

function refusal(url: string, status: number, hasToken: boolean): MoestreamError {
  const what = `${url}: the server answers ${status}`;
  if (status === 401 || status === 403) {
    return new MoestreamError('DOWNLOAD_REFUSED', what, {
      hint: hasToken
        ? 'HF_TOKEN may be wrong, or its owner has not accepted the terms of this repository.'
        : 'The repository is private, gated or misspelt: set HF_TOKEN to a token that may read it.',
    });
  }
  if (status === 404 || status === 410) {
    return new MoestreamError('MODEL_NOT_FOUND', what, {
      hint: 'Check the spelling; the server does not have it.',
    });
  }
  return new MoestreamError('DOWNLOAD_FAILED', what);
}

/** Ends an attempt when nothing comes for too long, or when the caller wants it to end. */
class Watch {
  private readonly controller = new AbortController();
  private readonly stallMillis: number;
  private readonly outer: AbortSignal | undefined;
  private readonly stop = (): void => this.controller.abort(this.outer?.reason);
  private timer: NodeJS.Timeout;

  constructor(network: Network) {
    this.stallMillis = network.stallMillis ?? STALL_MILLIS;
    this.outer = network.signal;
    this.outer?.addEventListener('abort', this.stop);
    if (this.outer?.aborted === true) this.stop();
    this.timer = this.start();
  }

  get signal(): AbortSignal {
    return this.controller.signal;
  }

  /** Something came. */
  alive(): void {
    this.timer.refresh();
  }

  end(): void {
    clearTimeout(this.timer);
    this.outer?.removeEventListener('abort', this.stop);
  }

  private start(): NodeJS.Timeout {
    const stalled = (): void => this.controller.abort(new Passing(`nothing came for ${this.stallMillis} ms`));
    return setTimeout(stalled, this.stallMillis);
  }
}

export interface Answer {
  readonly response: Response;
  /** The body, with the watch over every piece of it. */
  pieces(): AsyncGenerator<Uint8Array>;
}

/**
 * Sends a request and hands its answer to `use`, again and again until `use` ends without a passing failure. `use` may
 * call `progressed`, after which attempts count from one again: a transfer that moves is never given up.
 * `headersOf` is asked before every attempt, because a resumed transfer asks for less. Throws MoestreamError or ABORTED.
 */
export async function request<T>(
  url: string,
  network: Network,
  headersOf: () => Record<string, string>,
  use: (answer: Answer, progressed: () => void) => Promise<T>,
): Promise<T> {
  let attempts = 0;
  const progressed = (): void => {
    attempts = 0;
  };
  for (;;) {
    attempts++;
    const watch = new Watch(network);
    try {
      return await attempt(url, network, headersOf(), watch, (answer) => use(answer, progressed));
    } catch (error) {
      if (network.signal?.aborted === true) throw aborted(error);
      if (MoestreamError.is(error)) throw error;
      if (attempts >= ATTEMPTS_MAX) {
        throw new MoestreamError(
          'DOWNLOAD_FAILED',
          `${url}: given up after ${attempts} attempts: ${reasonOf(error)}`,
          {
            hint: 'Check the network and run the same command again: it goes on where it was.',
            cause: error,
          },
        );
      }
      await pause(error, attempts, network);
    } finally {
      watch.end();
    }
  }
}

function aborted(cause: unknown): MoestreamError {
  return new MoestreamError('ABORTED', 'the download was interrupted', { cause });
}

async function pause(error: unknown, attempts: number, network: Network): Promise<void> {
  const first = network.retryMillis ?? RETRY_MILLIS;
  const grown = Math.min(RETRY_MILLIS_MAX, first * 2 ** (attempts - 1));
  // Spread, so that the connections of one download do not come back together.
  const asked = error instanceof Passing ? error.waitMillis : undefined;
  const waitMillis = asked ?? grown * (0.5 + Math.random() / 2);
  if (attempts === 2) network.notice(`a transfer is tried again: ${reasonOf(error)}`);
  await sleep(waitMillis, undefined, network.signal === undefined ? {} : { signal: network.signal }).catch(
    (cause) => {
      throw aborted(cause);
    },
  );
}

async function attempt<T>(
  url: string,
  network: Network,
  headers: Record<string, string>,
  watch: Watch,
  use: (answer: Answer) => Promise<T>,
): Promise<T> {
  const authorization = network.token === undefined ? {} : { authorization: `Bearer ${network.token}` };
  // No compression: a range of a compressed answer is a range of something else.
  const all = { 'accept-encoding': 'identity', ...authorization, ...headers };
  const response = await fetch(url, { headers: all, signal: watch.signal });
  watch.alive();
  if (PASSING_STATUS.has(response.status)) {
    await response.body?.cancel();
    throw new Passing(`the server answers ${response.status}`, retryAfterMillis(response.headers));
  }
  if (!response.ok) {
    await response.body?.cancel();
    throw refusal(url, response.status, network.token !== undefined);
  }
  return use({ response, pieces: () => watched(response, watch) });
}

async function* watched(response: Response, watch: Watch): AsyncGenerator<Uint8Array> {
  if (response.body === null) return;
  for await (const piece of response.body as unknown as AsyncIterable<Uint8Array>) {
    watch.alive();
    yield piece;
  }
}

/**
 * The whole of a small answer as text. Throws DOWNLOAD_FAILED when it is longer than `bytesMax`.
 */
export async function fetchSmall(
  url: string,
  network: Network,
  bytesMax: number,
): Promise<{ readonly bytes: Buffer; readonly headers: Headers }> {
  return request(
    url,
    network,
    () => ({}),
    async ({ response, pieces }) => {
      const kept: Uint8Array[] = [];
      let total = 0;
      for await (const piece of pieces()) {
        total += piece.length;
        if (total > bytesMax) {
          throw new MoestreamError('DOWNLOAD_FAILED', `${url}: the answer is longer than ${bytesMax} bytes`);
        }
        kept.push(piece);
      }
      return { bytes: Buffer.concat(kept), headers: response.headers };
    },
  );
}

/**
 * Bytes `offsetBytes` to `offsetBytes + byteLength` of a file that has `sizeBytes`, handed on in order as they come; a cut
 * connection goes on where it was. Throws DOWNLOAD_FAILED when the server has another size or ignores ranges.
 */
export async function fetchRange(
  url: string,
  network: Network,
  range: { readonly offsetBytes: number; readonly byteLength: number; readonly sizeBytes: number },
  onBytes: (bytes: Uint8Array, offsetBytes: number) => Promise<void>,
): Promise<void> {
  const { offsetBytes, byteLength, sizeBytes } = range;
  const end = offsetBytes + byteLength;
  let at = offsetBytes;
  if (byteLength === 0) return;
  await request(
    url,
    network,
    () => ({ range: `bytes=${at}-${end - 1}` }),
    async ({ response, pieces }, progressed) => {
      checkRange(url, response, at, end, sizeBytes);
      for await (const piece of pieces()) {
        if (at + piece.length > end) {
          throw new MoestreamError('DOWNLOAD_FAILED', `${url}: the server sends more than was asked for`);
        }
        await onBytes(piece, at);
        at += piece.length;
        progressed();
      }
      if (at < end) throw new Passing(`the connection ended ${end - at} bytes early`);
    },
  );
}

function checkRange(url: string, response: Response, from: number, end: number, sizeBytes: number): void {
  const wanted = `bytes ${from}-${end - 1}/${sizeBytes}`;
  const got = response.headers.get('content-range');
  if (response.status === 206 && got === wanted) return;
  // A server without ranges may still send a file whole.
  if (response.status === 200 && from === 0 && end === sizeBytes) return;
  const what = response.status === 206 ? `"${got}"` : `the whole file (status ${response.status})`;
  throw new MoestreamError('DOWNLOAD_FAILED', `${url}: asked for "${wanted}", the server sends ${what}`, {
    hint: 'The file was changed on the server, or a proxy on the way does not know ranges.',
  });
}
