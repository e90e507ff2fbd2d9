/**
 * What a repository offers: its files at one commit, grouped into sets of which a user wants one.
 *
 * A set is the GGUF files of one quantisation (one file, or all parts of a split one), or the safetensors checkpoint with
 * its configuration. The server's answer is untrusted: paths that would leave the folder, absurd sizes and endless lists
 * end with a typed error.
 */
import { basename } from 'node:path';
import { MoestreamError } from '../errors.ts';
import { quoted } from '../model/header-reader.ts';
import { isSafePath, type ModelName } from '../model/model-store.ts';
import { fetchSmall, type Network } from './http.ts';

export interface RemoteFile {
  readonly path: string;
  readonly sizeBytes: number;
  /** SHA-256 of the bytes where the file is stored apart, else git's SHA-1 of the blob. */
  readonly hash: string;
}

/** What can be pulled as one model. */
export interface ModelSet {
  readonly quant: string;
  readonly files: readonly RemoteFile[];
  /** What to open when all files are there. */
  readonly entry: string;
  readonly totalBytes: number;
}

export interface Repository {
  readonly name: string;
  readonly commit: string;
  readonly sets: readonly ModelSet[];
}

export interface Hub {
  /** Without a slash at its end. */
  readonly endpoint: string;
  readonly network: Network;
}

const ENDPOINT = 'https://huggingface.co';
const FILES_MAX = 10_000;
const ANSWER_BYTES_MAX = 32 * 1024 ** 2;
const REQUESTS_MAX = 100;
const COMMIT = /^[0-9a-f]{40}$/;
/** The name of a safetensors checkpoint among quantisations. */
export const SAFETENSORS_SET = 'safetensors';

/** $HF_ENDPOINT or the public hub. Throws USAGE for what is no http address. */
export function hubEndpoint(): string {
  const { HF_ENDPOINT: wanted } = process.env;
  if (wanted === undefined || wanted === '') return ENDPOINT;
  if (URL.canParse(wanted) && /^https?:$/.test(new URL(wanted).protocol)) return wanted.replace(/\/+$/, '');
  throw new MoestreamError('USAGE', `HF_ENDPOINT is ${quoted(wanted)}, expected an http or https address`);
}

/** $HF_TOKEN. Throws USAGE for one that the hub's own library would refuse. */
export function hubToken(): string | undefined {
  const token = process.env.HF_TOKEN?.trim();
  if (token === undefined || token === '') return undefined;
  if (token.startsWith('hf_')) return token;
  throw new MoestreamError('USAGE', 'HF_TOKEN does not begin with "hf_"', {
    hint: 'Unset it, or set a token.',
  });
}

export function fileUrl(hub: Hub, repository: string, commit: string, path: string): string {
  return `${hub.endpoint}/${repository}/resolve/${commit}/${path.split('/').map(encodeURIComponent).join('/')}`;
}

/** Asks the hub for a repository at a revision (a branch, a tag or a commit). Throws MoestreamError. */
export async function listRepository(hub: Hub, name: string, revision: string): Promise<Repository> {
  const { listFiles, modelInfo } = await import('@huggingface/hub');
  const { endpoint, network } = hub;
  let requests = 0;
  const bounded: typeof fetch = async (input) => {
    if (++requests > REQUESTS_MAX) throw tooMuch(name, `${REQUESTS_MAX} pages of files`);
    const { bytes, headers } = await fetchSmall(String(input), network, ANSWER_BYTES_MAX);
    return new Response(new Uint8Array(bytes), { headers });
  };
  const asking = { hubUrl: endpoint, fetch: bounded };
  try {
    const { sha } = await modelInfo({ name, revision, additionalFields: ['sha'], ...asking });
    if (typeof sha !== 'string' || !COMMIT.test(sha)) throw notAHub(endpoint, 'a commit');
    const files: RemoteFile[] = [];
    for await (const entry of listFiles({ repo: name, recursive: true, revision: sha, ...asking })) {
      if (entry.type !== 'file') continue;
      if (files.length === FILES_MAX) throw tooMuch(name, `${FILES_MAX} files`);
      files.push(remoteFile(name, entry));
    }
    return { name, commit: sha, sets: setsOf(files) };
  } catch (error) {
    if (MoestreamError.is(error)) throw error;
    throw notAHub(endpoint, 'a list of files', error);
  }
}

function tooMuch(name: string, limit: string): MoestreamError {
  return new MoestreamError('DOWNLOAD_FAILED', `${name} has more than ${limit}: this is no model repository`);
}

function notAHub(endpoint: string, wanted: string, cause?: unknown): MoestreamError {
  return new MoestreamError('DOWNLOAD_FAILED', `${endpoint} does not answer with ${wanted}`, {
    hint: 'Check HF_ENDPOINT and the network: a login page or a proxy may be in between.',
    cause,
  });
}

function remoteFile(
  name: string,
  entry: { path: string; size: number; oid?: string; lfs?: { oid: string; size: number } },
): RemoteFile {
  const { path } = entry;
  const sizeBytes = entry.lfs?.size ?? entry.size;
  const hash = entry.lfs?.oid ?? entry.oid;
  if (typeof path !== 'string' || !isSafePath(path)) {
    throw new MoestreamError(
      'DOWNLOAD_FAILED',
      `${name} has a file with the path ${quoted(String(path))}: refused`,
    );
  }
  if (
    !Number.isSafeInteger(sizeBytes) ||
    sizeBytes < 0 ||
    !/^([0-9a-f]{40}|[0-9a-f]{64})$/.test(String(hash))
  ) {
    throw new MoestreamError('DOWNLOAD_FAILED', `${name}: ${quoted(path)} has no proper size or hash`);
  }
  return { path, sizeBytes, hash: String(hash) };
}

const SPLIT = /-(\d{5})-of-(\d{5})$/;
/** At the end of a file's name, as llama.cpp and those who publish for it write them. */
const QUANT = /(?:^|[-._])((?:UD[-_])?(?:IQ\d_[A-Z]+|T?Q\d(?:_[0-9A-Z]+)*|MXFP4(?:_[A-Z]+)?|BF16|F16|F32))$/i;
/** Parts of other models that lie beside: vision projectors, and statistics for quantising. */
const BESIDE = /^mmproj|imatrix/i;
const CHECKPOINT_FILE = /\.(safetensors|json|jinja)$/;

/** Groups files into sets: one per quantisation, and the safetensors checkpoint at the root. Sorted by size. */
export function setsOf(files: readonly RemoteFile[]): ModelSet[] {
  const sets = [...ggufSets(files), ...checkpointSet(files)];
  return sets.sort((a, b) => a.totalBytes - b.totalBytes);
}

function ggufSets(files: readonly RemoteFile[]): ModelSet[] {
  const groups = new Map<string, RemoteFile[]>();
  for (const file of files) {
    const name = basename(file.path);
    if (!name.toLowerCase().endsWith('.gguf') || BESIDE.test(name)) continue;
    const stem = file.path.slice(0, -'.gguf'.length).replace(SPLIT, '');
    groups.set(stem, [...(groups.get(stem) ?? []), file]);
  }
  const quants = [...groups.keys()].map((stem) => QUANT.exec(stem)?.[1]);
  return [...groups].flatMap(([stem, parts], index) => {
    const sorted = [...parts].sort((a, b) => (a.path < b.path ? -1 : 1));
    const quant = quants[index];
    const isUnique = quant !== undefined && quants.filter((each) => each === quant).length === 1;
    return isWhole(sorted) ? [setOf(isUnique ? quant : basename(stem), sorted, sorted[0]!.path)] : [];
  });
}

/** Whether a split set has all of its parts. */
function isWhole(parts: readonly RemoteFile[]): boolean {
  const count = SPLIT.exec(parts[0]!.path.slice(0, -'.gguf'.length))?.[2];
  return parts.length === (count === undefined ? 1 : Number(count));
}

function checkpointSet(files: readonly RemoteFile[]): ModelSet[] {
  const own = files.filter(({ path }) => !path.includes('/') && CHECKPOINT_FILE.test(path));
  const hasConfig = own.some(({ path }) => path === 'config.json');
  if (!hasConfig || !own.some(({ path }) => path.endsWith('.safetensors'))) return [];
  return [setOf(SAFETENSORS_SET, own, '.')];
}

function setOf(quant: string, files: readonly RemoteFile[], entry: string): ModelSet {
  return { quant, files, entry, totalBytes: files.reduce((sum, file) => sum + file.sizeBytes, 0) };
}

/** The set that a name means. Throws USAGE where it is not one, listing what there is. */
export function chooseSet({ name, sets }: Repository, { quant }: ModelName): ModelSet {
  const wanted = sets.filter((set) => quant === undefined || set.quant.toLowerCase() === quant.toLowerCase());
  if (wanted.length === 1) return wanted[0]!;
  if (sets.length === 0) {
    throw new MoestreamError('MODEL_UNSUPPORTED', `${name} has neither GGUF nor safetensors models`);
  }
  const found = sets.map((set) => set.quant).join(', ');
  const problem = quant === undefined ? 'has several quantisations' : `has no ${quoted(quant)}`;
  throw new MoestreamError('USAGE', `${name} ${problem}: ${found}`, {
    hint: `Name one, such as ${name}:${sets[0]!.quant}.`,
  });
}
