/** Transfers against a real server with a real network's faults, and the folder that they leave. */
import { mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, it, vi } from 'vitest';
import { MoestreamError } from '../../dist/errors.js';
import type { Network } from '../../dist/hub/http.js';
import { SEGMENT_BYTES } from '../../dist/hub/incoming.js';
import { chooseSet, type Hub, listRepository, setsOf } from '../../dist/hub/listing.js';
import { checkPulled, localModels, removeModel } from '../../dist/hub/local.js';
import { pull, refuseWithoutRoom, roomFor } from '../../dist/hub/pull.js';
import { modelPath, type PulledModel, parseModelName, pulledModel } from '../../dist/model/model-store.js';
import { temporaryFolder } from '../support/folder.js';
import { COMMIT, HubServer, type StoredFile } from '../support/hub-server.js';

const NAME = 'org/model';

/** Bytes that no two places of a file share. */
function bytesOf(length: number, seed: number): Uint8Array {
  const words = new Uint32Array(Math.ceil(length / 4));
  for (let index = 0, state = seed; index < words.length; index++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    words[index] = state;
  }
  return new Uint8Array(words.buffer, 0, length);
}

const SMALL: StoredFile = { path: 'model-Q4_K.gguf', bytes: bytesOf(100_000, 1) };
const LARGE: StoredFile = { path: 'Q8_0/model-Q8_0.gguf', bytes: bytesOf(2 * SEGMENT_BYTES + 12_345, 2) };

let folder: string;

beforeEach(() => {
  folder = temporaryFolder();
  vi.stubEnv('MOESTREAM_MODELS', folder);
  return () => vi.unstubAllEnvs();
});

const network = (more: Partial<Network> = {}): Network => ({
  token: undefined,
  signal: undefined,
  notice: () => {},
  retryMillis: 1,
  ...more,
});

async function fetchFrom(
  server: HubServer,
  quant?: string,
  more: Partial<Network> = {},
): Promise<PulledModel> {
  const hub: Hub = { endpoint: server.endpoint, network: network(more) };
  const repository = await listRepository(hub, NAME, 'main');
  const set = chooseSet(repository, { repository: NAME, quant });
  return pull(hub, NAME, repository.commit, set);
}

const codeOf = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => 'no error',
    (error: unknown) => (MoestreamError.is(error) ? error.code : `untyped: ${String(error)}`),
  );

describe('a transfer', () => {
  it('brings every byte, verified, under the name that opens it', async () => {
    const server = await HubServer.start([SMALL, LARGE]);
    const model = await fetchFrom(server, 'Q8_0');
    expect(model).toMatchObject({ repository: NAME, quant: 'Q8_0', commit: COMMIT, complete: true });
    const path = modelPath(`${NAME}:q8_0`);
    expect(readFileSync(path).equals(LARGE.bytes)).toBe(true);
    expect(readdirSync(join(folder, NAME, 'Q8_0'))).toEqual(['model-Q8_0.gguf']);
    expect((await checkPulled(model)).damages).toEqual([]);
  });

  it('sends the token to the hub and not to the storage that it redirects to', async () => {
    const server = await HubServer.start([SMALL]);
    await fetchFrom(server, undefined, { token: 'hf_secret' });
    expect(new Set(server.tokens)).toEqual(new Set(['Bearer hf_secret']));
    expect(server.asked.length).toBeGreaterThan(0);
    // Both are on 127.0.0.1, but another port is another origin.
    expect(server.asked.map(({ authorization }) => authorization)).toEqual(server.asked.map(() => undefined));
  });

  it('goes on where a cut connection ended', async () => {
    const server = await HubServer.start([LARGE]);
    server.fault = (_, count) => (count % 2 === 0 ? { cutAfterBytes: 1_000_000 } : undefined);
    await fetchFrom(server);
    expect(readFileSync(modelPath(`${NAME}:Q8_0`)).equals(LARGE.bytes)).toBe(true);
    // Nothing that had come was asked for again: at most what lay in the cut connections' buffers.
    expect(new Set(server.asked.map(({ range }) => range)).size).toBe(server.asked.length);
  });

  it('waits as long as a busy server asks, and gives up after a bounded number of attempts', async () => {
    const server = await HubServer.start([SMALL]);
    server.fault = (_, count) => (count < 3 ? { status: 429, retryAfter: '0' } : undefined);
    await fetchFrom(server);
    server.fault = () => ({ status: 503 });
    server.asked.length = 0;
    removeModel(pulledModel({ repository: NAME, quant: undefined }));
    expect(await codeOf(fetchFrom(server))).toBe('DOWNLOAD_FAILED');
    expect(server.asked.length).toBe(6);
  });

  it('ends a connection on which nothing comes, and takes another', async () => {
    const server = await HubServer.start([SMALL]);
    server.fault = (_, count) => (count === 0 ? { standStillAfterBytes: 10 } : undefined);
    await fetchFrom(server, undefined, { stallMillis: 50 });
    expect(readFileSync(modelPath(NAME)).equals(SMALL.bytes)).toBe(true);
  });

  it('refuses bytes that are not the published ones, and keeps none of them', async () => {
    const server = await HubServer.start([{ ...SMALL, sha256: '0'.repeat(64) }]);
    expect(await codeOf(fetchFrom(server))).toBe('VERIFY_FAILED');
    expect(readdirSync(join(folder, NAME))).toEqual(['Q4_K.pull.json']);
    expect(() => modelPath(NAME)).toThrow(/not whole/);
  });

  it('names a server that ignores ranges, and one whose file has another size', async () => {
    const server = await HubServer.start([LARGE]);
    server.fault = () => ({ withoutRanges: true });
    expect(await codeOf(fetchFrom(server))).toBe('DOWNLOAD_FAILED');
    const other = await HubServer.start([{ ...SMALL, sizeBytes: SMALL.bytes.length - 1 }]);
    expect(await codeOf(fetchFrom(other))).toBe('DOWNLOAD_FAILED');
  });

  it.each([
    [401, 'DOWNLOAD_REFUSED'],
    [403, 'DOWNLOAD_REFUSED'],
    [404, 'MODEL_NOT_FOUND'],
    [418, 'DOWNLOAD_FAILED'],
  ])('tells what %i means', async (status, code) => {
    const server = await HubServer.start([SMALL]);
    server.refuse = status;
    expect(await codeOf(fetchFrom(server))).toBe(code);
  });

  it('resumes after it was stopped, and asks only for what is missing', async () => {
    const server = await HubServer.start([LARGE]);
    const stop = new AbortController();
    const hub: Hub = { endpoint: server.endpoint, network: network({ signal: stop.signal }) };
    const { sets } = await listRepository(hub, NAME, 'main');
    const onProgress = (doneBytes: number): void => {
      if (doneBytes > SEGMENT_BYTES + 1_000_000) stop.abort();
    };
    const first = pull(hub, NAME, COMMIT, sets[0]!, { connections: 1, onProgress });
    expect(await codeOf(first)).toBe('ABORTED');
    expect(localModels(() => {})[0]).toMatchObject({ model: { complete: false } });
    server.asked.length = 0;
    await fetchFrom(server);
    expect(server.rangeBytes).toBe(LARGE.bytes.length - SEGMENT_BYTES);
    expect(readFileSync(modelPath(NAME)).equals(LARGE.bytes)).toBe(true);
  });

  it('asks for nothing when all is here, and for changed files when the commit has others', async () => {
    const server = await HubServer.start([SMALL]);
    await fetchFrom(server);
    server.asked.length = 0;
    await fetchFrom(server);
    expect(server.asked).toEqual([]);
    const changed = { ...SMALL, bytes: bytesOf(SMALL.bytes.length, 9) };
    server.files = [changed];
    await fetchFrom(server);
    expect(readFileSync(modelPath(NAME)).equals(changed.bytes)).toBe(true);
  });

  it('starts a file anew when its journal is damaged or of another file', async () => {
    const server = await HubServer.start([SMALL]);
    await fetchFrom(server);
    removeModel(pulledModel({ repository: NAME, quant: undefined }));
    const ofAnother = { sizeBytes: SMALL.bytes.length, hash: '0'.repeat(64), segmentBytes: SEGMENT_BYTES };
    for (const journal of ['garbage', `${'9'.repeat(100)}\n`, `${JSON.stringify(ofAnother)}\n0\n`]) {
      const part = join(folder, NAME, 'model-Q4_K.gguf');
      await fetchFrom(server);
      removeModel(pulledModel({ repository: NAME, quant: undefined }));
      mkdirSync(join(folder, NAME), { recursive: true });
      writeFileSync(`${part}.part`, new Uint8Array(SMALL.bytes.length));
      writeFileSync(`${part}.part.done`, journal);
      await fetchFrom(server);
      expect(readFileSync(part).equals(SMALL.bytes)).toBe(true);
    }
  });

  it('is refused while another process is at work there', async () => {
    const server = await HubServer.start([LARGE]);
    let second: Promise<string> | undefined;
    const hub: Hub = { endpoint: server.endpoint, network: network() };
    const { sets } = await listRepository(hub, NAME, 'main');
    const onProgress = (): void => {
      second ??= codeOf(pull(hub, NAME, COMMIT, sets[0]!));
    };
    await pull(hub, NAME, COMMIT, sets[0]!, { onProgress });
    expect(await second).toBe('MODEL_BUSY');
  });

  it('is refused before the first byte when the disk has no room', () => {
    const room = { totalBytes: 2e12, presentBytes: 0, freeBytes: 1e12 };
    expect(() => refuseWithoutRoom(NAME, room)).toThrow(/are missing and/);
    refuseWithoutRoom(NAME, { ...room, presentBytes: 2e12 });
    const [set] = setsOf([{ path: 'a-F16.gguf', sizeBytes: 10, hash: '0'.repeat(64) }]);
    expect(roomFor(NAME, set!)).toMatchObject({ totalBytes: 10, presentBytes: 0 });
  });
});

describe('what a repository offers', () => {
  const file = (path: string, sizeBytes = 1): { path: string; sizeBytes: number; hash: string } => ({
    path,
    sizeBytes,
    hash: '0'.repeat(64),
  });

  it('is one set per quantisation, whole split sets only', () => {
    const sets = setsOf([
      file('UD-Q3_K_XL/Big-397B-UD-Q3_K_XL-00002-of-00002.gguf', 5),
      file('UD-Q3_K_XL/Big-397B-UD-Q3_K_XL-00001-of-00002.gguf', 6),
      file('Big-397B-Q4_K_M-00001-of-00003.gguf'),
      file('Big-397B.IQ2_XXS.gguf', 2),
      file('Big-397B-MXFP4_MOE.gguf', 3),
      file('mmproj-F16.gguf'),
      file('imatrix_unsloth.gguf'),
      file('README.md'),
    ]);
    expect(sets.map(({ quant, entry, totalBytes }) => [quant, entry, totalBytes])).toEqual([
      ['IQ2_XXS', 'Big-397B.IQ2_XXS.gguf', 2],
      ['MXFP4_MOE', 'Big-397B-MXFP4_MOE.gguf', 3],
      ['UD-Q3_K_XL', 'UD-Q3_K_XL/Big-397B-UD-Q3_K_XL-00001-of-00002.gguf', 11],
    ]);
  });

  it('is a checkpoint where there are safetensors and a configuration', () => {
    const files = ['config.json', 'model-00001-of-00001.safetensors', 'tokenizer.json', 'README.md'];
    const [set] = setsOf(files.map((path) => file(path)));
    expect(set).toMatchObject({ quant: 'safetensors', entry: '.' });
    expect(set!.files.map(({ path }) => path)).toEqual(files.slice(0, 3));
    expect(setsOf([file('model.safetensors')])).toEqual([]);
  });

  it('names what there is when the wish is none of it', async () => {
    const server = await HubServer.start([SMALL, LARGE]);
    await expect(fetchFrom(server)).rejects.toThrow(/several quantisations: Q4_K, Q8_0/);
    await expect(fetchFrom(server, 'Q2_K')).rejects.toThrow(/has no "Q2_K": Q4_K, Q8_0/);
  });

  it.each(['../../etc/passwd.gguf', '/etc/x.gguf', 'a/../b.gguf', 'a\u001b[2J.gguf', 'a\\b.gguf', ''])(
    'never leaves the folder for %j',
    async (path) => {
      const server = await HubServer.start([{ path, bytes: SMALL.bytes }]);
      expect(await codeOf(fetchFrom(server))).toBe('DOWNLOAD_FAILED');
      expect(readdirSync(folder)).toEqual([]);
    },
  );
});

describe('names', () => {
  it.each(['org/model', 'Org-1/model.2_x', 'org/model:UD-Q3_K_XL'])('%s is one', (text) => {
    expect(parseModelName(text)).toBeDefined();
  });

  it.each([
    'model.gguf',
    './org/model',
    '/org/model',
    'a/b/c',
    '../model',
    'org/..',
    'org/model:',
    'a/b:c:d',
    'a/b:../c',
  ])('%s is none', (text) => {
    expect(parseModelName(text)).toBeUndefined();
  });

  it('are looked up only where no such path exists', () => {
    expect(modelPath('some/file/deep.gguf')).toBe('some/file/deep.gguf');
    expect(() => modelPath('org/absent')).toThrow(/neither a file nor a model that was pulled/);
  });

  it('a damaged manifest is said and does not hide the others', async () => {
    const server = await HubServer.start([SMALL]);
    await fetchFrom(server);
    for (const text of [
      '',
      '{',
      '{"version":1}',
      JSON.stringify({ version: 1, files: [{ path: '../x' }] }),
    ]) {
      writeFileSync(join(folder, NAME, 'bad.pull.json'), text);
      const problems: string[] = [];
      expect(localModels((sentence) => problems.push(sentence)).length).toBe(1);
      expect(problems.length).toBe(1);
    }
  });
});

describe('deleting', () => {
  it('takes the files, keeps what another quantisation shares, and leaves no folder', async () => {
    const server = await HubServer.start([SMALL, LARGE]);
    await fetchFrom(server, 'Q4_K');
    await fetchFrom(server, 'Q8_0');
    expect(removeModel(pulledModel({ repository: NAME, quant: 'Q4_K' }))).toBe(SMALL.bytes.length);
    expect(statSync(modelPath(NAME)).size).toBe(LARGE.bytes.length);
    removeModel(pulledModel({ repository: NAME, quant: undefined }));
    expect(readdirSync(folder)).toEqual([]);
  });

  it('finds the damage of a file that was changed or cut', async () => {
    const server = await HubServer.start([SMALL]);
    const model = await fetchFrom(server);
    const path = modelPath(NAME);
    const bytes = Buffer.from(SMALL.bytes);
    bytes[500] = bytes[500]! ^ 1;
    writeFileSync(path, bytes);
    expect((await checkPulled(model)).damages[0]!.problem).toMatch(/the hash is/);
    writeFileSync(path, bytes.subarray(0, 10));
    expect((await checkPulled(model)).damages[0]!.problem).toMatch(/has 10 bytes/);
  });
});
